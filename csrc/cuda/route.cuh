// Device code of route: the kernels and the order of the steps.
//
// Every kernel has one thread per row, and no thread waits for another. Device-wide primitives (a stable radix sort, a
// prefix sum) and launches are methods of a `Device`: route.cu implements them with CUB, the tests on the host. No value
// is read back, so that the steps can be captured in a CUDA graph.
#pragma once

#include <cstdint>
#include <cstring>

namespace reasonrec {

template <typename T>
struct KeyOf;
template <>
struct KeyOf<float> {
  using Key = uint32_t;
};
template <>
struct KeyOf<double> {
  using Key = uint64_t;
};

__device__ inline int64_t row_of_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

// Integer keys in the order of the values (NaN is the largest, both zeros are equal), and their rows.
template <typename T>
__global__ void key_kernel(const T* values, int64_t rows, typename KeyOf<T>::Key* keys, int64_t* index) {
  using Key = typename KeyOf<T>::Key;
  const int64_t row = row_of_thread();
  if (row >= rows) return;
  const T value = values[row] + T(0);
  Key bits;
  memcpy(&bits, &value, sizeof bits);
  constexpr Key kSign = Key(1) << (8 * sizeof(Key) - 1);
  const Key ordered = bits ^ ((bits & kSign) != 0 ? ~Key(0) : kSign);
  keys[row] = value == value ? ordered : ~Key(0);
  index[row] = row;
}

// Destinations as sort keys, and their rows. An error for a destination out of range would need to read values back; it
// is clamped instead, so that all later steps stay within their memory.
__global__ void destination_key_kernel(const int64_t* destination, int64_t rows, int64_t destinations, uint32_t* keys,
                                       int64_t* index) {
  const int64_t row = row_of_thread();
  if (row >= rows) return;
  const int64_t given = destination[row], last = destinations - 1;
  keys[row] = static_cast<uint32_t>(given < 0 ? 0 : given > last ? last : given);
  index[row] = row;
}

// The first `count` rows, in descending order of their keys, get destination 1.
__global__ void mark_kernel(const int64_t* by_key, int64_t rows, int64_t count, int64_t* destination) {
  const int64_t position = row_of_thread();
  if (position < rows) destination[by_key[position]] = position < count;
}

// delegated_before: number of earlier rows with destination 1.
__global__ void scatter_kernel(const int64_t* destination, const int64_t* delegated_before, int64_t rows, int64_t count,
                               int64_t* order, int64_t* inverse, int64_t* offsets) {
  const int64_t row = row_of_thread();
  if (row == 0) offsets[0] = 0, offsets[1] = rows - count, offsets[2] = rows;
  if (row >= rows) return;
  const int64_t before = delegated_before[row];
  const int64_t position = destination[row] != 0 ? rows - count + before : row - before;
  inverse[row] = position;
  order[position] = row;
}

__global__ void invert_kernel(const int64_t* order, int64_t rows, int64_t* inverse) {
  const int64_t position = row_of_thread();
  if (position < rows) inverse[order[position]] = position;
}

// The offset of each destination among the sorted ones, and the total.
__global__ void offsets_kernel(const uint32_t* sorted, int64_t rows, int64_t destinations, int64_t* offsets) {
  const int64_t position = row_of_thread();
  if (position > rows) return;
  const int64_t previous = position == 0 ? -1 : static_cast<int64_t>(sorted[position - 1]);
  const int64_t current = position == rows ? destinations : static_cast<int64_t>(sorted[position]);
  for (int64_t d = previous + 1; d <= current; ++d) offsets[d] = position;
}

template <typename Device, typename T>
void route_budget_steps(Device& device, const T* uncertainty, int64_t rows, int64_t count, int64_t* order,
                        int64_t* inverse, int64_t* offsets, int64_t* destination) {
  using Key = typename KeyOf<T>::Key;
  Key* keys = device.template space<Key>(rows);
  Key* sorted = device.template space<Key>(rows);
  int64_t* before = device.template space<int64_t>(rows);
  device.launch(key_kernel<T>, rows, uncertainty, rows, keys, inverse);
  device.sort_falling(keys, sorted, inverse, order, rows);
  device.launch(mark_kernel, rows, order, rows, count, destination);
  device.exclusive_sum(destination, before, rows);
  device.launch(scatter_kernel, rows + 1, destination, before, rows, count, order, inverse, offsets);
}

constexpr int64_t kMostDestinations = int64_t(1) << 31;  // sort keys have 32 bits

// destinations in [1, kMostDestinations].
template <typename Device>
void partition_steps(Device& device, const int64_t* destination, int64_t rows, int64_t destinations, int64_t* order,
                     int64_t* inverse, int64_t* offsets) {
  int bits = 1;
  while ((int64_t(1) << bits) < destinations) ++bits;
  uint32_t* keys = device.template space<uint32_t>(rows);
  uint32_t* sorted = device.template space<uint32_t>(rows);
  device.launch(destination_key_kernel, rows, destination, rows, destinations, keys, inverse);
  device.sort_rising(keys, sorted, inverse, order, rows, bits);
  device.launch(invert_kernel, rows, order, rows, inverse);
  device.launch(offsets_kernel, rows + 1, sorted, rows, destinations, offsets);
}

}  // namespace reasonrec
