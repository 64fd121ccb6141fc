// Hot calls take no memory in proportion to the vectors: every allocation is counted.
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <vector>

#include "check.hpp"
#include "steepest/apply.hpp"
#include "steepest/elements.hpp"
#include "steepest/gram.hpp"
#include "steepest/parallel.hpp"
#include "steepest/project.hpp"

namespace {

// Bytes in use and the most that ever were. Each allocation carries its size in front of it.
std::atomic<std::size_t> in_use{0}, peak{0};

void* counted(std::size_t size, std::size_t alignment) {
    const std::size_t header = alignment < 16 ? 16 : alignment;
    char* const raw = static_cast<char*>(std::aligned_alloc(header, (size + 2 * header - 1) / header * header));
    if (raw == nullptr) throw std::bad_alloc();
    *reinterpret_cast<std::size_t*>(raw) = size;
    const std::size_t now = in_use += size;
    std::size_t seen = peak;
    while (now > seen && !peak.compare_exchange_weak(seen, now)) {}
    return raw + header;
}

void uncounted(void* pointer, std::size_t alignment) {
    if (pointer == nullptr) return;
    char* const raw = static_cast<char*>(pointer) - (alignment < 16 ? 16 : alignment);
    in_use -= *reinterpret_cast<std::size_t*>(raw);
    std::free(raw);
}

}  // namespace

void* operator new(std::size_t size) { return counted(size, 1); }
void* operator new(std::size_t size, std::align_val_t alignment) { return counted(size, static_cast<std::size_t>(alignment)); }
void operator delete(void* pointer) noexcept { uncounted(pointer, 1); }
void operator delete(void* pointer, std::size_t) noexcept { uncounted(pointer, 1); }
void operator delete(void* pointer, std::align_val_t alignment) noexcept { uncounted(pointer, static_cast<std::size_t>(alignment)); }
void operator delete(void* pointer, std::size_t, std::align_val_t alignment) noexcept {
    uncounted(pointer, static_cast<std::size_t>(alignment));
}

namespace {

using namespace steepest;

constexpr std::size_t limit = std::size_t{1} << 20;
constexpr index_t n = 1000000;

Vector view(std::vector<double>& values, index_t step) {
    const index_t count = static_cast<index_t>(values.size()) / step;
    return {{Segment(reinterpret_cast<char*>(values.data()), DType::float64, {count}, {step * 8})}};
}

template <class Call>
std::size_t most_taken_by(Call call) {
    call();  // the pool starts, once
    const std::size_t before = in_use;
    peak = before;
    call();
    CHECK(in_use == before);
    return peak - before;
}

}  // namespace

int main() {
    set_num_threads(2);
    {
        const std::size_t before = in_use;
        std::vector<double> own(1000);
        CHECK(in_use >= before + 8000);  // the counters count
    }
    for (const index_t step : {1, 2}) {  // typed loops, and tiles
        std::vector<double> w(static_cast<std::size_t>(n * step), 0.5), v(w), x(w), y(w);
        const Vector a = view(w, step), b = view(v, step), in = view(x, step), out = view(y, step);
        LowRankOperator op;
        op.columns = {{&a, 0, false}, {&b, 0, false}};
        op.core = SmallMatrix::Identity(2, 2) * 1e-6;
        const std::vector<Vector> from = {in}, to = {out};
        CHECK(most_taken_by([&] { apply(op, from, from, to); }) < limit);
        CHECK(y[0] > 0.7499 && y[0] < 0.7501);  // 0.5 + 2 * 0.5 * 1e-6 * 2.5e5
        CHECK(most_taken_by([&] { (void)gram({&a, &b}, Precision::fast); }) < limit);
        CHECK(most_taken_by([&] { (void)gram({&a, &b}, Precision::compensated); }) < limit);
        CHECK(most_taken_by([&] { project({{&a, 0, false}}, Projection::off, from, to); }) < limit);
        CHECK(most_taken_by([&] { (void)angle_gram(a, b, &in, {1e-13}); }) < limit);
        CHECK(most_taken_by([&] { (void)first_not_positive(a); }) < limit);
    }
}
