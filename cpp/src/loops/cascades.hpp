// Compensated inner products: short chains in hi + lo, added up in cascades hi + mid + lo.
#pragma once

#include "lanes.hpp"

namespace {

using steepest::Cascade;

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
        if constexpr (T::exact_products) {
            // two_sum(hi, a * b), where fused multiply-adds save the product; on many CPUs they and the additions have
            // pipes of their own, hence also `added`
            const vdouble s = multiply_add(a, b, hi), minus_t = hi - s;
            lo = lo + added(hi - added(s, minus_t), multiply_add(a, b, minus_t));
            hi = s;
        } else {
            vdouble p, e, s, t;
            two_product(a, b, p, e);
            two_sum(hi, p, s, t);
            lo = lo + added(t, e);
            hi = s;
        }
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

// Both at once, to the last bit: memory is read and widened once.
template <class T>
void pair_and_cross_sums_cascaded(const void* const* x, int64_t n, Cascade* sums, double* plain) {
    CascadeLanes of_00(sums), of_01(sums + n_lanes), of_11(sums + 2 * n_lanes), of_02(sums + 3 * n_lanes),
        of_03(sums + 4 * n_lanes), of_12(sums + 5 * n_lanes), of_13(sums + 6 * n_lanes);
    Lanes squares[5] = {zero_lanes(), zero_lanes(), zero_lanes(), zero_lanes(), zero_lanes()};
    const char* arrays[4];
    for (int k = 0; k < 4; ++k) arrays[k] = static_cast<const char*>(x[k]);
    for_each_chain<T>(arrays, n, [&](const char* const* at, int64_t steps) {
        for (int v = 0; v < n_vectors; ++v) {
            const vdouble a = load<T>(at[0], v), b = load<T>(at[1], v), c = load<T>(at[2], v), d = load<T>(at[3], v),
                          p = a * b;
            Chain<T> aa(a, a), ab(a, b), bb(b, b), ac(a, c), ad(a, d), bc(b, c), bd(b, d);
            vdouble of_p = p * p, of_a = a * a, of_b = b * b, of_c = c * c, of_d = d * d;
            for (int64_t i = 1; i < steps; ++i) {
                const int64_t offset = i * n_lanes * T::bytes;
                const vdouble e = load<T>(at[0] + offset, v), f = load<T>(at[1] + offset, v),
                              g = load<T>(at[2] + offset, v), h = load<T>(at[3] + offset, v), q = e * f;
                aa.add(e, e);
                ab.add(e, f);
                bb.add(f, f);
                ac.add(e, g);
                ad.add(e, h);
                bc.add(f, g);
                bd.add(f, h);
                of_p = multiply_add(q, q, of_p);
                of_a = multiply_add(e, e, of_a);
                of_b = multiply_add(f, f, of_b);
                of_c = multiply_add(g, g, of_c);
                of_d = multiply_add(h, h, of_d);
            }
            of_00.add(v, aa.hi, aa.lo);
            of_01.add(v, ab.hi, ab.lo);
            of_11.add(v, bb.hi, bb.lo);
            of_02.add(v, ac.hi, ac.lo);
            of_03.add(v, ad.hi, ad.lo);
            of_12.add(v, bc.hi, bc.lo);
            of_13.add(v, bd.hi, bd.lo);
            squares[0].part[v] = squares[0].part[v] + of_p;
            squares[1].part[v] = squares[1].part[v] + of_a;
            squares[2].part[v] = squares[2].part[v] + of_b;
            squares[3].part[v] = squares[3].part[v] + of_c;
            squares[4].part[v] = squares[4].part[v] + of_d;
        }
    });
    of_00.store(sums);
    of_01.store(sums + n_lanes);
    of_11.store(sums + 2 * n_lanes);
    of_02.store(sums + 3 * n_lanes);
    of_03.store(sums + 4 * n_lanes);
    of_12.store(sums + 5 * n_lanes);
    of_13.store(sums + 6 * n_lanes);
    for (int k = 0; k < 5; ++k) plain[k] += sum_lanes(squares[k]);
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

}  // namespace
