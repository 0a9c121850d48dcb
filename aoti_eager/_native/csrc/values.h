// A call's arguments as a typed kernel gets them: C++ values, each with its type as a number, so that
// what reads them is compiled once and not once for each signature.

#pragma once

#include <ATen/core/IListRef.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>
#include <c10/util/OptionalArrayRef.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>

namespace aoti_eager {

// What a schema says of an argument, by the numbers of `_keys/key_words.py`.
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

// By torch's signatures: the type of an argument without reference.
#define AOTI_EAGER_TYPES(type)                                    \
  type(Tensor, at::Tensor)                                        \
  type(OptionalTensor, std::optional<at::Tensor>)                 \
  type(TensorList, at::TensorList)                                \
  type(TensorListRef, at::ITensorListRef)                         \
  type(Scalar, at::Scalar)                                        \
  type(OptionalScalar, std::optional<at::Scalar>)                 \
  type(Int, int64_t)                                              \
  type(OptionalInt, std::optional<int64_t>)                       \
  type(SymInt, c10::SymInt)                                       \
  type(Ints, at::IntArrayRef)                                     \
  type(OptionalInts, at::OptionalIntArrayRef)                     \
  type(SymInts, c10::SymIntArrayRef)                              \
  type(Float, double)                                             \
  type(OptionalFloat, std::optional<double>)                      \
  type(Bool, bool)                                                \
  type(OptionalBool, std::optional<bool>)                         \
  type(TwoBools, std::array<bool COMMA 2>)                        \
  type(ThreeBools, std::array<bool COMMA 3>)                      \
  type(Text, std::string_view)                                    \
  type(OptionalText, std::optional<std::string_view>)             \
  type(Dtype, at::ScalarType)                                     \
  type(OptionalDtype, std::optional<at::ScalarType>)              \
  type(OptionalLayout, std::optional<at::Layout>)                 \
  type(OptionalDevice, std::optional<at::Device>)                 \
  type(OptionalMemoryFormat, std::optional<at::MemoryFormat>)

#define COMMA ,

enum class Type : uint8_t {
#define AOTI_EAGER_TYPE(name, cpp) k##name,
  AOTI_EAGER_TYPES(AOTI_EAGER_TYPE)
#undef AOTI_EAGER_TYPE
};

template <class T>
struct TypeOf; // An argument of another type has no number: its signature gets no typed kernel.

#define AOTI_EAGER_TYPE(name, cpp)                 \
  template <>                                      \
  struct TypeOf<cpp> {                             \
    static constexpr Type value = Type::k##name;   \
  };
AOTI_EAGER_TYPES(AOTI_EAGER_TYPE)
#undef AOTI_EAGER_TYPE

template <class T>
constexpr Type type_of = TypeOf<std::remove_cv_t<std::remove_reference_t<T>>>::value;

// One argument: the value lies where the caller of the kernel has put it.
struct TypedValue {
  Type type;
  const void* place;

  template <class T>
  const T& as() const {
    return *static_cast<const T*>(place);
  }
};

// Returns what the dispatcher would make of the value for a boxed kernel.
inline c10::IValue boxed(const TypedValue& value) {
  switch (value.type) {
#define AOTI_EAGER_TYPE(name, cpp) \
  case Type::k##name:              \
    return c10::IValue(value.as<cpp>());
    AOTI_EAGER_TYPES(AOTI_EAGER_TYPE)
#undef AOTI_EAGER_TYPE
  }
  return {};
}

#undef COMMA
#undef AOTI_EAGER_TYPES

// -- the tensors of one argument; undefined ones and those that are not there are left out --

template <class Function>
void each_tensor(const TypedValue& value, Function&& function) {
  auto one = [&function](const at::Tensor& tensor) {
    if (tensor.defined()) {
      function(tensor);
    }
  };
  switch (value.type) {
    case Type::kTensor:
      return one(value.as<at::Tensor>());
    case Type::kOptionalTensor: {
      const auto& tensor = value.as<std::optional<at::Tensor>>();
      return tensor.has_value() ? one(*tensor) : void();
    }
    case Type::kTensorList:
      for (const at::Tensor& tensor : value.as<at::TensorList>()) {
        one(tensor);
      }
      return;
    case Type::kTensorListRef:
      for (const at::Tensor& tensor : value.as<at::ITensorListRef>()) {
        one(tensor);
      }
      return;
    default:
      return;
  }
}

template <class Function>
void each_tensor(const c10::IValue& value, Function&& function) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) {
      function(value.toTensor());
    }
  } else if (value.isList()) {
    for (const c10::IValue& element : value.toListRef()) {
      if (element.isTensor() && element.toTensor().defined()) {
        function(element.toTensor());
      }
    }
  }
}

// -- calls: what a kernel was given, by the place of an argument --

class BoxedValues {
 public:
  explicit BoxedValues(const c10::IValue* values) : values_(values) {}

  const c10::IValue& operator[](size_t index) const {
    return values_[index];
  }

 private:
  const c10::IValue* values_;
};

class TypedValues {
 public:
  TypedValues(const Type* types, const void* const* places) : types_(types), places_(places) {}

  TypedValue operator[](size_t index) const {
    return {types_[index], places_[index]};
  }

 private:
  const Type* types_;
  const void* const* places_;
};

} // namespace aoti_eager
