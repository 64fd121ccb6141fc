#include "steepest/project.hpp"

#include <cmath>
#include <stdexcept>

#include "steepest/gram.hpp"
#include "steepest/small_matrix.hpp"
#include "tiles.hpp"

namespace steepest {

namespace {

// Squared norms within these limits need no scaling: 2^-600 and 2^600.
constexpr double least_square = 2.409919865102884e-181, greatest_square = 4.149515568880993e+180;

// Any right-hand sides: inner products and remainders in twice the working precision.
void project_carefully(const std::vector<Column>& columns, Projection which, const std::vector<Vector>& x,
                       const std::vector<Vector>& out) {
    const Base identity;
    const auto k = static_cast<Eigen::Index>(columns.size());
    std::vector<const Vector*> vectors;
    std::vector<Column> scaled = columns;
    for (const Column& column : columns) vectors.push_back(column.vector);
    if (vectors.empty()) throw std::invalid_argument("expected at least one vector to project on, got none");
    const Gram inner = gram(vectors, Precision::compensated);
    if (!inner.finite) throw std::invalid_argument("a vector to project on holds NaN or Inf");
    // Columns of norm near 1: which of them depend on the others is then no matter of their size.
    std::vector<int> shift(columns.size(), 0);
    for (int i = 0; i < k; ++i) {
        int& own = shift[static_cast<std::size_t>(i)];
        (void)std::frexp(inner.hi[static_cast<std::size_t>(i) * (columns.size() + 1)], &own);
        own /= 2;
        scaled[static_cast<std::size_t>(i)].exponent = inner.exponents[static_cast<std::size_t>(i)] + own;
    }
    SmallMatrixDD matrix(k, k);
    for (int i = 0; i < k; ++i)
        for (int j = 0; j < k; ++j)
            matrix(i, j) = ldexp(inner.entry(i, j),
                                 -shift[static_cast<std::size_t>(i)] - shift[static_cast<std::size_t>(j)]);
    const Dots products = dots(identity, scaled, x, true);
    const SmallMatrixDD solution = gram_solve(matrix, products.values);
    const bool onto = which == Projection::onto;
    combine_twofold(onto ? 0.0 : 1.0, scaled, onto ? solution : SmallMatrixDD(-solution), products.exponents, x, out);
}

// One right-hand side and one or two columns, by the fast loops: one pass for all inner products, one for the result.
// Returns false, having written nothing, where that would lose digits: numbers out of range, columns that are nearly
// dependent, or a result that is small against x.
bool project_fast(const std::vector<Column>& columns, Projection which, const std::vector<Vector>& in,
                  const std::vector<Vector>& out) {
    const std::size_t k = columns.size();
    if (k > 2 || in.size() != 1 || out.size() != 1) return false;
    const Vector& x = in[0];
    const Base identity;
    const bool onto = which == Projection::onto;
    std::vector<Column> all;
    for (const Column& column : columns) all.push_back({column.vector, 0, false});
    all.push_back({&x, 0, false});
    SmallMatrixDD gram(k + 1, k + 1);
    // For a remainder sums in double are enough: an error of theirs is small against it. For narrow types the other way
    // sums in double too, and reads them directly.
    if (!onto && (k == 1 || x.has_dtype(DType::float64))) {
        std::vector<const Vector*> vectors;
        for (const Column& column : all) vectors.push_back(column.vector);
        const Gram sums = steepest::gram(vectors, Precision::fast);
        for (std::size_t i = 0; i <= k; ++i) {
            if (!sums.finite || sums.exponents[i] != 0) return false;
            for (std::size_t j = 0; j <= k; ++j) gram(i, j) = sums.entry(static_cast<int>(i), static_cast<int>(j));
        }
    } else {
        std::vector<Vector> right;
        for (const Column& column : all) right.push_back(*column.vector);
        const Dots products = dots(identity, all, right);
        for (std::size_t i = 0; i <= k; ++i) {
            if (products.exponents[i] != 0) return false;
            for (std::size_t j = 0; j <= k; ++j) gram(i, j) = products.values(i, j);
        }
    }
    for (std::size_t i = 0; i <= k; ++i)
        if (!(gram(i, i).hi > least_square && gram(i, i).hi < greatest_square)) return false;
    const SmallMatrixDD inner = gram.topRightCorner(k, 1);
    SmallMatrixDD exact = inner / gram(0, 0);
    if (k == 2) {
        const DoubleDouble squares = gram(0, 0) * gram(1, 1), determinant = squares - gram(0, 1) * gram(0, 1);
        if (!(determinant > DoubleDouble(0.1) * squares)) return false;
        exact(0) = (gram(1, 1) * inner(0) - gram(0, 1) * inner(1)) / determinant;
        exact(1) = (gram(0, 0) * inner(1) - gram(0, 1) * inner(0)) / determinant;
    }
    const SmallMatrix solution = exact.unaryExpr([](const DoubleDouble& c) { return static_cast<double>(c); });
    const double along = static_cast<double>(inner.cwiseProduct(exact).sum() / gram(k, k));  // cos^2 of x and the span
    // A remainder is a difference; a projection is not, but its coefficients are sums that cancel.
    if (!(onto ? along > 1e-10 : 1.0 - along > 0.25)) return false;
    all.pop_back();
    combine(identity, onto ? 0.0 : 1.0, all, onto ? solution : SmallMatrix(-solution), {0}, 0, in, out);
    return true;
}

}  // namespace

void project(const std::vector<Column>& columns, Projection which, const std::vector<Vector>& x,
             const std::vector<Vector>& out) {
    if (columns.empty()) throw std::invalid_argument("expected at least one vector to project on, got none");
    if (project_fast(columns, which, x, out)) return;
    project_carefully(columns, which, x, out);
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

ComplementBasis::ComplementBasis(const Vector& g) : vector_(g), tail_(from(g, 1)) {
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

// (H x) without its first element: x_tail - beta v_tail, beta = 2 v.x / v.v, v.x = g.x + sign(g_0) |g| x_0
void ComplementBasis::apply_transpose(const std::vector<Vector>& x, const std::vector<Vector>& out) const {
    const Base identity;
    std::vector<Vector> rest;
    for (const Vector& one : x) rest.push_back(from(one, 1));
    const Column column{&tail_, exponent_, false};
    const Dots products = dots(identity, {{&vector_, exponent_, false}}, x);
    SmallMatrix coefficients(1, products.values.cols());
    for (Eigen::Index r = 0; r < coefficients.cols(); ++r) {
        const auto rhs = static_cast<std::size_t>(r);
        const double first = std::ldexp(element(x[rhs]), -products.exponents[rhs]);
        coefficients(0, r) = -static_cast<double>(products.values(0, r) + two_product(std::copysign(norm_, head_), first)) / (norm_ * std::fabs(head_));
    }
    combine(identity, 1.0, {column}, coefficients, products.exponents, 0, rest, out);
}

}  // namespace steepest
