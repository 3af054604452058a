// The inner products of product.cpp, for every instruction set: a tile of a panel's products, and a few rows against a
// stream of others. Included by product.cpp alone.
#pragma once

#include "product.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define REASONREC_X86 1
#include <immintrin.h>

#include "product_amx.h"
#endif

namespace reasonrec {
namespace {

constexpr int64_t kTileRows = 12;  // but for AMX

// A tile in MR x NV vectors of sums; weight rows lie `stride` apart, packed columns and out rows `lanes`.
template <typename T, int MR, int NV>
REASONREC_INLINE void tile_body(const T* packed, const T* weight, int64_t stride, int64_t width, int64_t lanes, T* out,
                                Ahead ahead) {
  Vec<T> sums[MR][NV] = {};
  for (int64_t k = 0; k < width; ++k) {
    ahead.step();
    Vec<T> columns[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) columns[v] = load(packed + k * lanes + v * kLanes);
#pragma GCC unroll 12
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) sums[m][v] += weight[m * stride + k] * columns[v];
    }
  }
  for (int m = 0; m < MR; ++m) {
    for (int v = 0; v < NV; ++v) store(out + m * lanes + v * kLanes, sums[m][v]);
  }
}

// The whole tile in parts that fit the registers.
template <typename T, int MR, int NV>
REASONREC_INLINE void tile_in_parts(const T* packed, const T* weight, int64_t stride, int64_t width, int64_t lanes,
                                    T* out, Ahead ahead) {
  for (int64_t m = 0; m < kTileRows; m += MR) {
    for (int64_t lane = 0; lane < lanes; lane += NV * kLanes) {
      const bool once = m == 0 && lane == 0;
      tile_body<T, MR, NV>(packed + lane, weight + m * stride, stride, width, lanes, out + m * lanes + lane,
                           once ? ahead : Ahead());
    }
  }
}

// sums[lane] of 16 vectors at once: lane i of the result is the sum of vector i.
template <typename T>
REASONREC_INLINE Vec<T> sums_of(Vec<T> (&v)[kLanes]) {
  for (int half = 0; half < 8; ++half) {
    v[half] = __builtin_shufflevector(v[half], v[half + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
              __builtin_shufflevector(v[half], v[half + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  for (int half = 0; half < 4; ++half) {
    v[half] = __builtin_shufflevector(v[half], v[half + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
              __builtin_shufflevector(v[half], v[half + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  }
  for (int half = 0; half < 2; ++half) {
    v[half] = __builtin_shufflevector(v[half], v[half + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
              __builtin_shufflevector(v[half], v[half + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
  return __builtin_shufflevector(v[0], v[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
         __builtin_shufflevector(v[0], v[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

// R rows, which lie `width` apart, with S = 16 / R streamed ones: out[s * R + r].
template <typename T, int R>
REASONREC_INLINE void few_body(const T* rows, int64_t width, const T* const* streamed, T* out) {
  constexpr int S = kLanes / R;
  Vec<T> sums[kLanes] = {};
  int64_t k = 0;
  for (; k + kLanes <= width; k += kLanes) {
    Vec<T> row[R];
    for (int r = 0; r < R; ++r) row[r] = load(rows + r * width + k);
#pragma GCC unroll 16
    for (int s = 0; s < S; ++s) {
      const Vec<T> values = load(streamed[s] + k);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[s * R + r] += values * row[r];
    }
  }
  Vec<T> total = sums_of<T>(sums);
  for (; k < width; ++k) {
    for (int i = 0; i < kLanes; ++i) total[i] += streamed[i / R][k] * rows[i % R * width + k];
  }
  store(out, total);
}

// The body for the number of rows at hand: 1, 2, 4 or 8.
template <typename T>
REASONREC_INLINE void few_rows(int64_t count, const T* rows, int64_t width, const T* const* streamed, T* out) {
  if (count == 1) return few_body<T, 1>(rows, width, streamed, out);
  if (count == 2) return few_body<T, 2>(rows, width, streamed, out);
  if (count == 4) return few_body<T, 4>(rows, width, streamed, out);
  few_body<T, 8>(rows, width, streamed, out);
}

#ifdef REASONREC_X86
#define REASONREC_V3 __attribute__((target("arch=x86-64-v3")))
#define REASONREC_V4 __attribute__((target("arch=x86-64-v4")))
#define REASONREC_BF16 __attribute__((target("arch=x86-64-v4,avx512bf16")))

template <typename T>
REASONREC_V4 void tile_v4(const T* packed, const T* weight, int64_t stride, int64_t width, int64_t lanes, T* out,
                          Ahead ahead) {
  if (lanes == kLanes) return tile_in_parts<T, 12, 1>(packed, weight, stride, width, lanes, out, ahead);
  if (sizeof(T) == 4) return tile_in_parts<T, 12, 2>(packed, weight, stride, width, lanes, out, ahead);
  return tile_in_parts<T, 12, 1>(packed, weight, stride, width, lanes, out, ahead);
}

template <typename T>
REASONREC_V3 void tile_v3(const T* packed, const T* weight, int64_t stride, int64_t width, int64_t lanes, T* out,
                          Ahead ahead) {
  tile_in_parts<T, sizeof(T) == 4 ? 6 : 3, 1>(packed, weight, stride, width, lanes, out, ahead);
}

template <typename T>
REASONREC_V4 void few_v4(int64_t count, const T* rows, int64_t width, const T* const* streamed, T* out) {
  few_rows(count, rows, width, streamed, out);
}

template <typename T>
REASONREC_V3 void few_v3(int64_t count, const T* rows, int64_t width, const T* const* streamed, T* out) {
  few_rows(count, rows, width, streamed, out);
}

REASONREC_INLINE REASONREC_BF16 __m512bh as_bf16(__m512i bits) { return (__m512bh)bits; }

// Pairs of bfloat16 values, multiplied and added two at a time. `packed` holds ceil(width / 2) rows of pairs.
template <int NV>
REASONREC_INLINE REASONREC_BF16 void tile_bf16_body(const uint32_t* packed, const uint16_t* weight, int64_t stride,
                                                   int64_t width, int64_t lanes, float* out, Ahead ahead) {
  __m512 sums[kTileRows][NV];
#pragma GCC unroll 12
  for (int m = 0; m < kTileRows; ++m) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) sums[m][v] = _mm512_setzero_ps();
  }
  const int64_t pairs = width / 2;
  for (int64_t k = 0; k < pairs; ++k) {
    ahead.step();
    __m512i columns[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) columns[v] = _mm512_loadu_si512(packed + k * lanes + v * kLanes);
#pragma GCC unroll 12
    for (int m = 0; m < kTileRows; ++m) {
      uint32_t pair;
      std::memcpy(&pair, weight + m * stride + 2 * k, sizeof pair);
      const __m512i spread = _mm512_set1_epi32(static_cast<int>(pair));
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) sums[m][v] = _mm512_dpbf16_ps(sums[m][v], as_bf16(spread), as_bf16(columns[v]));
    }
  }
  for (int m = 0; m < kTileRows; ++m) {
    for (int v = 0; v < NV; ++v) {
      if (width % 2 != 0) {
        const __m512i spread = _mm512_set1_epi32(weight[m * stride + width - 1]);
        const __m512i last = _mm512_loadu_si512(packed + pairs * lanes + v * kLanes);
        sums[m][v] = _mm512_dpbf16_ps(sums[m][v], as_bf16(spread), as_bf16(last));
      }
      _mm512_storeu_ps(out + m * lanes + v * kLanes, sums[m][v]);
    }
  }
}

__attribute__((target("amx-tile,amx-bf16"))) void tile_amx(const uint32_t* packed, const uint16_t* weight,
                                                           int64_t stride, int64_t width, int64_t lanes, float* out,
                                                           Ahead ahead) {
  if (lanes == kLanes) return amx_body<false>(packed, weight, stride, width, lanes, out, ahead);
  amx_body<true>(packed, weight, stride, width, lanes, out, ahead);
}

REASONREC_BF16 void tile_bf16(const uint32_t* packed, const uint16_t* weight, int64_t stride, int64_t width,
                              int64_t lanes, float* out, Ahead ahead) {
  if (lanes == kLanes) return tile_bf16_body<1>(packed, weight, stride, width, lanes, out, ahead);
  tile_bf16_body<2>(packed, weight, stride, width, lanes, out, ahead);
}

template <int R>
REASONREC_INLINE REASONREC_BF16 void few_bf16_body(const uint16_t* rows, int64_t width,
                                                   const uint16_t* const* streamed, float* out) {
  constexpr int S = kLanes / R;
  __m512 sums[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) sums[i] = _mm512_setzero_ps();
  for (int64_t k = 0; k < width; k += 2 * kLanes) {
    const int64_t left = width - k;
    const __mmask32 part = left >= 32 ? ~__mmask32(0) : (__mmask32(1) << left) - 1;
    __m512i row[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) row[r] = _mm512_maskz_loadu_epi16(part, rows + r * width + k);
#pragma GCC unroll 16
    for (int s = 0; s < S; ++s) {
      const __m512i values = _mm512_maskz_loadu_epi16(part, streamed[s] + k);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[s * R + r] = _mm512_dpbf16_ps(sums[s * R + r], as_bf16(values), as_bf16(row[r]));
    }
  }
  Vec<float> lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) std::memcpy(&lanes[i], &sums[i], sizeof sums[i]);
  store(out, sums_of<float>(lanes));
}

REASONREC_BF16 void few_bf16(int64_t count, const uint16_t* rows, int64_t width, const uint16_t* const* streamed,
                             float* out) {
  if (count == 1) return few_bf16_body<1>(rows, width, streamed, out);
  if (count == 2) return few_bf16_body<2>(rows, width, streamed, out);
  if (count == 4) return few_bf16_body<4>(rows, width, streamed, out);
  few_bf16_body<8>(rows, width, streamed, out);
}

#endif

}  // namespace
}  // namespace reasonrec
