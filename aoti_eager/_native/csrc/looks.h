// When a call that a library serves is compared with the original once more.
//
// `_dispatch/recheck.py` has the rule and its Python twin: the calls number 2, 4, 8, ..., 1,024 of an
// entry, then
// each 65,536th. Threads count by their places (epochs.h), so that no two of them write to one cache
// line on each hit; a count that two threads of one place raise at once may lose a call.

#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstdint>

#include "epochs.h"

namespace aoti_eager {

class Looks {
 public:
  // Whether this call is to be compared.
  bool is_due(const Participant& place) {
    Part& part = parts_[place.number % kParts];
    uint32_t left = part.left.load(std::memory_order_relaxed);
    if (left != 0) [[likely]] {
      part.left.store(left - 1, std::memory_order_relaxed);
      return false;
    }
    return decide(part);
  }

  // The next number of a call that is compared, after `number`.
  static uint64_t next(uint64_t number) {
    return number < 1024 ? uint64_t{1} << std::bit_width(number) : (number / 65536 + 1) * 65536;
  }

  // After how many calls a comparison is due again for which there was no time at `number`.
  static uint64_t put_off(uint64_t number) {
    return std::clamp<uint64_t>(number / 16, 64, 4096);
  }

  // Until when no call is compared, in nanoseconds of the steady clock: the share of the time that
  // comparisons may take is used up, or they are switched off.
  static std::atomic<int64_t>& rest_until() {
    static std::atomic<int64_t> until{INT64_MAX};
    return until;
  }

 private:
  static constexpr size_t kParts = 16;

  struct alignas(kCacheLine) Part {
    std::atomic<uint32_t> left{1}; // calls before the one that is due
    std::atomic<uint64_t> number{2}; // of the call that is due
  };

  [[gnu::noinline]] static bool decide(Part& part) {
    int64_t now = std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
    bool rests = now < rest_until().load(std::memory_order_relaxed);
    uint64_t number = part.number.load(std::memory_order_relaxed);
    uint64_t gap = rests ? put_off(number) : next(number) - number;
    part.number.store(number + gap, std::memory_order_relaxed);
    part.left.store(static_cast<uint32_t>(gap - 1), std::memory_order_relaxed);
    return !rests;
  }

  std::array<Part, kParts> parts_;
};

} // namespace aoti_eager
