// NumPy arrays to views of the core, and back. This and the bind_*.cpp files are the only code that knows Python.
#pragma once

#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "steepest/apply.hpp"
#include "steepest/gram.hpp"
#include "steepest/small_matrix.hpp"

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

// Right-hand sides: one vector, or, with `columns`, one for each index of the last axis of every array.
std::vector<Vector> to_vectors(const Arrays& arrays, bool columns, Access access = Access::read);

// ValueError if an array of `out` shares memory with another of `out`, with one of `apart`, or with one of `in_place`
// other than the same view at the same position.
void require_no_overlap(const Arrays& out, const std::vector<const Arrays*>& in_place,
                        const std::vector<const Arrays*>& apart);

// For each pair its numbers as `Gram.pair`, with low parts: shape (number of pairs, 15).
py::array_t<double> pair_rows(const std::vector<Gram>& pairs);

SmallMatrix to_small_matrix(const py::array_t<double>& array);
SmallMatrixDD to_small_matrix(const py::array_t<double>& high, const py::array_t<double>& low);
py::array_t<double> from_small_matrix(const SmallMatrix& matrix);

}  // namespace steepest::python
