// One op at one dispatch key: what its kernel does with a call, boxed or typed (typed.h).
//
//   passed through?  -> original        (an atomic and a thread's flag, read first)
//   key -> table     -> library         hit
//                    -> original        declined before
//                    -> Python kernel   a hit that is compared once more (looks.h)
//                    -> Python kernel   everything else: it finds, compiles, checks or declines

#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>

#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "call.h"
#include "inputs.h"
#include "key.h"
#include "match.h"
#include "passing.h"
#include "registration.h"
#include "torch_compat.h"

namespace aoti_eager {

enum class State : int32_t {
  kServe = 0,
  kPass = 1, // disabled, or the mode is off
  kDecline = 2, // never served: passed through and counted
  kRecord = 3, // raises an error after it has kept the key for `recorded_key`
};

// What becomes of a call.
enum class Way { kServed, kOriginal, kPython };

struct Recorded {
  std::vector<Word> words;
  bool is_typed = false; // by a typed kernel
};

inline Recorded& recorded_key() {
  static thread_local Recorded recorded;
  return recorded;
}

class Op;

// Python's part in a failed run: it keeps the message for its kernel, which is entered next. An empty
// message says that the call is a hit that is to be compared with the original.
using Failed = void (*)(const Op*, const char*);

inline std::atomic<Failed>& failed() {
  static std::atomic<Failed> function{nullptr};
  return function;
}

class Op : Counted<Op> {
 public:
  using Counted<Op>::alive;

  // `is_function`: the original is a function of ops that autocast each for itself, so that no
  // library serves under autocast. `counts_writes`: no kernel above counts what the op writes to.
  Op(c10::OperatorHandle handle, c10::DispatchKey dispatch_key, std::vector<Argument> arguments,
     const Op* above, bool is_function, bool counts_writes)
      : handle_(std::move(handle)),
        dispatch_key_(dispatch_key),
        arguments_(std::move(arguments)),
        original_(
            above != nullptr ? above->original_
                             : handle_.getComputedKernelForDispatchKey(dispatch_key)),
        unboxed_original_(original_),
        profiled_name_("aoti_eager::" + c10::toString(handle_.operator_name())),
        is_function_(is_function),
        counts_writes_(counts_writes) {
    for (const Argument& argument : arguments_) {
      mutates_ |= argument.mutated;
    }
    with_device_ = dispatch_key_ != c10::DispatchKey::CPU;
  }

  // Takes what is registered now, the Python kernel, for what is neither hit nor declined, and
  // registers the kernel above it.
  void install();
  void uninstall() {
    registration_.uninstall();
  }

  // The kernel of boxed calls.
  void call(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack);

  // For the kernels of typed calls: what becomes of one, and its ways.
  Way decide(const TypedCall& call);
  void call_python(c10::DispatchKeySet keys, const TypedCall& call) const;
  const UnboxedKernel& original() const {
    return unboxed_original_;
  }

  // Whether calls of the op have a typed kernel; once it is installed.
  bool is_typed() const {
    return is_typed_;
  }

  std::atomic<State> state{State::kPass};
  std::atomic<EntryTable*> table{nullptr};
  std::atomic<Counter*> hits{nullptr};
  std::atomic<Counter*> always_declined{nullptr};

 private:
  template <class Call>
  Entry* find(EntryTable* current, const Call& call) const;
  template <class Call>
  Entry* find_written(EntryTable* current, const Call& call) const;
  template <class Call>
  void record(const Call& call) const;
  template <class Call>
  Way look_up(const Call& call);
  template <class Call>
  bool run(const Entry& entry, const Call& call);
  void call_original(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack);
  template <class Values>
  void count_writes(const Values& values) const;
  AOTIRuntimeError run_library(const Library& library, Handles& inputs, Outputs& outputs);

  c10::OperatorHandle handle_;
  c10::DispatchKey dispatch_key_;
  std::vector<Argument> arguments_;
  c10::SafeKernelFunction original_;
  UnboxedKernel unboxed_original_;
  Registration registration_;
  std::string profiled_name_;
  bool is_function_;
  bool counts_writes_;
  bool mutates_ = false;
  bool with_device_ = false;
  bool is_typed_ = false;
};

// Returns the typed kernel for calls of an op, or null.
const TypedKernel* typed_kernel(
    const c10::OperatorHandle& handle, const std::vector<Argument>& arguments,
    const UnboxedKernel& original);

namespace {

struct Kernel final : c10::OperatorKernel, Counted<Kernel> {
  using Counted<Kernel>::alive;

  explicit Kernel(Op* op) : op_(op) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    op_->call(op, keys, stack);
  }

  Op& op() const {
    return *op_;
  }

 private:
  Op* op_;
};

} // namespace

inline void Op::install() {
  const TypedKernel* typed = typed_kernel(handle_, arguments_, unboxed_original_);
  is_typed_ = typed != nullptr;
  registration_.install(handle_, dispatch_key_, std::make_unique<Kernel>(this), typed);
}

inline void Op::call(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  switch (look_up(BoxedCall(op, stack, arguments_.size()))) {
    case Way::kServed:
      return;
    case Way::kOriginal:
      return call_original(op, keys, stack);
    case Way::kPython:
      return registration_.call_python(op, keys, stack);
  }
}

inline Way Op::decide(const TypedCall& call) {
  // The original may be gone with its library: Python finds what there is instead.
  return C10_LIKELY(unboxed_original_.is_valid()) ? look_up(call) : Way::kPython;
}

inline void Op::call_python(c10::DispatchKeySet keys, const TypedCall& call) const {
  Stack stack = call.box();
  registration_.call_python(handle_, keys, &stack);
  call.take_from(stack);
}

// Returns the entry of a call's key, or null. The caller is in an epoch.
template <class Call>
[[gnu::always_inline]] inline Entry* Op::find(EntryTable* current, const Call& call) const {
  if (current == nullptr) {
    return nullptr;
  }
  Entry* last = current->last();
  if (last != nullptr && has_key(last->words(), arguments_, call, mutates_, with_device_)) {
    return last;
  }
  return find_written(current, call);
}

// The same, whatever was found last.
template <class Call>
[[gnu::noinline]] Entry* Op::find_written(EntryTable* current, const Call& call) const {
  Words words;
  bool is_written = KeyWriter<Words>(words, with_device_).write(arguments_, call, mutates_);
  return is_written ? current->find(words.data(), words.size()) : nullptr;
}

// Keeps the key of a call for `recorded_key`, and raises.
template <class Call>
[[gnu::noinline]] void Op::record(const Call& call) const {
  Words words;
  bool is_written = KeyWriter<Words>(words, with_device_).write(arguments_, call, mutates_);
  recorded_key().words.assign(words.begin(), is_written ? words.end() : words.begin());
  recorded_key().is_typed = std::is_same_v<Call, TypedCall>;
  TORCH_CHECK(false, "the key is recorded");
}

template <class Call>
Way Op::look_up(const Call& call) {
  State now = state.load(std::memory_order_acquire);
  Participant& place = Epochs::place();
  if (now == State::kPass || place.passing != 0) {
    return Way::kOriginal;
  }
  if (now == State::kDecline) {
    ReadGuard reading(place);
    if (Counter* counter = always_declined.load(std::memory_order_acquire)) {
      counter->add(place);
    }
    return Way::kOriginal;
  }
  if (C10_UNLIKELY(!call.has_schema_of(arguments_.size())) ||
      (is_function_ && at::autocast::is_autocast_enabled(at::kCPU))) {
    // The op was made again, as notebooks do. Python knows what to do.
    return Way::kPython;
  }
  if (C10_UNLIKELY(now == State::kRecord)) {
    record(call);
  }
  ReadGuard reading(place);
  Entry* entry = find(table.load(std::memory_order_seq_cst), call);
  if (entry == nullptr) {
    return Way::kPython;
  }
  if (entry->declines != nullptr) {
    entry->declines->add(place);
    return Way::kOriginal;
  }
  if (entry->looks != nullptr && entry->looks->is_due(place)) {
    reading.end(); // Python takes as long as it takes, and needs nothing of the table.
    if (Failed tell = failed().load(std::memory_order_acquire)) {
      tell(this, "");
    }
    return Way::kPython;
  }
  if (!run(*entry, call)) {
    return Way::kPython;
  }
  hits.load(std::memory_order_relaxed)->add(place);
  return Way::kServed;
}

inline void Op::call_original(
    const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  size_t arguments = stack->size();
  try {
    original_.callBoxed(op, keys, stack);
  } catch (const c10::Error& error) {
    if (stack->size() != arguments ||
        error.msg().find("SafeKernelFunction has been invalidated") == std::string::npos) {
      throw;
    }
    // Its library is gone. The Python kernel finds what there is instead, or says what to do.
    registration_.call_python(op, keys, stack);
  }
}

inline AOTIRuntimeError Op::run_library(
    const Library& library, Handles& inputs, Outputs& outputs) {
  std::optional<at::RecordFunction> record;
  if (auto callbacks = at::getStepCallbacksUnlessEmpty(at::RecordScope::FUNCTION)) {
    record.emplace(std::move(*callbacks)).before(profiled_name_.c_str());
  }
  if (library.borrowing_run != nullptr && !library.calls_aten) {
    return library.borrowing_run(inputs.data(), outputs.data());
  }
  Passing pass(library.calls_aten);
  at::NoGradGuard no_grad;
  if (library.borrowing_run != nullptr) {
    return library.borrowing_run(inputs.data(), outputs.data());
  }
  for (AtenTensorHandle& input : inputs) {
    // AOTInductor's libraries take handles over, and delete them.
    input = reinterpret_cast<AtenTensorHandle>(
        new at::Tensor(*reinterpret_cast<const at::Tensor*>(input)));
  }
  return library.container_run(
      static_cast<AOTInductorModelContainerHandle>(library.handle), inputs.data(), inputs.size(),
      outputs.data(), outputs.size(), nullptr, nullptr);
}

// Counts one write to each tensor that the op writes to, as an op would that is called here.
template <class Values>
void Op::count_writes(const Values& values) const {
  constexpr auto kCounts = c10::DispatchKey::ADInplaceOrView;
  if (c10::impl::tls_is_dispatch_key_excluded(kCounts)) {
    return;
  }
  for (size_t i = 0; i < arguments_.size(); ++i) {
    if (arguments_[i].mutated) {
      each_tensor(values[i], [](const at::Tensor& tensor) {
        if (tensor.key_set().has(kCounts)) {
          tensor.unsafeGetTensorImpl()->bump_version();
        }
      });
    }
  }
}

// Runs the entry's library on the call's arguments and gives its results; false, with the arguments
// still there, if it failed.
template <class Call>
bool Op::run(const Entry& entry, const Call& call) {
  const Library& library = entry.library;
  Inputs inputs;
  for (size_t i = 0; i < arguments_.size(); ++i) {
    if (arguments_[i].is_tensor()) {
      each_tensor(call[i], [&inputs](const at::Tensor& tensor) { inputs.add(tensor); });
    } else if (i < entry.numbers.size() && entry.numbers[i] != 0) {
      inputs.add_number(number_of(call[i]));
    }
  }
  Outputs outputs(library.outputs);
  AOTIRuntimeError error = run_library(library, inputs.handles, outputs);
  if (error != AOTI_RUNTIME_SUCCESS) {
    const char* message = nullptr;
    if (library.last_error != nullptr) {
      library.last_error(&message);
    }
    Failed tell = failed().load(std::memory_order_acquire);
    if (tell != nullptr) {
      tell(this, message != nullptr && *message != 0 ? message : "it gave no message");
    }
    return false;
  }
  if (C10_UNLIKELY(counts_writes_)) {
    count_writes(call);
  }
  call.give(entry, outputs);
  return true;
}

} // namespace aoti_eager
