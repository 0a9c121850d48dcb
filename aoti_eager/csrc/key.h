// The key of a call, read from the dispatcher's stack.
//
// A row of 64-bit words that says the same as the table key of the Python path; `_native_key.py`
// writes the same words from a canonical key, and kernels are put into the table under those. Every
// value begins with a word that holds its tag, so no two calls spell the same words.
// What C++ cannot spell (a symbolic size) has no key: the Python path takes such a call.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>
#include <c10/core/DefaultDtype.h>
#include <c10/util/SmallVector.h>

#include <bit>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "float_mode.h"
#include "table.h"
#include "torch_compat.h"

namespace aoti_eager {

// Longer keys are spelled on the heap.
using Words = c10::SmallVector<Word, 96>;

// The first byte of a value's first word.
enum Tag : Word {
  kNone = 0,
  kTensor = 1, // dtype << 8, negated << 16, conjugated << 17, dimensions << 32; sizes; strides
  kNumber = 2, // a number in a Tensor slot, of which only the kind << 8 counts
  kList = 3, // length << 32; the elements
  kInt = 4, // also dtypes, layouts and memory formats, by PyTorch's numbers
  kFloat = 5,
  kBool = 6, // value << 8
  kComplex = 7,
  kString = 8, // bytes << 32; the text, filled up with zeros
  kDevice = 9, // type << 8, index << 32
  kPresent = 10, // something that no kernel takes
  kOverlap = 11, // a mutated argument overlaps another << 8
  // default dtype << 8, deterministic << 16, unusual floating-point mode << 17,
  // matmul precision << 24, threads << 32
  kContext = 12,
};

enum NumberKind : Word { kBoolNumber, kIntNumber, kFloatNumber, kComplexNumber };

// What a schema says of an argument, by the numbers of `_native_key.py`.
enum class ArgumentKind : uint8_t {
  kValue = 0, // spelled by the IValue's own type
  kTensor = 1,
  kTensors = 2,
  kOpaque = 3, // only whether it is there counts
};

struct Argument {
  ArgumentKind kind;
  bool mutated;
};

namespace {

inline Word float_bits(double value) {
  // All NaNs are one, the zeros are two.
  return value != value ? 0x7FF8000000000000ull : std::bit_cast<Word>(value);
}

inline Word number_kind(at::ScalarType type) {
  if (type == at::kBool) {
    return kBoolNumber;
  }
  if (c10::isComplexType(type)) {
    return kComplexNumber;
  }
  return c10::isFloatingType(type) ? kFloatNumber : kIntNumber;
}

// First address that a tensor touches and the one past its last.
inline std::pair<uintptr_t, uintptr_t> memory_range(const at::Tensor& tensor) {
  if (tensor.numel() == 0) {
    return {0, 0};
  }
  int64_t last = 0;
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    last += (tensor.sizes()[i] - 1) * tensor.strides()[i];
  }
  auto start = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  return {start, start + (last + 1) * tensor.element_size()};
}

} // namespace

class KeyWriter {
 public:
  // `with_device`: tensors may be on several devices, and code may load aligned vectors.
  KeyWriter(Words& words, bool with_device) : words_(words), with_device_(with_device) {}

  // Writes the key of a call; false if it has none.
  bool write(const std::vector<Argument>& arguments, const c10::IValue* values, bool mutates) {
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (!write_argument(arguments[i], values[i])) {
        return false;
      }
    }
    if (mutates) {
      words_.push_back(kOverlap | Word(mutation_overlaps(arguments, values)) << 8);
    }
    words_.push_back(context());
    return is_precision_told();
  }

  static Word context() {
    return kContext | Word(c10::get_default_dtype_as_scalartype()) << 8 |
        Word(settings.deterministicAlgorithms()) << 16 | Word(!is_usual_float_mode()) << 17 |
        Word(matmul_precision()) << 24 | Word(at::get_num_threads()) << 32;
  }

 private:
  bool write_argument(const Argument& argument, const c10::IValue& value) {
    switch (argument.kind) {
      case ArgumentKind::kTensor:
        return write_tensor(value);
      case ArgumentKind::kTensors: {
        if (value.isNone()) {
          words_.push_back(kNone);
          return true;
        }
        if (!value.isList()) {
          return false;
        }
        auto elements = value.toListRef();
        words_.push_back(kList | Word(elements.size()) << 32);
        for (const c10::IValue& element : elements) {
          if (!write_tensor(element)) {
            return false;
          }
        }
        return true;
      }
      case ArgumentKind::kOpaque:
        words_.push_back(value.isNone() ? kNone : kPresent);
        return true;
      case ArgumentKind::kValue:
        return write_value(value);
    }
    return false;
  }

  bool write_tensor(const c10::IValue& value) {
    if (value.isNone()) {
      words_.push_back(kNone);
      return true;
    }
    if (!value.isTensor()) {
      return false;
    }
    const at::Tensor& tensor = value.toTensor();
    if (!tensor.defined()) {
      words_.push_back(kNone);
      return true;
    }
    const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
    at::ScalarType type = c10::typeMetaToScalarType(impl.dtype());
    if (impl.is_wrapped_number()) {
      words_.push_back(kNumber | number_kind(type) << 8);
      return true;
    }
    if (impl.layout() != at::kStrided || impl.has_symbolic_sizes_strides() ||
        !impl.has_storage()) {
      return false;
    }
    c10::IntArrayRef sizes = impl.sizes();
    c10::IntArrayRef strides = impl.strides();
    size_t start = words_.size();
    words_.resize(start + 1 + 2 * sizes.size());
    Word* word = words_.data() + start;
    *word++ = kTensor | Word(type) << 8 | Word(tensor.is_neg()) << 16 |
        Word(tensor.is_conj()) << 17 | Word(sizes.size()) << 32;
    for (int64_t size : sizes) {
      *word++ = Word(size);
    }
    for (int64_t stride : strides) {
      *word++ = Word(stride);
    }
    if (with_device_) {
      write_device(tensor.device());
      words_.push_back(
          tensor.device().is_cpu() ||
          reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0);
    }
    return true;
  }

  bool write_value(const c10::IValue& value) {
    if (value.isInt()) {
      words_.push_back(kInt);
      words_.push_back(Word(value.toInt()));
    } else if (value.isDouble()) {
      words_.push_back(kFloat);
      words_.push_back(float_bits(value.toDouble()));
    } else if (value.isBool()) {
      words_.push_back(kBool | Word(value.toBool()) << 8);
    } else if (value.isNone()) {
      words_.push_back(kNone);
    } else if (value.isList()) {
      auto elements = value.toListRef();
      words_.push_back(kList | Word(elements.size()) << 32);
      for (const c10::IValue& element : elements) {
        if (!write_value(element)) {
          return false;
        }
      }
    } else if (value.isString()) {
      const std::string& text = value.toStringRef();
      words_.push_back(kString | Word(text.size()) << 32);
      size_t start = words_.size();
      words_.resize(start + (text.size() + sizeof(Word) - 1) / sizeof(Word), 0);
      std::memcpy(words_.data() + start, text.data(), text.size());
    } else if (value.isComplexDouble()) {
      auto number = value.toComplexDouble();
      words_.push_back(kComplex);
      words_.push_back(float_bits(number.real()));
      words_.push_back(float_bits(number.imag()));
    } else if (value.isDevice()) {
      write_device(value.toDevice());
    } else {
      return false;
    }
    return true;
  }

  void write_device(c10::Device device) {
    words_.push_back(
        kDevice | Word(uint8_t(device.type())) << 8 | Word(uint8_t(device.index())) << 32);
  }

  // Whether a mutated tensor's addresses meet those of another argument. Tensors on other devices
  // than the CPU have addresses of their own, which never equal the CPU's by more than chance.
  static bool mutation_overlaps(const std::vector<Argument>& arguments, const c10::IValue* values) {
    c10::SmallVector<std::pair<uintptr_t, uintptr_t>, 8> mutated;
    c10::SmallVector<std::pair<uintptr_t, uintptr_t>, 8> others;
    auto add = [&](const c10::IValue& value, bool is_mutated) {
      if (value.isTensor() && value.toTensor().defined()) {
        (is_mutated ? mutated : others).push_back(memory_range(value.toTensor()));
      }
    };
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (arguments[i].kind == ArgumentKind::kTensor) {
        add(values[i], arguments[i].mutated);
      } else if (arguments[i].kind == ArgumentKind::kTensors && values[i].isList()) {
        for (const c10::IValue& element : values[i].toListRef()) {
          add(element, arguments[i].mutated);
        }
      }
    }
    auto meet = [](const auto& one, const auto& other) {
      return one.first < other.second && other.first < one.second;
    };
    for (size_t i = 0; i < mutated.size(); ++i) {
      for (size_t j = 0; j < i; ++j) {
        if (meet(mutated[i], mutated[j])) {
          return true;
        }
      }
      for (const auto& other : others) {
        if (meet(mutated[i], other)) {
          return true;
        }
      }
    }
    return false;
  }

  Words& words_;
  bool with_device_;
};

} // namespace aoti_eager
