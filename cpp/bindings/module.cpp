// steepest._core: a table of contents.
#include <pybind11/pybind11.h>

namespace steepest::python {
void bind_elementwise(pybind11::module_& module);
void bind_gram(pybind11::module_& module);
void bind_kernels(pybind11::module_& module);
void bind_small_matrix(pybind11::module_& module);
void bind_settings(pybind11::module_& module);
void bind_step(pybind11::module_& module);
}  // namespace steepest::python

// No mutable state but the thread pool and its settings, which lock for themselves: safe without the GIL.
PYBIND11_MODULE(_core, module, pybind11::mod_gil_not_used()) {
    module.doc() = "Compiled kernels of steepest. Private: use the functions of the package steepest.";
    steepest::python::bind_elementwise(module);
    steepest::python::bind_gram(module);
    steepest::python::bind_kernels(module);
    steepest::python::bind_small_matrix(module);
    steepest::python::bind_settings(module);
    steepest::python::bind_step(module);
}
