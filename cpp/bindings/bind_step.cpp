// A step from the parameters before and after it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>

#include "numpy_bridge.hpp"
#include "pair_rows.hpp"
#include "steepest/step_difference.hpp"

namespace steepest::python {

namespace {

DType to_dtype(const std::string& name) {
    if (name == "float64") return DType::float64;
    if (name == "float32") return DType::float32;
    if (name == "float16") return DType::float16;
    if (name == "bfloat16") return DType::bfloat16;
    throw py::value_error("expected float64, float32, float16 or bfloat16, got '" + name + "'");
}

// The sums of a step with the arrays of its gradient.
class Step {
public:
    Step(const py::object& y, const py::object& after, const py::object& before,
         const std::vector<std::string>& update_dtypes, bool floor_after)
        : arrays_(to_arrays(y)), y_(to_vector(arrays_)) {
        const Arrays ends = to_arrays(after), starts = to_arrays(before);
        const Vector a = to_vector(ends), b = to_vector(starts);
        std::vector<DType> types;
        for (const std::string& name : update_dtypes) types.push_back(to_dtype(name));
        sums_ = without_gil(y_.size(), [&] {
            return std::make_unique<StepSums>(y_, a, b, types, floor_after ? Floor::after : Floor::before);
        });
    }

    const std::vector<double>& spacing_squares() const { return sums_->spacing_squares(); }

    // (rows of the whole and of each segment, numbers of those that wait for the update)
    py::tuple rows(const std::vector<double>& tolerances, const std::vector<double>& rounding_squared,
                   const py::object& update) const {
        const std::vector<Accuracy> accuracies = to_accuracies(tolerances, rounding_squared);
        const Arrays updates = update.is_none() ? Arrays{} : to_arrays(update);
        const Vector g = to_vector(updates);
        auto grams = without_gil(y_.size(), [&] { return sums_->grams(y_, update.is_none() ? nullptr : &g, accuracies); });
        std::vector<Gram> found;
        std::vector<std::size_t> open;
        const double nan = std::numeric_limits<double>::quiet_NaN();
        const ShortVector<double, 4> nans(4, nan);
        for (auto& gram : grams) {
            if (!gram) open.push_back(found.size());
            found.push_back(gram ? std::move(*gram) : Gram{2, nans, nans, nans, {0, 0}, nan, nan, false});
        }
        return py::make_tuple(pair_rows(found), open);
    }

private:
    Arrays arrays_;
    Vector y_;
    std::unique_ptr<StepSums> sums_;
};

}  // namespace

void bind_step(py::module_& module) {
    py::class_<Step>(module, "StepSums")
        .def(py::init<const py::object&, const py::object&, const py::object&, const std::vector<std::string>&, bool>(),
             py::arg("y"), py::arg("after"), py::arg("before"), py::arg("update_dtypes"),
             py::arg("floor_after") = false)
        .def_property_readonly("spacing_squares", &Step::spacing_squares)
        .def("rows", &Step::rows, py::arg("tolerances"), py::arg("rounding_squared"), py::arg("update") = py::none(),
             "Rows as of segment_angle_grams(y, after - before), and the numbers of those that need the update.");
    module.def(
        "difference",
        [](const py::object& after, const py::object& before, const py::object& out) {
            const Arrays ends = to_arrays(after), starts = to_arrays(before), outputs = to_arrays(out);
            const Vector a = to_vector(ends), b = to_vector(starts), target = to_vector(outputs, Access::write);
            require_no_overlap(outputs, {&ends, &starts}, {});
            without_gil(target.size(), [&] { difference(a, b, target); });
        },
        py::arg("after"), py::arg("before"), py::arg("out"),
        "out = after - before, rounded to its types; it may be one of both.");
    module.def(
        "copy",
        [](const py::object& x, const py::object& out, bool squares) {
            const Arrays inputs = to_arrays(x), outputs = to_arrays(out);
            const Vector source = to_vector(inputs), target = to_vector(outputs, Access::write);
            return without_gil(target.size(), [&] { return copy(source, target, squares); });
        },
        py::arg("x"), py::arg("out"), py::arg("squares") = false,
        "Copies a vector to contiguous arrays; the sum of the squares of each, if asked for.");
}

}  // namespace steepest::python
