// The kernels on long vectors. Every function has one shape: references to the arrays of the arguments, views of them,
// checks, GIL released around one call of the core.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <limits>

#include "numpy_bridge.hpp"
#include "steepest/assemble.hpp"
#include "steepest/elements.hpp"
#include "steepest/gram.hpp"
#include "steepest/project.hpp"

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

py::array_t<double> square(const std::vector<double>& values, int k) {
    return py::array_t<double>({k, k}, values.data());
}

// No Python object is touched while the GIL is released: all arguments are views and numbers by then.
template <class Work>
auto without_gil(Work work) {
    const py::gil_scoped_release release;
    return work();
}

std::vector<Arrays> to_each_arrays(const py::list& vectors) {
    std::vector<Arrays> arrays;
    for (const py::handle& vector : py::tuple(vectors)) arrays.push_back(to_arrays(vector));
    return arrays;
}

std::vector<Vector> to_each_vector(const std::vector<Arrays>& arrays) {
    std::vector<Vector> views;
    for (const Arrays& vector : arrays) views.push_back(to_vector(vector));
    return views;
}

template <class T>
std::vector<const T*> addresses(const std::vector<T>& values) {
    std::vector<const T*> found;
    for (const T& value : values) found.push_back(&value);
    return found;
}

// An operator with the arrays that its views point into.
class Operator {
public:
    Operator(const py::list& columns, const std::vector<int>& exponents, const std::vector<bool>& through_base,
             const py::array_t<double>& core, int exponent, double scalar, const py::object& diagonal, bool inverse) {
        if (exponents.size() != columns.size() || through_base.size() != columns.size())
            throw py::value_error("expected one exponent and one flag for each of the " +
                                  std::to_string(columns.size()) + " columns, got " +
                                  std::to_string(exponents.size()) + " and " + std::to_string(through_base.size()));
        if (!diagonal.is_none() && scalar != 1.0)
            throw py::value_error("expected a diagonal base or a scalar one, got both");
        arrays_ = to_each_arrays(columns);
        vectors_ = to_each_vector(arrays_);
        for (std::size_t j = 0; j < vectors_.size(); ++j)
            operator_.columns.push_back({&vectors_[j], exponents[j], through_base[j]});
        operator_.core = to_small_matrix(core);
        operator_.exponent = exponent;
        operator_.base.scalar = scalar;
        if (!diagonal.is_none()) {
            arrays_.push_back(to_arrays(diagonal));
            diagonal_ = to_vector(arrays_.back());
            operator_.base.kind = inverse ? BaseKind::inverse_diagonal : BaseKind::diagonal;
            operator_.base.diagonal = &diagonal_;
        }
        std::vector<const Vector*> all = addresses(vectors_);
        if (!diagonal.is_none()) all.push_back(&diagonal_);
        if (!all.empty()) require_same_layout(all);
    }
    Operator(const Operator&) = delete;  // operator_ points into this object
    Operator& operator=(const Operator&) = delete;

    void apply(const py::object& x, const py::object& out, const py::object& source, bool columns) const {
        const Arrays inputs = to_arrays(x), sources = source.is_none() ? inputs : to_arrays(source),
                     outputs = to_arrays(out);
        const std::vector<Vector> in = to_vectors(inputs, columns), target = to_vectors(outputs, columns, Access::write);
        require_no_overlap(outputs, {&inputs, &sources}, addresses(arrays_));
        if (source.is_none()) {
            without_gil([&] { steepest::apply(operator_, in, in, target); });
        } else {
            const std::vector<Vector> base = to_vectors(sources, columns);
            without_gil([&] { steepest::apply(operator_, in, base, target); });
        }
    }

    void assemble(const py::array& out) const {
        const Arrays outputs = to_arrays(out);
        const Vector target = to_vector(outputs, Access::write);
        require_no_overlap(outputs, {}, addresses(arrays_));
        without_gil([&] { steepest::assemble(operator_, target.segments.at(0)); });
    }

private:
    std::vector<Arrays> arrays_;  // of the columns, then of the diagonal
    std::vector<Vector> vectors_;
    Vector diagonal_;
    LowRankOperator operator_;
};

// A Householder basis with the array that its views point into.
class Complement {
public:
    explicit Complement(const py::array& g) : arrays_{g}, basis_(to_vector(arrays_)) {}

    void apply(const py::object& z, const py::object& out, bool columns, bool transpose) const {
        const Arrays inputs = to_arrays(z), outputs = to_arrays(out);
        const std::vector<Vector> in = to_vectors(inputs, columns), target = to_vectors(outputs, columns, Access::write);
        require_no_overlap(outputs, {}, {&inputs, &arrays_});
        const index_t n = arrays_[0].size(), n_in = transpose ? n : n - 1, n_out = transpose ? n - 1 : n;
        if (in.size() != target.size()) throw py::value_error("expected as many columns in out as in the input");
        for (const Vector& one : in) require_size(one, n_in);
        for (const Vector& one : target) require_size(one, n_out);
        without_gil([&] { transpose ? basis_.apply_transpose(in, target) : basis_.apply(in, target); });
    }

private:
    static void require_size(const Vector& vector, index_t size) {
        if (vector.size() != size)
            throw py::value_error("expected vectors of " + std::to_string(size) + " elements, got " +
                                  std::to_string(vector.size()));
    }

    Arrays arrays_;
    ComplementBasis basis_;
};

}  // namespace

void bind_kernels(py::module_& module) {
    py::class_<Gram>(module, "Gram")
        .def_property_readonly("hi", [](const Gram& gram) { return square(gram.hi, gram.k); })
        .def_property_readonly("lo", [](const Gram& gram) { return square(gram.lo, gram.k); })
        .def_property_readonly("bound", [](const Gram& gram) { return square(gram.bound, gram.k); })
        .def_readonly("exponents", &Gram::exponents)
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
            return without_gil([&] { return gram(addresses(views), wanted); });
        },
        py::arg("vectors"), py::arg("precision") = "fast",
        "All inner products of long vectors in one pass, with error bounds (see gram.hpp).");
    module.def(
        "angle_gram",
        [](const py::object& y, const py::object& g, const py::object& base, double tolerance, double rounding_squared) {
            const Arrays ys = to_arrays(y), gs = to_arrays(g), ds = base.is_none() ? Arrays{} : to_arrays(base);
            const Vector a = to_vector(ys), b = to_vector(gs), d = to_vector(ds);
            const Vector* weights = base.is_none() ? nullptr : &d;
            return without_gil([&] { return angle_gram(a, b, weights, {tolerance, rounding_squared}); });
        },
        py::arg("y"), py::arg("g"), py::arg("base") = py::none(), py::arg("tolerance") = 1e-13,
        py::arg("rounding_squared") = 0.0,
        "Gram matrix of a pair at the first precision that settles sign and angle.");
    module.def(
        "segment_angle_grams",
        [](const py::object& y, const py::object& g, const std::vector<double>& tolerances,
           const std::vector<double>& rounding_squared, const std::string& precision) {
            if (rounding_squared.size() != tolerances.size())
                throw py::value_error("expected a rounding for each of the " + std::to_string(tolerances.size()) +
                                      " tolerances, got " + std::to_string(rounding_squared.size()));
            std::vector<Accuracy> accuracies;
            for (std::size_t i = 0; i < tolerances.size(); ++i) accuracies.push_back({tolerances[i], rounding_squared[i]});
            const Precision first = to_precision(precision);
            const Arrays ys = to_arrays(y), gs = to_arrays(g);
            const Vector a = to_vector(ys), b = to_vector(gs);
            const std::vector<Gram> found = without_gil([&] { return segment_angle_grams(a, b, accuracies, first); });
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
            const std::vector<CrossProducts> found = without_gil([&] { return segment_cross_products(a, b, c, d); });
            py::array_t<double> rows({static_cast<py::ssize_t>(found.size()), py::ssize_t{4}, py::ssize_t{3}});
            auto at = rows.mutable_unchecked<3>();
            for (py::ssize_t i = 0; i < at.shape(0); ++i)
                for (py::ssize_t p = 0; p < 4; ++p) {
                    const CrossProducts& one = found[static_cast<std::size_t>(i)];
                    const double nan = std::numeric_limits<double>::quiet_NaN();
                    at(i, p, 0) = one.in_range ? one.value[p].hi : nan;
                    at(i, p, 1) = one.in_range ? one.value[p].lo : nan;
                    at(i, p, 2) = one.in_range ? one.bound[p] : nan;
                }
            return rows;
        },
        py::arg("y"), py::arg("g"), py::arg("y0"), py::arg("g0"),
        "hi, lo, bound of y.y0, y.g0, g.y0, g.g0, of the whole and of each segment, in one pass; NaN where the vectors "
        "are zero, not finite, or have to be scaled.");
    module.def(
        "first_not_positive",
        [](const py::object& d) {
            const Arrays arrays = to_arrays(d);
            const Vector view = to_vector(arrays);
            return without_gil([&] { return first_not_positive(view); });
        },
        py::arg("d"), "Flat index of the first element that is not positive and finite, or -1.");

    module.def(
        "spacing_squares",
        [](const py::object& x) {
            const Arrays arrays = to_arrays(x);
            const Vector view = to_vector(arrays);
            return without_gil([&] { return spacing_squares(view); });
        },
        py::arg("x"), "Sum of the squared distances to the next number, for each array.");

    py::class_<Operator>(module, "Operator",
                         "2^exponent (base + W K W^T) on long vectors; holds the arrays of W and of the base.")
        .def(py::init<const py::list&, const std::vector<int>&, const std::vector<bool>&, const py::array_t<double>&, int,
                      double, const py::object&, bool>(),
             py::arg("columns"), py::arg("exponents"), py::arg("through_base"), py::arg("core"),
             py::arg("exponent") = 0, py::arg("scalar") = 1.0, py::arg("diagonal") = py::none(),
             py::arg("inverse") = false)
        .def("apply", &Operator::apply, py::arg("x"), py::arg("out"), py::arg("source") = py::none(),
             py::arg("columns") = false)
        .def("assemble", &Operator::assemble, py::arg("out"));

    module.def(
        "project",
        [](const py::list& vectors, const py::object& x, const py::object& out, bool onto, bool columns) {
            const std::vector<Arrays> arrays = to_each_arrays(vectors);
            const Arrays inputs = to_arrays(x), outputs = to_arrays(out);
            const std::vector<Vector> views = to_each_vector(arrays), in = to_vectors(inputs, columns),
                                      target = to_vectors(outputs, columns, Access::write);
            require_no_overlap(outputs, {&inputs}, addresses(arrays));
            std::vector<Column> on;
            for (const Vector& view : views) on.push_back({&view, 0, false});
            without_gil([&] { project(on, onto ? Projection::onto : Projection::off, in, target); });
        },
        py::arg("vectors"), py::arg("x"), py::arg("out"), py::arg("onto") = true, py::arg("columns") = false,
        "Projection of x onto (or off) the span of the vectors.");

    py::class_<Complement>(module, "Complement", "An orthonormal basis of g-perp as a Householder reflector.")
        .def(py::init<const py::array&>(), py::arg("g"))
        .def("apply", &Complement::apply, py::arg("z"), py::arg("out"), py::arg("columns") = false,
             py::arg("transpose") = false);
}

}  // namespace steepest::python
