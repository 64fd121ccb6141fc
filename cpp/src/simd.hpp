// Native-width vectors of doubles for hot_loops.cpp: loads that widen, fused multiply-adds, error-free transformations.
// Everything is static inline in an anonymous namespace, because the file is compiled for several instruction sets.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif
#if defined(__aarch64__) && !defined(_MSC_VER)
#include <arm_neon.h>
#endif

namespace {

#if defined(__GNUC__) || defined(__clang__)
#define STEEPEST_INLINE inline __attribute__((always_inline))
#define STEEPEST_PREFETCH(pointer) __builtin_prefetch((pointer), 0, 2)

#if defined(__AVX512F__)
constexpr int width = 8;
#elif defined(__AVX2__)
constexpr int width = 4;
#else
constexpr int width = 2;  // SSE2 and NEON
#endif
typedef double vdouble __attribute__((vector_size(width * 8)));
typedef float vfloat __attribute__((vector_size(width * 4)));
typedef std::uint32_t vuint32 __attribute__((vector_size(width * 4)));
typedef std::uint16_t vuint16 __attribute__((vector_size(width * 2)));

STEEPEST_INLINE vdouble to_double(vfloat x) { return __builtin_convertvector(x, vdouble); }
STEEPEST_INLINE vfloat to_float(vdouble x) { return __builtin_convertvector(x, vfloat); }
STEEPEST_INLINE vuint32 to_uint32(vuint16 x) { return __builtin_convertvector(x, vuint32); }
STEEPEST_INLINE vuint16 to_uint16(vuint32 x) { return __builtin_convertvector(x, vuint16); }
STEEPEST_INLINE vdouble broadcast(double x) { return x - vdouble{}; }
#else
#define STEEPEST_INLINE __forceinline
#define STEEPEST_PREFETCH(pointer) ((void)(pointer))
constexpr int width = 1;
typedef double vdouble;
typedef float vfloat;
typedef std::uint32_t vuint32;
typedef std::uint16_t vuint16;
STEEPEST_INLINE vdouble to_double(vfloat x) { return x; }
STEEPEST_INLINE vfloat to_float(vdouble x) { return static_cast<float>(x); }
STEEPEST_INLINE vuint32 to_uint32(vuint16 x) { return x; }
STEEPEST_INLINE vuint16 to_uint16(vuint32 x) { return static_cast<vuint16>(x); }
STEEPEST_INLINE vdouble broadcast(double x) { return x; }
#endif

template <class To, class From>
STEEPEST_INLINE To bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "bit cast between sizes");
    To y;
    std::memcpy(&y, &x, sizeof y);
    return y;
}

// a*b + c; fused where the instruction set has it.
STEEPEST_INLINE vdouble multiply_add(vdouble a, vdouble b, vdouble c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_pd(a, b, c);
#elif defined(__AVX2__) && defined(__FMA__)
    return _mm256_fmadd_pd(a, b, c);
#elif defined(__aarch64__) && !defined(_MSC_VER)
    return vfmaq_f64(c, a, b);
#else
    return a * b + c;
#endif
}

#if defined(__FMA__) || (defined(__aarch64__) && !defined(_MSC_VER))
// a*b = p + e exactly (barring underflow of e).
STEEPEST_INLINE void two_product(vdouble a, vdouble b, vdouble& p, vdouble& e) {
    p = a * b;
    e = multiply_add(a, b, -p);
}
#else
// Dekker (1971) and Veltkamp's splitting, for CPUs without a fused multiply-add.
STEEPEST_INLINE void split(vdouble a, vdouble& high, vdouble& low) {
    const vdouble c = a * 134217729.0;  // 2^27 + 1
    high = c - (c - a);
    low = a - high;
}
STEEPEST_INLINE void two_product(vdouble a, vdouble b, vdouble& p, vdouble& e) {
    vdouble ah, al, bh, bl;
    split(a, ah, al);
    split(b, bh, bl);
    p = a * b;
    e = ((ah * bh - p) + ah * bl + al * bh) + al * bl;
}
#endif

// s + e = a + b exactly (Knuth).
STEEPEST_INLINE void two_sum(vdouble a, vdouble b, vdouble& s, vdouble& e) {
    s = a + b;
    const vdouble t = s - a;
    e = (a - (s - t)) + (b - t);
}

// Element types as they lie in memory. `exact_products`: a product of two such numbers is exact in double.
struct Float64 {
    static constexpr bool exact_products = false;
    static constexpr int bytes = 8;
    static STEEPEST_INLINE vdouble load(const char* p) {
        vdouble x;
        std::memcpy(&x, p, sizeof x);
        return x;
    }
    static STEEPEST_INLINE void store(vdouble x, char* p) { std::memcpy(p, &x, sizeof x); }
};

struct Float32 {
    static constexpr bool exact_products = true;
    static constexpr int bytes = 4;
    static STEEPEST_INLINE vdouble load(const char* p) {
        vfloat x;
        std::memcpy(&x, p, sizeof x);
        return to_double(x);
    }
    static STEEPEST_INLINE void store(vdouble x, char* p) {
        const vfloat y = to_float(x);
        std::memcpy(p, &y, sizeof y);
    }
};

// Rounds a double to float so that a second rounding to a narrower type is right: round to odd.
STEEPEST_INLINE std::uint32_t float_bits_to_odd(double x) {
    const float nearest = static_cast<float>(x);
    std::uint32_t u = bits<std::uint32_t>(nearest);
    const double back = static_cast<double>(nearest);
    if (back != x && x == x && (u & 1u) == 0) {
        // `nearest` is even and inexact: the other neighbour of x is odd, and lies towards x.
        const bool away = (back < x) == (back >= 0 && !(u >> 31));
        u += away ? 1u : ~0u;
    }
    return u;
}

struct BFloat16 {
    static constexpr bool exact_products = true;
    static constexpr int bytes = 2;
    static STEEPEST_INLINE vdouble load(const char* p) {
        vuint16 h;
        std::memcpy(&h, p, sizeof h);
        return to_double(bits<vfloat>(to_uint32(h) << 16));
    }
    static STEEPEST_INLINE std::uint16_t narrow(double x) {
        std::uint32_t u = float_bits_to_odd(x);
        if (x != x) return static_cast<std::uint16_t>((u >> 16) | 0x40u);
        u += 0x7fffu + ((u >> 16) & 1u);  // round to nearest, ties to even
        return static_cast<std::uint16_t>(u >> 16);
    }
    static STEEPEST_INLINE void store(vdouble x, char* p) {
        double lanes[width];
        std::memcpy(lanes, &x, sizeof x);
        for (int i = 0; i < width; ++i) {
            const std::uint16_t h = narrow(lanes[i]);
            std::memcpy(p + 2 * i, &h, 2);
        }
    }
};

struct Float16 {
    static constexpr bool exact_products = true;
    static constexpr int bytes = 2;
    static STEEPEST_INLINE vdouble load(const char* p) {
#if defined(__AVX512F__)
        __m128i h;
        std::memcpy(&h, p, sizeof h);
        return _mm512_cvtps_pd(_mm256_cvtph_ps(h));
#elif defined(__AVX2__) && defined(__F16C__)
        std::int64_t four;
        std::memcpy(&four, p, sizeof four);
        return _mm256_cvtps_pd(_mm_cvtph_ps(_mm_cvtsi64_si128(four)));
#else
        vuint16 h;
        std::memcpy(&h, p, sizeof h);
        const vuint32 u = to_uint32(h);
        const vuint32 sign = (u & 0x8000u) << 16;
        const vuint32 magnitude = (u & 0x7fffu) << 13;
        // Multiplying by 2^112 moves the exponent bias, for normal and subnormal numbers alike; Inf and NaN have their
        // exponent filled up instead.
        const vuint32 moved = bits<vuint32>(bits<vfloat>(magnitude) * 5.192296858534828e33f);
        const vuint32 not_finite = ((u & 0x7c00u) + 0x0400u) >> 15;  // 1 or 0
        return to_double(bits<vfloat>(sign | moved | ((vuint32{} - not_finite) & 0x7f800000u)));
#endif
    }
    static STEEPEST_INLINE std::uint16_t narrow(double x) {
        const std::uint32_t u = float_bits_to_odd(x);
        const std::uint32_t sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
        if (x != x) return static_cast<std::uint16_t>(sign | 0x7e00u);
        if (magnitude >= 0x47800000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65536 and more
        std::uint32_t half, dropped;  // the kept bits, and those below them, as numerator of 2^shift
        int shift;
        if (magnitude >= 0x38800000u) {  // normal: at least 2^-14
            shift = 13;
            half = (magnitude - 0x38000000u) >> shift;
            dropped = magnitude & 0x1fffu;
        } else {
            shift = 126 - static_cast<int>(magnitude >> 23);
            if (shift > 25) return static_cast<std::uint16_t>(sign);  // below half of the least subnormal
            const std::uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
            half = mantissa >> shift;
            dropped = mantissa & ((1u << shift) - 1u);
        }
        const std::uint32_t tie = 1u << (shift - 1);
        if (dropped > tie || (dropped == tie && (half & 1u))) ++half;  // may carry into the exponent: that is right
        return static_cast<std::uint16_t>(sign | half);
    }
    static STEEPEST_INLINE void store(vdouble x, char* p) {
        double lanes[width];
        std::memcpy(lanes, &x, sizeof x);
        for (int i = 0; i < width; ++i) {
            const std::uint16_t h = narrow(lanes[i]);
            std::memcpy(p + 2 * i, &h, 2);
        }
    }
};

}  // namespace
