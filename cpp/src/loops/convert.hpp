// To doubles and back.
#pragma once

#include "lanes.hpp"

namespace {

template <class T>
void widen(const void* source, int64_t n, double* target) {
    const char* from = static_cast<const char*>(source);
    int64_t i = 0;
    for (; i + width <= n; i += width) {
        STEEPEST_PREFETCH(from + i * T::bytes + prefetch_bytes);
        Float64::store(T::load(from + i * T::bytes), reinterpret_cast<char*>(target + i));
    }
    if (i < n) {
        char tail[width * T::bytes] = {};
        double values[width];
        std::memcpy(tail, from + i * T::bytes, static_cast<std::size_t>(n - i) * T::bytes);
        Float64::store(T::load(tail), reinterpret_cast<char*>(values));
        std::memcpy(target + i, values, static_cast<std::size_t>(n - i) * sizeof(double));
    }
}

template <class T, bool streams>
STEEPEST_INLINE void narrow_as(const double* source, int64_t n, void* target) {
    char* to = static_cast<char*>(target);
    const auto some = [&](int64_t i, int64_t count) {
        double values[width] = {};
        char tail[width * T::bytes];
        std::memcpy(values, source + i, static_cast<std::size_t>(count) * sizeof(double));
        T::store(Float64::load(reinterpret_cast<const char*>(values)), tail);
        std::memcpy(to + i * T::bytes, tail, static_cast<std::size_t>(count) * T::bytes);
    };
    int64_t i = 0;
    if constexpr (streams) {
        i = unaligned_elements(to, T::bytes);
        if (i > n) i = n;
        if (i > 0) some(0, i);
    }
    for (; i + width <= n; i += width)
        store<T, streams>(Float64::load(reinterpret_cast<const char*>(source + i)), to + i * T::bytes);
    if (i < n) some(i, n - i);
    if constexpr (streams) stream_fence();
}

template <class T>
void narrow(const double* source, int64_t n, void* target, bool stream) {
    if (stream && unaligned_elements(static_cast<char*>(target), T::bytes) >= 0) narrow_as<T, true>(source, n, target);
    else narrow_as<T, false>(source, n, target);
}

}  // namespace
