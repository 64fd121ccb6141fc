// One step of a learning rule from the parameters before and after it: the inner products of the gradient and the update
// after - before, which is formed in registers and never written.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "steepest/gram.hpp"

namespace steepest {

// Which parameters' spacing is the rounding of the update.
enum class Floor { before, after };

// The sums of one pass over a gradient y and both parameters. The update is after - before, rounded to `update_types` (one
// for each segment): the sums, and the Gram matrices that come of them, have the bits of a pass over (y, update).
class StepSums {
public:
    StepSums(const Vector& y, const Vector& after, const Vector& before, const std::vector<DType>& update_types,
             Floor floor);
    ~StepSums();

    // For each segment as `spacing_squares` of elements.hpp.
    const std::vector<double>& spacing_squares() const { return spacing_squares_; }

    // The results of segment_angle_grams(y, update, accuracies), y being that of the pass. What the pass does not settle is
    // read from `update`; without it there is nothing. Segments that the pass settles are not read.
    std::vector<std::optional<Gram>> grams(const Vector& y, const Vector* update,
                                           const std::vector<Accuracy>& accuracies) const;

private:
    struct Blocks;
    std::unique_ptr<Blocks> blocks_;
    std::vector<double> spacing_squares_;
};

// out = after - before, rounded to the type of each segment of out, which may be `before`.
void difference(const Vector& after, const Vector& before, const Vector& out);

// Copies the elements of a vector to contiguous segments of the same types. With `squares` the sum of the squares of each
// segment is returned, else nothing.
std::vector<double> copy(const Vector& source, const Vector& target, bool squares);

}  // namespace steepest
