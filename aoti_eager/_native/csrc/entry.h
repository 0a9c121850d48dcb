// What a table holds of a key: the library that serves its calls, or that they are declined.

#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "looks.h"
#include "pattern.h"
#include "table.h"
#include "torch_compat.h"

namespace aoti_eager {

// A loaded library's functions. They outlive the entry: whoever put it in keeps the library open
// until the entry's owner is reported as released.
struct Library {
  using BorrowingRun = AOTIRuntimeError (*)(const AtenTensorHandle*, AtenTensorHandle*);
  using ContainerRun = decltype(&AOTInductorModelContainerRunSingleThreaded);
  using LastError = decltype(&AOTInductorGetLastError);

  BorrowingRun borrowing_run = nullptr; // a thin library's: no state, no locks, inputs stay ours
  ContainerRun container_run = nullptr; // AOTInductor's, past its locks
  LastError last_error = nullptr;
  void* handle = nullptr;
  uint32_t outputs = 0;
  bool calls_aten = false;
};

// Where a result of the op comes from.
struct Result {
  enum Kind : int32_t { kOutput = 0, kArgument = 1, kNone = 2, kOutputs = 3 };
  Kind kind;
  int32_t index; // of the output or of the argument; of the first output of a list
  int32_t count; // of outputs in a list
};

// Owners of libraries whose entries are gone.
class Owners {
 public:
  static Owners& instance() {
    static auto* owners = new Owners;
    return *owners;
  }

  void release(uint64_t owner) {
    std::lock_guard<std::mutex> lock(mutex_);
    released_.push_back(owner);
  }

  // Moves up to `room` of them out; returns how many.
  size_t take_released(uint64_t* owners, size_t room) {
    std::lock_guard<std::mutex> lock(mutex_);
    size_t count = std::min(room, released_.size());
    std::copy(released_.end() - count, released_.end(), owners);
    released_.resize(released_.size() - count);
    return count;
  }

 private:
  Owners() {
    pthread_atfork(
        [] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
        [] { instance().mutex_.unlock(); });
  }

  std::mutex mutex_;
  std::vector<uint64_t> released_;
};

class Entry : public Keyed, Counted<Entry> {
 public:
  using Counted<Entry>::alive;

  // A call of this key runs a library.
  Entry(
      const Word* words, size_t count, const Library& library, std::vector<Result> results,
      uint64_t owner)
      : Keyed(words, count), library(library), results(std::move(results)), owner_(owner) {
    is_single = this->results.size() == 1 && this->results[0].kind == Result::kOutput &&
        library.outputs == 1;
  }

  // A call of this key is declined, and counted.
  Entry(const Word* words, size_t count, Counter* declines)
      : Keyed(words, count), declines(declines) {}

  ~Entry() {
    if (owner_ != 0) {
      Owners::instance().release(owner_);
    }
  }

  Library library;
  std::vector<Result> results;
  Counter* declines = nullptr;
  std::vector<uint8_t> numbers; // by argument: whether it is a number that is an input; or empty
  std::unique_ptr<Pattern> pattern; // of calls that have no entry of their own
  std::unique_ptr<Looks> looks; // when a hit is compared once more; null if never
  bool is_single = false;

 private:
  uint64_t owner_ = 0;
};

using EntryTable = Table<Entry>;

} // namespace aoti_eager
