#include "steepest/project.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "steepest/gram.hpp"
#include "steepest/small_matrix.hpp"
#include "tiles.hpp"

namespace steepest {

namespace {

// Squared norms within these limits need no scaling: 2^-600 and 2^600.
constexpr double least_square = 2.409919865102884e-181, greatest_square = 4.149515568880993e+180;

}  // namespace

void project(const std::vector<Column>& columns, Projection which, const std::vector<Vector>& x,
             const std::vector<Vector>& out) {
    const Base identity;
    const auto k = static_cast<Eigen::Index>(columns.size());
    if (columns.empty()) throw std::invalid_argument("expected at least one vector to project on, got none");
    std::vector<Column> scaled = columns;
    // One pass for W^T X and W^T W: the columns ride along as right-hand sides.
    std::vector<Vector> right = x;
    for (const Column& column : columns) right.push_back(*column.vector);
    const auto m = static_cast<Eigen::Index>(x.size());
    Dots products = dots(identity, scaled, right);
    bool in_range = std::all_of(products.exponents.begin(), products.exponents.end(), [](int e) { return e == 0; });
    for (Eigen::Index j = 0; j < k && in_range; ++j) {
        const double square = products.values(j, m + j).hi;
        in_range = square > least_square && square < greatest_square;
    }
    if (!in_range) {  // scale each column by a power of two
        for (Column& column : scaled) {
            const double largest = max_abs(*column.vector);
            if (std::isnan(largest)) throw std::invalid_argument("a vector to project on holds NaN or Inf");
            if (largest > 0.0) (void)std::frexp(largest, &column.exponent);
            column.exponent = std::max(column.exponent, -1022);
        }
        products = dots(identity, scaled, right);
        for (Eigen::Index j = 0; j < k; ++j)
            for (Eigen::Index i = 0; i < k; ++i)
                products.values(i, m + j) =
                    ldexp(products.values(i, m + j), products.exponents[static_cast<std::size_t>(m + j)] -
                                                         scaled[static_cast<std::size_t>(j)].exponent);
    }
    SmallMatrixDD matrix = products.values.rightCols(k);
    for (Eigen::Index i = 0; i < k; ++i)
        for (Eigen::Index j = 0; j < i; ++j) matrix(i, j) = matrix(j, i);
    products.values.conservativeResize(k, m);
    products.exponents.resize(static_cast<std::size_t>(m));
    const SmallMatrixDD solution = gram_solve(matrix, products.values);
    // Each coefficient as hi + lo, on two copies of its column: with fused multiply-adds a small remainder x - W c is then
    // right to rounding however close x lies to the span.
    const double sign = which == Projection::onto ? 1.0 : -1.0;
    SmallMatrix coefficients(2 * k, solution.cols());
    for (Eigen::Index r = 0; r < solution.cols(); ++r)
        for (Eigen::Index j = 0; j < k; ++j) {
            coefficients(j, r) = sign * solution(j, r).hi;
            coefficients(k + j, r) = sign * solution(j, r).lo;
        }
    scaled.insert(scaled.end(), scaled.begin(), scaled.begin() + k);
    combine(identity, which == Projection::onto ? 0.0 : 1.0, scaled, coefficients, products.exponents, 0, x, out);
}

namespace {

// Elements [begin, ...) of a one-segment vector with one axis.
Vector from(const Vector& vector, index_t begin) {
    const Segment& segment = vector.segments.at(0);
    if (vector.segments.size() != 1 || segment.shape().size() != 1)
        throw std::invalid_argument("expected a vector with one axis");
    const index_t stride = segment.strides()[0];
    return {{Segment(segment.data() + begin * stride, segment.dtype(), {segment.size() - begin}, {stride})}};
}

double element(const Vector& vector) {
    TileBuffer buffer;
    return *read_tile(vector.segments.at(0), 0, 1, buffer);
}

void set_element(const Vector& vector, double value) {
    TileBuffer buffer;
    write_tile(vector.segments.at(0), 0, 1, &value, buffer);
}

}  // namespace

ComplementBasis::ComplementBasis(const Vector& g) : tail_(from(g, 1)) {
    const Gram inner = gram({&g}, Precision::compensated);
    if (!inner.finite || !(inner.hi[0] > 0.0))
        throw std::invalid_argument("expected a finite vector other than zero, got one that has no complement");
    exponent_ = inner.exponents[0];
    norm_ = std::sqrt(inner.hi[0]);
    head_ = std::ldexp(element(g), -inner.exponents[0]);
    head_ += std::copysign(norm_, head_);
}

// H (0, z) = (0, z) - beta v, beta = 2 v.(0, z) / v.v, v.v = 2 |g| |v_0|
void ComplementBasis::apply(const std::vector<Vector>& z, const std::vector<Vector>& out) const {
    const Base identity;
    std::vector<Vector> rest;
    for (const Vector& one : out) rest.push_back(from(one, 1));
    const Column column{&tail_, exponent_, false};
    const Dots products = dots(identity, {column}, z);
    SmallMatrix coefficients(1, products.values.cols());
    for (Eigen::Index r = 0; r < coefficients.cols(); ++r) {
        const double beta = static_cast<double>(products.values(0, r)) / (norm_ * std::fabs(head_));
        coefficients(0, r) = -beta;
        const auto rhs = static_cast<std::size_t>(r);
        set_element(out[rhs], std::ldexp(-beta * head_, products.exponents[rhs]));
    }
    combine(identity, 1.0, {column}, coefficients, products.exponents, 0, z, rest);
}

// (H x) without its first element: x_tail - beta v_tail, beta = 2 v.x / v.v
void ComplementBasis::apply_transpose(const std::vector<Vector>& x, const std::vector<Vector>& out) const {
    const Base identity;
    std::vector<Vector> rest;
    for (const Vector& one : x) rest.push_back(from(one, 1));
    const Column column{&tail_, exponent_, false};
    const Dots products = dots(identity, {column}, rest);
    SmallMatrix coefficients(1, products.values.cols());
    for (Eigen::Index r = 0; r < coefficients.cols(); ++r) {
        const auto rhs = static_cast<std::size_t>(r);
        const double first = std::ldexp(element(x[rhs]), -products.exponents[rhs]);
        coefficients(0, r) = -(static_cast<double>(products.values(0, r)) + head_ * first) / (norm_ * std::fabs(head_));
    }
    combine(identity, 1.0, {column}, coefficients, products.exponents, 0, rest, out);
}

}  // namespace steepest
