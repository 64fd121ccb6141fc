#include "steepest/types.hpp"

#include <cstring>
#include <stdexcept>
#include <string>

namespace steepest {

Segment::Segment(char* data, DType dtype, const Axes& shape, const Axes& strides)
    : data_(data), dtype_(dtype), size_(1), lowest_(data), highest_(data) {
    if (shape.size() != strides.size()) throw std::invalid_argument("shape and strides differ in length");
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        const index_t extent = shape[axis], stride = strides[axis];
        size_ *= extent;
        if (extent == 1) continue;
        // Axis and predecessor walk as one if stepping the outer axis once equals walking the inner axis to its end.
        if (!shape_.empty() && strides_.back() == stride * extent) {
            shape_.back() *= extent;
            strides_.back() = stride;
        } else {
            shape_.push_back(extent);
            strides_.push_back(stride);
        }
    }
    if (shape_.empty()) {
        shape_.push_back(size_);
        strides_.push_back(itemsize(dtype));
    }
    contiguous_ = shape_.size() == 1 && (strides_[0] == itemsize(dtype) || size_ <= 1);
    if (size_ > 0) {
        for (std::size_t axis = 0; axis < shape_.size(); ++axis) {
            const index_t reach = (shape_[axis] - 1) * strides_[axis];
            (reach < 0 ? lowest_ : highest_) += reach;
        }
        highest_ += itemsize(dtype);
    }
}

Segment Segment::moved(index_t bytes) const {
    Segment view = *this;
    view.data_ += bytes;
    view.lowest_ += bytes;
    view.highest_ += bytes;
    return view;
}

// Calls move(pointer to an element, number of elements, byte stride, offset from begin) for each run of the last axis.
template <class Move>
void Segment::walk(index_t begin, index_t count, Move move) const {
    const std::size_t last = shape_.size() - 1;
    const index_t row = shape_[last], stride = strides_[last];
    index_t done = 0;
    while (done < count) {
        index_t remaining = (begin + done) / row;
        const index_t column = (begin + done) % row;
        char* pointer = data_ + column * stride;
        for (std::size_t axis = last; axis-- > 0;) {
            pointer += (remaining % shape_[axis]) * strides_[axis];
            remaining /= shape_[axis];
        }
        const index_t run = (row - column < count - done) ? row - column : count - done;
        move(pointer, run, stride, done);
        done += run;
    }
}

namespace {

template <int Size>
void gather_run(const char* source, index_t count, index_t stride, char* target) {
    for (index_t i = 0; i < count; ++i) std::memcpy(target + i * Size, source + i * stride, Size);
}

template <int Size>
void scatter_run(const char* source, index_t count, index_t stride, char* target) {
    for (index_t i = 0; i < count; ++i) std::memcpy(target + i * stride, source + i * Size, Size);
}

}  // namespace

void Segment::gather(index_t begin, index_t count, char* target) const {
    const index_t size = itemsize(dtype_);
    walk(begin, count, [&](const char* source, index_t run, index_t stride, index_t offset) {
        char* to = target + offset * size;
        if (size == 8) gather_run<8>(source, run, stride, to);
        else if (size == 4) gather_run<4>(source, run, stride, to);
        else gather_run<2>(source, run, stride, to);
    });
}

void Segment::scatter(index_t begin, index_t count, const char* source) const {
    const index_t size = itemsize(dtype_);
    walk(begin, count, [&](char* target, index_t run, index_t stride, index_t offset) {
        const char* from = source + offset * size;
        if (size == 8) scatter_run<8>(from, run, stride, target);
        else if (size == 4) scatter_run<4>(from, run, stride, target);
        else scatter_run<2>(from, run, stride, target);
    });
}

index_t Vector::size() const {
    index_t total = 0;
    for (const Segment& segment : segments) total += segment.size();
    return total;
}

bool Vector::has_dtype(DType dtype) const {
    for (const Segment& segment : segments)
        if (segment.dtype() != dtype) return false;
    return true;
}

bool Vector::contiguous() const {
    for (const Segment& segment : segments)
        if (!segment.contiguous()) return false;
    return true;
}

void require_same_layout(const std::vector<const Vector*>& vectors) {
    if (vectors.empty()) throw std::invalid_argument("expected at least one vector, got none");
    const Vector& first = *vectors.front();
    for (const Vector* vector : vectors) {
        if (vector->segments.size() != first.segments.size())
            throw std::invalid_argument("expected vectors of " + std::to_string(first.segments.size()) +
                                        " segments, got one of " + std::to_string(vector->segments.size()));
        for (std::size_t s = 0; s < first.segments.size(); ++s)
            if (vector->segments[s].size() != first.segments[s].size())
                throw std::invalid_argument("expected " + std::to_string(first.segments[s].size()) +
                                            " elements in segment " + std::to_string(s) + ", got " +
                                            std::to_string(vector->segments[s].size()));
    }
}

}  // namespace steepest
