// Gram matrices of the pairs of many steps in one pass over memory: pieces of the vectors outside, steps inside, so that a
// step is still in the cache when the next one is compared with it.
#pragma once

#include <vector>

#include "steepest/gram.hpp"

namespace steepest {

// A vector at each of `count` steps: its segments at the first one, and how many bytes further on they are at the next.
struct VectorSteps {
    Vector first;
    std::vector<index_t> strides;
    index_t count = 0;

    Vector at(index_t step) const;
};

// One after the other for each step from `skip` on: of the whole pair and then of each segment. `lags` has, for each step,
// the products with the step before, then with the one before that, and so on; out of range where there is none.
struct StepGrams {
    std::vector<Gram> pairs;
    std::vector<CrossProducts> lags;
};

// What `segment_angle_grams` and `segment_cross_products` give for each step, to the last bit. The segments have to be
// contiguous, and of one type in y and g; as many accuracies as `pairs`. Steps before `skip` are there for their lags.
StepGrams step_grams(const VectorSteps& y, const VectorSteps& g, const std::vector<Accuracy>& accuracies, index_t skip,
                     index_t lag, Precision precision);

}  // namespace steepest
