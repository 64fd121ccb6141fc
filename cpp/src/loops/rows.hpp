// Right-hand sides that lie side by side, and rows of matrices of rank two.
#pragma once

#include "twofold.hpp"

namespace {

// Adds the inner products of K columns of doubles with `width` vectors that lie side by side, of which `left` are there.
template <class T, int K, class Load>
STEEPEST_INLINE void add_row_dots(const double* const* w, const char* row, int64_t rows, int64_t stride, Load load_row,
                                  vdouble (&hi)[K], vdouble (&lo)[K]) {
    if constexpr (T::exact_products) {
        // Double is twice the precision of these types: chains of chain_steps products, four at a time.
        for (int64_t begin = 0; begin < rows; begin += 4 * chain_steps) {
            const int64_t end = begin + 4 * chain_steps < rows ? begin + 4 * chain_steps : rows;
            vdouble part[4][K];
            for (auto& each : part)
                for (vdouble& one : each) one = broadcast(0.0);
            int64_t i = begin;
            for (; i + 4 <= end; i += 4)
                for (int u = 0; u < 4; ++u, row += stride) {
                    const vdouble value = load_row(row);
                    for (int k = 0; k < K; ++k) part[u][k] = multiply_add(broadcast(w[k][i + u]), value, part[u][k]);
                }
            for (; i < end; ++i, row += stride)
                for (int k = 0; k < K; ++k) part[0][k] = multiply_add(broadcast(w[k][i]), load_row(row), part[0][k]);
            for (int k = 0; k < K; ++k) {
                vdouble sum, error;
                two_sum(hi[k], (part[0][k] + part[1][k]) + (part[2][k] + part[3][k]), sum, error);
                hi[k] = sum;
                lo[k] = lo[k] + error;
            }
        }
    } else {
        for (int64_t i = 0; i < rows; ++i, row += stride)
            for (int k = 0; k < K; ++k) accumulate_twofold<T>(broadcast(w[k][i]), load_row(row), hi[k], lo[k]);
    }
}

// Inner products of K columns of doubles with m vectors that lie side by side (C order): adds to hi_lo, for each column m
// high parts and then m low ones.
template <class T, int K>
void row_dots(const double* const* w, const void* x, int64_t rows, int64_t stride, int64_t m, double* hi_lo) {
    for (int64_t j = 0; j < m; j += width) {
        const int64_t left = m - j;
        const char* row = static_cast<const char*>(x) + j * T::bytes;
        char* sums = reinterpret_cast<char*>(hi_lo + j);
        const int64_t next = m * static_cast<int64_t>(sizeof(double));
        vdouble hi[K], lo[K];
        for (int k = 0; k < K; ++k) {
            hi[k] = load_some<Float64>(sums + 2 * k * next, left);
            lo[k] = load_some<Float64>(sums + (2 * k + 1) * next, left);
        }
        if (left >= width) add_row_dots<T, K>(w, row, rows, stride, [](const char* at) { return T::load(at); }, hi, lo);
        else add_row_dots<T, K>(w, row, rows, stride, [left](const char* at) { return load_some<T>(at, left); }, hi, lo);
        for (int k = 0; k < K; ++k) {
            store_some<Float64>(hi[k], sums + 2 * k * next, left);
            store_some<Float64>(lo[k], sums + (2 * k + 1) * next, left);
        }
    }
}

// out_ir = base_i x_ir + sum_k c_kr w_ki for m vectors side by side; row by row, so that lines of memory are written whole.
template <class T, bool streams>
STEEPEST_INLINE void row_combine_as(const double* base, const double* const* w, int64_t k, const double* c, const void* x,
                                    int64_t rows, int64_t stride, int64_t m, void* out, int64_t out_stride) {
    const char* from = static_cast<const char*>(x);
    char* to = static_cast<char*>(out);
    const int64_t whole = m - m % width;
    const auto value_at = [&](int64_t i, vdouble value, int64_t j, int64_t left) {
        value = broadcast(base[i]) * value;
        for (int64_t a = 0; a < k; ++a)
            value = multiply_add(broadcast(w[a][i]), load_some<Float64>(reinterpret_cast<const char*>(c + a * m + j), left), value);
        return value;
    };
    for (int64_t i = 0; i < rows; ++i, from += stride, to += out_stride) {
        STEEPEST_PREFETCH(from + prefetch_bytes);
        for (int64_t j = 0; j < whole; j += width)
            store<T, streams>(value_at(i, T::load(from + j * T::bytes), j, width), to + j * T::bytes);
        if (whole < m)
            store_some<T>(value_at(i, load_some<T>(from + whole * T::bytes, m - whole), whole, m - whole),
                          to + whole * T::bytes, m - whole);
    }
    if constexpr (streams) stream_fence();
}

template <class T>
void row_combine(const double* base, const double* const* w, int64_t k, const double* c, const void* x, int64_t rows,
                 int64_t stride, int64_t m, void* out, int64_t out_stride, bool stream) {
    const bool aligned = unaligned_elements(static_cast<char*>(out), T::bytes) == 0 && out_stride % (width * T::bytes) == 0;
    if (stream && aligned) row_combine_as<T, true>(base, w, k, c, x, rows, stride, m, out, out_stride);
    else row_combine_as<T, false>(base, w, k, c, x, rows, stride, m, out, out_stride);
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
