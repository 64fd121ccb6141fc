// NumPy arrays to views of the core, and back. This and the bind_*.cpp files are the only code that knows Python.
#pragma once

#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "steepest/apply.hpp"
#include "steepest/small_matrix.hpp"
#include "steepest/step_grams.hpp"

namespace steepest::python {

namespace py = pybind11;

enum class Access { read, write };

// The arrays of an argument that is an array, or a list or tuple of arrays. Views hold raw pointers: whoever makes views
// keeps these references as long, because a list may be changed meanwhile.
using Arrays = std::vector<py::array>;
Arrays to_arrays(const py::handle& object);

// One long vector, of dtype float64, float32, float16, or uint16 for the bits of bfloat16. Nothing is converted or
// copied: TypeError for any other dtype, ValueError for a read-only array to write.
Vector to_vector(const Arrays& arrays, Access access = Access::read);

// Several vectors.
std::vector<Arrays> to_each_arrays(const py::list& vectors);
std::vector<Vector> to_each_vector(const std::vector<Arrays>& arrays);

template <class T>
std::vector<const T*> addresses(const std::vector<T>& values) {
    std::vector<const T*> found;
    found.reserve(values.size());
    for (const T& value : values) found.push_back(&value);
    return found;
}

// A vector at each step, which is the first axis of every array.
VectorSteps to_steps(const Arrays& arrays);

// Right-hand sides: one vector, or, with `columns`, one for each index of the last axis of every array.
std::vector<Vector> to_vectors(const Arrays& arrays, bool columns, Access access = Access::read);

// ValueError if an array of `out` shares memory with another of `out`, with one of `apart`, or with one of `in_place`
// other than the same view at the same position.
void require_no_overlap(const Arrays& out, const std::vector<const Arrays*>& in_place,
                        const std::vector<const Arrays*>& apart);

// Elements of all of them.
index_t size_of(const std::vector<Vector>& vectors);

// Runs the work without the GIL where there are elements enough for somebody else to do something meanwhile. No Python object
// is touched then: all arguments are views and numbers.
template <class Work>
auto without_gil(index_t elements, Work work) {
    constexpr index_t some_microseconds = 16384;
    if (elements < some_microseconds) return work();
    const py::gil_scoped_release release;
    return work();
}

SmallMatrix to_small_matrix(const py::array_t<double>& array);
SmallMatrixDD to_small_matrix(const py::array_t<double>& high, const py::array_t<double>& low);
py::array_t<double> from_small_matrix(const SmallMatrix& matrix);

}  // namespace steepest::python
