// Double-double arithmetic: unevaluated sums hi + lo with about 106 bits, as a scalar type that Eigen accepts.
// Dekker (1971); Hida, Li, Bailey (2001); error bounds: Joldes, Muller, Popescu (2017).
#pragma once

#include <cmath>
#include <limits>

#include <Eigen/Core>

namespace steepest {

struct DoubleDouble {
    double hi = 0.0, lo = 0.0;

    DoubleDouble() = default;
    DoubleDouble(double value) : hi(value) {}  // implicit: doubles and small integers mix freely with it
    DoubleDouble(int value) : hi(value) {}
    DoubleDouble(double high, double low) : hi(high), lo(low) {}

    explicit operator double() const { return hi + lo; }

    DoubleDouble operator-() const { return {-hi, -lo}; }
    DoubleDouble& operator+=(const DoubleDouble& b);
    DoubleDouble& operator-=(const DoubleDouble& b);
    DoubleDouble& operator*=(const DoubleDouble& b);
    DoubleDouble& operator/=(const DoubleDouble& b);
};

// hi + lo = a + b exactly.
inline DoubleDouble two_sum(double a, double b) {
    const double s = a + b, t = s - a;
    return {s, (a - (s - t)) + (b - t)};
}
// The same where |a| >= |b| or a == 0.
inline DoubleDouble fast_two_sum(double a, double b) {
    const double s = a + b;
    return {s, b - (s - a)};
}
// hi + lo = a * b exactly.
inline DoubleDouble two_product(double a, double b) {
    const double p = a * b;
    return {p, std::fma(a, b, -p)};
}

inline DoubleDouble operator+(const DoubleDouble& a, const DoubleDouble& b) {
    const DoubleDouble s = two_sum(a.hi, b.hi), t = two_sum(a.lo, b.lo);
    const DoubleDouble v = fast_two_sum(s.hi, s.lo + t.hi);
    return fast_two_sum(v.hi, v.lo + t.lo);
}
inline DoubleDouble operator-(const DoubleDouble& a, const DoubleDouble& b) { return a + (-b); }
inline DoubleDouble operator*(const DoubleDouble& a, const DoubleDouble& b) {
    const DoubleDouble p = two_product(a.hi, b.hi);
    return fast_two_sum(p.hi, p.lo + (a.hi * b.lo + a.lo * b.hi));
}
inline DoubleDouble operator/(const DoubleDouble& a, const DoubleDouble& b) {
    const double q1 = a.hi / b.hi;
    if (!std::isfinite(q1)) return q1;
    DoubleDouble r = a - b * DoubleDouble(q1);
    const double q2 = r.hi / b.hi;
    r = r - b * DoubleDouble(q2);
    const double q3 = r.hi / b.hi;
    return fast_two_sum(q1, q2) + DoubleDouble(q3);
}
inline DoubleDouble sqrt(const DoubleDouble& a) {
    if (!(a.hi > 0.0)) return std::sqrt(a.hi);
    const double root = std::sqrt(a.hi);
    const DoubleDouble rest = a - two_product(root, root);
    return fast_two_sum(root, rest.hi / (2.0 * root));
}

inline DoubleDouble& DoubleDouble::operator+=(const DoubleDouble& b) { return *this = *this + b; }
inline DoubleDouble& DoubleDouble::operator-=(const DoubleDouble& b) { return *this = *this - b; }
inline DoubleDouble& DoubleDouble::operator*=(const DoubleDouble& b) { return *this = *this * b; }
inline DoubleDouble& DoubleDouble::operator/=(const DoubleDouble& b) { return *this = *this / b; }

inline bool operator<(const DoubleDouble& a, const DoubleDouble& b) { return a.hi < b.hi || (a.hi == b.hi && a.lo < b.lo); }
inline bool operator>(const DoubleDouble& a, const DoubleDouble& b) { return b < a; }
inline bool operator<=(const DoubleDouble& a, const DoubleDouble& b) { return !(b < a); }
inline bool operator>=(const DoubleDouble& a, const DoubleDouble& b) { return !(a < b); }
inline bool operator==(const DoubleDouble& a, const DoubleDouble& b) { return a.hi == b.hi && a.lo == b.lo; }
inline bool operator!=(const DoubleDouble& a, const DoubleDouble& b) { return !(a == b); }

inline DoubleDouble abs(const DoubleDouble& a) { return a.hi < 0.0 ? -a : a; }
inline DoubleDouble ldexp(const DoubleDouble& a, int exponent) {
    return {std::ldexp(a.hi, exponent), std::ldexp(a.lo, exponent)};
}
inline bool(isfinite)(const DoubleDouble& a) { return std::isfinite(a.hi); }
inline bool(isnan)(const DoubleDouble& a) { return std::isnan(a.hi); }
inline bool(isinf)(const DoubleDouble& a) { return std::isinf(a.hi); }

}  // namespace steepest

namespace Eigen {

template <>
struct NumTraits<steepest::DoubleDouble> : GenericNumTraits<steepest::DoubleDouble> {
    using Real = steepest::DoubleDouble;
    using NonInteger = steepest::DoubleDouble;
    using Nested = steepest::DoubleDouble;
    using Literal = double;
    enum {
        IsComplex = 0,
        IsInteger = 0,
        IsSigned = 1,
        RequireInitialization = 1,
        ReadCost = 2,
        AddCost = 20,
        MulCost = 10
    };
    static Real epsilon() { return 4.93038065763132e-32; }  // 2^-104
    static Real dummy_precision() { return 1e-28; }
    static Real highest() { return (std::numeric_limits<double>::max)(); }
    static Real lowest() { return -(std::numeric_limits<double>::max)(); }
    static int digits10() { return 31; }
};

}  // namespace Eigen
