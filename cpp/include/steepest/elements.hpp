// What one pass over the elements of a long vector tells.
#pragma once

#include <vector>

#include "steepest/types.hpp"

namespace steepest {

// Largest absolute value; NaN if an element is NaN or infinite.
double max_abs(const Vector& vector);

// For each segment the sum over its elements of the squared distance to the next number of its type; NaN if an element
// is NaN or infinite. float64: the squares must stay within the range of double.
std::vector<double> spacing_squares(const Vector& vector);

// Index of the first element that is not positive and finite, or -1.
index_t first_not_positive(const Vector& d);

}  // namespace steepest
