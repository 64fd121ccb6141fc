// NumPy arrays to views of the core, and back. This and the bind_*.cpp files are the only code that knows Python.
#pragma once

#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "steepest/apply.hpp"
#include "steepest/small_matrix.hpp"

namespace steepest::python {

namespace py = pybind11;

enum class Access { read, write };

// One long vector: an array, or a list or tuple of arrays, of dtype float64, float32, float16, or uint16 for the bits of
// bfloat16. Nothing is converted or copied: TypeError for any other dtype, ValueError for a read-only array to write.
Vector to_vector(const py::handle& arrays, Access access = Access::read);

// Right-hand sides: one vector, or, with `columns`, one for each index of the last axis of every array.
std::vector<Vector> to_vectors(const py::handle& arrays, bool columns, Access access = Access::read);

// ValueError if an array of `out` shares memory with one of `inputs`; with `allow_same`, the same view is fine.
void require_no_overlap(const py::handle& out, const py::handle& inputs, bool allow_same);

SmallMatrix to_small_matrix(const py::array_t<double>& array);
SmallMatrixDD to_small_matrix(const py::array_t<double>& high, const py::array_t<double>& low);
py::array_t<double> from_small_matrix(const SmallMatrix& matrix);

}  // namespace steepest::python
