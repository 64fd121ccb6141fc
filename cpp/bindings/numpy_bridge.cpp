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

// The first `ndim` axes of an array, from a starting point.
Segment to_segment(const py::array& array, char* data, py::ssize_t ndim) {
    const std::vector<index_t> shape(array.shape(), array.shape() + ndim);
    const std::vector<index_t> strides(array.strides(), array.strides() + ndim);
    return Segment(data, dtype_of(array), shape, strides);
}

}  // namespace

Arrays to_arrays(const py::handle& object) {
    if (!py::isinstance<py::list>(object) && !py::isinstance<py::tuple>(object)) return {as_array(object)};
    Arrays arrays;
    for (const py::handle& item : py::tuple(py::reinterpret_borrow<py::object>(object))) arrays.push_back(as_array(item));
    return arrays;
}

Vector to_vector(const Arrays& arrays, Access access) {
    Vector vector;
    for (const py::array& array : arrays)
        vector.segments.push_back(to_segment(array, data_of(array, access), array.ndim()));
    return vector;
}

std::vector<Vector> to_vectors(const Arrays& arrays, bool columns, Access access) {
    if (!columns) return {to_vector(arrays, access)};
    std::vector<Vector> vectors;
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
                to_segment(array, data + r * array.strides(last), last));
    }
    return vectors;
}

namespace {

// An array of an argument with the bytes that it touches.
struct Extent {
    const py::array* array;
    Segment view;
    std::size_t position;  // in its argument
    enum class Role { out, in_place, apart } role;
};

void add_extents(const Arrays& arrays, Extent::Role role, std::vector<Extent>& extents) {
    for (std::size_t position = 0; position < arrays.size(); ++position) {
        const py::array& array = arrays[position];
        char* data = static_cast<char*>(const_cast<void*>(array.data()));
        if (array.size() > 0) extents.push_back({&array, to_segment(array, data, array.ndim()), position, role});
    }
}

bool same_view(const Segment& a, const Segment& b) {
    return a.data() == b.data() && a.dtype() == b.dtype() && a.shape() == b.shape() && a.strides() == b.strides();
}

void require_apart(const Extent& a, const Extent& b) {
    const bool out_a = a.role == Extent::Role::out, out_b = b.role == Extent::Role::out;
    if ((!out_a && !out_b) || a.view.highest() <= b.view.lowest() || b.view.highest() <= a.view.lowest()) return;
    const bool same = same_view(a.view, b.view);
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
    std::vector<Extent> extents;
    add_extents(out, Extent::Role::out, extents);
    for (const Arrays* arrays : in_place) add_extents(*arrays, Extent::Role::in_place, extents);
    for (const Arrays* arrays : apart) add_extents(*arrays, Extent::Role::apart, extents);
    // From low to high addresses, each against those that begin before it and have not ended.
    std::sort(extents.begin(), extents.end(),
              [](const Extent& a, const Extent& b) { return std::less<>()(a.view.lowest(), b.view.lowest()); });
    std::vector<const Extent*> open;
    for (const Extent& one : extents) {
        open.erase(std::remove_if(open.begin(), open.end(),
                                  [&](const Extent* other) { return other->view.highest() <= one.view.lowest(); }),
                   open.end());
        for (const Extent* other : open) require_apart(*other, one);
        open.push_back(&one);
    }
}

py::array_t<double> pair_rows(const std::vector<Gram>& pairs) {
    py::array_t<double> rows({static_cast<py::ssize_t>(pairs.size()), py::ssize_t{15}});
    auto at = rows.mutable_unchecked<2>();
    for (py::ssize_t i = 0; i < at.shape(0); ++i) {
        const Gram& gram = pairs[static_cast<std::size_t>(i)];
        const Angle seen = angle(gram.entry(0, 0), gram.entry(0, 1), gram.entry(1, 1));
        const double row[] = {gram.hi[0],    gram.hi[1],    gram.hi[3],
                              gram.lo[0],    gram.lo[1],    gram.lo[3],
                              gram.bound[0], gram.bound[1], gram.bound[3],
                              static_cast<double>(gram.exponents[0]), static_cast<double>(gram.exponents[1]),
                              seen.cosine,   seen.sine,     gram.sign_flip_variance,
                              gram.finite ? 1.0 : 0.0};
        std::copy(std::begin(row), std::end(row), &at(i, 0));
    }
    return rows;
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
