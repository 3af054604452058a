// One binary for several instruction sets: a kernel is a template over vectors of W bytes, compiled for each set with
// the width of its registers. Wider vectors would be correct too, but compilers keep them in memory.
#pragma once

#include <cstdint>
#include <utility>

#define REASONREC_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define REASONREC_X86 1
#define REASONREC_V3 __attribute__((target("arch=x86-64-v3")))
#define REASONREC_V4 __attribute__((target("arch=x86-64-v4")))
#endif

namespace reasonrec {

#ifdef REASONREC_X86
inline bool has_v4() {
  static const bool supported = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return supported;
}

inline bool has_v3() {
  static const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                                __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
  return supported;
}

template <typename Kernel, typename... Args>
REASONREC_V4 auto run_v4(Args&&... args) {
  return Kernel::template run<64>(std::forward<Args>(args)...);
}

template <typename Kernel, typename... Args>
REASONREC_V3 auto run_v3(Args&&... args) {
  return Kernel::template run<32>(std::forward<Args>(args)...);
}
#endif

// The register width W of this machine, in bytes.
inline int64_t register_bytes() {
#ifdef REASONREC_X86
  if (has_v4()) return 64;
  if (has_v3()) return 32;
#endif
  return 16;
}

// Calls Kernel::run<W>(args...) for this machine. It and all functions that it calls must be REASONREC_INLINE, or they
// would be compiled for the baseline instruction set.
template <typename Kernel, typename... Args>
auto dispatch(Args&&... args) {
#ifdef REASONREC_X86
  if (has_v4()) return run_v4<Kernel>(std::forward<Args>(args)...);
  if (has_v3()) return run_v3<Kernel>(std::forward<Args>(args)...);
#endif
  return Kernel::template run<16>(std::forward<Args>(args)...);
}

}  // namespace reasonrec
