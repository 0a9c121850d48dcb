// What a `ModelContainerRunner` runs in C++: a loaded library, its instances, checks of its inputs.

#pragma once

#include <ATen/core/grad_mode.h>

#include <pthread.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "call.h"
#include "counters.h"
#include "inputs.h"
#include "python_list.h"
#include "torch_compat.h"

namespace aoti_eager {

// What a library without checks of its own wants of an input; -1 is any number.
struct WantedInput {
  at::ScalarType dtype;
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;

  bool fits(const at::Tensor& tensor) const {
    at::IntArrayRef got = tensor.sizes();
    if (tensor.scalar_type() != dtype || got.size() != sizes.size()) {
      return false;
    }
    bool has_sizes = true;
    bool has_strides = true;
    for (size_t i = 0; i < sizes.size(); ++i) {
      has_sizes &= sizes[i] < 0 || sizes[i] == got[i];
      // Strides of sizes 0 and 1 are never followed.
      has_strides &= got[i] <= 1 || strides[i] < 0 || strides[i] == tensor.stride(i);
    }
    return has_sizes && (has_strides || tensor.numel() == 0);
  }
};

// What to call in a library, and what it takes. It never changes, so any thread may use it.
struct RunnerLibrary {
  using ContainerRun = decltype(&AOTInductorModelContainerRun);
  using ModelRun = decltype(&AOTInductorModelRun);
  using LastError = decltype(&AOTInductorGetLastError);

  ContainerRun container_run = nullptr; // or null: a library that has only a model
  ModelRun model_run = nullptr;
  LastError last_error = nullptr;
  size_t inputs = 0;
  size_t outputs = 0;
  int32_t device_type = 0;
  int32_t device_index = 0;
  void* const* handles = nullptr; // the container or the model of each instance
  size_t instances = 0;
};

// Which instances runs in C++ may take; shared with Python (`runner.py`), and guarded by the GIL.
class Slots {
 public:
  Slots(int64_t* cells, size_t count) : cells_(cells), count_(count) {}

  // Returns the index of an instance that nobody has, in turns; `size` if there is none for C++.
  size_t find_free() const {
    if (cells_[count_] == 0) {
      return count_;
    }
    size_t index = next_;
    for (size_t i = 0; i < count_; ++i) {
      if (cells_[index] == kFree) {
        return index;
      }
      index = after(index);
    }
    return count_;
  }
  size_t size() const {
    return count_;
  }
  void take(size_t index) {
    next_ = after(index);
    cells_[index] = static_cast<int64_t>(pthread_self()); // what Python calls the thread, too
  }
  void give_back(size_t index) {
    cells_[index] = kFree;
  }

 private:
  static constexpr int64_t kFree = -1;

  size_t after(size_t index) const {
    return index + 1 == count_ ? 0 : index + 1;
  }

  int64_t* cells_; // one an instance, and whether they may be taken
  size_t count_;
  size_t next_ = 0;
};

class Runner : Counted<Runner> {
 public:
  using Counted<Runner>::alive;

  Runner(const RunnerLibrary& library, std::vector<WantedInput> wanted, int64_t* cells)
      : slots(cells, library.instances),
        library_(library),
        handles_(library.handles, library.handles + library.instances),
        device_(
            static_cast<c10::DeviceType>(library.device_type),
            static_cast<c10::DeviceIndex>(library.device_index)),
        wanted_(std::move(wanted)) {}

  // What a run has of tensors.
  struct Tensors {
    explicit Tensors(size_t outputs) : outputs(outputs) {}

    Handles inputs; // which the library takes over
    // The last reference from C++ to a tensor that Python has, too, takes the GIL when it goes, and
    // the library lets go of tensors without it. So these stay until the GIL is back.
    c10::SmallVector<at::Tensor, 8> kept;
    Outputs outputs;
  };

  // How a run ended.
  enum class State { kDone, kFailed, kRefused };

  size_t outputs() const {
    return library_.outputs;
  }

  // Makes handles of the inputs; false, with nothing to free, if one is not as it should be. With
  // `boxed`, no tensor is kept beyond the library's need.
  bool take(const PythonList& inputs, bool boxed, Tensors& tensors) const {
    size_t count = library_.inputs;
    if (inputs.size() != count) {
      return false;
    }
    tensors.inputs.resize(count);
    for (size_t i = 0; i < count; ++i) {
      const at::Tensor* tensor = inputs.tensor(i);
      if (tensor == nullptr || !is_plain(*tensor) ||
          (!wanted_.empty() && !wanted_[i].fits(*tensor))) {
        return false;
      }
      tensors.inputs[i] = reinterpret_cast<AtenTensorHandle>(const_cast<at::Tensor*>(tensor));
    }
    tensors.kept.reserve(boxed ? 0 : count);
    for (AtenTensorHandle& handle : tensors.inputs) {
      const at::Tensor& tensor = *reinterpret_cast<const at::Tensor*>(handle);
      if (!boxed) {
        tensors.kept.push_back(tensor);
      }
      handle = reinterpret_cast<AtenTensorHandle>(new at::Tensor(tensor));
    }
    return true;
  }

  // Runs an instance; needs no GIL. `kRefused`: the library refused an input, and the handles are
  // still to be freed. Except for `kDone`, `message` is the library's.
  State run(size_t instance, Tensors& tensors, void* stream, std::string& message) const {
    if (call(handles_[instance], tensors.inputs, tensors.outputs, stream) == AOTI_RUNTIME_SUCCESS) {
      return State::kDone;
    }
    const char* said = nullptr;
    if (library_.last_error != nullptr) {
      library_.last_error(&said);
    }
    message = said != nullptr ? said : "";
    // It checks the inputs before it takes them over, and frees them itself after that.
    size_t begin = message.find_first_not_of(" \t\n\r");
    bool is_refused = begin != std::string::npos && message.compare(begin, 14, "input_handles[") == 0;
    return is_refused ? State::kRefused : State::kFailed;
  }

  Slots slots;

 private:
  // Whether C code can read the tensor's data where its data pointer points, on this device.
  bool is_plain(const at::Tensor& tensor) const {
    using c10::DispatchKey;
    // Of the tensor itself, and of modes that change nothing of it. Sparse, nested, conjugated,
    // batched, functional tensors and the like have others.
    static const uint64_t kOthers = ~(
        c10::DispatchKeySet(
            {DispatchKey::Dense, DispatchKey::ADInplaceOrView, DispatchKey::AutogradFunctionality,
             DispatchKey::AutocastCPU, DispatchKey::AutocastCUDA, DispatchKey::AutocastXPU})
            .raw_repr() |
        c10::full_backend_mask);
    c10::TensorImpl* impl = tensor.unsafeGetTensorImpl();
    if (!tensor.defined() || (impl->key_set().raw_repr() & kOthers) != 0 ||
        impl->has_symbolic_sizes_strides() || !impl->has_storage()) {
      return false;
    }
    // A 0-dim CPU tensor stands for a number on every device.
    bool is_here = impl->device() == device_ || (impl->device().is_cpu() && impl->dim() == 0);
    return is_here &&
        (impl->unsafe_storage().unsafeGetStorageImpl()->data() != nullptr || impl->numel() == 0);
  }

  AOTIRuntimeError call(void* instance, Handles& inputs, Outputs& made, void* stream) const {
    if (library_.container_run != nullptr) {
      return library_.container_run(
          static_cast<AOTInductorModelContainerHandle>(instance), inputs.data(), inputs.size(),
          made.data(), made.size(), static_cast<AOTInductorStreamHandle>(stream), nullptr);
    }
    // AOTInductor's container switches grad off; a model by itself need not.
    at::NoGradGuard no_grad;
    return library_.model_run(
        static_cast<AOTInductorModelHandle>(instance), inputs.data(), made.data());
  }

  RunnerLibrary library_;
  std::vector<void*> handles_;
  c10::Device device_;
  std::vector<WantedInput> wanted_; // one an input, or none
};

} // namespace aoti_eager
