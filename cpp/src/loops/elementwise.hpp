// A diagonal fitted to many pairs (y, g), y = -grad and g = update: sums over the pairs element by element, the fit, and
// what it leaves of a pair.
#pragma once

#include <cmath>

#include "lanes.hpp"

namespace {

using steepest::ElementFit;

// Adds those of K pairs to the sums of y^2, y g, g^2 of each element, pair after pair: K only saves loads and stores.
// No prefetch: so many rows at once keep the memory busy by themselves.
template <class T, int K>
void add_products(const void* const* grad, const void* const* update, int64_t n, double* yy, double* yg, double* gg) {
    const char *a[K], *b[K];
    for (int k = 0; k < K; ++k) {
        a[k] = static_cast<const char*>(grad[k]);
        b[k] = static_cast<const char*>(update[k]);
    }
    const auto add = [&](int64_t i, int64_t left) {
        const auto of = [&](const double* sums) { return load_some<Float64>(chars(sums + i), left); };
        vdouble of_yy = of(yy), of_yg = of(yg), of_gg = of(gg);
        for (int k = 0; k < K; ++k) {
            const vdouble x = load_some<T>(a[k] + i * T::bytes, left), g = load_some<T>(b[k] + i * T::bytes, left);
            of_yy = multiply_add(x, x, of_yy);
            of_yg = multiply_add(-x, g, of_yg);
            of_gg = multiply_add(g, g, of_gg);
        }
        const auto put = [&](vdouble value, double* sums) {
            store_some<Float64>(value, reinterpret_cast<char*>(sums + i), left);
        };
        put(of_yy, yy);
        put(of_yg, yg);
        put(of_gg, gg);
    };
    int64_t i = 0;
    for (; i + n_lanes <= n; i += n_lanes)
        for (int v = 0; v < n_vectors; ++v) add(i + v * width, width);
    for (; i < n; i += width) add(i, n - i);
}

// Half as many lanes as elsewhere: five sums of them have to stay in registers.
constexpr int residual_lanes = 8, residual_vectors = residual_lanes / width;

STEEPEST_INLINE double sum_residual_lanes(const vdouble* lanes) {
    double a[residual_lanes];
    std::memcpy(a, lanes, sizeof a);
    for (int half = residual_lanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) a[i] = a[i] + a[i + half];
    return a[0];
}

constexpr int64_t residual_run = 1024;  // elements: a lane takes 128 terms

// |y - d g|^2, |g - p y|^2, |y - s g|^2, |y|^2, |g|^2 of elements [begin, end) of K pairs, added to sums[5 K].
template <class T, int K>
STEEPEST_INLINE void add_residuals(const void* const* grad, const void* const* update, const double* d, const double* p,
                                   const double* s, int64_t begin, int64_t end, double* sums) {
    struct {
        vdouble of_y[residual_vectors], of_g[residual_vectors], of_s[residual_vectors], yy[residual_vectors],
            gg[residual_vectors];
    } lanes[K];
    const char *a[K], *b[K];
    for (int k = 0; k < K; ++k) {
        a[k] = static_cast<const char*>(grad[k]);
        b[k] = static_cast<const char*>(update[k]);
        for (int v = 0; v < residual_vectors; ++v)
            lanes[k].of_y[v] = lanes[k].of_g[v] = lanes[k].of_s[v] = lanes[k].yy[v] = lanes[k].gg[v] = broadcast(0.0);
    }
    const auto add = [&](int v, int64_t i, int64_t left) {
        const auto of = [&](const double* fit) { return load_some<Float64>(chars(fit + i), left); };
        const vdouble di = of(d), pi = of(p), si = of(s);
        for (int k = 0; k < K; ++k) {
            const vdouble x = load_some<T>(a[k] + i * T::bytes, left), g = load_some<T>(b[k] + i * T::bytes, left);
            const vdouble of_y = multiply_add(di, g, x), of_g = multiply_add(pi, x, g), of_s = multiply_add(si, g, x);
            lanes[k].of_y[v] = multiply_add(of_y, of_y, lanes[k].of_y[v]);
            lanes[k].of_g[v] = multiply_add(of_g, of_g, lanes[k].of_g[v]);
            lanes[k].of_s[v] = multiply_add(of_s, of_s, lanes[k].of_s[v]);
            lanes[k].yy[v] = multiply_add(x, x, lanes[k].yy[v]);
            lanes[k].gg[v] = multiply_add(g, g, lanes[k].gg[v]);
        }
    };
    int64_t i = begin;
    for (; i + n_lanes <= end; i += n_lanes) {
        for (int k = 0; k < K; ++k)
            for (int64_t line = 0; line < n_lanes * T::bytes; line += 64) {
                STEEPEST_PREFETCH(a[k] + i * T::bytes + prefetch_bytes + line);
                STEEPEST_PREFETCH(b[k] + i * T::bytes + prefetch_bytes + line);
            }
        for (int v = 0; v < n_vectors; ++v) add(v % residual_vectors, i + v * width, width);
    }
    for (int v = 0; i < end; i += width, ++v) add(v % residual_vectors, i, end - i);
    for (int k = 0; k < K; ++k) {
        const vdouble* const five[5] = {lanes[k].of_y, lanes[k].of_g, lanes[k].of_s, lanes[k].yy, lanes[k].gg};
        for (int j = 0; j < 5; ++j) sums[5 * k + j] += sum_residual_lanes(five[j]);
    }
}

// Pairs side by side where there are registers for their sums; each has its own, so that their number does not matter.
template <class T, int K>
void diagonal_residuals(const void* const* grad, const void* const* update, const double* d, const double* p,
                        const double* s, int64_t n, double* sums) {
    constexpr int together = width >= 8 ? K : 1;
    for (int64_t begin = 0; begin < n; begin += residual_run) {
        const int64_t end = begin + residual_run < n ? begin + residual_run : n;
        for (int k = 0; k < K; k += together)
            add_residuals<T, together>(grad + k, update + k, d, p, s, begin, end, sums + 5 * k);
    }
}

STEEPEST_INLINE vdouble square_root(vdouble x) {
#if defined(__AVX512F__)
    return _mm512_sqrt_pd(x);
#elif defined(__AVX2__)
    return _mm256_sqrt_pd(x);
#elif defined(__SSE2__) && defined(__x86_64__) && !defined(_MSC_VER)
    return _mm_sqrt_pd(x);
#elif STEEPEST_NEON
    return (vdouble)vsqrtq_f64((float64x2_t)x);
#else
    double values[width];
    std::memcpy(values, &x, sizeof x);
    for (int i = 0; i < width; ++i) values[i] = ::sqrt(values[i]);
    std::memcpy(&x, values, sizeof x);
    return x;
#endif
}

// In place of the sums of y^2, y g, g^2 puts p, d, s: d = max(0, yg)/gg, p = max(0, yg)/yy, s = sqrt(yy/gg) where d > 0;
// 0 where the divisor is not above `least`.
void fit_elements(double* yy, double* yg, double* gg, int64_t n, double least, ElementFit* found) {
    const vdouble zero = broadcast(0.0), one = broadcast(1.0), tiny = broadcast(least);
    vdouble sums[5] = {zero, zero, zero, zero, zero}, moved = zero, clipped = zero,
            smallest = broadcast(found->smallest), largest = broadcast(found->largest);
    for (int64_t i = 0; i < n; i += width) {
        const int64_t left = n - i;
        const auto of = [&](const double* x) { return load_some<Float64>(chars(x + i), left); };
        const auto put = [&](vdouble value, double* to) {
            store_some<Float64>(value, reinterpret_cast<char*>(to + i), left);
        };
        const vdouble a = of(yy), b = of(yg), c = of(gg);
        const vdouble descent = b < zero ? zero : b;  // NaN stays NaN
        const vdouble d = c > tiny ? descent / c : zero, p = a > tiny ? descent / a : zero;
        const vdouble s = d > zero ? square_root(c > tiny ? a / c : zero) : zero;
        const vdouble counted = c > tiny ? one : zero;
        sums[0] = sums[0] + (a - d * descent);
        sums[1] = sums[1] + (c - p * descent);
        sums[2] = sums[2] + (a + s * s * c - (s + s) * descent);
        sums[3] = sums[3] + a;
        sums[4] = sums[4] + c;
        moved = moved + counted;
        clipped = clipped + (b <= zero ? counted : zero);
        const vdouble of_positive = d > zero ? d : smallest;
        smallest = of_positive < smallest ? of_positive : smallest;
        largest = d > largest ? d : largest;
        put(p, yy);
        put(d, yg);
        put(s, gg);
    }
    const auto lanes_of = [](vdouble x, auto visit) {
        double values[width];
        std::memcpy(values, &x, sizeof x);
        for (int i = 0; i < width; ++i) visit(values[i]);
    };
    for (int k = 0; k < 5; ++k) lanes_of(sums[k], [&](double x) { found->sums[k] += x; });
    lanes_of(moved, [&](double x) { found->moved += x; });
    lanes_of(clipped, [&](double x) { found->clipped += x; });
    lanes_of(smallest, [&](double x) { found->smallest = x < found->smallest ? x : found->smallest; });
    lanes_of(largest, [&](double x) { found->largest = x > found->largest ? x : found->largest; });
}

// Whether no element of x or y is NaN or infinite.
bool all_finite(const double* x, const double* y, int64_t n) {
    vdouble sums = broadcast(0.0);
    for (int64_t i = 0; i < n; i += width) {
        sums = multiply_add(load_some<Float64>(chars(x + i), n - i), broadcast(0.0), sums);
        sums = multiply_add(load_some<Float64>(chars(y + i), n - i), broadcast(0.0), sums);
    }
    double values[width];
    std::memcpy(values, &sums, sizeof sums);
    bool found = true;
    for (int i = 0; i < width; ++i) found = found && values[i] == 0.0;
    return found;
}

}  // namespace
