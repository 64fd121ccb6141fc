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

constexpr index_t blocks_in_run = 4;  // blocks whose cascades are added up before they are summed exactly

struct Scaled {
    const Vector* vector;
    int exponent;  // elements are multiplied by 2^-exponent on load
};

// Exact sums of products, in the order (0,0), (0,1), ..., (1,1), ... of pairs of vectors.
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

BlockSums fast_block_sums(const std::vector<Scaled>& vectors);
// The sums of a run of blocks: of a whole vector, or of one of its segments.
Sums fast_sums(const BlockSums& blocks, index_t begin, index_t end);

// The Gram matrix of (y, g) from the sums of a fast pass over both: of that pass if it settles the angle, else of one over g
// itself, or nothing if g is null.
std::optional<Gram> gram_of_sums(const Sums& sums, const Vector& y, const Vector* g, const Accuracy& accuracy);

// The inner products (i, j) of a pass, each with an optional diagonal weight.
enum class Weight { none, multiply, divide };
struct Product {
    int i, j;
    Weight weight;
};
std::vector<Product> all_pairs(int k);
// Cascaded or exact sums of products of tiles; `diagonal`, if any, is vectors[2] and carries the weights.
Sums careful_sums(const std::vector<Scaled>& vectors, const std::vector<Product>& products, Precision precision);

// Compensated inner products over runs of blocks, each run within one segment: of a pair with itself (x.x, x.y, y.y and
// the squared products), or of a pair with another (four products, and the squares of the four norms).
struct RunSums {
    std::vector<index_t> first_run;  // of each segment, then the total
    int products, plain;
    std::vector<Cascade> cascades;  // for each run and product
    std::vector<double> plain_sums;
};

RunSums cascaded_runs(const std::vector<const Vector*>& vectors);
// The sums of some runs: of a whole vector, or of one of its segments.
Sums cascaded_sums(const RunSums& runs, index_t begin, index_t end);

}  // namespace steepest
