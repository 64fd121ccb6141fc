// Threads, and how this module was built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "steepest/dispatch.hpp"
#include "steepest/parallel.hpp"

namespace steepest::python {

namespace py = pybind11;

void bind_settings(py::module_& module) {
    module.def("get_num_threads", &get_num_threads);
    module.def("set_num_threads", &set_num_threads, py::arg("n").noconvert());
    module.def("available_cpus", &available_cpus);
    module.def("build_config", [] {
        py::dict config;
        config["version"] = STEEPEST_VERSION;
        config["compiler"] = STEEPEST_COMPILER;
        config["cplusplus"] = static_cast<long>(__cplusplus);
        config["eigen"] = STEEPEST_EIGEN_VERSION;
        config["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
#ifdef NDEBUG
        config["assertions"] = false;
#else
        config["assertions"] = true;
#endif
        config["instruction_sets"] = py::cast(compiled_instruction_sets());
        config["instruction_set"] = instruction_set_in_use();
        config["num_threads"] = get_num_threads();
        return config;
    });
}

}  // namespace steepest::python
