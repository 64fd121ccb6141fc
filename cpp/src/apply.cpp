#include "steepest/apply.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>

#include "steepest/elements.hpp"
#include "steepest/gram.hpp"
#include "tiles.hpp"

namespace steepest {

namespace {

constexpr int safe_exponent = 300;                      // |exponent| up to which numbers are used unscaled
constexpr double least_dot = 2.4099198651028841e-181;   // 2^-600: below it, underflow may have cost digits
constexpr double greatest_dot = 4.149515568880993e+180;  // 2^600: above it, the elements may be near overflow

bool safe(int exponent) { return std::abs(exponent) <= safe_exponent; }

void check(const Base& base, const std::vector<Column>& columns, const std::vector<Vector>& x) {
    std::vector<const Vector*> all;
    all.reserve(columns.size() + x.size() + 1);
    for (const Column& column : columns) all.push_back(column.vector);
    for (const Vector& one : x) all.push_back(&one);
    if (base.kind != BaseKind::scalar) {
        if (base.diagonal == nullptr) throw std::invalid_argument("a diagonal base needs its diagonal");
        all.push_back(base.diagonal);
    }
    if (!all.empty()) require_same_layout(all);
    for (const Column& column : columns)
        if (column.exponent > greatest_exponent || column.exponent < -greatest_exponent)
            throw std::invalid_argument("expected column exponents of at most " + std::to_string(greatest_exponent) +
                                        " in size, got " + std::to_string(column.exponent));
}

void require_same_layout(const std::vector<Vector>& x, const std::vector<Vector>& y) {
    if (x.size() != y.size())
        throw std::invalid_argument("expected " + std::to_string(x.size()) + " right-hand sides, got " +
                                    std::to_string(y.size()));
    for (std::size_t r = 0; r < x.size(); ++r) steepest::require_same_layout({&x[r], &y[r]});
}

// values *= 2^power, in two steps: the power alone may be out of range where the product with it is not.
void scale_by_power(int power, double* values, index_t count) {
    for (const int half : {power / 2, power - power / 2})
        hot_loops().scale(std::ldexp(1.0, std::min(1023, std::max(-1022, half))), values, count, values);
}

// The typed loops take a few plain columns of one element type with their right-hand side, contiguous, over a scalar
// base.
bool direct(const Base& base, const std::vector<Column>& columns, std::size_t at_most, const Segment& x,
            std::size_t segment) {
    if (base.kind != BaseKind::scalar || columns.empty() || columns.size() > at_most || !x.contiguous()) return false;
    for (const Column& column : columns) {
        const Segment& w = column.vector->segments[segment];
        if (column.through_base || w.dtype() != x.dtype() || !w.contiguous()) return false;
    }
    return true;
}

// Several right-hand sides that lie side by side in memory, as the columns of an (n, m) array in C order do.
constexpr std::size_t least_row = 4;
bool side_by_side(const std::vector<Vector>& x, std::size_t segment) {
    if (x.size() < least_row) return false;
    const Segment& first = x[0].segments[segment];
    for (std::size_t r = 0; r < x.size(); ++r) {
        const Segment& one = x[r].segments[segment];
        if (one.shape().size() != 1 || one.dtype() != first.dtype() || one.strides() != first.strides() ||
            one.data() != first.data() + static_cast<index_t>(r) * itemsize(first.dtype()))
            return false;
    }
    return true;
}

char* at(const Segment& segment, index_t begin) { return segment.data() + begin * itemsize(segment.dtype()); }
const char* at(const Column& column, const Block& block) {
    return at(column.vector->segments[block.segment], block.begin);
}

// The columns of one tile as doubles, with the base applied to those that want it.
class ColumnTiles {
public:
    ColumnTiles(const Base& base, const std::vector<Column>& columns, bool scaled)
        : base_(base), columns_(columns), buffers_(new TileBuffer[columns.size() + 1]), tiles_(columns.size()) {
        for (const Column& column : columns) factors_.push_back(scaled ? std::ldexp(1.0, -column.exponent) : 1.0);
    }

    void read(std::size_t segment, index_t begin, index_t count) {
        if (base_.kind != BaseKind::scalar)
            diagonal_ = read_tile(base_.diagonal->segments[segment], begin, count, buffers_[columns_.size()]);
        for (std::size_t j = 0; j < columns_.size(); ++j) {
            tiles_[j] = read_tile(columns_[j].vector->segments[segment], begin, count, buffers_[j], factors_[j]);
            if (columns_[j].through_base) {
                base_times(tiles_[j], count, buffers_[j].widened.data());
                tiles_[j] = buffers_[j].widened.data();
            }
        }
    }

    // The diagonal of the base in this tile, times a factor.
    void base_diagonal(double factor, index_t count, double* out) const {
        if (base_.kind == BaseKind::scalar) {
            std::fill(out, out + count, factor * base_.scalar);
            return;
        }
        std::fill(out, out + count, factor);
        base_times(out, count, out);
    }

    const double* const* data() const { return tiles_.data(); }

    void base_times(const double* values, index_t count, double* out) const {
        if (base_.kind == BaseKind::diagonal) hot_loops().multiply(values, diagonal_, count, out);
        else if (base_.kind == BaseKind::inverse_diagonal) hot_loops().divide(values, diagonal_, count, out);
        else hot_loops().scale(base_.scalar, values, count, out);
    }

    const double* operator[](std::size_t j) const { return tiles_[j]; }

private:
    const Base& base_;
    const std::vector<Column>& columns_;
    std::unique_ptr<TileBuffer[]> buffers_;
    std::vector<const double*> tiles_;
    std::vector<double> factors_;
    const double* diagonal_ = nullptr;
};

// W^T X of the raw columns, or of columns and right-hand sides scaled by their powers of two.
SmallMatrixDD raw_dots(const Base& base, const std::vector<Column>& columns, const std::vector<Vector>& x,
                       const std::vector<int>* x_exponents, bool twofold) {
    const auto k = static_cast<index_t>(columns.size()), m = static_cast<index_t>(x.size());
    SmallMatrixDD sums = SmallMatrixDD::Zero(k, m);
    if (k == 0 || m == 0) return sums;
    const Partition partition(x[0]);
    const HotLoops& loops = hot_loops();
    ShortVector<double, 8> partial(static_cast<std::size_t>(partition.size() * m * k * 2));

    parallel_for(partition, [&](index_t task) {
        const Block block = partition[task];
        double* block_sums = partial.data() + task * m * k * 2;
        const bool scaled = x_exponents != nullptr;
        bool typed = !scaled;
        for (index_t r = 0; r < m && typed; ++r) {
            const Segment& segment = x[r].segments[block.segment];
            typed = direct(base, columns, max_dots, segment, block.segment) &&
                    !(twofold && segment.dtype() != DType::float64);
        }
        if (typed) {
            const void* w[max_dots];
            for (index_t j = 0; j < k; ++j) w[j] = at(columns[j], block);
            for (index_t r = 0; r < m; ++r) {
                const Segment& segment = x[r].segments[block.segment];
                loops.dots[k - 1][dtype_index(segment.dtype())](w, at(segment, block.begin), block.count,
                                                                block_sums + r * k * 2);
            }
            return;
        }
        const bool rows = !scaled && side_by_side(x, block.segment);
        std::vector<double> row_sums(rows ? static_cast<std::size_t>(2 * k * m) : 0, 0.0);
        ColumnTiles tiles(base, columns, x_exponents != nullptr);
        const auto buffer = make_tile_buffers(1);
        for_each_tile(block, [&](index_t begin, index_t count) {
            tiles.read(block.segment, begin, count);
            if (rows) {
                const Segment& first = x[0].segments[block.segment];
                const index_t stride = first.strides()[0];
                for (index_t j = 0; j < k; j += max_dots)
                    loops.row_dots[std::min<index_t>(k - j, max_dots) - 1][dtype_index(first.dtype())](
                        tiles.data() + j, first.data() + begin * stride, count, stride, m, row_sums.data() + 2 * j * m);
                return;
            }
            for (index_t r = 0; r < m; ++r) {
                const double factor = x_exponents == nullptr ? 1.0 : std::ldexp(1.0, -(*x_exponents)[r]);
                const double* values = read_tile(x[r].segments[block.segment], begin, count, buffer[0], factor);
                for (index_t j = 0; j < k; ++j) {
                    double hi_lo[2];
                    loops.dot_twofold(tiles[j], values, count, hi_lo);
                    double* sum = block_sums + (r * k + j) * 2;
                    const DoubleDouble added = two_sum(sum[0], hi_lo[0]);
                    sum[0] = added.hi;
                    sum[1] += added.lo + hi_lo[1];
                }
            }
        });
        for (index_t r = 0; r < m && rows; ++r)
            for (index_t j = 0; j < k; ++j) {
                block_sums[(r * k + j) * 2] = row_sums[2 * j * m + r];
                block_sums[(r * k + j) * 2 + 1] = row_sums[(2 * j + 1) * m + r];
            }
    });

    for (index_t task = 0; task < partition.size(); ++task)
        for (index_t r = 0; r < m; ++r)
            for (index_t j = 0; j < k; ++j) {
                const double* sum = partial.data() + ((task * m + r) * k + j) * 2;
                DoubleDouble& total = sums(j, r);
                const DoubleDouble added = two_sum(total.hi, sum[0]);
                total = {added.hi, total.lo + (added.lo + sum[1])};
            }
    for (index_t r = 0; r < m; ++r)
        for (index_t j = 0; j < k; ++j) sums(j, r) = fast_two_sum(sums(j, r).hi, sums(j, r).lo);
    return sums;
}

bool in_range(const DoubleDouble& dot) {
    const double size = std::fabs(dot.hi);
    return size >= least_dot && size <= greatest_dot;  // false for NaN
}

}  // namespace

void require_valid(const LowRankOperator& a) {
    check(a.base, a.columns, {});
    const auto k = static_cast<Eigen::Index>(a.columns.size());
    if (a.core.rows() != k || a.core.cols() != k)
        throw std::invalid_argument("expected a core of " + std::to_string(k) + " x " + std::to_string(k) + ", got " +
                                    std::to_string(a.core.rows()) + " x " + std::to_string(a.core.cols()));
    if (a.exponent != 0 && a.base.kind != BaseKind::scalar)
        throw std::invalid_argument("a diagonal base takes no exponent");
    if (a.exponent > greatest_exponent || a.exponent < -greatest_exponent)
        throw std::invalid_argument("expected an exponent of at most " + std::to_string(greatest_exponent) +
                                    " in size, got " + std::to_string(a.exponent));
}

Dots dots(const Base& base, const std::vector<Column>& columns, const std::vector<Vector>& x, bool twofold) {
    check(base, columns, x);
    const std::size_t m = x.size();
    Dots result{{}, std::vector<int>(m, 0)};
    const bool plain = std::all_of(columns.begin(), columns.end(), [](const Column& c) { return safe(c.exponent); });
    if (plain) {
        result.values = raw_dots(base, columns, x, nullptr, twofold);
        for (Eigen::Index j = 0; j < result.values.rows(); ++j)
            for (Eigen::Index r = 0; r < result.values.cols(); ++r)
                result.values(j, r) = ldexp(result.values(j, r), -columns[static_cast<std::size_t>(j)].exponent);
    }
    // Right-hand sides that are far out of range, seen from a product that is: scale them and repeat.
    bool repeat = !plain;
    for (std::size_t r = 0; r < m; ++r) {
        bool suspect = !plain;
        for (Eigen::Index j = 0; j < result.values.rows() && !suspect; ++j)
            suspect = !in_range(result.values(j, static_cast<Eigen::Index>(r)));
        if (!suspect) continue;
        const double largest = max_abs(x[r]);
        int exponent = 0;
        if (largest > 0.0) (void)std::frexp(largest, &exponent);  // NaN and Inf go through: so will the result
        if (plain && safe(exponent)) continue;
        result.exponents[r] = std::max(exponent, -1022);
        repeat = true;
    }
    if (repeat) result.values = raw_dots(base, columns, x, &result.exponents, twofold);
    return result;
}

void combine(const Base& base, double factor, const std::vector<Column>& columns, const SmallMatrix& coefficients,
             const std::vector<int>& x_exponents, int exponent, const std::vector<Vector>& x,
             const std::vector<Vector>& out) {
    check(base, columns, x);
    check(base, columns, out);
    require_same_layout(x, out);
    const auto k = static_cast<index_t>(columns.size()), m = static_cast<index_t>(x.size());
    if (m == 0) return;
    const Partition partition(x[0]);
    const HotLoops& loops = hot_loops();

    bool scaled = !safe(exponent);
    for (const Column& column : columns) scaled = scaled || !safe(column.exponent);
    for (const int one : x_exponents) scaled = scaled || one != 0;
    // Unscaled: the powers of two of columns and result are folded into the coefficients.
    SmallMatrix weights = coefficients;
    double base_factor = factor;
    if (!scaled) {
        for (index_t j = 0; j < k; ++j)
            for (index_t r = 0; r < m; ++r)
                weights(j, r) = std::ldexp(weights(j, r), exponent - columns[static_cast<std::size_t>(j)].exponent);
        base_factor = std::ldexp(factor, exponent);
    }
    index_t footprint = 0;
    for (const Segment& segment : x[0].segments) footprint += segment.size() * itemsize(segment.dtype()) * (k + 2 * m);
    const bool stream = beyond_caches(footprint);
    ShortVector<double, 4> row_weights;  // row by row, for right-hand sides side by side
    for (index_t j = 0; j < k; ++j)
        for (index_t r = 0; r < m; ++r) row_weights.push_back(weights(j, r));

    parallel_for(partition, [&](index_t task) {
        const Block block = partition[task];
        bool typed = !scaled;
        for (index_t r = 0; r < m && typed; ++r) {
            const Segment &from = x[r].segments[block.segment], &to = out[r].segments[block.segment];
            typed = direct(base, columns, max_combine, from, block.segment) && to.dtype() == from.dtype() &&
                    to.contiguous();
        }
        if (typed) {
            const void* w[max_combine];
            for (index_t j = 0; j < k; ++j) w[j] = at(columns[j], block);
            for (index_t r = 0; r < m; ++r) {
                const Segment &from = x[r].segments[block.segment], &to = out[r].segments[block.segment];
                loops.combine[k - 1][dtype_index(from.dtype())](base_factor * base.scalar, weights.col(r).data(),
                                                                at(from, block.begin), w, block.count,
                                                                at(to, block.begin), stream);
            }
            return;
        }
        const bool rows = !scaled && side_by_side(x, block.segment) && side_by_side(out, block.segment) &&
                          x[0].segments[block.segment].dtype() == out[0].segments[block.segment].dtype();
        ColumnTiles tiles(base, columns, scaled);
        const auto buffers = make_tile_buffers(2);
        TileBuffer &input = buffers[0], &result = buffers[1];
        double* values = result.widened.data();
        for_each_tile(block, [&](index_t begin, index_t count) {
            tiles.read(block.segment, begin, count);
            if (rows) {
                const Segment &from = x[0].segments[block.segment], &to = out[0].segments[block.segment];
                const index_t stride = from.strides()[0], out_stride = to.strides()[0];
                tiles.base_diagonal(base_factor, count, values);
                loops.row_combine[dtype_index(from.dtype())](values, tiles.data(), k, row_weights.data(),
                                                             from.data() + begin * stride, count, stride, m,
                                                             to.data() + begin * out_stride, out_stride, stream);
                return;
            }
            for (index_t r = 0; r < m; ++r) {
                const double x_factor = scaled ? std::ldexp(1.0, -x_exponents[r]) : 1.0;
                const double* from = read_tile(x[r].segments[block.segment], begin, count, input, x_factor);
                if (base.kind == BaseKind::scalar) {
                    loops.scale(base_factor * base.scalar, from, count, values);
                } else {
                    tiles.base_times(from, count, values);
                    if (base_factor != 1.0) loops.scale(base_factor, values, count, values);
                }
                for (index_t j = 0; j < k; ++j) loops.add_scaled(weights(j, r), tiles[j], count, values);
                if (scaled) scale_by_power(exponent + x_exponents[r], values, count);
                write_tile(out[r].segments[block.segment], begin, count, values, result);
            }
        });
    });
}

void combine_twofold(double factor, const std::vector<Column>& columns, const SmallMatrixDD& coefficients,
                     const std::vector<int>& x_exponents, const std::vector<Vector>& x,
                     const std::vector<Vector>& out) {
    const Base identity;
    check(identity, columns, x);
    require_same_layout(x, out);
    const int k = static_cast<int>(columns.size());
    const auto m = static_cast<index_t>(x.size());
    if (m == 0) return;
    const Partition partition(x[0]);
    const HotLoops& loops = hot_loops();
    SmallMatrix high(k, m), low(k, m);  // coefficients of the columns as they are read: scaled or not
    bool scaled = false;
    for (const Column& column : columns) scaled = scaled || !safe(column.exponent);
    for (const int one : x_exponents) scaled = scaled || one != 0;
    for (index_t j = 0; j < k; ++j)
        for (index_t r = 0; r < m; ++r) {
            const int power = scaled ? 0 : -columns[static_cast<std::size_t>(j)].exponent;
            high(j, r) = std::ldexp(coefficients(j, r).hi, power);
            low(j, r) = std::ldexp(coefficients(j, r).lo, power);
        }

    parallel_for(partition, [&](index_t task) {
        const Block block = partition[task];
        ColumnTiles tiles(identity, columns, scaled);
        TileBuffer input, result;
        for_each_tile(block, [&](index_t begin, index_t count) {
            tiles.read(block.segment, begin, count);
            for (index_t r = 0; r < m; ++r) {
                const Segment& to = out[r].segments[block.segment];
                const double x_factor = std::ldexp(1.0, -x_exponents[r]);
                const double* from = read_tile(x[r].segments[block.segment], begin, count, input, x_factor);
                double* in_memory = writable_tile(to, begin);
                double* values = in_memory != nullptr ? in_memory : result.widened.data();
                loops.combine_twofold(factor, from, k, tiles.data(), high.col(r).data(), low.col(r).data(), count,
                                      values);
                if (x_exponents[r] != 0) scale_by_power(x_exponents[r], values, count);
                if (in_memory == nullptr) write_tile(to, begin, count, values, result);
            }
        });
    });
}

void apply(const LowRankOperator& a, const std::vector<Vector>& x, const std::vector<Vector>& source,
           const std::vector<Vector>& out) {
    require_valid(a);
    const auto k = static_cast<Eigen::Index>(a.columns.size());
    require_same_layout(x, source);
    Dots products = dots(a.base, a.columns, x);
    SmallMatrix coefficients(k, static_cast<Eigen::Index>(x.size()));
    for (Eigen::Index r = 0; r < coefficients.cols(); ++r)
        for (Eigen::Index i = 0; i < k; ++i) {
            DoubleDouble sum = 0.0;
            for (Eigen::Index j = 0; j < k; ++j) sum += DoubleDouble(a.core(i, j)) * products.values(j, r);
            coefficients(i, r) = static_cast<double>(sum);
        }
    // The powers of two come from x; a source that is greater than x takes its own.
    for (std::size_t r = 0; r < x.size() && &source != &x; ++r) {
        int& power = products.exponents[r];
        const double largest = power < 0 ? max_abs(source[r]) : 0.0;
        if (!(largest > 0.0)) continue;
        int exponent;
        (void)std::frexp(largest, &exponent);
        if (exponent <= power) continue;
        const auto column = static_cast<Eigen::Index>(r);
        for (Eigen::Index i = 0; i < k; ++i) coefficients(i, column) = std::ldexp(coefficients(i, column), power - exponent);
        power = exponent;
    }
    combine(a.base, 1.0, a.columns, coefficients, products.exponents, a.exponent, source, out);
}

}  // namespace steepest
