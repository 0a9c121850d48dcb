// Whether a call's key is a given one.
//
// Most calls of an op in a row have one key, and then nothing is written and nothing is looked up. A
// plain tensor's words are compared where it is read, in registers; `KeyWriter` takes all else.

#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <vector>

#include "key.h"
#include "torch_compat.h"
#include "values.h"
#include "words.h"

namespace aoti_eager {

// Whether an argument is one tensor; true only of those that `tensor_of` can be asked for.
inline bool is_tensor(const Argument&, const TypedValue& value) {
  return value.type == Type::kTensor;
}

inline bool is_tensor(const Argument& argument, const c10::IValue& value) {
  return argument.kind == ArgumentKind::kTensor && value.isTensor();
}

inline const at::Tensor& tensor_of(const TypedValue& value) {
  return value.as<at::Tensor>();
}

inline const at::Tensor& tensor_of(const c10::IValue& value) {
  return value.toTensor();
}

// Whether the words of a call's key are `words`; false if the call has no key. `Values`: values.h.
template <class Values>
[[gnu::always_inline]] inline bool has_key(
    const std::vector<Word>& words, const std::vector<Argument>& arguments, const Values& values,
    bool mutates, bool with_device) {
  using Writer = KeyWriter<Expected>;
  Expected expected(words.data(), words.size());
  const size_t count = arguments.size();
  for (size_t i = 0; i < count; ++i) {
    const auto& value = values[i];
    if (is_tensor(arguments[i], value) && !with_device && PlainTensor::is(tensor_of(value)))
        [[likely]] {
      const PlainTensor& plain = PlainTensor::of(tensor_of(value));
      const size_t dimensions = plain.dimensions();
      const Word word = tensor_word(plain.type(), dimensions);
      if (!expected.put(word, {plain.sizes(), dimensions}, {plain.strides(), dimensions})) {
        return false;
      }
      continue;
    }
    Expected left = expected; // A copy, because what a function is given a pointer to is in memory.
    if (!Writer(left, with_device).write_argument(arguments[i], value)) {
      return false;
    }
    expected = left;
  }
  if (mutates && !expected.put(Writer::overlap(arguments, values))) {
    return false;
  }
  return expected.put(Writer::context()) && expected.is_at_end() && is_precision_told();
}

} // namespace aoti_eager
