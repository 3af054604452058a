#include "cuda_on_host.h"

#include "../../csrc/cuda/route.cuh"

extern "C" void run_route_budget(const float* uncertainty, int64_t rows, int64_t count, int64_t* order,
                                 int64_t* inverse, int64_t* offsets, int64_t* destination) {
  HostDevice device;
  reasonrec::route_budget_steps(device, uncertainty, rows, count, order, inverse, offsets, destination);
}

extern "C" void run_route_budget_double(const double* uncertainty, int64_t rows, int64_t count, int64_t* order,
                                        int64_t* inverse, int64_t* offsets, int64_t* destination) {
  HostDevice device;
  reasonrec::route_budget_steps(device, uncertainty, rows, count, order, inverse, offsets, destination);
}

extern "C" void run_partition(const int64_t* destination, int64_t rows, int64_t destinations, int64_t* order,
                              int64_t* inverse, int64_t* offsets) {
  HostDevice device;
  reasonrec::partition_steps(device, destination, rows, destinations, order, inverse, offsets);
}
