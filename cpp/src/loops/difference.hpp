// A difference of two vectors as it is rounded in memory, and what a step asks of it, without writing it.
#pragma once

#include "lanes.hpp"

namespace {

using steepest::PairSums;

// after - before in T. In the registers of the type where there are such; else a double difference, rounded once more:
// for these narrow types that gives the same (Figueroa 1995: 53 bits are more than twice 24 and one).
template <class T>
STEEPEST_INLINE vdouble load_difference(const char* after, const char* before) {
    char narrow[width * T::bytes];
    T::store(T::load(after) - T::load(before), narrow);
    return T::load(narrow);
}

template <>
STEEPEST_INLINE vdouble load_difference<Float64>(const char* after, const char* before) {
    return Float64::load(after) - Float64::load(before);
}

STEEPEST_INLINE vfloat load_floats(const char* at) {
    vfloat x;
    std::memcpy(&x, at, sizeof x);
    return x;
}

template <>
STEEPEST_INLINE vdouble load_difference<Float32>(const char* after, const char* before) {
    return to_double(load_floats(after) - load_floats(before));
}

// The powers of two in the elements, 2^floor(log2 |x_i|), each at least `least`, a number of the type T.
template <class T>
STEEPEST_INLINE vdouble load_powers(const char* at, double least) {
    const vdouble power = bits<vdouble>(bits<vuint64>(T::load(at)) & (std::uint64_t{0x7FF} << 52));
    const vdouble lowest = broadcast(least);
    return power < lowest ? lowest : power;
}

template <>
STEEPEST_INLINE vdouble load_powers<Float32>(const char* at, double least) {
    const vfloat power = bits<vfloat>(bits<vuint32>(load_floats(at)) & 0x7F800000u);
    const vfloat lowest = static_cast<float>(least) - vfloat{};
    return to_double(power < lowest ? lowest : power);
}

// pair_sums of y and after - before, and the sums that exponent_squares finds in each tile of `floor`, which is after or
// before: in the same lanes and order. A tile is a multiple of n_lanes * chain_steps elements.
template <class T>
PairSums difference_sums(const void* y, const void* after, const void* before, const void* floor, int64_t n,
                         int64_t tile, double least, double* powers_squared) {
    Lanes xx = zero_lanes(), xy = xx, yy = xx, squares = xx, powers = xx, chain_xx = xx, chain_xy = xx, chain_yy = xx,
          chain_squares = xx, chain_powers = xx;
    const bool of_after = floor == after;
    const auto multiply = [&](const char* const* at) {
        for (int v = 0; v < n_vectors; ++v) {
            const int64_t offset = v * width * T::bytes;
            const vdouble a = load<T>(at[0], v), b = load_difference<T>(at[1] + offset, at[2] + offset), p = a * b;
            chain_xx.part[v] = multiply_add(a, a, chain_xx.part[v]);
            chain_yy.part[v] = multiply_add(b, b, chain_yy.part[v]);
            chain_xy.part[v] = chain_xy.part[v] + p;
            chain_squares.part[v] = multiply_add(p, p, chain_squares.part[v]);
        }
    };
    const auto fold_products = [&] {
        fold(xx, chain_xx);
        fold(xy, chain_xy);
        fold(yy, chain_yy);
        fold(squares, chain_squares);
    };
    for (int64_t begin = 0; begin < n; begin += tile) {
        const int64_t count = n - begin < tile ? n - begin : tile, whole = count - count % n_lanes;
        const int64_t offset = begin * T::bytes, rest = offset + whole * T::bytes;
        const char *const y0 = static_cast<const char*>(y), *const after0 = static_cast<const char*>(after),
                   *const before0 = static_cast<const char*>(before), *const floor0 = static_cast<const char*>(floor);
        const char* const arrays[3] = {y0 + offset, after0 + offset, before0 + offset};
        powers = zero_lanes();
        for_each_step<T>(
            arrays, whole,
            [&](const char* const* at) {
                multiply(at);
                const char* const own = of_after ? at[1] : at[2];
                for (int v = 0; v < n_vectors; ++v) {
                    const vdouble p = load_powers<T>(own + v * width * T::bytes, least);
                    chain_powers.part[v] = multiply_add(p, p, chain_powers.part[v]);
                }
            },
            [&] {
                fold_products();
                fold(powers, chain_powers);
            });
        double total = sum_lanes(powers);
        if (whole < count) {  // zeros that pad a step add nothing to products, but they would to these squares
            const char* const ends[3] = {y0 + rest, after0 + rest, before0 + rest};
            for_each_step<T>(ends, count - whole, multiply, fold_products);
            char padded[n_lanes * T::bytes] = {};
            double last[n_lanes];
            std::memcpy(padded, floor0 + rest, static_cast<std::size_t>(count - whole) * T::bytes);
            for (int v = 0; v < n_vectors; ++v)
                Float64::store(load_powers<T>(padded + v * width * T::bytes, least),
                               reinterpret_cast<char*>(last + v * width));
            for (int64_t i = 0; i < count - whole; ++i) total += last[i] * last[i];
        }
        *powers_squared += total;
    }
    return {sum_lanes(xx), sum_lanes(xy), sum_lanes(yy), sum_lanes(squares)};
}

// out = a - b, rounded to T.
template <class T>
void subtract(const double* a, const double* b, int64_t n, double* out) {
    char narrow[width * T::bytes];
    for (int64_t i = 0; i < n; i += width) {
        const int64_t left = n - i;
        T::store(load_some<Float64>(chars(a + i), left) - load_some<Float64>(chars(b + i), left), narrow);
        store_some<Float64>(T::load(narrow), reinterpret_cast<char*>(out + i), left);
    }
}

template <class T>
double sum_squares(const void* x, int64_t n) {
    Lanes sum = zero_lanes(), chain = sum;
    const char* const arrays[1] = {static_cast<const char*>(x)};
    for_each_step<T>(
        arrays, n,
        [&](const char* const* at) {
            for (int v = 0; v < n_vectors; ++v) {
                const vdouble a = load<T>(at[0], v);
                chain.part[v] = multiply_add(a, a, chain.part[v]);
            }
        },
        [&] { fold(sum, chain); });
    return sum_lanes(sum);
}

// Copies bytes; `stream`: past the caches.
void copy_bytes(const void* source, void* target, int64_t n, bool stream) {
    constexpr int64_t line = width * 8;
    const char* from = static_cast<const char*>(source);
    char* to = static_cast<char*>(target);
    if (!stream || n < 2 * line) {
        std::memcpy(to, from, static_cast<std::size_t>(n));
        return;
    }
    const auto past = static_cast<int64_t>(reinterpret_cast<std::uintptr_t>(to) % static_cast<std::uintptr_t>(line));
    int64_t i = past == 0 ? 0 : line - past;
    std::memcpy(to, from, static_cast<std::size_t>(i));
    for (; i + line <= n; i += line) {
        STEEPEST_PREFETCH(from + i + prefetch_bytes);
        stream_bytes<line>(from + i, to + i);
    }
    std::memcpy(to + i, from + i, static_cast<std::size_t>(n - i));
    stream_fence();
}

}  // namespace
