#include "steepest/step_grams.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "gram_sums.hpp"
#include "tiles.hpp"

namespace steepest {

namespace {

void check(const VectorSteps& y, const VectorSteps& g, std::size_t n_accuracies, index_t skip, index_t lag) {
    require_same_layout({&y.first, &g.first});
    const std::size_t n_segments = y.first.segments.size();
    if (y.count != g.count || y.strides.size() != n_segments || g.strides.size() != n_segments)
        throw std::invalid_argument("expected as many steps of y as of g, got " + std::to_string(y.count) + " and " +
                                    std::to_string(g.count));
    if (skip < 0 || skip > y.count || lag < 0)
        throw std::invalid_argument("expected 0 <= skip <= " + std::to_string(y.count) + " and lag >= 0, got " +
                                    std::to_string(skip) + " and " + std::to_string(lag));
    if (n_accuracies != static_cast<std::size_t>(y.count - skip) * (n_segments + 1))
        throw std::invalid_argument("expected one accuracy for each of " + std::to_string(y.count - skip) + " steps and " +
                                    std::to_string(n_segments + 1) + " parts, got " + std::to_string(n_accuracies));
    for (std::size_t s = 0; s < n_segments; ++s) {
        const Segment &of_y = y.first.segments[s], &of_g = g.first.segments[s];
        if (!of_y.contiguous() || !of_g.contiguous() || of_y.dtype() != of_g.dtype())
            throw std::invalid_argument("expected contiguous arrays of one type at each step, got others in segment " +
                                        std::to_string(s));
    }
}

// The sums of all steps, before they are added up over blocks or runs.
class Passes {
public:
    Passes(const VectorSteps& y, const VectorSteps& g, index_t skip, index_t lag, Precision precision)
        : y_(y), g_(g), skip_(skip), lag_(lag), fast_(precision == Precision::fast), blocks_(y.first),
          runs_(y.first, run_size) {
        const index_t steps = y.count - skip;
        if (fast_) block_sums_.resize(static_cast<std::size_t>(steps * blocks_.size() * 4));
        else cascades_.resize(static_cast<std::size_t>(steps * runs_.size() * 3));
        squared_.assign(static_cast<std::size_t>(fast_ ? 0 : steps * runs_.size()), 0.0);
        lag_cascades_.resize(static_cast<std::size_t>(steps * lag * runs_.size() * 4));
        lag_squares_.assign(lag_cascades_.size(), 0.0);

        // Short vectors have few runs: their steps are shared among threads as well.
        const index_t pieces = runs_.size() >= 16 ? 1 : std::max<index_t>(1, steps / 16);
        parallel_for(runs_.size() * pieces, [&](index_t task) {
            const index_t run = task / pieces, piece = task % pieces;
            for (index_t t = steps * piece / pieces; t < steps * (piece + 1) / pieces; ++t) add(run, t);
        });
    }

    // Of one part of the vectors at one step: all of it, or a segment.
    Sums pair(index_t t, bool whole, std::size_t s) const {
        if (fast_)
            return fast_sums(block_sums_.data() + t * blocks_.size() * 4, 3, whole ? 0 : blocks_.first_block(s),
                             whole ? blocks_.size() : blocks_.first_block(s + 1));
        return cascaded_sums(cascades_.data() + t * runs_.size() * 3, squared_.data() + t * runs_.size(),
                             whole ? 0 : runs_.first_block(s), whole ? runs_.size() : runs_.first_block(s + 1));
    }

    CrossProducts cross(index_t t, index_t j, bool whole, std::size_t s, index_t size) const {
        if (t + skip_ < j) return {};
        const index_t at = lag_row(t, j);
        return cross_products(lag_cascades_.data() + at, lag_squares_.data() + at, whole ? 0 : runs_.first_block(s),
                              whole ? runs_.size() : runs_.first_block(s + 1), size);
    }

private:
    index_t lag_row(index_t t, index_t j) const { return (t * lag_ + j - 1) * runs_.size() * 4; }

    const char* address(const VectorSteps& x, const Block& run, index_t step) const {
        const Segment& segment = x.first.segments[run.segment];
        return segment.data() + step * x.strides[run.segment] + run.begin * itemsize(segment.dtype());
    }

    // Run `number` at the t-th step after `skip`, and with those before it.
    void add(index_t number, index_t t) {
        const Block run = runs_[number];
        const DType dtype = y_.first.segments[run.segment].dtype();
        const index_t step = t + skip_;
        const void* x[4] = {address(y_, run, step), address(g_, run, step), nullptr, nullptr};
        if (fast_) {
            const index_t first = blocks_.first_block(run.segment) + run.begin / block_size;
            double* sums = block_sums_.data() + (t * blocks_.size() + first) * 4;
            for (index_t begin = 0; begin < run.count; begin += block_size, sums += 4) {
                const index_t offset = begin * itemsize(dtype);
                const PairSums found = hot_loops().pair_sums[dtype_index(dtype)](
                    static_cast<const char*>(x[0]) + offset, static_cast<const char*>(x[1]) + offset,
                    std::min(block_size, run.count - begin));
                sums[0] = found.xx;
                sums[1] = found.xy;
                sums[2] = found.yy;
                sums[3] = found.squared_products;
            }
            return;
        }
        const index_t own = t * runs_.size() + number, lags = std::min(lag_, step);
        if (lags == 0) cascaded_run(x, 2, dtype, run.count, cascades_.data() + own * 3, squared_.data() + own);
        for (index_t j = 1; j <= lags; ++j) {
            x[2] = address(y_, run, step - j);
            x[3] = address(g_, run, step - j);
            const index_t at = lag_row(t, j) + number * 4;
            if (j > 1) {
                cascaded_run(x, 4, dtype, run.count, lag_cascades_.data() + at, lag_squares_.data() + at);
                continue;
            }
            Cascade products[7];
            double plain[5] = {};
            cascaded_run_of_both(x, dtype, run.count, products, plain);
            std::copy(products, products + 3, cascades_.data() + own * 3);
            std::copy(products + 3, products + 7, lag_cascades_.data() + at);
            squared_[static_cast<std::size_t>(own)] = plain[0];
            std::copy(plain + 1, plain + 5, lag_squares_.data() + at);
        }
    }

    const VectorSteps &y_, &g_;
    index_t skip_, lag_;
    bool fast_;
    Partition blocks_, runs_;
    std::vector<double> block_sums_, squared_, lag_squares_;
    std::vector<Cascade> cascades_, lag_cascades_;
};

}  // namespace

Vector VectorSteps::at(index_t step) const {
    Vector vector;
    for (std::size_t s = 0; s < first.segments.size(); ++s)
        vector.segments.push_back(first.segments[s].moved(step * strides[s]));
    return vector;
}

StepGrams step_grams(const VectorSteps& y, const VectorSteps& g, const std::vector<Accuracy>& accuracies, index_t skip,
                     index_t lag, Precision precision) {
    check(y, g, accuracies.size(), skip, lag);
    if (precision == Precision::exact || (precision == Precision::fast && lag > 0))
        throw std::invalid_argument("expected a fast or a compensated first pass, and with lag a compensated one");
    const Passes passes(y, g, skip, lag, precision);
    const std::size_t n_segments = y.first.segments.size(), parts = n_segments + 1;
    const index_t steps = y.count - skip;
    StepGrams found{std::vector<Gram>(static_cast<std::size_t>(steps) * parts),
                    std::vector<CrossProducts>(static_cast<std::size_t>(steps * lag) * parts)};
    parallel_for(steps, [&](index_t t) {
        const Vector y_here = y.at(t + skip), g_here = g.at(t + skip);
        for (std::size_t part = 0; part < parts; ++part) {
            const bool whole = part == 0;
            const std::size_t s = whole ? 0 : part - 1, at = static_cast<std::size_t>(t) * parts + part;
            const Sums sums = passes.pair(t, whole, s);
            const Vector y_part = whole ? y_here : Vector{{y_here.segments[s]}},
                         g_part = whole ? g_here : Vector{{g_here.segments[s]}};
            found.pairs[at] = *settled_pair(sums, precision, y_part, &g_part, accuracies[at]);
            const index_t size = y_part.size();
            for (index_t j = 1; j <= lag; ++j)
                found.lags[static_cast<std::size_t>(t * lag + j - 1) * parts + part] = passes.cross(t, j, whole, s, size);
        }
    });
    return found;
}

}  // namespace steepest
