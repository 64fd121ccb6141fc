#include "steepest/exact_sum.hpp"

#include <cmath>

namespace steepest {

namespace {

// |x| = magnitude * 2^exponent exactly, with an integer magnitude below 2^53.
std::uint64_t decompose(double x, int& exponent) {
    const double fraction = std::frexp(std::fabs(x), &exponent);
    exponent -= 53;
    return static_cast<std::uint64_t>(std::ldexp(fraction, 53));
}

constexpr std::uint64_t low_word(std::uint64_t x) { return x & 0xffffffffu; }

}  // namespace

// Adds +-magnitude * 2^exponent: both halves of the magnitude, shifted to the limb grid, spread over two limbs each.
void ExactSum::add_bits(std::uint64_t magnitude, int exponent, bool negative) {
    const int position = exponent - lowest_bit, limb = position / 32, shift = position % 32;
    const std::uint64_t low = low_word(magnitude) << shift, high = (magnitude >> 32) << shift;
    const std::int64_t digits[3] = {static_cast<std::int64_t>(low_word(low)),
                                    static_cast<std::int64_t>((low >> 32) + low_word(high)),
                                    static_cast<std::int64_t>(high >> 32)};
    for (int i = 0; i < 3; ++i) limbs_[limb + i] += negative ? -digits[i] : digits[i];
    if (++additions_ == 1 << 28) carry();
}

void ExactSum::add(double x) {
    if (x == 0.0) return;
    int exponent;
    const std::uint64_t magnitude = decompose(x, exponent);
    add_bits(magnitude, exponent, x < 0);
}

void ExactSum::add_product(double x, double y) {
    if (x == 0.0 || y == 0.0) return;
    int ex, ey;
    const std::uint64_t mx = decompose(x, ex), my = decompose(y, ey);
    const bool negative = (x < 0) != (y < 0);
    // 53 x 53 bits from halves of 27 and 26 bits
    const std::uint64_t x1 = mx >> 26, x0 = mx & 0x3ffffffu, y1 = my >> 26, y0 = my & 0x3ffffffu;
    add_bits(x0 * y0, ex + ey, negative);
    add_bits(x0 * y1 + x1 * y0, ex + ey + 26, negative);
    add_bits(x1 * y1, ex + ey + 52, negative);
}

void ExactSum::add(const ExactSum& other) {
    ExactSum carried = other;
    carried.carry();
    carry();
    for (int i = 0; i < n_limbs; ++i) limbs_[i] += carried.limbs_[i];
    additions_ = 2;
}

// Brings every limb but the last into [0, 2^32).
void ExactSum::carry() {
    for (int i = 0; i + 1 < n_limbs; ++i) {
        const std::int64_t over = limbs_[i] >> 32;  // floor: the sign lives in the last limb
        limbs_[i] -= over * (std::int64_t{1} << 32);
        limbs_[i + 1] += over;
    }
    additions_ = 0;
}

DoubleDouble ExactSum::rounded(int& exponent) const {
    ExactSum sum = *this;
    sum.carry();
    const bool negative = sum.limbs_[n_limbs - 1] < 0;
    if (negative) {
        for (std::int64_t& limb : sum.limbs_) limb = -limb;
        sum.carry();
    }
    int top = n_limbs - 1;
    while (top >= 0 && sum.limbs_[top] == 0) --top;
    exponent = 0;
    if (top < 0) return 0.0;
    // Five limbs hold at least 129 significant bits; each is exact in double, so the sum is exact to 2^-106 in hi + lo.
    DoubleDouble result = 0.0;
    for (int i = top; i >= 0 && i > top - 5; --i)
        result += DoubleDouble(std::ldexp(static_cast<double>(sum.limbs_[i]), 32 * (i - top)));
    int shift;
    (void)std::frexp(result.hi, &shift);
    exponent = lowest_bit + 32 * top + shift;
    result = ldexp(result, -shift);
    return negative ? -result : result;
}

DoubleDouble ExactSum::value() const {
    int exponent;
    const DoubleDouble mantissa = rounded(exponent);
    return ldexp(mantissa, exponent);
}

}  // namespace steepest
