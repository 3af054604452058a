#include "common.h"

namespace reasonrec {

REASONREC_DISPATCH
void add_scaled(float* target, const float* source, float scale, int64_t size) {
  for (int64_t i = 0; i < size; ++i) target[i] += scale * source[i];
}

REASONREC_DISPATCH
void add_scaled(double* target, const double* source, double scale, int64_t size) {
  for (int64_t i = 0; i < size; ++i) target[i] += scale * source[i];
}

// Sixteen partial sums: the compiler may not reorder a floating-point sum, and this fixed order is the same in
// every clone, so that all machines without fused multiply-add contraction agree.
template <typename T>
static inline __attribute__((always_inline)) T dot_lanes(const T* a, const T* b, int64_t size) {
  constexpr int64_t kLanes = 16;
  T partial[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) partial[lane] += a[i + lane] * b[i + lane];
  }
  for (int64_t lane = 0; i < size; ++i, ++lane) partial[lane] += a[i] * b[i];
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) partial[lane] += partial[lane + half];
  }
  return partial[0];
}

REASONREC_DISPATCH
float dot(const float* a, const float* b, int64_t size) { return dot_lanes(a, b, size); }

REASONREC_DISPATCH
double dot(const double* a, const double* b, int64_t size) { return dot_lanes(a, b, size); }

}  // namespace reasonrec
