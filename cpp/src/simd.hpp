// Native-width vectors of doubles for the hot loops: loads that widen, fused multiply-adds, error-free transformations.
// Everything is static inline in an anonymous namespace, because the file is compiled for several instruction sets.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__SSE2__) && defined(__x86_64__)
#include <emmintrin.h>
#endif
#if defined(__aarch64__) && !defined(_MSC_VER)
#include <arm_neon.h>
#define STEEPEST_NEON 1
#else
#define STEEPEST_NEON 0
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

// gcc makes a chain of half-width conversions of __builtin_convertvector, for NEON one of single elements, hence the
// intrinsics.
#if defined(__AVX512F__)
STEEPEST_INLINE vdouble to_double(vfloat x) { return _mm512_cvtps_pd(x); }
STEEPEST_INLINE vfloat to_float(vdouble x) { return _mm512_cvtpd_ps(x); }
STEEPEST_INLINE vuint32 to_uint32(vuint16 x) { return (vuint32)_mm256_cvtepu16_epi32((__m128i)x); }
STEEPEST_INLINE vuint16 to_uint16(vuint32 x) { return (vuint16)_mm256_cvtepi32_epi16((__m256i)x); }
#elif defined(__AVX2__)
STEEPEST_INLINE vdouble to_double(vfloat x) { return _mm256_cvtps_pd(x); }
STEEPEST_INLINE vfloat to_float(vdouble x) { return _mm256_cvtpd_ps(x); }
STEEPEST_INLINE vuint32 to_uint32(vuint16 x) {
    std::int64_t four;
    std::memcpy(&four, &x, sizeof four);
    return (vuint32)_mm_cvtepu16_epi32(_mm_cvtsi64_si128(four));
}
STEEPEST_INLINE vuint16 to_uint16(vuint32 x) { return __builtin_convertvector(x, vuint16); }
#elif STEEPEST_NEON
STEEPEST_INLINE vdouble to_double(vfloat x) { return (vdouble)vcvt_f64_f32((float32x2_t)x); }
STEEPEST_INLINE vfloat to_float(vdouble x) { return (vfloat)vcvt_f32_f64((float64x2_t)x); }
// Two elements of 16 bits fill the lower half of NEON's smallest register.
STEEPEST_INLINE uint16x4_t load_halves(const char* p) {
    float two;  // a float's register is the vector's: ldr, and no detour by an integer's
    std::memcpy(&two, p, sizeof two);
    return vreinterpret_u16_f32(vset_lane_f32(two, vdup_n_f32(0), 0));
}
STEEPEST_INLINE void store_halves(uint16x4_t h, char* p) {
    const float two = vget_lane_f32(vreinterpret_f32_u16(h), 0);
    std::memcpy(p, &two, sizeof two);
}
// Rounds to odd: a result that is not exact gets its last bit set, so that rounding it again to at most 22 bits (or to
// a multiple of 4 subnormal quanta) errs by nothing; what is too large becomes the largest number, not Inf.
STEEPEST_INLINE float32x4_t to_float_odd(vdouble x) { return vcombine_f32(vcvtx_f32_f64((float64x2_t)x), vdup_n_f32(0)); }
#else
STEEPEST_INLINE vdouble to_double(vfloat x) { return __builtin_convertvector(x, vdouble); }
STEEPEST_INLINE vfloat to_float(vdouble x) { return __builtin_convertvector(x, vfloat); }
STEEPEST_INLINE vuint32 to_uint32(vuint16 x) { return __builtin_convertvector(x, vuint32); }
STEEPEST_INLINE vuint16 to_uint16(vuint32 x) { return __builtin_convertvector(x, vuint16); }
#endif
STEEPEST_INLINE vdouble broadcast(double x) { return x - vdouble{}; }
typedef std::int64_t vmask __attribute__((vector_size(width * 8)));
typedef std::uint64_t vuint64 __attribute__((vector_size(width * 8)));
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
typedef bool vmask;
typedef std::uint64_t vuint64;
#endif

template <class To, class From>
STEEPEST_INLINE To bits(const From& x) {
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
#elif STEEPEST_NEON
    return vfmaq_f64(c, a, b);
#else
    return a * b + c;
#endif
}

// a + b, on the pipes of the fused multiply-adds where these are others than those of additions.
STEEPEST_INLINE vdouble added(vdouble a, vdouble b) {
#if defined(__FMA__)
    return multiply_add(broadcast(1.0), a, b);
#else
    return a + b;
#endif
}

#if defined(__FMA__) || STEEPEST_NEON
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

// s + e = a + b exactly (Knuth), half of it on the pipes of the fused multiply-adds.
STEEPEST_INLINE void two_sum(vdouble a, vdouble b, vdouble& s, vdouble& e) {
    s = a + b;
    const vdouble minus_t = a - s;
    e = added(a - added(s, minus_t), added(b, minus_t));
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

// Stores that do not read the cache line first and leave the cache to others; `to` aligned to the number of bytes.
template <int count>
STEEPEST_INLINE void stream_bytes(const char* from, char* to) {
#if defined(__SSE2__) && defined(__x86_64__)
#if defined(__AVX512F__)
    if constexpr (count == 64) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to), bits<__m512i>(*reinterpret_cast<const char(*)[64]>(from)));
        return;
    }
#endif
#if defined(__AVX2__)
    if constexpr (count == 32) {
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bits<__m256i>(*reinterpret_cast<const char(*)[32]>(from)));
        return;
    }
#endif
    if constexpr (count == 16) {
        _mm_stream_si128(reinterpret_cast<__m128i*>(to), bits<__m128i>(*reinterpret_cast<const char(*)[16]>(from)));
        return;
    }
    if constexpr (count == 8) {
        long long value;
        std::memcpy(&value, from, 8);
        _mm_stream_si64(reinterpret_cast<long long*>(to), value);
        return;
    }
    if constexpr (count == 4) {
        int value;
        std::memcpy(&value, from, 4);
        _mm_stream_si32(reinterpret_cast<int*>(to), value);
        return;
    }
#endif
    std::memcpy(to, from, count);
}

// Before another thread may read what was streamed.
STEEPEST_INLINE void stream_fence() {
#if defined(__SSE2__) && defined(__x86_64__)
    _mm_sfence();
#endif
}

template <class T, bool streams>
STEEPEST_INLINE void store(vdouble value, char* to) {
    if constexpr (streams) {
        char bytes[width * T::bytes];
        T::store(value, bytes);
        stream_bytes<width * T::bytes>(bytes, to);
    } else {
        T::store(value, to);
    }
}

// Elements of `bytes` bytes before `to` is aligned for a stream of a whole register; -1 if it never is.
STEEPEST_INLINE std::int64_t unaligned_elements(const char* to, int bytes) {
    const auto past = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(to) % static_cast<std::uintptr_t>(width * bytes));
    if (past % bytes != 0) return -1;
    return past == 0 ? 0 : width - past / bytes;
}

STEEPEST_INLINE vdouble select(vmask mask, vdouble yes, vdouble no) {
#if defined(__GNUC__) || defined(__clang__)
    return bits<vdouble>((bits<vmask>(yes) & mask) | (bits<vmask>(no) & ~mask));
#else
    return mask ? yes : no;
#endif
}

// Rounds to nearest, ties to even, with `mantissa_bits` bits after the leading one, and to multiples of `quantum` where
// the narrow type is subnormal. The result converts to the narrow type without a second rounding.
template <int mantissa_bits>
STEEPEST_INLINE vdouble round_to_narrow(vdouble x, double least_normal, double quantum) {
    constexpr int dropped = 52 - mantissa_bits;
    const vuint64 u = bits<vuint64>(x);
    const vuint64 rounded = (u + ((u >> dropped) & 1u) + ((std::uint64_t{1} << (dropped - 1)) - 1)) & ~((std::uint64_t{1} << dropped) - 1);
    // Adding 1.5 * 2^52 quanta leaves no bits below one quantum.
    const vdouble magic = broadcast(6755399441055744.0 * quantum);
    const vdouble subnormal = (x + magic) - magic;
    const vdouble magnitude = bits<vdouble>(u & ~(std::uint64_t{1} << 63));
    // A small negative number that rounds to zero stays a negative zero.
    const vdouble signed_subnormal = bits<vdouble>(bits<vuint64>(subnormal) | (u & (std::uint64_t{1} << 63)));
    const vdouble normal = select(x == x, bits<vdouble>(rounded), x);  // NaN stays NaN
    return select(magnitude < broadcast(least_normal), signed_subnormal, normal);
}

struct BFloat16 {
    static constexpr bool exact_products = true;
    static constexpr int bytes = 2;
    static STEEPEST_INLINE vdouble load(const char* p) {
#if STEEPEST_NEON
        return (vdouble)vcvt_f64_f32(vget_low_f32(vreinterpretq_f32_u32(vshll_n_u16(load_halves(p), 16))));
#else
        vuint16 h;
        std::memcpy(&h, p, sizeof h);
        return to_double(bits<vfloat>(to_uint32(h) << 16));
#endif
    }
    static STEEPEST_INLINE void store(vdouble x, char* p) {
#if STEEPEST_NEON
        const float32x4_t y = to_float_odd(x);
        const uint32x4_t u = vreinterpretq_u32_f32(y);
        const uint32x4_t last = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1u));
        const uint32x4_t rounded = vaddq_u32(u, vaddq_u32(last, vdupq_n_u32(0x7fffu)));  // to nearest, ties to even
        store_halves(vshrn_n_u32(vbslq_u32(vceqq_f32(y, y), rounded, u), 16), p);  // NaN stays NaN
#else
        const vfloat y = to_float(round_to_narrow<7>(x, 1.1754943508222875e-38, 9.183549615799121e-41));  // 2^-126, 2^-133
        const vuint16 h = to_uint16(bits<vuint32>(y) >> 16);
        std::memcpy(p, &h, sizeof h);
#endif
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
#elif STEEPEST_NEON
        return (vdouble)vcvt_f64_f32(vget_low_f32(vcvt_f32_f16(vreinterpret_f16_u16(load_halves(p)))));
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
    static STEEPEST_INLINE void store(vdouble x, char* p) {
#if STEEPEST_NEON
        store_halves(vreinterpret_u16_f16(vcvt_f16_f32(to_float_odd(x))), p);
#else
        const vdouble rounded = round_to_narrow<10>(x, 6.103515625e-05, 5.960464477539063e-08);  // 2^-14, 2^-24
#if defined(__AVX512F__)
        const __m128i h = _mm256_cvtps_ph(_mm512_cvtpd_ps(rounded), _MM_FROUND_TO_NEAREST_INT);
        std::memcpy(p, &h, sizeof h);
#elif defined(__AVX2__) && defined(__F16C__)
        const std::int64_t four = _mm_cvtsi128_si64(_mm_cvtps_ph(_mm256_cvtpd_ps(rounded), _MM_FROUND_TO_NEAREST_INT));
        std::memcpy(p, &four, sizeof four);
#else
        double lanes[width];
        std::memcpy(lanes, &rounded, sizeof rounded);
        for (int i = 0; i < width; ++i) {
            const std::uint16_t h = exact_bits(static_cast<float>(lanes[i]));
            std::memcpy(p + 2 * i, &h, 2);
        }
#endif
#endif
    }

private:
    // The bits of a float that float16 holds exactly, or that is beyond its range, or NaN.
    static STEEPEST_INLINE std::uint16_t exact_bits(float x) {
        const std::uint32_t u = bits<std::uint32_t>(x), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
        std::uint32_t half;
        if (magnitude > 0x7f800000u) half = 0x7e00u;
        else if (magnitude >= 0x47800000u) half = 0x7c00u;  // 65536 and more
        else if (magnitude >= 0x38800000u) half = (magnitude - 0x38000000u) >> 13;
        else half = static_cast<std::uint32_t>((x < 0 ? -x : x) * 16777216.0f);  // subnormal: multiples of 2^-24
        return static_cast<std::uint16_t>(sign | half);
    }
};

}  // namespace
