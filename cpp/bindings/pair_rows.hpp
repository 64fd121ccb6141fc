// Rows of numbers from the Gram matrices of pairs.
#pragma once

#include <vector>

#include <pybind11/numpy.h>

#include "steepest/gram.hpp"

namespace steepest::python {

// (yy, yg, gg), their low parts, their bounds, two exponents, cosine, sine, sign-flip variance, finite.
constexpr pybind11::ssize_t row_length = 15;
void write_row(const Gram& gram, double* to);
pybind11::array_t<double> pair_rows(const std::vector<Gram>& pairs);  // shape (number of pairs, row_length)

// What is asked of each of them.
std::vector<Accuracy> to_accuracies(const double* tolerances, const double* rounding_squared, std::size_t size);
std::vector<Accuracy> to_accuracies(const std::vector<double>& tolerances, const std::vector<double>& rounding_squared);

}  // namespace steepest::python
