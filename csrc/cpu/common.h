// Shared by the CPU kernels: checks and element types.
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

// The type of sums over elements of T.
template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Converts a row to the type of its sums.
template <typename T, typename Acc>
inline void widen(Acc* target, const T* source, int64_t size) {
  for (int64_t i = 0; i < size; ++i) target[i] = static_cast<Acc>(source[i]);
}

// Calls f with a value of the tensor's element type.
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
