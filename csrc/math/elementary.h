// exp, expm1, log and log1p of one number, without branches, so that a loop over them vectorises.
//
// Polynomials: Chebyshev interpolation in 40-digit arithmetic on the reduced interval. Relative error against long double,
// measured by tests/cpp: exp 1.5 ulp, expm1 2 ulp, log_positive 1.5 ulp, log1p_unit 2 ulp, log1p_nonnegative 2 ulp, tanh 1.5 ulp,
// in float and double.
#pragma once

#include "math/portability.h"

namespace dgmfast {
namespace {

constexpr double kLn2 = 0.693147180559945309417;

template <class T>
struct ExpLimits;  // beyond `lowest` and `highest` e^x is surely 0 and infinite

template <>
struct ExpLimits<float> {
  static constexpr float lowest = -104.0f, highest = 89.0f;
  static constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  static constexpr float ln2_high = 0.693145751953125f, ln2_low = 1.42860676533018704e-6f;
};

template <>
struct ExpLimits<double> {
  static constexpr double lowest = -746.0, highest = 710.0;
  static constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double ln2_high = 0.69314718036912382, ln2_low = 1.9082149292705877e-10;
};

DGMFAST_HOST_DEVICE float exp_tail(float r) {  // (e^r - 1 - r) / r^2 for |r| <= log(2)/2
  return 0.5f +
         r * (0.166665769896987757f + r * (0.0416665546172045742f + r * (0.00836317905272257737f + r * 0.00139261835877134945f)));
}

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

// e^r of x = n log 2 + r, where the low bits of `shifted` hold n.
template <class T>
DGMFAST_HOST_DEVICE T exp_of_rest(T x, T shifted) {
  using L = ExpLimits<T>;
  const T n = shifted - L::round;
  const T r = (x - n * L::ln2_high) - n * L::ln2_low;
  return T(1) + (r + r * r * exp_tail(r));
}

// Results below 2^-125 (2^-1021 in double) are flushed to 0. The only selects are the two clamps, written so that NaN passes:
// a select of 0 or infinity by x itself makes GCC merge it with the clamps into a chain of masks, at twice the time.
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
  // 2^n as 2 * 2^(n-1), because n may be one more than the largest exponent; an exponent field of 0 makes the factor 0
  const Int field = bits_as<Int>(shifted) - (bits_as<Int>(L::round) - (Bits<T>::bias - 1));
  const Int exponent = field > 0 ? field : 0;
  return series * bits_as<T>(Int(exponent << Bits<T>::mantissa)) * T(2);
#endif
}

// e^x for x at most 0, give or take a rounding, with half the selects of `exp`; NaN stays NaN.
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

// e^x - 1 for x at most 0, precise also near 0; NaN stays NaN.
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
  // 2^n e^r - 1 = 2^n (e^r - 1) + (2^n - 1), whose second part is exact
  const T scale = bits_as<T>(Int(exponent << Bits<T>::mantissa));
  return (r + r * r * exp_tail(r)) * scale + (scale - T(1));
#endif
}

DGMFAST_HOST_DEVICE float log_tail(float z) {  // (2 atanh(s) - 2s) / s^3 with z = s^2
  return 0.666666850954384727f + z * (0.399887577153251724f + z * 0.295809859647592177f);
}

DGMFAST_HOST_DEVICE double log_tail(double z) {
  return 0.666666666666666971 +
         z * (0.399999999998988904 +
              z * (0.285714286262538619 +
                   z * (0.222222110893766637 +
                        z * (0.181828924326972002 + z * (0.153316117176995007 + z * 0.146178071989211102)))));
}

// log(2^e (1 + f)) for f in [sqrt(1/2) - 1, sqrt(2) - 1]
template <class T>
DGMFAST_HOST_DEVICE T log_from_parts(T e, T f) {
  const T s = f / (T(2) + f);
  const T z = s * s;
  const T series = f - s * (f - z * log_tail(z));
  return e * ExpLimits<T>::ln2_high + (e * ExpLimits<T>::ln2_low + series);
}

// Splits a positive normal x into e and m = 1 + f in [sqrt(1/2), sqrt(2)), x = 2^e m.
template <class T>
DGMFAST_HOST_DEVICE void split_exponent(T x, T& e, T& m) {
  using Int = typename Bits<T>::Int;
  constexpr T sqrt_half = T(0.70710678118654752440);
  const Int offset = bits_as<Int>(x) - bits_as<Int>(sqrt_half);
  const Int exponent = offset >> Bits<T>::mantissa;
  m = bits_as<T>(Int(bits_as<Int>(x) - Int(exponent << Bits<T>::mantissa)));
  // int64 to double has no AVX2 instruction: add into the mantissa of 1.5 * 2^52 instead
  e = bits_as<T>(Int(exponent + bits_as<Int>(ExpLimits<T>::round))) - ExpLimits<T>::round;
}

template <class T>
DGMFAST_HOST_DEVICE T log_positive(T x) {  // x positive, normal and finite
#ifdef __CUDA_ARCH__
  return ::log(x);
#else
  T e, m;
  split_exponent(x, e, m);
  return log_from_parts(e, m - T(1));
#endif
}

template <class T>
DGMFAST_HOST_DEVICE T log1p_unit(T x) {  // log(1 + x) for x in [0, 1]; NaN stays NaN
#ifdef __CUDA_ARCH__
  return ::log1p(x);
#else
  const bool upper = x > T(0.41421356237309504880);
  const T f = upper ? (x - T(1)) * T(0.5) : x;  // (1 + x) / 2 - 1, exactly
  return log_from_parts(upper ? T(1) : T(0), f);
#endif
}

template <class T>
DGMFAST_HOST_DEVICE T log1p_nonnegative(T x) {  // log(1 + x) for x at least 0 and finite
#ifdef __CUDA_ARCH__
  return ::log1p(x);
#else
  const T sum = T(1) + x;
  return log_positive(sum) + (x - (sum - T(1))) / sum;  // what 1 + x has lost
#endif
}

DGMFAST_HOST_DEVICE float tanh_tail(float z) {  // (tanh(a) - a) / a^3 with z = a^2, for a up to 0.625
  return -0.333333289441342546f + z * (0.133327697369763279f + z * (-0.0538509095785135808f +
                                                                    z * (0.0209971789990747506f + z * -0.00609671416590819757f)));
}

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

template <class T>
DGMFAST_HOST_DEVICE T tanh_nonnegative(T a) {  // tanh(a) for a at least 0; NaN stays NaN
  const T z = a * a, near = a + a * z * tanh_tail(z);
  const T e = exp_nonpositive(T(-2) * a), far = T(1) - T(2) * e / (T(1) + e);
  return a < T(0.625) ? near : far;
}

template <class T>
DGMFAST_HOST_DEVICE T sigmoid(T x) {
  return T(1) / (T(1) + exp(-x));
}

}  // namespace
}  // namespace dgmfast
