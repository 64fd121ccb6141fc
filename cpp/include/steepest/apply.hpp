// Products with 2^exponent (base + W K W^T), W a few long vectors, in two passes over memory and without temporaries of
// their length: pass 1 reads W and X for W^T X, pass 2 reads them again and writes base X + W (K W^T X).
#pragma once

#include <vector>

#include <Eigen/Core>

#include "steepest/double_double.hpp"
#include "steepest/types.hpp"

namespace steepest {

enum class BaseKind { scalar, diagonal, inverse_diagonal };

struct Base {
    BaseKind kind = BaseKind::scalar;
    double scalar = 1.0;
    const Vector* diagonal = nullptr;  // d: the base is diag(d) or diag(1/d)
};

// One column of W: the vector, or base * vector, times 2^-exponent. The exponent brings a column to a norm near 1, so
// that numbers formed from columns stay in range.
struct Column {
    const Vector* vector;
    int exponent = 0;  // at most greatest_exponent in size
    bool through_base = false;
};

using SmallMatrix = Eigen::MatrixXd;
using SmallMatrixDD = Eigen::Matrix<DoubleDouble, Eigen::Dynamic, Eigen::Dynamic>;

constexpr int greatest_exponent = 4096;  // of columns and operators; ratios of norms of doubles stay within 2^2200

struct LowRankOperator {
    Base base;
    std::vector<Column> columns;
    SmallMatrix core;  // K, symmetric, for the scaled columns
    int exponent = 0;  // 0 unless the base is a scalar
};

// Throws std::invalid_argument unless core, columns and base fit together and all exponents are in range.
void require_valid(const LowRankOperator& a);

// A k x m matrix entry (j, r) times 2^exponents[r]: W^T X, each inner product summed in twice the working precision.
struct Dots {
    SmallMatrixDD values;
    std::vector<int> exponents;  // of the power of two that each column of X was divided by
};
// Twice the precision of the elements' type for two contiguous columns over a scalar base, else of double; with
// `twofold`, always of double.
Dots dots(const Base& base, const std::vector<Column>& columns, const std::vector<Vector>& x, bool twofold = false);

// out_r = 2^exponent (factor * base * x_r + W coefficients_r 2^x_exponents[r]); coefficients are k x m.
// `out` may be `x` itself, but may not share memory with it otherwise, nor with the columns or the base.
void combine(const Base& base, double factor, const std::vector<Column>& columns, const SmallMatrix& coefficients,
             const std::vector<int>& x_exponents, int exponent, const std::vector<Vector>& x,
             const std::vector<Vector>& out);

// out_r = factor x_r + W coefficients_r 2^x_exponents[r], each element summed in twice the precision of double, so that
// a small remainder keeps its digits. No column goes through a base. `out` may be `x` itself.
void combine_twofold(double factor, const std::vector<Column>& columns, const SmallMatrixDD& coefficients,
                     const std::vector<int>& x_exponents, const std::vector<Vector>& x,
                     const std::vector<Vector>& out);

// out = 2^exponent (base source + W K W^T x) for each right-hand side: A x where `source` is `x`, and a low-rank change
// of `source` = B x where the base is the identity and B is somebody else's operator. `out` may be `x` or `source`.
void apply(const LowRankOperator& a, const std::vector<Vector>& x, const std::vector<Vector>& source,
           const std::vector<Vector>& out);

}  // namespace steepest
