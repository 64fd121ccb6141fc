#include "steepest/gram.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "steepest/exact_sum.hpp"
#include "tiles.hpp"

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
constexpr index_t blocks_in_run = 16;
constexpr double rounding_bound = 2.465190328815662e-32;   // 2^-105
constexpr double least_normal_bound = 1.6033346880071782e-291;  // 2^-966: below it, lo may underflow

// The same with products x y d or x y / d in double-double: each is right to 16 u^2.
constexpr double weighted_bound = 16 * unit_roundoff * unit_roundoff;

// Within these limits no square of an inner product overflows, and underflow costs less than 2^-400 of a sum.
constexpr double least_square = 5.527147875260445e-76;     // 2^-250
constexpr double greatest_square = 1.8092513943330656e75;  // 2^250

// The inner products of one block in the order (0,0), (0,1), ..., (1,1), ...; exact sums over blocks are formed later.
int n_pairs(int k) { return k * (k + 1) / 2; }

struct Scaled {
    const Vector* vector;
    int exponent;  // elements are multiplied by 2^-exponent on load
};

double factor_of(const Scaled& scaled) { return std::ldexp(1.0, -scaled.exponent); }

// The typed one-pass loop needs a pair of one element type, contiguous and unscaled.
bool direct(const Scaled& x, const Scaled& y) {
    if (x.exponent != 0 || y.exponent != 0 || !x.vector->contiguous() || !y.vector->contiguous()) return false;
    for (std::size_t s = 0; s < x.vector->segments.size(); ++s)
        if (x.vector->segments[s].dtype() != y.vector->segments[s].dtype()) return false;
    return true;
}

struct Sums {
    std::vector<ExactSum> pairs;
    std::vector<double> single;  // instead of `pairs` where there is one block and nothing to add up
    double squared_products = 0.0;
    bool finite = true;
};

// The sums of each block of the fast pass: the inner products, then the squared products.
struct BlockSums {
    Partition partition;
    int pairs;
    std::vector<double> values;
};

BlockSums fast_block_sums(const std::vector<Scaled>& vectors) {
    const int k = static_cast<int>(vectors.size()), pairs = n_pairs(k);
    BlockSums found{Partition(*vectors[0].vector), pairs, {}};
    const Partition& partition = found.partition;
    const HotLoops& loops = hot_loops();
    const bool pair_at_once = k == 2 && direct(vectors[0], vectors[1]);
    found.values.assign(static_cast<std::size_t>(partition.size()) * (pairs + 1), 0.0);

    parallel_for(partition, [&](index_t task) {
        const Block block = partition[task];
        double* sums = found.values.data() + task * (pairs + 1);
        if (pair_at_once) {
            const Segment &x = vectors[0].vector->segments[block.segment],
                          &y = vectors[1].vector->segments[block.segment];
            const index_t offset = block.begin * itemsize(x.dtype());
            const PairSums in_block =
                loops.pair_sums[dtype_index(x.dtype())](x.data() + offset, y.data() + offset, block.count);
            sums[0] = in_block.xx;
            sums[1] = in_block.xy;
            sums[2] = in_block.yy;
            sums[3] = in_block.squared_products;
            return;
        }
        const auto buffers = make_tile_buffers(static_cast<std::size_t>(k));
        std::vector<const double*> tiles(k);
        for_each_tile(block, [&](index_t begin, index_t count) {
            for (int i = 0; i < k; ++i)
                tiles[i] = read_tile(vectors[i].vector->segments[block.segment], begin, count, buffers[i],
                                     factor_of(vectors[i]));
            for (int i = 0, pair = 0; i < k; ++i)
                for (int j = i; j < k; ++j, ++pair) sums[pair] += loops.dot(tiles[i], tiles[j], count);
            if (k == 2) sums[pairs] += loops.sum_squared_products(tiles[0], tiles[1], count);
        });
    });
    return found;
}

// The sums of a run of blocks: of a whole vector, or of one of its segments.
Sums fast_sums(const BlockSums& blocks, index_t begin, index_t end) {
    const int pairs = blocks.pairs;
    Sums total;
    const bool one_block = end - begin == 1;
    const double* first = blocks.values.data() + begin * (pairs + 1);
    if (one_block) total.single.assign(first, first + pairs);
    else total.pairs.resize(pairs);
    for (index_t task = begin; task < end; ++task) {
        const double* sums = blocks.values.data() + task * (pairs + 1);
        for (int pair = 0; pair < pairs; ++pair) {
            if (!std::isfinite(sums[pair])) total.finite = false;
            else if (!one_block) total.pairs[pair].add(sums[pair]);
        }
        total.squared_products += sums[pairs];
    }
    return total;
}

// The inner products (i, j) of a pass, each with an optional diagonal weight.
enum class Weight { none, multiply, divide };
struct Product {
    int i, j;
    Weight weight;
};

// Cascaded or exact sums of products of tiles; `diagonal`, if any, is vectors[2] and carries the weights.
Sums careful_sums(const std::vector<Scaled>& vectors, const std::vector<Product>& products, Precision precision) {
    const int k = static_cast<int>(vectors.size());
    const auto n_products = static_cast<index_t>(products.size());
    const Partition partition(*vectors[0].vector);
    const HotLoops& loops = hot_loops();
    const bool exact = precision == Precision::exact;
    const bool pair_at_once = !exact && k == 2 && n_products == 3 && direct(vectors[0], vectors[1]);

    // A group of blocks shares one accumulator per product; exact sums do not depend on how blocks are grouped.
    const index_t group = std::max<index_t>(blocks_in_run, partition.size() / 256);
    const index_t n_groups = (partition.size() + group - 1) / group;
    std::vector<Sums> partial(static_cast<std::size_t>(n_groups));
    parallel_for(n_groups, [&](index_t task) {
        Sums& sums = partial[task];
        sums.pairs.resize(products.size());
        const auto buffers = make_tile_buffers(static_cast<std::size_t>(k));
        std::vector<const double*> tiles(k);
        std::vector<Cascade> cascades(products.size() * n_lanes, Cascade{0.0, 0.0, 0.0});
        const auto flush = [&] {
            for (std::size_t lane = 0; lane < cascades.size(); ++lane)
                for (const double term : {cascades[lane].hi, cascades[lane].mid, cascades[lane].lo}) {
                    if (std::isfinite(term)) sums.pairs[lane / n_lanes].add(term);
                    else sums.finite = false;
                }
            std::fill(cascades.begin(), cascades.end(), Cascade{0.0, 0.0, 0.0});
        };
        const index_t first = task * group, last = std::min(first + group, partition.size());
        for (index_t b = first; b < last; ++b) {
            const Block block = partition[b];
            if (pair_at_once) {
                const Segment &x = vectors[0].vector->segments[block.segment],
                              &y = vectors[1].vector->segments[block.segment];
                const index_t offset = block.begin * itemsize(x.dtype());
                loops.pair_sums_cascaded[dtype_index(x.dtype())](x.data() + offset, y.data() + offset, block.count,
                                                                 cascades.data());
            } else {
                for_each_tile(block, [&](index_t begin, index_t count) {
                    for (int i = 0; i < k; ++i)
                        tiles[i] = read_tile(vectors[i].vector->segments[block.segment], begin, count, buffers[i],
                                             factor_of(vectors[i]));
                    for (index_t p = 0; p < n_products; ++p) {
                        const Product& product = products[p];
                        const double *x = tiles[product.i], *y = tiles[product.j];
                        if (exact && product.weight == Weight::none) {
                            for (index_t i = 0; i < count; ++i) {
                                if (std::isfinite(x[i]) && std::isfinite(y[i])) sums.pairs[p].add_product(x[i], y[i]);
                                else sums.finite = false;
                            }
                            continue;
                        }
                        Cascade* lanes = cascades.data() + p * n_lanes;
                        if (product.weight == Weight::none)
                            loops.dot_cascaded(x, y, count, lanes);
                        else
                            loops.weighted_dot_cascaded(x, y, tiles[2], product.weight == Weight::divide, count, lanes);
                    }
                });
            }
            if ((b - first) % blocks_in_run == blocks_in_run - 1) flush();
        }
        flush();
    });

    Sums total;
    total.pairs.resize(products.size());
    for (const Sums& sums : partial) {
        total.finite = total.finite && sums.finite;
        for (index_t p = 0; p < n_products; ++p) total.pairs[p].add(sums.pairs[p]);
    }
    return total;
}

void set_entry(Gram& gram, int i, int j, DoubleDouble value, double bound) {
    for (const int at : {i * gram.k + j, j * gram.k + i}) {
        gram.hi[at] = value.hi;
        gram.lo[at] = value.lo;
        gram.bound[at] = bound;
    }
}

Gram not_finite(int k, std::vector<int> exponents, Precision precision) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const std::vector<double> nans(static_cast<std::size_t>(k) * k, nan);
    return {k, nans, nans, nans, std::move(exponents), nan, nan, false, precision};
}

// Entries with their bounds, from the sums over all pairs.
Gram assemble(const Sums& sums, const std::vector<Scaled>& vectors, Precision precision) {
    const int k = static_cast<int>(vectors.size());
    std::vector<int> exponents;
    for (const Scaled& scaled : vectors) exponents.push_back(scaled.exponent);
    if (!sums.finite) return not_finite(k, exponents, precision);
    const std::vector<double> zeros(static_cast<std::size_t>(k) * k, 0.0);
    Gram result{k, zeros, zeros, zeros, exponents, sums.squared_products, 0.0, true, precision};
    for (int i = 0, pair = 0; i < k; ++i)
        for (int j = i; j < k; ++j, ++pair) set_entry(result, i, j, sums.single.empty() ? sums.pairs[pair].value() : DoubleDouble(sums.single[pair]), 0.0);
    const double n = static_cast<double>(vectors[0].vector->size());
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

bool within_range(double square) { return square >= least_square && square <= greatest_square; }

// The power of two next above the largest element, but not below the least normal one; 0 for a vector of zeros.
int exponent_of(double largest) {
    int exponent = 0;
    if (largest > 0.0) (void)std::frexp(largest, &exponent);
    return std::max(exponent, -1022);
}

std::vector<Product> all_pairs(int k) {
    std::vector<Product> products;
    for (int i = 0; i < k; ++i)
        for (int j = i; j < k; ++j) products.push_back({i, j, Weight::none});
    return products;
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
        return assemble(fast_sums(blocks, 0, blocks.partition.size()), vectors, precision);
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
    // Exact sums would not sharpen the sine: hi + lo of a compensated pass is as good.
    if (gram.precision == Precision::compensated) return true;
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
    for (const Vector* vector : vectors) scaled.push_back({vector, 0});
    if (precision == Precision::exact) return exact_gram(scaled);

    const Gram plain = scaled_gram(scaled, precision);
    if (in_range(plain)) return plain;

    for (Scaled& one : scaled) {
        const double largest = max_abs(*one.vector);
        if (std::isnan(largest)) return not_finite(static_cast<int>(vectors.size()), std::vector<int>(vectors.size(), 0), precision);
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

std::vector<Gram> segment_angle_grams(const Vector& y, const Vector& g, const std::vector<Accuracy>& accuracies) {
    require_same_layout({&y, &g});
    const std::size_t n_segments = y.segments.size();
    if (accuracies.size() != n_segments + 1)
        throw std::invalid_argument("expected " + std::to_string(n_segments + 1) + " tolerances, one for the whole and " +
                                    "one for each segment, got " + std::to_string(accuracies.size()));
    const BlockSums blocks = fast_block_sums({{&y, 0}, {&g, 0}});
    std::vector<Gram> found;
    // Part 0 is the whole vector. What the common pass does not settle is read again by itself.
    const auto add = [&](const Vector& y_part, const Vector& g_part, index_t begin, index_t end,
                         const Accuracy& accuracy) {
        Gram fast = assemble(fast_sums(blocks, begin, end), {{&y_part, 0}, {&g_part, 0}}, Precision::fast);
        if (!in_range(fast)) fast = gram({&y_part, &g_part}, Precision::fast);
        found.push_back(settled(y_part, g_part, nullptr, std::move(fast), accuracy));
    };
    add(y, g, 0, blocks.partition.size(), accuracies[0]);
    for (std::size_t s = 0; s < n_segments; ++s) {
        const Vector y_part{{y.segments[s]}}, g_part{{g.segments[s]}};
        add(y_part, g_part, blocks.partition.first_block(s), blocks.partition.first_block(s + 1), accuracies[s + 1]);
    }
    return found;
}

index_t first_not_positive(const Vector& d) {
    const Partition partition(d);
    std::vector<index_t> partial(static_cast<std::size_t>(partition.size()), -1);
    parallel_for(partition, [&](index_t task) {
        const Block block = partition[task];
        const auto buffer = make_tile_buffers(1);
        for_each_tile(block, [&](index_t begin, index_t count) {
            const double* values = read_tile(d.segments[block.segment], begin, count, buffer[0]);
            for (index_t i = 0; i < count && partial[task] < 0; ++i)
                if (!(values[i] > 0.0 && std::isfinite(values[i]))) partial[task] = begin + i;
        });
    });
    for (index_t task = 0; task < partition.size(); ++task) {
        if (partial[task] < 0) continue;
        index_t before = 0;
        for (std::size_t s = 0; s < partition[task].segment; ++s) before += d.segments[s].size();
        return before + partial[task];
    }
    return -1;
}

double max_abs(const Vector& vector) {
    const Partition partition(vector);
    std::vector<double> partial(static_cast<std::size_t>(partition.size()), 0.0);
    parallel_for(partition, [&](index_t task) {
        const Block block = partition[task];
        const auto buffer = make_tile_buffers(1);
        double largest = 0.0;
        for_each_tile(block, [&](index_t begin, index_t count) {
            const double found = hot_loops().max_abs(
                read_tile(vector.segments[block.segment], begin, count, buffer[0]), count);
            if (!(found <= largest)) largest = found;
            if (std::isnan(found)) partial[task] = found;
        });
        if (!std::isnan(partial[task])) partial[task] = largest;
    });
    double largest = 0.0;
    for (const double found : partial) {
        if (std::isnan(found)) return found;
        largest = std::max(largest, found);
    }
    return largest;
}

std::vector<double> spacing_squares(const Vector& vector) {
    const Partition partition(vector);
    std::vector<double> partial(static_cast<std::size_t>(partition.size()), 0.0);
    parallel_for(partition, [&](index_t task) {
        const Block block = partition[task];
        const Segment& segment = vector.segments[block.segment];
        const double least = least_normal(segment.dtype());
        const auto buffer = make_tile_buffers(1);
        for_each_tile(block, [&](index_t begin, index_t count) {
            partial[task] += hot_loops().exponent_squares(read_tile(segment, begin, count, buffer[0]), count, least);
        });
    });
    std::vector<double> found;
    for (std::size_t s = 0; s < vector.segments.size(); ++s) {
        double total = 0.0;
        for (index_t task = partition.first_block(s); task < partition.first_block(s + 1); ++task) total += partial[task];
        const double eps = epsilon(vector.segments[s].dtype());
        found.push_back(std::isfinite(total) ? eps * eps * total : std::numeric_limits<double>::quiet_NaN());
    }
    return found;
}

}  // namespace steepest
