// partition on CUDA: launch and stream handling; the kernel is in partition.cuh.
#define USE_CUDA  // shim.h declares the current stream only then
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cuda_runtime.h>

#include <tuple>

#include "partition.cuh"

namespace reasonrec {
namespace {

using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor> partition(Tensor destination, int64_t num_destinations) {
  STD_TORCH_CHECK(num_destinations <= kPartitionDestinations, "num_destinations: expected at most 32 on CUDA");
  STD_TORCH_CHECK(destination.numel() < (int64_t(1) << 32), "destination: expected fewer than 2^32 rows");
  destination = torch::stable::contiguous(destination);
  Tensor order = torch::stable::empty_like(destination), inverse = torch::stable::empty_like(destination);
  Tensor offsets = torch::stable::new_empty(destination, {num_destinations + 1});
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(destination.get_device(), &stream));
  partition_kernel<<<1, kPartitionThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      destination.const_data_ptr<int64_t>(), destination.numel(), static_cast<int>(num_destinations),
      order.mutable_data_ptr<int64_t>(), inverse.mutable_data_ptr<int64_t>(), offsets.mutable_data_ptr<int64_t>());
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "partition: ", cudaGetErrorString(error));
  return {order, inverse, offsets};
}

}  // namespace
}  // namespace reasonrec

STABLE_TORCH_LIBRARY_IMPL(reasonrec_fast, CUDA, m) { m.impl("partition", TORCH_BOX(&reasonrec::partition)); }
