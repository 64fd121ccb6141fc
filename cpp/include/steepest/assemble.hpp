// Dense base + W K W^T.
#pragma once

#include "steepest/apply.hpp"

namespace steepest {

// Writes the n x n matrix, row by row, to `out` (float64 or float32, contiguous). The result is symmetric bit for bit.
void assemble(const LowRankOperator& a, const Segment& out);

}  // namespace steepest
