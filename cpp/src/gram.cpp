#include "steepest/gram.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "gram_sums.hpp"
#include "steepest/elements.hpp"

namespace steepest {

namespace {

constexpr double unit_roundoff = 1.1102230246251565e-16;  // u = 2^-53

// Fast pass. A product (1 rounding, or fused), at most chain_steps additions in a lane, then one for each fold of the
// at most block_size/(n_lanes*chain_steps) = 16 chains, log2(n_lanes) between lanes, and an exact sum over blocks. In
// sum: |error| <= gamma_m * sum |x_i y_i| <= gamma_m |x||y|, m = 1 + 32 + 16 + 4, plus one rounding of the result;
// computed norms stand in for |x|, |y|, which 60 more than covers (Higham 2002, section 4.2).
constexpr double fast_bound = 60 * unit_roundoff;

// Compensated pass. Products and additions to hi are error-free, and their errors are summed in lo. In a chain of m
// products with the sum S of |x_i y_i|, lo stays below m u S, so its m - 1 additions round by at most m(m-1)/2 u^2 S, and
// adding the error of a product to that of an addition by (m+1) u^2 S: 28 u^2 for m = 8 exact products, 22 u^2 for m = 6
// others. Chains are added up in cascades, where only the third term rounds: at most 2^15 times in a run of
// blocks, each below u |mid|, while |mid| is below 2^15 u times its sum of |x_i y_i|: 2^-114 |x||y|. The sum over lanes and
// runs is exact, and its rounding to hi + lo costs 2^-105 of the result.
constexpr double cascaded_bound = 30 * unit_roundoff * unit_roundoff;
constexpr double rounding_bound = 2.465190328815662e-32;   // 2^-105
constexpr double least_normal_bound = 1.6033346880071782e-291;  // 2^-966: below it, lo may underflow

// The same with products x y d or x y / d in double-double: each is right to 16 u^2.
constexpr double weighted_bound = 16 * unit_roundoff * unit_roundoff;

// Within these limits no square of an inner product overflows, and underflow costs less than 2^-400 of a sum.
constexpr double least_square = 5.527147875260445e-76;     // 2^-250
constexpr double greatest_square = 1.8092513943330656e75;  // 2^250

void set_entry(Gram& gram, int i, int j, DoubleDouble value, double bound) {
    for (const int at : {i * gram.k + j, j * gram.k + i}) {
        gram.hi[at] = value.hi;
        gram.lo[at] = value.lo;
        gram.bound[at] = bound;
    }
}

using Exponents = ShortVector<int, 2>;

Gram not_finite(int k, const Exponents& exponents, Precision precision) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const ShortVector<double, 4> nans(static_cast<std::size_t>(k) * k, nan);
    return {k, nans, nans, nans, exponents, nan, nan, false, precision};
}

// Entries with their bounds, from the sums over all pairs of vectors of n elements.
Gram assemble(const Sums& sums, double n, const Exponents& exponents, Precision precision) {
    const int k = static_cast<int>(exponents.size());
    if (!sums.finite) return not_finite(k, exponents, precision);
    const ShortVector<double, 4> zeros(static_cast<std::size_t>(k) * k);
    Gram result{k, zeros, zeros, zeros, exponents, sums.squared_products, 0.0, true, precision};
    for (int i = 0, pair = 0; i < k; ++i)
        for (int j = i; j < k; ++j, ++pair) set_entry(result, i, j, sums.single.empty() ? sums.pairs[pair].value() : DoubleDouble(sums.single[pair]), 0.0);
    for (int i = 0; i < k; ++i)
        for (int j = i; j < k; ++j) {
            const double norms =
                std::sqrt(result.hi[i * k + i] * (1 + fast_bound)) * std::sqrt(result.hi[j * k + j] * (1 + fast_bound));
            const double value = std::fabs(result.hi[i * k + j]);
            double bound = value * rounding_bound;
            if (precision == Precision::fast) bound = fast_bound * norms;
            if (precision == Precision::compensated) bound += cascaded_bound * norms;
            // Products below the least normal number lose up to 2^-1074 each; nothing else underflows.
            if (precision != Precision::exact && norms > 0.0) bound += n * std::ldexp(1.0, -1073);
            set_entry(result, i, j, result.entry(i, j), bound);
        }
    return result;
}

Gram assemble(const Sums& sums, const std::vector<Scaled>& vectors, Precision precision) {
    Exponents exponents;
    for (const Scaled& scaled : vectors) exponents.push_back(scaled.exponent);
    return assemble(sums, static_cast<double>(vectors[0].vector->size()), exponents, precision);
}

bool within_range(double square) { return square >= least_square && square <= greatest_square; }

// The power of two next above the largest element, but not below the least normal one; 0 for a vector of zeros.
int exponent_of(double largest) {
    int exponent = 0;
    if (largest > 0.0) (void)std::frexp(largest, &exponent);
    return std::max(exponent, -1022);
}

// Exact sums cover the whole range of double products, so the numbers are taken as they are and scaled afterwards.
Gram exact_gram(const std::vector<Scaled>& vectors) {
    const int k = static_cast<int>(vectors.size());
    const Sums sums = careful_sums(vectors, all_pairs(k), Precision::exact);
    Gram result = assemble(sums, vectors, Precision::exact);
    if (!sums.finite) return result;
    for (int i = 0, pair = 0; i < k; pair += k - i, ++i) {
        int exponent;
        (void)sums.pairs[pair].rounded(exponent);
        result.exponents[i] = exponent / 2;
    }
    for (int i = 0, pair = 0; i < k; ++i)
        for (int j = i; j < k; ++j, ++pair) {
            int exponent;
            const DoubleDouble mantissa = sums.pairs[pair].rounded(exponent);
            DoubleDouble value = ldexp(mantissa, exponent - result.exponents[i] - result.exponents[j]);
            // An inner product below the least positive double keeps its sign; that number stands for it without a
            // bound. Above it, underflow of hi or lo costs at most the least positive double.
            const double least = std::numeric_limits<double>::denorm_min(), size = std::fabs(value.hi);
            if (value.hi == 0.0 && mantissa.hi != 0.0) value = std::copysign(least, mantissa.hi);
            double bound = size * rounding_bound;
            if (size > least && size < least_normal_bound) bound += least;
            set_entry(result, i, j, value, bound);
        }
    return result;
}

Gram scaled_gram(const std::vector<Scaled>& vectors, Precision precision) {
    if (precision == Precision::fast) {
        const BlockSums blocks = fast_block_sums(vectors);
        return assemble(fast_sums(blocks.values.data(), blocks.pairs, 0, blocks.partition.size()), vectors, precision);
    }
    const bool unscaled = std::all_of(vectors.begin(), vectors.end(), [](const Scaled& one) { return one.exponent == 0; });
    if (vectors.size() == 2 && unscaled) {
        const RunSums found = cascaded_runs({vectors[0].vector, vectors[1].vector});
        const Sums sums = cascaded_sums(found.cascades.data(), found.plain_sums.data(), 0, found.runs.size());
        return assemble(sums, vectors, precision);
    }
    return assemble(careful_sums(vectors, all_pairs(static_cast<int>(vectors.size())), precision), vectors, precision);
}

// Whether no square of an inner product over- or underflows in a way that matters.
bool in_range(const Gram& gram) {
    bool found = gram.finite;
    for (int i = 0; i < gram.k && found; ++i) found = within_range(gram.hi[i * gram.k + i]);
    return found;
}

// Whether the Gram matrix of a pair settles the sign of y.g, and sine and cosine to the accuracy `tolerance`, or the sine to
// a tenth of what rounding of g by `rounding` (a norm, squared) does to the angle.
bool settles_angle(const Gram& gram, const Accuracy& accuracy) {
    const double tolerance = accuracy.tolerance;
    const double yy = gram.hi[0], yg = std::fabs(gram.hi[1]), gg = gram.hi[3];
    // cos = yg/sqrt(yy gg), sin^2 = 1 - cos^2: their relative errors from the bounds of the three numbers.
    const double norms = std::sqrt(yy) * std::sqrt(gg), cosine = std::min(1.0, yg / norms);
    const double relative = 0.5 * (gram.bound[0] / yy + gram.bound[3] / gg);
    const double error = cosine * relative + gram.bound[1] / norms;
    const double sine_squared = 1.0 - cosine * cosine;
    if (!(yg > gram.bound[1])) return false;
    // Exact sums would not sharpen the sine, for which hi + lo of a compensated pass is as good; only a cosine with fewer
    // digits than a double has.
    if (gram.precision == Precision::compensated) return gram.bound[1] <= std::max(tolerance, 4 * unit_roundoff) * yg;
    if (!(error <= tolerance * cosine)) return false;
    if (cosine * error <= tolerance * sine_squared) return true;
    const double floor_squared = std::ldexp(accuracy.rounding_squared, -2 * gram.exponents[1]) / gg;
    return 2.0 * cosine * error <= 0.01 * floor_squared;
}

bool has_no_angle(const Gram& gram) { return !gram.finite || gram.hi[0] == 0.0 || gram.hi[3] == 0.0; }

double sign_flip_variance(const Gram& gram) { return gram.squared_products / gram.hi[0] / gram.hi[3]; }

}  // namespace

Gram gram(const std::vector<const Vector*>& vectors, Precision precision) {
    require_same_layout(vectors);
    std::vector<Scaled> scaled;
    scaled.reserve(vectors.size());
    for (const Vector* vector : vectors) scaled.push_back({vector, 0});
    if (precision == Precision::exact) return exact_gram(scaled);

    const Gram plain = scaled_gram(scaled, precision);
    if (in_range(plain)) return plain;

    for (Scaled& one : scaled) {
        const double largest = max_abs(*one.vector);
        if (std::isnan(largest)) return not_finite(static_cast<int>(vectors.size()), Exponents(vectors.size()), precision);
        one.exponent = exponent_of(largest);
    }
    return scaled_gram(scaled, precision);
}

Gram weighted_gram(const Vector& y, const Vector& g, const Vector& d, Precision precision) {
    require_same_layout({&y, &g, &d});
    const Gram plain = gram({&y, &g}, precision == Precision::exact ? precision : Precision::fast);
    if (!plain.finite) return plain;
    const double largest[3] = {max_abs(y), max_abs(g), max_abs(d)};
    const index_t wrong = first_not_positive(d);
    if (wrong >= 0)
        throw std::invalid_argument("expected a positive, finite diagonal base, got another value at element " +
                                    std::to_string(wrong));
    // Dividing d by 2^(2 shift) moves y^T D^-1 y and g^T D g by opposite powers, and its square root stays exact.
    const int shift = exponent_of(largest[2]) / 2;
    const std::vector<Scaled> scaled = {{&y, exponent_of(largest[0])}, {&g, exponent_of(largest[1])}, {&d, 2 * shift}};
    const Sums sums = careful_sums(
        scaled, {{0, 0, Weight::divide}, {0, 1, Weight::none}, {1, 1, Weight::multiply}}, Precision::compensated);
    if (!sums.finite)
        throw std::invalid_argument("inner products weighted by the diagonal base leave the range of float64");
    Gram result = assemble(sums, {scaled[0], scaled[1]}, Precision::compensated);
    result.exponents = {scaled[0].exponent - shift, scaled[1].exponent + shift};
    set_entry(result, 0, 0, result.entry(0, 0), result.hi[0] * weighted_bound);
    set_entry(result, 1, 1, result.entry(1, 1), result.hi[3] * weighted_bound);

    // y.g carries no weight, so its bound comes from the plain norms.
    const int rescale = plain.exponents[0] + plain.exponents[1] - scaled[0].exponent - scaled[1].exponent;
    if (precision == Precision::exact) {
        set_entry(result, 0, 1, ldexp(plain.entry(0, 1), rescale), std::ldexp(plain.bound[1], rescale));
        result.precision = precision;
    } else {
        const double norms = std::ldexp(std::sqrt(plain.hi[0]) * std::sqrt(plain.hi[3]), rescale);
        set_entry(result, 0, 1, result.entry(0, 1),
                  2 * cascaded_bound * norms + std::fabs(result.hi[1]) * rounding_bound);
        result.squared_products = std::ldexp(plain.squared_products, 2 * rescale);
    }
    return result;
}

namespace {

// The Gram matrix of a first pass, or one of the more exact passes that settles the angle, or the most exact.
Gram settled(const Vector& y, const Vector& g, const Vector* base, Gram found, const Accuracy& accuracy) {
    double sign_flips = 0.0;
    for (;;) {
        if (has_no_angle(found)) return found;
        if (found.squared_products > 0.0) sign_flips = sign_flip_variance(found);
        found.sign_flip_variance = sign_flips;
        if (settles_angle(found, accuracy) || found.precision == Precision::exact) return found;
        const Precision next = found.precision == Precision::fast ? Precision::compensated : Precision::exact;
        found = base == nullptr ? gram({&y, &g}, next) : weighted_gram(y, g, *base, next);
    }
}

}  // namespace

Gram angle_gram(const Vector& y, const Vector& g, const Vector* base, const Accuracy& accuracy) {
    Gram first = base == nullptr ? gram({&y, &g}, Precision::fast) : weighted_gram(y, g, *base, Precision::compensated);
    return settled(y, g, base, std::move(first), accuracy);
}

std::optional<Gram> settled_pair(const Sums& sums, Precision precision, const Vector& y, const Vector* g,
                                 const Accuracy& accuracy) {
    Gram first = assemble(sums, static_cast<double>(y.size()), {0, 0}, precision);
    const bool usable = in_range(first);
    if (g == nullptr) {
        if (!usable || !settles_angle(first, accuracy)) return std::nullopt;
        g = &y;  // not read
    }
    if (!usable) first = gram({&y, g}, precision);
    return settled(y, *g, nullptr, std::move(first), accuracy);
}

CrossProducts cross_products(const Cascade* cascades, const double* squares, index_t begin, index_t end, index_t size) {
    CrossProducts found;
    ExactSum sums[4];
    double norms[4] = {};
    found.in_range = true;
    for (index_t run = begin; run < end; ++run)
        for (int i = 0; i < 4; ++i) {
            if (!add_cascade(cascades[run * 4 + i], sums[i])) found.in_range = false;
            norms[i] += squares[run * 4 + i];
        }
    for (const double square : norms) found.in_range = found.in_range && within_range(square);
    for (int p = 0; p < 4 && found.in_range; ++p) {
        found.value[p] = sums[p].value();
        // Sums of up to 2^17 rounded squares in a row: 2^-30 more than covers their errors.
        const double product = std::sqrt(norms[p / 2]) * std::sqrt(norms[2 + p % 2]) * (1.0 + std::ldexp(1.0, -30));
        found.bound[p] = cascaded_bound * product + rounding_bound * std::fabs(found.value[p].hi) +
                         static_cast<double>(size) * std::ldexp(1.0, -1073);
    }
    return found;
}

std::vector<Gram> segment_angle_grams(const Vector& y, const Vector& g, const std::vector<Accuracy>& accuracies,
                                      Precision precision) {
    require_same_layout({&y, &g});
    const std::size_t n_segments = y.segments.size();
    if (accuracies.size() != n_segments + 1)
        throw std::invalid_argument("expected " + std::to_string(n_segments + 1) + " tolerances, one for the whole and " +
                                    "one for each segment, got " + std::to_string(accuracies.size()));
    if (precision == Precision::exact) throw std::invalid_argument("expected a fast or a compensated first pass");
    std::vector<Gram> found;
    // Part 0 is the whole vector. What the common pass does not settle is read again by itself.
    const auto add_all = [&](const Partition& parts, const auto& sums_of) {
        found.push_back(*settled_pair(sums_of(0, parts.size()), precision, y, &g, accuracies[0]));
        for (std::size_t s = 0; s < n_segments; ++s) {
            const Vector y_part{{y.segments[s]}}, g_part{{g.segments[s]}};
            found.push_back(*settled_pair(sums_of(parts.first_block(s), parts.first_block(s + 1)), precision, y_part,
                                          &g_part, accuracies[s + 1]));
        }
    };
    if (precision == Precision::fast) {
        const BlockSums blocks = fast_block_sums({{&y, 0}, {&g, 0}});
        add_all(blocks.partition, [&](index_t begin, index_t end) {
            return fast_sums(blocks.values.data(), blocks.pairs, begin, end);
        });
    } else {
        const RunSums runs = cascaded_runs({&y, &g});
        add_all(runs.runs, [&](index_t begin, index_t end) {
            return cascaded_sums(runs.cascades.data(), runs.plain_sums.data(), begin, end);
        });
    }
    return found;
}

std::vector<CrossProducts> segment_cross_products(const Vector& y, const Vector& g, const Vector& y0, const Vector& g0) {
    require_same_layout({&y, &g, &y0, &g0});
    const RunSums found = cascaded_runs({&y, &g, &y0, &g0});
    const auto products = [&](index_t begin, index_t end, index_t size) {
        return cross_products(found.cascades.data(), found.plain_sums.data(), begin, end, size);
    };
    std::vector<CrossProducts> all = {products(0, found.runs.size(), y.size())};
    for (std::size_t s = 0; s < y.segments.size(); ++s)
        all.push_back(products(found.runs.first_block(s), found.runs.first_block(s + 1), y.segments[s].size()));
    return all;
}

}  // namespace steepest
