// A barrier in all threads of the process, by the one thread that wants it (Linux).
//
// Where one side of an exchange between threads runs on each call and the other now and then, the rare
// side pays for the order of both: a few microseconds for it, and nothing for the others.

#pragma once

#if defined(__linux__) && !defined(AOTI_EAGER_NO_BARRIER) // A test goes without.
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>
#if defined(SYS_membarrier)
#define AOTI_EAGER_HAS_BARRIER
#endif
#endif

namespace aoti_eager {

// Whether the system has such barriers, to be asked for before the first one.
inline bool has_barriers() {
#if defined(AOTI_EAGER_HAS_BARRIER)
  long known = syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);
  return known > 0 && (known & MEMBARRIER_CMD_PRIVATE_EXPEDITED) != 0;
#else
  return false;
#endif
}

// Has the system give them to this process, once. That takes milliseconds, in which the thread sleeps:
// every core has to have passed through its scheduler.
inline bool ask_for_barriers() {
#if defined(AOTI_EAGER_HAS_BARRIER)
  return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
#else
  return false;
#endif
}

// What each other thread wrote before this is seen here after it, or the thread reads after it what
// this one wrote before it. False if the system refuses: then nothing may be concluded.
inline bool barrier_in_all_threads() {
#if defined(AOTI_EAGER_HAS_BARRIER)
  if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0) {
    return true;
  }
  // Nobody has asked yet; or this is a child of a fork, which may have to ask anew.
  return ask_for_barriers() && syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0;
#else
  return false;
#endif
}

} // namespace aoti_eager
