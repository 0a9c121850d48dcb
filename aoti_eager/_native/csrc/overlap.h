// Whether what an op writes to shares memory with its other arguments.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "values.h"

namespace aoti_eager {
namespace {

// First address that a tensor touches and the one past its last.
inline std::pair<uintptr_t, uintptr_t> memory_range(const at::Tensor& tensor) {
  if (tensor.numel() == 0) {
    return {0, 0};
  }
  int64_t last = 0;
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    last += (tensor.sizes()[i] - 1) * tensor.strides()[i];
  }
  auto start = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  return {start, start + (last + 1) * tensor.element_size()};
}

} // namespace

// Whether a mutated tensor's addresses meet those of another argument. Tensors on other devices
// than the CPU have addresses of their own, which never equal the CPU's by more than chance.
template <class Values>
bool mutation_overlaps(const std::vector<Argument>& arguments, const Values& values) {
  c10::SmallVector<std::pair<uintptr_t, uintptr_t>, 8> mutated;
  c10::SmallVector<std::pair<uintptr_t, uintptr_t>, 8> others;
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (!arguments[i].is_tensor()) {
      continue;
    }
    auto& ranges = arguments[i].mutated ? mutated : others;
    each_tensor(values[i], [&ranges](const at::Tensor& tensor) {
      ranges.push_back(memory_range(tensor));
    });
  }
  auto meet = [](const auto& one, const auto& other) {
    return one.first < other.second && other.first < one.second;
  };
  for (size_t i = 0; i < mutated.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (meet(mutated[i], mutated[j])) {
        return true;
      }
    }
    for (const auto& other : others) {
      if (meet(mutated[i], other)) {
        return true;
      }
    }
  }
  return false;
}

} // namespace aoti_eager
