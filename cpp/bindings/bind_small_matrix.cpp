// Algebra of small matrices in double-double.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "numpy_bridge.hpp"

namespace steepest::python {

namespace {

py::array_t<double> from_vector(const Eigen::VectorXd& vector) {
    return py::array_t<double>(vector.size(), vector.data());
}

void require_square(const SmallMatrixDD& matrix, Eigen::Index size, const char* name) {
    if (matrix.rows() != size || matrix.cols() != size)
        throw py::value_error(std::string("expected ") + name + " of " + std::to_string(size) + " x " +
                              std::to_string(size) + ", got " + std::to_string(matrix.rows()) + " x " +
                              std::to_string(matrix.cols()));
}

using Array = py::array_t<double>;

}  // namespace

void bind_small_matrix(py::module_& module) {
    module.def(
        "low_rank_spectrum",
        [](const Array& core, const Array& core_low, const Array& gram, const Array& gram_low) {
            const SmallMatrixDD k = to_small_matrix(core, core_low), g = to_small_matrix(gram, gram_low);
            require_square(g, g.rows(), "a Gram matrix");
            require_square(k, g.rows(), "a core");
            const SmallSpectrum found = low_rank_spectrum(k, g);
            return py::make_tuple(from_vector(found.values), from_small_matrix(found.rotated_core));
        },
        py::arg("core"), py::arg("core_low"), py::arg("gram"), py::arg("gram_low"),
        "Eigenvalues of W K W^T on span(W), and Z^T R K (see small_matrix.hpp).");
    module.def(
        "low_rank_pencil",
        [](double c1, const Array& core1, const Array& core1_low, double c2, const Array& core2,
           const Array& core2_low, const Array& gram, const Array& gram_low) {
            const SmallMatrixDD g = to_small_matrix(gram, gram_low), k1 = to_small_matrix(core1, core1_low),
                                k2 = to_small_matrix(core2, core2_low);
            require_square(g, g.rows(), "a Gram matrix");
            require_square(k1, g.rows(), "a core");
            require_square(k2, g.rows(), "a core");
            const SmallPencil found = low_rank_pencil(c1, k1, c2, k2, g);
            return py::make_tuple(from_vector(found.log_ratios), found.bures, found.condition);
        },
        py::arg("c1"), py::arg("core1"), py::arg("core1_low"), py::arg("c2"), py::arg("core2"), py::arg("core2_low"),
        py::arg("gram"), py::arg("gram_low"),
        "Logarithms of the eigenvalues of A_1^-1 A_2, Bures distance squared, condition number.");
}

}  // namespace steepest::python
