#include "steepest/dispatch.hpp"

#include <cstdlib>
#include <stdexcept>

#include "hot_loops.hpp"

namespace steepest {

extern const HotLoops hot_loops_baseline;
#ifdef STEEPEST_HAVE_AVX2
extern const HotLoops hot_loops_avx2;
#endif
#ifdef STEEPEST_HAVE_AVX512
extern const HotLoops hot_loops_avx512;
#endif

namespace {

struct Candidate {
    const HotLoops* loops;
    bool runs_here;
};

// Best first.
std::vector<Candidate> candidates() {
    std::vector<Candidate> found;
#ifdef STEEPEST_HAVE_AVX512
    found.push_back({&hot_loops_avx512,
                     __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                         __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")});
#endif
#ifdef STEEPEST_HAVE_AVX2
    // Every CPU with AVX2 has F16C.
    found.push_back({&hot_loops_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")});
#endif
    found.push_back({&hot_loops_baseline, true});
    return found;
}

const HotLoops& choose() {
    const char* forced = std::getenv("STEEPEST_ISA");
    const std::string wanted = forced == nullptr ? "" : forced;
    std::string names;
    for (const Candidate& candidate : candidates()) {
        if (!candidate.runs_here) continue;
        if (wanted.empty() || wanted == candidate.loops->name) return *candidate.loops;
        names += std::string(names.empty() ? "" : ", ") + candidate.loops->name;
    }
    throw std::invalid_argument("STEEPEST_ISA=" + wanted + " is not available here; this CPU and build have: " + names);
}

}  // namespace

const HotLoops& hot_loops() {
    static const HotLoops& chosen = choose();
    return chosen;
}

std::vector<std::string> compiled_instruction_sets() {
    std::vector<std::string> names;
    for (const Candidate& candidate : candidates()) names.insert(names.begin(), candidate.loops->name);
    return names;
}

std::string instruction_set_in_use() { return hot_loops().name; }

}  // namespace steepest
