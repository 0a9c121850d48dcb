// Counts that many threads raise at once: exact, and without a cache line that all of them write.

#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "epochs.h"

namespace aoti_eager {

// A count in parts: a thread adds to the one of its place. The last is for all threads that have come
// late; the others have one writer each, who needs no lock on the line.
class Counter {
 public:
  void add(const Participant& place) {
    if (place.number < kParts - 1) [[likely]] {
      std::atomic<uint64_t>& count = parts_[place.number].count;
      count.store(count.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    } else {
      parts_[kParts - 1].count.fetch_add(1, std::memory_order_relaxed);
    }
  }

  uint64_t value() const {
    uint64_t sum = 0;
    for (const Part& part : parts_) {
      sum += part.count.load(std::memory_order_relaxed);
    }
    return sum;
  }

 private:
  static constexpr size_t kParts = 16;
  struct alignas(kCacheLine) Part {
    std::atomic<uint64_t> count{0};
  };
  std::array<Part, kParts> parts_;
};

// How many objects of a class there are: a test's way to find leaks.
template <class T>
class Counted {
 public:
  static int64_t alive() {
    return alive_.load(std::memory_order_relaxed);
  }

 protected:
  Counted() {
    alive_.fetch_add(1, std::memory_order_relaxed);
  }
  ~Counted() {
    alive_.fetch_sub(1, std::memory_order_relaxed);
  }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;

 private:
  inline static std::atomic<int64_t> alive_{0};
};

} // namespace aoti_eager
