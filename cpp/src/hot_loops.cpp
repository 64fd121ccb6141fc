// The loops that touch every element. Compiled once for each instruction set with STEEPEST_ISA as its name; no Eigen
// and no standard-library templates here, and internal linkage throughout, so that nothing compiled for a newer CPU can
// be picked by the linker for an older one.
//
// Summation: every sum runs in n_lanes independent lanes; a lane is folded into a second level after chain_steps
// additions. The order depends on nothing but n, so bits do not depend on the instruction set either, except that a
// float64 product is fused on one CPU and not on another.
#include "hot_loops.hpp"

#include "simd.hpp"

namespace {

using std::int64_t;
using steepest::Cascade;
using steepest::HotLoops;
using steepest::PairSums;
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

template <class T>
void widen(const void* source, int64_t n, double* target) {
    const char* from = static_cast<const char*>(source);
    int64_t i = 0;
    for (; i + width <= n; i += width) {
        STEEPEST_PREFETCH(from + i * T::bytes + prefetch_bytes);
        Float64::store(T::load(from + i * T::bytes), reinterpret_cast<char*>(target + i));
    }
    if (i < n) {
        char tail[width * T::bytes] = {};
        double values[width];
        std::memcpy(tail, from + i * T::bytes, static_cast<std::size_t>(n - i) * T::bytes);
        Float64::store(T::load(tail), reinterpret_cast<char*>(values));
        std::memcpy(target + i, values, static_cast<std::size_t>(n - i) * sizeof(double));
    }
}

template <class T, bool streams>
STEEPEST_INLINE void narrow_as(const double* source, int64_t n, void* target) {
    char* to = static_cast<char*>(target);
    const auto some = [&](int64_t i, int64_t count) {
        double values[width] = {};
        char tail[width * T::bytes];
        std::memcpy(values, source + i, static_cast<std::size_t>(count) * sizeof(double));
        T::store(Float64::load(reinterpret_cast<const char*>(values)), tail);
        std::memcpy(to + i * T::bytes, tail, static_cast<std::size_t>(count) * T::bytes);
    };
    int64_t i = 0;
    if constexpr (streams) {
        i = unaligned_elements(to, T::bytes);
        if (i > n) i = n;
        if (i > 0) some(0, i);
    }
    for (; i + width <= n; i += width)
        store<T, streams>(Float64::load(reinterpret_cast<const char*>(source + i)), to + i * T::bytes);
    if (i < n) some(i, n - i);
    if constexpr (streams) stream_fence();
}

template <class T>
void narrow(const double* source, int64_t n, void* target, bool stream) {
    if (stream && unaligned_elements(static_cast<char*>(target), T::bytes) >= 0) narrow_as<T, true>(source, n, target);
    else narrow_as<T, false>(source, n, target);
}

STEEPEST_INLINE const char* chars(const double* x) { return reinterpret_cast<const char*>(x); }

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

// Adds a number to hi + mid + lo; only the last addition to lo rounds.
STEEPEST_INLINE void cascade_add(vdouble x, vdouble& hi, vdouble& mid, vdouble& lo) {
    vdouble s, t, u, r;
    two_sum(hi, x, s, t);
    two_sum(mid, t, u, r);
    hi = s;
    mid = u;
    lo = lo + r;
}

STEEPEST_INLINE void cascade_add_low(vdouble e, vdouble& mid, vdouble& lo) {
    vdouble u, r;
    two_sum(mid, e, u, r);
    mid = u;
    lo = lo + r;
}

// One cascade for each lane.
struct CascadeLanes {
    Lanes hi, mid, lo;

    STEEPEST_INLINE explicit CascadeLanes(const Cascade* sums) {
        double h[n_lanes], m[n_lanes], l[n_lanes];
        for (int i = 0; i < n_lanes; ++i) {
            h[i] = sums[i].hi;
            m[i] = sums[i].mid;
            l[i] = sums[i].lo;
        }
        std::memcpy(hi.part, h, sizeof h);
        std::memcpy(mid.part, m, sizeof m);
        std::memcpy(lo.part, l, sizeof l);
    }
    // value + error, where |error| is small against |value|
    STEEPEST_INLINE void add(int v, vdouble value, vdouble error) {
        cascade_add(value, hi.part[v], mid.part[v], lo.part[v]);
        cascade_add_low(error, mid.part[v], lo.part[v]);
    }
    STEEPEST_INLINE void store(Cascade* sums) const {
        double h[n_lanes], m[n_lanes], l[n_lanes];
        lanes_to_array(hi, h);
        lanes_to_array(mid, m);
        lanes_to_array(lo, l);
        for (int i = 0; i < n_lanes; ++i) sums[i] = {h[i], m[i], l[i]};
    }
};

// A short run of products summed in hi + lo: cheaper than a cascade, and as good where the run is short.
template <class T>
struct Chain {
    vdouble hi, lo;

    STEEPEST_INLINE Chain(vdouble a, vdouble b) {
        if constexpr (T::exact_products) {
            hi = a * b;
            lo = broadcast(0.0);
        } else {
            two_product(a, b, hi, lo);
        }
    }
    STEEPEST_INLINE void add(vdouble a, vdouble b) {
        vdouble s, t;
        if constexpr (T::exact_products) {
            two_sum(hi, a * b, s, t);
            lo = lo + t;
        } else {
            vdouble p, e;
            two_product(a, b, p, e);
            two_sum(hi, p, s, t);
            lo = lo + (t + e);
        }
        hi = s;
    }
};

// Calls run(pointers, steps) for each chain of at most `steps` times n_lanes elements of the K arrays; the last run of
// n_lanes is padded with zeros.
template <class T, int K, class Run>
STEEPEST_INLINE void for_each_chain(const char* const (&arrays)[K], int64_t n, Run run) {
    constexpr int64_t stride = n_lanes * T::bytes;
    constexpr int64_t longest = T::exact_products ? steepest::exact_twofold_chain : steepest::twofold_chain;
    const char* at[K];
    for (int k = 0; k < K; ++k) at[k] = arrays[k];
    for (int64_t steps = n / n_lanes; steps > 0;) {
        const int64_t count = steps < longest ? steps : longest;
        for (int k = 0; k < K; ++k)
            for (int64_t line = 0; line < count * stride; line += 64) STEEPEST_PREFETCH(at[k] + prefetch_bytes + line);
        run(at, count);
        for (int k = 0; k < K; ++k) at[k] += count * stride;
        steps -= count;
    }
    const std::size_t left = static_cast<std::size_t>(n % n_lanes) * T::bytes;
    if (left > 0) {
        alignas(64) char padded[K][stride] = {};
        for (int k = 0; k < K; ++k) {
            std::memcpy(padded[k], at[k], left);
            at[k] = padded[k];
        }
        run(at, 1);
    }
}

template <class T>
void pair_sums_cascaded(const void* x, const void* y, int64_t n, Cascade* sums, double* squared) {
    CascadeLanes xx(sums), xy(sums + n_lanes), yy(sums + 2 * n_lanes);
    Lanes squares = zero_lanes();
    const char* const arrays[2] = {static_cast<const char*>(x), static_cast<const char*>(y)};
    for_each_chain<T>(arrays, n, [&](const char* const* at, int64_t steps) {
        for (int v = 0; v < n_vectors; ++v) {
            const vdouble a = load<T>(at[0], v), b = load<T>(at[1], v), p = a * b;
            Chain<T> of_xx(a, a), of_xy(a, b), of_yy(b, b);
            vdouble square = p * p;
            for (int64_t i = 1; i < steps; ++i) {
                const int64_t offset = i * n_lanes * T::bytes;
                const vdouble c = load<T>(at[0] + offset, v), d = load<T>(at[1] + offset, v), q = c * d;
                of_xx.add(c, c);
                of_xy.add(c, d);
                of_yy.add(d, d);
                square = multiply_add(q, q, square);
            }
            xx.add(v, of_xx.hi, of_xx.lo);
            xy.add(v, of_xy.hi, of_xy.lo);
            yy.add(v, of_yy.hi, of_yy.lo);
            squares.part[v] = squares.part[v] + square;
        }
    });
    xx.store(sums);
    xy.store(sums + n_lanes);
    yy.store(sums + 2 * n_lanes);
    *squared += sum_lanes(squares);
}

template <class T>
void cross_sums_cascaded(const void* const* x, int64_t n, Cascade* sums, double* squared) {
    CascadeLanes of_02(sums), of_03(sums + n_lanes), of_12(sums + 2 * n_lanes), of_13(sums + 3 * n_lanes);
    Lanes squares[4] = {zero_lanes(), zero_lanes(), zero_lanes(), zero_lanes()};
    const char* arrays[4];
    for (int k = 0; k < 4; ++k) arrays[k] = static_cast<const char*>(x[k]);
    for_each_chain<T>(arrays, n, [&](const char* const* at, int64_t steps) {
        for (int v = 0; v < n_vectors; ++v) {
            const vdouble a = load<T>(at[0], v), b = load<T>(at[1], v), c = load<T>(at[2], v), d = load<T>(at[3], v);
            Chain<T> ac(a, c), ad(a, d), bc(b, c), bd(b, d);
            vdouble aa = a * a, bb = b * b, cc = c * c, dd = d * d;
            for (int64_t i = 1; i < steps; ++i) {
                const int64_t offset = i * n_lanes * T::bytes;
                const vdouble e = load<T>(at[0] + offset, v), f = load<T>(at[1] + offset, v),
                              g = load<T>(at[2] + offset, v), h = load<T>(at[3] + offset, v);
                ac.add(e, g);
                ad.add(e, h);
                bc.add(f, g);
                bd.add(f, h);
                aa = multiply_add(e, e, aa);
                bb = multiply_add(f, f, bb);
                cc = multiply_add(g, g, cc);
                dd = multiply_add(h, h, dd);
            }
            of_02.add(v, ac.hi, ac.lo);
            of_03.add(v, ad.hi, ad.lo);
            of_12.add(v, bc.hi, bc.lo);
            of_13.add(v, bd.hi, bd.lo);
            squares[0].part[v] = squares[0].part[v] + aa;
            squares[1].part[v] = squares[1].part[v] + bb;
            squares[2].part[v] = squares[2].part[v] + cc;
            squares[3].part[v] = squares[3].part[v] + dd;
        }
    });
    of_02.store(sums);
    of_03.store(sums + n_lanes);
    of_12.store(sums + 2 * n_lanes);
    of_13.store(sums + 3 * n_lanes);
    for (int k = 0; k < 4; ++k) squared[k] += sum_lanes(squares[k]);
}

void dot_cascaded(const double* x, const double* y, int64_t n, Cascade* sums) {
    CascadeLanes lanes(sums);
    const char* const arrays[2] = {chars(x), chars(y)};
    for_each_chain<Float64>(arrays, n, [&](const char* const* at, int64_t steps) {
        for (int v = 0; v < n_vectors; ++v) {
            Chain<Float64> chain(load<Float64>(at[0], v), load<Float64>(at[1], v));
            for (int64_t i = 1; i < steps; ++i) {
                const int64_t offset = i * n_lanes * Float64::bytes;
                chain.add(load<Float64>(at[0] + offset, v), load<Float64>(at[1] + offset, v));
            }
            lanes.add(v, chain.hi, chain.lo);
        }
    });
    lanes.store(sums);
}

// Division with a zero-padded tail would give 0/0: tails of d are padded with ones.
void weighted_dot_cascaded(const double* x, const double* y, const double* d, bool divides, int64_t n,
                           Cascade* sums) {
    CascadeLanes lanes(sums);
    double px[n_lanes] = {}, py[n_lanes] = {}, pd[n_lanes];
    for (int64_t i = 0; i < n; i += n_lanes) {
        const double *ax = x + i, *ay = y + i, *ad = d + i;
        if (i + n_lanes > n) {
            for (double& one : pd) one = 1.0;
            const std::size_t left = static_cast<std::size_t>(n - i) * sizeof(double);
            std::memcpy(px, ax, left);
            std::memcpy(py, ay, left);
            std::memcpy(pd, ad, left);
            ax = px;
            ay = py;
            ad = pd;
        }
        for (int v = 0; v < n_vectors; ++v) {
            const vdouble w = load<Float64>(chars(ad), v);
            vdouble p, e, q, r;
            two_product(load<Float64>(chars(ax), v), load<Float64>(chars(ay), v), p, e);
            if (divides) {
                vdouble product, error;
                q = p / w;
                two_product(q, w, product, error);
                r = ((p - product) - error + e) / w;
            } else {
                two_product(p, w, q, r);
                r = r + e * w;
            }
            lanes.add(v, q, r);
        }
    }
    lanes.store(sums);
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

void add_square_row(double k, double wi, const double* w, int64_t n, double* out) {
    for (int64_t j = 0; j < n; ++j) out[j] = out[j] + k * (wi * w[j]);
}

void add_cross_row(double k, double wi, double vi, const double* w, const double* v, int64_t n, double* out) {
    for (int64_t j = 0; j < n; ++j) out[j] = out[j] + k * (wi * v[j] + vi * w[j]);
}

}  // namespace

#define STEEPEST_JOIN_(a, b) a##b
#define STEEPEST_JOIN(a, b) STEEPEST_JOIN_(a, b)
#define STEEPEST_TEXT_(a) #a
#define STEEPEST_TEXT(a) STEEPEST_TEXT_(a)
#define STEEPEST_FOR_EACH_DTYPE(loop) {loop<Float64>, loop<Float32>, loop<Float16>, loop<BFloat16>}
#define STEEPEST_FOR_EACH_DTYPE_AND(loop, k) {loop<Float64, k>, loop<Float32, k>, loop<Float16, k>, loop<BFloat16, k>}

namespace steepest {

extern const HotLoops STEEPEST_JOIN(hot_loops_, STEEPEST_ISA);
const HotLoops STEEPEST_JOIN(hot_loops_, STEEPEST_ISA) = {
    STEEPEST_TEXT(STEEPEST_ISA),
    STEEPEST_FOR_EACH_DTYPE(widen),
    STEEPEST_FOR_EACH_DTYPE(narrow),
    STEEPEST_FOR_EACH_DTYPE(pair_sums),
    STEEPEST_FOR_EACH_DTYPE(pair_sums_cascaded),
    STEEPEST_FOR_EACH_DTYPE(cross_sums_cascaded),
    {STEEPEST_FOR_EACH_DTYPE(dots_1), STEEPEST_FOR_EACH_DTYPE(dots_2), STEEPEST_FOR_EACH_DTYPE(dots_3)},
    {STEEPEST_FOR_EACH_DTYPE_AND(combine, 1), STEEPEST_FOR_EACH_DTYPE_AND(combine, 2),
     STEEPEST_FOR_EACH_DTYPE_AND(combine, 3), STEEPEST_FOR_EACH_DTYPE_AND(combine, 4)},
    STEEPEST_FOR_EACH_DTYPE(row_dots),
    STEEPEST_FOR_EACH_DTYPE(row_combine),
    STEEPEST_FOR_EACH_DTYPE(rank_two_row),
    dot,
    dot_twofold,
    dot_cascaded,
    weighted_dot_cascaded,
    multiply,
    divide,
    scale,
    add_scaled,
    combine_twofold,
    sum_squared_products,
    max_abs,
    exponent_squares,
    add_square_row,
    add_cross_row,
};

}  // namespace steepest
