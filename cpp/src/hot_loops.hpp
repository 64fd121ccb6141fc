// The table of loops that are compiled once for each instruction set (see hot_loops.cpp, dispatch.cpp).
// Plain pointers only: this header is seen by code built for different CPUs.
#pragma once

#include <cstdint>

namespace steepest {

// Sums of a pair (x, y) over a run of elements.
struct PairSums {
    double xx, xy, yy;
    double squared_products;  // sum of (x_i y_i)^2
};

// An unevaluated sum hi + mid + lo, the state of a cascaded accumulator.
struct Cascade {
    double hi, mid, lo;
};

// What `fit_elements` adds to.
struct ElementFit {
    double sums[5] = {};                // of squares left in the fitted pairs, as `diagonal_residuals`
    double moved = 0.0, clipped = 0.0;  // elements
    double smallest, largest = 0.0;     // positive d
};

constexpr int max_dots = 3, max_combine = 4;  // columns that the typed loops take at once

struct HotLoops {
    const char* name;

    // Typed loops over contiguous memory, indexed by DType.
    void (*widen[4])(const void* source, std::int64_t n, double* target);
    void (*narrow[4])(const double* source, std::int64_t n, void* target, bool stream);
    PairSums (*pair_sums[4])(const void* x, const void* y, std::int64_t n);
    // The same sums x.x, x.y, y.y in cascades: adds to sums[3 * n_lanes], and the squared products to *squared
    void (*pair_sums_cascaded[4])(const void* x, const void* y, std::int64_t n, Cascade* sums, double* squared);
    // Of a pair (x0, x1) with another (x2, x3): adds x0.x2, x0.x3, x1.x2, x1.x3 to sums[4 * n_lanes], and x_i.x_i, for
    // bounds, to squared[4]
    void (*cross_sums_cascaded[4])(const void* const* x, std::int64_t n, Cascade* sums, double* squared);
    // Both: x0.x0, x0.x1, x1.x1 and then the four to sums[7 * n_lanes]; the squared products and then the squares to plain[5]
    void (*pair_and_cross_sums_cascaded[4])(const void* const* x, std::int64_t n, Cascade* sums, double* plain);
    // hi + lo of w_k.x for k = 0 .. K-1, each as if computed in twice the working precision; indexed by K - 1
    void (*dots[max_dots][4])(const void* const* w, const void* x, std::int64_t n, double* hi_lo);
    // out = base*x + sum_k c_k w_k; indexed by K - 1. `stream`: past the caches, for results that will not fit in them.
    void (*combine[max_combine][4])(double base, const double* c, const void* x, const void* const* w, std::int64_t n,
                                    void* out, bool stream);
    // The same for m vectors x side by side, rows `stride` bytes apart, and columns of doubles: adds w_k.x_r to hi_lo, for
    // each column m high parts and then m low ones, indexed by K - 1; out_ir = base_i x_ir + sum_k c[k m + r] w_ki.
    void (*row_dots[max_dots][4])(const double* const* w, const void* x, std::int64_t rows, std::int64_t stride,
                                  std::int64_t m, double* hi_lo);
    void (*row_combine[4])(const double* base, const double* const* w, std::int64_t k, const double* c, const void* x,
                           std::int64_t rows, std::int64_t stride, std::int64_t m, void* out, std::int64_t out_stride,
                           bool stream);

    // One row of a symmetric matrix of rank two: out_j = k[0] (wi w_j) + k[1] (wi v_j + vi w_j) + k[2] (vi v_j)
    void (*rank_two_row[4])(const double* k, double wi, double vi, const double* w, const double* v, std::int64_t n,
                            void* out, bool stream);

    // Loops over tiles of doubles.
    double (*dot)(const double* x, const double* y, std::int64_t n);
    void (*dot_twofold)(const double* x, const double* y, std::int64_t n, double* hi_lo);
    void (*dot_cascaded)(const double* x, const double* y, std::int64_t n, Cascade* sums);  // adds to sums[n_lanes]
    // adds x_i y_i d_i, or x_i y_i / d_i, each product in double-double
    void (*weighted_dot_cascaded)(const double* x, const double* y, const double* d, bool divide, std::int64_t n,
                                  Cascade* sums);
    void (*multiply)(const double* x, const double* d, std::int64_t n, double* out);
    void (*divide)(const double* x, const double* d, std::int64_t n, double* out);
    void (*scale)(double factor, const double* x, std::int64_t n, double* out);
    void (*add_scaled)(double factor, const double* x, std::int64_t n, double* out);
    // out = factor*x + sum over k columns of (high_j + low_j) * w_j, summed in twice the working precision and rounded
    void (*combine_twofold)(double factor, const double* x, int k, const double* const* w, const double* high,
                            const double* low, std::int64_t n, double* out);
    double (*sum_squared_products)(const double* x, const double* y, std::int64_t n);
    double (*max_abs)(const double* x, std::int64_t n);  // NaN if any element is NaN
    // sum of the squares of the powers of two in the elements, 2^floor(log2 |x_i|), each at least `least`; infinite if an
    // element is NaN or infinite
    double (*exponent_squares)(const double* x, std::int64_t n, double least);
    // out_j += kaa * (wi * w_j), and out_j += k * (wi * v_j + vi * w_j): one row of a symmetric matrix
    void (*add_square_row)(double k, double wi, const double* w, std::int64_t n, double* out);
    void (*add_cross_row)(double k, double wi, double vi, const double* w, const double* v, std::int64_t n,
                          double* out);

    // A diagonal fitted to many pairs (see loops/elementwise.hpp), of 1, 2, 4 or 8 and of 1 or 4 pairs at once
    void (*add_products[4][4])(const void* const* grad, const void* const* update, std::int64_t n, double* yy, double* yg,
                               double* gg);
    void (*diagonal_residuals[2][4])(const void* const* grad, const void* const* update, const double* d, const double* p,
                                     const double* s, std::int64_t n, double* sums);
    void (*fit_elements)(double* yy, double* yg, double* gg, std::int64_t n, double least, ElementFit* found);
    bool (*all_finite)(const double* x, const double* y, std::int64_t n);

    // Differences after - before as they are rounded in memory. The sums of a pair (y, after - before), both in the type of
    // the arrays, and adds the exponent_squares of each tile of `floor`, which is `after` or `before`
    PairSums (*difference_sums[4])(const void* y, const void* after, const void* before, const void* floor, std::int64_t n,
                                   std::int64_t tile, double least, double* powers_squared);
    void (*subtract[4])(const double* a, const double* b, std::int64_t n, double* out);  // rounded to the type
    double (*sum_squares[4])(const void* x, std::int64_t n);
    void (*copy_bytes)(const void* source, void* target, std::int64_t n, bool stream);
};

constexpr int n_lanes = 16;       // independent accumulators, the same for every instruction set
constexpr int chain_steps = 32;   // additions into one lane before it is folded into the next level
// Products summed in hi + lo in one lane before they go into its cascade; fewer where products themselves are in hi + lo.
constexpr int exact_twofold_chain = 8, twofold_chain = 6;

// Chosen once, on first use: the best set that is compiled in and that this CPU has, or what STEEPEST_ISA names.
const HotLoops& hot_loops();

}  // namespace steepest
