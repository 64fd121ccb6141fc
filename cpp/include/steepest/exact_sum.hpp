// Exact sums: a fixed-point number wide enough for any sum of products of doubles (Kulisch's long accumulator).
#pragma once

#include <array>
#include <cstdint>

#include "steepest/double_double.hpp"

namespace steepest {

class ExactSum {
public:
    ExactSum() {}  // NOLINT: limbs_ stays as it is

    // Adds a finite number, or a product of two finite numbers, without error.
    void add(double x);
    void add_product(double x, double y);
    void add(const ExactSum& other);

    // The sum rounded to hi + lo (relative error at most 2^-105), as a double-double times 2^exponent with
    // 0.5 <= |hi| <= 1, so that nothing over- or underflows; exponent 0 for a sum of exactly zero.
    DoubleDouble rounded(int& exponent) const;
    // The sum as hi + lo; may over- or underflow as any double does.
    DoubleDouble value() const;

private:
    // Digits of 32 bits in 64-bit signed limbs, so that many additions need no carry. Limb 0 has weight 2^lowest_bit.
    // The least factor, 2^-1074, is taken apart as 2^52 * 2^-1126, so digits of products begin at 2^-2252.
    static constexpr int lowest_bit = -2272;
    static constexpr int n_limbs = 143;  // up to 2^2304: greatest product 2^2048, 2^63 of them
    static constexpr int most_additions = 1 << 28;
    void add_bits(std::uint64_t magnitude, int exponent, bool negative);
    void use(int begin, int end);
    void carry();

    // Only limbs in [begin_, end_) are in use, and have a value: sums of numbers of like size need a few.
    std::array<std::int64_t, n_limbs> limbs_;
    int begin_ = 0, end_ = 0;
    int additions_ = 0;              // since the last carry
};

}  // namespace steepest
