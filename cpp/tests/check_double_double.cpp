// Double-double arithmetic against exact sums of the products that define each result.
#include <cmath>
#include <random>

#include "check.hpp"
#include "steepest/double_double.hpp"
#include "steepest/exact_sum.hpp"

using steepest::DoubleDouble;
using steepest::ExactSum;

namespace {

constexpr double u2 = 1.2325951644078310e-32;  // 2^-106

void add_to(ExactSum& sum, const DoubleDouble& a, double sign) {
    sum.add(sign * a.hi);
    sum.add(sign * a.lo);
}

void add_product_to(ExactSum& sum, const DoubleDouble& a, const DoubleDouble& b, double sign) {
    for (const double x : {a.hi, a.lo})
        for (const double y : {b.hi, b.lo}) sum.add_product(sign * x, y);
}

double size(const ExactSum& sum) { return std::fabs(sum.value().hi); }
bool normal(const DoubleDouble& a) { return a.hi + a.lo == a.hi; }

}  // namespace

int main() {
    std::mt19937_64 random(4);
    std::uniform_real_distribution<double> uniform(-1.0, 1.0);
    const auto number = [&] {
        const double hi = std::ldexp(uniform(random), static_cast<int>(random() % 40) - 20);
        return steepest::two_sum(hi, hi * std::ldexp(uniform(random), -53));
    };
    for (int trial = 0; trial < 200000; ++trial) {
        const DoubleDouble a = number(), b = number();

        const DoubleDouble exact = steepest::two_sum(a.hi, b.hi), product = steepest::two_product(a.hi, b.hi);
        ExactSum none;
        none.add(a.hi);
        none.add(b.hi);
        add_to(none, exact, -1.0);
        none.add_product(a.hi, b.hi);
        add_to(none, product, -1.0);
        CHECK(size(none) == 0.0);

        const DoubleDouble sum = a + b, difference = a - b, times = a * b, quotient = a / b;
        CHECK(normal(sum) && normal(difference) && normal(times) && normal(quotient));
        ExactSum error;
        add_to(error, a, 1.0);
        add_to(error, b, 1.0);
        add_to(error, sum, -1.0);
        CHECK(size(error) <= 3.1 * u2 * std::fabs(sum.hi));
        error = ExactSum();
        add_to(error, a, 1.0);
        add_to(error, b, -1.0);
        add_to(error, difference, -1.0);
        CHECK(size(error) <= 3.1 * u2 * std::fabs(difference.hi));
        error = ExactSum();
        add_product_to(error, a, b, 1.0);
        add_to(error, times, -1.0);
        CHECK(size(error) <= 7 * u2 * std::fabs(times.hi));
        error = ExactSum();
        add_product_to(error, quotient, b, 1.0);
        add_to(error, a, -1.0);
        CHECK(size(error) <= 16 * u2 * std::fabs(a.hi));
        const DoubleDouble root = sqrt(abs(a));
        error = ExactSum();
        add_product_to(error, root, root, 1.0);
        add_to(error, abs(a), -1.0);
        CHECK(size(error) <= 16 * u2 * std::fabs(a.hi));

        CHECK((a < b) == (difference.hi < 0.0) && (a == a) && !(a != a) && (a <= b) == !(b < a));
    }
    CHECK(sqrt(DoubleDouble(0.0)).hi == 0.0);
    CHECK(isnan(sqrt(DoubleDouble(-1.0))));
    CHECK(!isfinite(DoubleDouble(1.0) / DoubleDouble(0.0)));
}
