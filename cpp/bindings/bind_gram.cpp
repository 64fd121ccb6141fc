// Inner products of long vectors, with error bounds. Every function has one shape: references to the arrays of the arguments,
// views of them, GIL released around one call of the core.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <limits>

#include "numpy_bridge.hpp"
#include "pair_rows.hpp"

namespace steepest::python {

namespace {

Precision to_precision(const std::string& name) {
    if (name == "fast") return Precision::fast;
    if (name == "compensated") return Precision::compensated;
    if (name == "exact") return Precision::exact;
    throw py::value_error("expected precision 'fast', 'compensated' or 'exact', got '" + name + "'");
}

const char* name_of(Precision precision) {
    return precision == Precision::fast ? "fast" : precision == Precision::compensated ? "compensated" : "exact";
}

py::array_t<double> square(const ShortVector<double, 4>& values, int k) {
    return py::array_t<double>({k, k}, values.data());
}

// hi, lo, bound of four products.
void write_products(const CrossProducts& products, double* to) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    for (int p = 0; p < 4; ++p, to += 3) {
        to[0] = products.in_range ? products.value[p].hi : nan;
        to[1] = products.in_range ? products.value[p].lo : nan;
        to[2] = products.in_range ? products.bound[p] : nan;
    }
}

}  // namespace

void write_row(const Gram& gram, double* to) {
    const Angle seen = angle(gram.entry(0, 0), gram.entry(0, 1), gram.entry(1, 1));
    const double row[row_length] = {gram.hi[0],    gram.hi[1],    gram.hi[3],
                                    gram.lo[0],    gram.lo[1],    gram.lo[3],
                                    gram.bound[0], gram.bound[1], gram.bound[3],
                                    static_cast<double>(gram.exponents[0]), static_cast<double>(gram.exponents[1]),
                                    seen.cosine,   seen.sine,     gram.sign_flip_variance,
                                    gram.finite ? 1.0 : 0.0};
    std::copy(std::begin(row), std::end(row), to);
}

py::array_t<double> pair_rows(const std::vector<Gram>& pairs) {
    py::array_t<double> rows({static_cast<py::ssize_t>(pairs.size()), row_length});
    for (std::size_t i = 0; i < pairs.size(); ++i)
        write_row(pairs[i], rows.mutable_data() + static_cast<py::ssize_t>(i) * row_length);
    return rows;
}

std::vector<Accuracy> to_accuracies(const double* tolerances, const double* rounding_squared, std::size_t size) {
    std::vector<Accuracy> accuracies;
    for (std::size_t i = 0; i < size; ++i) accuracies.push_back({tolerances[i], rounding_squared[i]});
    return accuracies;
}

std::vector<Accuracy> to_accuracies(const std::vector<double>& tolerances, const std::vector<double>& rounding_squared) {
    if (rounding_squared.size() != tolerances.size())
        throw py::value_error("expected a rounding for each of the " + std::to_string(tolerances.size()) +
                              " tolerances, got " + std::to_string(rounding_squared.size()));
    return to_accuracies(tolerances.data(), rounding_squared.data(), tolerances.size());
}

void bind_gram(py::module_& module) {
    py::class_<Gram>(module, "Gram")
        .def_property_readonly("hi", [](const Gram& gram) { return square(gram.hi, gram.k); })
        .def_property_readonly("lo", [](const Gram& gram) { return square(gram.lo, gram.k); })
        .def_property_readonly("bound", [](const Gram& gram) { return square(gram.bound, gram.k); })
        .def_property_readonly("exponents",
                               [](const Gram& gram) { return std::vector<int>(gram.exponents.begin(), gram.exponents.end()); })
        .def_readonly("sign_flip_variance", &Gram::sign_flip_variance)
        .def_readonly("finite", &Gram::finite)
        .def_property_readonly("precision", [](const Gram& gram) { return name_of(gram.precision); })
        // All numbers of a pair at once: (yy, yg, gg), their bounds, the exponents, cosine and sine, sign-flip variance.
        .def_property_readonly("pair",
                               [](const Gram& gram) {
                                   if (gram.k != 2) throw py::value_error("expected the Gram matrix of two vectors");
                                   const Angle found =
                                       angle(gram.entry(0, 0), gram.entry(0, 1), gram.entry(1, 1));
                                   return py::make_tuple(gram.hi[0], gram.hi[1], gram.hi[3], gram.bound[0],
                                                         gram.bound[1], gram.bound[3], gram.exponents[0],
                                                         gram.exponents[1], found.cosine, found.sine,
                                                         gram.sign_flip_variance, gram.finite);
                               });

    module.def(
        "gram",
        [](const py::list& vectors, const std::string& precision) {
            const std::vector<Arrays> arrays = to_each_arrays(vectors);
            const std::vector<Vector> views = to_each_vector(arrays);
            const Precision wanted = to_precision(precision);
            return without_gil(size_of(views), [&] { return gram(addresses(views), wanted); });
        },
        py::arg("vectors"), py::arg("precision") = "fast",
        "All inner products of long vectors in one pass, with error bounds (see gram.hpp).");
    module.def(
        "angle_gram",
        [](const py::object& y, const py::object& g, const py::object& base, double tolerance, double rounding_squared) {
            const Arrays ys = to_arrays(y), gs = to_arrays(g), ds = base.is_none() ? Arrays{} : to_arrays(base);
            const Vector a = to_vector(ys), b = to_vector(gs), d = to_vector(ds);
            const Vector* weights = base.is_none() ? nullptr : &d;
            return without_gil(a.size(), [&] { return angle_gram(a, b, weights, {tolerance, rounding_squared}); });
        },
        py::arg("y"), py::arg("g"), py::arg("base") = py::none(), py::arg("tolerance") = 1e-13,
        py::arg("rounding_squared") = 0.0,
        "Gram matrix of a pair at the first precision that settles sign and angle.");
    module.def(
        "segment_angle_grams",
        [](const py::object& y, const py::object& g, const std::vector<double>& tolerances,
           const std::vector<double>& rounding_squared, const std::string& precision) {
            const std::vector<Accuracy> accuracies = to_accuracies(tolerances, rounding_squared);
            const Precision first = to_precision(precision);
            const Arrays ys = to_arrays(y), gs = to_arrays(g);
            const Vector a = to_vector(ys), b = to_vector(gs);
            const std::vector<Gram> found =
                without_gil(a.size(), [&] { return segment_angle_grams(a, b, accuracies, first); });
            return pair_rows(found);
        },
        py::arg("y"), py::arg("g"), py::arg("tolerances"), py::arg("rounding_squared"), py::arg("precision") = "fast",
        "Rows of numbers as `Gram.pair`, with low parts, of a pair and of each of its segments, in one pass.");
    module.def(
        "segment_cross_products",
        [](const py::object& y, const py::object& g, const py::object& y0, const py::object& g0) {
            const Arrays arrays[4] = {to_arrays(y), to_arrays(g), to_arrays(y0), to_arrays(g0)};
            const Vector a = to_vector(arrays[0]), b = to_vector(arrays[1]), c = to_vector(arrays[2]),
                         d = to_vector(arrays[3]);
            const std::vector<CrossProducts> found =
                without_gil(a.size(), [&] { return segment_cross_products(a, b, c, d); });
            py::array_t<double> rows({static_cast<py::ssize_t>(found.size()), py::ssize_t{4}, py::ssize_t{3}});
            for (std::size_t i = 0; i < found.size(); ++i)
                write_products(found[i], rows.mutable_data() + static_cast<py::ssize_t>(i) * 12);
            return rows;
        },
        py::arg("y"), py::arg("g"), py::arg("y0"), py::arg("g0"),
        "hi, lo, bound of y.y0, y.g0, g.y0, g.g0, of the whole and of each segment, in one pass; NaN where the vectors "
        "are zero, not finite, or have to be scaled.");
    module.def(
        "step_grams",
        [](const py::object& y, const py::object& g, const py::array_t<double, py::array::c_style>& tolerances,
           const py::array_t<double, py::array::c_style>& rounding_squared, py::ssize_t skip, py::ssize_t lag,
           const std::string& precision) {
            if (tolerances.size() != rounding_squared.size())
                throw py::value_error("expected a rounding for each of the " + std::to_string(tolerances.size()) +
                                      " tolerances, got " + std::to_string(rounding_squared.size()));
            const auto accuracies = to_accuracies(tolerances.data(), rounding_squared.data(),
                                                  static_cast<std::size_t>(tolerances.size()));
            const Precision first = to_precision(precision);
            const Arrays ys = to_arrays(y), gs = to_arrays(g);
            const VectorSteps a = to_steps(ys), b = to_steps(gs);
            const StepGrams found = without_gil(a.count * a.first.size(), [&] { return step_grams(a, b, accuracies, skip, lag, first); });
            const auto parts = static_cast<py::ssize_t>(a.first.segments.size()) + 1, steps = a.count - skip;
            py::array_t<double> pairs({steps, parts, row_length});
            py::array_t<double> lags({steps, lag, parts, py::ssize_t{4}, py::ssize_t{3}});
            double *of_pairs = pairs.mutable_data(), *of_lags = lags.mutable_data();
            for (std::size_t i = 0; i < found.pairs.size(); ++i) write_row(found.pairs[i], of_pairs + i * row_length);
            for (std::size_t i = 0; i < found.lags.size(); ++i) write_products(found.lags[i], of_lags + i * 12);
            return py::make_tuple(pairs, lags);
        },
        py::arg("y"), py::arg("g"), py::arg("tolerances"), py::arg("rounding_squared"), py::arg("skip") = 0,
        py::arg("lag") = 0, py::arg("precision") = "fast",
        "Rows of `segment_angle_grams` and `segment_cross_products` of many steps, the first axis of the arrays, in one "
        "pass: shapes (steps, parts, 15) and (steps, lag, parts, 4, 3). The first `skip` steps have lags only.");
}

}  // namespace steepest::python
