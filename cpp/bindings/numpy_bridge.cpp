#include "numpy_bridge.hpp"

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

std::vector<py::array> as_arrays(const py::handle& arrays) {
    if (py::isinstance<py::array>(arrays)) return {as_array(arrays)};
    if (!py::isinstance<py::list>(arrays) && !py::isinstance<py::tuple>(arrays)) return {as_array(arrays)};
    std::vector<py::array> found;
    for (const py::handle& item : py::reinterpret_borrow<py::sequence>(arrays)) found.push_back(as_array(item));
    return found;
}

char* data_of(const py::array& array, Access access) {
    if (access == Access::read) return static_cast<char*>(const_cast<void*>(array.data()));
    if (!array.writeable()) throw py::value_error("expected a writable out, got a read-only array");
    for (py::ssize_t axis = 0; axis < array.ndim(); ++axis)
        if (array.strides(axis) == 0 && array.shape(axis) > 1)
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

Vector to_vector(const py::handle& arrays, Access access) {
    Vector vector;
    for (const py::array& array : as_arrays(arrays))
        vector.segments.push_back(to_segment(array, data_of(array, access), array.ndim()));
    return vector;
}

std::vector<Vector> to_vectors(const py::handle& arrays, bool columns, Access access) {
    if (!columns) return {to_vector(arrays, access)};
    std::vector<Vector> vectors;
    bool first = true;
    for (const py::array& array : as_arrays(arrays)) {
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

void require_no_overlap(const py::handle& out, const py::handle& inputs, bool allow_same) {
    for (const py::array& to : as_arrays(out)) {
        const Segment target = to_segment(to, static_cast<char*>(const_cast<void*>(to.data())), to.ndim());
        for (const py::array& from : as_arrays(inputs)) {
            const Segment source = to_segment(from, static_cast<char*>(const_cast<void*>(from.data())), from.ndim());
            if (target.lowest() >= source.highest() || source.lowest() >= target.highest()) continue;
            const bool same = target.data() == source.data() && target.dtype() == source.dtype() &&
                              target.shape() == source.shape() && target.strides() == source.strides();
            if (same && allow_same) continue;
            // Views may interleave without sharing an element: NumPy decides exactly.
            if (same || py::module_::import("numpy").attr("shares_memory")(to, from).cast<bool>())
                throw py::value_error("expected an out that shares no memory with the inputs, got one that overlaps");
        }
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
