// The key of a call, read from the dispatcher's stack or from C++ values.
//
// A row of 64-bit words that says the same as the table key of the Python path; `_keys/key_words.py`
// writes the same words from a canonical key, and kernels are put into the table under those. Every
// value begins with a word that holds its tag, so no two calls spell the same words.
// What C++ cannot spell (a symbolic size) has no key: the Python path takes such a call.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>
#include <c10/core/DefaultDtype.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "float_mode.h"
#include "overlap.h"
#include "table.h"
#include "torch_compat.h"
#include "values.h"
#include "words.h"

namespace aoti_eager {

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

namespace {

inline Word float_bits(double value) {
  // All NaNs are one, the zeros are two.
  return value != value ? 0x7FF8000000000000ull : std::bit_cast<Word>(value);
}

// Of a tensor that is neither negated nor conjugated.
inline Word tensor_word(at::ScalarType type, size_t dimensions) {
  return kTensor | Word(type) << 8 | Word(dimensions) << 32;
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

} // namespace

// Writes a call's key to a sink: `Words`, or `Expected`.
template <class Sink>
class KeyWriter {
 public:
  // `with_device`: tensors may be on several devices, and code may load aligned vectors.
  KeyWriter(Sink& sink, bool with_device) : sink_(sink), with_device_(with_device) {}

  // Writes the key of a call; false if it has none, or the sink has had enough. `Values`: values.h.
  template <class Values>
  bool write(const std::vector<Argument>& arguments, const Values& values, bool mutates) {
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (!write_one(arguments[i], values[i])) {
        return false;
      }
    }
    if (mutates && !sink_.put(overlap(arguments, values))) {
      return false;
    }
    return sink_.put(context()) && is_precision_told();
  }

  // Writes the words of one argument; as above.
  template <class Value>
  [[gnu::noinline]] bool write_argument(const Argument& argument, const Value& value) {
    return write_one(argument, value);
  }

  // The word that says whether what an op writes to meets its other arguments.
  template <class Values>
  static Word overlap(const std::vector<Argument>& arguments, const Values& values) {
    return kOverlap | Word(mutation_overlaps(arguments, values)) << 8;
  }

  static Word context() {
    return kContext | Word(c10::get_default_dtype_as_scalartype()) << 8 |
        Word(is_deterministic()) << 16 | Word(!is_usual_float_mode()) << 17 |
        Word(matmul_precision()) << 24 | Word(at::get_num_threads()) << 32;
  }

 private:
  bool write_one(const Argument& argument, const c10::IValue& value) {
    switch (argument.kind) {
      case ArgumentKind::kTensor:
        return write_tensor(value);
      case ArgumentKind::kTensors: {
        if (value.isNone()) {
          return write_none();
        }
        if (!value.isList()) {
          return false;
        }
        return write_list(
            value.toListRef(), [this](const c10::IValue& one) { return write_tensor(one); });
      }
      case ArgumentKind::kOpaque:
        return sink_.put(value.isNone() ? kNone : kPresent);
      case ArgumentKind::kValue:
        return write_value(value);
    }
    return false;
  }

  bool write_one(const Argument&, const TypedValue& value) {
    switch (value.type) {
      case Type::kTensor:
        return write_tensor(value.as<at::Tensor>());
      case Type::kOptionalTensor: {
        const auto& tensor = value.as<std::optional<at::Tensor>>();
        return tensor.has_value() ? write_tensor(*tensor) : write_none();
      }
      case Type::kTensorList:
        return write_tensors(value.as<at::TensorList>());
      case Type::kTensorListRef:
        return write_tensors(value.as<at::ITensorListRef>());
      case Type::kInt:
        return write_int(value.as<int64_t>());
      case Type::kSymInt:
        return write_int(value.as<c10::SymInt>());
      case Type::kInts:
        return write_ints(value.as<at::IntArrayRef>());
      case Type::kOptionalInts: {
        const auto& ints = value.as<at::OptionalIntArrayRef>();
        return ints.has_value() ? write_ints(*ints) : write_none();
      }
      case Type::kSymInts:
        return write_ints(value.as<c10::SymIntArrayRef>());
      case Type::kTwoBools:
        return write_bools(value.as<std::array<bool, 2>>());
      case Type::kThreeBools:
        return write_bools(value.as<std::array<bool, 3>>());
      case Type::kText:
        return write_text(value.as<std::string_view>());
      default: // Numbers and the like, whose IValue takes no memory; and an optional text.
        return write_value(boxed(value));
    }
  }

  template <class List, class Function>
  bool write_list(const List& list, Function&& write_one) {
    if (!sink_.put(kList | Word(list.size()) << 32)) {
      return false;
    }
    for (const auto& element : list) {
      if (!write_one(element)) {
        return false;
      }
    }
    return true;
  }

  bool write_none() {
    return sink_.put(kNone);
  }

  bool write_int(int64_t value) {
    return sink_.put(kInt) && sink_.put(Word(value));
  }

  bool write_int(const c10::SymInt& value) {
    std::optional<int64_t> known = value.maybe_as_int();
    return known.has_value() && write_int(*known);
  }

  template <class List>
  bool write_ints(const List& list) {
    return write_list(list, [this](const auto& one) { return write_int(one); });
  }

  bool write_bool(bool value) {
    return sink_.put(kBool | Word(value) << 8);
  }

  template <size_t count>
  bool write_bools(const std::array<bool, count>& list) {
    return write_list(list, [this](bool one) { return write_bool(one); });
  }

  bool write_text(std::string_view text) {
    if (!sink_.put(kString | Word(text.size()) << 32)) {
      return false;
    }
    for (size_t i = 0; i < text.size(); i += sizeof(Word)) {
      Word word = 0;
      std::memcpy(&word, text.data() + i, std::min(sizeof(Word), text.size() - i));
      if (!sink_.put(word)) {
        return false;
      }
    }
    return true;
  }

  template <class List>
  bool write_tensors(const List& list) {
    return write_list(list, [this](const at::Tensor& one) { return write_tensor(one); });
  }

  bool write_tensor(const c10::IValue& value) {
    if (value.isNone()) {
      return write_none();
    }
    return value.isTensor() && write_tensor(value.toTensor());
  }

  // With all that it calls in it: it is most of what a small call's key takes.
  [[gnu::flatten]] bool write_tensor(const at::Tensor& tensor) {
    if (!tensor.defined()) {
      return write_none();
    }
    const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
    at::ScalarType type = c10::typeMetaToScalarType(impl.dtype());
    if (impl.is_wrapped_number()) {
      return sink_.put(kNumber | number_kind(type) << 8);
    }
    // The storage itself: whether there is one is asked by a virtual function otherwise, and where
    // a class says that it has none, it has none.
    if (impl.layout() != at::kStrided || impl.has_symbolic_sizes_strides() ||
        !impl.unsafe_storage()) {
      return false;
    }
    c10::IntArrayRef sizes = impl.sizes();
    Word word = tensor_word(type, sizes.size()) | Word(tensor.is_neg()) << 16 |
        Word(tensor.is_conj()) << 17;
    return sink_.put(word, sizes, impl.strides()) && (!with_device_ || write_place(tensor));
  }

  [[gnu::noinline]] bool write_place(const at::Tensor& tensor) {
    return write_device(tensor.device()) &&
        sink_.put(
            tensor.device().is_cpu() ||
            reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0);
  }

  bool write_value(const c10::IValue& value) {
    if (value.isInt()) {
      return write_int(value.toInt());
    } else if (value.isDouble()) {
      return sink_.put(kFloat) && sink_.put(float_bits(value.toDouble()));
    } else if (value.isBool()) {
      return write_bool(value.toBool());
    } else if (value.isNone()) {
      return write_none();
    } else if (value.isList()) {
      return write_list(
          value.toListRef(), [this](const c10::IValue& one) { return write_value(one); });
    } else if (value.isString()) {
      return write_text(value.toStringRef());
    } else if (value.isComplexDouble()) {
      auto number = value.toComplexDouble();
      return sink_.put(kComplex) && sink_.put(float_bits(number.real())) &&
          sink_.put(float_bits(number.imag()));
    } else if (value.isDevice()) {
      return write_device(value.toDevice());
    }
    return false;
  }

  bool write_device(c10::Device device) {
    return sink_.put(
        kDevice | Word(uint8_t(device.type())) << 8 | Word(uint8_t(device.index())) << 32);
  }

  Sink& sink_;
  bool with_device_;
};

} // namespace aoti_eager
