#include "steepest/exact_sum.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace steepest {

namespace {

// |x| = magnitude * 2^exponent exactly, with an integer magnitude below 2^53.
std::uint64_t decompose(double x, int& exponent) {
    std::uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const int biased = static_cast<int>(bits >> 52) & 0x7ff;
    const std::uint64_t fraction = bits & 0xfffffffffffffu;
    if (biased == 0) {  // a subnormal number, shifted up to 53 bits as the others have them
        const double scaled = std::frexp(std::fabs(x), &exponent);
        exponent -= 53;
        return static_cast<std::uint64_t>(std::ldexp(scaled, 53));
    }
    exponent = biased - 1075;
    return fraction | (std::uint64_t{1} << 52);
}

constexpr std::uint64_t low_word(std::uint64_t x) { return x & 0xffffffffu; }

}  // namespace

// Takes these limbs into use, and all between them and those that are.
void ExactSum::use(int begin, int end) {
    if (begin_ == end_) begin_ = end_ = begin;
    while (begin_ > begin) limbs_[--begin_] = 0;
    while (end_ < end) limbs_[end_++] = 0;
}

// Adds +-magnitude * 2^exponent: both halves of the magnitude, shifted to the limb grid, spread over two limbs each.
void ExactSum::add_bits(std::uint64_t magnitude, int exponent, bool negative) {
    const int position = exponent - lowest_bit, limb = position / 32, shift = position % 32;
    const std::uint64_t low = low_word(magnitude) << shift, high = (magnitude >> 32) << shift;
    const std::int64_t digits[3] = {static_cast<std::int64_t>(low_word(low)),
                                    static_cast<std::int64_t>((low >> 32) + low_word(high)),
                                    static_cast<std::int64_t>(high >> 32)};
    use(limb, limb + 3);
    for (int i = 0; i < 3; ++i) limbs_[limb + i] += negative ? -digits[i] : digits[i];
    if (++additions_ >= most_additions) carry();
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
    if (additions_ + other.additions_ >= most_additions) {
        carry();
        if (other.additions_ > 1) {
            ExactSum carried = other;
            carried.carry();
            add(carried);
            return;
        }
    }
    if (other.begin_ == other.end_) return;
    use(other.begin_, other.end_);
    for (int i = other.begin_; i < other.end_; ++i) limbs_[i] += other.limbs_[i];
    additions_ += other.additions_;
}

// Brings every limb in use but the last into [0, 2^32); the sign lives in the last one, which stays below 2^32 in size.
void ExactSum::carry() {
    if (additions_ == 0) return;
    for (int i = begin_; i + 1 < n_limbs; ++i) {
        const std::int64_t over = limbs_[i] >> 32;  // floor
        if (i + 1 >= end_ && (over == 0 || over == -1)) break;
        use(i, i + 2);
        limbs_[i] -= over * (std::int64_t{1} << 32);
        limbs_[i + 1] += over;
    }
    additions_ = 1;
}

DoubleDouble ExactSum::rounded(int& exponent) const {
    exponent = 0;
    if (additions_ == 0) return 0.0;
    ExactSum sum = *this;
    sum.carry();
    const bool negative = sum.limbs_[sum.end_ - 1] < 0;
    if (negative) {
        for (int i = sum.begin_; i < sum.end_; ++i) sum.limbs_[i] = -sum.limbs_[i];
        sum.carry();
    }
    int top = sum.end_ - 1;
    while (top >= sum.begin_ && sum.limbs_[top] == 0) --top;
    if (top < sum.begin_) return 0.0;
    // Five limbs hold at least 129 significant bits; each is exact in double, so the sum is exact to 2^-106 in hi + lo.
    DoubleDouble result = 0.0;
    for (int i = top; i >= sum.begin_ && i > top - 5; --i)
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
