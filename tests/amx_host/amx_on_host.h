// The AMX tile instructions that csrc/cpu/product_amx.h uses, in plain C++: eight tiles of at most 16 rows of 64 bytes.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace amx_on_host {

struct Tile {
  int rows = 0, bytes = 0;
  uint8_t data[16][64] = {};
};
inline Tile tiles[8];
inline bool configured = false;

inline float widened(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

inline void must(bool holds) {
  if (!holds) std::abort();
}

}  // namespace amx_on_host

inline void _tile_loadconfig(const void* memory) {
  using namespace amx_on_host;
  const auto* bytes = static_cast<const uint8_t*>(memory);
  must(bytes[0] == 1);  // the palette
  for (int t = 0; t < 8; ++t) {
    uint16_t width;
    std::memcpy(&width, bytes + 16 + 2 * t, sizeof width);
    tiles[t] = Tile();
    tiles[t].bytes = width, tiles[t].rows = bytes[48 + t];
    must(width <= 64 && tiles[t].rows <= 16);
  }
  configured = true;
}

inline void _tile_release() { amx_on_host::configured = false; }

inline void _tile_zero(int t) {
  amx_on_host::must(amx_on_host::configured);
  std::memset(amx_on_host::tiles[t].data, 0, sizeof amx_on_host::tiles[t].data);
}

inline void _tile_loadd(int t, const void* base, long stride) {
  using namespace amx_on_host;
  must(configured);
  for (int row = 0; row < tiles[t].rows; ++row) {
    std::memcpy(tiles[t].data[row], static_cast<const uint8_t*>(base) + row * stride, tiles[t].bytes);
  }
}

inline void _tile_stored(int t, void* base, long stride) {
  using namespace amx_on_host;
  must(configured);
  for (int row = 0; row < tiles[t].rows; ++row) {
    std::memcpy(static_cast<uint8_t*>(base) + row * stride, tiles[t].data[row], tiles[t].bytes);
  }
}

// sums[m][n] += a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1]
inline void _tile_dpbf16ps(int to, int a, int b) {
  using namespace amx_on_host;
  must(configured && tiles[a].bytes / 4 == tiles[b].rows && tiles[to].rows == tiles[a].rows);
  for (int m = 0; m < tiles[to].rows; ++m) {
    for (int n = 0; n < tiles[to].bytes / 4; ++n) {
      float sum;
      std::memcpy(&sum, tiles[to].data[m] + 4 * n, sizeof sum);
      for (int k = 0; k < tiles[a].bytes / 4; ++k) {
        uint16_t left[2], right[2];
        std::memcpy(left, tiles[a].data[m] + 4 * k, sizeof left);
        std::memcpy(right, tiles[b].data[k] + 4 * n, sizeof right);
        sum += widened(left[0]) * widened(right[0]) + widened(left[1]) * widened(right[1]);
      }
      std::memcpy(tiles[to].data[m] + 4 * n, &sum, sizeof sum);
    }
  }
}
