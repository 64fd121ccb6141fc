// A diagonal fitted to many pairs: sums element by element, and what is left.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <utility>

#include "numpy_bridge.hpp"
#include "steepest/elementwise.hpp"

namespace steepest::python {

namespace {

// References to the arrays of many pairs, as long as there are views of them.
struct GivenPairs {
    std::vector<Arrays> grads, updates;
    Pairs pairs;

    GivenPairs(const py::list& grad, const py::list& update, std::pair<int, int> exponents)
        : grads(to_each_arrays(grad)), updates(to_each_arrays(update)),
          pairs{to_each_vector(grads), to_each_vector(updates), exponents.first, exponents.second} {}
};

struct GivenNumbers {
    Arrays yy, yg, gg;
    ElementNumbers numbers;

    GivenNumbers(const py::object& a, const py::object& b, const py::object& c, Access access)
        : yy(to_arrays(a)), yg(to_arrays(b)), gg(to_arrays(c)),
          numbers{to_vector(yy, access), to_vector(yg, access), to_vector(gg, access)} {}
};

}  // namespace

void bind_elementwise(py::module_& module) {
    module.def(
        "add_element_products",
        [](const py::list& grads, const py::list& updates, std::pair<int, int> exponents, const py::object& yy,
           const py::object& yg, const py::object& gg) {
            const GivenPairs given(grads, updates, exponents);
            const GivenNumbers sums(yy, yg, gg, Access::write);
            return without_gil(size_of(given.pairs.grad), [&] { return add_element_products(given.pairs, sums.numbers); });
        },
        py::arg("grads"), py::arg("updates"), py::arg("exponents"), py::arg("yy"), py::arg("yg"), py::arg("gg"),
        "Adds y^2, y g, g^2 of many pairs (y = -grad, g = update, over 2^exponents) element by element; returns whether "
        "the sums of squares are finite.");
    module.def(
        "fit_elements",
        [](const py::object& yy, const py::object& yg, const py::object& gg) {
            const GivenNumbers sums(yy, yg, gg, Access::write);
            const std::vector<SegmentFit> found =
                without_gil(sums.numbers.yy.size(), [&] { return fit_elements(sums.numbers); });
            py::array_t<double> rows({static_cast<py::ssize_t>(found.size()), py::ssize_t{9}});
            auto at = rows.mutable_unchecked<2>();
            for (py::ssize_t s = 0; s < at.shape(0); ++s) {
                const SegmentFit& fit = found[static_cast<std::size_t>(s)];
                for (py::ssize_t k = 0; k < 5; ++k) at(s, k) = fit.squares[k];
                at(s, 5) = fit.moved;
                at(s, 6) = fit.clipped;
                at(s, 7) = fit.smallest;
                at(s, 8) = fit.largest;
            }
            return rows;
        },
        py::arg("yy"), py::arg("yg"), py::arg("gg"),
        "Puts p, d, s in place of the sums; of each array the five sums of squares left in the fitted pairs, how many "
        "elements moved and how many of these have d = 0, and the range of the positive d.");
    module.def(
        "diagonal_residuals",
        [](const py::list& grads, const py::list& updates, std::pair<int, int> exponents, const py::object& p,
           const py::object& d, const py::object& s) {
            const GivenPairs given(grads, updates, exponents);
            const GivenNumbers fit(p, d, s, Access::read);
            const std::vector<double> found =
                without_gil(size_of(given.pairs.grad), [&] { return diagonal_residuals(given.pairs, fit.numbers); });
            const auto pairs = static_cast<py::ssize_t>(given.pairs.grad.size()),
                       segments = static_cast<py::ssize_t>(fit.numbers.yy.segments.size());
            return py::array_t<double>({pairs, segments, py::ssize_t{5}}, found.data());
        },
        py::arg("grads"), py::arg("updates"), py::arg("exponents"), py::arg("p"), py::arg("d"), py::arg("s"),
        "|y - d g|^2, |g - p y|^2, |y - s g|^2, |y|^2, |g|^2 of each pair and array.");
}

}  // namespace steepest::python
