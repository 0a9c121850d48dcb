// Every private name of torch's C++ that the hit path uses, each with the reason.

#pragma once

#include <ATen/Context.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/DeviceType.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/TensorImpl.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/inductor/aoti_runtime/interface.h>

#include <array>
#include <memory>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

// Public, and declared here once more: `ATen/autocast_mode.h` includes every operator of torch's,
// which takes the compiler as long as all the rest. They are looked for when the library is loaded.
namespace at::autocast {
TORCH_API bool is_autocast_enabled(at::DeviceType device_type);
TORCH_API void set_autocast_enabled(at::DeviceType device_type, bool enabled);
}  // namespace at::autocast

// Declared here for the same reason. Neither the state of a trace nor functorch's stack of layers has
// a public name, and only whether they are there is asked.
namespace torch::jit::tracer {
struct TracingState;
TORCH_API const std::shared_ptr<TracingState>& getTracingState();
}  // namespace torch::jit::tracer

namespace at::functorch {
struct DynamicLayer;
TORCH_API const std::vector<DynamicLayer>& getDynamicLayerStack();
}  // namespace at::functorch

// A function that libraries of torch 2.13 and newer have, and the header of torch 2.12 lacks; thin
// libraries always have it.
extern "C" AOTIRuntimeError AOTInductorGetLastError(const char** message);

namespace aoti_eager {

// The process's settings, which are one object for as long as it runs; a call that gives it costs
// twelve instructions.
inline const at::Context& settings = at::globalContext();

// The public getter asks three other settings whether they agree, which takes 60 ns: as long as all
// the rest of a key. What it returns is this member. The hit path is built for one version of
// torch, so the member is where its header says.
using PrecisionMember = at::Float32MatmulPrecision at::Context::*;

PrecisionMember precision_member();

template <PrecisionMember member>
struct Reveal {
  // Access is not checked in an explicit instantiation.
  friend PrecisionMember precision_member() {
    return member;
  }
};

template struct Reveal<&at::Context::float32_matmul_precision>;

inline at::Float32MatmulPrecision matmul_precision() {
  return settings.*precision_member();
}

using DeterministicMember = bool at::Context::*;

DeterministicMember deterministic_member();

template <DeterministicMember member>
struct RevealDeterministic {
  friend DeterministicMember deterministic_member() {
    return member;
  }
};

template struct RevealDeterministic<&at::Context::_deterministic_algorithms>;

// As the public getter, which is a call.
inline bool is_deterministic() {
  return settings.*deterministic_member();
}

// What the settings of `torch.backends.fp32_precision` and its kin say, by backend and operation. The
// public getter looks three of them up in a table; values in it stay where they are.
using Precisions = std::unordered_map<
    std::pair<at::Float32Backend, at::Float32Op>, at::Float32Precision,
    c10::hash<std::pair<at::Float32Backend, at::Float32Op>>>;
using PrecisionsMember = Precisions at::Context::*;

PrecisionsMember precisions_member();

template <PrecisionsMember member>
struct RevealPrecisions {
  friend PrecisionsMember precisions_member() {
    return member;
  }
};

template struct RevealPrecisions<&at::Context::fp32_precision>;

// The settings by which the CPU multiplies; the first that is not "none" decides.
inline const std::array<const at::Float32Precision*, 3> precision_places = [] {
  const Precisions& all = settings.*precisions_member();
  auto of = [&all](at::Float32Backend backend, at::Float32Op op) {
    auto found = all.find({backend, op});
    static constexpr auto kNone = at::Float32Precision::NONE;
    return found == all.end() ? &kNone : &found->second;
  };
  return std::array{
      of(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL),
      of(at::Float32Backend::MKLDNN, at::Float32Op::ALL),
      of(at::Float32Backend::GENERIC, at::Float32Op::ALL)};
}();

// Whether the newer settings, of which one is not "none", say the same as the older one.
[[gnu::noinline]] inline bool do_precisions_agree() {
  for (const at::Float32Precision* place : precision_places) {
    if (*place == at::Float32Precision::NONE) {
      continue;
    }
    if (*place == at::Float32Precision::BF16) {
      return matmul_precision() == at::Float32MatmulPrecision::MEDIUM;
    }
    return *place != at::Float32Precision::TF32 ||
        matmul_precision() == at::Float32MatmulPrecision::HIGH;
  }
  return true;
}

// Whether the matmul precision of a key is that by which the CPU multiplies: the newer settings go
// their own way, and then torch refuses to tell the older one.
[[gnu::always_inline]] inline bool is_precision_told() {
  static_assert(static_cast<int>(at::Float32Precision::NONE) == 0);
  const auto& places = precision_places;
  if ((static_cast<int>(*places[0]) | static_cast<int>(*places[1]) |
       static_cast<int>(*places[2])) == 0) [[likely]] {
    return true;
  }
  return do_precisions_agree();
}

// Whether this thread runs plain eager code: no trace, mode, autocast, functorch or forward-mode
// differentiation. Python's twin is `is_plain_eager` of `_base/torch_compat/tracing.py`; only Python
// knows what Dynamo does.
inline bool is_plain_eager() {
  return c10::impl::TorchDispatchModeTLS::stack_len() == 0 &&
      at::impl::PythonTorchFunctionTLS::stack_len() == 0 &&
      !at::autocast::is_autocast_enabled(at::kCPU) &&
      torch::jit::tracer::getTracingState() == nullptr &&
      at::functorch::getDynamicLayerStack().empty() &&
      torch::autograd::ForwardADLevel::try_get_by_idx(0) == nullptr;
}

// -- tensors without a detour --

// A tensor of which the getters of sizes, strides and layout give what is kept in it: its class says
// nothing of its own, and it is strided, has memory, stands for no number, and is no view that is
// negated or conjugated. The getters ask for each of these again and again, and what asks is told in
// protected bits.
class PlainTensor : public c10::TensorImpl {
 public:
  [[gnu::always_inline]] static bool is(const at::Tensor& tensor) {
    // Not one of this class: it is here for its access, and adds nothing.
    const auto& impl = static_cast<const PlainTensor&>(*tensor.unsafeGetTensorImpl());
    bool is_usual = !impl.is_wrapped_number_ && impl.sizes_strides_policy_ == 0 &&
        !impl.has_symbolic_sizes_strides_ && !impl.layout_policy_;
    return is_usual && (impl.key_set() & kUnusual).empty() && impl.unsafe_storage();
  }

  [[gnu::always_inline]] static const PlainTensor& of(const at::Tensor& tensor) {
    return static_cast<const PlainTensor&>(*tensor.unsafeGetTensorImpl());
  }

  at::ScalarType type() const {
    return c10::typeMetaToScalarType(data_type_);
  }
  size_t dimensions() const {
    return sizes_and_strides_.size();
  }
  const int64_t* sizes() const {
    return sizes_and_strides_.sizes_data();
  }
  const int64_t* strides() const {
    return sizes_and_strides_.strides_data();
  }

 private:
  static constexpr c10::DispatchKeySet kUnusual = c10::sparse_ks | c10::sparse_csr_ks |
      c10::mkldnn_ks | c10::DispatchKeySet(c10::DispatchKey::Negative) |
      c10::DispatchKeySet(c10::DispatchKey::Conjugate);
};

// -- kernels without boxes --
//
// The dispatcher calls a kernel with C++ values where it has a function for them, and boxes them
// otherwise. Its interface takes kernels of which the one function is made from the other; ours are
// two, so that what a call's result is given back as costs nothing where nobody wants it.

// Access is not checked in an explicit instantiation; `of` tells the members apart.
template <class Of, auto member>
struct RevealMember {
  friend auto revealed(Of) {
    return member;
  }
};

#define AOTI_EAGER_REVEAL(Of, member) \
  struct Of {                         \
    friend auto revealed(Of);         \
  };                                  \
  template struct RevealMember<Of, &member>;

AOTI_EAGER_REVEAL(OfSafeKernel, c10::SafeKernelFunction::kernel_)
AOTI_EAGER_REVEAL(OfSafeToken, c10::SafeKernelFunction::token_)
AOTI_EAGER_REVEAL(OfBoxed, c10::KernelFunction::boxed_kernel_func_)
AOTI_EAGER_REVEAL(OfUnboxed, c10::KernelFunction::unboxed_kernel_func_)
AOTI_EAGER_REVEAL(OfSymUnboxed, c10::KernelFunction::sym_unboxed_kernel_func_)
AOTI_EAGER_REVEAL(OfFunctor, c10::BoxedKernel::functor_)
AOTI_EAGER_REVEAL(OfDefinition, c10::OperatorHandle::operatorDef_)
AOTI_EAGER_REVEAL(OfSignature, c10::impl::OperatorEntry::cpp_signature_)
AOTI_EAGER_REVEAL(OfSymSignature, c10::impl::OperatorEntry::sym_cpp_signature_)

#undef AOTI_EAGER_REVEAL

// A kernel that is called with C++ values. `kernel` must outlive it.
class UnboxedKernel {
 public:
  explicit UnboxedKernel(const c10::SafeKernelFunction& kernel)
      : token_((kernel.*revealed(OfSafeToken{})).get()) {
    const c10::KernelFunction& function = kernel.*revealed(OfSafeKernel{});
    functor_ = (function.*revealed(OfBoxed{}).*revealed(OfFunctor{})).get();
    function_ = function.*revealed(OfUnboxed{});
    sym_function_ = function.*revealed(OfSymUnboxed{});
  }

  // Whether there is a function for C++ values; with `is_sym` some of them are sizes that may be
  // symbols.
  bool is_there(bool is_sym) const {
    return function_ != nullptr || (is_sym && sym_function_ != nullptr);
  }

  // Whether the library that registered it is there yet.
  bool is_valid() const {
    return token_->isValid();
  }

  // Calls it; `Return(Args...)` must be the op's signature, and `is_there` true.
  template <class Return, class... Args>
  Return call(c10::DispatchKeySet keys, Args... args) const {
    if constexpr ((c10::has_symint<Args>::value || ...)) {
      if (sym_function_ == nullptr) {
        return c10::callUnboxedKernelFunction<Return, typename c10::remove_symint<Args>::type...>(
            function_, functor_, keys, c10::unpackSymInt<Args>(args)...);
      }
      return c10::callUnboxedKernelFunction<Return, Args...>(
          sym_function_, functor_, keys, std::forward<Args>(args)...);
    } else {
      return c10::callUnboxedKernelFunction<Return, Args...>(
          function_, functor_, keys, std::forward<Args>(args)...);
    }
  }

 private:
  const c10::KernelToken* token_;
  c10::OperatorKernel* functor_;
  void* function_;
  void* sym_function_;
};

// What holds a node of autograd's graph: an intrusive pointer, and a shared one in torch 2.12.
inline constexpr bool kNodeIsIntrusive =
    std::is_base_of_v<c10::intrusive_ptr_target, torch::autograd::Node>;

template <class T>
using NodePointer =
    std::conditional_t<kNodeIsIntrusive, c10::intrusive_ptr<T>, std::shared_ptr<T>>;

template <class T, class... Args>
NodePointer<T> make_node(Args&&... args) {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, T>) {
    return c10::make_intrusive<T>(std::forward<Args>(args)...);
  } else {
    // Autograd's own deleter, which is looked up by the argument: a long graph is not deleted by
    // recursion.
    return std::shared_ptr<T>(
        new T(std::forward<Args>(args)...), [](T* node) { deleteNode(node); });
  }
}

// Returns the dispatcher's own record of an op: which kernel a set of keys has.
inline const c10::impl::OperatorEntry& entry_of(const c10::OperatorHandle& op) {
  return (op.*revealed(OfDefinition{}))->op;
}

// Returns the C++ signature by which an op is called, if the dispatcher knows one: of a function
// that has been registered for it.
inline const c10::impl::CppSignature* signature_of(const c10::OperatorHandle& op, bool is_sym) {
  const c10::impl::OperatorEntry& entry = entry_of(op);
  const auto& found =
      is_sym ? entry.*revealed(OfSymSignature{}) : entry.*revealed(OfSignature{});
  return found.has_value() ? &found->signature : nullptr;
}

// Whether two of an op's kernels were registered as one. The public comparison leaves the functor
// out, by which alone one of Python's kernels differs from another.
inline bool is_same_kernel(const c10::KernelFunction& one, const c10::KernelFunction& other) {
  return one._equalsBoxedAndUnboxed(other) &&
      (one.*revealed(OfBoxed{}).*revealed(OfFunctor{})).get() ==
      (other.*revealed(OfBoxed{}).*revealed(OfFunctor{})).get();
}

// Adds a function for C++ values to a boxed kernel; it gets the same functor.
inline void add_unboxed(c10::KernelFunction& kernel, void* function, bool is_sym) {
  (is_sym ? kernel.*revealed(OfSymUnboxed{}) : kernel.*revealed(OfUnboxed{})) = function;
}

} // namespace aoti_eager
