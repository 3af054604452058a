// route: selection of the most uncertain rows, and the stable partition of rows by destination.
//
// A radix selection, eleven bits at a time, finds the smallest value that is still selected; one pass over the rows
// then selects all larger values and the first ones of the equal values. No comparison sort; linear in the rows.
#include "common.h"
#include "dispatch.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#ifdef REASONREC_X86
#include <immintrin.h>
#endif

namespace reasonrec {
namespace {

// An integer key in the order of the values; NaN is the largest, and both zeros are equal.
inline uint32_t ordered(float value) {
  if (std::isnan(value)) return std::numeric_limits<uint32_t>::max();
  value += 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}

inline uint64_t ordered(double value) {
  if (std::isnan(value)) return std::numeric_limits<uint64_t>::max();
  value += 0.0;
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits ^ ((bits >> 63) != 0 ? ~uint64_t(0) : uint64_t(1) << 63);
}

// The count-th largest key (count >= 1), and how many keys are larger.
template <typename Key>
std::tuple<Key, int64_t> select(const std::vector<Key>& keys, int64_t count) {
  constexpr int kBits = 8 * sizeof(Key), kDigit = 11;
  Key prefix = 0, known = 0;
  int64_t larger = 0;
  for (int shift = kBits; shift > 0;) {
    const int width = std::min(kDigit, shift);
    shift -= width;
    const Key digit_mask = (Key(1) << width) - 1;
    std::vector<int64_t> histogram(size_t(1) << width, 0);
    for (Key key : keys) {
      if ((key & known) == prefix) ++histogram[(key >> shift) & digit_mask];
    }
    int64_t digit = static_cast<int64_t>(histogram.size()) - 1;
    while (larger + histogram[digit] < count) larger += histogram[digit--];
    prefix |= static_cast<Key>(digit) << shift, known |= digit_mask << shift;
  }
  return {prefix, larger};
}

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;

Four route_budget(Tensor uncertainty, int64_t count) {
  uncertainty = torch::stable::contiguous(uncertainty);
  const int64_t rows = uncertainty.numel();
  STD_TORCH_CHECK(count >= 0 && count <= rows, "budget: expected a count in [0, ", rows, "]; got ", count);
  Tensor order = torch::stable::new_empty(uncertainty, {rows}, ScalarType::Long);
  Tensor inverse = torch::stable::new_empty(uncertainty, {rows}, ScalarType::Long);
  Tensor offsets = torch::stable::new_empty(uncertainty, {3}, ScalarType::Long);
  Tensor destination = torch::stable::new_empty(uncertainty, {rows}, ScalarType::Long);
  int64_t* bounds = offsets.mutable_data_ptr<int64_t>();
  bounds[0] = 0, bounds[1] = rows - count, bounds[2] = rows;
  int64_t* sorted = order.mutable_data_ptr<int64_t>();
  int64_t* position = inverse.mutable_data_ptr<int64_t>();
  int64_t* goes = destination.mutable_data_ptr<int64_t>();
  with_floating_type(uncertainty, "uncertainty", [&](auto element) {
    using T = decltype(element);
    const T* values = uncertainty.const_data_ptr<T>();
    std::vector<decltype(ordered(Accumulator<T>()))> keys(rows);
    for (int64_t row = 0; row < rows; ++row) keys[row] = ordered(static_cast<Accumulator<T>>(values[row]));
    auto [last, larger] = count > 0 ? select(keys, count) : std::make_tuple(keys.empty() ? 0 : keys[0], int64_t(0));
    int64_t equals = count > 0 ? count - larger : 0;  // rows of the smallest selected value still to select
    int64_t next[2] = {0, rows - count};
    for (int64_t row = 0; row < rows; ++row) {
      const bool tied = keys[row] == last && equals > 0;
      const int64_t target = count > 0 && (keys[row] > last || tied);
      equals -= tied;
      goes[row] = target, position[row] = next[target], sorted[next[target]++] = row;
    }
  });
  return {order, inverse, offsets, destination};
}

Three partition(Tensor destination, int64_t destinations) {
  destination = torch::stable::contiguous(destination);
  const int64_t rows = destination.numel();
  const int64_t* goes = destination.const_data_ptr<int64_t>();
  Tensor order = torch::stable::empty_like(destination), inverse = torch::stable::empty_like(destination);
  Tensor offsets = torch::stable::new_empty(destination, {destinations + 1});
  int64_t* bounds = offsets.mutable_data_ptr<int64_t>();
  std::fill(bounds, bounds + destinations + 1, int64_t(0));
  for (int64_t row = 0; row < rows; ++row) {
    STD_TORCH_CHECK(goes[row] >= 0 && goes[row] < destinations, "destination: expected values in [0, ", destinations,
                    "); got ", goes[row], " in row ", row);
    ++bounds[goes[row] + 1];
  }
  for (int64_t d = 0; d < destinations; ++d) bounds[d + 1] += bounds[d];
  std::vector<int64_t> next(bounds, bounds + destinations);
  int64_t* sorted = order.mutable_data_ptr<int64_t>();
  int64_t* position = inverse.mutable_data_ptr<int64_t>();
  for (int64_t row = 0; row < rows; ++row) {
    position[row] = next[goes[row]], sorted[next[goes[row]]++] = row;
  }
  return {order, inverse, offsets};
}

constexpr int64_t kStreamBytes = 16 * 1024 * 1024;  // a larger result would evict everything else from the caches

constexpr int64_t kRowsAhead = 4;

#ifdef REASONREC_X86
// A copy with non-temporal stores, which bypass the caches and need not read the target first. Lines of 64 bytes;
// `to` is aligned to a line; `coming` is a row that will be copied soon, for prefetching.
REASONREC_V4 void stream_row(char* to, const char* from, const char* coming, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) {
    _mm_prefetch(coming + i, _MM_HINT_T0);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_loadu_si512(from + i));
  }
}
#endif

bool can_stream(const void* out, int64_t row_bytes, int64_t rows) {
#ifdef REASONREC_X86
  return has_v4() && row_bytes % 64 == 0 && reinterpret_cast<uintptr_t>(out) % 64 == 0 && row_bytes * rows >= kStreamBytes;
#else
  return false;
#endif
}

// out[i] = x[index[i]]; both contiguous, rows of any element type.
void gather_rows(Tensor x, Tensor index, Tensor out) {
  x = torch::stable::contiguous(x), index = torch::stable::contiguous(index);
  const int64_t rows = index.numel(), count = x.size(0);
  STD_TORCH_CHECK(out.is_contiguous() && out.scalar_type() == x.scalar_type() && out.size(0) == rows,
                  "out: expected a contiguous tensor of x's type with a row an index");
  const int64_t row_bytes = rows > 0 ? out.numel() / rows * static_cast<int64_t>(x.element_size()) : 0;
  STD_TORCH_CHECK(count == 0 || row_bytes * count == x.numel() * static_cast<int64_t>(x.element_size()) || rows == 0,
                  "out: expected rows of the size of x's");
  const int64_t* from = index.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < rows; ++row) {
    STD_TORCH_CHECK(from[row] >= 0 && from[row] < count, "index: expected values in [0, ", count, "); got ", from[row],
                    " in row ", row);
  }
  const char* source = static_cast<const char*>(x.const_data_ptr());
  char* target = static_cast<char*>(out.mutable_data_ptr());
  const bool stream = can_stream(target, row_bytes, rows);
  torch::stable::parallel_for(0, rows, 512, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const char* line = source + from[row] * row_bytes;
#ifdef REASONREC_X86
      if (stream) {
        const int64_t ahead = std::min(row + kRowsAhead, end - 1);
        stream_row(target + row * row_bytes, line, source + from[ahead] * row_bytes, row_bytes);
        continue;
      }
#endif
      std::memcpy(target + row * row_bytes, line, row_bytes);
    }
#ifdef REASONREC_X86
    if (stream) _mm_sfence();
#endif
  });
}

}  // namespace
}  // namespace reasonrec

STABLE_TORCH_LIBRARY_IMPL(reasonrec_fast, CPU, m) {
  m.impl("route_budget", TORCH_BOX(&reasonrec::route_budget));
  m.impl("gather_rows", TORCH_BOX(&reasonrec::gather_rows));
  m.impl("partition", TORCH_BOX(&reasonrec::partition));
}
