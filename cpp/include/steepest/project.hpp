// Projections on and off the span of a few long vectors, and an orthonormal basis of the complement of one.
#pragma once

#include "steepest/apply.hpp"

namespace steepest {

enum class Projection { onto, off };

// out_r = W (W^T W)^+ W^T x_r, or x_r minus that. Columns that depend on the others to 26 digits are left out.
void project(const std::vector<Column>& columns, Projection which, const std::vector<Vector>& x,
             const std::vector<Vector>& out);

// An orthonormal basis Q (n x (n-1)) of the vectors orthogonal to g, as a Householder reflector that is never stored:
// H = I - 2 v v^T / v.v with v = g + sign(g_0) |g| e_0 maps e_0 to -+g/|g|, and Q is H without its first column.
class ComplementBasis {
public:
    explicit ComplementBasis(const Vector& g);  // one segment; std::invalid_argument if g is zero or not finite
    void apply(const std::vector<Vector>& z, const std::vector<Vector>& out) const;            // out = Q z
    void apply_transpose(const std::vector<Vector>& x, const std::vector<Vector>& out) const;  // out = Q^T x

private:
    Vector vector_, tail_;  // g, and g without its first element
    int exponent_;  // of the power of two that g is divided by
    double head_;   // first element of v = g + sign(g_0) |g| e_0, divided likewise
    double norm_;   // |g|, divided likewise
};

}  // namespace steepest
