// Algebra of small matrices in double-double.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "numpy_bridge.hpp"
#include "steepest/parallel.hpp"

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
using Contiguous = py::array_t<double, py::array::c_style | py::array::forcecast>;

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
    module.def(
        "low_rank_log_ratios",
        [](double c1, const Array& core1, double c2, const Array& core2, const Contiguous& gram,
           const Contiguous& gram_low) {
            if (gram.ndim() != 3 || gram_low.ndim() != 3 || gram.shape(1) != gram.shape(2) ||
                !std::equal(gram.shape(), gram.shape() + 3, gram_low.shape()))
                throw py::value_error("expected high and low parts of m Gram matrices, of shape (m, k, k)");
            const SmallMatrixDD k1 = to_small_matrix(core1).cast<DoubleDouble>(),
                                k2 = to_small_matrix(core2).cast<DoubleDouble>();
            require_square(k1, gram.shape(1), "a core");
            require_square(k2, gram.shape(1), "a core");
            const index_t m = gram.shape(0), k = gram.shape(1);
            py::array_t<double> logs({m, k});
            double* out = logs.mutable_data();
            const double *high = gram.data(), *low = gram_low.data();
            const py::gil_scoped_release release;
            std::fill(out, out + m * k, std::numeric_limits<double>::quiet_NaN());
            constexpr index_t at_once = 64;
            parallel_for((m + at_once - 1) / at_once, [&](index_t task) {
                SmallMatrixDD g(k, k);
                for (index_t row = task * at_once; row < std::min(m, (task + 1) * at_once); ++row) {
                    for (index_t i = 0; i < k * k; ++i)
                        g(i / k, i % k) = two_sum(high[row * k * k + i], low[row * k * k + i]);
                    try {
                        const Eigen::VectorXd found = low_rank_log_ratios(c1, k1, c2, k2, g);
                        std::copy(found.data(), found.data() + found.size(), out + row * k);
                    } catch (const std::invalid_argument&) {
                        // Singular to working precision: no numbers.
                    }
                }
            });
            return logs;
        },
        py::arg("c1"), py::arg("core1"), py::arg("c2"), py::arg("core2"), py::arg("gram"), py::arg("gram_low"),
        "Logarithms of the eigenvalues of A_1^-1 A_2 for many Gram matrices, NaN behind the rank and where there are none.");
}

}  // namespace steepest::python
