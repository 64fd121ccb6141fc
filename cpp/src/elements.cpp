#include "steepest/elements.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tiles.hpp"

namespace steepest {

index_t first_not_positive(const Vector& d) {
    const Partition partition(d);
    std::vector<index_t> partial(static_cast<std::size_t>(partition.size()), -1);
    parallel_for(partition, [&](index_t task) {
        const Block block = partition[task];
        const auto buffer = make_tile_buffers(1);
        for_each_tile(block, [&](index_t begin, index_t count) {
            const double* values = read_tile(d.segments[block.segment], begin, count, buffer[0]);
            for (index_t i = 0; i < count && partial[task] < 0; ++i)
                if (!(values[i] > 0.0 && std::isfinite(values[i]))) partial[task] = begin + i;
        });
    });
    for (index_t task = 0; task < partition.size(); ++task) {
        if (partial[task] < 0) continue;
        index_t before = 0;
        for (std::size_t s = 0; s < partition[task].segment; ++s) before += d.segments[s].size();
        return before + partial[task];
    }
    return -1;
}

double max_abs(const Vector& vector) {
    const Partition partition(vector);
    std::vector<double> partial(static_cast<std::size_t>(partition.size()), 0.0);
    parallel_for(partition, [&](index_t task) {
        const Block block = partition[task];
        const auto buffer = make_tile_buffers(1);
        double largest = 0.0;
        for_each_tile(block, [&](index_t begin, index_t count) {
            const double found = hot_loops().max_abs(
                read_tile(vector.segments[block.segment], begin, count, buffer[0]), count);
            if (!(found <= largest)) largest = found;
            if (std::isnan(found)) partial[task] = found;
        });
        if (!std::isnan(partial[task])) partial[task] = largest;
    });
    double largest = 0.0;
    for (const double found : partial) {
        if (std::isnan(found)) return found;
        largest = std::max(largest, found);
    }
    return largest;
}

std::vector<double> spacing_squares(const Vector& vector) {
    const Partition partition(vector);
    std::vector<double> partial(static_cast<std::size_t>(partition.size()), 0.0);
    parallel_for(partition, [&](index_t task) {
        const Block block = partition[task];
        const Segment& segment = vector.segments[block.segment];
        const double least = least_normal(segment.dtype());
        const auto buffer = make_tile_buffers(1);
        for_each_tile(block, [&](index_t begin, index_t count) {
            partial[task] += hot_loops().exponent_squares(read_tile(segment, begin, count, buffer[0]), count, least);
        });
    });
    std::vector<double> found;
    for (std::size_t s = 0; s < vector.segments.size(); ++s) {
        double total = 0.0;
        for (index_t task = partition.first_block(s); task < partition.first_block(s + 1); ++task) total += partial[task];
        const double eps = epsilon(vector.segments[s].dtype());
        found.push_back(std::isfinite(total) ? eps * eps * total : std::numeric_limits<double>::quiet_NaN());
    }
    return found;
}

}  // namespace steepest
