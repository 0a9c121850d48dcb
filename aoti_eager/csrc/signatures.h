// The C++ signatures for which there are typed kernels: torch's own, of ops that can win.

#pragma once

#include <vector>

#include "typed.h"

namespace aoti_eager {

inline const std::vector<TypedKernel>& typed_kernels() {
  using at::Scalar;
  using at::Tensor;
  static const auto* kernels = new std::vector<TypedKernel>{
      Listed<Tensor(const Tensor&)>::kernel(),
      Listed<Tensor(const Tensor&, const Tensor&)>::kernel(),
      Listed<Tensor&(Tensor&, const Tensor&)>::kernel(),
      Listed<Tensor(const Tensor&, int64_t, bool)>::kernel(),
      Listed<Tensor(const Tensor&, std::string_view)>::kernel(),
      Listed<Tensor(const at::ITensorListRef&, int64_t)>::kernel(),
  };
  return *kernels;
}

} // namespace aoti_eager
