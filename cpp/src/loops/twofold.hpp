// Sums as if computed in twice the working precision, for coefficients of products.
#pragma once

#include "lanes.hpp"

namespace {

// Sums in hi + lo: errors of the products and of the additions to hi are collected in lo (Ogita, Rump, Oishi 2005,
// Dot2, over lanes).
template <class T>
STEEPEST_INLINE void accumulate_twofold(vdouble a, vdouble b, vdouble& hi, vdouble& lo) {
    if constexpr (T::exact_products) {
        hi = multiply_add(a, b, hi);  // double is twice the precision of these types already
    } else {
        vdouble p, e, s, t;
        two_product(a, b, p, e);
        two_sum(hi, p, s, t);
        lo = lo + (t + e);
        hi = s;
    }
}

STEEPEST_INLINE void sum_lanes_twofold(const Lanes& hi, const Lanes& lo, double* hi_lo) {
    double h[n_lanes], l[n_lanes];
    lanes_to_array(hi, h);
    lanes_to_array(lo, l);
    double sum = 0.0, rest = 0.0;
    for (int i = 0; i < n_lanes; ++i) {
        const double s = sum + h[i], t = s - sum;
        rest += ((sum - (s - t)) + (h[i] - t)) + l[i];
        sum = s;
    }
    hi_lo[0] = sum;
    hi_lo[1] = rest;
}

// Inner products of one to three columns with x, each as hi + lo. Bodies apart, because the accumulators have to stay in
// registers, and an array of them does not.
template <class T>
void dots_1(const void* const* w, const void* x, int64_t n, double* hi_lo) {
    Lanes hi = zero_lanes(), lo = hi;
    const char* const arrays[2] = {static_cast<const char*>(w[0]), static_cast<const char*>(x)};
    for_each_step<T>(
        arrays, n,
        [&](const char* const* at) {
            for (int v = 0; v < n_vectors; ++v)
                accumulate_twofold<T>(load<T>(at[0], v), load<T>(at[1], v), hi.part[v], lo.part[v]);
        },
        [] {});
    sum_lanes_twofold(hi, lo, hi_lo);
}

template <class T>
void dots_2(const void* const* w, const void* x, int64_t n, double* hi_lo) {
    Lanes hi0 = zero_lanes(), lo0 = hi0, hi1 = hi0, lo1 = hi0;
    const char* const arrays[3] = {static_cast<const char*>(w[0]), static_cast<const char*>(w[1]),
                                   static_cast<const char*>(x)};
    for_each_step<T>(
        arrays, n,
        [&](const char* const* at) {
            for (int v = 0; v < n_vectors; ++v) {
                const vdouble c = load<T>(at[2], v);
                accumulate_twofold<T>(load<T>(at[0], v), c, hi0.part[v], lo0.part[v]);
                accumulate_twofold<T>(load<T>(at[1], v), c, hi1.part[v], lo1.part[v]);
            }
        },
        [] {});
    sum_lanes_twofold(hi0, lo0, hi_lo);
    sum_lanes_twofold(hi1, lo1, hi_lo + 2);
}

template <class T>
void dots_3(const void* const* w, const void* x, int64_t n, double* hi_lo) {
    Lanes hi0 = zero_lanes(), lo0 = hi0, hi1 = hi0, lo1 = hi0, hi2 = hi0, lo2 = hi0;
    const char* const arrays[4] = {static_cast<const char*>(w[0]), static_cast<const char*>(w[1]),
                                   static_cast<const char*>(w[2]), static_cast<const char*>(x)};
    for_each_step<T>(
        arrays, n,
        [&](const char* const* at) {
            for (int v = 0; v < n_vectors; ++v) {
                const vdouble c = load<T>(at[3], v);
                accumulate_twofold<T>(load<T>(at[0], v), c, hi0.part[v], lo0.part[v]);
                accumulate_twofold<T>(load<T>(at[1], v), c, hi1.part[v], lo1.part[v]);
                accumulate_twofold<T>(load<T>(at[2], v), c, hi2.part[v], lo2.part[v]);
            }
        },
        [] {});
    sum_lanes_twofold(hi0, lo0, hi_lo);
    sum_lanes_twofold(hi1, lo1, hi_lo + 2);
    sum_lanes_twofold(hi2, lo2, hi_lo + 4);
}

void dot_twofold(const double* x, const double* y, int64_t n, double* hi_lo) {
    Lanes hi = zero_lanes(), lo = hi;
    const char* const arrays[2] = {chars(x), chars(y)};
    for_each_step<Float64>(
        arrays, n,
        [&](const char* const* at) {
            for (int v = 0; v < n_vectors; ++v)
                accumulate_twofold<Float64>(load<Float64>(at[0], v), load<Float64>(at[1], v), hi.part[v],
                                            lo.part[v]);
        },
        [] {});
    sum_lanes_twofold(hi, lo, hi_lo);
}

void combine_twofold(double factor, const double* x, int k, const double* const* w, const double* high,
                     const double* low, int64_t n, double* out) {
    const vdouble f = broadcast(factor);
    int64_t i = 0;
    for (; i + width <= n; i += width) {
        STEEPEST_PREFETCH(chars(x + i) + prefetch_bytes);
        vdouble hi = f * Float64::load(chars(x + i)), lo = broadcast(0.0);
        for (int j = 0; j < k; ++j) {
            STEEPEST_PREFETCH(chars(w[j] + i) + prefetch_bytes);
            const vdouble value = Float64::load(chars(w[j] + i));
            vdouble p, e, s, t;
            two_product(broadcast(high[j]), value, p, e);
            two_sum(hi, p, s, t);
            lo = lo + (t + multiply_add(broadcast(low[j]), value, e));
            hi = s;
        }
        Float64::store(hi + lo, reinterpret_cast<char*>(out + i));
    }
    if (i < n) {  // the same on zero-padded copies; one column at a time, for their number is not fixed
        double tail[width] = {};
        const std::size_t left = static_cast<std::size_t>(n - i) * sizeof(double);
        std::memcpy(tail, x + i, left);
        vdouble hi = f * Float64::load(chars(tail)), lo = broadcast(0.0);
        for (int j = 0; j < k; ++j) {
            std::memcpy(tail, w[j] + i, left);
            const vdouble value = Float64::load(chars(tail));
            vdouble p, e, s, t;
            two_product(broadcast(high[j]), value, p, e);
            two_sum(hi, p, s, t);
            lo = lo + (t + multiply_add(broadcast(low[j]), value, e));
            hi = s;
        }
        Float64::store(hi + lo, reinterpret_cast<char*>(tail));
        std::memcpy(out + i, tail, left);
    }
}

}  // namespace
