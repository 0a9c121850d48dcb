// What a thread is in the middle of, in one call from Python: whether a region's call is plain.

#pragma once

#include <c10/core/GradMode.h>

#include "python_list.h"
#include "recorder.h"
#include "torch_compat.h"

namespace aoti_eager {
namespace {

// None if this thread records, traces, autocasts, differentiates forward, or is under a mode of
// torch's or functorch's; else whether gradients are switched off.
inline PythonObject* thread_state(PythonObject*, PythonObject* const*, ptrdiff_t) {
  const Python& of = python();
  PythonObject* found = of.none;
  if (current_recording() == nullptr && is_plain_eager()) [[likely]] {
    found = c10::GradMode::is_enabled() ? of.is_false : of.is_true;
  }
  of.keep(found);
  return found;
}

constexpr PythonFunction kThreadState = {
    "thread_state", thread_state, PythonFunction::kFastCall, nullptr};

} // namespace
} // namespace aoti_eager

#pragma GCC visibility push(default)
extern "C" {

// What Python makes its function object `thread_state` of; it is called without arguments.
const aoti_eager::PythonFunction* ae_thread_state_function() {
  return &aoti_eager::kThreadState;
}

} // extern "C"
#pragma GCC visibility pop
