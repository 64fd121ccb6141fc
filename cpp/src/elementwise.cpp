#include "steepest/elementwise.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "steepest/double_double.hpp"
#include "tiles.hpp"

namespace steepest {

namespace {

double* doubles(const Segment& segment, index_t begin) {
    return reinterpret_cast<double*>(segment.data()) + begin;
}

void check(const ElementNumbers& numbers) {
    require_same_layout({&numbers.yy, &numbers.yg, &numbers.gg});
    for (const Vector* one : {&numbers.yy, &numbers.yg, &numbers.gg})
        if (!one->has_dtype(DType::float64) || !one->contiguous())
            throw std::invalid_argument("expected contiguous float64 arrays for the sums");
}

void check(const Pairs& pairs, const ElementNumbers& numbers) {
    check(numbers);
    if (pairs.grad.size() != pairs.update.size())
        throw std::invalid_argument("expected as many gradients as updates, got " + std::to_string(pairs.grad.size()) +
                                    " and " + std::to_string(pairs.update.size()));
    for (const std::vector<Vector>* vectors : {&pairs.grad, &pairs.update})
        for (const Vector& vector : *vectors) require_same_layout({&numbers.yy, &vector});
}

// Tiles of one pair as both loops want them: as they lie in memory where they are contiguous and of one type, else doubles.
class PairTile {
public:
    explicit PairTile(const Pairs& pairs)
        : pairs_(pairs), direct_(pairs.grad_exponent == 0 && pairs.update_exponent == 0) {}

    DType dtype = DType::float64;
    const void *grad = nullptr, *update = nullptr;

    void read(std::size_t pair, std::size_t segment, index_t begin, index_t count, TileBuffer* buffers) {
        const Segment &y = pairs_.grad[pair].segments[segment], &g = pairs_.update[pair].segments[segment];
        if (direct_ && y.dtype() == g.dtype() && y.contiguous() && g.contiguous()) {
            dtype = y.dtype();
            grad = y.data() + begin * itemsize(dtype);
            update = g.data() + begin * itemsize(dtype);
            return;
        }
        dtype = DType::float64;
        grad = scaled(y, begin, count, buffers[0], pairs_.grad_exponent);
        update = scaled(g, begin, count, buffers[1], pairs_.update_exponent);
    }

private:
    // 2^-exponent may be beyond the largest double, and half of it is not.
    static const double* scaled(const Segment& segment, index_t begin, index_t count, TileBuffer& buffer, int exponent) {
        const int first = -exponent / 2;
        const double* values = read_tile(segment, begin, count, buffer, std::ldexp(1.0, first));
        if (exponent == 0) return values;
        hot_loops().scale(std::ldexp(1.0, -exponent - first), values, count, buffer.widened.data());
        return buffer.widened.data();
    }

    const Pairs& pairs_;
    const bool direct_;
};

}  // namespace

bool add_element_products(const Pairs& pairs, const ElementNumbers& sums) {
    check(pairs, sums);
    const HotLoops& loops = hot_loops();
    const Partition partition(sums.yy);
    const std::size_t n_pairs = pairs.grad.size();
    std::vector<char> finite(static_cast<std::size_t>(partition.size()), 1);
    parallel_for(partition, [&](index_t task) {
        const Block block = partition[task];
        const auto buffers = make_tile_buffers(2 * pairs_at_once);
        std::vector<PairTile> tiles(pairs_at_once, PairTile(pairs));
        for_each_tile(block, [&](index_t begin, index_t count) {
            double *yy = doubles(sums.yy.segments[block.segment], begin),
                   *yg = doubles(sums.yg.segments[block.segment], begin),
                   *gg = doubles(sums.gg.segments[block.segment], begin);
            for (std::size_t first = 0; first < n_pairs;) {
                const std::size_t several = std::min<std::size_t>(pairs_at_once, n_pairs - first);
                const void *grad[pairs_at_once], *update[pairs_at_once];
                bool together = several == pairs_at_once;
                for (std::size_t k = 0; k < several; ++k) {
                    tiles[k].read(first + k, block.segment, begin, count, &buffers[2 * k]);
                    grad[k] = tiles[k].grad;
                    update[k] = tiles[k].update;
                    together = together && tiles[k].dtype == tiles[0].dtype;
                }
                if (together) {
                    loops.add_products[1][dtype_index(tiles[0].dtype)](grad, update, count, yy, yg, gg);
                } else {
                    for (std::size_t k = 0; k < several; ++k)
                        loops.add_products[0][dtype_index(tiles[k].dtype)](grad + k, update + k, count, yy, yg, gg);
                }
                first += several;
            }
            if (!loops.all_finite(yy, gg, count)) finite[static_cast<std::size_t>(task)] = 0;
        });
    });
    return std::find(finite.begin(), finite.end(), 0) == finite.end();
}

std::vector<SegmentFit> fit_elements(const ElementNumbers& sums) {
    check(sums);
    const HotLoops& loops = hot_loops();
    const Partition partition(sums.yy);
    ElementFit nothing;
    nothing.smallest = std::numeric_limits<double>::infinity();
    std::vector<ElementFit> parts(static_cast<std::size_t>(partition.size()), nothing);
    parallel_for(partition, [&](index_t task) {
        const Block block = partition[task];
        for_each_tile(block, [&](index_t begin, index_t count) {
            loops.fit_elements(doubles(sums.yy.segments[block.segment], begin),
                               doubles(sums.yg.segments[block.segment], begin),
                               doubles(sums.gg.segments[block.segment], begin), count,
                               std::numeric_limits<double>::min(), &parts[static_cast<std::size_t>(task)]);
        });
    });
    std::vector<SegmentFit> found(sums.yy.segments.size());
    for (std::size_t s = 0; s < found.size(); ++s) {
        SegmentFit& fit = found[s];
        fit.smallest = nothing.smallest;
        for (index_t task = partition.first_block(s); task < partition.first_block(s + 1); ++task) {
            const ElementFit& part = parts[static_cast<std::size_t>(task)];
            // What is left is a sum of squares, whatever rounding says
            for (int k = 0; k < 5; ++k) fit.squares[k] += part.sums[k] < 0.0 ? 0.0 : part.sums[k];
            fit.moved += part.moved;
            fit.clipped += part.clipped;
            fit.smallest = std::min(fit.smallest, part.smallest);
            fit.largest = std::max(fit.largest, part.largest);
        }
    }
    return found;
}

std::vector<double> diagonal_residuals(const Pairs& pairs, const ElementNumbers& fit) {
    check(pairs, fit);
    const HotLoops& loops = hot_loops();
    const Partition partition(fit.yy);
    const std::size_t n_pairs = pairs.grad.size(), n_segments = fit.yy.segments.size();
    std::vector<double> of_blocks(static_cast<std::size_t>(partition.size()) * n_pairs * 5, 0.0);
    parallel_for(partition, [&](index_t task) {
        const Block block = partition[task];
        const auto buffers = make_tile_buffers(2);
        PairTile tile(pairs);
        double* const sums = of_blocks.data() + static_cast<std::size_t>(task) * n_pairs * 5;
        for_each_tile(block, [&](index_t begin, index_t count) {
            const double *p = doubles(fit.yy.segments[block.segment], begin),
                         *d = doubles(fit.yg.segments[block.segment], begin),
                         *s = doubles(fit.gg.segments[block.segment], begin);
            for (std::size_t t = 0; t < n_pairs; ++t) {
                tile.read(t, block.segment, begin, count, buffers.get());
                loops.diagonal_residuals[dtype_index(tile.dtype)](tile.grad, tile.update, d, p, s, count, sums + 5 * t);
            }
        });
    });
    std::vector<double> found(n_pairs * n_segments * 5);
    for (std::size_t t = 0; t < n_pairs; ++t)
        for (std::size_t s = 0; s < n_segments; ++s)
            for (std::size_t k = 0; k < 5; ++k) {
                DoubleDouble total(0.0);
                for (index_t task = partition.first_block(s); task < partition.first_block(s + 1); ++task) {
                    const double term = of_blocks[(static_cast<std::size_t>(task) * n_pairs + t) * 5 + k];
                    const DoubleDouble sum = two_sum(total.hi, term);
                    total = {sum.hi, total.lo + sum.lo};
                }
                const double both = total.hi + total.lo;
                found[(t * n_segments + s) * 5 + k] = std::isfinite(both) ? both : total.hi;
            }
    return found;
}

}  // namespace steepest
