// Prefetches the next block into the L2 cache while a product runs: the product reads several rows in parallel, which
// the hardware prefetcher does not recognise as one sequential block.
#pragma once

#include <cstdint>

namespace reasonrec {

class Ahead {
 public:
  Ahead() = default;
  // Prefetches the bytes [from, from + size), divided evenly among the given number of steps.
  Ahead(const void* from, int64_t size, int64_t steps)
      : next_(static_cast<const char*>(from)), lines_a_step_(steps > 0 ? (size / kLine + steps - 1) / steps : 0) {}

  inline __attribute__((always_inline)) void step() {
    for (int64_t line = 0; line < lines_a_step_; ++line, next_ += kLine) __builtin_prefetch(next_, 0, 2);
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* next_ = nullptr;
  int64_t lines_a_step_ = 0;
};

}  // namespace reasonrec
