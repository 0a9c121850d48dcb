// The floor of any kernel that allocates its result: a boxed kernel that does nothing else.

#include <ATen/EmptyTensor.h>
#include <ATen/core/stack.h>
#include <torch/library.h>

namespace {

class EmptyResult final : public c10::OperatorKernel {
 public:
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
    size_t arguments = op.schema().arguments().size();
    const at::Tensor& first = (*stack)[stack->size() - arguments].toTensor();
    at::Tensor result =
        at::detail::empty_strided_cpu(first.sizes(), first.strides(), first.scalar_type());
    torch::jit::drop(*stack, arguments);
    stack->emplace_back(std::move(result));
  }
};

torch::Library* registration = nullptr;

} // namespace

extern "C" __attribute__((visibility("default"))) void noop_install() {
  registration = new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::CPU, "noop", 1);
  registration->impl(
      "mul.Tensor", torch::CppFunction::makeFromBoxedFunctor(std::make_unique<EmptyResult>()));
}

extern "C" __attribute__((visibility("default"))) void noop_uninstall() {
  delete registration;
}
