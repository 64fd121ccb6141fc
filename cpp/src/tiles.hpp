// Tiles of a long vector as contiguous doubles: the memory itself where it is already that, a widened copy otherwise.
#pragma once

#include <algorithm>
#include <array>
#include <memory>

#include "hot_loops.hpp"
#include "steepest/parallel.hpp"
#include "steepest/types.hpp"

namespace steepest {

inline int dtype_index(DType dtype) { return static_cast<int>(dtype); }

// Room for one tile in memory order and one widened tile.
struct TileBuffer {
    alignas(64) std::array<char, tile_size * sizeof(double)> gathered;
    alignas(64) std::array<double, tile_size> widened;
};

// On the heap, and not zeroed: 16 KiB each would cost more than many a small segment.
inline std::unique_ptr<TileBuffer[]> make_tile_buffers(std::size_t count) {
    return std::unique_ptr<TileBuffer[]>(new TileBuffer[count]);
}

// Elements [begin, begin + count) of a segment, count <= tile_size, times 2^exponent.
inline const double* read_tile(const Segment& segment, index_t begin, index_t count, TileBuffer& buffer,
                               double factor = 1.0) {
    const HotLoops& loops = hot_loops();
    const char* source = segment.data() + begin * itemsize(segment.dtype());
    if (!segment.contiguous()) {
        segment.gather(begin, count, buffer.gathered.data());
        source = buffer.gathered.data();
    }
    const double* values = buffer.widened.data();
    if (segment.dtype() == DType::float64 && reinterpret_cast<std::uintptr_t>(source) % alignof(double) == 0)
        values = reinterpret_cast<const double*>(source);
    else
        loops.widen[dtype_index(segment.dtype())](source, count, buffer.widened.data());
    if (factor != 1.0) {
        loops.scale(factor, values, count, buffer.widened.data());
        values = buffer.widened.data();
    }
    return values;
}

// The memory of elements [begin, ...) where it can be written as doubles, else null.
inline double* writable_tile(const Segment& segment, index_t begin) {
    if (segment.dtype() != DType::float64 || !segment.contiguous()) return nullptr;
    char* target = segment.data() + begin * itemsize(segment.dtype());
    return reinterpret_cast<std::uintptr_t>(target) % alignof(double) == 0 ? reinterpret_cast<double*>(target) : nullptr;
}

// Calls visit(begin, count) for each tile of a block.
template <class Visit>
void for_each_tile(const Block& block, Visit visit) {
    for (index_t done = 0; done < block.count; done += tile_size)
        visit(block.begin + done, std::min(tile_size, block.count - done));
}

// Whether results should be written past the caches: an operation on that many bytes leaves nothing of use in them.
inline bool beyond_caches(index_t bytes) { return bytes >= (index_t{64} << 20); }

// Rounds `count` doubles to the segment's type and stores them at [begin, begin + count).
inline void write_tile(const Segment& segment, index_t begin, index_t count, const double* values,
                       TileBuffer& buffer, bool stream = false) {
    const HotLoops& loops = hot_loops();
    if (segment.contiguous()) {
        loops.narrow[dtype_index(segment.dtype())](values, count,
                                                   segment.data() + begin * itemsize(segment.dtype()), stream);
    } else {
        loops.narrow[dtype_index(segment.dtype())](values, count, buffer.gathered.data(), false);
        segment.scatter(begin, count, buffer.gathered.data());
    }
}

}  // namespace steepest
