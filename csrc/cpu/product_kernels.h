// The inner loops of product.cpp for every instruction set: a tile of a panel's products, and few resident rows with a
// stream of others. Included by product.cpp only.
#pragma once

#include "product.h"

#ifdef REASONREC_X86
#include <immintrin.h>

#include "product_amx.h"
#endif

namespace reasonrec {
namespace {

constexpr int64_t kTileRows = 12;  // except for AMX

// A tile in MR x NV vectors of sums; the row stride of weight is `stride`, that of packed and out is `lanes`.
template <int L, int MR, int NV, typename T>
REASONREC_INLINE void tile_body(const T* packed, const T* weight, int64_t stride, int64_t width, int64_t lanes, T* out,
                                Ahead ahead) {
  Vec<T, L> sums[MR][NV] = {};
  for (int64_t k = 0; k < width; ++k) {
    ahead.step();
    Vec<T, L> columns[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) columns[v] = load<L>(packed + k * lanes + v * L);
#pragma GCC unroll 12
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) sums[m][v] += weight[m * stride + k] * columns[v];
    }
  }
  for (int m = 0; m < MR; ++m) {
    for (int v = 0; v < NV; ++v) store(out + m * lanes + v * L, sums[m][v]);
  }
}

// The whole tile, in parts that fit into the registers.
template <int L, int MR, int NV, typename T>
REASONREC_INLINE void tile_in_parts(const T* packed, const T* weight, int64_t stride, int64_t width, int64_t lanes,
                                    T* out, Ahead ahead) {
  for (int64_t m = 0; m < kTileRows; m += MR) {
    for (int64_t lane = 0; lane < lanes; lane += NV * L) {
      const bool once = m == 0 && lane == 0;
      tile_body<L, MR, NV>(packed + lane, weight + m * stride, stride, width, lanes, out + m * lanes + lane,
                           once ? ahead : Ahead());
    }
  }
}

struct Tile {
  template <int W, typename T>
  static REASONREC_INLINE void run(const T* packed, const T* weight, int64_t stride, int64_t width, int64_t lanes,
                                   T* out, Ahead ahead) {
    constexpr int L = W / sizeof(T), MR = W == 64 ? 12 : 6;  // 32 registers, or 16
    if (lanes == L) return tile_in_parts<L, MR, 1>(packed, weight, stride, width, lanes, out, ahead);
    tile_in_parts<L, MR, 2>(packed, weight, stride, width, lanes, out, ahead);
  }
};

// R rows, of row stride `width`, with S = 16 / R streamed rows: out[s * R + r].
template <int L, int R, typename T>
REASONREC_INLINE void few_body(const T* rows, int64_t width, const T* const* streamed, T* out) {
  constexpr int kSums = R > L ? R : L, S = kSums / R;  // at a time
  for (int first = 0; first < kLanes; first += kSums, streamed += S, out += kSums) {
    Vec<T, L> sums[kSums] = {};
    int64_t k = 0;
    for (; k + L <= width; k += L) {
      Vec<T, L> row[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) row[r] = load<L>(rows + r * width + k);
#pragma GCC unroll 16
      for (int s = 0; s < S; ++s) {
        const Vec<T, L> values = load<L>(streamed[s] + k);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sums[s * R + r] += values * row[r];
      }
    }
    for (int i = 0; i < kSums; i += L) store(out + i, sums_of<L / 2>(sums + i));
    for (; k < width; ++k) {
      for (int i = 0; i < kSums; ++i) out[i] += streamed[i / R][k] * rows[i % R * width + k];
    }
  }
}

// The body for the number of rows at hand: 1, 2, 4 or 8.
struct FewRows {
  template <int W, typename T>
  static REASONREC_INLINE void run(int64_t count, const T* rows, int64_t width, const T* const* streamed, T* out) {
    constexpr int L = W / sizeof(T);
    if (count == 1) return few_body<L, 1>(rows, width, streamed, out);
    if (count == 2) return few_body<L, 2>(rows, width, streamed, out);
    if (count == 4) return few_body<L, 4>(rows, width, streamed, out);
    few_body<L, 8>(rows, width, streamed, out);
  }
};

#ifdef REASONREC_X86
#define REASONREC_BF16 __attribute__((target("arch=x86-64-v4,avx512bf16")))

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
  Vec<float, kLanes> lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = bits_as<Vec<float, kLanes>>(sums[i]);
  store(out, sums_of<kLanes / 2>(lanes));
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
