// Sixteen numbers at a time, in the compiler's own vector types: one source for every instruction set.
//
// Everything here is inlined into functions that REASONREC_DISPATCH clones.
#pragma once

#include "common.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace reasonrec {

constexpr int64_t kLanes = 16;

#define REASONREC_INLINE inline __attribute__((always_inline))

template <typename T>
struct LaneTypes;
template <>
struct LaneTypes<float> {
  typedef float Vector __attribute__((vector_size(64)));
  typedef int32_t Mask __attribute__((vector_size(64)));
};
template <>
struct LaneTypes<double> {
  typedef double Vector __attribute__((vector_size(128)));
  typedef int64_t Mask __attribute__((vector_size(128)));
};

template <typename T>
using Vec = typename LaneTypes<T>::Vector;
template <typename T>
using Mask = typename LaneTypes<T>::Mask;

template <typename T>
REASONREC_INLINE Vec<T> load(const T* from) {
  Vec<T> lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

template <typename T>
REASONREC_INLINE void store(T* to, const Vec<T>& lanes) {
  std::memcpy(to, &lanes, sizeof lanes);
}

template <typename T>
REASONREC_INLINE Vec<T> broadcast(T value) {
  return value - Vec<T>{};
}

// Sixteen values of a 16-bit type in the type of their sums, and back (to nearest, ties to even).
REASONREC_INLINE Vec<float> load_wide(const float* from) { return load(from); }
REASONREC_INLINE Vec<double> load_wide(const double* from) { return load(from); }

REASONREC_INLINE Vec<float> load_wide(const BFloat16* from) {
  typedef uint16_t Narrow __attribute__((vector_size(32)));
  typedef uint32_t Wide __attribute__((vector_size(64)));
  Narrow bits;
  std::memcpy(&bits, from, sizeof bits);
  const Wide wide = __builtin_convertvector(bits, Wide) << 16;
  Vec<float> lanes;
  std::memcpy(&lanes, &wide, sizeof lanes);
  return lanes;
}

// Of 32 values those at even places and those at odd ones (cheaper than in order), and back in order.
REASONREC_INLINE void load_even_odd(const BFloat16* from, Vec<float>& even, Vec<float>& odd) {
  typedef uint32_t Pairs __attribute__((vector_size(64)));
  Pairs pairs;
  std::memcpy(&pairs, from, sizeof pairs);
  const Pairs low = pairs << 16, high = pairs & 0xffff0000u;
  std::memcpy(&even, &low, sizeof even);
  std::memcpy(&odd, &high, sizeof odd);
}

REASONREC_INLINE void in_order(Vec<float>& even, Vec<float>& odd) {
  const Vec<float> first = __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  odd = __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  even = first;
}

REASONREC_INLINE Vec<float> load_wide(const Half* from) {
  Vec<float> lanes;
  for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = static_cast<float>(from[lane]);
  return lanes;
}

REASONREC_INLINE void store_narrow(float* to, const Vec<float>& lanes) { store(to, lanes); }
REASONREC_INLINE void store_narrow(double* to, const Vec<double>& lanes) { store(to, lanes); }

REASONREC_INLINE void store_narrow(BFloat16* to, const Vec<float>& lanes) {
  typedef uint16_t Narrow __attribute__((vector_size(32)));
  typedef uint32_t Wide __attribute__((vector_size(64)));
  Wide bits;
  std::memcpy(&bits, &lanes, sizeof bits);
  const Wide rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Wide quiet = (bits >> 16) | 0x40;  // NaN stays NaN
  const Narrow narrow = __builtin_convertvector(lanes == lanes ? rounded : quiet, Narrow);
  std::memcpy(to, &narrow, sizeof narrow);
}

REASONREC_INLINE void store_narrow(Half* to, const Vec<float>& lanes) {
  for (int64_t lane = 0; lane < kLanes; ++lane) to[lane] = static_cast<Half>(lanes[lane]);
}

template <typename V>
REASONREC_INLINE V larger(const V& a, const V& b) {
  return a > b ? a : b;
}

template <typename M>
REASONREC_INLINE bool any(const M& mask) {
  int64_t words[sizeof(M) / 8], found = 0;
  std::memcpy(words, &mask, sizeof mask);
  for (int64_t word : words) found |= word;
  return found != 0;
}

// e^x for x <= 0, flushed to about 1e-38 below -87; NaN stays. Error below 2 units in the last place.
REASONREC_INLINE Vec<float> exp_of(Vec<float> x) {
  const Vec<float> floor = broadcast(-87.3f);
  x = x < floor ? floor : x;
  const Vec<float> shift = broadcast(12582912.0f);  // adding it rounds to a whole number
  const Vec<float> whole = (x * 1.44269504f + shift) - shift;
  const Vec<float> rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Vec<float> poly = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  poly = poly * rest + 8.3334519073e-3f;
  poly = poly * rest + 4.1665795894e-2f;
  poly = poly * rest + 1.6666665459e-1f;
  poly = poly * rest + 5.0000001201e-1f;
  poly = poly * (rest * rest) + rest + 1.0f;
  const Mask<float> power = (__builtin_convertvector(whole, Mask<float>) + 127) << 23;
  Vec<float> scale;
  std::memcpy(&scale, &power, sizeof scale);
  return poly * scale;
}

REASONREC_INLINE Vec<double> exp_of(Vec<double> x) {
  for (int64_t lane = 0; lane < kLanes; ++lane) x[lane] = std::exp(x[lane]);
  return x;
}

// log x for normal x > 0.
REASONREC_INLINE Vec<float> log_of(Vec<float> x) {
  Mask<float> bits;
  std::memcpy(&bits, &x, sizeof bits);
  Mask<float> exponent = (bits >> 23) - 127;
  bits = (bits & 0x007fffff) | 0x3f800000;
  Vec<float> mantissa;
  std::memcpy(&mantissa, &bits, sizeof mantissa);
  const Mask<float> high = mantissa > broadcast(1.41421356f);
  mantissa = high ? mantissa * 0.5f : mantissa;
  exponent -= high;  // a true lane is -1
  const Vec<float> y = mantissa - 1.0f, power = __builtin_convertvector(exponent, Vec<float>);
  Vec<float> poly = y * 7.0376836292e-2f - 1.1514610310e-1f;
  poly = poly * y + 1.1676998740e-1f;
  poly = poly * y - 1.2420140846e-1f;
  poly = poly * y + 1.4249322787e-1f;
  poly = poly * y - 1.6668057665e-1f;
  poly = poly * y + 2.0000714765e-1f;
  poly = poly * y - 2.4999993993e-1f;
  poly = poly * y + 3.3333331174e-1f;
  const Vec<float> square = y * y;
  const Vec<float> fine = poly * y * square - power * 2.12194440e-4f - square * 0.5f;
  const Vec<float> result = y + fine + power * 0.693359375f;
  return x == x ? result : x;
}

REASONREC_INLINE Vec<double> log_of(Vec<double> x) {
  for (int64_t lane = 0; lane < kLanes; ++lane) x[lane] = std::log(x[lane]);
  return x;
}

}  // namespace reasonrec
