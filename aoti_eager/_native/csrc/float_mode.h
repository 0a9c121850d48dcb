// How a thread computes: its control register of floating-point numbers.

#pragma once

#include <cstdint>

#if defined(__SSE__) || defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace aoti_eager {

// Whether this thread keeps denormals, rounds to nearest and raises no signals, as all threads begin
// and as kernels are compared. `torch.set_flush_denormal` changes that.
inline bool is_usual_float_mode() {
#if defined(__SSE__) || defined(__x86_64__)
  // Denormals as zeros 0x40, masks 0x1F80, rounding 0x6000, flush to zero 0x8000; the low six bits
  // only say what has happened.
  return (_mm_getcsr() & 0xFFC0u) == 0x1F80u;
#elif defined(__aarch64__)
  uint64_t control;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  return (control & 0x7FF9F07ull) == 0;
#else
  return true;
#endif
}

} // namespace aoti_eager
