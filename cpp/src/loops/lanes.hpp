// Sums in independent lanes, and the walks through memory that feed them.
#pragma once

#include "../hot_loops.hpp"
#include "../simd.hpp"

namespace {

using std::int64_t;
using steepest::chain_steps;
using steepest::n_lanes;

constexpr int n_vectors = n_lanes / width;  // vector registers that hold one set of lanes
constexpr int64_t prefetch_bytes = 2048;    // how far ahead of the loads

struct Lanes {
    vdouble part[n_vectors];
};

STEEPEST_INLINE Lanes zero_lanes() {
    Lanes lanes;
    for (int v = 0; v < n_vectors; ++v) lanes.part[v] = broadcast(0.0);
    return lanes;
}

STEEPEST_INLINE void fold(Lanes& into, Lanes& from) {
    for (int v = 0; v < n_vectors; ++v) {
        into.part[v] = into.part[v] + from.part[v];
        from.part[v] = broadcast(0.0);
    }
}

STEEPEST_INLINE void lanes_to_array(const Lanes& lanes, double* array) { std::memcpy(array, lanes.part, sizeof lanes); }

// Pairwise sum of the lanes.
STEEPEST_INLINE double sum_lanes(const Lanes& lanes) {
    double a[n_lanes];
    lanes_to_array(lanes, a);
    for (int half = n_lanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) a[i] = a[i] + a[i + half];
    return a[0];
}

// Calls step(pointers) for each n_lanes elements of the K arrays; the last, shorter run is padded with zeros, which add
// nothing to a sum of products. After every chain_steps steps calls rest().
template <class T, int K, class Step, class Rest>
STEEPEST_INLINE void for_each_step(const char* const (&arrays)[K], int64_t n, Step step, Rest rest) {
    constexpr int64_t stride = n_lanes * T::bytes;
    const char* at[K];
    for (int k = 0; k < K; ++k) at[k] = arrays[k];
    int64_t steps = n / n_lanes;
    while (steps > 0) {
        const int64_t run = steps < chain_steps ? steps : chain_steps;
        for (int64_t i = 0; i < run; ++i) {
            for (int k = 0; k < K; ++k)
                for (int64_t line = 0; line < stride; line += 64) STEEPEST_PREFETCH(at[k] + prefetch_bytes + line);
            step(at);
            for (int k = 0; k < K; ++k) at[k] += stride;
        }
        steps -= run;
        rest();
    }
    const int64_t left = n % n_lanes;
    if (left > 0) {
        alignas(64) char padded[K][n_lanes * T::bytes];
        for (int k = 0; k < K; ++k) {
            std::memset(padded[k], 0, sizeof padded[k]);
            std::memcpy(padded[k], at[k], static_cast<std::size_t>(left) * T::bytes);
            at[k] = padded[k];
        }
        step(at);
        rest();
    }
}

template <class T>
STEEPEST_INLINE vdouble load(const char* array, int v) {
    return T::load(array + v * width * T::bytes);
}

STEEPEST_INLINE const char* chars(const double* x) { return reinterpret_cast<const char*>(x); }

// One register's worth of a row, `left` elements of it valid, the others read as zero.
template <class T>
STEEPEST_INLINE vdouble load_some(const char* row, int64_t left) {
    if (left >= width) return T::load(row);
    char padded[width * T::bytes] = {};
    std::memcpy(padded, row, static_cast<std::size_t>(left) * T::bytes);
    return T::load(padded);
}

template <class T>
STEEPEST_INLINE void store_some(vdouble value, char* row, int64_t left) {
    if (left >= width) {
        T::store(value, row);
        return;
    }
    char padded[width * T::bytes];
    T::store(value, padded);
    std::memcpy(row, padded, static_cast<std::size_t>(left) * T::bytes);
}

}  // namespace
