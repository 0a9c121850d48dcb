// Freeing what other threads may still be reading, without a lock on the reader's side.
//
// A reader announces the epoch it began in and takes that back when it is done. A writer first
// takes an object out of every place where a reader could find it, then retires it under the epoch
// of that moment and begins the next one. It is freed when no announced epoch is as old: whoever
// announced a later one began after the object was gone. A reader pays for two stores to memory of its
// own thread: what it announces must be seen before it reads a pointer, and the writer sees to that, by
// a barrier in all threads (barrier.h); where the system has none, by an exchange in place of a store.

#pragma once

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "barrier.h"

namespace aoti_eager {

constexpr size_t kCacheLine = 64;

// One thread's place. Places are never freed: a thread that ends leaves its own to the next one.
struct alignas(kCacheLine) Participant {
  std::atomic<uint64_t> announced{0};
  std::atomic<bool> taken{true};
  uint32_t depth = 0; // read and written by its own thread only
  uint32_t number = 0;
  int32_t passing = 0; // above zero, the thread's calls are for originals
  Participant* next = nullptr;
};

class Epochs {
  struct Retired {
    uint64_t epoch;
    void* object;
    void (*free_)(void*);
  };

 public:
  static Epochs& instance() {
    return *instance_;
  }

  // Returns this thread's place.
  static Participant& place() {
    Participant* mine = own_place();
    return mine != nullptr ? *mine : instance().take_place();
  }

  static void forget_own_place() {
    own_place() = nullptr;
  }

  void enter(Participant& mine) {
    if (mine.depth++ == 0) {
      // A pointer that is read after it is either what a writer left there, or the writer sees this
      // announcement.
      uint64_t epoch = epoch_.load(std::memory_order_acquire);
      if (has_barrier_) [[likely]] {
        mine.announced.store(epoch, std::memory_order_relaxed);
        std::atomic_signal_fence(std::memory_order_seq_cst); // The compiler keeps the order, too.
      } else {
        mine.announced.exchange(epoch, std::memory_order_seq_cst);
      }
    }
  }

  void leave(Participant& mine) {
    if (--mine.depth == 0) {
      mine.announced.store(0, std::memory_order_release);
    }
  }

  // Has `object` freed by `free_` as soon as nobody can be reading it. By a `WriteGuard` thread.
  void retire(void* object, void (*free_)(void*)) {
    uint64_t epoch = epoch_.fetch_add(1, std::memory_order_seq_cst);
    retired_.push_back({epoch, object, free_});
  }

  // Takes out what can be freed. Under the lock.
  std::vector<Retired> take_ready() {
    if (retired_.empty() || (has_barrier_ && !barrier_in_all_threads())) {
      return {};
    }
    uint64_t oldest = UINT64_MAX;
    for (Participant* place = places_.load(std::memory_order_acquire); place; place = place->next) {
      uint64_t announced = place->announced.load(std::memory_order_seq_cst);
      if (announced != 0) {
        oldest = std::min(oldest, announced);
      }
    }
    // They are in the order of their epochs.
    auto first_kept = std::find_if(retired_.begin(), retired_.end(), [oldest](const Retired& one) {
      return one.epoch >= oldest;
    });
    std::vector<Retired> ready(retired_.begin(), first_kept);
    retired_.erase(retired_.begin(), first_kept);
    return ready;
  }

  // By a `WriteGuard` thread.
  size_t retired() const {
    return retired_.size();
  }

  // In a forked child: the other threads are not here, and will never leave.
  void forget_other_threads() {
    Participant* mine = own_place();
    for (Participant* place = places_.load(std::memory_order_acquire); place; place = place->next) {
      if (place != mine) {
        place->announced.store(0, std::memory_order_relaxed);
        place->depth = 0;
        place->taken.store(false, std::memory_order_release);
      }
    }
  }

 private:
  friend class WriteGuard;

  Epochs() {
    pthread_atfork(
        [] { instance().writers_.lock(); },
        [] { instance().writers_.unlock(); },
        [] {
          instance().forget_other_threads();
          instance().writers_.unlock();
        });
  }

  static Participant*& own_place() {
    static thread_local Participant* mine = nullptr; // Without a destructor: reading it costs no check.
    return mine;
  }

  Participant& take_place();

  // Made when the library is loaded: a hit that asks twice whether it is there pays for that.
  // Never deleted: threads may outlive static destructors.
  static Epochs* const instance_;

  const bool has_barrier_ = has_barriers();
  std::mutex writers_;
  std::atomic<uint64_t> epoch_{1};
  std::atomic<Participant*> places_{nullptr};
  std::atomic<uint32_t> number_of_places_{0};
  std::vector<Retired> retired_;
};

inline Epochs* const Epochs::instance_ = new Epochs;

// Gives the thread's place back when the thread ends.
struct PlaceHolder {
  Participant* place = nullptr;
  ~PlaceHolder() {
    if (place != nullptr) {
      // A later destructor of this thread takes a place anew.
      Epochs::forget_own_place();
      place->announced.store(0, std::memory_order_release);
      place->taken.store(false, std::memory_order_release);
    }
  }
};

inline thread_local PlaceHolder place_holder;

// Once in a thread: kept out of what each call does.
[[gnu::noinline]] inline Participant& Epochs::take_place() {
  Participant* found = nullptr;
  for (Participant* place = places_.load(std::memory_order_acquire); place; place = place->next) {
    bool taken = false;
    if (place->taken.compare_exchange_strong(taken, true, std::memory_order_acq_rel)) {
      found = place;
      break;
    }
  }
  if (found == nullptr) {
    found = new Participant;
    found->number = number_of_places_.fetch_add(1, std::memory_order_relaxed);
    Participant* first = places_.load(std::memory_order_relaxed);
    do {
      found->next = first;
    } while (!places_.compare_exchange_weak(first, found, std::memory_order_acq_rel));
  }
  found->depth = 0;
  found->passing = 0;
  own_place() = found;
  place_holder.place = found;
  return *found;
}

// A writer's stay: tables change one at a time, and only on a miss. What became free meanwhile is
// freed after the lock is given back, because a destructor may want the GIL, whose holder may be about
// to fork and wait for this lock.
class WriteGuard {
 public:
  WriteGuard() : lock_(Epochs::instance().writers_) {}
  ~WriteGuard() {
    std::vector<Epochs::Retired> ready = Epochs::instance().take_ready();
    lock_.unlock();
    for (const Epochs::Retired& one : ready) {
      one.free_(one.object);
    }
  }
  WriteGuard(const WriteGuard&) = delete;
  WriteGuard& operator=(const WriteGuard&) = delete;

 private:
  std::unique_lock<std::mutex> lock_;
};

// A reader's stay; pointers into tables are good for as long as it lasts.
class ReadGuard {
 public:
  explicit ReadGuard(Participant& place) : place_(place) {
    Epochs::instance().enter(place_);
  }
  // Inlined, as `end`: a stay that a function is given a pointer to is in memory on each call.
  [[gnu::always_inline]] ~ReadGuard() {
    end();
  }
  ReadGuard(const ReadGuard&) = delete;
  ReadGuard& operator=(const ReadGuard&) = delete;

  [[gnu::always_inline]] void end() {
    if (!ended_) {
      ended_ = true;
      Epochs::instance().leave(place_);
    }
  }

 private:
  Participant& place_;
  bool ended_ = false;
};

} // namespace aoti_eager
