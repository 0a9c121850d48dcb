// Included first. One header of torch's reads the processor's clock, and includes for that what the
// compiler has for each instruction of it: a quarter of all that there is to parse.

#pragma once

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#if __has_include(<x86gprintrin.h>)
#include <x86gprintrin.h> // has the clock
// By this, GCC's `x86intrin.h` knows that it has been included. Where it has another name for that,
// it is included in full.
#define _X86INTRIN_H_INCLUDED
#endif
#endif
