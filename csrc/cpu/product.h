// Blocks of rows · weightᵀ, accumulated in float32 (float64 for float64), to which the fused operators apply their
// epilogues.
//
// There are two shapes of block. A *panel* packs up to 32 rows so that a column of 16 of them is contiguous: the lanes
// of a vector are rows. The weight is not repacked; each of its values is broadcast to a vector. *Few* rows (at most 8)
// are not packed, and a long matrix streams past them once; the lanes of a vector are columns.
//
// bfloat16 products use AMX or AVX-512's bfloat16 instructions where the processor has them; otherwise 16-bit values are
// converted block by block.
// A product is one sum in a fixed order: the same bits for any number of threads.
#pragma once

#include "ahead.h"
#include "common.h"
#include "vector.h"

#include <vector>

namespace reasonrec {

constexpr int64_t kPanelRows = 2 * kLanes;
constexpr int64_t kMostTileRows = 32;
constexpr int64_t kFewRows = 8;

// The best number of weight rows per tile for products of T on this machine; at most kMostTileRows.
template <typename T>
int64_t tile_rows();

// Whether bfloat16 products use the processor's 16-bit instructions.
bool bf16_in_pairs();

// Packed elements of `width` bfloat16 values: pairs, padded with zeros to the block that the instructions read.
int64_t pair_steps(int64_t width);

// out[tile_rows][lanes]: weight rows of the given stride times packed rows [steps][lanes] (16 or 32 lanes). For callers
// that pack rows themselves; the classes below pack whole matrices.
void multiply_tile(const uint32_t* packed, const uint16_t* weight, int64_t stride, int64_t width, int64_t lanes,
                   float* out);
void multiply_tile(const float* packed, const float* weight, int64_t stride, int64_t width, int64_t lanes, float* out);
void multiply_tile(const double* packed, const double* weight, int64_t stride, int64_t width, int64_t lanes,
                   double* out);

// Rows of hidden, packed in panels.
template <typename T>
class Panels {
 public:
  Panels(const T* rows, int64_t count, int64_t width);

  int64_t count() const { return (rows_ + kPanelRows - 1) / kPanelRows; }
  int64_t rows(int64_t panel) const { return std::min(kPanelRows, rows_ - panel * kPanelRows); }
  // Lanes of a panel in use, a multiple of kLanes: the stride of a tile's rows.
  int64_t lanes(int64_t panel) const { return rows(panel) > kLanes ? kPanelRows : kLanes; }

 private:
  template <typename>
  friend class Tiles;
  int64_t rows_, width_, stride_;  // stride_: values (or pairs) per panel
  std::vector<Accumulator<T>> wide_;
  std::vector<uint32_t> pairs_;
};

// Rows of a weight [N, width], tile by tile.
template <typename T>
class Tiles {
 public:
  Tiles(const T* weight, int64_t rows, int64_t width) : weight_(weight), rows_(rows), width_(width) {}

  // Reads rows [first, first + count) of the weight, count <= tile_rows<T>().
  void stage(int64_t first, int64_t count);
  // out[count][lanes]: products of the staged rows with a panel, the `part`-th of `parts` panels; each call prefetches
  // its share of the rows after the staged ones.
  void multiply(const Panels<T>& panels, int64_t panel, Accumulator<T>* out, int64_t part, int64_t parts) const;

 private:
  const T* weight_;
  int64_t rows_, width_, next_bytes_ = 0;
  const T* next_ = nullptr;
  const void* staged_ = nullptr;
  std::vector<Accumulator<T>> wide_;
  std::vector<T> narrow_;
};

// At most kFewRows resident rows, past which others stream.
template <typename T>
class Few {
 public:
  Few(const T* rows, int64_t count, int64_t width);

  // out[i * streamed_stride + r * row_stride]: product of streamed row i with row r.
  void multiply(const T* streamed, int64_t count, Accumulator<T>* out, int64_t streamed_stride,
                int64_t row_stride) const;

 private:
  template <typename U>
  void multiply_with(const U* rows, const U* streamed, int64_t count, Accumulator<T>* out, int64_t streamed_stride,
                     int64_t row_stride) const;

  int64_t count_, width_, held_;  // held_: count_ rounded up to 1, 2, 4 or 8; rows of zeros make up the difference
  std::vector<Accumulator<T>> wide_;
  std::vector<T> narrow_;
};

}  // namespace reasonrec
