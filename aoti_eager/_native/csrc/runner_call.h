// One run of a runner, as Python calls it: a function object with the inputs in a list.
//
//   no instance for C++, or an input that is not plain -> None: nothing ran, and Python does
//   the library raised                                 -> False, and its message for `ae_last_error`
//   else                                               -> the list of outputs

#pragma once

#include <new>

#include "guarded.h"
#include "runner.h"

namespace aoti_eager {
namespace {

inline PythonObject* kept(PythonObject* object) {
  python().keep(object);
  return object;
}

// Moves the inputs that the library refused back into the caller's list, if they are `boxed`, and
// frees their handles; false with a Python exception set.
inline bool give_back(Runner::Tensors& tensors, const PythonList& inputs, bool boxed) {
  bool done = true;
  for (AtenTensorHandle handle : tensors.inputs) {
    auto* tensor = reinterpret_cast<at::Tensor*>(handle);
    done = done && (!boxed || inputs.append(*tensor));
    delete tensor;
  }
  return done;
}

// Returns a new list of the outputs; null if it cannot be made.
inline PythonObject* list_of(Outputs& outputs) {
  PythonObject* list = python().list_new(0);
  if (list == nullptr) {
    return nullptr;
  }
  bool done = true;
  bool has_ended = guarded([&] {
    for (size_t i = 0; done && i < outputs.size(); ++i) {
      done = PythonList(list).append(outputs.take(i));
    }
  });
  if (done && has_ended) [[likely]] {
    return list;
  }
  python().give_up(list);
  return nullptr;
}

inline PythonObject* result_of(
    Runner::State state, Runner::Tensors& tensors, const PythonList& inputs, bool boxed) {
  const Python& of = python();
  if (state == Runner::State::kDone) [[likely]] {
    if (PythonObject* list = list_of(tensors.outputs)) {
      return list;
    }
  } else {
    bool done = true;
    if (state == Runner::State::kFailed ||
        (guarded([&] { done = give_back(tensors, inputs, boxed); }) && done)) {
      return kept(of.is_false);
    }
  }
  if (of.exception_set() == nullptr) {
    of.set_exception(of.runtime_error, last_error().c_str());
  }
  return nullptr;
}

// `self` is the runner's address as a number; the arguments are the list of inputs and the stream's
// address. With `boxed`, the list is emptied before the library runs.
template <bool boxed>
PythonObject* call_runner(PythonObject* self, PythonObject* const* arguments, ptrdiff_t) {
  const Python& of = python();
  auto* runner = static_cast<Runner*>(of.number_as_pointer(self));
  size_t instance = runner->slots.find_free();
  if (instance == runner->slots.size()) {
    return kept(of.none);
  }
  PythonList inputs(arguments[0]);
  void* stream = of.number_as_pointer(arguments[1]);
  // Not destroyed by itself: while Python ends, the system ends this thread where it asks for the
  // GIL, and nothing of it may be freed then.
  alignas(Runner::Tensors) unsigned char place[sizeof(Runner::Tensors)];
  auto* tensors = new (place) Runner::Tensors(runner->outputs());
  bool is_taken = false;
  guarded([&] { is_taken = runner->take(inputs, boxed, *tensors); });
  if (!is_taken) {
    tensors->~Tensors();
    return kept(of.none);
  }
  runner->slots.take(instance);
  if constexpr (boxed) {
    inputs.clear(); // May run other code of Python's: the instance is ours by now.
  }
  auto state = Runner::State::kFailed;
  void* thread = of.release_gil();
  guarded([&] { state = runner->run(instance, *tensors, stream, last_error()); });
  of.take_gil(thread);
  runner->slots.give_back(instance);
  PythonObject* result = result_of(state, *tensors, inputs, boxed);
  tensors->~Tensors();
  return result;
}

constexpr PythonFunction kRunnerFunctions[] = {
    {"run", call_runner<false>, PythonFunction::kFastCall, nullptr},
    {"boxed_run", call_runner<true>, PythonFunction::kFastCall, nullptr},
};

} // namespace
} // namespace aoti_eager
