// What the parts of the C interface have in common.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "epochs.h"
#include "guarded.h"
#include "values.h"

namespace aoti_eager {

// `kinds` and `mutated` have one byte an argument.
inline std::vector<Argument> arguments_of(
    const uint8_t* kinds, const uint8_t* mutated, size_t count) {
  std::vector<Argument> arguments;
  for (size_t i = 0; i < count; ++i) {
    arguments.push_back({static_cast<ArgumentKind>(kinds[i]), mutated[i] != 0});
  }
  return arguments;
}

// Deletes an object when no call can be reading it.
template <class T>
void retire(T* object) {
  guarded([object] {
    WriteGuard writing;
    Epochs::instance().retire(object, [](void* one) { delete static_cast<T*>(one); });
  });
}

// How many kernels there are at the autograd key; defined where these are (`beside_ops.cpp`).
int64_t autograd_kernels_alive();

} // namespace aoti_eager
