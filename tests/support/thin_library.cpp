// A thin kernel library, written by hand: a model without a container, for our ModelContainer.
//
// Besides computing, its runs say when they were, and can wait, spin and fail, so that tests see
// what happens at the same time. It counts what is alive.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <string>
#include <thread>
#include <unordered_map>

#define EXPORT extern "C" __attribute__((visibility("default")))

// Defined in the same file in torch, with the same layout.
struct AOTInductorConstantMapEntry {
  const char* name;
  AtenTensorHandle handle;
};

// sizes and strides: null is what the code does not depend on.
EXPORT const char aoti_eager_manifest[];
const char aoti_eager_manifest[] = R"json({
  "inputs": [
    {"name": "x", "dtype": "float32", "sizes": [null, 16], "strides": [16, 1]},
    {"name": "milliseconds", "dtype": "float64", "sizes": [], "strides": []},
    {"name": "gate", "dtype": "int32", "sizes": [2], "strides": [1]}
  ],
  "outputs": ["scaled", "shifted", "span"],
  "constants": [
    {"name": "layer_scale", "fqn": "layer.scale", "dtype": "float32", "sizes": [16],
     "strides": [1], "kind": "parameter"},
    {"name": "layer_shift", "fqn": "layer.shift", "dtype": "float32", "sizes": [16],
     "strides": [1], "kind": "buffer"}
  ],
  "call_spec": ["in", "out"]
})json";

// For tests to read.
EXPORT std::atomic<int32_t> thin_live_models;
EXPORT std::atomic<int32_t> thin_live_constants;
std::atomic<int32_t> thin_live_models{0};
std::atomic<int32_t> thin_live_constants{0};
// For tests to set: the n-th call from now fails; 0 for none.
EXPORT std::atomic<int32_t> thin_fail_create;
EXPORT std::atomic<int32_t> thin_fail_update;
std::atomic<int32_t> thin_fail_create{0};
std::atomic<int32_t> thin_fail_update{0};

namespace {

constexpr int64_t kColumns = 16;
constexpr std::chrono::seconds kLongestWait{60};

#ifdef IMPORTS_CUDA
// What makes it a library for CUDA, as far as its headers tell.
extern "C" int cudaMalloc(void**, size_t);
EXPORT int thin_calls_cuda();
int thin_calls_cuda() {
  return cudaMalloc(nullptr, 0);
}
#endif

thread_local std::string last_error;

int32_t fail(const std::string& message) {
  last_error = message;
  return 1;
}

bool counts_down_to_zero(std::atomic<int32_t>& countdown) {
  return countdown.load() > 0 && countdown.fetch_sub(1) == 1;
}

class Tensor {
 public:
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {}
  Tensor(const Tensor&) = delete;
  ~Tensor() {
    if (handle_ != nullptr) {
      aoti_torch_delete_tensor_object(handle_);
    }
  }
  template <typename T>
  T* data() const {
    void* pointer = nullptr;
    aoti_torch_get_data_ptr(handle_, &pointer);
    return static_cast<T*>(pointer);
  }
  int64_t rows() const {
    int64_t rows = 0;
    aoti_torch_get_size(handle_, 0, &rows);
    return rows;
  }
  AtenTensorHandle release() {
    AtenTensorHandle handle = handle_;
    handle_ = nullptr;
    return handle;
  }

 private:
  AtenTensorHandle handle_;
};

Tensor empty(int64_t ndim, const int64_t* sizes, const int64_t* strides, int32_t dtype) {
  AtenTensorHandle handle = nullptr;
  aoti_torch_empty_strided(
      ndim, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &handle);
  return Tensor(handle);
}

struct Model {
  std::unordered_map<std::string, AtenTensorHandle> constants;

  Model() {
    ++thin_live_models;
  }
  ~Model() {
    clear();
    --thin_live_models;
  }
  void clear() {
    for (auto& constant : constants) {
      aoti_torch_delete_tensor_object(constant.second);
      --thin_live_constants;
    }
    constants.clear();
  }
  const float* constant(const char* name) const {
    auto found = constants.find(name);
    void* pointer = nullptr;
    if (found != constants.end()) {
      aoti_torch_get_data_ptr(found->second, &pointer);
    }
    return static_cast<const float*>(pointer);
  }
};

// As in AOTInductor's libraries: a run's results never need gradients.
struct NoGrad {
  bool before = aoti_torch_grad_mode_is_enabled();
  NoGrad() {
    aoti_torch_grad_mode_set_enabled(false);
  }
  ~NoGrad() {
    aoti_torch_grad_mode_set_enabled(before);
  }
};

int64_t now() {
  return std::chrono::steady_clock::now().time_since_epoch().count();
}

// Tell that the run has begun, and wait until it may end.
bool pass(int32_t* gate) {
  __atomic_store_n(&gate[0], 1, __ATOMIC_RELEASE);
  const auto end = std::chrono::steady_clock::now() + kLongestWait;
  while (__atomic_load_n(&gate[1], __ATOMIC_ACQUIRE) == 0) {
    if (std::chrono::steady_clock::now() > end) {
      return false;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  return true;
}

} // namespace

EXPORT int32_t AOTInductorGetLastError(const char** message) {
  *message = last_error.c_str();
  return 0;
}

EXPORT int32_t
AOTInductorModelCreateV2(Model** model, const AOTInductorConstantMapEntry*, size_t) {
  if (counts_down_to_zero(thin_fail_create)) {
    return fail("no more models today");
  }
  *model = new Model();
  return 0;
}

EXPORT int32_t AOTInductorModelDelete(Model* model) {
  delete model;
  return 0;
}

// Takes the handles over.
EXPORT int32_t AOTInductorModelUpdateConstantsMapV2(
    Model* model,
    const AOTInductorConstantMapEntry* pairs,
    int32_t num_pairs) {
  if (counts_down_to_zero(thin_fail_update)) {
    for (int32_t i = 0; i < num_pairs; ++i) {
      Tensor(pairs[i].handle);
    }
    return fail("no more constants today");
  }
  model->clear();
  for (int32_t i = 0; i < num_pairs; ++i) {
    model->constants[pairs[i].name] = pairs[i].handle;
    ++thin_live_constants;
  }
  return 0;
}

// Takes the inputs over, also when it fails.
EXPORT int32_t
AOTInductorModelRun(Model* model, AtenTensorHandle* inputs, AtenTensorHandle* outputs) {
  const int64_t begin = now();
  NoGrad no_grad;
  Tensor x(inputs[0]), milliseconds(inputs[1]), gate(inputs[2]);
  const float* scale = model->constant("layer_scale");
  const float* shift = model->constant("layer_shift");
  if (scale == nullptr || shift == nullptr) {
    return fail("the model has no constants");
  }
  if (!pass(gate.data<int32_t>())) {
    return fail("nobody opened the gate");
  }
  const auto spin = std::chrono::duration<double, std::milli>(*milliseconds.data<double>());
  const auto start = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - start < spin) {
  }
  const float* from = x.data<float>();
  const int64_t rows = x.rows();
  if (rows > 0 && std::isnan(from[0])) {
    return fail("x begins with NaN");
  }
  const int64_t sizes[] = {rows, kColumns}, strides[] = {kColumns, 1}, two[] = {2}, one[] = {1};
  Tensor scaled = empty(2, sizes, strides, aoti_torch_dtype_float32());
  Tensor shifted = empty(2, sizes, strides, aoti_torch_dtype_float32());
  Tensor span = empty(1, two, one, aoti_torch_dtype_int64());
  for (int64_t i = 0; i < rows * kColumns; ++i) {
    scaled.data<float>()[i] = from[i] * scale[i % kColumns];
    shifted.data<float>()[i] = from[i] + shift[i % kColumns];
  }
  span.data<int64_t>()[0] = begin;
  span.data<int64_t>()[1] = now();
  outputs[0] = scaled.release();
  outputs[1] = shifted.release();
  outputs[2] = span.release();
  return 0;
}
