// Vectors of L values in the compiler's vector extension: one source for every instruction set (csrc/cpu/dispatch.h).
#pragma once

#include "common.h"
#include "dispatch.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

namespace reasonrec {

// Rows or columns that are interleaved in packed memory: a multiple of the vector length of every instruction set.
constexpr int64_t kLanes = 16;

template <typename T, int L>
struct VectorOf {
  typedef T Type __attribute__((vector_size(L * sizeof(T))));
};
template <typename T, int L>
using Vec = typename VectorOf<T, L>::Type;
template <typename V>
using Element = std::decay_t<decltype(std::declval<V>()[0])>;
// The result of a comparison of vectors: a signed integer per lane, -1 for true.
template <typename V>
using Mask = decltype(std::declval<V>() < std::declval<V>());
template <typename V>
constexpr int kLanesOf = sizeof(V) / sizeof(Element<V>);

template <typename To, typename From>
REASONREC_INLINE To bits_as(const From& from) {
  To to;
  static_assert(sizeof to == sizeof from);
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <int L, typename T>
REASONREC_INLINE Vec<T, L> load(const T* from) {
  Vec<T, L> lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

template <typename T, typename V>
REASONREC_INLINE void store(T* to, const V& lanes) {
  static_assert(std::is_same_v<T, Element<V>>);
  std::memcpy(to, &lanes, sizeof lanes);
}

template <typename V>
REASONREC_INLINE V broadcast(Element<V> value) {
  return value - V{};
}

// Loads L values of a 16-bit type as the type of their sums, and stores them (rounded to nearest, ties to even).
template <int L, typename T>
REASONREC_INLINE Vec<Accumulator<T>, L> load_wide(const T* from) {
  if constexpr (std::is_same_v<T, Accumulator<T>>) {
    return load<L>(from);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    const auto narrow = load<L>(reinterpret_cast<const uint16_t*>(from));
    return bits_as<Vec<float, L>>(__builtin_convertvector(narrow, Vec<uint32_t, L>) << 16);
  } else {
    Vec<float, L> lanes;
    for (int lane = 0; lane < L; ++lane) lanes[lane] = static_cast<float>(from[lane]);
    return lanes;
  }
}

// Rounds to bfloat16: its bits are in the upper half of each lane, and the lower half is to be discarded.
template <typename V>
REASONREC_INLINE Vec<uint32_t, kLanesOf<V>> rounded_bits(const V& lanes) {
  const auto bits = bits_as<Vec<uint32_t, kLanesOf<V>>>(lanes);
  return bits + 0x7fff + ((bits >> 16) & 1);
}

template <typename T, typename V>
REASONREC_INLINE void store_narrow(T* to, const V& lanes) {
  constexpr int L = kLanesOf<V>;
  if constexpr (std::is_same_v<T, Element<V>>) {
    store(to, lanes);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    const auto quiet = bits_as<Vec<uint32_t, L>>(lanes) | 0x400000;  // NaN stays NaN
    const auto kept = (lanes == lanes ? rounded_bits(lanes) : quiet) >> 16;
    store(reinterpret_cast<uint16_t*>(to), __builtin_convertvector(kept, Vec<uint16_t, L>));
  } else {
    for (int lane = 0; lane < L; ++lane) to[lane] = static_cast<T>(lanes[lane]);
  }
}

template <typename V, int... I>
REASONREC_INLINE V shuffled(const V& a, const V& b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, I...);
}

// Splits 2 L values into those at even and odd indices (cheaper than converting in order), and interleaves them back.
template <typename V>
REASONREC_INLINE void load_even_odd(const BFloat16* from, V& even, V& odd) {
  const auto pairs = bits_as<Vec<uint32_t, kLanesOf<V>>>(load<2 * kLanesOf<V>>(reinterpret_cast<const uint16_t*>(from)));
  even = bits_as<V>(pairs << 16), odd = bits_as<V>(pairs & 0xffff0000u);
}

template <int First, int L, int... I>
constexpr auto interleaved(std::integer_sequence<int, I...>) {
  return std::integer_sequence<int, ((First + I) / 2 + (First + I) % 2 * L)...>{};
}

template <typename V>
REASONREC_INLINE void in_order(V& even, V& odd) {
  constexpr int L = kLanesOf<V>;
  constexpr auto lanes = std::make_integer_sequence<int, L>{};
  const V first = shuffled(even, odd, interleaved<0, L>(lanes));
  odd = shuffled(even, odd, interleaved<L, L>(lanes));
  even = first;
}

// Index of each lane's summand in the vectors a and b (lanes 0 to L - 1 and L to 2 L - 1): lanes in blocks of 2 * Step,
// the first half of a block from a, the second from b.
template <int L, int Step, int Second, int... I>
constexpr auto half_of_blocks(std::integer_sequence<int, I...>) {
  return std::integer_sequence<int, (I % (2 * Step) < Step ? I + Second : L + I - Step + Second)...>{};
}

// Sums of L vectors at once: lane i of the result is the sum of vector i.
template <int Step, typename V>
REASONREC_INLINE V sums_of(V* v) {
  constexpr int L = kLanesOf<V>;
  constexpr auto lanes = std::make_integer_sequence<int, L>{};
#pragma GCC unroll 8
  for (int i = 0; i < Step; ++i) {
    v[i] = shuffled(v[i], v[i + Step], half_of_blocks<L, Step, 0>(lanes)) +
           shuffled(v[i], v[i + Step], half_of_blocks<L, Step, Step>(lanes));
  }
  if constexpr (Step > 1) return sums_of<Step / 2>(v);
  return v[0];
}

template <typename V>
REASONREC_INLINE V larger(const V& a, const V& b) {
  return a > b ? a : b;
}

// e^x for x <= 0, clamped to about 1e-38 below -87; NaN stays NaN. Error below 2 ulp.
template <typename V>
REASONREC_INLINE V exp_of(V x) {
  if constexpr (sizeof(Element<V>) == 8) {
    for (int lane = 0; lane < kLanesOf<V>; ++lane) x[lane] = std::exp(x[lane]);
    return x;
  } else {
    const V floor = broadcast<V>(-87.3f);
    x = x < floor ? floor : x;
    const V shift = broadcast<V>(12582912.0f);  // adding it rounds to a whole number
    const V whole = (x * 1.44269504f + shift) - shift;
    const V rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    V poly = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    poly = poly * rest + 8.3334519073e-3f;
    poly = poly * rest + 4.1665795894e-2f;
    poly = poly * rest + 1.6666665459e-1f;
    poly = poly * rest + 5.0000001201e-1f;
    poly = poly * (rest * rest) + rest + 1.0f;
    return poly * bits_as<V>((__builtin_convertvector(whole, Mask<V>) + 127) << 23);
  }
}

// log x for normal x > 0.
template <typename V>
REASONREC_INLINE V log_of(V x) {
  if constexpr (sizeof(Element<V>) == 8) {
    for (int lane = 0; lane < kLanesOf<V>; ++lane) x[lane] = std::log(x[lane]);
    return x;
  } else {
    auto bits = bits_as<Mask<V>>(x);
    Mask<V> exponent = (bits >> 23) - 127;
    V mantissa = bits_as<V>((bits & 0x007fffff) | 0x3f800000);
    const Mask<V> high = mantissa > broadcast<V>(1.41421356f);
    mantissa = high ? mantissa * 0.5f : mantissa;
    exponent -= high;  // true is -1
    const V y = mantissa - 1.0f, power = __builtin_convertvector(exponent, V);
    V poly = y * 7.0376836292e-2f - 1.1514610310e-1f;
    poly = poly * y + 1.1676998740e-1f;
    poly = poly * y - 1.2420140846e-1f;
    poly = poly * y + 1.4249322787e-1f;
    poly = poly * y - 1.6668057665e-1f;
    poly = poly * y + 2.0000714765e-1f;
    poly = poly * y - 2.4999993993e-1f;
    poly = poly * y + 3.3333331174e-1f;
    const V square = y * y;
    const V fine = poly * y * square - power * 2.12194440e-4f - square * 0.5f;
    const V result = y + fine + power * 0.693359375f;
    return x == x ? result : x;
  }
}

}  // namespace reasonrec
