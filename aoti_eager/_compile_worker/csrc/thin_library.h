// What the generated code of a thin kernel library uses: one CPU graph without constants.
//
// Precompiled once for each set of flags; `thin_interface.cpp` is what surrounds the code.

#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <exception>
#include <optional>

#include <c10/util/generic_math.h>
#include <torch/csrc/inductor/aoti_runtime/interface.h>
#include <torch/csrc/inductor/aoti_runtime/scalar_to_tensor.h>
#include <torch/csrc/inductor/aoti_runtime/utils.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/inductor/cpp_prefix.h>
#include <torch/csrc/stable/c/shim.h>

// The name that generated code uses for sizes of pooled allocations.
[[maybe_unused]] inline int64_t align(int64_t nbytes) {
  return (nbytes + 63) & -64;
}

namespace aoti_eager {

// An input as generated code uses it, in place of a handle that deletes its tensor: the tensor stays
// the caller's. Two allocations a tensor are a tenth of a small kernel's call.
class Input {
 public:
  Input(AtenTensorHandle handle) : handle_(handle) {}

  operator AtenTensorHandle() const {
    return handle_;
  }
  AtenTensorHandle get() const {
    return handle_;
  }
  void* data_ptr() const {
    void* pointer = nullptr;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle_, &pointer));
    return pointer;
  }
  // Of a dynamic specialisation's inputs.
  const int64_t* sizes() const {
    int64_t* sizes = nullptr;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle_, &sizes));
    return sizes;
  }
  const int64_t* strides() const {
    int64_t* strides = nullptr;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle_, &strides));
    return strides;
  }
  void reset() {}

  // An input that is an output, too.
  AtenTensorHandle release() const {
    AtenTensorHandle handle = nullptr;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(handle_, &handle));
    return handle;
  }

 private:
  AtenTensorHandle handle_;
};

// What generated code calls instead of `steal_from_raw_handles_to_raii_handles`.
class Inputs {
 public:
  Inputs(const AtenTensorHandle* handles, size_t) : handles_(handles) {}

  Input operator[](size_t index) const {
    return handles_[index];
  }
  void clear() {}

 private:
  const AtenTensorHandle* handles_;
};

// The first exception of a kernel's loops, which must not leave a parallel region: code by
// `index_checks.py` keeps it, and throws it again behind the region.
class CaughtCheck {
 public:
  // In a handler.
  void keep() noexcept {
    if (!is_taken_.exchange(true)) {
      error_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (error_) {
      std::rethrow_exception(error_);
    }
  }

 private:
  std::atomic<bool> is_taken_{false};
  std::exception_ptr error_;
};

} // namespace aoti_eager
