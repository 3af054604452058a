// Fetches what comes next into the second cache while a product runs: its rows lie apart in memory for the product, and
// the processor does not see by itself that they follow one another.
#pragma once

#include <cstdint>

namespace reasonrec {

class Ahead {
 public:
  Ahead() = default;
  // Bytes [from, from + size), evenly over so many steps.
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
