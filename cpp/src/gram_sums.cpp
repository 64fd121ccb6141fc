#include "gram_sums.hpp"

#include <algorithm>

#include "tiles.hpp"

namespace steepest {

namespace {

// The inner products of one block in the order (0,0), (0,1), ..., (1,1), ...; exact sums over blocks are formed later.
int n_pairs(int k) { return k * (k + 1) / 2; }

double factor_of(const Scaled& scaled) { return std::ldexp(1.0, -scaled.exponent); }

// The typed one-pass loop needs a pair of one element type, contiguous and unscaled.
bool direct(const Scaled& x, const Scaled& y) {
    if (x.exponent != 0 || y.exponent != 0 || !x.vector->contiguous() || !y.vector->contiguous()) return false;
    for (std::size_t s = 0; s < x.vector->segments.size(); ++s)
        if (x.vector->segments[s].dtype() != y.vector->segments[s].dtype()) return false;
    return true;
}

}  // namespace

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

Sums fast_sums(const double* values, int pairs, index_t begin, index_t end) {
    Sums total;
    const bool one_block = end - begin == 1;
    const double* first = values + begin * (pairs + 1);
    if (one_block) total.single = ShortVector<double, 4>(first, first + pairs);
    else total.pairs.assign(static_cast<std::size_t>(pairs), {});
    for (index_t block = begin; block < end; ++block) {
        const double* sums = values + block * (pairs + 1);
        for (int pair = 0; pair < pairs; ++pair) {
            if (!std::isfinite(sums[pair])) total.finite = false;
            else if (!one_block) total.pairs[static_cast<std::size_t>(pair)].add(sums[pair]);
        }
        total.squared_products += sums[pairs];
    }
    return total;
}

namespace {

// Whether all vectors are contiguous in this segment and of one element type.
bool direct(const std::vector<const Vector*>& vectors, std::size_t segment) {
    for (const Vector* vector : vectors) {
        const Segment& one = vector->segments[segment];
        if (!one.contiguous() || one.dtype() != vectors[0]->segments[segment].dtype()) return false;
    }
    return true;
}

// The terms of a cascade over lanes, as one; what rounds is the third term of sums of 48 numbers: nothing to speak of.
Cascade sum_of_lanes(const Cascade* lanes) {
    Cascade sum{0.0, 0.0, 0.0};
    const auto add = [&sum](double term) {
        const DoubleDouble first = two_sum(sum.hi, term), second = two_sum(sum.mid, first.lo);
        sum = {first.hi, second.hi, sum.lo + second.lo};
    };
    for (int i = 0; i < n_lanes; ++i)
        for (const double term : {lanes[i].hi, lanes[i].mid, lanes[i].lo}) add(term);
    return sum;
}

}  // namespace

bool add_cascade(const Cascade& cascade, ExactSum& sum) {
    for (const double term : {cascade.hi, cascade.mid, cascade.lo}) {
        if (!std::isfinite(term)) return false;
        sum.add(term);
    }
    return true;
}

Sums careful_sums(const std::vector<Scaled>& vectors, const std::vector<Product>& products, Precision precision) {
    const int k = static_cast<int>(vectors.size());
    const auto n_products = static_cast<index_t>(products.size());
    const Partition partition(*vectors[0].vector);
    const HotLoops& loops = hot_loops();
    const bool exact = precision == Precision::exact;

    // A group of blocks shares one accumulator per product; exact sums do not depend on how blocks are grouped.
    const index_t group = std::max<index_t>(16, partition.size() / 256);
    const index_t n_groups = (partition.size() + group - 1) / group;
    std::vector<Sums> partial(static_cast<std::size_t>(n_groups));
    parallel_for(n_groups, [&](index_t task) {
        Sums& sums = partial[task];
        sums.pairs.assign(products.size(), {});
        const auto buffers = make_tile_buffers(static_cast<std::size_t>(k));
        std::vector<const double*> tiles(k);
        std::vector<Cascade> cascades(products.size() * n_lanes, Cascade{0.0, 0.0, 0.0});
        const auto flush = [&] {
            for (std::size_t lane = 0; lane < cascades.size(); ++lane)
                if (!add_cascade(cascades[lane], sums.pairs[lane / n_lanes])) sums.finite = false;
            std::fill(cascades.begin(), cascades.end(), Cascade{0.0, 0.0, 0.0});
        };
        const index_t first = task * group, last = std::min(first + group, partition.size());
        for (index_t b = first; b < last; ++b) {
            const Block block = partition[b];
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
            if ((b - first + 1) * block_size % run_size == 0) flush();
        }
        flush();
    });

    Sums total;
    total.pairs.assign(products.size(), {});
    for (const Sums& sums : partial) {
        total.finite = total.finite && sums.finite;
        for (index_t p = 0; p < n_products; ++p) total.pairs[p].add(sums.pairs[p]);
    }
    return total;
}

namespace {

// Adds to the lanes of all products.
void add_cascaded(const void* const* x, int vectors, DType dtype, index_t count, Cascade* lanes, double* plain) {
    const HotLoops& loops = hot_loops();
    if (vectors == 2) loops.pair_sums_cascaded[dtype_index(dtype)](x[0], x[1], count, lanes, plain);
    else loops.cross_sums_cascaded[dtype_index(dtype)](x, count, lanes, plain);
}

int n_products(int vectors) { return vectors == 2 ? 3 : 4; }

void store_products(int n, const Cascade* lanes, Cascade* products) {
    for (int p = 0; p < n; ++p) products[p] = sum_of_lanes(lanes + p * n_lanes);
}

// Calls add(pointers, count) for each block of a run of arrays.
template <class Add>
void for_each_block(const void* const* x, int vectors, DType dtype, index_t count, Add add) {
    for (index_t begin = 0; begin < count; begin += block_size) {
        const void* block[4];
        for (int i = 0; i < vectors; ++i) block[i] = static_cast<const char*>(x[i]) + begin * itemsize(dtype);
        add(block, std::min(block_size, count - begin));
    }
}

}  // namespace

void cascaded_run(const void* const* x, int vectors, DType dtype, index_t count, Cascade* products, double* plain) {
    Cascade lanes[4 * n_lanes] = {};
    for_each_block(x, vectors, dtype, count, [&](const void* const* block, index_t size) {
        add_cascaded(block, vectors, dtype, size, lanes, plain);
    });
    store_products(n_products(vectors), lanes, products);
}

void cascaded_run_of_both(const void* const* x, DType dtype, index_t count, Cascade* products, double* plain) {
    Cascade lanes[7 * n_lanes] = {};
    for_each_block(x, 4, dtype, count, [&](const void* const* block, index_t size) {
        hot_loops().pair_and_cross_sums_cascaded[dtype_index(dtype)](block, size, lanes, plain);
    });
    store_products(7, lanes, products);
}

RunSums cascaded_runs(const std::vector<const Vector*>& vectors) {
    const int k = static_cast<int>(vectors.size());
    RunSums found{Partition(*vectors[0], run_size), n_products(k), k == 2 ? 1 : 4, {}, {}};
    found.cascades.resize(static_cast<std::size_t>(found.runs.size() * found.products));
    found.plain_sums.assign(static_cast<std::size_t>(found.runs.size() * found.plain), 0.0);
    parallel_for(found.runs, [&](index_t task) {
        const Block run = found.runs[task];
        Cascade* products = found.cascades.data() + task * found.products;
        double* plain = found.plain_sums.data() + task * found.plain;
        const void* x[4];
        if (direct(vectors, run.segment)) {
            const DType dtype = vectors[0]->segments[run.segment].dtype();
            for (std::size_t i = 0; i < vectors.size(); ++i)
                x[i] = vectors[i]->segments[run.segment].data() + run.begin * itemsize(dtype);
            cascaded_run(x, k, dtype, run.count, products, plain);
            return;
        }
        const auto buffers = make_tile_buffers(vectors.size());
        Cascade lanes[4 * n_lanes] = {};
        for_each_tile(run, [&](index_t begin, index_t count) {
            for (std::size_t i = 0; i < vectors.size(); ++i)
                x[i] = read_tile(vectors[i]->segments[run.segment], begin, count, buffers[i]);
            add_cascaded(x, k, DType::float64, count, lanes, plain);
        });
        store_products(n_products(k), lanes, products);
    });
    return found;
}

Sums cascaded_sums(const Cascade* cascades, const double* squared_products, index_t begin, index_t end) {
    Sums total;
    total.pairs.assign(3, {});
    for (index_t run = begin; run < end; ++run) {
        for (int p = 0; p < 3; ++p)
            if (!add_cascade(cascades[run * 3 + p], total.pairs[static_cast<std::size_t>(p)])) total.finite = false;
        total.squared_products += squared_products[run];
    }
    return total;
}

std::vector<Product> all_pairs(int k) {
    std::vector<Product> products;
    for (int i = 0; i < k; ++i)
        for (int j = i; j < k; ++j) products.push_back({i, j, Weight::none});
    return products;
}

}  // namespace steepest
