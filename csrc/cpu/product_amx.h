// The bfloat16 tile of product.cpp on AMX: a 32 x 32 block of sums in four tile registers.
//
// Does not include the tile intrinsics: the including file provides them (<immintrin.h>, or the emulation of the
// tests).
#pragma once

#include "ahead.h"

#include <cstdint>
#include <cstring>

namespace reasonrec {

constexpr int64_t kAmxRows = 32;     // rows of the weight in a tile
constexpr int64_t kAmxColumns = 32;  // columns of a product that one instruction adds up

struct AmxConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_a_row[16] = {};
  uint8_t rows[16] = {};

  AmxConfig() {
    for (int tile = 0; tile < 8; ++tile) bytes_a_row[tile] = 64, rows[tile] = 16;
  }
};

// out[32][lanes] for kAmxRows rows of the weight, `stride` values apart. packed holds rows of pairs of bfloat16 values,
// `lanes` (16 or 32) wide, as many as there are pairs in `width` rounded up to kAmxColumns; the last are zeros.
template <bool kWide>
__attribute__((target("amx-tile,amx-bf16"))) void amx_body(
    const uint32_t* packed, const uint16_t* weight, int64_t stride, int64_t width, int64_t lanes, float* out, Ahead ahead) {
  const AmxConfig config;
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  if (kWide) {
    _tile_zero(2);
    _tile_zero(3);
  }
  alignas(64) uint16_t last[kAmxRows * kAmxColumns];
  for (int64_t k = 0; k < width; k += kAmxColumns) {
    ahead.step();
    const uint16_t* rows = weight + k;
    int64_t apart = stride;
    if (width - k < kAmxColumns) {
      std::memset(last, 0, sizeof last);
      for (int64_t row = 0; row < kAmxRows; ++row) {
        std::memcpy(last + row * kAmxColumns, weight + row * stride + k, (width - k) * sizeof(uint16_t));
      }
      rows = last, apart = kAmxColumns;
    }
    const uint32_t* pairs = packed + k / 2 * lanes;
    _tile_loadd(4, rows, apart * 2);
    _tile_loadd(5, rows + 16 * apart, apart * 2);
    _tile_loadd(6, pairs, lanes * 4);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 5, 6);
    if (kWide) {
      _tile_loadd(7, pairs + 16, lanes * 4);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, out, lanes * 4);
  _tile_stored(1, out + 16 * lanes, lanes * 4);
  if (kWide) {
    _tile_stored(2, out + 16, lanes * 4);
    _tile_stored(3, out + 16 * lanes + 16, lanes * 4);
  }
  _tile_release();
}

}  // namespace reasonrec
