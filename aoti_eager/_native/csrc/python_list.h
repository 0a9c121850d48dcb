// Python's lists, numbers and functions, without Python's headers: one build serves every Python.
//
// The functions are of Python's stable interface, and Python gives their addresses. A tensor's place
// in its Python object is not stable: `_base/torch_compat/python_tensors.py` finds it, and checks it
// on live tensors. The caller holds the GIL.

#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <utility>

namespace aoti_eager {

struct PythonObject; // never looked into but at the two places below

// By `_PythonStruct` of runner.py, in the same order.
struct Python {
  ptrdiff_t (*list_size)(PythonObject*) = nullptr;
  PythonObject* (*list_item)(PythonObject*, ptrdiff_t) = nullptr; // stays the list's
  PythonObject* (*list_new)(ptrdiff_t) = nullptr;
  int (*list_append)(PythonObject*, PythonObject*) = nullptr;
  int (*list_set_slice)(PythonObject*, ptrdiff_t, ptrdiff_t, PythonObject*) = nullptr;
  void* (*number_as_pointer)(PythonObject*) = nullptr;
  PythonObject* (*exception_set)() = nullptr; // stays Python's
  void (*set_exception)(PythonObject*, const char*) = nullptr;
  void (*keep)(PythonObject*) = nullptr; // Py_IncRef
  void (*give_up)(PythonObject*) = nullptr; // Py_DecRef
  void* (*release_gil)() = nullptr;
  void (*take_gil)(void*) = nullptr;
  PythonObject* (*wrap)(at::TensorBase&&) = nullptr; // torch's; a new reference
  PythonObject* none = nullptr;
  PythonObject* is_false = nullptr;
  PythonObject* is_true = nullptr;
  PythonObject* runtime_error = nullptr;
  const void* plain_types[2] = {nullptr, nullptr}; // torch.Tensor and torch.nn.Parameter
  size_t type_offset = 0; // in any object: the address of its type
  size_t tensor_offset = 0; // in an object of a plain type: its at::Tensor
};

// Python's `PyMethodDef`: a function that Python calls with an array of arguments.
struct PythonFunction {
  static constexpr int kFastCall = 0x80;

  const char* name;
  PythonObject* (*call)(PythonObject* self, PythonObject* const* arguments, ptrdiff_t count);
  int flags;
  const char* doc;
};

inline Python& python() {
  static Python functions;
  return functions;
}

class PythonList {
 public:
  explicit PythonList(PythonObject* list) : list_(list) {}

  size_t size() const {
    return static_cast<size_t>(python().list_size(list_));
  }

  // Returns the tensor at an index; null if it is no tensor, or one of a class of its own. It is
  // valid as long as the list is left alone.
  const at::Tensor* tensor(size_t index) const {
    const Python& of = python();
    auto* item = reinterpret_cast<const char*>(of.list_item(list_, static_cast<ptrdiff_t>(index)));
    const void* type = *reinterpret_cast<const void* const*>(item + of.type_offset);
    if (type != of.plain_types[0] && type != of.plain_types[1]) {
      return nullptr;
    }
    return reinterpret_cast<const at::Tensor*>(item + of.tensor_offset);
  }

  // False with a Python exception set.
  bool append(at::Tensor tensor) const {
    PythonObject* object = python().wrap(std::move(tensor));
    if (object == nullptr) {
      return false;
    }
    bool done = python().list_append(list_, object) == 0;
    python().give_up(object);
    return done;
  }

  PythonObject* object() const {
    return list_;
  }

  // Runs what Python has to run when the last reference to an object goes.
  void clear() const {
    python().list_set_slice(list_, 0, python().list_size(list_), nullptr);
  }

 private:
  PythonObject* list_;
};

} // namespace aoti_eager
