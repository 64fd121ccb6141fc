// Fixed blocks and a thread pool. Every kernel cuts its vectors into the same blocks whatever the number of threads and
// combines their results in block order, so the bits of a result do not depend on that number.
#pragma once

#include "steepest/types.hpp"

namespace steepest {

constexpr index_t block_size = 8192;  // elements; small enough to balance 1e5 elements, large enough to hide dispatch
constexpr index_t tile_size = 1024;   // elements; what a kernel widens to double at a time (8 KiB stay in L1)

struct Block {
    std::size_t segment;
    index_t begin, count;
};

// The blocks of a vector: each segment cut into blocks of `size` elements, the last one shorter.
class Partition {
public:
    explicit Partition(const Vector& vector, index_t size = block_size);
    index_t size() const { return first_block_.back(); }
    Block operator[](index_t block) const;
    index_t first_block(std::size_t segment) const { return first_block_[segment]; }  // of the end, too
    index_t worth() const;  // how many blocks of block_size elements the work amounts to

private:
    index_t block_size_;
    ShortVector<index_t, 3> first_block_;  // for each segment, then the total
    ShortVector<index_t, 2> sizes_;
};

// What to do for one task: any callable, referred to for the time of one call.
class TaskRef {
public:
    template <class Work>
    TaskRef(const Work& work)
        : work_(&work), call_([](const void* callable, index_t task) { (*static_cast<const Work*>(callable))(task); }) {}
    void operator()(index_t task) const { call_(work_, task); }

private:
    const void* work_;
    void (*call_)(const void* callable, index_t task);
};

// Calls work(i) once for each i in [0, n_tasks), from the calling thread and the pool's. The pool starts on first use
// with more than one thread and survives fork. The first exception thrown by `work` is rethrown here. Where the pool is
// busy with another call, the caller does all the work itself.
void parallel_for(index_t n_tasks, TaskRef work);

// The same over the blocks of a vector; many small ones are not worth a second thread.
void parallel_for(const Partition& partition, TaskRef work);

// The number of threads to use: set_num_threads, else STEEPEST_NUM_THREADS, else the CPUs this process may run on.
int get_num_threads();
void set_num_threads(int n);  // n >= 1; std::invalid_argument otherwise
int available_cpus();

}  // namespace steepest
