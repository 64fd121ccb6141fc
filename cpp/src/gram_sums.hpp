// The passes behind a Gram matrix: fast, compensated and exact sums of products over blocks, combined in block order.
#pragma once

#include <cmath>
#include <optional>
#include <vector>

#include "hot_loops.hpp"
#include "steepest/exact_sum.hpp"
#include "steepest/gram.hpp"
#include "steepest/parallel.hpp"

namespace steepest {

constexpr index_t run_size = 4 * block_size;  // elements whose cascades are added up before they are summed exactly

struct Scaled {
    const Vector* vector;
    int exponent;  // elements are multiplied by 2^-exponent on load
};

// Exact sums of products, in the order (0,0), (0,1), ..., (1,1), ... of pairs of vectors.
struct Sums {
    ShortVector<ExactSum, 4> pairs;
    ShortVector<double, 4> single;  // instead of `pairs` where there is one block and nothing to add up
    double squared_products = 0.0;
    bool finite = true;
};

// The fast pass: for each block the inner products, then the squared products.
struct BlockSums {
    Partition partition;
    int pairs;
    ShortVector<double, 8> values;
};

BlockSums fast_block_sums(const std::vector<Scaled>& vectors);
// What the blocks [begin, end) add up to, from the values of the first on.
Sums fast_sums(const double* values, int pairs, index_t begin, index_t end);

// The inner products (i, j) of a pass, each with an optional diagonal weight.
enum class Weight { none, multiply, divide };
struct Product {
    int i, j;
    Weight weight;
};
std::vector<Product> all_pairs(int k);
// Cascaded or exact sums of products of tiles; `diagonal`, if any, is vectors[2] and carries the weights.
Sums careful_sums(const std::vector<Scaled>& vectors, const std::vector<Product>& products, Precision precision);

// Compensated inner products over runs, each within one segment: of a pair with itself (x.x, x.y, y.y and the squared
// products), or of a pair with another (four products, and the squares of the four norms).
struct RunSums {
    Partition runs;
    int products, plain;
    std::vector<Cascade> cascades;  // for each run and product
    std::vector<double> plain_sums;
};

// Adds its terms; false if it is not finite.
bool add_cascade(const Cascade& cascade, ExactSum& sum);
RunSums cascaded_runs(const std::vector<const Vector*>& vectors);
// One run of `vectors` (2 or 4) arrays of one type, contiguous from x[i] on: writes the cascades, adds to `plain`.
void cascaded_run(const void* const* x, int vectors, DType dtype, index_t count, Cascade* products, double* plain);
// The same of a pair with itself and with another in one go: 7 products, 5 sums.
void cascaded_run_of_both(const void* const* x, DType dtype, index_t count, Cascade* products, double* plain);
// What the runs [begin, end) of a pair add up to, from the numbers of the first on.
Sums cascaded_sums(const Cascade* cascades, const double* squared_products, index_t begin, index_t end);
// The same of a pair with another: the products of `size` elements with their bounds.
CrossProducts cross_products(const Cascade* cascades, const double* squares, index_t begin, index_t end, index_t size);

// The Gram matrix of a pair, or of a part of it, from the sums of a first pass; what these do not settle is read again.
// Without g there is none then.
std::optional<Gram> settled_pair(const Sums& sums, Precision precision, const Vector& y, const Vector* g,
                                 const Accuracy& accuracy);

}  // namespace steepest
