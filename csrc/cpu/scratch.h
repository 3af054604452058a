// Uninitialised working memory, in large pages where the system supports them, which saves thousands of page faults
// and, under random access, most TLB misses.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace reasonrec {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

template <typename T>
using Scratch = std::unique_ptr<T[], Free>;

template <typename T>
Scratch<T> scratch(size_t count) {
  constexpr size_t kLine = 64, kLargePage = size_t(1) << 21;
  const size_t alignment = count * sizeof(T) >= 2 * kLargePage ? kLargePage : kLine;
  const size_t bytes = (count * sizeof(T) + alignment) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, bytes);
  if (memory == nullptr) throw std::bad_alloc();
#ifdef __linux__
  if (alignment == kLargePage) madvise(memory, bytes, MADV_HUGEPAGE);  // only a hint: it may fail
#endif
  return Scratch<T>(static_cast<T*>(memory));
}

}  // namespace reasonrec
