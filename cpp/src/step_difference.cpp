#include "steepest/step_difference.hpp"

#include <limits>
#include <stdexcept>
#include <string>

#include "gram_sums.hpp"
#include "tiles.hpp"

namespace steepest {

struct StepSums::Blocks {
    BlockSums sums;
};

namespace {

// The rule of the fast pass over a pair, whose bits these sums have: typed loops if they can take all segments.
bool direct(const Vector& y, const Vector& after, const Vector& before, const std::vector<DType>& update_types) {
    if (!y.contiguous() || !after.contiguous() || !before.contiguous()) return false;
    for (std::size_t s = 0; s < update_types.size(); ++s) {
        const DType type = update_types[s];
        for (const Vector* one : {&y, &after, &before})
            if (one->segments[s].dtype() != type) return false;
    }
    return true;
}

const char* at(const Segment& segment, index_t begin) { return segment.data() + begin * itemsize(segment.dtype()); }

}  // namespace

StepSums::StepSums(const Vector& y, const Vector& after, const Vector& before, const std::vector<DType>& update_types,
                   Floor floor) {
    require_same_layout({&y, &after, &before});
    if (update_types.size() != y.segments.size())
        throw std::invalid_argument("expected a type of the update for each of the " +
                                    std::to_string(y.segments.size()) + " segments, got " +
                                    std::to_string(update_types.size()));
    const HotLoops& loops = hot_loops();
    const bool typed = direct(y, after, before, update_types);
    const Vector& floors = floor == Floor::after ? after : before;
    blocks_.reset(new Blocks{{Partition(y), 3, {}}});
    BlockSums& blocks = blocks_->sums;
    const Partition& partition = blocks.partition;
    blocks.values.assign(static_cast<std::size_t>(partition.size()) * 4, 0.0);
    std::vector<double> powers(static_cast<std::size_t>(partition.size()), 0.0);

    parallel_for(partition, [&](index_t task) {
        const Block block = partition[task];
        const Segment &ys = y.segments[block.segment], &to = after.segments[block.segment],
                      &from = before.segments[block.segment];
        const DType type = update_types[block.segment];
        const double least = least_normal(floors.segments[block.segment].dtype());
        double* sums = blocks.values.data() + task * 4;
        if (typed) {
            const char *a = at(to, block.begin), *b = at(from, block.begin);
            const PairSums found = loops.difference_sums[dtype_index(type)](
                at(ys, block.begin), a, b, floor == Floor::after ? a : b, block.count, tile_size, least, &powers[task]);
            sums[0] = found.xx;
            sums[1] = found.xy;
            sums[2] = found.yy;
            sums[3] = found.squared_products;
            return;
        }
        const auto buffers = make_tile_buffers(4);
        for_each_tile(block, [&](index_t begin, index_t count) {
            const double *x = read_tile(ys, begin, count, buffers[0]), *a = read_tile(to, begin, count, buffers[1]),
                         *b = read_tile(from, begin, count, buffers[2]);
            double* update = buffers[3].widened.data();
            loops.subtract[dtype_index(type)](a, b, count, update);
            sums[0] += loops.dot(x, x, count);
            sums[1] += loops.dot(x, update, count);
            sums[2] += loops.dot(update, update, count);
            sums[3] += loops.sum_squared_products(x, update, count);
            powers[task] += loops.exponent_squares(floor == Floor::after ? a : b, count, least);
        });
    });

    for (std::size_t s = 0; s < y.segments.size(); ++s) {
        double total = 0.0;
        for (index_t task = partition.first_block(s); task < partition.first_block(s + 1); ++task)
            total += powers[task];
        const double eps = epsilon(floors.segments[s].dtype());
        spacing_squares_.push_back(std::isfinite(total) ? eps * eps * total : std::numeric_limits<double>::quiet_NaN());
    }
}

StepSums::~StepSums() = default;

std::vector<std::optional<Gram>> StepSums::grams(const Vector& y, const Vector* update,
                                                 const std::vector<Accuracy>& accuracies) const {
    if (update != nullptr) require_same_layout({&y, update});
    const std::size_t n_segments = y.segments.size();
    if (accuracies.size() != n_segments + 1)
        throw std::invalid_argument("expected " + std::to_string(n_segments + 1) + " tolerances, one for the whole and " +
                                    "one for each segment, got " + std::to_string(accuracies.size()));
    const BlockSums& blocks = blocks_->sums;
    const Partition& partition = blocks.partition;
    const auto gram_of = [&](index_t begin, index_t end, const Vector& part, const Vector* of_update, const Accuracy& accuracy) {
        return settled_pair(fast_sums(blocks.values.data(), blocks.pairs, begin, end), Precision::fast, part, of_update, accuracy);
    };
    std::vector<std::optional<Gram>> found;
    found.push_back(gram_of(0, partition.size(), y, update, accuracies[0]));
    const auto same = [](const Accuracy& a, const Accuracy& b) {
        return a.tolerance == b.tolerance && a.rounding_squared == b.rounding_squared;
    };
    if (n_segments == 1 && same(accuracies[0], accuracies[1])) return {found[0], found[0]};
    for (std::size_t s = 0; s < n_segments; ++s) {
        const Vector own{{y.segments[s]}}, of_update{{update == nullptr ? y.segments[s] : update->segments[s]}};
        found.push_back(gram_of(partition.first_block(s), partition.first_block(s + 1), own,
                                update == nullptr ? nullptr : &of_update, accuracies[s + 1]));
    }
    return found;
}

void difference(const Vector& after, const Vector& before, const Vector& out) {
    require_same_layout({&after, &before, &out});
    const Partition partition(out);
    parallel_for(partition, [&](index_t task) {
        const Block block = partition[task];
        const Segment& target = out.segments[block.segment];
        const auto buffers = make_tile_buffers(3);
        for_each_tile(block, [&](index_t begin, index_t count) {
            const double *a = read_tile(after.segments[block.segment], begin, count, buffers[0]),
                         *b = read_tile(before.segments[block.segment], begin, count, buffers[1]);
            double* update = buffers[2].widened.data();
            hot_loops().subtract[dtype_index(DType::float64)](a, b, count, update);
            write_tile(target, begin, count, update, buffers[2]);
        });
    });
}

std::vector<double> copy(const Vector& source, const Vector& target, bool squares) {
    require_same_layout({&source, &target});
    index_t bytes = 0;
    for (std::size_t s = 0; s < source.segments.size(); ++s) {
        const Segment &from = source.segments[s], &to = target.segments[s];
        if (from.dtype() != to.dtype() || !to.contiguous())
            throw std::invalid_argument("expected contiguous copies of the same dtype");
        bytes += 2 * from.size() * itemsize(from.dtype());
    }
    const bool stream = beyond_caches(bytes);
    const Partition partition(source);
    std::vector<double> sums(squares ? static_cast<std::size_t>(partition.size()) : 0, 0.0), found;
    const HotLoops& loops = hot_loops();
    parallel_for(partition, [&](index_t task) {
        const Block block = partition[task];
        const Segment &from = source.segments[block.segment], &to = target.segments[block.segment];
        const index_t size = itemsize(to.dtype());
        char* there = to.data() + block.begin * size;
        const char* values = from.contiguous() ? at(from, block.begin) : there;
        if (from.contiguous()) loops.copy_bytes(values, there, block.count * size, stream);
        else from.gather(block.begin, block.count, there);
        if (squares) sums[task] = loops.sum_squares[dtype_index(to.dtype())](values, block.count);
    });
    for (std::size_t s = 0; s < source.segments.size() && squares; ++s) {
        double total = 0.0;
        for (index_t task = partition.first_block(s); task < partition.first_block(s + 1); ++task) total += sums[task];
        found.push_back(total);
    }
    return found;
}

}  // namespace steepest
