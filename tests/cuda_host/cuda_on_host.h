// The CUDA built-ins that our kernels use, on the host: a block's threads are threads, shared memory is static.
#pragma once

#include <barrier>
#include <thread>
#include <vector>

#define __global__
#define __shared__ static

struct Index {
  int x;
};

inline thread_local Index threadIdx{0};
inline std::barrier<>* block_barrier = nullptr;

inline void __syncthreads() { block_barrier->arrive_and_wait(); }

// kernel<<<1, threads>>>(arguments...)
template <typename Kernel, typename... Arguments>
void run_block(int threads, Kernel kernel, Arguments... arguments) {
  std::barrier<> barrier(threads);
  block_barrier = &barrier;
  std::vector<std::thread> pool;
  for (int thread = 0; thread < threads; ++thread) {
    pool.emplace_back([=] {
      threadIdx.x = thread;
      kernel(arguments...);
    });
  }
  for (auto& thread : pool) thread.join();
}
