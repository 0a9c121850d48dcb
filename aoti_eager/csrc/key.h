// The key of a call, read from the dispatcher's stack or from C++ values.
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

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "float_mode.h"
#include "table.h"
#include "torch_compat.h"
#include "values.h"

namespace aoti_eager {

// The words of one key; longer ones are on the heap. Nothing is cleared before it is written.
class Words {
 public:
  Words() : begin_(inline_), end_(inline_), limit_(inline_ + kInline) {}
  Words(const Words&) = delete;
  Words& operator=(const Words&) = delete;

  // Returns where the next `count` words are to be written.
  [[gnu::always_inline]] Word* more(size_t count) {
    if (static_cast<size_t>(limit_ - end_) < count) [[unlikely]] {
      grow(count);
    }
    Word* place = end_;
    end_ += count;
    return place;
  }
  [[gnu::always_inline]] void push_back(Word word) {
    *more(1) = word;
  }

  const Word* begin() const {
    return begin_;
  }
  const Word* end() const {
    return end_;
  }
  const Word* data() const {
    return begin_;
  }
  size_t size() const {
    return end_ - begin_;
  }

 private:
  static constexpr size_t kInline = 96;

  [[gnu::noinline]] void grow(size_t count) {
    size_t used = size();
    size_t room = 2 * (used + count);
    std::unique_ptr<Word[]> larger(new Word[room]);
    std::copy(begin_, end_, larger.get());
    heap_ = std::move(larger);
    begin_ = heap_.get();
    end_ = begin_ + used;
    limit_ = begin_ + room;
  }

  Word* begin_;
  Word* end_;
  Word* limit_;
  std::unique_ptr<Word[]> heap_;
  Word inline_[kInline];
};

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

  bool is_tensor() const {
    return kind == ArgumentKind::kTensor || kind == ArgumentKind::kTensors;
  }
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

  // Writes the key of a call; false if it has none. `Values`: see values.h.
  template <class Values>
  bool write(const std::vector<Argument>& arguments, const Values& values, bool mutates) {
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
          return write_none();
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

  bool write_argument(const Argument& argument, const TypedValue& value) {
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
      default: // Numbers and the like, whose IValue takes no memory.
        return write_value(boxed(value));
    }
  }

  bool write_none() {
    words_.push_back(kNone);
    return true;
  }

  bool write_int(int64_t value) {
    words_.push_back(kInt);
    words_.push_back(Word(value));
    return true;
  }

  bool write_int(const c10::SymInt& value) {
    std::optional<int64_t> known = value.maybe_as_int();
    return known.has_value() && write_int(*known);
  }

  template <class List>
  bool write_ints(const List& list) {
    words_.push_back(kList | Word(list.size()) << 32);
    for (const auto& element : list) {
      if (!write_int(element)) {
        return false;
      }
    }
    return true;
  }

  bool write_bool(bool value) {
    words_.push_back(kBool | Word(value) << 8);
    return true;
  }

  template <size_t count>
  bool write_bools(const std::array<bool, count>& list) {
    words_.push_back(kList | Word(count) << 32);
    for (bool element : list) {
      write_bool(element);
    }
    return true;
  }

  bool write_text(std::string_view text) {
    words_.push_back(kString | Word(text.size()) << 32);
    size_t count = (text.size() + sizeof(Word) - 1) / sizeof(Word);
    Word* place = words_.more(count);
    std::fill_n(place, count, 0);
    std::memcpy(place, text.data(), text.size());
    return true;
  }

  template <class List>
  bool write_tensors(const List& list) {
    words_.push_back(kList | Word(list.size()) << 32);
    for (const at::Tensor& tensor : list) {
      if (!write_tensor(tensor)) {
        return false;
      }
    }
    return true;
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
      words_.push_back(kNumber | number_kind(type) << 8);
      return true;
    }
    // The storage itself: whether there is one is asked by a virtual function otherwise, and where
    // a class says that it has none, it has none.
    if (impl.layout() != at::kStrided || impl.has_symbolic_sizes_strides() ||
        !impl.unsafe_storage()) {
      return false;
    }
    c10::IntArrayRef sizes = impl.sizes();
    c10::IntArrayRef strides = impl.strides();
    const size_t dimensions = sizes.size();
    Word* word = words_.more(1 + 2 * dimensions);
    *word++ = kTensor | Word(type) << 8 | Word(tensor.is_neg()) << 16 |
        Word(tensor.is_conj()) << 17 | Word(dimensions) << 32;
    for (size_t i = 0; i < dimensions; ++i) {
      word[i] = Word(sizes[i]);
      word[dimensions + i] = Word(strides[i]);
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
      return write_int(value.toInt());
    } else if (value.isDouble()) {
      words_.push_back(kFloat);
      words_.push_back(float_bits(value.toDouble()));
    } else if (value.isBool()) {
      return write_bool(value.toBool());
    } else if (value.isNone()) {
      return write_none();
    } else if (value.isList()) {
      auto elements = value.toListRef();
      words_.push_back(kList | Word(elements.size()) << 32);
      for (const c10::IValue& element : elements) {
        if (!write_value(element)) {
          return false;
        }
      }
    } else if (value.isString()) {
      return write_text(value.toStringRef());
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
  template <class Values>
  static bool mutation_overlaps(const std::vector<Argument>& arguments, const Values& values) {
    c10::SmallVector<std::pair<uintptr_t, uintptr_t>, 8> mutated;
    c10::SmallVector<std::pair<uintptr_t, uintptr_t>, 8> others;
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (!arguments[i].is_tensor()) {
        continue;
      }
      auto& ranges = arguments[i].mutated ? mutated : others;
      each_tensor(values[i], [&ranges](const at::Tensor& tensor) {
        ranges.push_back(memory_range(tensor));
      });
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
