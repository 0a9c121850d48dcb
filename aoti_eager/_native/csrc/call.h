// One call as a kernel gets it, boxed or typed: its arguments, and where its results go.

#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/util/SmallVector.h>

#include <utility>

#include "entry.h"
#include "values.h"

namespace aoti_eager {

using Stack = torch::jit::Stack;

// What a run of a library has given; what nobody takes is freed.
class Outputs {
 public:
  explicit Outputs(size_t count) : handles_(count, nullptr) {}
  ~Outputs() {
    for (AtenTensorHandle handle : handles_) {
      delete reinterpret_cast<at::Tensor*>(handle);
    }
  }
  Outputs(const Outputs&) = delete;
  Outputs& operator=(const Outputs&) = delete;

  AtenTensorHandle* data() {
    return handles_.data();
  }
  size_t size() const {
    return handles_.size();
  }

  at::Tensor take(size_t index) {
    auto* handle = reinterpret_cast<at::Tensor*>(handles_[index]);
    handles_[index] = nullptr;
    at::Tensor tensor = std::move(*handle);
    delete handle;
    return tensor;
  }

 private:
  c10::SmallVector<AtenTensorHandle, 4> handles_;
};

// Arguments on the dispatcher's stack; results take their place.
class BoxedCall : public BoxedValues {
 public:
  BoxedCall(const c10::OperatorHandle& op, Stack* stack, size_t arguments)
      : BoxedValues(stack->data() + (stack->size() - arguments)),
        op_(op),
        stack_(stack),
        arguments_(arguments) {}

  // Whether there are so many arguments.
  bool has_schema_of(size_t arguments) const {
    return op_.schema().arguments().size() == arguments;
  }

  void give(const Entry& entry, Outputs& outputs) const {
    if (entry.is_single) {
      c10::IValue result(outputs.take(0));
      torch::jit::drop(*stack_, arguments_);
      stack_->push_back(std::move(result));
      return;
    }
    c10::SmallVector<c10::IValue, 4> results;
    for (const Result& result : entry.results) {
      results.push_back(one(result, outputs));
    }
    torch::jit::drop(*stack_, arguments_);
    for (c10::IValue& result : results) {
      stack_->push_back(std::move(result));
    }
  }

 private:
  c10::IValue one(const Result& result, Outputs& outputs) const {
    switch (result.kind) {
      case Result::kOutput:
        return outputs.take(result.index);
      case Result::kArgument:
        return (*this)[result.index];
      case Result::kNone:
        return at::Tensor();
      case Result::kOutputs: {
        c10::List<at::Tensor> list;
        list.reserve(result.count);
        for (int32_t i = 0; i < result.count; ++i) {
          list.push_back(outputs.take(result.index + i));
        }
        return list;
      }
    }
    return {};
  }

  const c10::OperatorHandle& op_;
  Stack* stack_;
  size_t arguments_;
};

// Arguments where the caller has them. A kernel that returns tensors by value has a place for each,
// without anything in it; one that returns the arguments that it writes to has none.
class TypedCall : public TypedValues {
 public:
  TypedCall(
      const Type* types, const void* const* places, size_t arguments, c10::TensorImpl** results,
      size_t results_count)
      : TypedValues(types, places),
        arguments_(arguments),
        results_(results),
        results_count_(results_count) {}

  bool has_schema_of(size_t) const {
    return true; // Only ops have typed kernels that nobody makes again.
  }

  void give(const Entry& entry, Outputs& outputs) const {
    for (size_t i = 0; i < results_count_; ++i) {
      const Result& result = entry.results[i];
      if (result.kind == Result::kOutput) {
        put(i, outputs.take(result.index));
      } else {
        put(i, result.kind == Result::kArgument ? argument(result.index) : at::Tensor());
      }
    }
  }

  // The arguments as a boxed kernel gets them.
  Stack box() const {
    Stack stack;
    stack.reserve(arguments_);
    for (size_t i = 0; i < arguments_; ++i) {
      stack.push_back(boxed((*this)[i]));
    }
    return stack;
  }

  // Takes what a boxed kernel has returned.
  void take_from(Stack& stack) const {
    for (size_t i = 0; i < results_count_; ++i) {
      stack.at(i).toTensor(); // Raises before anything is given: another type is Python's mistake.
    }
    for (size_t i = 0; i < results_count_; ++i) {
      put(i, std::move(stack[i]).toTensor());
    }
  }

 private:
  void put(size_t index, at::Tensor&& tensor) const {
    results_[index] = tensor.unsafeReleaseTensorImpl();
  }

  at::Tensor argument(size_t index) const {
    at::Tensor found;
    each_tensor((*this)[index], [&found](const at::Tensor& tensor) { found = tensor; });
    return found;
  }

  size_t arguments_;
  c10::TensorImpl** results_;
  size_t results_count_;
};

} // namespace aoti_eager
