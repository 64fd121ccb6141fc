// Merging of axes, gathering and scattering, extents.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "steepest/types.hpp"

using steepest::DType;
using steepest::index_t;
using steepest::Segment;
using steepest::Vector;

namespace {

using Axes = steepest::Segment::Axes;

// Byte offset of the element with flat (C order) index i.
index_t offset_of(index_t i, const Axes& shape, const Axes& strides) {
    index_t offset = 0;
    for (std::size_t axis = shape.size(); axis-- > 0;) {
        offset += (i % shape[axis]) * strides[axis];
        i /= shape[axis];
    }
    return offset;
}

template <class T>
void check_moves(DType dtype, const Axes& shape, const Axes& strides, index_t origin, index_t n_bytes) {
    std::vector<char> memory(static_cast<std::size_t>(n_bytes));
    for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<char>(37 * i + i / 251);
    char* const data = memory.data() + origin;
    const Segment segment(data, dtype, shape, strides);
    index_t size = 1;
    for (const index_t extent : shape) size *= extent;
    CHECK(segment.size() == size);
    const char *low = data, *high = data;
    for (index_t i = 0; i < size; ++i) {
        const char* element = data + offset_of(i, shape, strides);
        if (element < low) low = element;
        if (element + sizeof(T) > high) high = element + sizeof(T);
    }
    CHECK(segment.lowest() == low);
    CHECK(segment.highest() == high);
    for (const index_t begin : {index_t{0}, index_t{1}, size / 3, size - 1}) {
        if (begin < 0 || begin >= size) continue;
        for (const index_t count : {index_t{0}, index_t{1}, size - begin}) {
            std::vector<T> got(static_cast<std::size_t>(count) + 1, T{77});
            segment.gather(begin, count, reinterpret_cast<char*>(got.data()));
            for (index_t i = 0; i < count; ++i)
                CHECK(std::memcmp(&got[static_cast<std::size_t>(i)], data + offset_of(begin + i, shape, strides),
                                  sizeof(T)) == 0);
            CHECK(got.back() == T{77});
            // Scattering changes these elements and no other byte.
            std::vector<char> before = memory, expected = memory;
            std::vector<T> put(static_cast<std::size_t>(count) + 1);
            for (index_t i = 0; i < count; ++i) {
                put[static_cast<std::size_t>(i)] = static_cast<T>(1000 + i);
                std::memcpy(expected.data() + origin + offset_of(begin + i, shape, strides),
                            &put[static_cast<std::size_t>(i)], sizeof(T));
            }
            segment.scatter(begin, count, reinterpret_cast<const char*>(put.data()));
            CHECK(memory == expected);
            memory = before;
        }
    }
}

void check_merging() {
    char memory[4096] = {};
    const auto axes = [&](const Axes& shape, const Axes& strides) {
        return Segment(memory, DType::float64, shape, strides).shape().size();
    };
    CHECK(axes({4, 5, 6}, {240, 48, 8}) == 1);   // C order
    CHECK(axes({4, 5, 6}, {8, 32, 160}) == 3);   // Fortran order
    CHECK(axes({4, 1, 6}, {48, 999, 8}) == 1);   // an axis of one element has no stride
    CHECK(axes({4, 6}, {96, 16}) == 1);          // every second element
    CHECK(axes({4, 6}, {100, 16}) == 2);
    CHECK(axes({4, 6}, {0, 0}) == 1);            // one element, broadcast
    CHECK(axes({4, 6}, {0, 8}) == 2);
    CHECK(axes({4, 6}, {48, -8}) == 2);
    CHECK(axes({4, 6}, {-48, -8}) == 1);
    CHECK(axes({}, {}) == 1);
    CHECK(axes({1, 1}, {0, -5}) == 1);
    const auto contiguous = [&](const Axes& shape, const Axes& strides) {
        return Segment(memory, DType::float32, shape, strides).contiguous();
    };
    CHECK(contiguous({4, 5}, {20, 4}));
    CHECK(contiguous({}, {}));
    CHECK(contiguous({1}, {400}));
    CHECK(!contiguous({4, 5}, {24, 4}));
    CHECK(!contiguous({2}, {0}));
    CHECK(!contiguous({2}, {-4}));
    CHECK(Segment(memory, DType::float64, {3, 0}, {0, 8}).size() == 0);
    CHECK_THROWS(Segment(memory, DType::float64, {3, 2}, {8}), std::invalid_argument);
}

void check_layouts() {
    char memory[256] = {};
    const auto vector = [&](const Axes& sizes) {
        Vector made;
        for (const index_t size : sizes) made.segments.emplace_back(memory, DType::float16, Axes{size}, Axes{2});
        return made;
    };
    const Vector a = vector({3, 4}), b = vector({3, 4}), c = vector({4, 3}), d = vector({7}), none = vector({});
    steepest::require_same_layout({&a, &b});
    steepest::require_same_layout({&none, &none});
    CHECK_THROWS(steepest::require_same_layout({&a, &c}), std::invalid_argument);
    CHECK_THROWS(steepest::require_same_layout({&a, &b, &d}), std::invalid_argument);
    CHECK_THROWS(steepest::require_same_layout({}), std::invalid_argument);
    CHECK(a.size() == 7 && none.size() == 0);
    CHECK(a.contiguous() && a.has_dtype(DType::float16) && !a.has_dtype(DType::bfloat16));
}

// As std::vector, within the numbers that it keeps in itself and beyond.
void check_short_vector() {
    steepest::ShortVector<int, 3> numbers;
    std::vector<int> expected;
    for (int i = 0; i < 9; ++i) {
        CHECK(numbers.empty() == expected.empty() && numbers.size() == expected.size());
        numbers.push_back(i * i);
        expected.push_back(i * i);
        CHECK(std::equal(numbers.begin(), numbers.end(), expected.begin(), expected.end()));
        CHECK(numbers.back() == i * i && numbers[static_cast<std::size_t>(i)] == i * i);
        const steepest::ShortVector<int, 3> copy = numbers, same(expected.begin(), expected.end());
        CHECK(copy == numbers && same == numbers);
        numbers[0] = -1;
        CHECK(copy != numbers && copy[0] == 0);
        numbers[0] = 0;
    }
    for (const std::size_t size : {7, 3, 0, 4, 1}) {
        numbers.assign(size, 5);
        CHECK(numbers.size() == size && std::count(numbers.begin(), numbers.end(), 5) == static_cast<std::ptrdiff_t>(size));
        numbers.push_back(6);
        CHECK(numbers.size() == size + 1 && numbers.back() == 6);
    }
    CHECK((steepest::ShortVector<int, 2>{1, 2, 3}).size() == 3);
}

}  // namespace

int main() {
    check_short_vector();
    check_merging();
    check_layouts();
    check_moves<double>(DType::float64, {3, 4, 5}, {160, 40, 8}, 0, 480);
    check_moves<double>(DType::float64, {3, 4, 5}, {8, 24, 96}, 0, 480);
    check_moves<float>(DType::float32, {5, 7}, {-28, 4}, 112, 140);
    check_moves<float>(DType::float32, {5, 7}, {4, -20}, 120, 140);
    check_moves<std::uint16_t>(DType::bfloat16, {6}, {-6}, 30, 32);
    check_moves<std::uint16_t>(DType::float16, {2, 3, 2, 5}, {121, 40, 20, 3}, 1, 400);  // odd addresses
    check_moves<double>(DType::float64, {2, 1, 3}, {25, 1, 8}, 3, 60);
    check_moves<double>(DType::float64, {}, {}, 8, 24);
    // Shapes and strides at random, all elements apart.
    std::mt19937 random(1);
    for (int trial = 0; trial < 300; ++trial) {
        std::vector<index_t> shape, strides;
        index_t stride = 4, origin = 0;
        for (int axis = 0; axis < 4; ++axis) {
            const index_t extent = 1 + static_cast<index_t>(random() % 4);
            const bool backwards = random() % 3 == 0;
            if (backwards) origin += (extent - 1) * stride;
            const std::size_t where = random() % (shape.size() + 1);
            shape.insert(shape.begin() + static_cast<std::ptrdiff_t>(where), extent);
            strides.insert(strides.begin() + static_cast<std::ptrdiff_t>(where), backwards ? -stride : stride);
            stride *= extent + static_cast<index_t>(random() % 2);
        }
        check_moves<float>(DType::float32, Axes(shape.begin(), shape.end()), Axes(strides.begin(), strides.end()), origin, stride + 4);
    }
}
