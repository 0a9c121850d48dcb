// One op at one dispatch key: what its boxed kernel does with a call.
//
//   passed through?  -> original        (an atomic and a thread's flag, read first)
//   key -> table     -> library         hit
//                    -> original        declined before
//                    -> Python kernel   a hit that is compared once more (looks.h)
//                    -> Python kernel   everything else: it finds, compiles, checks or declines

#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ScalarOps.h>
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>
#include <torch/csrc/inductor/aoti_runtime/interface.h>

#include <forward_list>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "key.h"
#include "looks.h"
#include "pattern.h"
#include "registration.h"

namespace aoti_eager {

using Stack = torch::jit::Stack;
using Handles = c10::SmallVector<AtenTensorHandle, 8>;

// Calls of this thread are for originals as long as it is above zero.
inline int32_t& passing() {
  static thread_local int32_t depth = 0;
  return depth;
}

class Passing {
 public:
  explicit Passing(bool wanted) : wanted_(wanted) {
    passing() += wanted_;
  }
  ~Passing() {
    passing() -= wanted_;
  }
  Passing(const Passing&) = delete;
  Passing& operator=(const Passing&) = delete;

 private:
  int32_t wanted_;
};

// A loaded library's functions. They outlive the entry: whoever put it in keeps the library open
// until the entry's owner is reported as released.
struct Library {
  using BorrowingRun = AOTIRuntimeError (*)(const AtenTensorHandle*, AtenTensorHandle*);
  using ContainerRun = decltype(&AOTInductorModelContainerRunSingleThreaded);
  using LastError = decltype(&AOTInductorGetLastError);

  BorrowingRun borrowing_run = nullptr; // a thin library's: no state, no locks, inputs stay ours
  ContainerRun container_run = nullptr; // AOTInductor's, past its locks
  LastError last_error = nullptr;
  void* handle = nullptr;
  uint32_t outputs = 0;
  bool calls_aten = false;
};

// Where a result of the op comes from.
struct Result {
  enum Kind : int32_t { kOutput = 0, kArgument = 1, kNone = 2, kOutputs = 3 };
  Kind kind;
  int32_t index; // of the output or of the argument; of the first output of a list
  int32_t count; // of outputs in a list
};

// Owners of libraries whose entries are gone.
class Owners {
 public:
  static Owners& instance() {
    static auto* owners = new Owners;
    return *owners;
  }

  void release(uint64_t owner) {
    std::lock_guard<std::mutex> lock(mutex_);
    released_.push_back(owner);
  }

  // Moves up to `room` of them out; returns how many.
  size_t take_released(uint64_t* owners, size_t room) {
    std::lock_guard<std::mutex> lock(mutex_);
    size_t count = std::min(room, released_.size());
    std::copy(released_.end() - count, released_.end(), owners);
    released_.resize(released_.size() - count);
    return count;
  }

 private:
  Owners() {
    pthread_atfork(
        [] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
        [] { instance().mutex_.unlock(); });
  }

  std::mutex mutex_;
  std::vector<uint64_t> released_;
};

class Entry : public Keyed, Counted<Entry> {
 public:
  using Counted<Entry>::alive;

  // A call of this key runs a library.
  Entry(
      const Word* words, size_t count, const Library& library, std::vector<Result> results,
      uint64_t owner)
      : Keyed(words, count), library(library), results(std::move(results)), owner_(owner) {
    is_single = this->results.size() == 1 && this->results[0].kind == Result::kOutput &&
        library.outputs == 1;
  }

  // A call of this key is declined, and counted.
  Entry(const Word* words, size_t count, Counter* declines)
      : Keyed(words, count), declines(declines) {}

  ~Entry() {
    if (owner_ != 0) {
      Owners::instance().release(owner_);
    }
  }

  Library library;
  std::vector<Result> results;
  Counter* declines = nullptr;
  std::vector<uint8_t> numbers; // by argument: whether it is a number that is an input; or empty
  std::unique_ptr<Pattern> pattern; // of calls that have no entry of their own
  std::unique_ptr<Looks> looks; // when a hit is compared once more; null if never
  bool is_single = false;

 private:
  uint64_t owner_ = 0;
};

using EntryTable = Table<Entry>;

enum class State : int32_t {
  kServe = 0,
  kPass = 1, // disabled, or the mode is off
  kDecline = 2, // never served: passed through and counted
  kRecord = 3, // raises an error after it has kept the key for `recorded_key`
};

inline std::vector<Word>& recorded_key() {
  static thread_local std::vector<Word> words;
  return words;
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
        profiled_name_("aoti_eager::" + c10::toString(handle_.operator_name())),
        is_function_(is_function),
        counts_writes_(counts_writes) {
    for (const Argument& argument : arguments_) {
      mutates_ |= argument.mutated;
    }
    with_device_ = dispatch_key_ != c10::DispatchKey::CPU;
  }

  // Takes what is registered now, the Python kernel, for what is neither hit nor declined, and
  // registers the boxed kernel above it.
  void install();
  void uninstall() {
    registration_.uninstall();
  }

  void call(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack);

  std::atomic<State> state{State::kPass};
  std::atomic<EntryTable*> table{nullptr};
  std::atomic<Counter*> hits{nullptr};
  std::atomic<Counter*> always_declined{nullptr};

 private:
  void call_original(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack);
  bool run(const Entry& entry, Stack* stack);
  void count_writes(const c10::IValue* values) const;
  void add_input(
      const c10::IValue& value, Handles& inputs, std::forward_list<at::Tensor>& converted);
  AOTIRuntimeError run_library(
      const Library& library, Handles& inputs, c10::SmallVectorImpl<AtenTensorHandle>& outputs);

  c10::OperatorHandle handle_;
  c10::DispatchKey dispatch_key_;
  std::vector<Argument> arguments_;
  c10::SafeKernelFunction original_;
  Registration registration_;
  std::string profiled_name_;
  bool is_function_;
  bool counts_writes_;
  bool mutates_ = false;
  bool with_device_ = false;
};

namespace {

struct Kernel final : c10::OperatorKernel, Counted<Kernel> {
  using Counted<Kernel>::alive;

  explicit Kernel(Op* op) : op_(op) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    op_->call(op, keys, stack);
  }

 private:
  Op* op_;
};

} // namespace

inline void Op::install() {
  registration_.install(handle_, dispatch_key_, std::make_unique<Kernel>(this));
}

inline void Op::call(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  State now = state.load(std::memory_order_acquire);
  if (now == State::kPass || passing() != 0) {
    return call_original(op, keys, stack);
  }
  if (now == State::kDecline) {
    Place& place = Epochs::place();
    Reading reading(place);
    if (Counter* counter = always_declined.load(std::memory_order_acquire)) {
      counter->add(place);
    }
    reading.end();
    return call_original(op, keys, stack);
  }
  if (C10_UNLIKELY(op.schema().arguments().size() != arguments_.size()) ||
      (is_function_ && at::autocast::is_autocast_enabled(at::kCPU))) {
    // The op was made again, as notebooks do. Python knows what to do.
    return registration_.call_python(op, keys, stack);
  }
  Words words;
  const c10::IValue* values = stack->data() + (stack->size() - arguments_.size());
  bool has_key = KeyWriter(words, with_device_).write(arguments_, values, mutates_);
  if (now == State::kRecord) {
    recorded_key().assign(words.begin(), has_key ? words.end() : words.begin());
    TORCH_CHECK(false, "the key is recorded");
  }
  if (has_key) {
    Place& place = Epochs::place();
    Reading reading(place);
    EntryTable* current = table.load(std::memory_order_seq_cst);
    Entry* entry = current == nullptr ? nullptr : current->find(words.data(), words.size());
    if (entry != nullptr) {
      if (entry->declines != nullptr) {
        entry->declines->add(place);
        reading.end(); // The original may take long, and needs nothing of the table.
        return call_original(op, keys, stack);
      }
      if (entry->looks != nullptr && entry->looks->is_due(place)) {
        reading.end(); // Python takes as long as it takes, and needs nothing of the table.
        if (Failed tell = failed().load(std::memory_order_acquire)) {
          tell(this, "");
        }
        return registration_.call_python(op, keys, stack);
      }
      if (run(*entry, stack)) {
        hits.load(std::memory_order_relaxed)->add(place);
        return;
      }
    }
  }
  registration_.call_python(op, keys, stack);
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

inline void Op::add_input(
    const c10::IValue& value, Handles& inputs, std::forward_list<at::Tensor>& converted) {
  if (!value.isTensor() || !value.toTensor().defined()) {
    return;
  }
  const at::Tensor* tensor = &value.toTensor();
  if (C10_UNLIKELY(tensor->unsafeGetTensorImpl()->is_wrapped_number())) {
    // It has the default dtype at times; libraries take the widest of its kind.
    constexpr at::ScalarType kWidest[] = {at::kBool, at::kLong, at::kDouble, at::kComplexDouble};
    at::ScalarType wanted = kWidest[number_kind(tensor->scalar_type())];
    if (wanted != tensor->scalar_type()) {
      Passing pass(true); // The conversion is an op, and may be this very one.
      tensor = &converted.emplace_front(tensor->to(wanted));
    }
  }
  inputs.push_back(reinterpret_cast<AtenTensorHandle>(const_cast<at::Tensor*>(tensor)));
}

inline AOTIRuntimeError Op::run_library(
    const Library& library, Handles& inputs, c10::SmallVectorImpl<AtenTensorHandle>& outputs) {
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
inline void Op::count_writes(const c10::IValue* values) const {
  constexpr auto kCounts = c10::DispatchKey::ADInplaceOrView;
  if (c10::impl::tls_is_dispatch_key_excluded(kCounts)) {
    return;
  }
  auto count = [](const c10::IValue& value) {
    if (value.isTensor() && value.toTensor().defined() && value.toTensor().key_set().has(kCounts)) {
      value.toTensor().unsafeGetTensorImpl()->bump_version();
    }
  };
  for (size_t i = 0; i < arguments_.size(); ++i) {
    if (!arguments_[i].mutated) {
      continue;
    }
    if (values[i].isList()) {
      for (const c10::IValue& element : values[i].toListRef()) {
        count(element);
      }
    } else {
      count(values[i]);
    }
  }
}

// Runs the entry's library on the call's arguments and puts its results in their place; false, with
// the arguments still there, if it failed.
inline bool Op::run(const Entry& entry, Stack* stack) {
  const Library& library = entry.library;
  const c10::IValue* values = stack->data() + (stack->size() - arguments_.size());
  // Handles are pointers to tensors; those of the stack are as good as any.
  Handles inputs;
  std::forward_list<at::Tensor> converted; // pointers into it stay good
  for (size_t i = 0; i < arguments_.size(); ++i) {
    if (arguments_[i].kind == ArgumentKind::kTensor) {
      add_input(values[i], inputs, converted);
    } else if (arguments_[i].kind == ArgumentKind::kTensors && values[i].isList()) {
      for (const c10::IValue& element : values[i].toListRef()) {
        add_input(element, inputs, converted);
      }
    } else if (i < entry.numbers.size() && entry.numbers[i] != 0) {
      at::Tensor& number = converted.emplace_front(at::detail::scalar_tensor_static(
          c10::Scalar(values[i].toDouble()), at::kDouble, at::kCPU));
      inputs.push_back(reinterpret_cast<AtenTensorHandle>(&number));
    }
  }
  c10::SmallVector<AtenTensorHandle, 4> outputs(library.outputs, nullptr);
  AOTIRuntimeError error = run_library(library, inputs, outputs);
  if (error != AOTI_RUNTIME_SUCCESS) {
    const char* message = nullptr;
    library.last_error(&message);
    Failed tell = failed().load(std::memory_order_acquire);
    if (tell != nullptr) {
      tell(this, message != nullptr && *message != 0 ? message : "it gave no message");
    }
    return false;
  }
  if (C10_UNLIKELY(counts_writes_)) {
    count_writes(values);
  }
  auto take = [&outputs](size_t index) {
    auto* handle = reinterpret_cast<at::Tensor*>(outputs[index]);
    outputs[index] = nullptr;
    at::Tensor tensor = std::move(*handle);
    delete handle;
    return tensor;
  };
  if (entry.is_single) {
    c10::IValue result(take(0));
    torch::jit::drop(*stack, arguments_.size());
    stack->push_back(std::move(result));
    return true;
  }
  c10::SmallVector<c10::IValue, 4> results;
  for (const Result& result : entry.results) {
    switch (result.kind) {
      case Result::kOutput:
        results.emplace_back(take(result.index));
        break;
      case Result::kArgument:
        results.emplace_back(values[result.index]);
        break;
      case Result::kNone:
        results.emplace_back(at::Tensor());
        break;
      case Result::kOutputs: {
        c10::List<at::Tensor> list;
        list.reserve(result.count);
        for (int32_t i = 0; i < result.count; ++i) {
          list.push_back(take(result.index + i));
        }
        results.emplace_back(std::move(list));
        break;
      }
    }
  }
  for (AtenTensorHandle handle : outputs) {
    delete reinterpret_cast<at::Tensor*>(handle); // an argument that is handed back as itself
  }
  torch::jit::drop(*stack, arguments_.size());
  for (c10::IValue& result : results) {
    stack->push_back(std::move(result));
  }
  return true;
}

} // namespace aoti_eager
