// Records the ops that one thread calls: the outermost ones that torch does not make of others.
//
// These are the ops that a `TorchDispatchMode` would be called for: what autograd and autocast do
// above it has been done, and what a kernel calls below it is no part of the list. PyTorch's
// profiling callbacks tell of every call that begins and ends; they are there while the thread
// records, and at no other time.

#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <pthread.h>

#include <atomic>
#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "counters.h"
#include "guarded.h"
#include "seen_tensors.h"
#include "tape_text.h"
#include "torch_compat.h"

namespace aoti_eager {

class Recording;

// The recording of this thread, or null.
inline Recording*& current_recording() {
  static thread_local Recording* recording = nullptr;
  return recording;
}

// How a call is recorded.
enum class Part {
  kItself,
  kSteps, // The calls inside of it are, if there are any.
  kAnew, // The calls inside of it are, and one of them is the same op again.
};

// What a call that has begun leaves for its end.
struct OpenCall final : at::ObserverContext {
  OpenCall(uint64_t recording, c10::OperatorHandle op, Part part, size_t awaited)
      : recording(recording), op(std::move(op)), part(part), awaited(awaited) {}

  uint64_t recording;
  c10::OperatorHandle op;
  Part part;
  size_t awaited; // So many ops were to be called again before this one.
  int exceptions = std::uncaught_exceptions();
};

// Returns how a call with these arguments is recorded. In inference mode, a `TorchDispatchMode` sees
// composite ops; their steps are recorded here, so that a recording is the same with and without.
inline Part part_of(const c10::OperatorHandle& op, c10::ArrayRef<const c10::IValue> arguments) {
  using Key = c10::DispatchKey;
  using Keys = c10::DispatchKeySet;
  // They leave the call to the kernel below them.
  constexpr Keys kPassing({Key::PythonTLSSnapshot, Key::PreDispatch, Key::PythonDispatcher});
  constexpr Keys kModeAndBelow = Keys(Keys::FULL_AFTER, Key::Python) | Keys(Key::Python);
  torch::jit::Stack stack(arguments.begin(), arguments.end());
  const c10::impl::OperatorEntry& entry = entry_of(op);
  Keys keys = entry.dispatchKeyExtractor().getDispatchKeySetBoxed(&stack) - kPassing;
  Key functionality = (keys - kModeAndBelow).highestFunctionalityKey();
  if (functionality == Key::Undefined && (keys.empty() || !c10::InferenceMode::is_enabled())) {
    return Part::kItself;
  }
  if (functionality >= Key::AutocastCPU) { // Above autocast is functorch.
    return functionality <= Key::AutocastCUDA ? Part::kAnew : Part::kSteps;
  }
  // Two ops of torch's whose first kernel does the work itself, and no op that a mode would see.
  static const c10::OperatorName kDetached("aten::detach_", "");
  static const c10::OperatorName kPooled("aten::max_pool1d", "");
  if (op.operator_name() == kDetached && functionality != Key::ADInplaceOrView) {
    return Part::kSteps; // It has no values.
  }
  if (op.operator_name() == kPooled) {
    return Part::kItself; // Its only step would be `empty`.
  }
  const c10::KernelFunction& kernel = entry.lookup(keys);
  for (Key composite : {Key::CompositeImplicitAutograd, Key::CompositeImplicitAutogradNestedTensor}) {
    if (op.hasKernelForDispatchKey(composite) &&
        is_same_kernel(kernel, entry.kernelForDispatchKey(composite))) {
      return Part::kSteps;
    }
  }
  return Part::kItself;
}

class Recording : Counted<Recording> {
 public:
  using Counted<Recording>::alive;

  // Begins to record this thread's calls.
  Recording(size_t most_calls, size_t most_bytes)
      : most_calls_(most_calls), most_bytes_(most_bytes) {
    if (!at::isRecordFunctionEnabled()) {
      stop("PyTorch's record functions are disabled in this thread");
    }
    handle_ = at::addThreadLocalCallback(at::RecordFunctionCallback(on_start, on_end)
                                             .needsInputs(true)
                                             .needsOutputs(true)
                                             .scopes({at::RecordScope::FUNCTION}));
    current_recording() = this;
  }

  // Ends the recording, on its thread.
  ~Recording() {
    end();
  }

  bool is_of_this_thread() const {
    return thread_ == std::this_thread::get_id();
  }

  // To be freed by its own thread, when that thread calls an op or records again.
  void abandon() {
    abandoned_.store(true, std::memory_order_release);
  }
  bool is_abandoned() const {
    return abandoned_.load(std::memory_order_acquire);
  }

  // Records no more, and forgets what it has.
  void stop(std::string reason) {
    if (stopped_.empty()) {
      stopped_ = std::move(reason);
      calls_text_ = {};
      tensors_ = {};
    }
  }

  // Ends the recording and returns it as text.
  const std::string& finish() {
    if (!at::isRecordFunctionEnabled()) {
      stop("PyTorch's record functions were disabled in this thread");
    }
    if (is_inside_) {
      stop("it ended inside of a call");
    }
    end();
    text_ = "{\"stopped\":";
    stopped_.empty() ? write_none(text_) : write_text(text_, stopped_);
    text_ += ",\n\"calls\":[" + calls_text_ + "],\n\"tensors\":[";
    tensors_.write(text_);
    text_ += "]}";
    calls_text_ = {};
    return text_;
  }

  // Returns, as text, the numbers of the tensors that are alive; after the end.
  const std::string& tensors_alive() {
    alive_ = "[";
    tensors_.write_alive(alive_);
    alive_ += "]";
    return alive_;
  }

 private:
  static std::unique_ptr<at::ObserverContext> on_start(const at::RecordFunction& call) {
    Recording* recording = current_recording();
    if (recording == nullptr) {
      return nullptr;
    }
    if (recording->is_abandoned()) {
      delete recording;
      return nullptr;
    }
    std::unique_ptr<at::ObserverContext> open;
    if (!guarded([&] { open = recording->start(call); })) {
      recording->stop("a call could not be read: " + last_error());
    }
    return open;
  }

  static void on_end(const at::RecordFunction& call, at::ObserverContext* context) {
    Recording* recording = current_recording();
    auto* open = static_cast<OpenCall*>(context);
    if (recording == nullptr || open == nullptr || open->recording != recording->number_) {
      return;
    }
    if (!guarded([&] { recording->end_call(call, *open); })) {
      recording->stop("a call's results could not be read: " + last_error());
    }
  }

  std::unique_ptr<at::ObserverContext> start(const at::RecordFunction& call);
  void end_call(const at::RecordFunction& call, const OpenCall& open);

  template <class Types>
  void write_values(c10::ArrayRef<const c10::IValue> values, const Types& types) {
    auto number_of = [this](const at::Tensor& tensor) { return tensors_.number_of(tensor); };
    calls_text_ += "[";
    for (size_t i = 0; i < values.size(); ++i) {
      calls_text_ += i == 0 ? "" : ",";
      write_value(calls_text_, values[i], *types[i].real_type(), number_of);
    }
    calls_text_ += "]";
  }

  void end() {
    if (current_recording() == this) {
      current_recording() = nullptr;
    }
    if (handle_ != at::INVALID_CALLBACK_HANDLE) {
      at::removeCallback(std::exchange(handle_, at::INVALID_CALLBACK_HANDLE));
    }
  }

  static uint64_t next_number() {
    static std::atomic<uint64_t> number{0};
    return number.fetch_add(1, std::memory_order_relaxed);
  }

  size_t most_calls_;
  size_t most_bytes_;
  uint64_t number_ = next_number();
  std::thread::id thread_ = std::this_thread::get_id();
  std::atomic<bool> abandoned_{false};
  at::CallbackHandle handle_ = at::INVALID_CALLBACK_HANDLE;
  bool is_inside_ = false; // of a call that is recorded
  size_t calls_ = 0;
  std::vector<c10::OperatorHandle> awaited_; // to be called again, the innermost last
  std::string stopped_;
  std::string calls_text_;
  std::string text_;
  std::string alive_;
  SeenTensors tensors_;
};

// Values of a call: the last ones, because a boxed call tells of the whole stack.
inline c10::ArrayRef<const c10::IValue> last_of(c10::ArrayRef<const c10::IValue> all, size_t count) {
  TORCH_CHECK(all.size() >= count, "PyTorch told of ", all.size(), " of ", count, " values");
  return all.slice(all.size() - count);
}

inline std::unique_ptr<at::ObserverContext> Recording::start(const at::RecordFunction& call) {
  // Where modes are switched off, torch makes a constant, or a mode has the call already.
  if (is_inside_ || !stopped_.empty() ||
      c10::impl::tls_is_dispatch_key_excluded(c10::DispatchKey::Python)) {
    return nullptr;
  }
  auto name = call.operator_name();
  auto op = name.has_value() ? c10::Dispatcher::singleton().findSchema(*name) : std::nullopt;
  if (!op.has_value()) {
    return nullptr; // no op: a range of the profiler's
  }
  auto arguments = last_of(call.inputs(), op->schema().arguments().size());
  if (!awaited_.empty() && awaited_.back() == *op) {
    awaited_.pop_back();
  }
  Part part = part_of(*op, arguments);
  if (part == Part::kSteps) {
    return nullptr;
  }
  size_t awaited = awaited_.size();
  if (part == Part::kAnew) {
    awaited_.push_back(*op);
  } else {
    if (++calls_ > most_calls_) {
      stop("too many calls: more than " + std::to_string(most_calls_));
      return nullptr;
    }
    if (name->name == "aten::lift_fresh" && arguments[0].isTensor()) {
      tensors_.keep_data(arguments[0].toTensor());
    }
    calls_text_ += calls_ == 1 ? "[" : ",\n[";
    write_text(calls_text_, name->name);
    calls_text_ += ",";
    write_text(calls_text_, name->overload_name);
    calls_text_ += ",";
    write_values(arguments, op->schema().arguments());
    is_inside_ = true;
  }
  return std::make_unique<OpenCall>(number_, std::move(*op), part, awaited);
}

inline void Recording::end_call(const at::RecordFunction& call, const OpenCall& open) {
  if (!stopped_.empty()) {
    return;
  }
  bool has_raised = std::uncaught_exceptions() > open.exceptions;
  if (open.part == Part::kAnew) {
    bool was_called = awaited_.size() <= open.awaited;
    while (awaited_.size() > open.awaited) {
      awaited_.pop_back();
    }
    if (!has_raised && !was_called) {
      stop(c10::toString(open.op.operator_name()) + " ran under autocast by a kernel that hides it");
    }
    return;
  }
  is_inside_ = false;
  calls_text_ += ",";
  const auto& returns = open.op.schema().returns();
  if (has_raised) {
    write_values({}, returns);
  } else {
    const auto& results = call.outputs();
    c10::ArrayRef<const c10::IValue> all(results.data(), results.size());
    write_values(last_of(all, returns.size()), returns);
  }
  calls_text_ += has_raised ? ",true]" : ",false]";
  if (calls_text_.capacity() + tensors_.size_bytes() > most_bytes_) {
    stop("too much memory: more than " + std::to_string(most_bytes_) + " bytes");
  }
}

// In a child of a fork nothing is recorded; the block that it is in, if it ends there, says so.
inline void forget_recording_in_child() {
  if (Recording* recording = current_recording()) {
    recording->stop("the process was forked");
    current_recording() = nullptr;
  }
}

// Returns a new recording of this thread, or null while there is one.
inline Recording* begin_recording(size_t most_calls, size_t most_bytes) {
  static const int registered = pthread_atfork(nullptr, nullptr, forget_recording_in_child);
  TORCH_CHECK(registered == 0, "no handler can be registered for forks");
  if (Recording* there = current_recording()) {
    TORCH_CHECK(there->is_abandoned(), "this thread is recording already");
    delete there;
  }
  return new Recording(most_calls, most_bytes);
}

} // namespace aoti_eager
