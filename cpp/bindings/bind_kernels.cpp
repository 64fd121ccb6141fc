// The kernels that write long vectors. Every function has one shape: references to the arrays of the arguments, views of them,
// checks, GIL released around one call of the core.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "numpy_bridge.hpp"
#include "steepest/assemble.hpp"
#include "steepest/elements.hpp"
#include "steepest/project.hpp"

namespace steepest::python {

namespace {

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
            without_gil(size_of(in), [&] { steepest::apply(operator_, in, in, target); });
        } else {
            const std::vector<Vector> base = to_vectors(sources, columns);
            without_gil(size_of(in), [&] { steepest::apply(operator_, in, base, target); });
        }
    }

    void assemble(const py::array& out) const {
        const Arrays outputs = to_arrays(out);
        const Vector target = to_vector(outputs, Access::write);
        require_no_overlap(outputs, {}, addresses(arrays_));
        without_gil(outputs[0].size(), [&] { steepest::assemble(operator_, target.segments.at(0)); });
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
        without_gil(size_of(in), [&] { transpose ? basis_.apply_transpose(in, target) : basis_.apply(in, target); });
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
    module.def(
        "first_not_positive",
        [](const py::object& d) {
            const Arrays arrays = to_arrays(d);
            const Vector view = to_vector(arrays);
            return without_gil(view.size(), [&] { return first_not_positive(view); });
        },
        py::arg("d"), "Flat index of the first element that is not positive and finite, or -1.");

    module.def(
        "spacing_squares",
        [](const py::object& x) {
            const Arrays arrays = to_arrays(x);
            const Vector view = to_vector(arrays);
            return without_gil(view.size(), [&] { return spacing_squares(view); });
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
            without_gil(size_of(in), [&] { project(on, onto ? Projection::onto : Projection::off, in, target); });
        },
        py::arg("vectors"), py::arg("x"), py::arg("out"), py::arg("onto") = true, py::arg("columns") = false,
        "Projection of x onto (or off) the span of the vectors.");

    py::class_<Complement>(module, "Complement", "An orthonormal basis of g-perp as a Householder reflector.")
        .def(py::init<const py::array&>(), py::arg("g"))
        .def("apply", &Complement::apply, py::arg("z"), py::arg("out"), py::arg("columns") = false,
             py::arg("transpose") = false);
}

}  // namespace steepest::python
