#include "steepest/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>

#ifdef __linux__
#include <sched.h>
#include <sys/resource.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define STEEPEST_HAVE_FORK 1
#endif

namespace steepest {

Partition::Partition(const Vector& vector, index_t size) : block_size_(size) {
    index_t blocks = 0;
    for (const Segment& segment : vector.segments) {
        first_block_.push_back(blocks);
        sizes_.push_back(segment.size());
        blocks += (segment.size() + block_size_ - 1) / block_size_;
    }
    first_block_.push_back(blocks);
}

Block Partition::operator[](index_t block) const {
    const auto after = std::upper_bound(first_block_.begin(), first_block_.end(), block);
    const auto segment = static_cast<std::size_t>(after - first_block_.begin()) - 1;
    const index_t begin = (block - first_block_[segment]) * block_size_;
    return {segment, begin, std::min(block_size_, sizes_[segment] - begin)};
}

index_t Partition::worth() const {
    index_t elements = 0;
    for (const index_t size : sizes_) elements += size;
    return (elements + block_size - 1) / block_size;
}

namespace {

constexpr int max_threads = 256;
constexpr index_t tasks_per_thread = 4;  // waking a thread costs about as much as two blocks take

int current_cpu() {
#ifdef __linux__
    return sched_getcpu();
#else
    return -1;
#endif
}

// Blocks that are neighbours in memory go to one thread, whose hardware prefetcher then runs on from one to the next; few
// enough to share the end of the work fairly.
constexpr index_t most_at_once = 8;

// One parallel_for in flight: its tasks are handed out by a counter.
struct Job {
    TaskRef work;
    index_t n_tasks;
    index_t grain;  // consecutive tasks that a thread takes at once
    std::atomic<index_t> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error{};  // written once, by the thread that set `failed`

    void run() {
        for (;;) {
            const index_t first = next.fetch_add(grain, std::memory_order_relaxed);
            if (first >= n_tasks || failed.load(std::memory_order_relaxed)) return;
            try {
                for (index_t task = first; task < std::min(first + grain, n_tasks); ++task) work(task);
            } catch (...) {
                if (!failed.exchange(true)) error = std::current_exception();
            }
        }
    }
};

// Waking a sleeping thread takes tens of microseconds, as much as a kernel needs for 1e5 elements. So a thread that waits
// looks a while before it sleeps: long enough to go from one pass of a product to the next, and from one call of a loop
// in Python to the next. Longer, and it uses up its turn where other threads spin too (those of a BLAS).
constexpr auto spin_time = std::chrono::microseconds(20);
constexpr int looks_per_clock = 16;  // reading the clock takes about as long as a pause

template <class Condition>
void spin_until(Condition condition) {
    const auto deadline = std::chrono::steady_clock::now() + spin_time;
    for (int round = 1; !condition(); ++round) {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#elif defined(__aarch64__) && !defined(_MSC_VER)
        __asm__ __volatile__("yield");
#endif
        if (round % looks_per_clock == 0 && std::chrono::steady_clock::now() > deadline) return;
    }
}

// Linux may wake a worker on the CPU of the thread that calls it, and leave it there for thousands of calls, waiting for that
// thread's turn to end. So workers are kept off the caller's CPU: by the caller, before it wakes them, because a worker that
// waits there cannot move itself.
class Worker {
public:
    explicit Worker(std::thread::native_handle_type thread) : thread_(thread) {}

    // Asks for the CPUs that the worker may use, less one, if it has not just this choice already.
    void avoid(int cpu) {
#ifdef __linux__
        if (cpu == avoided_ || cpu < 0 || cpu >= CPU_SETSIZE) return;
        cpu_set_t current;
        if (pthread_getaffinity_np(thread_, sizeof current, &current) != 0) return;
        if (!CPU_EQUAL(&current, &chosen_)) allowed_ = current;  // the first time, or set by someone else since
        chosen_ = allowed_;
        CPU_CLR(cpu, &chosen_);
        if (CPU_COUNT(&chosen_) == 0) chosen_ = allowed_;
        if (pthread_setaffinity_np(thread_, sizeof chosen_, &chosen_) == 0) avoided_ = cpu;
#else
        (void)cpu;
#endif
    }

private:
    [[maybe_unused]] std::thread::native_handle_type thread_;
#ifdef __linux__
    int avoided_ = -1;
    cpu_set_t allowed_{}, chosen_{};
#endif
};

// How long the calling thread was kept from a CPU that it was ready to use. Other libraries' threads may spin on the CPUs
// between their calls (OpenMP's do for milliseconds), and each of them has its turn there before a worker goes on.
class Waited {
public:
    static constexpr auto worth_knowing = std::chrono::microseconds(100);

    std::chrono::nanoseconds since_start() const {
#ifdef __linux__
        const std::chrono::nanoseconds passed = std::chrono::steady_clock::now() - begin_;
        if (passed < worth_knowing) return std::chrono::nanoseconds(0);
        const Usage now = usage();
        // Preempted, and not merely asleep until a page came from a disk
        if (now.preemptions > start_.preemptions) return passed - (now.busy - start_.busy);
#endif
        return std::chrono::nanoseconds(0);
    }

private:
#ifdef __linux__
    struct Usage {
        std::chrono::microseconds busy;
        long preemptions;
    };
    static Usage usage() {
        rusage found{};
        getrusage(RUSAGE_THREAD, &found);
        const auto time = [](const timeval& t) { return std::chrono::seconds(t.tv_sec) + std::chrono::microseconds(t.tv_usec); };
        return {time(found.ru_utime) + time(found.ru_stime), found.ru_nivcsw};
    }

    std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
    Usage start_ = usage();
#endif
};

class Pool {
public:
    // Whether the caller had better work alone: the workers lately waited for their CPUs, and it for them. They are tried again
    // after 1, 3, 7, ... and at last every 64 jobs.
    bool crowded() {
        if (alone_ == 0) return false;
        --alone_;
        return true;
    }

    // Runs the job on the caller and up to `helpers` workers, and returns when all of them have let go of it.
    void run(Job& job, int helpers) {
        const auto begin = std::chrono::steady_clock::now();
        const int cpu = current_cpu();
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (static_cast<int>(workers_.size()) < helpers) {
                try {
                    std::thread thread([this] { serve(); });
                    workers_.emplace_back(thread.native_handle());
                    thread.detach();
                } catch (const std::system_error&) {
                    break;  // the system grants no more threads: go on with those we have
                }
            }
            for (Worker& worker : workers_) worker.avoid(cpu);
            job_ = &job;
            wanted_ = std::min(helpers, static_cast<int>(workers_.size()));
        }
        if (sleeping_.load() > 0) wake_.notify_all();
        job.run();
        {
            std::lock_guard<std::mutex> lock(mutex_);
            wanted_ = 0;  // workers that have not woken yet need not join any more
            job_ = nullptr;
        }
        const auto finished = [this] { return active_.load() == 0; };
        spin_until(finished);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, finished);
        const auto all = std::chrono::steady_clock::now() - begin;
        penalty_ = longest_wait_ > Waited::worth_knowing && longest_wait_ > all / 4 ? std::min(2 * penalty_ + 1, 64) : 0;
        alone_ = penalty_;
        longest_wait_ = std::chrono::nanoseconds(0);
    }

    // Set by the call whose job the pool runs. Not a mutex: a nested call may try it on the thread that holds it.
    std::atomic_flag busy = ATOMIC_FLAG_INIT;

private:
    void serve() {
        const auto called = [this] { return wanted_.load() > 0; };
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            lock.unlock();
            spin_until(called);
            lock.lock();
            ++sleeping_;
            wake_.wait(lock, called);
            --sleeping_;
            --wanted_;
            ++active_;
            Job* job = job_;
            lock.unlock();
            const Waited waited;
            job->run();
            const std::chrono::nanoseconds wait = waited.since_start();
            lock.lock();
            longest_wait_ = std::max(longest_wait_, wait);
            if (--active_ == 0) done_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_, done_;
    Job* job_ = nullptr;
    std::chrono::nanoseconds longest_wait_{0};  // of a worker, during this job
    int penalty_ = 0, alone_ = 0;               // jobs without workers, and how many of them are left
    std::vector<Worker> workers_;
    std::atomic<int> wanted_{0}, active_{0}, sleeping_{0};  // changed under the mutex, looked at without it
};

// The pool is never destroyed: its idle workers end with the process. A forked child has none of them, so it starts
// over with a new pool in the same storage.
alignas(Pool) unsigned char pool_storage[sizeof(Pool)];
Pool& pool() {
    static Pool* const instance = [] {
        Pool* made = new (pool_storage) Pool;
#ifdef STEEPEST_HAVE_FORK
        pthread_atfork(nullptr, nullptr, [] { new (pool_storage) Pool; });
#endif
        return made;
    }();
    return *instance;
}

int threads_from_environment() {
    const char* text = std::getenv("STEEPEST_NUM_THREADS");
    if (text == nullptr || *text == '\0') return std::min(available_cpus(), max_threads);
    char* end = nullptr;
    const long value = std::strtol(text, &end, 10);
    if (*end != '\0' || value < 1)
        throw std::invalid_argument("expected STEEPEST_NUM_THREADS to be a positive integer, got '" + std::string(text) +
                                    "'");
    return static_cast<int>(std::min<long>(value, max_threads));
}

std::atomic<int>& thread_count() {
    static std::atomic<int> count{threads_from_environment()};
    return count;
}

}  // namespace

int available_cpus() {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int get_num_threads() { return thread_count().load(); }

void set_num_threads(int n) {
    if (n < 1) throw std::invalid_argument("expected at least 1 thread, got " + std::to_string(n));
    thread_count().store(std::min(n, max_threads));
}

namespace {

// `worth` is the number of tasks of ordinary size that the work amounts to.
void run(index_t n_tasks, index_t worth, TaskRef work) {
    const int helpers = static_cast<int>(std::min<index_t>(get_num_threads(), worth / tasks_per_thread)) - 1;
    if (helpers < 1) {
        for (index_t task = 0; task < n_tasks; ++task) work(task);
        return;
    }
    Job job{work, n_tasks, std::clamp<index_t>(n_tasks / (16 * (helpers + 1)), 1, most_at_once)};
    if (pool().busy.test_and_set(std::memory_order_acquire)) {
        job.run();
    } else {
        if (pool().crowded()) job.run();
        else pool().run(job, helpers);
        pool().busy.clear(std::memory_order_release);
    }
    if (job.failed) std::rethrow_exception(job.error);
}

}  // namespace

void parallel_for(index_t n_tasks, TaskRef work) { run(n_tasks, n_tasks, work); }

void parallel_for(const Partition& partition, TaskRef work) {
    run(partition.size(), partition.worth(), work);
}

}  // namespace steepest
