// What the CPU kernels share: checks, element types, vectorised loops over one row.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

namespace reasonrec {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The type in which sums over elements of T are held.
template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

// One binary, several instruction sets: the loader picks the clone that the machine can run.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define REASONREC_DISPATCH __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define REASONREC_DISPATCH
#endif

// target[i] += scale * source[i]
void add_scaled(float* target, const float* source, float scale, int64_t size);
void add_scaled(double* target, const double* source, double scale, int64_t size);

// sum of a[i] * b[i]
float dot(const float* a, const float* b, int64_t size);
double dot(const double* a, const double* b, int64_t size);

// Copy of a row in the type of its sums.
template <typename T, typename Acc>
inline void widen(Acc* target, const T* source, int64_t size) {
  for (int64_t i = 0; i < size; ++i) target[i] = static_cast<Acc>(source[i]);
}

// Calls f with a value of the element type that a tensor holds.
template <typename F>
void with_floating_type(const Tensor& tensor, const char* name, F&& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return f(float{});
    case ScalarType::Double: return f(double{});
    case ScalarType::BFloat16: return f(BFloat16{});
    case ScalarType::Half: return f(Half{});
    default: STD_TORCH_CHECK(false, name, ": expected float32, float64, bfloat16 or float16");
  }
}

template <typename F>
void with_index_type(const Tensor& tensor, const char* name, F&& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Int: return f(int32_t{});
    case ScalarType::Long: return f(int64_t{});
    default: STD_TORCH_CHECK(false, name, ": expected int32 or int64");
  }
}

}  // namespace reasonrec
