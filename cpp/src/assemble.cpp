#include "steepest/assemble.hpp"

#include <cmath>
#include <stdexcept>
#include <string>

#include "tiles.hpp"

namespace steepest {

namespace {

// A whole vector as doubles times 2^-exponent. Temporaries of length n are small against the n x n result.
std::vector<double> widened(const Vector& vector, int exponent) {
    std::vector<double> values;
    values.reserve(static_cast<std::size_t>(vector.size()));
    const auto buffer = make_tile_buffers(1);
    for (const Segment& segment : vector.segments)
        for (index_t begin = 0; begin < segment.size(); begin += tile_size) {
            const index_t count = std::min(tile_size, segment.size() - begin);
            const double* tile = read_tile(segment, begin, count, buffer[0], std::ldexp(1.0, -exponent));
            values.insert(values.end(), tile, tile + count);
        }
    return values;
}

}  // namespace

// Entry (i, j) = base_ij + sum_a K_aa (w_ia w_ja) + sum_a<b K_ab (w_ia w_jb + w_ib w_ja): every product and sum is the
// same with i and j exchanged, so the matrix is symmetric to the last bit.
void assemble(const LowRankOperator& a, const Segment& out) {
    if (a.columns.empty()) throw std::invalid_argument("expected at least one column, got none");
    require_valid(a);
    const index_t n = a.columns[0].vector->size();
    const auto k = static_cast<Eigen::Index>(a.columns.size());
    const bool fits = n == 0 ? out.size() == 0 : out.size() % n == 0 && out.size() / n == n;  // n * n may overflow
    if (!fits || !out.contiguous())
        throw std::invalid_argument("expected a contiguous out of " + std::to_string(n) + " x " + std::to_string(n));
    std::vector<double> diagonal(static_cast<std::size_t>(n), a.base.scalar);
    if (a.base.kind != BaseKind::scalar) diagonal = widened(*a.base.diagonal, 0);
    if (a.base.kind == BaseKind::inverse_diagonal)
        for (double& d : diagonal) d = 1.0 / d;
    std::vector<std::vector<double>> columns;
    for (const Column& column : a.columns) {
        columns.push_back(widened(*column.vector, column.exponent));
        if (column.through_base)
            for (std::size_t i = 0; i < columns.back().size(); ++i) columns.back()[i] *= diagonal[i];
    }

    const HotLoops& loops = hot_loops();
    const bool stream = beyond_caches(out.size() * itemsize(out.dtype()));
    const index_t rows_at_once = std::max<index_t>(1, block_size / std::max<index_t>(1, n));
    const bool rank_two = k == 2 && a.exponent == 0;
    // A row of the most common case in one pass, straight into `out`.
    const auto rank_two_row = [&](index_t i) {
        const double core[3] = {a.core(0, 0), a.core(0, 1), a.core(1, 1)};
        const double *w = columns[0].data(), *v = columns[1].data();
        char* row = out.data() + i * n * itemsize(out.dtype());
        loops.rank_two_row[dtype_index(out.dtype())](core, w[i], v[i], w, v, n, row, stream);
        // Once more for the element on the diagonal, to which the base is added before it is rounded.
        double value;
        loops.rank_two_row[dtype_index(DType::float64)](core, w[i], v[i], w + i, v + i, 1, &value, false);
        value += diagonal[static_cast<std::size_t>(i)];
        loops.narrow[dtype_index(out.dtype())](&value, 1, row + i * itemsize(out.dtype()), false);
    };
    parallel_for((n + rows_at_once - 1) / rows_at_once, [&](index_t task) {
        const auto buffer = make_tile_buffers(1);
        double* values = buffer[0].widened.data();
        for (index_t i = task * rows_at_once; i < std::min(n, (task + 1) * rows_at_once); ++i) {
            if (rank_two) {
                rank_two_row(i);
                continue;
            }
            for (index_t begin = 0; begin < n; begin += tile_size) {
                const index_t count = std::min(tile_size, n - begin);
                std::fill(values, values + count, 0.0);
                for (Eigen::Index p = 0; p < k; ++p) {
                    const std::vector<double>& w = columns[static_cast<std::size_t>(p)];
                    if (a.core(p, p) != 0.0)
                        loops.add_square_row(a.core(p, p), w[i], w.data() + begin, count, values);
                    for (Eigen::Index q = p + 1; q < k; ++q) {
                        const std::vector<double>& v = columns[static_cast<std::size_t>(q)];
                        if (a.core(p, q) != 0.0)
                            loops.add_cross_row(a.core(p, q), w[i], v[i], w.data() + begin, v.data() + begin, count,
                                                values);
                    }
                }
                if (i >= begin && i < begin + count) values[i - begin] += diagonal[i];
                if (a.exponent != 0) {
                    loops.scale(std::ldexp(1.0, a.exponent / 2), values, count, values);
                    loops.scale(std::ldexp(1.0, a.exponent - a.exponent / 2), values, count, values);
                }
                write_tile(out, i * n + begin, count, values, buffer[0], stream);
            }
        }
    });
}

}  // namespace steepest
