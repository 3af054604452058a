// route on CUDA: launches, memory and CUB's device-wide primitives; the algorithm is in route.cuh.
#define USE_CUDA  // shim.h declares the current stream only then
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#include <cuda_runtime.h>

#include <tuple>
#include <vector>

#include "route.cuh"

namespace reasonrec {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check(cudaError_t error) { STD_TORCH_CHECK(error == cudaSuccess, "route: ", cudaGetErrorString(error)); }

// Makes the device of a tensor current during its lifetime, and has its current stream; memory is from torch's
// stream-ordered allocator.
class CudaDevice {
 public:
  explicit CudaDevice(const Tensor& like) : guard_(like.get_device()), like_(like) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <typename T>
  T* space(int64_t count) {
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    held_.push_back(torch::stable::new_empty(like_, {bytes}, ScalarType::Byte));
    return static_cast<T*>(held_.back().mutable_data_ptr());
  }

  template <typename... Parameters, typename... Arguments>
  void launch(void (*kernel)(Parameters...), int64_t threads, Arguments... arguments) {
    if (threads == 0) return;
    kernel<<<static_cast<unsigned>((threads + kBlock - 1) / kBlock), kBlock, 0, stream_>>>(arguments...);
    check(cudaGetLastError());
  }

  template <typename Key>
  void sort_falling(const Key* keys, Key* sorted, const int64_t* values, int64_t* by_key, int64_t count) {
    with_space([&](void* space, size_t& bytes) {
      return cub::DeviceRadixSort::SortPairsDescending(space, bytes, keys, sorted, values, by_key, count, 0,
                                                       8 * sizeof(Key), stream_);
    });
  }

  template <typename Key>
  void sort_rising(const Key* keys, Key* sorted, const int64_t* values, int64_t* by_key, int64_t count, int bits) {
    with_space([&](void* space, size_t& bytes) {
      return cub::DeviceRadixSort::SortPairs(space, bytes, keys, sorted, values, by_key, count, 0, bits, stream_);
    });
  }

  void exclusive_sum(const int64_t* values, int64_t* before, int64_t count) {
    with_space([&](void* space, size_t& bytes) {
      return cub::DeviceScan::ExclusiveSum(space, bytes, values, before, count, stream_);
    });
  }

 private:
  static constexpr int kBlock = 256;

  // CUB is called twice: the first call returns the size of its working memory, the second computes.
  template <typename Step>
  void with_space(const Step& step) {
    size_t bytes = 0;
    check(step(nullptr, bytes));
    check(step(space<char>(static_cast<int64_t>(bytes) + 1), bytes));
  }

  torch::stable::accelerator::DeviceGuard guard_;
  const Tensor& like_;
  cudaStream_t stream_;
  std::vector<Tensor> held_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> route_budget(Tensor uncertainty, int64_t count) {
  uncertainty = torch::stable::contiguous(uncertainty);
  const int64_t rows = uncertainty.numel();
  STD_TORCH_CHECK(count >= 0 && count <= rows, "budget: expected a count in [0, ", rows, "]; got ", count);
  auto longs = [&](int64_t size) { return torch::stable::new_empty(uncertainty, {size}, ScalarType::Long); };
  Tensor order = longs(rows), inverse = longs(rows), offsets = longs(3), destination = longs(rows);
  CudaDevice device(uncertainty);
  auto run = [&](auto* values) {
    route_budget_steps(device, values, rows, count, order.mutable_data_ptr<int64_t>(),
                       inverse.mutable_data_ptr<int64_t>(), offsets.mutable_data_ptr<int64_t>(),
                       destination.mutable_data_ptr<int64_t>());
  };
  if (uncertainty.scalar_type() == ScalarType::Double) {
    run(uncertainty.const_data_ptr<double>());
  } else {
    const Tensor wide = torch::stable::to(uncertainty, ScalarType::Float);
    run(wide.const_data_ptr<float>());
  }
  return {order, inverse, offsets, destination};
}

std::tuple<Tensor, Tensor, Tensor> partition(Tensor destination, int64_t destinations) {
  STD_TORCH_CHECK(destinations >= 1 && destinations <= kMostDestinations, "num_destinations: expected 1 to ",
                  kMostDestinations, "; got ", destinations);
  destination = torch::stable::contiguous(destination);
  Tensor order = torch::stable::empty_like(destination), inverse = torch::stable::empty_like(destination);
  Tensor offsets = torch::stable::new_empty(destination, {destinations + 1});
  CudaDevice device(destination);
  partition_steps(device, destination.const_data_ptr<int64_t>(), destination.numel(), destinations,
                  order.mutable_data_ptr<int64_t>(), inverse.mutable_data_ptr<int64_t>(),
                  offsets.mutable_data_ptr<int64_t>());
  return {order, inverse, offsets};
}

}  // namespace
}  // namespace reasonrec

STABLE_TORCH_LIBRARY_IMPL(reasonrec_fast, CUDA, m) {
  m.impl("route_budget", TORCH_BOX(&reasonrec::route_budget));
  m.impl("partition", TORCH_BOX(&reasonrec::partition));
}
