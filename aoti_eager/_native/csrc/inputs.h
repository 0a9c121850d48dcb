// A call's tensors and numbers as the handles that a library takes.

#pragma once

#include <ATen/ScalarOps.h>

#include <forward_list>

#include "call.h"
#include "key.h"
#include "passing.h"

namespace aoti_eager {

using Handles = c10::SmallVector<AtenTensorHandle, 8>;

// Tensors as handles: those of the call are as good as any.
class Inputs {
 public:
  void add(const at::Tensor& tensor) {
    const at::Tensor* input = &tensor;
    if (C10_UNLIKELY(tensor.unsafeGetTensorImpl()->is_wrapped_number())) {
      // It has the default dtype at times; libraries take the widest of its kind.
      constexpr at::ScalarType kWidest[] = {at::kBool, at::kLong, at::kDouble, at::kComplexDouble};
      at::ScalarType wanted = kWidest[number_kind(tensor.scalar_type())];
      if (wanted != tensor.scalar_type()) {
        Passing pass(true); // The conversion is an op, and may be this very one.
        input = &converted_.emplace_front(tensor.to(wanted));
      }
    }
    push(input);
  }

  void add_number(double value) {
    push(&converted_.emplace_front(
        at::detail::scalar_tensor_static(c10::Scalar(value), at::kDouble, at::kCPU)));
  }

  Handles handles;

 private:
  void push(const at::Tensor* tensor) {
    handles.push_back(reinterpret_cast<AtenTensorHandle>(const_cast<at::Tensor*>(tensor)));
  }

  std::forward_list<at::Tensor> converted_; // pointers into it stay good
};

inline double number_of(const c10::IValue& value) {
  return value.toDouble();
}

inline double number_of(const TypedValue& value) {
  return boxed(value).toDouble();
}

} // namespace aoti_eager
