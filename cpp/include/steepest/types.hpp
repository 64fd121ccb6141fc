// The vocabulary of the core: index type, element types, and views of the long vectors that users hand in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "steepest/short_vector.hpp"

namespace steepest {

using index_t = std::int64_t;  // vectors may have more than 2^31 elements

// Element types of long vectors. All arithmetic is done in double; narrower types are widened on load.
enum class DType : std::uint8_t { float64 = 0, float32 = 1, float16 = 2, bfloat16 = 3 };
constexpr int n_dtypes = 4;

constexpr index_t itemsize(DType dtype) {
    return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

// Distance from 1 to the next number, and the least normal number, below which the distance stays the same.
constexpr double epsilon(DType dtype) {
    return dtype == DType::float64 ? 0x1p-52 : dtype == DType::float32 ? 0x1p-23 : dtype == DType::float16 ? 0x1p-10 : 0x1p-7;
}
constexpr double least_normal(DType dtype) {
    return dtype == DType::float64 ? 0x1p-1022 : dtype == DType::float16 ? 0x1p-14 : 0x1p-126;
}

// One array, read in C order. Strides are in bytes and may be zero or negative; adjacent axes that can be walked as one
// are merged on construction, so a contiguous array of any shape has one axis.
class Segment {
public:
    using Axes = ShortVector<index_t, 4>;
    Segment(char* data, DType dtype, const Axes& shape, const Axes& strides);

    char* data() const { return data_; }
    DType dtype() const { return dtype_; }
    index_t size() const { return size_; }
    bool contiguous() const { return contiguous_; }
    Segment moved(index_t bytes) const;  // the same view, that many bytes further on
    const Axes& shape() const { return shape_; }
    const Axes& strides() const { return strides_; }

    // Copies elements [begin, begin + count) to contiguous `target` (unchanged bits), or back from contiguous `source`.
    void gather(index_t begin, index_t count, char* target) const;
    void scatter(index_t begin, index_t count, const char* source) const;

    // The lowest and one past the highest byte that the view touches.
    const char* lowest() const { return lowest_; }
    const char* highest() const { return highest_; }

private:
    template <class Move>
    void walk(index_t begin, index_t count, Move move) const;

    char* data_;
    DType dtype_;
    Axes shape_, strides_;  // after merging; at least one axis
    index_t size_;
    bool contiguous_;
    const char *lowest_, *highest_;
};

// One long vector: its segments, one after the other (a mapping name -> array has one segment for each name).
struct Vector {
    std::vector<Segment> segments;

    index_t size() const;
    bool has_dtype(DType dtype) const;  // true if every segment has this element type
    bool contiguous() const;            // true if every segment is contiguous
};

// Throws std::invalid_argument unless all vectors have segments of the same sizes.
void require_same_layout(const std::vector<const Vector*>& vectors);

}  // namespace steepest
