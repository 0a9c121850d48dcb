// The tensors that a recording meets, each once: metadata, and a number by which calls name them.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>
#include <c10/util/SmallVector.h>

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tape_text.h"

namespace aoti_eager {

// What a tensor's own metadata is. Sizes, strides and offset are left out where the tensor has none
// of its own: a subclass answers in Python, others have symbols, or tensors inside.
struct Metadata {
  explicit Metadata(const c10::TensorImpl& tensor) : dtype(tensor.dtype()) {
    if (tensor.has_storage() && tensor.storage()) {
      storage = tensor.storage().unsafeGetStorageImpl();
    }
    if (tensor.is_python_dispatch() || tensor.key_set().has(c10::DispatchKey::NestedTensor) ||
        tensor.has_symbolic_sizes_strides()) {
      return;
    }
    layout = static_cast<int64_t>(tensor.layout());
    has_sizes = true;
    sizes.assign(tensor.sizes().begin(), tensor.sizes().end());
    if (tensor.layout() == c10::kStrided) {
      has_strides = true;
      strides.assign(tensor.strides().begin(), tensor.strides().end());
      offset = tensor.storage_offset();
    }
  }

  bool operator==(const Metadata& other) const {
    return dtype == other.dtype && storage == other.storage && layout == other.layout &&
        offset == other.offset && has_sizes == other.has_sizes &&
        has_strides == other.has_strides && sizes == other.sizes && strides == other.strides;
  }

  caffe2::TypeMeta dtype;
  c10::StorageImpl* storage = nullptr;
  int64_t layout = -1;
  bool has_sizes = false;
  bool has_strides = false;
  int64_t offset = 0;
  c10::SmallVector<int64_t, 5> sizes;
  c10::SmallVector<int64_t, 5> strides;
};

// Tensors and storages are held weakly. Their data is freed when the script lets go of them; what
// stays is their headers, so that no later tensor gets the address of an earlier one.
class SeenTensors {
 public:
  // Returns a tensor's number. The metadata that is kept is that of the first time.
  size_t number_of(const at::Tensor& tensor) {
    c10::TensorImpl* impl = tensor.unsafeGetTensorImpl();
    Metadata now(*impl);
    auto [found, is_new] = numbers_.try_emplace(impl, tensors_.size());
    if (is_new) {
      tensors_.emplace_back(tensor, std::move(now));
    } else if (Seen& seen = tensors_[found->second]; !(seen.metadata == now)) {
      seen.changed = true;
    }
    return found->second;
  }

  // Keeps what a tensor holds, as it is now.
  void keep_data(const at::Tensor& tensor) {
    tensors_[number_of(tensor)].data = data_text(tensor);
  }

  void write(std::string& text) const {
    for (const Seen& seen : tensors_) {
      text += &seen == tensors_.data() ? "" : ",\n";
      seen.write(text);
    }
  }

  // Writes the numbers of the tensors that somebody else than this object still holds.
  void write_alive(std::string& text) const {
    const char* comma = "";
    for (size_t i = 0; i < tensors_.size(); ++i) {
      if (tensors_[i].impl.use_count() > 0) {
        text += comma + std::to_string(i);
        comma = ",";
      }
    }
  }

  // About what is held for the sake of this object.
  size_t size_bytes() const {
    return tensors_.size() *
        (sizeof(Seen) + sizeof(c10::TensorImpl) + sizeof(c10::StorageImpl) + 4 * sizeof(void*));
  }

 private:
  struct Seen {
    Seen(const at::Tensor& tensor, Metadata&& metadata)
        : metadata(std::move(metadata)), impl(tensor.getIntrusivePtr()) {
      c10::TensorImpl& one = *tensor.unsafeGetTensorImpl();
      if (one.has_storage() && one.storage()) {
        storage.emplace(one.storage().getWeakStorageImpl());
      }
      if (!one.is_python_dispatch()) {
        device = one.device().str();
      }
      requires_grad = one.requires_grad();
      is_inference = one.is_inference();
      is_conj = one.key_set().has(c10::DispatchKey::Conjugate);
      is_negative = one.key_set().has(c10::DispatchKey::Negative);
      version = version_of(one);
      if (one.is_wrapped_number()) {
        number = data_text(tensor, /*only=*/true);
      }
    }

    // -1 for tensors that have none.
    static int64_t version_of(const c10::TensorImpl& tensor) {
      const c10::VariableVersion& counter = tensor.version_counter();
      return counter.enabled() ? static_cast<int64_t>(counter.current_version()) : -1;
    }

    // The order is that in which `_tensor` of `recorder.py` reads.
    void write(std::string& text) const {
      int64_t version_after = -1;
      if (auto alive = impl.lock()) {
        version_after = version_of(*alive);
      }
      auto kept = reinterpret_cast<uintptr_t>(impl._unsafe_get_target());
      text += "[" + std::to_string(kept) + ",";
      text += std::to_string(reinterpret_cast<uintptr_t>(metadata.storage)) + ",";
      text += std::to_string(version) + "," + std::to_string(version_after) + ",";
      write_text(text, c10::getDtypeNames(c10::typeMetaToScalarType(metadata.dtype)).first);
      text += ",";
      metadata.has_sizes ? write_ints(text, metadata.sizes) : write_none(text);
      text += ",";
      metadata.has_strides ? write_ints(text, metadata.strides) : write_none(text);
      text += "," + std::to_string(metadata.offset) + "," + std::to_string(metadata.layout) + ",";
      write_text(text, device);
      for (bool flag : {requires_grad, is_conj, is_negative, is_inference, changed}) {
        text += flag ? ",true" : ",false";
      }
      text += "," + (number.empty() ? "null" : number) + "," + (data.empty() ? "null" : data) + "]";
    }

    Metadata metadata;
    c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> impl;
    std::optional<c10::weak_intrusive_ptr<c10::StorageImpl>> storage;
    std::string device;
    std::string number;
    std::string data;
    int64_t version;
    bool requires_grad;
    bool is_conj;
    bool is_negative;
    bool is_inference;
    bool changed = false; // Metadata was different another time.
  };

  std::vector<Seen> tensors_;
  std::unordered_map<const c10::TensorImpl*, size_t> numbers_;
};

} // namespace aoti_eager
