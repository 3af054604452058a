#include "vector.h"

namespace reasonrec {
namespace {

// Sixteen partial sums, whatever the registers hold: this fixed order is the same for every instruction set, so that all
// machines without fused multiply-add contraction agree.
struct Dot {
  template <int W, typename T>
  static REASONREC_INLINE void run(const T* a, const T* b, int64_t size, T& result) {
    constexpr int L = W / sizeof(T), kVectors = kLanes / L;
    Vec<T, L> sums[kVectors] = {};
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[v] += load<L>(a + i + v * L) * load<L>(b + i + v * L);
    }
    T partial[kLanes];
    for (int v = 0; v < kVectors; ++v) store(partial + v * L, sums[v]);
    for (int64_t lane = 0; i < size; ++i, ++lane) partial[lane] += a[i] * b[i];
    for (int64_t half = kLanes / 2; half > 0; half /= 2) {
      for (int64_t lane = 0; lane < half; ++lane) partial[lane] += partial[lane + half];
    }
    result = partial[0];
  }
};

}  // namespace

template <typename T>
T dot(const T* a, const T* b, int64_t size) {
  T result;
  dispatch<Dot>(a, b, size, result);
  return result;
}

template float dot(const float*, const float*, int64_t);
template double dot(const double*, const double*, int64_t);

}  // namespace reasonrec
