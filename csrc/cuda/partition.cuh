// Device code of partition: a stable counting sort of rows by destination, in one block.
#pragma once

#include <cstdint>

namespace reasonrec {

constexpr int kPartitionThreads = 256;
constexpr int kPartitionDestinations = 32;  // what the counts in shared memory allow

// Thread t takes the t-th contiguous share of the rows, so that places within a destination follow the input.
__global__ void partition_kernel(const int64_t* destination, int64_t rows, int destinations, int64_t* order,
                                 int64_t* inverse, int64_t* offsets) {
  __shared__ unsigned int place[kPartitionDestinations * kPartitionThreads];
  const int thread = threadIdx.x;
  const int64_t share = (rows + kPartitionThreads - 1) / kPartitionThreads;
  const int64_t begin = thread * share < rows ? thread * share : rows;
  const int64_t end = begin + share < rows ? begin + share : rows;
  for (int d = 0; d < destinations; ++d) place[d * kPartitionThreads + thread] = 0;
  for (int64_t row = begin; row < end; ++row) ++place[destination[row] * kPartitionThreads + thread];
  __syncthreads();
  if (thread == 0) {
    unsigned int total = 0;
    for (int d = 0; d < destinations; ++d) {
      offsets[d] = total;
      for (int t = 0; t < kPartitionThreads; ++t) {
        const unsigned int count = place[d * kPartitionThreads + t];
        place[d * kPartitionThreads + t] = total;
        total += count;
      }
    }
    offsets[destinations] = total;
  }
  __syncthreads();
  for (int64_t row = begin; row < end; ++row) {
    const unsigned int at = place[destination[row] * kPartitionThreads + thread]++;
    order[at] = row;
    inverse[row] = at;
  }
}

}  // namespace reasonrec
