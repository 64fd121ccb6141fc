// Right-hand sides that lie side by side, and rows of matrices of rank two.
#pragma once

#include "twofold.hpp"

namespace {

// Inner products of one column of doubles with m vectors that lie side by side (C order): adds to hi and lo, m each.
template <class T>
void row_dots(const double* w, const void* x, int64_t rows, int64_t stride, int64_t m, double* hi, double* lo) {
    const char* first = static_cast<const char*>(x);
    for (int64_t j = 0; j < m; j += width) {
        const int64_t left = m - j;
        vdouble h = load_some<Float64>(reinterpret_cast<const char*>(hi + j), left);
        vdouble l = load_some<Float64>(reinterpret_cast<const char*>(lo + j), left);
        const char* row = first + j * T::bytes;
        // One lane for each right-hand side, so its sum is long: in hi + lo for every type.
        for (int64_t i = 0; i < rows; ++i, row += stride)
            accumulate_twofold<Float64>(broadcast(w[i]), load_some<T>(row, left), h, l);
        store_some<Float64>(h, reinterpret_cast<char*>(hi + j), left);
        store_some<Float64>(l, reinterpret_cast<char*>(lo + j), left);
    }
}

// out_ir = base_i x_ir + sum_k c_kr w_ki for m vectors side by side.
template <class T>
void row_combine(const double* base, const double* const* w, int64_t k, const double* c, const void* x, int64_t rows,
                 int64_t stride, int64_t m, void* out, int64_t out_stride) {
    for (int64_t j = 0; j < m; j += width) {
        const int64_t left = m - j;
        const char* from = static_cast<const char*>(x) + j * T::bytes;
        char* to = static_cast<char*>(out) + j * T::bytes;
        for (int64_t i = 0; i < rows; ++i, from += stride, to += out_stride) {
            vdouble value = broadcast(base[i]) * load_some<T>(from, left);
            for (int64_t a = 0; a < k; ++a)
                value = multiply_add(broadcast(w[a][i]),
                                     load_some<Float64>(reinterpret_cast<const char*>(c + a * m + j), left), value);
            store_some<T>(value, to, left);
        }
    }
}

// Every product and sum is the same with i and j exchanged; none is fused.
template <class T, bool streams>
STEEPEST_INLINE void rank_two_row_as(const double* k, double wi, double vi, const double* w, const double* v, int64_t n,
                                     void* out) {
    const vdouble k_ww = broadcast(k[0]), k_wv = broadcast(k[1]), k_vv = broadcast(k[2]);
    const vdouble own_w = broadcast(wi), own_v = broadcast(vi);
    char* to = static_cast<char*>(out);
    const auto row = [&](vdouble a, vdouble b) {
        return (k_ww * (own_w * a) + k_wv * (own_w * b + own_v * a)) + k_vv * (own_v * b);
    };
    const auto some = [&](int64_t j, int64_t count) {
        double a[width] = {}, b[width] = {};
        char result[width * T::bytes];
        std::memcpy(a, w + j, static_cast<std::size_t>(count) * sizeof(double));
        std::memcpy(b, v + j, static_cast<std::size_t>(count) * sizeof(double));
        T::store(row(Float64::load(chars(a)), Float64::load(chars(b))), result);
        std::memcpy(to + j * T::bytes, result, static_cast<std::size_t>(count) * T::bytes);
    };
    int64_t j = 0;
    if constexpr (streams) {
        j = unaligned_elements(to, T::bytes);
        if (j > n) j = n;
        if (j > 0) some(0, j);
    }
    for (; j + width <= n; j += width)
        store<T, streams>(row(Float64::load(chars(w + j)), Float64::load(chars(v + j))), to + j * T::bytes);
    if (j < n) some(j, n - j);
    if constexpr (streams) stream_fence();
}

template <class T>
void rank_two_row(const double* k, double wi, double vi, const double* w, const double* v, int64_t n, void* out,
                  bool stream) {
    if (stream && unaligned_elements(static_cast<char*>(out), T::bytes) >= 0)
        rank_two_row_as<T, true>(k, wi, vi, w, v, n, out);
    else
        rank_two_row_as<T, false>(k, wi, vi, w, v, n, out);
}

void add_square_row(double k, double wi, const double* w, int64_t n, double* out) {
    for (int64_t j = 0; j < n; ++j) out[j] = out[j] + k * (wi * w[j]);
}

void add_cross_row(double k, double wi, double vi, const double* w, const double* v, int64_t n, double* out) {
    for (int64_t j = 0; j < n; ++j) out[j] = out[j] + k * (wi * v[j] + vi * w[j]);
}

}  // namespace
