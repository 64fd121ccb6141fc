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

constexpr index_t direct_run = 2048;  // elements of all pairs, with those of the sums: 48 KiB

// Calls visit(begin, count) for each run of at most `size` elements of a block.
template <class Visit>
void for_each_run(const Block& block, index_t size, Visit visit) {
    for (index_t done = 0; done < block.count; done += size)
        visit(block.begin + done, std::min(size, block.count - done));
}

// Runs of elements of several pairs as the loops want them: as they lie in memory where that is contiguous and of one
// type, else as doubles.
class PairRuns {
public:
    PairRuns(const Pairs& pairs, std::size_t segment)
        : pairs_(pairs), segment_(segment), direct_(is_direct()),
          buffers_(make_tile_buffers(direct_ ? 0 : 2 * at_once)) {}

    static constexpr std::size_t at_once = 8;
    const void *grad[at_once], *update[at_once];

    index_t longest() const { return direct_ ? direct_run : tile_size; }
    DType dtype() const { return direct_ ? pairs_.grad[0].segments[segment_].dtype() : DType::float64; }

    // Elements [begin, begin + count) of pairs first, first + 1, ...
    void read(std::size_t first, std::size_t several, index_t begin, index_t count) {
        for (std::size_t k = 0; k < several; ++k) {
            const Segment &y = pairs_.grad[first + k].segments[segment_], &g = pairs_.update[first + k].segments[segment_];
            grad[k] = direct_ ? at(y, begin) : scaled(y, begin, count, buffers_[2 * k], pairs_.grad_exponent);
            update[k] = direct_ ? at(g, begin) : scaled(g, begin, count, buffers_[2 * k + 1], pairs_.update_exponent);
        }
    }

private:
    bool is_direct() const {
        if (pairs_.grad_exponent != 0 || pairs_.update_exponent != 0) return false;
        for (const std::vector<Vector>* vectors : {&pairs_.grad, &pairs_.update})
            for (const Vector& vector : *vectors) {
                const Segment& one = vector.segments[segment_];
                if (!one.contiguous() || one.dtype() != pairs_.grad[0].segments[segment_].dtype()) return false;
            }
        return true;
    }

    static const void* at(const Segment& segment, index_t begin) {
        return segment.data() + begin * itemsize(segment.dtype());
    }

    // 2^-exponent may be beyond the largest double; its root is not.
    static const void* scaled(const Segment& segment, index_t begin, index_t count, TileBuffer& buffer, int exponent) {
        const int first = -exponent / 2;
        const double* values = read_tile(segment, begin, count, buffer, std::ldexp(1.0, first));
        if (exponent == 0) return values;
        hot_loops().scale(std::ldexp(1.0, -exponent - first), values, count, buffer.widened.data());
        return buffer.widened.data();
    }

    const Pairs& pairs_;
    const std::size_t segment_;
    const bool direct_;
    const std::unique_ptr<TileBuffer[]> buffers_;
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
        PairRuns runs(pairs, block.segment);
        for_each_run(block, runs.longest(), [&](index_t begin, index_t count) {
            double *yy = doubles(sums.yy.segments[block.segment], begin),
                   *yg = doubles(sums.yg.segments[block.segment], begin),
                   *gg = doubles(sums.gg.segments[block.segment], begin);
            for (std::size_t first = 0; first < n_pairs;) {
                const int power = n_pairs - first >= 8 ? 3 : n_pairs - first >= 4 ? 2 : n_pairs - first >= 2 ? 1 : 0;
                const std::size_t several = std::size_t{1} << power;
                runs.read(first, several, begin, count);
                loops.add_products[power][dtype_index(runs.dtype())](runs.grad, runs.update, count, yy, yg, gg);
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
        PairRuns runs(pairs, block.segment);
        double* const sums = of_blocks.data() + static_cast<std::size_t>(task) * n_pairs * 5;
        for_each_run(block, runs.longest(), [&](index_t begin, index_t count) {
            const double *p = doubles(fit.yy.segments[block.segment], begin),
                         *d = doubles(fit.yg.segments[block.segment], begin),
                         *s = doubles(fit.gg.segments[block.segment], begin);
            for (std::size_t first = 0; first < n_pairs;) {
                const std::size_t several = n_pairs - first >= 4 ? 4 : 1;
                runs.read(first, several, begin, count);
                loops.diagonal_residuals[several == 4][dtype_index(runs.dtype())](runs.grad, runs.update, d, p, s, count,
                                                                                 sums + 5 * first);
                first += several;
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
