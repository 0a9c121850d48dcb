// The part of the C interface that no kernel of an op needs: gradients, recordings, runners, the state
// of a thread. It is compiled beside `native.cpp`, on another core.

#include "intrinsics.h"

#include "gradient.h"
#include "interface.h"
#include "recorder_functions.h"
#include "runner_functions.h"
#include "thread_state.h"

namespace aoti_eager {

int64_t autograd_kernels_alive() {
  return AutogradKernel::alive();
}

} // namespace aoti_eager

using namespace aoti_eager;

#pragma GCC visibility push(default)
extern "C" {

// -- gradients --

// `backward` and `function` are the qualified names of the op of the gradient, and of one that runs
// the op's function; `results` is the number of tensors that the op returns.
AutogradKernel* ae_autograd_new(
    const char* name, const char* overload, const char* backward, const char* function,
    const uint8_t* kinds, const uint8_t* mutated, size_t count, size_t results,
    int32_t decomposes) {
  AutogradKernel* kernel = nullptr;
  guarded([&] {
    auto& dispatcher = c10::Dispatcher::singleton();
    kernel = new AutogradKernel(
        dispatcher.findSchemaOrThrow(name, overload), dispatcher.findSchemaOrThrow(backward, ""),
        dispatcher.findSchemaOrThrow(function, ""), arguments_of(kinds, mutated, count), results,
        decomposes != 0);
  });
  return kernel;
}

int32_t ae_autograd_install(AutogradKernel* kernel) {
  return guarded([kernel] { kernel->install(); }) ? 0 : 1;
}

// No call of the op may run.
void ae_autograd_uninstall(AutogradKernel* kernel) {
  guarded([kernel] { kernel->uninstall(); });
}

void ae_autograd_delete(AutogradKernel* kernel) {
  retire(kernel);
}

// `layouts` has for each result: whether it is differentiable, its dimensions, sizes, strides.
void ae_autograd_put(
    AutogradKernel* kernel, const Word* words, size_t count, const int64_t* layouts) {
  guarded([&] {
    std::vector<ResultLayout> results(kernel->results());
    for (ResultLayout& one : results) {
      one.differentiable = *layouts++ != 0;
      int64_t dimensions = *layouts++;
      one.sizes.assign(layouts, layouts + dimensions);
      one.strides.assign(layouts + dimensions, layouts + 2 * dimensions);
      layouts += 2 * dimensions;
    }
    kernel->put(words, count, std::move(results));
  });
}

// How many nodes of autograd's there are that call the backward op yet.
int64_t ae_autograd_nodes(const AutogradKernel* kernel) {
  return kernel->nodes();
}

void ae_autograd_put_decline(AutogradKernel* kernel, const Word* words, size_t count) {
  guarded([&] { kernel->put_decline(words, count); });
}

void ae_autograd_clear(AutogradKernel* kernel) {
  guarded([kernel] { kernel->clear(); });
}

} // extern "C"
#pragma GCC visibility pop
