// A kernel of ours in the dispatcher, above the one that was there: Python's, for what C++ leaves.

#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <memory>
#include <optional>
#include <utility>

#include "torch_compat.h"
#include "values.h"

namespace aoti_eager {

// What calls a kernel's functor with C++ values, for ops of one C++ signature.
struct TypedKernel {
  c10::impl::CppSignature signature;
  bool is_sym; // Some of the values are sizes that may be symbols.
  void* function;
  const Type* types;
  size_t arguments;
};

class Registration {
 public:
  // Registers the boxed `kernel`, which the dispatcher keeps until `uninstall`, and with it `typed`
  // for calls with C++ values, unless that is null. The dispatcher refuses a typed one of another
  // signature than the op's.
  template <class Functor>
  void install(
      const c10::OperatorHandle& handle, c10::DispatchKey key, std::unique_ptr<Functor> kernel,
      const TypedKernel* typed = nullptr) {
    python_.emplace(handle.getComputedKernelForDispatchKey(key));
    auto function = c10::KernelFunction::makeFromBoxedFunctor(std::move(kernel));
    std::optional<c10::impl::CppSignature> signature;
    if (typed != nullptr) {
      add_unboxed(function, typed->function, typed->is_sym);
      signature = typed->signature;
    }
    // PyTorch warns that a kernel is overridden, which is what was asked for.
    SilentWarnings silent;
    c10::WarningUtils::WarningHandlerGuard guard(&silent);
    handle_.emplace(c10::Dispatcher::singleton().registerImpl(
        handle.operator_name(), key, std::move(function), std::move(signature),
        /*inferred_function_schema=*/nullptr, kOrigin));
  }

  void uninstall() {
    handle_.reset();
    python_.reset();
  }

  // Calls the kernel that was there; between `install` and `uninstall`.
  void call_python(
      const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) const {
    python_->callBoxed(op, keys, stack);
  }

 private:
  // By this, Python knows the kernel as ours.
  static constexpr const char* kOrigin = "registered at aoti_eager/_native/csrc/registration.h:1";

  struct SilentWarnings final : c10::WarningHandler {
    void process(const c10::Warning&) override {}
  };

  std::optional<c10::SafeKernelFunction> python_;
  std::optional<c10::RegistrationHandleRAII> handle_;
};

} // namespace aoti_eager
