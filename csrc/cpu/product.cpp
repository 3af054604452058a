#include "product.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "product_kernels.h"

#ifdef REASONREC_X86
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace reasonrec {
namespace {

#ifdef REASONREC_X86
bool has_bf16() {
  static const bool supported = has_v4() && __builtin_cpu_supports("avx512bf16");
  return supported;
}

// A process must request the use of the AMX tile registers from the system, once for all threads.
bool has_amx() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  static const bool supported = has_bf16() && __builtin_cpu_supports("amx-tile") &&
                                __builtin_cpu_supports("amx-bf16") &&
                                syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return supported;
}
#else
bool has_bf16() { return false; }
bool has_amx() { return false; }
#endif

// Whether products of T use the processor's 16-bit instructions.
template <typename T>
bool in_pairs() {
  return std::is_same_v<T, BFloat16> && has_bf16();
}

}  // namespace

bool bf16_in_pairs() { return in_pairs<BFloat16>(); }

int64_t pair_steps(int64_t width) {
  // AMX reads whole blocks of columns; the last block is padded with zeros.
  return has_amx() ? (width + 31) / 32 * 16 : (width + 1) / 2;
}

void multiply_tile(const uint32_t* packed, const uint16_t* weight, int64_t stride, int64_t width, int64_t lanes,
                   float* out) {
#ifdef REASONREC_X86
  const auto run = has_amx() ? tile_amx : tile_bf16;
  run(packed, weight, stride, width, lanes, out, Ahead());
#endif
}

void multiply_tile(const float* packed, const float* weight, int64_t stride, int64_t width, int64_t lanes, float* out) {
  dispatch<Tile>(packed, weight, stride, width, lanes, out, Ahead());
}

void multiply_tile(const double* packed, const double* weight, int64_t stride, int64_t width, int64_t lanes,
                   double* out) {
  dispatch<Tile>(packed, weight, stride, width, lanes, out, Ahead());
}

template <typename T>
int64_t tile_rows() {
#ifdef REASONREC_X86
  if (in_pairs<T>() && has_amx()) return kAmxRows;
#endif
  return kTileRows;
}

template <typename T>
Panels<T>::Panels(const T* rows, int64_t count, int64_t width) : rows_(count), width_(width) {
  const bool pairs = in_pairs<T>();
  const int64_t steps = pairs ? pair_steps(width) : width;
  stride_ = steps * kPanelRows;
  const int64_t size = this->count() * stride_;
  if (pairs) pairs_.resize(size); else wide_.resize(size);
  torch::stable::parallel_for(0, this->count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t stride = lanes(panel);
      for (int64_t lane = 0; lane < this->rows(panel); ++lane) {
        const T* row = rows + (panel * kPanelRows + lane) * width;
        if (pairs) {
          uint32_t* out = pairs_.data() + panel * stride_ + lane;
          for (int64_t k = 0; k < width; k += 2) {
            uint16_t values[2] = {};
            std::memcpy(values, row + k, k + 1 < width ? 4 : 2);
            out[k / 2 * stride] = values[0] | static_cast<uint32_t>(values[1]) << 16;
          }
        } else {
          Accumulator<T>* out = wide_.data() + panel * stride_ + lane;
          for (int64_t k = 0; k < width; ++k) out[k * stride] = static_cast<Accumulator<T>>(row[k]);
        }
      }
    }
  });
}

template <typename T>
void Tiles<T>::stage(int64_t first, int64_t count) {
  const T* rows = weight_ + first * width_;
  next_ = rows + count * width_;
  next_bytes_ = std::min(tile_rows<T>(), rows_ - first - count) * width_ * static_cast<int64_t>(sizeof(T));
  if (in_pairs<T>() || std::is_same_v<T, Accumulator<T>>) {
    staged_ = rows;
    if (count == tile_rows<T>()) return;
    narrow_.assign(tile_rows<T>() * width_, T(0));  // rows past the end are read, but the results are not used
    std::copy(rows, rows + count * width_, narrow_.begin());
    staged_ = narrow_.data();
    return;
  }
  wide_.resize(tile_rows<T>() * width_);
  widen(wide_.data(), rows, count * width_);
  staged_ = wide_.data();
}

template <typename T>
void Tiles<T>::multiply(const Panels<T>& panels, int64_t panel, Accumulator<T>* out, int64_t part,
                        int64_t parts) const {
  const int64_t lanes = panels.lanes(panel), coming = next_bytes_ / parts;
  const auto from = reinterpret_cast<uintptr_t>(next_) + part * coming;
  auto ahead = [&](int64_t steps) { return Ahead(reinterpret_cast<const void*>(from), coming, steps); };
#ifdef REASONREC_X86
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (in_pairs<T>()) {
      const auto run = has_amx() ? tile_amx : tile_bf16;
      return run(panels.pairs_.data() + panel * panels.stride_, static_cast<const uint16_t*>(staged_), width_, width_,
                 lanes, out, ahead(width_ / (has_amx() ? 32 : 2)));
    }
  }
#endif
  using Acc = Accumulator<T>;
  dispatch<Tile>(panels.wide_.data() + panel * panels.stride_, static_cast<const Acc*>(staged_), width_, width_, lanes, out,
            ahead(width_));
}

template <typename T>
Few<T>::Few(const T* rows, int64_t count, int64_t width) : count_(count), width_(width), held_(1) {
  while (held_ < count) held_ *= 2;
  if (in_pairs<T>()) {
    narrow_.assign(held_ * width, T(0));
    std::copy(rows, rows + count * width, narrow_.begin());
  } else {
    wide_.assign(held_ * width, Accumulator<T>(0));
    widen(wide_.data(), rows, count * width);
  }
}

template <typename T>
void Few<T>::multiply(const T* streamed, int64_t count, Accumulator<T>* out, int64_t streamed_stride,
                      int64_t row_stride) const {
  using Acc = Accumulator<T>;
  if constexpr (std::is_same_v<T, Acc>) {
    multiply_with(wide_.data(), streamed, count, out, streamed_stride, row_stride);
  } else if (in_pairs<T>()) {
    multiply_with(reinterpret_cast<const uint16_t*>(narrow_.data()), reinterpret_cast<const uint16_t*>(streamed), count,
                  out, streamed_stride, row_stride);
  } else {
    std::vector<Acc> widened(count * width_);
    widen(widened.data(), streamed, count * width_);
    multiply_with(wide_.data(), static_cast<const Acc*>(widened.data()), count, out, streamed_stride, row_stride);
  }
}

template <typename T>
template <typename U>
void Few<T>::multiply_with(const U* rows, const U* streamed, int64_t count, Accumulator<T>* out,
                           int64_t streamed_stride, int64_t row_stride) const {
  const int64_t step = kLanes / held_;
  for (int64_t first = 0; first < count; first += step) {
    const U* pointers[kLanes];
    for (int64_t s = 0; s < step; ++s) pointers[s] = streamed + std::min(first + s, count - 1) * width_;
    Accumulator<T> products[kLanes];
    if constexpr (std::is_same_v<U, uint16_t>) {
#ifdef REASONREC_X86
      few_bf16(held_, rows, width_, pointers, products);
#endif
    } else {
      dispatch<FewRows>(held_, rows, width_, pointers, products);
    }
    for (int64_t s = 0; s < std::min(step, count - first); ++s) {
      Accumulator<T>* to = out + (first + s) * streamed_stride;
      for (int64_t r = 0; r < count_; ++r) to[r * row_stride] = products[s * held_ + r];
    }
  }
}

template int64_t tile_rows<float>();
template class Panels<float>;
template int64_t tile_rows<double>();
template class Panels<double>;
template int64_t tile_rows<BFloat16>();
template class Panels<BFloat16>;
template int64_t tile_rows<Half>();
template class Panels<Half>;
template class Tiles<float>;
template class Tiles<double>;
template class Tiles<BFloat16>;
template class Tiles<Half>;
template class Few<float>;
template class Few<double>;
template class Few<BFloat16>;
template class Few<Half>;

}  // namespace reasonrec
