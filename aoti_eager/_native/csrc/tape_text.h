// Values of a tape as JSON text, for `recorder.py`.
//
//   null, true, 3, "text", [1, 2]     None, bool, int, str, lists
//   {"t": 4}                          the tensor with that number
//   {"f": "0x1.8p+0"}                 a float, exact, with its sign and NaN
//   {"c": ["0x1p+0", "-0x0p+0"]}      a complex number
//   {"dtype": "float32"}, {"layout": 0}, {"memory_format": 1}, {"device": "cpu"}
//   {"other": "Generator"}            what has no text: the name of its type

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/jit_type.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace aoti_eager {
namespace {

void write_none(std::string& text) {
  text += "null";
}

void write_text(std::string& text, std::string_view value) {
  text += '"';
  for (char one : value) {
    if (one == '"' || one == '\\') {
      text += '\\';
      text += one;
    } else if (static_cast<unsigned char>(one) < 0x20) {
      char escaped[8];
      std::snprintf(escaped, sizeof(escaped), "\\u%04x", one);
      text += escaped;
    } else {
      text += one;
    }
  }
  text += '"';
}

template <class Ints>
void write_ints(std::string& text, const Ints& values) {
  text += "[";
  for (const auto& value : values) {
    text += (&value == &*values.begin() ? "" : ",") + std::to_string(value);
  }
  text += "]";
}

void write_hex(std::string& text, double value) {
  char digits[40];
  std::snprintf(digits, sizeof(digits), "\"%a\"", value);
  text += digits;
}

void write_number(std::string& text, double value) {
  text += "{\"f\":";
  write_hex(text, value);
  text += "}";
}

void write_number(std::string& text, c10::complex<double> value) {
  text += "{\"c\":[";
  write_hex(text, value.real());
  text += ",";
  write_hex(text, value.imag());
  text += "]}";
}

void write_number(std::string& text, int64_t value) {
  text += std::to_string(value);
}

void write_number(std::string& text, bool value) {
  text += value ? "true" : "false";
}

void write_kind(std::string& text, const char* kind, std::string_view value) {
  text += "{\"" + std::string(kind) + "\":";
  write_text(text, value);
  text += "}";
}

// Three types of the schema's are ints in a box.
void write_int(std::string& text, int64_t value, const c10::Type& type) {
  switch (type.kind()) {
    case c10::TypeKind::ScalarTypeType:
      return write_kind(
          text, "dtype", c10::getDtypeNames(static_cast<c10::ScalarType>(value)).first);
    case c10::TypeKind::LayoutType:
      text += "{\"layout\":" + std::to_string(value) + "}";
      return;
    case c10::TypeKind::MemoryFormatType:
      text += "{\"memory_format\":" + std::to_string(value) + "}";
      return;
    default:
      write_number(text, value);
  }
}

// Writes one value; `number_of` gives the number of a tensor.
template <class NumberOf>
void write_value(
    std::string& text, const c10::IValue& value, const c10::Type& type, NumberOf& number_of) {
  if (value.isTensor()) {
    const at::Tensor& tensor = value.toTensor();
    if (!tensor.defined()) {
      return write_none(text);
    }
    text += "{\"t\":" + std::to_string(number_of(tensor)) + "}";
  } else if (value.isNone()) {
    write_none(text);
  } else if (value.isBool()) {
    write_number(text, value.toBool());
  } else if (value.isInt()) {
    auto optional = type.castRaw<c10::OptionalType>();
    write_int(text, value.toInt(), optional != nullptr ? *optional->getElementType() : type);
  } else if (value.isDouble()) {
    write_number(text, value.toDouble());
  } else if (value.isComplexDouble()) {
    write_number(text, value.toComplexDouble());
  } else if (value.isString()) {
    write_text(text, value.toStringView());
  } else if (value.isDevice()) {
    write_kind(text, "device", value.toDevice().str());
  } else if (value.isList()) {
    auto values = value.toListRef();
    text += "[";
    for (const c10::IValue& one : values) {
      text += &one == values.data() ? "" : ",";
      write_value(text, one, *c10::AnyType::get(), number_of);
    }
    text += "]";
  } else {
    write_kind(text, "other", value.tagKind());
  }
}

template <class T, class As>
std::string elements_text(const at::Tensor& tensor, bool only) {
  std::string text = only ? "" : "[";
  const T* data = tensor.const_data_ptr<T>();
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    int64_t place = 0;
    int64_t left = i;
    for (int64_t dim = tensor.dim() - 1; dim >= 0; --dim) {
      place += left % tensor.size(dim) * tensor.stride(dim);
      left /= tensor.size(dim);
    }
    text += i == 0 ? "" : ",";
    write_number(text, static_cast<As>(data[place]));
  }
  return only ? text : text + "]";
}

// Returns the values of a small tensor in memory as a list, or with `only` its one value; else an
// empty text.
inline std::string data_text(const at::Tensor& tensor, bool only = false) {
  static constexpr int64_t kMost = 64;
  if (tensor.unsafeGetTensorImpl()->is_python_dispatch() || !tensor.device().is_cpu() ||
      tensor.layout() != c10::kStrided || tensor.is_conj() || tensor.is_neg() ||
      tensor.numel() > kMost || (tensor.numel() != 0 && tensor.const_data_ptr() == nullptr)) {
    return "";
  }
  switch (tensor.scalar_type()) {
    case c10::ScalarType::Bool:
      return elements_text<bool, bool>(tensor, only);
    case c10::ScalarType::Byte:
      return elements_text<uint8_t, int64_t>(tensor, only);
    case c10::ScalarType::Char:
      return elements_text<int8_t, int64_t>(tensor, only);
    case c10::ScalarType::Short:
      return elements_text<int16_t, int64_t>(tensor, only);
    case c10::ScalarType::Int:
      return elements_text<int32_t, int64_t>(tensor, only);
    case c10::ScalarType::Long:
      return elements_text<int64_t, int64_t>(tensor, only);
    case c10::ScalarType::Half:
      return elements_text<c10::Half, double>(tensor, only);
    case c10::ScalarType::BFloat16:
      return elements_text<c10::BFloat16, double>(tensor, only);
    case c10::ScalarType::Float:
      return elements_text<float, double>(tensor, only);
    case c10::ScalarType::Double:
      return elements_text<double, double>(tensor, only);
    case c10::ScalarType::ComplexFloat:
      return elements_text<c10::complex<float>, c10::complex<double>>(tensor, only);
    case c10::ScalarType::ComplexDouble:
      return elements_text<c10::complex<double>, c10::complex<double>>(tensor, only);
    default:
      return "";
  }
}

} // namespace
} // namespace aoti_eager
