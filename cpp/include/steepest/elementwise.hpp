// A diagonal fitted to many pairs (y, g), y = -grad and g = update: sums over the pairs element by element, the fit, and
// what it leaves of each pair. All sums are plain ones in double.
#pragma once

#include <vector>

#include "steepest/types.hpp"

namespace steepest {

// Many pairs, each vector divided by a power of two.
struct Pairs {
    std::vector<Vector> grad, update;
    int grad_exponent = 0, update_exponent = 0;
};

// Three numbers for each element: first the sums of y^2, y g, g^2; then, in the same memory, p, d, s. Contiguous float64.
struct ElementNumbers {
    Vector yy, yg, gg;
};

// Adds those of all pairs, one pair after the other in each element. Returns whether the sums of squares are finite; where
// they are not, a pair is not, or its squares overflow.
bool add_element_products(const Pairs& pairs, const ElementNumbers& sums);

// One segment of a fit: sums over its elements of what is left of y - d g, g - p y, y - s g in the fitted pairs, of y^2 and
// g^2; how many elements moved, and how many of these have d = 0; the range of the positive d.
struct SegmentFit {
    double squares[5] = {};
    double moved = 0.0, clipped = 0.0, smallest, largest = 0.0;
};

// In place of the sums: d = max(0, yg)/gg, p = max(0, yg)/yy, s = sqrt(yy/gg) where d > 0, else 0. Sums of squares that are
// not above the least normal number count as 0.
std::vector<SegmentFit> fit_elements(const ElementNumbers& sums);

// |y - d g|^2, |g - p y|^2, |y - s g|^2, |y|^2, |g|^2 of each pair and segment, in this order. The relative error of a sum,
// given its terms, is below 150 u; the same bits for any number of threads and of pairs.
std::vector<double> diagonal_residuals(const Pairs& pairs, const ElementNumbers& fit);

}  // namespace steepest
