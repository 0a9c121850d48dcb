// One op at the autograd key: joins its forward and backward kernels by a node of autograd's.
//
//   no gradient wanted      -> below autograd
//   call known as compiled  -> below autograd, and a node that calls the backward op
//   call known as declined  -> the op's function, which autograd follows
//   everything else         -> Python kernel: transforms, traces, autocast, calls not seen before
//
// What a node keeps is the call's arguments.

#pragma once

#include <ATen/SavedTensorHooks.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "call.h"
#include "counters.h"
#include "key.h"
#include "registration.h"
#include "table.h"
#include "torch_compat.h"

namespace aoti_eager {

// What a result is, and how its gradient is laid out for the backward kernel.
struct ResultLayout {
  bool differentiable;
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;
};

// What all calls of one key have in common.
struct GradientCall {
  std::vector<ResultLayout> results;
  std::vector<size_t> tensors; // places of the op's tensor arguments
  c10::List<bool> needs; // for each of them
  c10::OperatorHandle backward;
  std::string name;
  std::shared_ptr<std::atomic<int64_t>> nodes; // how many there are: they call `backward` yet
};

// The forward ran outside of it or in it; a backward kernel computes in the forward's dtypes.
class WithoutAutocast {
 public:
  WithoutAutocast() : was_enabled_(at::autocast::is_autocast_enabled(at::kCPU)) {
    if (was_enabled_) {
      at::autocast::set_autocast_enabled(at::kCPU, false);
    }
  }
  ~WithoutAutocast() {
    if (was_enabled_) {
      at::autocast::set_autocast_enabled(at::kCPU, true);
    }
  }
  WithoutAutocast(const WithoutAutocast&) = delete;
  WithoutAutocast& operator=(const WithoutAutocast&) = delete;

 private:
  bool was_enabled_;
};

// A transform, a mode or a subclass wants to see what the function consists of, or the op itself.
constexpr c10::DispatchKeySet kSeen(
    {c10::DispatchKey::Python, c10::DispatchKey::FuncTorchDynamicLayerBackMode,
     c10::DispatchKey::FuncTorchDynamicLayerFrontMode, c10::DispatchKey::FuncTorchGradWrapper,
     c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::Batched});

inline bool is_seen(const at::Tensor& tensor) {
  return tensor.defined() &&
      (tensor.key_set().has_any(kSeen) || tensor._fw_grad(/*level=*/0).defined());
}

class GradientEntry : public Keyed {
 public:
  GradientEntry(const Word* words, size_t count, std::shared_ptr<const GradientCall> call)
      : Keyed(words, count), call(std::move(call)) {}

  std::shared_ptr<const GradientCall> call; // null for a declined one
  std::unique_ptr<Pattern> pattern; // none has one; see Table
};

class GradientNode : public torch::autograd::Node {
 public:
  GradientNode(std::shared_ptr<const GradientCall> call, const c10::IValue* values, size_t count)
      : call_(std::move(call)), arguments_(values, values + count) {
    call_->nodes->fetch_add(1);
    for (size_t place : call_->tensors) {
      c10::IValue& argument = arguments_[place];
      bool there = argument.isTensor() && argument.toTensor().defined();
      saved_.emplace_back(there ? argument.toTensor() : at::Tensor(), /*is_output=*/false);
      present_.push_back(there);
      argument = c10::IValue();
    }
  }

  ~GradientNode() override {
    call_->nodes->fetch_sub(1);
  }

  std::string name() const override {
    return call_->name;
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    released_ = true;
    for (torch::autograd::SavedVariable& one : saved_) {
      one.reset_data();
    }
  }

  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    std::lock_guard<std::mutex> lock(mutex_);
    TORCH_CHECK(!released_, torch::autograd::ERR_BACKWARD_TWICE);
    torch::autograd::variable_list found(saved_.size());
    if (std::none_of(
            gradients.begin(), gradients.end(), [](const at::Tensor& one) { return one.defined(); })) {
      return found;
    }
    Stack stack;
    bool seen = at::GradMode::is_enabled() || c10::impl::TorchDispatchModeTLS::any_modes_set();
    for (size_t i = 0; i < call_->results.size(); ++i) {
      seen |= is_seen(gradients[i]);
      stack.push_back(laid_out(i, std::move(gradients[i])));
    }
    size_t first = stack.size();
    stack.insert(stack.end(), arguments_.begin(), arguments_.end());
    for (size_t k = 0; k < saved_.size(); ++k) {
      if (present_[k]) {
        at::Tensor saved = saved_[k].unpack();
        seen |= is_seen(saved);
        stack[first + call_->tensors[k]] = std::move(saved);
      }
    }
    stack.emplace_back(call_->needs.copy());
    WithoutAutocast without_autocast;
    if (seen) {
      call_->backward.callBoxed(&stack); // Python's kernel: a gradient that has one itself
    } else {
      at::AutoDispatchBelowAutograd guard;
      call_->backward.callBoxed(&stack);
    }
    for (size_t k = 0; k < saved_.size(); ++k) {
      if (call_->needs.get(k) && task_should_compute_output(k) && stack[k].isTensor()) {
        found[k] = stack[k].toTensor();
      }
    }
    return found;
  }

 private:
  c10::IValue laid_out(size_t index, at::Tensor gradient) const {
    const ResultLayout& layout = call_->results[index];
    // Nobody asks for this result's gradient: that is no gradient of zeros.
    if (!layout.differentiable || !gradient.defined()) {
      return c10::IValue();
    }
    if (gradient.layout() != at::kStrided || gradient.key_set().has_any(kSeen) ||
        gradient.strides() == c10::IntArrayRef(layout.strides)) {
      return gradient;
    }
    return at::empty_strided(layout.sizes, layout.strides, gradient.options()).copy_(gradient);
  }

  std::shared_ptr<const GradientCall> call_;
  std::vector<c10::IValue> arguments_;
  std::vector<torch::autograd::SavedVariable> saved_;
  std::vector<bool> present_;
  bool released_ = false;
};

class AutogradKernel : Counted<AutogradKernel> {
 public:
  using Counted<AutogradKernel>::alive;

  AutogradKernel(
      c10::OperatorHandle handle, c10::OperatorHandle backward, c10::OperatorHandle function,
      std::vector<Argument> arguments, size_t results, bool decomposes)
      : handle_(std::move(handle)),
        backward_(std::move(backward)),
        function_(std::move(function)),
        arguments_(std::move(arguments)),
        results_(results),
        decomposes_(decomposes) {
    for (size_t i = 0; i < arguments_.size(); ++i) {
      if (arguments_[i].kind == ArgumentKind::kTensor) {
        tensors_.push_back(i);
      }
    }
    TORCH_CHECK(tensors_.size() <= 64, "an op with more than 64 tensors");
  }

  // Takes what is registered now, the Python kernel, for what is not known as compiled.
  void install();
  void uninstall() {
    registration_.uninstall();
  }

  void call(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack);

  // Returns how many nodes of this op's calls there are.
  int64_t nodes() const {
    return nodes_->load();
  }

  // Calls of this key are joined from now on. `key` is that of the op's own kernels and a word with
  // a bit for each tensor whose gradient is wanted.
  void put(const Word* key, size_t count, std::vector<ResultLayout> results) {
    c10::List<bool> needs;
    for (size_t k = 0; k < tensors_.size(); ++k) {
      needs.push_back((key[count - 1] >> k & 1) != 0);
    }
    std::string name = c10::toString(handle_.operator_name()) + "Backward";
    auto call = std::make_shared<GradientCall>(GradientCall{
        std::move(results), tensors_, std::move(needs), backward_, std::move(name), nodes_});
    WriteGuard writing;
    table_.put(std::make_unique<GradientEntry>(key, count, std::move(call)));
  }

  // Calls of this key are for the op's function from now on.
  void put_decline(const Word* key, size_t count) {
    WriteGuard writing;
    table_.put(std::make_unique<GradientEntry>(key, count, nullptr));
  }

  size_t results() const {
    return results_;
  }

  void clear() {
    WriteGuard writing;
    table_.clear();
  }

 private:
  struct Registered final : c10::OperatorKernel {
    explicit Registered(AutogradKernel* kernel) : kernel_(kernel) {}

    void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
      kernel_->call(op, keys, stack);
    }

   private:
    AutogradKernel* kernel_;
  };

  // Whether a call is known, and as what.
  std::pair<bool, std::shared_ptr<const GradientCall>> find(
      const c10::IValue* values, Word needs) {
    Words words;
    if (!KeyWriter<Words>(words, /*with_device=*/false).write(
            arguments_, BoxedValues(values), /*mutates=*/false)) {
      return {false, nullptr};
    }
    words.push_back(needs);
    ReadGuard reading(Epochs::place());
    GradientEntry* entry = table_.find(words.data(), words.size());
    return {entry != nullptr, entry == nullptr ? nullptr : entry->call};
  }

  c10::OperatorHandle handle_;
  c10::OperatorHandle backward_;
  c10::OperatorHandle function_;
  std::vector<Argument> arguments_;
  std::vector<size_t> tensors_;
  size_t results_;
  bool decomposes_; // traces, modes and autocast see what the op consists of
  std::shared_ptr<std::atomic<int64_t>> nodes_ = std::make_shared<std::atomic<int64_t>>(0);
  Table<GradientEntry> table_;
  Registration registration_;
};

inline void AutogradKernel::install() {
  registration_.install(
      handle_, c10::DispatchKey::AutogradCPU, std::make_unique<Registered>(this));
}

inline void AutogradKernel::call(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  const size_t count = arguments_.size();
  if (C10_UNLIKELY(op.schema().arguments().size() != count) || keys.has_any(kSeen)) {
    return registration_.call_python(op, keys, stack);
  }
  const c10::IValue* values = stack->data() + (stack->size() - count);
  const bool recording = at::GradMode::is_enabled();
  Word needs = 0;
  bool inference = false;
  for (size_t k = 0; k < tensors_.size(); ++k) {
    const c10::IValue& value = values[tensors_[k]];
    if (!value.isTensor() || !value.toTensor().defined()) {
      continue;
    }
    const at::Tensor& tensor = value.toTensor();
    if (tensor._fw_grad(/*level=*/0).defined()) {
      return registration_.call_python(op, keys, stack);
    }
    needs |= Word(recording && tensor.requires_grad()) << k;
    inference |= tensor.is_inference();
  }
  std::shared_ptr<const GradientCall> known;
  if (needs != 0 || decomposes_) {
    bool seen = c10::impl::TorchDispatchModeTLS::any_modes_set() ||
        at::autocast::is_autocast_enabled(at::kCPU);
    // Nothing is to be saved of such a tensor; and what is saved under hooks is to be the same each
    // time, whether a kernel has come meanwhile or not: a checkpoint compares.
    seen |= needs != 0 &&
        (inference || !at::SavedTensorDefaultHooks::get_tls_state().stack.empty());
    if (seen) {
      return registration_.call_python(op, keys, stack);
    }
    if (needs != 0) {
      auto [is_known, call] = find(values, needs);
      if (!is_known) {
        return registration_.call_python(op, keys, stack);
      }
      if (call == nullptr) {
        return function_.callBoxed(stack);
      }
      known = std::move(call);
    }
  }
  NodePointer<GradientNode> node;
  if (known != nullptr) {
    torch::autograd::variable_list inputs(tensors_.size());
    for (size_t k = 0; k < tensors_.size(); ++k) {
      const c10::IValue& value = values[tensors_[k]];
      inputs[k] = value.isTensor() ? value.toTensor() : at::Tensor();
    }
    node = make_node<GradientNode>(known, values, count);
    node->set_next_edges(torch::autograd::collect_next_edges(inputs));
  }
  {
    at::AutoDispatchBelowAutograd guard;
    op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
  }
  if (!node) {
    return;
  }
  for (size_t i = 0; i < results_; ++i) {
    at::Tensor result = (*stack)[stack->size() - results_ + i].toTensor();
    if (known->results[i].differentiable) {
      torch::autograd::set_history(result, node);
    } else {
      node->add_input_metadata(torch::autograd::Node::undefined_input());
    }
  }
}

} // namespace aoti_eager
