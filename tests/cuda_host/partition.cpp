#include "cuda_on_host.h"

#include "../../csrc/cuda/partition.cuh"

extern "C" void run_partition(const int64_t* destination, int64_t rows, int destinations, int64_t* order,
                              int64_t* inverse, int64_t* offsets) {
  run_block(reasonrec::kPartitionThreads, reasonrec::partition_kernel, destination, rows, destinations, order, inverse,
            offsets);
}
