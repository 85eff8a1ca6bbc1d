// exp, expm1, log, log1p, tanh and the logistic sigmoid of one number. They have no branches, so that a loop over them
// vectorises.
//
// The polynomials are Chebyshev interpolants on the reduced interval, computed in 40-digit arithmetic. Largest relative errors
// against long double, measured by tests/cpp, in float and double: exp 1.5 ulp, expm1 2 ulp, log_positive 1.5 ulp, log1p_unit 2
// ulp, log1p_nonnegative 2 ulp, tanh 1.5 ulp. In device code the functions call CUDA's own exp, expm1, log and log1p.
#pragma once

#include "math/portability.h"

namespace dgmfast {
namespace {

constexpr double kLn2 = 0.693147180559945309417;

template <class T>
struct ExpLimits;  // e^x is certainly 0 below `lowest`, and infinite above `highest`

template <>
struct ExpLimits<float> {
  static constexpr float lowest = -104.0f, highest = 89.0f;
  static constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds a number to an integer, in the low mantissa bits
  static constexpr float ln2_high = 0.693145751953125f, ln2_low = 1.42860676533018704e-6f;  // they add up to log 2
};

template <>
struct ExpLimits<double> {
  static constexpr double lowest = -746.0, highest = 710.0;
  static constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double ln2_high = 0.69314718036912382, ln2_low = 1.9082149292705877e-10;
};

// Returns (e^r - 1 - r) / r^2 for |r| <= log(2)/2.
DGMFAST_HOST_DEVICE float exp_tail(float r) {
  return 0.5f +
         r * (0.166665769896987757f + r * (0.0416665546172045742f + r * (0.00836317905272257737f + r * 0.00139261835877134945f)));
}

// The same function in double.
DGMFAST_HOST_DEVICE double exp_tail(double r) {
  return 0.500000000000000102 +
         r * (0.166666666666666675 +
              r * (0.0416666666666241279 +
                   r * (0.00833333333333006183 +
                        r * (0.00138888889172137169 +
                             r * (0.000198412698630536169 +
                                  r * (0.0000248015212959543751 +
                                       r * (2.75572684599970648e-6 +
                                            r * (2.76200884454097482e-7 + r * 2.51003854955103191e-8))))))));
}

// Returns e^r for x = n log 2 + r. The low bits of `shifted` hold n.
template <class T>
DGMFAST_HOST_DEVICE T exp_of_rest(T x, T shifted) {
  using L = ExpLimits<T>;
  const T n = shifted - L::round;
  const T r = (x - n * L::ln2_high) - n * L::ln2_low;
  return T(1) + (r + r * r * exp_tail(r));
}

// Returns e^x for any x, within 1.5 ulp. Results below 2^-125 (2^-1021 in double) are flushed to 0, and NaN stays NaN.
//
// The only selects are the two clamps, which are written so that NaN passes. If x itself selected a result of 0 or infinity, GCC
// would merge that select with the clamps into a chain of masks, which takes twice the time.
template <class T>
DGMFAST_HOST_DEVICE T exp(T x) {
#ifdef __CUDA_ARCH__
  return ::exp(x);
#else
  using L = ExpLimits<T>;
  using Int = typename Bits<T>::Int;
  const T above = x < L::lowest ? L::lowest : x;
  const T clamped = above > L::highest ? L::highest : above;
  const T shifted = clamped * T(1.44269504088896340736) + L::round, series = exp_of_rest(clamped, shifted);
  // 2^n is computed as 2 * 2^(n-1), because n may exceed the largest exponent by one. An exponent field of 0 makes the factor 0.
  const Int field = bits_as<Int>(shifted) - (bits_as<Int>(L::round) - (Bits<T>::bias - 1));
  const Int exponent = field > 0 ? field : 0;
  return series * bits_as<T>(Int(exponent << Bits<T>::mantissa)) * T(2);
#endif
}

// Returns e^x for x <= 0, within 1.5 ulp, with half the selects of `exp`. A rounding error may leave x just above 0. NaN stays
// NaN.
template <class T>
DGMFAST_HOST_DEVICE T exp_nonpositive(T x) {
#ifdef __CUDA_ARCH__
  return ::exp(x);
#else
  using L = ExpLimits<T>;
  using Int = typename Bits<T>::Int;
  const T clamped = x < L::lowest ? L::lowest : x;
  const T shifted = clamped * T(1.44269504088896340736) + L::round, series = exp_of_rest(clamped, shifted);
  const Int field = bits_as<Int>(shifted) - (bits_as<Int>(L::round) - Bits<T>::bias);
  const Int exponent = field > 0 ? field : 0;
  return series * bits_as<T>(Int(exponent << Bits<T>::mantissa));
#endif
}

// Returns e^x - 1 for x <= 0, within 2 ulp, also near 0. NaN stays NaN.
template <class T>
DGMFAST_HOST_DEVICE T expm1_nonpositive(T x) {
#ifdef __CUDA_ARCH__
  return ::expm1(x);
#else
  using L = ExpLimits<T>;
  using Int = typename Bits<T>::Int;
  const T clamped = x < L::lowest ? L::lowest : x;
  const T shifted = clamped * T(1.44269504088896340736) + L::round, n = shifted - L::round;
  const T r = (clamped - n * L::ln2_high) - n * L::ln2_low;
  const Int field = bits_as<Int>(shifted) - (bits_as<Int>(L::round) - Bits<T>::bias);
  const Int exponent = field > 0 ? field : 0;
  // 2^n e^r - 1 = 2^n (e^r - 1) + (2^n - 1), and the second term is exact
  const T scale = bits_as<T>(Int(exponent << Bits<T>::mantissa));
  return (r + r * r * exp_tail(r)) * scale + (scale - T(1));
#endif
}

// Returns (2 atanh(s) - 2s) / s^3 with z = s^2.
DGMFAST_HOST_DEVICE float log_tail(float z) {
  return 0.666666850954384727f + z * (0.399887577153251724f + z * 0.295809859647592177f);
}

// The same function in double.
DGMFAST_HOST_DEVICE double log_tail(double z) {
  return 0.666666666666666971 +
         z * (0.399999999998988904 +
              z * (0.285714286262538619 +
                   z * (0.222222110893766637 +
                        z * (0.181828924326972002 + z * (0.153316117176995007 + z * 0.146178071989211102)))));
}

// Returns log(2^e (1 + f)) for f in [sqrt(1/2) - 1, sqrt(2) - 1].
template <class T>
DGMFAST_HOST_DEVICE T log_from_parts(T e, T f) {
  const T s = f / (T(2) + f);
  const T z = s * s;
  const T series = f - s * (f - z * log_tail(z));
  return e * ExpLimits<T>::ln2_high + (e * ExpLimits<T>::ln2_low + series);
}

// Splits a positive normal x into e and m with x = 2^e m, where m = 1 + f lies in [sqrt(1/2), sqrt(2)).
template <class T>
DGMFAST_HOST_DEVICE void split_exponent(T x, T& e, T& m) {
  using Int = typename Bits<T>::Int;
  constexpr T sqrt_half = T(0.70710678118654752440);
  const Int offset = bits_as<Int>(x) - bits_as<Int>(sqrt_half);
  const Int exponent = offset >> Bits<T>::mantissa;
  m = bits_as<T>(Int(bits_as<Int>(x) - Int(exponent << Bits<T>::mantissa)));
  // AVX2 cannot convert int64 to double, so e is added into the mantissa of 1.5 * 2^52 instead
  e = bits_as<T>(Int(exponent + bits_as<Int>(ExpLimits<T>::round))) - ExpLimits<T>::round;
}

// Returns log(x) for x positive, normal and finite, within 1.5 ulp.
template <class T>
DGMFAST_HOST_DEVICE T log_positive(T x) {
#ifdef __CUDA_ARCH__
  return ::log(x);
#else
  T e, m;
  split_exponent(x, e, m);
  return log_from_parts(e, m - T(1));
#endif
}

// Returns log(1 + x) for x in [0, 1], within 2 ulp. NaN stays NaN.
template <class T>
DGMFAST_HOST_DEVICE T log1p_unit(T x) {
#ifdef __CUDA_ARCH__
  return ::log1p(x);
#else
  const bool upper = x > T(0.41421356237309504880);
  const T f = upper ? (x - T(1)) * T(0.5) : x;  // (1 + x) / 2 - 1 is exact
  return log_from_parts(upper ? T(1) : T(0), f);
#endif
}

// Returns log(1 + x) for x at least 0 and finite, within 2 ulp.
template <class T>
DGMFAST_HOST_DEVICE T log1p_nonnegative(T x) {
#ifdef __CUDA_ARCH__
  return ::log1p(x);
#else
  const T sum = T(1) + x;
  return log_positive(sum) + (x - (sum - T(1))) / sum;  // the last term restores what the rounding of 1 + x lost
#endif
}

// Returns (tanh(a) - a) / a^3 with z = a^2, for a up to 0.625.
DGMFAST_HOST_DEVICE float tanh_tail(float z) {
  return -0.333333289441342546f + z * (0.133327697369763279f + z * (-0.0538509095785135808f +
                                                                    z * (0.0209971789990747506f + z * -0.00609671416590819757f)));
}

// The same function in double.
DGMFAST_HOST_DEVICE double tanh_tail(double z) {
  return -0.333333333333333329 +
         z * (0.133333333333330416 +
              z * (-0.0539682539678969917 +
                   z * (0.0218694885190083058 +
                        z * (-0.00886323510324087792 +
                             z * (0.00359212175115496227 +
                                  z * (-0.00145577541204780551 +
                                       z * (0.000589660657775704335 +
                                            z * (-0.000237590649605556196 +
                                                 z * (0.0000925711612955676827 +
                                                      z * (-0.0000312011014257974 + z * 6.48516348279311315e-6))))))))));
}

// Returns tanh(a) for a >= 0, within 1.5 ulp. NaN stays NaN.
template <class T>
DGMFAST_HOST_DEVICE T tanh_nonnegative(T a) {
  const T z = a * a, near = a + a * z * tanh_tail(z);
  const T e = exp_nonpositive(T(-2) * a), far = T(1) - T(2) * e / (T(1) + e);
  return a < T(0.625) ? near : far;
}

// Returns the logistic sigmoid 1 / (1 + e^{-x}) for any x.
template <class T>
DGMFAST_HOST_DEVICE T sigmoid(T x) {
  return T(1) / (T(1) + exp(-x));
}

}  // namespace
}  // namespace dgmfast
