// The kernels on long vectors. Every function has one shape: views of the arguments, checks, GIL released around one
// call of the core. Views hold raw pointers; the arguments, alive in the caller, keep the memory.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "numpy_bridge.hpp"
#include "steepest/assemble.hpp"
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

// An operator with the arrays that its views point into.
class Operator {
public:
    Operator(py::list columns, const std::vector<int>& exponents, const std::vector<bool>& through_base,
             const py::array_t<double>& core, int exponent, double scalar, const py::object& diagonal, bool inverse)
        : columns_(std::move(columns)), diagonal_array_(diagonal) {
        if (exponents.size() != columns_.size() || through_base.size() != columns_.size())
            throw py::value_error("expected one exponent and one flag for each column");
        for (const py::handle& column : columns_) vectors_.push_back(to_vector(column));
        for (std::size_t j = 0; j < vectors_.size(); ++j)
            operator_.columns.push_back({&vectors_[j], exponents[j], through_base[j]});
        operator_.core = columns_.size() == 0 ? SmallMatrix(0, 0) : to_small_matrix(core);
        operator_.exponent = exponent;
        operator_.base.scalar = scalar;
        if (!diagonal.is_none()) {
            diagonal_ = to_vector(diagonal);
            operator_.base.kind = inverse ? BaseKind::inverse_diagonal : BaseKind::diagonal;
            operator_.base.diagonal = &diagonal_;
        }
        std::vector<const Vector*> all;
        for (const Vector& vector : vectors_) all.push_back(&vector);
        if (!diagonal.is_none()) all.push_back(&diagonal_);
        if (!all.empty()) require_same_layout(all);
    }
    Operator(const Operator&) = delete;  // operator_ points into this object
    Operator& operator=(const Operator&) = delete;

    void apply(const py::object& x, const py::object& out, const py::object& source, bool columns) const {
        const py::object& from = source.is_none() ? x : source;
        const std::vector<Vector> in = to_vectors(x, columns), base = to_vectors(from, columns),
                                  target = to_vectors(out, columns, Access::write);
        require_no_overlap(out, x, true);
        require_no_overlap(out, from, true);
        for (const py::handle& column : columns_) require_no_overlap(out, column, false);
        if (!diagonal_array_.is_none()) require_no_overlap(out, diagonal_array_, false);
        without_gil([&] { steepest::apply(operator_, in, base, target); });
    }

    void assemble(const py::object& out) const {
        const Vector target = to_vector(out, Access::write);
        for (const py::handle& column : columns_) require_no_overlap(out, column, false);
        if (!diagonal_array_.is_none()) require_no_overlap(out, diagonal_array_, false);
        without_gil([&] { steepest::assemble(operator_, target.segments.at(0)); });
    }

private:
    py::list columns_;
    py::object diagonal_array_;
    std::vector<Vector> vectors_;
    Vector diagonal_;
    LowRankOperator operator_;
};

// A Householder basis with the array that its views point into.
class Complement {
public:
    explicit Complement(py::array g) : array_(std::move(g)), basis_(to_vector(array_)) {}

    void apply(const py::object& z, const py::object& out, bool columns, bool transpose) const {
        const std::vector<Vector> in = to_vectors(z, columns), target = to_vectors(out, columns, Access::write);
        require_no_overlap(out, z, false);
        require_no_overlap(out, array_, false);
        const index_t n = array_.size(), n_in = transpose ? n : n - 1, n_out = transpose ? n - 1 : n;
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

    py::array array_;
    ComplementBasis basis_;
};

std::vector<Vector> to_each_vector(const py::list& vectors) {
    std::vector<Vector> views;
    for (const py::handle& vector : vectors) views.push_back(to_vector(vector));
    return views;
}

std::vector<const Vector*> pointers(const std::vector<Vector>& vectors) {
    std::vector<const Vector*> found;
    for (const Vector& vector : vectors) found.push_back(&vector);
    return found;
}

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
        // (yy, yg, gg) and their bounds, without an array for each
        .def_property_readonly("pair",
                               [](const Gram& gram) {
                                   if (gram.k != 2) throw py::value_error("expected the Gram matrix of two vectors");
                                   return py::make_tuple(gram.hi[0], gram.hi[1], gram.hi[3], gram.bound[0],
                                                         gram.bound[1], gram.bound[3]);
                               })
        .def("angle", [](const Gram& gram) {
            if (gram.k != 2) throw py::value_error("expected the Gram matrix of two vectors");
            const Angle found = angle(gram.entry(0, 0), gram.entry(0, 1), gram.entry(1, 1));
            return py::make_tuple(found.cosine, found.sine);
        });

    module.def(
        "gram",
        [](const py::list& vectors, const std::string& precision) {
            const std::vector<Vector> views = to_each_vector(vectors);
            const Precision wanted = to_precision(precision);
            return without_gil([&] { return gram(pointers(views), wanted); });
        },
        py::arg("vectors"), py::arg("precision") = "fast",
        "All inner products of long vectors in one pass, with error bounds (see gram.hpp).");
    module.def(
        "angle_gram",
        [](const py::object& y, const py::object& g, const py::object& base, double tolerance) {
            const Vector a = to_vector(y), b = to_vector(g), d = base.is_none() ? Vector{} : to_vector(base);
            const Vector* weights = base.is_none() ? nullptr : &d;
            return without_gil([&] { return angle_gram(a, b, weights, tolerance); });
        },
        py::arg("y"), py::arg("g"), py::arg("base") = py::none(), py::arg("tolerance") = 1e-13,
        "Gram matrix of a pair at the first precision that settles sign and angle.");
    module.def(
        "first_not_positive",
        [](const py::object& d) {
            const Vector view = to_vector(d);
            return without_gil([&] { return first_not_positive(view); });
        },
        py::arg("d"), "Flat index of the first element that is not positive and finite, or -1.");

    py::class_<Operator>(module, "Operator",
                         "2^exponent (base + W K W^T) on long vectors; holds the arrays of W and of the base.")
        .def(py::init<py::list, const std::vector<int>&, const std::vector<bool>&, const py::array_t<double>&, int,
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
            const std::vector<Vector> views = to_each_vector(vectors), in = to_vectors(x, columns),
                                      target = to_vectors(out, columns, Access::write);
            require_no_overlap(out, x, true);
            for (const py::handle& vector : vectors) require_no_overlap(out, vector, false);
            std::vector<Column> on;
            for (const Vector& view : views) on.push_back({&view, 0, false});
            without_gil([&] { project(on, onto ? Projection::onto : Projection::off, in, target); });
        },
        py::arg("vectors"), py::arg("x"), py::arg("out"), py::arg("onto") = true, py::arg("columns") = false,
        "Projection of x onto (or off) the span of the vectors.");

    py::class_<Complement>(module, "Complement", "An orthonormal basis of g-perp as a Householder reflector.")
        .def(py::init<py::array>(), py::arg("g"))
        .def("apply", &Complement::apply, py::arg("z"), py::arg("out"), py::arg("columns") = false,
             py::arg("transpose") = false);
}

}  // namespace steepest::python
