// float16 and bfloat16 as the hot loops read and write them: every bit pattern, and what lies between two of them.
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../src/hot_loops.hpp"
#include "check.hpp"
#include "steepest/types.hpp"

namespace {

struct Format {
    steepest::DType dtype;
    int exponent_bits, mantissa_bits;
};

// By the definition of IEEE 754: sign, biased exponent, fraction.
double decode(std::uint16_t bits, const Format& format) {
    const int largest = (1 << format.exponent_bits) - 1, bias = largest / 2;
    const int exponent = (bits >> format.mantissa_bits) & largest, fraction = bits & ((1 << format.mantissa_bits) - 1);
    const double sign = (bits >> 15) != 0 ? -1.0 : 1.0;
    if (exponent == largest) {
        if (fraction != 0) return std::numeric_limits<double>::quiet_NaN();
        return sign * std::numeric_limits<double>::infinity();
    }
    const int leading = exponent == 0 ? 0 : 1 << format.mantissa_bits;
    return sign * std::ldexp(leading + fraction, (exponent == 0 ? 1 : exponent) - bias - format.mantissa_bits);
}

void check(const Format& format) {
    const auto which = static_cast<int>(format.dtype);
    const steepest::HotLoops& loops = steepest::hot_loops();
    std::vector<std::uint16_t> every(1 << 16), back(every.size());
    for (std::size_t i = 0; i < every.size(); ++i) every[i] = static_cast<std::uint16_t>(i);
    std::vector<double> values(every.size());
    const auto n = static_cast<std::int64_t>(every.size());
    loops.widen[which](every.data(), n, values.data());
    loops.narrow[which](values.data(), n, back.data(), false);
    for (std::size_t i = 0; i < every.size(); ++i) {
        const double expected = decode(every[i], format);
        if (std::isnan(expected)) {
            CHECK(std::isnan(values[i]) && std::isnan(decode(back[i], format)));
        } else {
            CHECK(values[i] == expected && std::signbit(values[i]) == std::signbit(expected));
            CHECK(back[i] == every[i]);
        }
    }

    // Between a number and the next one away from zero; beyond the largest as if the exponents went on (then Inf).
    std::vector<double> between;
    std::vector<std::uint16_t> rounded;
    const int infinity = ((1 << format.exponent_bits) - 1) << format.mantissa_bits;
    const double beyond = std::ldexp(1.0, 1 << (format.exponent_bits - 1));
    for (int i = 0; i < infinity; ++i) {
        const double low = decode(static_cast<std::uint16_t>(i), format);
        const double high = i + 1 == infinity ? beyond : decode(static_cast<std::uint16_t>(i + 1), format);
        const double middle = low + (high - low) / 2;  // exact
        const double points[] = {std::nextafter(low, high), std::nextafter(middle, low), middle,
                                 std::nextafter(middle, high), std::nextafter(high, low)};
        const int nearest[] = {i, i, i + i % 2, i + 1, i + 1};  // a tie goes to the even one
        for (int k = 0; k < 5; ++k) {
            for (const int sign : {0, 0x8000}) {
                between.push_back(sign == 0 ? points[k] : -points[k]);
                rounded.push_back(static_cast<std::uint16_t>(nearest[k] | sign));
            }
        }
    }
    for (const double huge : {2 * beyond, 1e300, std::numeric_limits<double>::max()}) {
        between.push_back(huge);
        rounded.push_back(static_cast<std::uint16_t>(infinity));
    }
    for (const double tiny : {1e-300, std::numeric_limits<double>::denorm_min()}) {
        between.push_back(-tiny);
        rounded.push_back(0x8000);
    }
    back.assign(between.size(), 0x7fff);
    // From every first element on, so that each number comes to stand in each place of a register.
    for (std::size_t first = 0; first < 8; ++first) {
        const auto rest = static_cast<std::int64_t>(between.size() - first);
        loops.narrow[which](between.data() + first, rest, back.data() + first, false);
        for (std::size_t i = first; i < between.size(); ++i) CHECK(back[i] == rounded[i]);
    }
}

}  // namespace

int main() {
    check({steepest::DType::float16, 5, 10});
    check({steepest::DType::bfloat16, 8, 7});
    return 0;
}
