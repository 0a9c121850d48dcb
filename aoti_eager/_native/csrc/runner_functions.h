// The C functions of runners, a part of `beside_ops.cpp`'s interface; `runner.py` calls them.

#pragma once

#include "guarded.h"
#include "runner_call.h"

#pragma GCC visibility push(default)
extern "C" {

// Before the first runner.
void ae_python_set(const aoti_eager::Python* functions) {
  aoti_eager::python() = *functions;
}

// `wanted` has for each input: the dtype's number, its dimensions, sizes, strides, with -1 for any;
// or it is null, for a library that checks its inputs itself. `cells` are for `Slots`.
aoti_eager::Runner* ae_runner_new(
    const aoti_eager::RunnerLibrary* library, const int64_t* wanted, int64_t* cells) {
  aoti_eager::Runner* runner = nullptr;
  aoti_eager::guarded([&] {
    std::vector<aoti_eager::WantedInput> inputs(wanted != nullptr ? library->inputs : 0);
    for (aoti_eager::WantedInput& one : inputs) {
      one.dtype = static_cast<at::ScalarType>(*wanted++);
      int64_t dimensions = *wanted++;
      one.sizes.assign(wanted, wanted + dimensions);
      one.strides.assign(wanted + dimensions, wanted + 2 * dimensions);
      wanted += 2 * dimensions;
    }
    runner = new aoti_eager::Runner(*library, std::move(inputs), cells);
  });
  return runner;
}

// No run of it may be in flight.
void ae_runner_delete(aoti_eager::Runner* runner) {
  delete runner;
}

// What Python makes its function objects `run` and `boxed_run` of; each is called with two arguments.
const aoti_eager::PythonFunction* ae_runner_function(int32_t boxed) {
  return &aoti_eager::kRunnerFunctions[boxed != 0];
}

int64_t ae_runners_alive() {
  return aoti_eager::Runner::alive();
}

} // extern "C"
#pragma GCC visibility pop
