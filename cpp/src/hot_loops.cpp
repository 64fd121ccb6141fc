// The loops that touch every element (loops/*.hpp), as a table. Compiled once for each instruction set with STEEPEST_ISA
// as its name; no Eigen and no standard-library templates here, and internal linkage throughout, so that nothing compiled
// for a newer CPU can be picked by the linker for an older one.
//
// Summation: every sum runs in n_lanes independent lanes; a lane is folded into a second level after chain_steps
// additions. The order depends on nothing but n, so bits do not depend on the instruction set either, except that a
// float64 product is fused on one CPU and not on another.
#include "hot_loops.hpp"

#include "loops/cascades.hpp"
#include "loops/combine.hpp"
#include "loops/convert.hpp"
#include "loops/elementwise.hpp"
#include "loops/difference.hpp"
#include "loops/rows.hpp"
#include "loops/sums.hpp"
#include "loops/twofold.hpp"

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
    STEEPEST_FOR_EACH_DTYPE(pair_and_cross_sums_cascaded),
    {STEEPEST_FOR_EACH_DTYPE(dots_1), STEEPEST_FOR_EACH_DTYPE(dots_2), STEEPEST_FOR_EACH_DTYPE(dots_3)},
    {STEEPEST_FOR_EACH_DTYPE_AND(combine, 1), STEEPEST_FOR_EACH_DTYPE_AND(combine, 2),
     STEEPEST_FOR_EACH_DTYPE_AND(combine, 3), STEEPEST_FOR_EACH_DTYPE_AND(combine, 4)},
    {STEEPEST_FOR_EACH_DTYPE_AND(row_dots, 1), STEEPEST_FOR_EACH_DTYPE_AND(row_dots, 2),
     STEEPEST_FOR_EACH_DTYPE_AND(row_dots, 3)},
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
    {STEEPEST_FOR_EACH_DTYPE_AND(add_products, 1), STEEPEST_FOR_EACH_DTYPE_AND(add_products, 2),
     STEEPEST_FOR_EACH_DTYPE_AND(add_products, 4), STEEPEST_FOR_EACH_DTYPE_AND(add_products, 8)},
    {STEEPEST_FOR_EACH_DTYPE_AND(diagonal_residuals, 1), STEEPEST_FOR_EACH_DTYPE_AND(diagonal_residuals, 4)},
    fit_elements,
    all_finite,
    STEEPEST_FOR_EACH_DTYPE(difference_sums),
    STEEPEST_FOR_EACH_DTYPE(subtract),
    STEEPEST_FOR_EACH_DTYPE(sum_squares),
    copy_bytes,
};

}  // namespace steepest
