// A PrivateUse1 backend for the tests: two devices whose memory is host memory. Kernels run CPU ops
// on CPU tensors over that memory, and count their calls; streams and events have nothing to do.

#define AT_PER_OPERATOR_HEADERS  // ATen's headers would include all ops

#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/add.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/Synchronized.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <map>

namespace aoti_eager_tests {
namespace {

using at::IntArrayRef;
using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::DispatchKey;
using c10::Storage;
using std::optional;
using Counts = std::map<std::string, int64_t>;

constexpr DeviceIndex kDeviceCount = 2;
constexpr c10::DispatchKeySet kKeys(DispatchKey::PrivateUse1);

thread_local DeviceIndex current_index = 0;
std::atomic<int64_t> live_block_count{0};

Device device_at(int64_t index) {
  TORCH_CHECK_INDEX(index >= 0 && index < kDeviceCount, "There is no device ", index, ".");
  return {at::kPrivateUse1, static_cast<DeviceIndex>(index)};
}

Device exchange_device(int64_t index) {
  return device_at(std::exchange(current_index, device_at(index).index()));
}

struct BlockAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = nullptr;
    TORCH_CHECK(posix_memalign(&memory, 64, bytes) == 0, "No memory for ", bytes, " bytes.");
    ++live_block_count;
    return {memory, memory, &free_block, device_at(current_index)};
  }
  static void free_block(void* memory) {
    std::free(memory);
    --live_block_count;
  }
  void copy_data(void* target, const void* source, size_t bytes) const override {
    default_copy_data(target, source, bytes);
  }
};

BlockAllocator allocator;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return at::kPrivateUse1; }
  Device getDevice() const override { return device_at(current_index); }
  Device exchangeDevice(Device device) const override { return exchange_device(device.index()); }
  void setDevice(Device device) const override { exchange_device(device.index()); }
  void uncheckedSetDevice(Device device) const noexcept override { current_index = device.index(); }
  DeviceIndex deviceCount() const noexcept override { return kDeviceCount; }
  void synchronizeDevice(DeviceIndex) const override {}
  c10::Stream getStream(Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device.has_index() ? device : getDevice());
  }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  void record(void**, const c10::Stream&, DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return kDeviceCount; }
  DeviceIndex getCurrentDevice() const override { return current_index; }
  void setCurrentDevice(DeviceIndex index) const override { exchange_device(index); }
};

// A fake tensor has the key too, but its storage is on meta; that of a wrapper has no memory.
void check_on(const Tensor& tensor, DispatchKey key) {
  TORCH_CHECK(tensor.key_set().has(key) && tensor.storage().device() == tensor.device() &&
                  (tensor.storage().data() != nullptr || tensor.numel() == 0),
              "Expected a tensor with memory at ", key, ", got one with ", tensor.key_set(), ".");
}

Tensor share(const Tensor& source, DispatchKey key, Device device) {
  void* memory = source.storage().mutable_data();
  auto* owner = new Storage(source.storage());
  c10::DataPtr data(memory, owner, [](void* o) { delete static_cast<Storage*>(o); }, device);
  Storage storage({}, owner->nbytes(), std::move(data), c10::GetAllocator(device.type()), false);
  auto result = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(key), source.dtype());
  auto* impl = result.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(source.sizes(), source.strides(), source.storage_offset());
  impl->_set_conj(source.is_conj());
  impl->_set_neg(source.is_neg());
  return result;
}

Tensor as_cpu(const Tensor& tensor) {
  check_on(tensor, DispatchKey::PrivateUse1);
  return share(tensor, DispatchKey::CPU, at::kCPU);
}

Tensor from_cpu(const Tensor& tensor, int64_t index) {
  check_on(tensor, DispatchKey::CPU);
  return share(tensor, DispatchKey::PrivateUse1, device_at(index));
}

Tensor operand(const Tensor& tensor) { return tensor.is_cpu() ? tensor : as_cpu(tensor); }

Tensor empty(IntArrayRef size, optional<at::ScalarType> dtype, optional<at::Layout>,
             optional<Device> device, optional<bool>, optional<at::MemoryFormat> format) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(size, &allocator, kKeys, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, optional<at::ScalarType> dtype,
                     optional<at::Layout>, optional<Device> device, optional<bool>) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(size, stride, &allocator, kKeys,
                                           c10::dtype_or_default(dtype));
}

const Tensor& resize_(const Tensor& self, IntArrayRef size, optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(self.device());  // the allocator uses the current device
  return at::native::resize_(self, size, format);
}

Tensor copy_from(const Tensor& self, const Tensor& target, bool) {
  operand(target).copy_(operand(self));
  return target;
}

Tensor copy_from_and_resize(const Tensor& self, const Tensor& target) {
  at::native::resize_output(target, self.sizes());
  return copy_from(self, target, false);
}

Tensor& fill_(Tensor& self, const at::Scalar& value) {
  as_cpu(self).fill_(value);
  return self;
}

Tensor& set_storage_(Tensor& self, Storage source, int64_t offset, IntArrayRef size,
                     IntArrayRef stride) {
  TORCH_CHECK(source.device() == self.device(), "The storage is on ", source.device(), ".");
  const c10::DeviceGuard guard(self.device());
  return at::native::set_storage_cpu_(self, std::move(source), offset, size, stride);
}

Tensor& set_whole_storage_(Tensor& self, Storage source) {
  return set_storage_(self, source, 0, int64_t(source.nbytes() / self.itemsize()), {});
}

// Never destroyed: a thread may still call a kernel while the process ends.
auto& calls = *new c10::Synchronized<Counts>();

// Count a call and return the one device of `tensors`. A CPU tensor of no dimensions is a number.
Device enter(const char* kernel, at::ArrayRef<Tensor> tensors) {
  optional<Device> device;
  for (const auto& tensor : tensors) {
    if (!tensor.is_cpu() || tensor.dim() != 0) {
      check_on(tensor, DispatchKey::PrivateUse1);
      TORCH_CHECK(tensor.device() == device.value_or(tensor.device()), kernel,
                  ": expected all tensors on one device, got ", *device, " and ", tensor.device());
      device = tensor.device();
    }
  }
  calls.withLock([&](Counts& counts) { ++counts[kernel]; });
  return device.value();
}

// A kernel that was taken out of the dispatcher may be called above autograd: go below it.
template <typename Compute>
Tensor run(const char* kernel, at::ArrayRef<Tensor> inputs, Compute compute) {
  const at::AutoDispatchBelowADInplaceOrView below;
  const auto device = enter(kernel, inputs);
  const Tensor host = compute();
  auto result = empty_strided(host.sizes(), host.strides(), host.scalar_type(), {}, device, {});
  as_cpu(result).copy_(host);
  return result;
}

template <typename Fill>
Tensor& run_out(const char* kernel, Tensor& out, const Tensor& a, const Tensor& b, Fill fill) {
  const at::AutoDispatchBelowADInplaceOrView below;
  enter(kernel, {out, a, b});
  if (!out.is_same(a) && !out.is_same(b)) {
    at::native::resize_output(out, at::infer_size(a.sizes(), b.sizes()));
  }
  at::assert_no_partial_overlap(out, a);
  at::assert_no_partial_overlap(out, b);
  fill(as_cpu(out));
  return out;
}

Tensor mul(const Tensor& a, const Tensor& b) {
  return run("mul.Tensor", {a, b}, [&] { return at::mul(operand(a), operand(b)); });
}

Tensor& mul_out(const Tensor& a, const Tensor& b, Tensor& out) {
  return run_out("mul.out", out, a, b, [&](Tensor o) { at::mul_out(o, operand(a), operand(b)); });
}

Tensor& mul_(Tensor& a, const Tensor& b) {
  return run_out("mul_.Tensor", a, a, b, [&](Tensor o) { o.mul_(operand(b)); });
}

Tensor add(const Tensor& a, const Tensor& b, const at::Scalar& alpha) {
  return run("add.Tensor", {a, b}, [&] { return at::add(operand(a), operand(b), alpha); });
}

Tensor& add_out(const Tensor& a, const Tensor& b, const at::Scalar& alpha, Tensor& out) {
  return run_out("add.out", out, a, b,
                 [&](Tensor o) { at::add_out(o, operand(a), operand(b), alpha); });
}

Tensor silu(const Tensor& a) { return run("silu", {a}, [&] { return at::silu(operand(a)); }); }

Tensor& silu_out(const Tensor& a, Tensor& out) {
  return run_out("silu.out", out, a, a, [&](Tensor o) { at::silu_out(o, operand(a)); });
}

// Every other op. A view op raises: it would return a view of a copy.
void fall_back(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  at::native::cpu_fallback(op, stack, /*error_on_views=*/true);
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fall_back>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("_copy_from", TORCH_FN(copy_from));
  m.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  m.impl("_local_scalar_dense", [](const Tensor& self) { return as_cpu(self).item(); });
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("resize_", TORCH_FN(resize_));
  m.impl("set_.source_Storage", TORCH_FN(set_whole_storage_));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(set_storage_));
  m.impl("set_.source_Tensor", TORCH_FN(at::native::set_tensor_));
  m.impl("fill_.Scalar", TORCH_FN(fill_));
  m.impl("zero_", [](Tensor& self) -> Tensor& { return fill_(self, at::Scalar(0)); });
  m.impl("mul.Tensor", TORCH_FN(mul));
  m.impl("mul.out", TORCH_FN(mul_out));
  m.impl("mul_.Tensor", TORCH_FN(mul_));
  m.impl("add.Tensor", TORCH_FN(add));
  m.impl("add.out", TORCH_FN(add_out));
  m.impl("silu", TORCH_FN(silu));
  m.impl("silu.out", TORCH_FN(silu_out));
}

// The CPU's copy_ minds these bits. The default is to clone the source, which copies it, endlessly.
TORCH_LIBRARY_FRAGMENT(aten, m) {
  for (const auto key : {DispatchKey::Conjugate, DispatchKey::Negative}) {
    m.impl("_copy_from", torch::dispatch(key, torch::CppFunction::makeFallthrough()));
  }
}

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)
REGISTER_ALLOCATOR(at::kPrivateUse1, &allocator)

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  m.def("as_cpu", &as_cpu);
  m.def("from_cpu", &from_cpu);
  m.def("live_blocks", [] { return live_block_count.load(); });
  m.def("kernel_calls", [] { return calls.withLock([](const Counts& c) { return c; }); });
}

}  // namespace aoti_eager_tests
