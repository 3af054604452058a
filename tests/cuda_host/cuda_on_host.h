// The CUDA built-ins that our kernels use, on the host, and twins of the device-wide steps of CUB.
//
// A grid's threads run one after the other in a scrambled order: kernels here have no barriers, so every order must give
// the same result.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#define __global__ static
#define __device__

struct Index {
  unsigned x;
};
inline Index threadIdx{0}, blockIdx{0}, blockDim{0};

class HostDevice {
 public:
  template <typename T>
  T* space(int64_t count) {
    // Guard bytes at both ends, which the address sanitizer checks if it is on.
    held_.emplace_back(count * sizeof(T) + 1, static_cast<char>(0xa5));
    return reinterpret_cast<T*>(held_.back().data());
  }

  template <typename... Parameters, typename... Arguments>
  void launch(void (*kernel)(Parameters...), int64_t threads, Arguments... arguments) {
    constexpr unsigned kBlock = 256;
    const int64_t all = (threads + kBlock - 1) / kBlock * kBlock;
    blockDim.x = kBlock;
    // A stride that has no factor in common with the power of two times the blocks visits every thread once.
    int64_t stride = 7919;
    while (all > 0 && std::gcd(stride, all) != 1) ++stride;
    for (int64_t step = 0, thread = all / 3; step < all; ++step, thread = (thread + stride) % all) {
      blockIdx.x = static_cast<unsigned>(thread / kBlock), threadIdx.x = static_cast<unsigned>(thread % kBlock);
      kernel(arguments...);
    }
  }

  template <typename Key>
  void sort_falling(const Key* keys, Key* sorted, const int64_t* values, int64_t* by_key, int64_t count) {
    sort(keys, sorted, values, by_key, count, [](Key a, Key b) { return a > b; });
  }

  // As CUB does, by the lowest bits alone.
  template <typename Key>
  void sort_rising(const Key* keys, Key* sorted, const int64_t* values, int64_t* by_key, int64_t count, int bits) {
    const uint64_t mask = (uint64_t(1) << bits) - 1;
    sort(keys, sorted, values, by_key, count, [=](Key a, Key b) { return (a & mask) < (b & mask); });
  }

  void exclusive_sum(const int64_t* values, int64_t* before, int64_t count) {
    std::exclusive_scan(values, values + count, before, int64_t(0));
  }

 private:
  template <typename Key, typename Less>
  void sort(const Key* keys, Key* sorted, const int64_t* values, int64_t* by_key, int64_t count, Less less) {
    std::vector<int64_t> places(count);
    std::iota(places.begin(), places.end(), int64_t(0));
    std::stable_sort(places.begin(), places.end(), [&](int64_t a, int64_t b) { return less(keys[a], keys[b]); });
    for (int64_t i = 0; i < count; ++i) sorted[i] = keys[places[i]], by_key[i] = values[places[i]];
  }

  std::vector<std::vector<char>> held_;
};
