#include "numpy_bridge.hpp"

#include <algorithm>
#include <functional>
#include <iterator>
#include <stdexcept>
#include <string>

namespace steepest::python {

namespace {

DType dtype_of(const py::array& array) {
    const py::dtype dtype = array.dtype();
    const char order = dtype.byteorder();
    if (order == '=' || order == '|') {
        switch (dtype.char_()) {
            case 'd': return DType::float64;
            case 'f': return DType::float32;
            case 'e': return DType::float16;
            case 'H': return DType::bfloat16;
            default: break;
        }
    }
    throw py::type_error("expected float64, float32, float16 or uint16 (the bits of bfloat16) in native byte order, got " +
                         std::string(py::str(dtype)));
}

py::array as_array(const py::handle& object) {
    if (!py::isinstance<py::array>(object))
        throw py::type_error("expected a NumPy array or a list of them, got " +
                             std::string(py::str(py::type::of(object).attr("__name__"))));
    return py::reinterpret_borrow<py::array>(object);
}

char* data_of(const py::array& array, Access access) {
    if (access == Access::read) return static_cast<char*>(const_cast<void*>(array.data()));
    if (!array.writeable()) throw py::value_error("expected a writable out, got a read-only array");
    for (py::ssize_t axis = 0; axis < array.ndim(); ++axis)
        // NumPy gives arrays without elements the stride 0.
        if (array.strides(axis) == 0 && array.shape(axis) > 1 && array.size() > 0)
            throw py::value_error("expected an out whose elements are apart, got a broadcast array (stride 0)");
    return static_cast<char*>(const_cast<void*>(array.data()));
}

// The axes [begin, end) of an array, from a starting point.
Segment to_segment(const py::array& array, char* data, py::ssize_t begin, py::ssize_t end) {
    const Segment::Axes shape(array.shape() + begin, array.shape() + end),
        strides(array.strides() + begin, array.strides() + end);
    return Segment(data, dtype_of(array), shape, strides);
}

}  // namespace

Arrays to_arrays(const py::handle& object) {
    Arrays arrays;
    if (!py::isinstance<py::list>(object) && !py::isinstance<py::tuple>(object)) {
        arrays.push_back(as_array(object));
        return arrays;
    }
    for (const py::handle& item : py::tuple(py::reinterpret_borrow<py::object>(object))) arrays.push_back(as_array(item));
    return arrays;
}

Vector to_vector(const Arrays& arrays, Access access) {
    Vector vector;
    vector.segments.reserve(arrays.size());
    for (const py::array& array : arrays)
        vector.segments.push_back(to_segment(array, data_of(array, access), 0, array.ndim()));
    return vector;
}

std::vector<Arrays> to_each_arrays(const py::list& vectors) {
    std::vector<Arrays> arrays;
    arrays.reserve(vectors.size());
    for (const py::handle& vector : py::tuple(vectors)) arrays.push_back(to_arrays(vector));
    return arrays;
}

std::vector<Vector> to_each_vector(const std::vector<Arrays>& arrays) {
    std::vector<Vector> views;
    views.reserve(arrays.size());
    for (const Arrays& vector : arrays) views.push_back(to_vector(vector));
    return views;
}

index_t size_of(const std::vector<Vector>& vectors) {
    index_t size = 0;
    for (const Vector& vector : vectors) size += vector.size();
    return size;
}

VectorSteps to_steps(const Arrays& arrays) {
    VectorSteps steps;
    for (const py::array& array : arrays) {
        if (array.ndim() < 1) throw py::value_error("expected arrays whose first axis is the step, got a scalar");
        if (!steps.strides.empty() && array.shape(0) != steps.count)
            throw py::value_error("expected " + std::to_string(steps.count) + " steps in every array, got " +
                                  std::to_string(array.shape(0)));
        steps.count = array.shape(0);
        steps.strides.push_back(array.strides(0));
        steps.first.segments.push_back(to_segment(array, data_of(array, Access::read), 1, array.ndim()));
    }
    return steps;
}

std::vector<Vector> to_vectors(const Arrays& arrays, bool columns, Access access) {
    std::vector<Vector> vectors;
    if (!columns) {
        vectors.push_back(to_vector(arrays, access));
        return vectors;
    }
    bool first = true;
    for (const py::array& array : arrays) {
        if (array.ndim() < 1) throw py::value_error("expected an array with a last axis of right-hand sides, got a scalar");
        const py::ssize_t last = array.ndim() - 1;
        if (first) vectors.resize(static_cast<std::size_t>(array.shape(last)));
        first = false;
        if (array.shape(last) != static_cast<py::ssize_t>(vectors.size()))
            throw py::value_error("expected " + std::to_string(vectors.size()) + " right-hand sides, got " +
                                  std::to_string(array.shape(last)));
        char* data = data_of(array, access);
        for (py::ssize_t r = 0; r < array.shape(last); ++r)
            vectors[static_cast<std::size_t>(r)].segments.push_back(
                to_segment(array, data + r * array.strides(last), 0, last));
    }
    return vectors;
}

namespace {

// An array of an argument with the bytes that it touches.
struct Extent {
    const py::array* array;
    const char *lowest, *highest;
    std::size_t position;  // in its argument
    enum class Role { out, in_place, apart } role;
};
using Extents = ShortVector<Extent, 8>;

void add_extents(const Arrays& arrays, Extent::Role role, Extents& extents) {
    for (std::size_t position = 0; position < arrays.size(); ++position) {
        const py::array& array = arrays[position];
        if (array.size() == 0) continue;
        const char* data = static_cast<const char*>(array.data());
        Extent extent{&array, data, data + array.itemsize(), position, role};
        for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
            const py::ssize_t reach = (array.shape(axis) - 1) * array.strides(axis);
            (reach < 0 ? extent.lowest : extent.highest) += reach;
        }
        extents.push_back(extent);
    }
}

bool same_view(const py::array& one, const py::array& other) {
    const auto view = [](const py::array& array) {
        return to_segment(array, static_cast<char*>(const_cast<void*>(array.data())), 0, array.ndim());
    };
    const Segment a = view(one), b = view(other);
    return a.data() == b.data() && a.dtype() == b.dtype() && a.shape() == b.shape() && a.strides() == b.strides();
}

void require_apart(const Extent& a, const Extent& b) {
    const bool out_a = a.role == Extent::Role::out, out_b = b.role == Extent::Role::out;
    if ((!out_a && !out_b) || a.highest <= b.lowest || b.highest <= a.lowest) return;
    const bool same = same_view(*a.array, *b.array);
    const bool in_place = a.role == Extent::Role::in_place || b.role == Extent::Role::in_place;
    if (same && in_place && a.position == b.position) return;
    // Views may interleave without sharing an element: NumPy decides exactly.
    if (!same && !py::module_::import("numpy").attr("shares_memory")(*a.array, *b.array).cast<bool>()) return;
    if (out_a && out_b) throw py::value_error("expected the arrays of out to be apart, got two that overlap");
    throw py::value_error("expected an out that shares no memory with the inputs, got one that overlaps");
}

}  // namespace

void require_no_overlap(const Arrays& out, const std::vector<const Arrays*>& in_place,
                        const std::vector<const Arrays*>& apart) {
    Extents extents;
    add_extents(out, Extent::Role::out, extents);
    for (const Arrays* arrays : in_place) add_extents(*arrays, Extent::Role::in_place, extents);
    for (const Arrays* arrays : apart) add_extents(*arrays, Extent::Role::apart, extents);
    // From low to high addresses, each against those that begin before it and have not ended.
    std::sort(extents.begin(), extents.end(),
              [](const Extent& a, const Extent& b) { return std::less<>()(a.lowest, b.lowest); });
    Extents open;
    for (const Extent& one : extents) {
        Extents still_open;
        for (const Extent& other : open) {
            if (other.highest <= one.lowest) continue;
            require_apart(other, one);
            still_open.push_back(other);
        }
        still_open.push_back(one);
        open = still_open;
    }
}

SmallMatrix to_small_matrix(const py::array_t<double>& array) {
    if (array.ndim() != 2) throw py::value_error("expected a matrix, got an array with " + std::to_string(array.ndim()) + " axes");
    SmallMatrix matrix(array.shape(0), array.shape(1));
    for (py::ssize_t i = 0; i < array.shape(0); ++i)
        for (py::ssize_t j = 0; j < array.shape(1); ++j) matrix(i, j) = array.at(i, j);
    return matrix;
}

SmallMatrixDD to_small_matrix(const py::array_t<double>& high, const py::array_t<double>& low) {
    const SmallMatrix hi = to_small_matrix(high), lo = to_small_matrix(low);
    if (hi.rows() != lo.rows() || hi.cols() != lo.cols()) throw py::value_error("expected high and low parts of one shape");
    SmallMatrixDD matrix(hi.rows(), hi.cols());
    for (Eigen::Index i = 0; i < hi.rows(); ++i)
        for (Eigen::Index j = 0; j < hi.cols(); ++j) matrix(i, j) = two_sum(hi(i, j), lo(i, j));
    return matrix;
}

py::array_t<double> from_small_matrix(const SmallMatrix& matrix) {
    py::array_t<double> array({matrix.rows(), matrix.cols()});
    for (Eigen::Index i = 0; i < matrix.rows(); ++i)
        for (Eigen::Index j = 0; j < matrix.cols(); ++j) array.mutable_at(i, j) = matrix(i, j);
    return array;
}

}  // namespace steepest::python
