// Linear combinations of vectors, and other operations element by element.
#pragma once

#include "lanes.hpp"

namespace {

template <class T, int K, bool streams>
STEEPEST_INLINE void combine_as(double base, const double* c, const void* x, const void* const* w, int64_t n,
                                void* out) {
    const vdouble b = broadcast(base);
    vdouble coefficients[K];
    const char* columns[K];
    for (int k = 0; k < K; ++k) {
        coefficients[k] = broadcast(c[k]);
        columns[k] = static_cast<const char*>(w[k]);
    }
    const char* px = static_cast<const char*>(x);
    char* po = static_cast<char*>(out);
    constexpr int bytes = width * T::bytes;
    const auto value_at = [&](const char* ax, const char* const* aw, int64_t offset) {
        vdouble value = b * T::load(ax);
        for (int k = 0; k < K; ++k) value = multiply_add(coefficients[k], T::load(aw[k] + offset), value);
        return value;
    };
    // Fewer elements than a register has, on padded copies.
    const auto some = [&](int64_t i, int64_t count) {
        const int64_t offset = i * T::bytes;
        char tail_x[bytes] = {}, tails[K][bytes] = {}, result[bytes];
        const char* tail_w[K];
        const std::size_t left = static_cast<std::size_t>(count) * T::bytes;
        std::memcpy(tail_x, px + offset, left);
        for (int k = 0; k < K; ++k) {
            std::memcpy(tails[k], columns[k] + offset, left);
            tail_w[k] = tails[k];
        }
        T::store(value_at(tail_x, tail_w, 0), result);
        std::memcpy(po + offset, result, left);
    };
    int64_t i = 0;
    if constexpr (streams) {
        i = unaligned_elements(po, T::bytes);
        if (i > n) i = n;
        if (i > 0) some(0, i);
    }
    for (; i + n_lanes <= n; i += n_lanes) {
        const int64_t offset = i * T::bytes;
        for (int64_t line = 0; line < n_lanes * T::bytes; line += 64) {
            STEEPEST_PREFETCH(px + offset + prefetch_bytes + line);
            for (int k = 0; k < K; ++k) STEEPEST_PREFETCH(columns[k] + offset + prefetch_bytes + line);
        }
        for (int v = 0; v < n_vectors; ++v) {
            const int64_t o = offset + v * bytes;
            store<T, streams>(value_at(px + o, columns, o), po + o);
        }
    }
    for (; i + width <= n; i += width) {
        const int64_t offset = i * T::bytes;
        T::store(value_at(px + offset, columns, offset), po + offset);
    }
    if (i < n) some(i, n - i);
    if constexpr (streams) stream_fence();
}

template <class T, int K>
void combine(double base, const double* c, const void* x, const void* const* w, int64_t n, void* out, bool stream) {
    if (stream && unaligned_elements(static_cast<char*>(out), T::bytes) >= 0)
        combine_as<T, K, true>(base, c, x, w, n, out);
    else
        combine_as<T, K, false>(base, c, x, w, n, out);
}

void multiply(const double* x, const double* d, int64_t n, double* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] * d[i];
}

void divide(const double* x, const double* d, int64_t n, double* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] / d[i];
}

void scale(double factor, const double* x, int64_t n, double* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = factor * x[i];
}

void add_scaled(double factor, const double* x, int64_t n, double* out) {
    const vdouble f = broadcast(factor);
    int64_t i = 0;
    for (; i + width <= n; i += width)
        Float64::store(multiply_add(f, Float64::load(chars(x + i)), Float64::load(chars(out + i))),
                       reinterpret_cast<char*>(out + i));
    if (i < n) {
        double tail[2][width] = {};
        const std::size_t left = static_cast<std::size_t>(n - i) * sizeof(double);
        std::memcpy(tail[0], x + i, left);
        std::memcpy(tail[1], out + i, left);
        Float64::store(multiply_add(f, Float64::load(chars(tail[0])), Float64::load(chars(tail[1]))),
                       reinterpret_cast<char*>(tail[1]));
        std::memcpy(out + i, tail[1], left);
    }
}

}  // namespace
