// Kernels that are called with C++ values: one for each signature that ops have which can win.
//
// A call from C++, which is each call of a function of torch's, is boxed for a kernel that has no
// function for its values, and its result unboxed: that is a tenth of a small op's time. What a typed
// kernel does is written once (Op): it packs where its arguments lie, and goes the way that it is told.

#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "op.h"

namespace aoti_eager {

// A kernel's results: how many tensors it makes, and how they are handed back.
template <class Return>
struct Returned;

template <>
struct Returned<at::Tensor> {
  static constexpr size_t kMade = 1;

  static at::Tensor take(c10::TensorImpl** made) {
    return at::Tensor(c10::intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>::reclaim(*made));
  }
};

template <class... Tensors>
struct Returned<std::tuple<Tensors...>> {
  static constexpr size_t kMade = sizeof...(Tensors);

  static std::tuple<Tensors...> take(c10::TensorImpl** made) {
    return {Returned<Tensors>::take(made++)...}; // in this order, in braces
  }
};

template <class Signature>
struct Typed;

template <class Return, class... Args>
struct Typed<Return(Args...)> {
  static constexpr Type kTypes[] = {type_of<Args>...};

  static Return call(c10::OperatorKernel* functor, c10::DispatchKeySet keys, Args... args) {
    Op& op = static_cast<Kernel*>(functor)->op();
    const void* places[] = {std::addressof(args)...};
    c10::TensorImpl* made[Returned<Return>::kMade];
    TypedCall call(kTypes, places, sizeof...(Args), made, Returned<Return>::kMade);
    Way way = op.decide(call);
    if (way == Way::kOriginal) {
      return op.original().call<Return, Args...>(keys, std::forward<Args>(args)...);
    }
    if (C10_UNLIKELY(way == Way::kPython)) {
      op.call_python(keys, call);
    }
    return Returned<Return>::take(made);
  }
};

// In place or into `out`: what it writes to is what it returns.
template <class... Args>
struct Typed<at::Tensor&(Args...)> {
  static constexpr Type kTypes[] = {type_of<Args>...};
  static_assert(
      (std::is_same_v<Args, at::Tensor&> + ...) == 1, "which of them is returned is not said");

  static at::Tensor& call(c10::OperatorKernel* functor, c10::DispatchKeySet keys, Args... args) {
    Op& op = static_cast<Kernel*>(functor)->op();
    const void* places[] = {std::addressof(args)...};
    TypedCall call(kTypes, places, sizeof...(Args), nullptr, 0);
    Way way = op.decide(call);
    if (way == Way::kOriginal) {
      return op.original().call<at::Tensor&, Args...>(keys, std::forward<Args>(args)...);
    }
    if (C10_UNLIKELY(way == Way::kPython)) {
      op.call_python(keys, call);
    }
    return std::get<at::Tensor&>(std::tie(args...));
  }
};

template <class Signature>
struct Listed;

template <class Return, class... Args>
struct Listed<Return(Args...)> {
  static TypedKernel kernel() {
    using This = Typed<Return(Args...)>;
    return {
        c10::impl::CppSignature::make<Return(Args...)>(),
        (c10::has_symint<Args>::value || ...),
        reinterpret_cast<void*>(&This::call),
        This::kTypes,
        sizeof...(Args),
    };
  }
};

} // namespace aoti_eager

#include "signatures.h"

namespace aoti_eager {

// Whether what the schema says of each argument is what its C++ type is read as.
inline bool is_read_alike(const TypedKernel& kernel, const std::vector<Argument>& arguments) {
  if (kernel.arguments != arguments.size()) {
    return false;
  }
  for (size_t i = 0; i < arguments.size(); ++i) {
    ArgumentKind kind = ArgumentKind::kValue;
    if (kernel.types[i] == Type::kTensor || kernel.types[i] == Type::kOptionalTensor) {
      kind = ArgumentKind::kTensor;
    } else if (kernel.types[i] == Type::kTensorList || kernel.types[i] == Type::kTensorListRef) {
      kind = ArgumentKind::kTensors;
    }
    if (kind != arguments[i].kind) {
      return false;
    }
  }
  return true;
}

inline const TypedKernel* typed_kernel(
    const c10::OperatorHandle& handle, const std::vector<Argument>& arguments,
    const UnboxedKernel& original) {
  // Torch's own only. Another op may be defined again while its kernels stay, with a signature that
  // nobody compares with theirs.
  if (handle.operator_name().getNamespace() != std::string_view("aten")) {
    return nullptr;
  }
  for (const TypedKernel& kernel : typed_kernels()) {
    const c10::impl::CppSignature* signature = signature_of(handle, kernel.is_sym);
    if (signature != nullptr && *signature == kernel.signature) {
      bool fits = is_read_alike(kernel, arguments) && original.is_there(kernel.is_sym);
      return fits ? &kernel : nullptr;
    }
  }
  return nullptr;
}

} // namespace aoti_eager
