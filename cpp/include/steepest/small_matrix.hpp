// Algebra of the small matrices behind a low-rank metric, in double-double where digits would be lost in double.
#pragma once

#include <vector>

#include "steepest/apply.hpp"
#include "steepest/gram.hpp"

namespace steepest {

// R with R^T R = G for a positive semidefinite G, by Cholesky with complete pivoting that stops at pivots below 1e-26 of
// the largest. Rows = numerical rank.
SmallMatrixDD gram_factor(const SmallMatrixDD& g);

// x with G x = b in the least-squares sense of the rank that gram_factor finds.
SmallMatrixDD gram_solve(const SmallMatrixDD& g, const SmallMatrixDD& b);

// Cosine and sine of the angle of the vectors with Gram matrix ((yy, yg), (yg, gg)).
struct Angle {
    double cosine, sine;
};
Angle angle(DoubleDouble yy, DoubleDouble yg, DoubleDouble gg);

// Eigenvalues, ascending, of W K W^T on span(W), from K and the Gram matrix of W; and Z^T R K, with which
// f(c I + W K W^T) = f(c) I + f'(c) W K W^T + W (Z^T R K)^T diag(h) (Z^T R K) W^T.
struct SmallSpectrum {
    Eigen::VectorXd values;
    SmallMatrix rotated_core;
};
SmallSpectrum low_rank_spectrum(const SmallMatrixDD& core, const SmallMatrixDD& gram);

// The two metrics M_i = c_i I + W K_i W^T on span(W): numbers from which their distances follow.
struct SmallPencil {
    Eigen::VectorXd log_ratios;  // logarithms of the eigenvalues of A_1^-1 A_2
    double bures;                // tr A_1 + tr A_2 - 2 tr (A_1^1/2 A_2 A_1^1/2)^1/2
    double condition;            // the greater of the condition numbers of A_1 and A_2
};
SmallPencil low_rank_pencil(double c1, const SmallMatrixDD& core1, double c2, const SmallMatrixDD& core2,
                            const SmallMatrixDD& gram);

// The logarithms alone, in a quarter of the time.
Eigen::VectorXd low_rank_log_ratios(double c1, const SmallMatrixDD& core1, double c2, const SmallMatrixDD& core2,
                                    const SmallMatrixDD& gram);

}  // namespace steepest
