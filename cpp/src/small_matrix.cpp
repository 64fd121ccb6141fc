#include "steepest/small_matrix.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include <Eigen/Cholesky>
#include <Eigen/Eigenvalues>

namespace steepest {

namespace {

constexpr double rank_tolerance = 1e-26;

// Cyclic Jacobi for a symmetric matrix: converges quadratically, keeps small eigenvalues of graded matrices, and needs
// nothing but + - * / and sqrt of the scalar type. A = V diag(values) V^T, ascending.
struct SymmetricEigen {
    SmallMatrixDD vectors;
    std::vector<DoubleDouble> values;
};

SymmetricEigen symmetric_eigen(SmallMatrixDD a) {
    const Eigen::Index n = a.rows();
    SmallMatrixDD v = SmallMatrixDD::Identity(n, n);
    for (int sweep = 0; sweep < 60; ++sweep) {
        bool rotated = false;
        for (Eigen::Index p = 0; p < n; ++p)
            for (Eigen::Index q = p + 1; q < n; ++q) {
                const double size = std::sqrt(std::fabs(a(p, p).hi) * std::fabs(a(q, q).hi));
                if (std::fabs(a(p, q).hi) <= 1e-33 * size || a(p, q).hi == 0.0) continue;
                rotated = true;
                const DoubleDouble theta = (a(q, q) - a(p, p)) / (DoubleDouble(2.0) * a(p, q));
                DoubleDouble t = 0.0;
                if (std::fabs(theta.hi) > 1e100) {
                    t = DoubleDouble(0.5) / theta;
                } else {
                    t = DoubleDouble(1.0) / (abs(theta) + sqrt(theta * theta + DoubleDouble(1.0)));
                    if (theta < DoubleDouble(0.0)) t = -t;
                }
                const DoubleDouble c = DoubleDouble(1.0) / sqrt(t * t + DoubleDouble(1.0)), s = t * c;
                for (Eigen::Index i = 0; i < n; ++i) {
                    const DoubleDouble x = a(i, p), y = a(i, q);
                    a(i, p) = c * x - s * y;
                    a(i, q) = s * x + c * y;
                }
                for (Eigen::Index i = 0; i < n; ++i) {
                    const DoubleDouble x = a(p, i), y = a(q, i);
                    a(p, i) = c * x - s * y;
                    a(q, i) = s * x + c * y;
                }
                a(p, q) = a(q, p) = DoubleDouble(0.0);
                for (Eigen::Index i = 0; i < n; ++i) {
                    const DoubleDouble x = v(i, p), y = v(i, q);
                    v(i, p) = c * x - s * y;
                    v(i, q) = s * x + c * y;
                }
            }
        if (!rotated) break;
    }
    std::vector<Eigen::Index> order(static_cast<std::size_t>(n));
    for (Eigen::Index i = 0; i < n; ++i) order[static_cast<std::size_t>(i)] = i;
    std::sort(order.begin(), order.end(), [&](Eigen::Index i, Eigen::Index j) { return a(i, i) < a(j, j); });
    SymmetricEigen result{SmallMatrixDD(n, n), {}};
    for (Eigen::Index i = 0; i < n; ++i) {
        const Eigen::Index from = order[static_cast<std::size_t>(i)];
        result.values.push_back(a(from, from));
        result.vectors.col(i) = v.col(from);
    }
    return result;
}

// log(1 + d) of a double-double ratio 1 + d, accurate also for tiny d.
double log_of(const DoubleDouble& ratio) {
    const DoubleDouble difference = ratio - DoubleDouble(1.0);
    return std::fabs(difference.hi) < 0.5 ? std::log1p(static_cast<double>(difference)) : std::log(ratio.hi);
}

// c I + R K R^T
SmallMatrixDD on_span(double c, const SmallMatrixDD& core, const SmallMatrixDD& r) {
    SmallMatrixDD a = r * core * r.transpose();
    for (Eigen::Index i = 0; i < a.rows(); ++i) a(i, i) += DoubleDouble(c);
    return a;
}

}  // namespace

SmallMatrixDD gram_factor(const SmallMatrixDD& g) {
    const Eigen::Index k = g.rows();
    SmallMatrixDD rest = g, r = SmallMatrixDD::Zero(k, k);
    double largest = 0.0;
    for (Eigen::Index i = 0; i < k; ++i) largest = std::max(largest, g(i, i).hi);
    Eigen::Index rank = 0;
    for (; rank < k; ++rank) {
        Eigen::Index pivot = 0;
        for (Eigen::Index i = 1; i < k; ++i)
            if (rest(i, i) > rest(pivot, pivot)) pivot = i;
        if (!(rest(pivot, pivot).hi > rank_tolerance * largest)) break;
        const DoubleDouble root = sqrt(rest(pivot, pivot));
        for (Eigen::Index j = 0; j < k; ++j) r(rank, j) = rest(pivot, j) / root;
        r(rank, pivot) = root;
        for (Eigen::Index i = 0; i < k; ++i)
            for (Eigen::Index j = 0; j < k; ++j) rest(i, j) -= r(rank, i) * r(rank, j);
        for (Eigen::Index i = 0; i < k; ++i) rest(i, pivot) = rest(pivot, i) = DoubleDouble(0.0);
    }
    return r.topRows(rank);
}

SmallMatrixDD gram_solve(const SmallMatrixDD& g, const SmallMatrixDD& b) {
    // G = R^T R with R of full row rank: x = R^T (R R^T)^-2 R b is the solution of least norm.
    const SmallMatrixDD r = gram_factor(g);
    if (r.rows() == 0 || b.cols() == 0) return SmallMatrixDD::Zero(g.rows(), b.cols());
    const SmallMatrixDD normal = r * r.transpose();
    const Eigen::LLT<SmallMatrixDD> factor(normal);
    const SmallMatrixDD once = factor.solve(r * b);
    return r.transpose() * factor.solve(once);
}

Angle angle(DoubleDouble yy, DoubleDouble yg, DoubleDouble gg) {
    const DoubleDouble norms = sqrt(yy) * sqrt(gg);
    const DoubleDouble determinant = yy * gg - yg * yg;
    const double cosine = static_cast<double>(yg / norms);
    const double sine = determinant.hi > 0.0 ? static_cast<double>(sqrt(determinant) / norms) : 0.0;
    return {std::min(1.0, std::max(-1.0, cosine)), std::min(1.0, sine)};
}

SmallSpectrum low_rank_spectrum(const SmallMatrixDD& core, const SmallMatrixDD& gram) {
    const SmallMatrixDD r = gram_factor(gram);
    const SymmetricEigen eigen = symmetric_eigen(on_span(0.0, core, r));
    const SmallMatrixDD rotated = eigen.vectors.transpose() * r * core;
    SmallSpectrum result{Eigen::VectorXd(r.rows()), SmallMatrix(rotated.rows(), rotated.cols())};
    for (Eigen::Index i = 0; i < r.rows(); ++i) result.values(i) = static_cast<double>(eigen.values[static_cast<std::size_t>(i)]);
    for (Eigen::Index i = 0; i < rotated.rows(); ++i)
        for (Eigen::Index j = 0; j < rotated.cols(); ++j) result.rotated_core(i, j) = static_cast<double>(rotated(i, j));
    return result;
}

namespace {

// A_1 and A_2 on span(W), the Cholesky factor of A_1, and the eigenvalues of A_1^-1 A_2, which are those of L^-1 A_2 L^-T.
struct Pencil {
    SmallMatrixDD a1, a2, lower;
    std::vector<DoubleDouble> ratios;
};

Pencil pencil_on_span(double c1, const SmallMatrixDD& core1, double c2, const SmallMatrixDD& core2, const SmallMatrixDD& r) {
    Pencil found{on_span(c1, core1, r), on_span(c2, core2, r), {}, {}};
    const Eigen::LLT<SmallMatrixDD> cholesky(found.a1);
    if (cholesky.info() != Eigen::Success) throw std::invalid_argument("the first matrix is not positive definite");
    const SmallMatrixDD half = cholesky.matrixL().solve(found.a2);
    found.ratios = symmetric_eigen(cholesky.matrixL().solve(SmallMatrixDD(half.transpose()))).values;
    for (const DoubleDouble& ratio : found.ratios)
        if (!(ratio.hi > 0.0)) throw std::invalid_argument("the second matrix is not positive definite");
    found.lower = cholesky.matrixL();
    return found;
}

Eigen::VectorXd logarithms(const std::vector<DoubleDouble>& ratios) {
    Eigen::VectorXd logs(static_cast<Eigen::Index>(ratios.size()));
    for (std::size_t i = 0; i < ratios.size(); ++i) logs(static_cast<Eigen::Index>(i)) = log_of(ratios[i]);
    return logs;
}

}  // namespace

Eigen::VectorXd low_rank_log_ratios(double c1, const SmallMatrixDD& core1, double c2, const SmallMatrixDD& core2,
                                    const SmallMatrixDD& gram) {
    const SmallMatrixDD r = gram_factor(gram);
    if (r.rows() == 0) return Eigen::VectorXd(0);  // Eigen's solvers take the address of a first element
    return logarithms(pencil_on_span(c1, core1, c2, core2, r).ratios);
}

SmallPencil low_rank_pencil(double c1, const SmallMatrixDD& core1, double c2, const SmallMatrixDD& core2,
                            const SmallMatrixDD& gram) {
    const SmallMatrixDD r = gram_factor(gram);
    if (r.rows() == 0) return {Eigen::VectorXd(0), 0.0, 1.0};
    const Pencil found = pencil_on_span(c1, core1, c2, core2, r);
    // Eigenvalues of L^T A_2 L are those of A_1 A_2.
    const SymmetricEigen products = symmetric_eigen(found.lower.transpose() * found.a2 * found.lower);
    SmallPencil result{logarithms(found.ratios), 0.0, 1.0};
    DoubleDouble bures = 0.0;
    for (Eigen::Index i = 0; i < r.rows(); ++i)
        bures += found.a1(i, i) + found.a2(i, i) - DoubleDouble(2.0) * sqrt(products.values[static_cast<std::size_t>(i)]);
    result.bures = static_cast<double>(bures);
    for (const SmallMatrixDD* a : {&found.a1, &found.a2}) {
        const SymmetricEigen own = symmetric_eigen(*a);
        if (!own.values.empty())
            result.condition = std::max(result.condition, own.values.back().hi / own.values.front().hi);
    }
    return result;
}

}  // namespace steepest
