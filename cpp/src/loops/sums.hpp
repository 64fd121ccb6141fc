// Plain sums: the inner products of a pair, and what else is added up once.
#pragma once

#include "lanes.hpp"

namespace {

using steepest::PairSums;

template <class T>
PairSums pair_sums(const void* x, const void* y, int64_t n) {
    Lanes xx = zero_lanes(), xy = xx, yy = xx, squares = xx, chain_xx = xx, chain_xy = xx, chain_yy = xx,
          chain_squares = xx;
    const char* const arrays[2] = {static_cast<const char*>(x), static_cast<const char*>(y)};
    for_each_step<T>(
        arrays, n,
        [&](const char* const* at) {
            for (int v = 0; v < n_vectors; ++v) {
                const vdouble a = load<T>(at[0], v), b = load<T>(at[1], v), p = a * b;
                chain_xx.part[v] = multiply_add(a, a, chain_xx.part[v]);
                chain_yy.part[v] = multiply_add(b, b, chain_yy.part[v]);
                chain_xy.part[v] = chain_xy.part[v] + p;
                chain_squares.part[v] = multiply_add(p, p, chain_squares.part[v]);
            }
        },
        [&] {
            fold(xx, chain_xx);
            fold(xy, chain_xy);
            fold(yy, chain_yy);
            fold(squares, chain_squares);
        });
    return {sum_lanes(xx), sum_lanes(xy), sum_lanes(yy), sum_lanes(squares)};
}

double dot(const double* x, const double* y, int64_t n) {
    Lanes sum = zero_lanes(), chain = sum;
    const char* const arrays[2] = {chars(x), chars(y)};
    for_each_step<Float64>(
        arrays, n,
        [&](const char* const* at) {
            for (int v = 0; v < n_vectors; ++v)
                chain.part[v] = multiply_add(load<Float64>(at[0], v), load<Float64>(at[1], v), chain.part[v]);
        },
        [&] { fold(sum, chain); });
    return sum_lanes(sum);
}

double sum_squared_products(const double* x, const double* y, int64_t n) {
    Lanes sum = zero_lanes();
    const char* const arrays[2] = {chars(x), chars(y)};
    for_each_step<Float64>(
        arrays, n,
        [&](const char* const* at) {
            for (int v = 0; v < n_vectors; ++v) {
                const vdouble p = load<Float64>(at[0], v) * load<Float64>(at[1], v);
                sum.part[v] = multiply_add(p, p, sum.part[v]);
            }
        },
        [] {});
    return sum_lanes(sum);
}

double max_abs(const double* x, int64_t n) {
    double largest = 0.0, sum = 0.0;
    for (int64_t i = 0; i < n; ++i) {
        const double a = x[i] < 0 ? -x[i] : x[i];
        largest = a > largest ? a : largest;
        sum += x[i] * 0.0;  // NaN if any element is NaN or infinite
    }
    return sum == 0.0 ? largest : sum;
}

// Zeros that pad the last step would count here, hence the loop behind it.
double exponent_squares(const double* x, int64_t n, double least) {
    constexpr std::uint64_t exponent_bits = std::uint64_t{0x7FF} << 52;
    Lanes sums = zero_lanes(), chain = sums;
    const int64_t whole = n - n % n_lanes;
    const char* const arrays[1] = {reinterpret_cast<const char*>(x)};
    const vdouble lowest = broadcast(least);
    for_each_step<Float64>(
        arrays, whole,
        [&](const char* const* at) {
            for (int v = 0; v < n_vectors; ++v) {
                const vdouble power = bits<vdouble>(bits<vuint64>(load<Float64>(at[0], v)) & exponent_bits);
                const vdouble p = power < lowest ? lowest : power;
                chain.part[v] = multiply_add(p, p, chain.part[v]);
            }
        },
        [&] { fold(sums, chain); });
    double total = sum_lanes(sums);
    for (int64_t i = whole; i < n; ++i) {
        const double power = bits<double>(bits<std::uint64_t>(x[i]) & exponent_bits);
        total += power < least ? least * least : power * power;
    }
    return total;
}

}  // namespace
