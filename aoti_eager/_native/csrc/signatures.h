// The C++ signatures for which there are typed kernels: torch's own, of ops that can win.
//
// Which ops have them is not said here: an op gets the kernel of the signature that the dispatcher
// knows of it, and none if that is not listed. Each costs the compiler a thirtieth of a second.

#pragma once

#include <vector>

#include "typed.h"

namespace aoti_eager {

inline const std::vector<TypedKernel>& typed_kernels() {
  using at::IntArrayRef;
  using at::OptionalIntArrayRef;
  using at::Scalar;
  using at::ScalarType;
  using at::Tensor;
  using c10::SymInt;
  using c10::SymIntArrayRef;
  using std::optional;
  using std::string_view;
  using In = const Tensor&;
  using MaybeIn = const optional<Tensor>&;
  using Number = const Scalar&;
  using MaybeNumber = const optional<Scalar>&;
  using Tensors = const at::ITensorListRef&;
  using Two = std::tuple<Tensor, Tensor>;
  using Three = std::tuple<Tensor, Tensor, Tensor>;
  static const auto* kernels = new std::vector<TypedKernel>{
      // Elementwise: tanh; mul, silu_backward; where, lerp; addcmul.
      Listed<Tensor(In)>::kernel(),
      Listed<Tensor(In, In)>::kernel(),
      Listed<Tensor(In, In, In)>::kernel(),
      Listed<Tensor(In, In, In, Number)>::kernel(),
      // With numbers: mul, pow; both ways around; add; add.Tensor; elu; clamp.
      Listed<Tensor(In, Number)>::kernel(),
      Listed<Tensor(Number, In)>::kernel(),
      Listed<Tensor(In, Number, Number)>::kernel(),
      Listed<Tensor(In, In, Number)>::kernel(),
      Listed<Tensor(In, Number, Number, Number)>::kernel(),
      Listed<Tensor(In, MaybeNumber, MaybeNumber)>::kernel(),
      Listed<Tensor(In, MaybeIn, MaybeIn)>::kernel(),
      // Of the same, gradients: softplus, hardtanh; leaky_relu; elu.
      Listed<Tensor(In, In, Number, Number)>::kernel(),
      Listed<Tensor(In, In, Number, bool)>::kernel(),
      Listed<Tensor(In, Number, Number, Number, bool, In)>::kernel(),
      // gelu and its gradient, div with a rounding mode, logit, nan_to_num.
      Listed<Tensor(In, string_view)>::kernel(),
      Listed<Tensor(In, In, string_view)>::kernel(),
      Listed<Tensor(In, In, optional<string_view>)>::kernel(),
      Listed<Tensor(In, optional<double>)>::kernel(),
      Listed<Tensor(In, optional<double>, optional<double>, optional<double>)>::kernel(),
      // Along one dimension: glu, tril; softmax, all; their gradients; cumsum; argmax.
      Listed<Tensor(In, int64_t)>::kernel(),
      Listed<Tensor(In, SymInt)>::kernel(),
      Listed<Tensor(In, int64_t, bool)>::kernel(),
      Listed<Tensor(In, In, int64_t)>::kernel(),
      Listed<Tensor(In, In, int64_t, ScalarType)>::kernel(),
      Listed<Tensor(In, int64_t, optional<ScalarType>)>::kernel(),
      Listed<Tensor(In, optional<int64_t>, bool)>::kernel(),
      Listed<Two(In, int64_t, bool)>::kernel(),
      // Along several: amax, logsumexp; any; sum and mean of all and of some; var; var_mean; norm.
      Listed<Tensor(In, IntArrayRef)>::kernel(),
      Listed<Tensor(In, IntArrayRef, bool)>::kernel(),
      Listed<Tensor(In, OptionalIntArrayRef, bool)>::kernel(),
      Listed<Tensor(In, optional<ScalarType>)>::kernel(),
      Listed<Tensor(In, OptionalIntArrayRef, bool, optional<ScalarType>)>::kernel(),
      Listed<Tensor(In, OptionalIntArrayRef, MaybeNumber, bool)>::kernel(),
      Listed<Two(In, OptionalIntArrayRef, MaybeNumber, bool)>::kernel(),
      Listed<Tensor(In, MaybeNumber, IntArrayRef, bool)>::kernel(),
      // Losses and their gradients: mse; huber, smooth_l1; log_sigmoid.
      Listed<Tensor(In, In, In, int64_t)>::kernel(),
      Listed<Tensor(In, In, int64_t, double)>::kernel(),
      Listed<Tensor(In, In, In, int64_t, double)>::kernel(),
      Listed<Two(In)>::kernel(),
      // Normalisations: layer_norm, rms_norm, group_norm, with gradients.
      Listed<Three(In, SymIntArrayRef, MaybeIn, MaybeIn, double)>::kernel(),
      Listed<Three(
          In, In, SymIntArrayRef, In, In, MaybeIn, MaybeIn, std::array<bool, 3>)>::kernel(),
      Listed<Two(In, IntArrayRef, MaybeIn, optional<double>)>::kernel(),
      Listed<Three(In, MaybeIn, MaybeIn, SymInt, SymInt, SymInt, int64_t, double)>::kernel(),
      Listed<Three(
          In, In, In, In, MaybeIn, SymInt, SymInt, SymInt, int64_t, std::array<bool, 3>)>::kernel(),
      // cat, stack.
      Listed<Tensor(Tensors, int64_t)>::kernel(),
      Listed<Tensor(at::TensorList, int64_t)>::kernel(),
      // In place.
      Listed<Tensor&(Tensor&)>::kernel(),
      Listed<Tensor&(Tensor&, In)>::kernel(),
      Listed<Tensor&(Tensor&, In, In)>::kernel(),
      Listed<Tensor&(Tensor&, In, In, Number)>::kernel(),
      Listed<Tensor&(Tensor&, Number)>::kernel(),
      Listed<Tensor&(Tensor&, Number, Number)>::kernel(),
      Listed<Tensor&(Tensor&, In, Number)>::kernel(),
      Listed<Tensor&(Tensor&, Number, Number, Number)>::kernel(),
      Listed<Tensor&(Tensor&, MaybeNumber, MaybeNumber)>::kernel(),
      Listed<Tensor&(Tensor&, string_view)>::kernel(),
      // Into `out`.
      Listed<Tensor&(In, Tensor&)>::kernel(),
      Listed<Tensor&(In, In, Tensor&)>::kernel(),
      Listed<Tensor&(In, In, In, Tensor&)>::kernel(),
      Listed<Tensor&(In, In, In, Number, Tensor&)>::kernel(),
      Listed<Tensor&(In, Number, Tensor&)>::kernel(),
      Listed<Tensor&(In, In, Number, Tensor&)>::kernel(),
      Listed<Tensor&(In, MaybeNumber, MaybeNumber, Tensor&)>::kernel(),
      Listed<Tensor&(In, string_view, Tensor&)>::kernel(),
      Listed<Tensor&(In, int64_t, bool, Tensor&)>::kernel(),
      Listed<Tensor&(In, IntArrayRef, bool, Tensor&)>::kernel(),
      Listed<Tensor&(In, OptionalIntArrayRef, bool, optional<ScalarType>, Tensor&)>::kernel(),
      Listed<Tensor&(Tensors, int64_t, Tensor&)>::kernel(),
  };
  return *kernels;
}

} // namespace aoti_eager
