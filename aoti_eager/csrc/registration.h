// A boxed kernel of ours, above the one that was there: Python's, for what C++ leaves.

#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

namespace aoti_eager {

class Registration {
 public:
  // Registers `kernel`, which the dispatcher keeps until `uninstall`.
  template <class Functor>
  void install(
      const c10::OperatorHandle& handle, c10::DispatchKey key, std::unique_ptr<Functor> kernel) {
    python_.emplace(handle.getComputedKernelForDispatchKey(key));
    const c10::OperatorName& name = handle.operator_name();
    std::string space(name.getNamespace().value());
    std::string local = name.name.substr(space.size() + 2);
    if (!name.overload_name.empty()) {
      local += "." + name.overload_name;
    }
    // PyTorch warns that a kernel is overridden, which is what was asked for.
    SilentWarnings silent;
    c10::WarningUtils::WarningHandlerGuard guard(&silent);
    library_.emplace(torch::Library::IMPL, space, key, kFile, __LINE__);
    library_->impl(local.c_str(), torch::CppFunction::makeFromBoxedFunctor(std::move(kernel)));
  }

  void uninstall() {
    library_.reset();
    python_.reset();
  }

  // Calls the kernel that was there; between `install` and `uninstall`.
  void call_python(
      const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) const {
    python_->callBoxed(op, keys, stack);
  }

 private:
  // By this, Python knows the kernel as ours.
  static constexpr const char* kFile = "aoti_eager/csrc/registration.h";

  struct SilentWarnings final : c10::WarningHandler {
    void process(const c10::Warning&) override {}
  };

  std::optional<c10::SafeKernelFunction> python_;
  std::optional<torch::Library> library_;
};

} // namespace aoti_eager
