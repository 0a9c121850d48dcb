// The C interface of a thin kernel library.
//
// AOTInductor's interface.cpp puts a model container into every library: two megabytes of templates
// and three seconds of compiling, for what a graph without constants does not use. This is the
// same C interface with nothing behind it but the graph's function, so every runner can load it.
// Compiled once for each set of flags; each library defines only what is declared first.

#include <cstdint>
#include <cstring>
#include <exception>

#include <torch/csrc/inductor/aoti_runtime/interface.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

namespace aoti_eager {

// Defined by each library.
extern const char* const input_names[];
extern const char* const output_names[];
extern const size_t num_inputs;
extern const size_t num_outputs;
void run(const AtenTensorHandle* input_handles, AtenTensorHandle* output_handles);

namespace {

// Not a std::string: its destructor would keep the library loaded as long as any thread that ran it.
thread_local char last_error[2048];

// As much of it as there is room for.
void append(const char* text) {
  size_t length = std::strlen(last_error);
  std::strncat(last_error, text, sizeof(last_error) - 1 - length);
}

AOTIRuntimeError failed(const char* message) {
  last_error[0] = 0;
  append(message);
  return AOTI_RUNTIME_FAILURE;
}

AOTIRuntimeError failed_with(const std::exception& error) {
  failed(error.what());
  if (std::strstr(last_error, "API call failed") != nullptr) {
    // The caller of a C function knows only which one failed; torch knows why.
    append(": ");
    append(torch_exception_get_what_without_backtrace());
  }
  return AOTI_RUNTIME_FAILURE;
}

struct NoGrad {
  bool before = aoti_torch_grad_mode_is_enabled();
  NoGrad() {
    aoti_torch_grad_mode_set_enabled(false);
  }
  ~NoGrad() {
    aoti_torch_grad_mode_set_enabled(before);
  }
};

AOTIRuntimeError borrowing_run(const AtenTensorHandle* inputs, AtenTensorHandle* outputs) {
  try {
    run(inputs, outputs);
    return AOTI_RUNTIME_SUCCESS;
  } catch (const std::exception& error) {
    return failed_with(error);
  } catch (...) {
    return failed("unknown exception");
  }
}

// As AOTInductor's interface has it: the inputs are taken over.
AOTIRuntimeError checked_run(AtenTensorHandle* inputs, AtenTensorHandle* outputs) {
  NoGrad no_grad;
  AOTIRuntimeError error = borrowing_run(inputs, outputs);
  for (size_t i = 0; i < num_inputs; ++i) {
    aoti_torch_delete_tensor_object(inputs[i]);
    // Some callers delete each handle that is still there.
    inputs[i] = nullptr;
  }
  return error;
}

AOTIRuntimeError counted_run(
    AtenTensorHandle* inputs, size_t inputs_given, AtenTensorHandle* outputs, size_t outputs_wanted) {
  if (inputs_given != num_inputs || outputs_wanted != num_outputs) {
    return failed("the number of inputs or outputs is wrong");
  }
  return checked_run(inputs, outputs);
}

AOTIRuntimeError no_constants() {
  return failed("the library has no constants");
}

// Handles to nothing: a graph without constants has no state.
char nothing;

} // namespace
} // namespace aoti_eager

extern "C" {

AOTIRuntimeError AOTInductorModelContainerCreateWithDevice(
    AOTInductorModelContainerHandle* handle, size_t num_models, const char* device, const char*) {
  if (num_models == 0) {
    return aoti_eager::failed("num_models must be positive, but got 0");
  }
  if (std::strncmp(device, "cpu", 3) != 0) {
    return aoti_eager::failed("the library is for cpu");
  }
  *handle = reinterpret_cast<AOTInductorModelContainerHandle>(&aoti_eager::nothing);
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerCreate(
    AOTInductorModelContainerHandle* handle, size_t num_models, bool is_cpu, const char* cubin_dir) {
  return AOTInductorModelContainerCreateWithDevice(
      handle, num_models, is_cpu ? "cpu" : "cuda", cubin_dir);
}

// Some functions here are not in every torch's interface.h: a runner that knows a function crashes
// on a library without it, and nobody calls a function that the header lacks.

AOTIRuntimeError AOTInductorModelContainerCreateWithExternalConstants(
    AOTInductorModelContainerHandle* handle, size_t num_models, const char* device,
    const char* cubin_dir, const AOTInductorConstantMapEntry*, size_t) {
  return AOTInductorModelContainerCreateWithDevice(handle, num_models, device, cubin_dir);
}

AOTIRuntimeError AOTInductorModelContainerDidCallLoadConstants(
    AOTInductorModelContainerHandle, bool* did_call) {
  *did_call = true;
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorSetUsePinnedAsyncConstantsCopy(bool) {
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorSetPinnedAsyncConstantsCopyStageBufferBytes(size_t) {
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerDelete(AOTInductorModelContainerHandle) {
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerRun(
    AOTInductorModelContainerHandle, AtenTensorHandle* inputs, size_t inputs_given,
    AtenTensorHandle* outputs, size_t outputs_wanted, AOTInductorStreamHandle,
    AOTIProxyExecutorHandle) {
  return aoti_eager::counted_run(inputs, inputs_given, outputs, outputs_wanted);
}

AOTIRuntimeError AOTInductorModelContainerRunSingleThreaded(
    AOTInductorModelContainerHandle, AtenTensorHandle* inputs, size_t inputs_given,
    AtenTensorHandle* outputs, size_t outputs_wanted, AOTInductorStreamHandle,
    AOTIProxyExecutorHandle) {
  return aoti_eager::counted_run(inputs, inputs_given, outputs, outputs_wanted);
}

AOTIRuntimeError AOTInductorModelContainerGetNumInputs(
    AOTInductorModelContainerHandle, size_t* count) {
  *count = aoti_eager::num_inputs;
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerGetInputName(
    AOTInductorModelContainerHandle, size_t index, const char** name) {
  if (index >= aoti_eager::num_inputs) {
    return aoti_eager::failed("there is no such input");
  }
  *name = aoti_eager::input_names[index];
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerGetNumOutputs(
    AOTInductorModelContainerHandle, size_t* count) {
  *count = aoti_eager::num_outputs;
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerGetOutputName(
    AOTInductorModelContainerHandle, size_t index, const char** name) {
  if (index >= aoti_eager::num_outputs) {
    return aoti_eager::failed("there is no such output");
  }
  *name = aoti_eager::output_names[index];
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerGetCallSpec(
    AOTInductorModelContainerHandle, const char** in_spec, const char** out_spec) {
  *in_spec = *out_spec = "";
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerGetNumConstants(
    AOTInductorModelContainerHandle, size_t* count) {
  *count = 0;
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerGetConstantName(
    AOTInductorModelContainerHandle, size_t, const char**) {
  return aoti_eager::no_constants();
}

AOTIRuntimeError AOTInductorModelContainerGetConstantOriginalFQN(
    AOTInductorModelContainerHandle, size_t, const char**) {
  return aoti_eager::no_constants();
}

AOTIRuntimeError AOTInductorModelContainerGetConstantFromFolded(
    AOTInductorModelContainerHandle, size_t, bool*) {
  return aoti_eager::no_constants();
}

AOTIRuntimeError AOTInductorModelContainerGetConstantType(
    AOTInductorModelContainerHandle, size_t, int32_t*) {
  return aoti_eager::no_constants();
}

AOTIRuntimeError AOTInductorModelContainerGetConstantDtype(
    AOTInductorModelContainerHandle, size_t, int32_t*) {
  return aoti_eager::no_constants();
}

AOTIRuntimeError AOTInductorModelContainerGetConstantDataSize(
    AOTInductorModelContainerHandle, size_t, size_t*) {
  return aoti_eager::no_constants();
}

AOTIRuntimeError AOTInductorModelContainerExtractConstantsMap(
    AOTInductorModelContainerHandle, AOTInductorConstantMapHandle, bool) {
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerExtractConstantsMapEntries(
    AOTInductorModelContainerHandle, const AOTInductorConstantMapEntry** entries, size_t* count,
    bool) {
  *entries = nullptr;
  *count = 0;
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerUpdateUserManagedConstantBuffer(
    AOTInductorModelContainerHandle, AOTInductorConstantMapHandle, bool, bool) {
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerUpdateUserManagedConstantBufferPairs(
    AOTInductorModelContainerHandle, const AOTInductorConstantMapEntry*, size_t, bool, bool) {
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerUpdateConstantBuffer(
    AOTInductorModelContainerHandle, AOTInductorConstantMapHandle, bool, bool) {
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerUpdateConstantBufferPairs(
    AOTInductorModelContainerHandle, const AOTInductorConstantMapEntry*, size_t, bool, bool) {
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerUpdateConstantBufferFromCpu(
    AOTInductorModelContainerHandle, AOTInductorConstantMapHandle, bool, bool) {
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerUpdateConstantBufferFromCpuPairs(
    AOTInductorModelContainerHandle, const AOTInductorConstantMapEntry*, size_t, bool, bool) {
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerUpdateInactiveConstantBuffer(
    AOTInductorModelContainerHandle, AOTInductorConstantMapHandle) {
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerUpdateInactiveConstantBufferPairs(
    AOTInductorModelContainerHandle, const AOTInductorConstantMapEntry*, size_t) {
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerFreeInactiveConstantBuffer(
    AOTInductorModelContainerHandle) {
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerRunConstantFolding(
    AOTInductorModelContainerHandle, bool, AOTInductorStreamHandle, AOTIProxyExecutorHandle) {
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerSwapConstantBuffer(AOTInductorModelContainerHandle) {
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelContainerGetConstantsBlobSize(
    AOTInductorModelContainerHandle, uint64_t*) {
  return aoti_eager::no_constants();
}

AOTIRuntimeError AOTInductorModelUpdateConstantsFromBlob(
    AOTInductorModelContainerHandle, const uint8_t*) {
  return aoti_eager::no_constants();
}

AOTIRuntimeError AOTInductorModelCreateV2(
    AOTInductorModelHandle* handle, const AOTInductorConstantMapEntry*, size_t) {
  *handle = reinterpret_cast<AOTInductorModelHandle>(&aoti_eager::nothing);
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelCreate(
    AOTInductorModelHandle* handle, AOTInductorConstantMapHandle) {
  return AOTInductorModelCreateV2(handle, nullptr, 0);
}

AOTIRuntimeError AOTInductorModelRun(
    AOTInductorModelHandle, AtenTensorHandle* inputs, AtenTensorHandle* outputs) {
  return aoti_eager::checked_run(inputs, outputs);
}

AOTIRuntimeError AOTInductorModelDelete(AOTInductorModelHandle) {
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelGetNumOutputs(AOTInductorModelHandle, size_t* count) {
  *count = aoti_eager::num_outputs;
  return AOTI_RUNTIME_SUCCESS;
}

// For the hit path: no state, no locks, no gradient mode, and the inputs stay the caller's.
AOTIRuntimeError aoti_eager_run(const AtenTensorHandle* inputs, AtenTensorHandle* outputs) {
  return aoti_eager::borrowing_run(inputs, outputs);
}

AOTIRuntimeError AOTInductorModelUpdateConstantsMap(
    AOTInductorModelHandle, AOTInductorConstantMapHandle) {
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorModelUpdateConstantsMapV2(
    AOTInductorModelHandle, const AOTInductorConstantMapEntry*, int32_t) {
  return AOTI_RUNTIME_SUCCESS;
}

AOTIRuntimeError AOTInductorGetLastError(const char** message) {
  *message = aoti_eager::last_error;
  return AOTI_RUNTIME_SUCCESS;
}

} // extern "C"
