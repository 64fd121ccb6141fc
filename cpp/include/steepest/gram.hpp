// Inner products of a few long vectors in one pass over memory, each with a rigorous error bound.
#pragma once

#include <vector>

#include "steepest/double_double.hpp"
#include "steepest/types.hpp"

namespace steepest {

// How the sums are formed; each is more exact and slower than the one before.
enum class Precision {
    fast,         // double products and sums in short chains
    compensated,  // error-free products and sums in three-term cascades
    exact,        // integer accumulators: no rounding but the last
};

// The Gram matrix of k vectors: entry (i, j), row by row, is (hi + lo) * 2^(exponent_i + exponent_j), and differs from
// the inner product of the numbers in memory by at most bound times the same power of two.
struct Gram {
    int k = 0;
    ShortVector<double, 4> hi, lo, bound;  // k*k each, symmetric
    ShortVector<int, 2> exponents;         // of the power of two that each vector was divided by before it was squared
    double squared_products = 0.0;      // k == 2: sum_i (x_i y_i)^2, on the same scale
    double sign_flip_variance = 0.0;    // angle_gram: sum_i (x_i y_i)^2 / (|x|^2 |y|^2)
    bool finite = true;                 // false if a vector holds NaN or Inf; the numbers are then NaN
    Precision precision = Precision::fast;

    DoubleDouble entry(int i, int j) const { return {hi[i * k + j], lo[i * k + j]}; }
};

// All inner products of `vectors`. Vectors whose squares would leave the range of double are scaled by exact powers of
// two and the pass is repeated.
Gram gram(const std::vector<const Vector*>& vectors, Precision precision);

// The Gram matrix of (y, g) in the geometry of a diagonal metric d > 0: y^T D^-1 y, y.g, g^T D g, that is, of
// (D^-1/2 y, D^1/2 g). Throws std::invalid_argument if an element of d is not positive and finite.
Gram weighted_gram(const Vector& y, const Vector& g, const Vector& d, Precision precision);

// What is asked of an angle: sine and cosine to the relative accuracy `tolerance`; or, where g carries an error of norm r
// with rounding_squared = r^2, a sine that is right to a tenth of r/|g|, below which the angle means nothing.
struct Accuracy {
    double tolerance;
    double rounding_squared = 0.0;
};

// The Gram matrix of (y, g), with `base` weighted, at the first precision that settles the sign of y.g and is accurate
// enough, or else the most exact.
Gram angle_gram(const Vector& y, const Vector& g, const Vector* base, const Accuracy& accuracy);

// The same of the whole pair and then of each segment by itself, in one pass over memory but for those that it does not
// settle. The numbers are those of `angle_gram`, bit for bit, where the first pass is a fast one; a compensated one gives hi
// + lo of them all at once. One accuracy for each result.
std::vector<Gram> segment_angle_grams(const Vector& y, const Vector& g, const std::vector<Accuracy>& accuracies,
                                      Precision precision = Precision::fast);

// Compensated inner products of a pair with another one: y.y0, y.g0, g.y0, g.g0.
struct CrossProducts {
    DoubleDouble value[4];
    double bound[4] = {};
    bool in_range = false;  // false if the vectors have to be scaled, or are zero or not finite; no values then
};

// Of the whole vectors and then of each segment, in one pass over memory.
std::vector<CrossProducts> segment_cross_products(const Vector& y, const Vector& g, const Vector& y0, const Vector& g0);

}  // namespace steepest
