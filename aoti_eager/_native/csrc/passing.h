// A thread whose calls are for originals: our own work, and libraries that call ATen.

#pragma once

#include "epochs.h"

namespace aoti_eager {

// Calls of this thread are for originals as long as it lives.
class Passing {
 public:
  explicit Passing(bool wanted) : wanted_(wanted) {
    if (wanted_) {
      ++Epochs::place().passing;
    }
  }
  ~Passing() {
    if (wanted_) {
      --Epochs::place().passing;
    }
  }
  Passing(const Passing&) = delete;
  Passing& operator=(const Passing&) = delete;

 private:
  bool wanted_;
};

} // namespace aoti_eager
