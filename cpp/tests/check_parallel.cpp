// The thread pool: every task once, exceptions of workers, nested and concurrent calls; partitions into blocks.
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "steepest/parallel.hpp"

using steepest::Block;
using steepest::index_t;
using steepest::parallel_for;
using steepest::Partition;

namespace {

void check_every_task_once(index_t n) {
    std::vector<std::atomic<int>> counts(static_cast<std::size_t>(n));
    parallel_for(n, [&](index_t task) { ++counts[static_cast<std::size_t>(task)]; });
    for (const std::atomic<int>& count : counts) CHECK(count == 1);
}

void check_exceptions() {
    for (const index_t thrower : {index_t{0}, index_t{57}, index_t{999}}) {
        std::string message;
        try {
            parallel_for(1000, [&](index_t task) {
                if (task == thrower) throw std::runtime_error("task " + std::to_string(task));
            });
        } catch (const std::runtime_error& error) {
            message = error.what();
        }
        CHECK(message == "task " + std::to_string(thrower));
    }
    // All of them throw: one arrives, and the pool is fit for the next call.
    for (int round = 0; round < 200; ++round)
        CHECK_THROWS(parallel_for(64, [](index_t) { throw std::bad_alloc(); }), std::bad_alloc);
    check_every_task_once(500);
}

void check_nested() {
    std::atomic<int> total{0};
    parallel_for(40, [&](index_t) { parallel_for(40, [&](index_t) { ++total; }); });
    CHECK(total == 1600);
    CHECK_THROWS(parallel_for(40, [&](index_t) { parallel_for(40, [&](index_t) { throw std::domain_error("x"); }); }),
                 std::domain_error);
}

void check_concurrent() {
    std::vector<std::thread> callers;
    std::atomic<long> total{0};
    for (int caller = 0; caller < 6; ++caller)
        callers.emplace_back([&] {
            for (int round = 0; round < 200; ++round) {
                std::atomic<long> own{0};
                parallel_for(50, [&](index_t task) { own += task; });
                CHECK(own == 1225);
                total += own;
            }
        });
    for (std::thread& caller : callers) caller.join();
    CHECK(total == 6 * 200 * 1225);
}

// While threads of somebody else keep every CPU busy: workers wait for their turns, and are left out for a while.
void check_crowded() {
    std::atomic<bool> over{false};
    std::vector<std::thread> others;
    for (int i = 0; i < steepest::available_cpus(); ++i)
        others.emplace_back([&over] {
            while (!over) {
            }
        });
    steepest::set_num_threads(3);
    for (int round = 0; round < 40; ++round) {
        std::vector<std::atomic<int>> counts(64);
        parallel_for(64, [&](index_t task) {
            const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(20);
            while (std::chrono::steady_clock::now() < end) {
            }
            ++counts[static_cast<std::size_t>(task)];
        });
        for (const std::atomic<int>& count : counts) CHECK(count == 1);
    }
    over = true;
    for (std::thread& one : others) one.join();
    check_every_task_once(500);
}

void check_partition() {
    char memory[1];
    steepest::Vector vector;
    std::vector<index_t> sizes = {0, 1, steepest::block_size, 0, steepest::block_size + 1, 3 * steepest::block_size - 1, 0};
    for (const index_t size : sizes)
        vector.segments.emplace_back(memory, steepest::DType::float64, steepest::Segment::Axes{size}, steepest::Segment::Axes{0});
    const Partition partition(vector);
    std::vector<index_t> next(sizes.size(), 0);
    for (index_t b = 0; b < partition.size(); ++b) {
        const Block block = partition[b];
        CHECK(block.begin == next[block.segment]);
        CHECK(block.count > 0 && block.count <= steepest::block_size);
        next[block.segment] += block.count;
    }
    CHECK(next == sizes);
    CHECK(partition.size() == 1 + 1 + 2 + 3);
    CHECK(Partition(steepest::Vector{}).size() == 0);

    // More elements than an int counts.
    steepest::Vector large;
    const index_t size = (index_t{1} << 33) + 5;
    large.segments.emplace_back(memory, steepest::DType::float64, steepest::Segment::Axes{size}, steepest::Segment::Axes{0});
    const Partition many(large);
    const Block last = many[many.size() - 1];
    CHECK(last.begin + last.count == size && last.count == 5);
}

}  // namespace

int main() {
    CHECK(steepest::available_cpus() >= 1);
    CHECK_THROWS(steepest::set_num_threads(0), std::invalid_argument);
    CHECK_THROWS(steepest::set_num_threads(-3), std::invalid_argument);
    for (const int threads : {1, 2, 4, 9, 3}) {
        steepest::set_num_threads(threads);
        CHECK(steepest::get_num_threads() == threads);
        for (const index_t n : {0, 1, 3, 4, 8, 100, 5000}) check_every_task_once(n);
        check_exceptions();
        check_nested();
        check_concurrent();
    }
    check_crowded();
    check_partition();
}
