// The long accumulator at the ends of its range, and against sums that integers give exactly.
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "check.hpp"
#include "steepest/exact_sum.hpp"

using steepest::DoubleDouble;
using steepest::ExactSum;

namespace {

constexpr double least = 4.9406564584124654e-324;

bool equals(const ExactSum& sum, double mantissa, int power) {
    int exponent;
    const DoubleDouble found = sum.rounded(exponent);
    int shift;
    const double wanted = std::frexp(mantissa, &shift);
    return found.hi == wanted && found.lo == 0.0 && (wanted == 0.0 || exponent == power + shift);
}

void check_ends_of_range() {
    for (const double sign : {1.0, -1.0}) {
        ExactSum sum;
        sum.add_product(sign * least, least);
        CHECK(equals(sum, sign, -2148));
        sum.add_product(sign * least, 3 * least);
        CHECK(equals(sum, 4 * sign, -2148));
        sum.add_product(-sign * DBL_MAX, DBL_MAX);
        sum.add_product(sign * DBL_MAX, DBL_MAX);
        CHECK(equals(sum, 4 * sign, -2148));
        sum.add(-sign * least);
        sum.add(sign * least);
        sum.add_product(-sign * least, 4 * least);
        CHECK(equals(sum, 0.0, 0));
    }
    ExactSum greatest;
    for (int i = 0; i < 1000; ++i) greatest.add_product(DBL_MAX, DBL_MAX);
    int exponent;
    const DoubleDouble found = greatest.rounded(exponent);
    CHECK(exponent == 2058);
    const double full = 2.0 - DBL_EPSILON;  // DBL_MAX = full * 2^1023
    CHECK(std::fabs(found.hi - 1000 * full * full / 4096) < 1e-15);
    // Every exponent of either factor, alone.
    for (int x = -1074; x < 1024; x += 7)
        for (int y = -1074; y < 1024; y += 13) {
            ExactSum one;
            one.add_product(std::ldexp(1.0, x), std::ldexp(-1.0, y));
            CHECK(equals(one, -1.0, x + y));
        }
}

// Integers below 2^53 at three places far apart, added in any order and over several accumulators.
void check_against_integers() {
    std::mt19937_64 random(2);
    for (int trial = 0; trial < 50; ++trial) {
        std::int64_t parts[3] = {0, 0, 0};
        ExactSum sums[4];
        for (int i = 0; i < 2000; ++i) {
            const int place = static_cast<int>(random() % 3);
            const auto a = static_cast<std::int64_t>(random() % (1u << 20)) - (1 << 19);
            const auto b = static_cast<std::int64_t>(random() % (1u << 20)) - (1 << 19);
            const int power = 600 * (place - 1);
            ExactSum& sum = sums[random() % 4];
            parts[place] += a * b;
            sum.add_product(std::ldexp(static_cast<double>(a), power / 2), std::ldexp(static_cast<double>(b), power / 2));
        }
        for (int i = 1; i < 4; ++i) sums[0].add(sums[i]);
        // Removing the parts one by one leaves the rest exactly.
        for (int place = 2; place >= 0; --place) {
            CHECK(equals(sums[0], static_cast<double>(parts[place]), 600 * (place - 1)) || parts[place] == 0 ||
                  place > 0);
            if (place > 0) {
                const double value = std::ldexp(static_cast<double>(parts[place]), 600 * (place - 1));
                CHECK(sums[0].value().hi == value || parts[place] == 0);
                sums[0].add(-value);
            }
        }
        sums[0].add(-std::ldexp(static_cast<double>(parts[0]), -600));
        CHECK(equals(sums[0], 0.0, 0));
    }
}

// hi + lo is the sum to 2^-105: taking it off again leaves that little.
void check_rounding() {
    std::mt19937_64 random(3);
    std::uniform_real_distribution<double> uniform(-1.0, 1.0);
    for (int trial = 0; trial < 20000; ++trial) {
        ExactSum sum;
        const int terms = 1 + static_cast<int>(random() % 6);
        for (int i = 0; i < terms; ++i)
            sum.add_product(std::ldexp(uniform(random), static_cast<int>(random() % 200)), uniform(random));
        const DoubleDouble value = sum.value();
        CHECK(std::fabs(value.lo) <= std::ldexp(std::fabs(value.hi), -52));
        sum.add(-value.hi);
        sum.add(-value.lo);
        CHECK(std::fabs(sum.value().hi) <= std::ldexp(std::fabs(value.hi), -105));
    }
}

}  // namespace

int main() {
    check_ends_of_range();
    check_against_integers();
    check_rounding();
}
