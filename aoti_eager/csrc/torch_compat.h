// Every private name of torch's C++ that the hit path uses, each with the reason.

#pragma once

#include <ATen/Context.h>
#include <c10/core/DeviceType.h>

#include <array>
#include <unordered_map>
#include <utility>

// Public, and declared here once more: `ATen/autocast_mode.h` includes every operator of torch's,
// which takes the compiler as long as all the rest. They are looked for when the library is loaded.
namespace at::autocast {
TORCH_API bool is_autocast_enabled(at::DeviceType device_type);
TORCH_API void set_autocast_enabled(at::DeviceType device_type, bool enabled);
}  // namespace at::autocast

namespace aoti_eager {

// The process's settings, which are one object for as long as it runs; a call that gives it costs
// twelve instructions.
inline const at::Context& settings = at::globalContext();

// The public getter asks three other settings whether they agree, which takes 60 ns: as long as all
// the rest of a key. What it returns is this member. The hit path is built for one version of
// torch, so the member is where its header says.
using PrecisionMember = at::Float32MatmulPrecision at::Context::*;

PrecisionMember precision_member();

template <PrecisionMember member>
struct Reveal {
  // Access is not checked in an explicit instantiation.
  friend PrecisionMember precision_member() {
    return member;
  }
};

template struct Reveal<&at::Context::float32_matmul_precision>;

inline at::Float32MatmulPrecision matmul_precision() {
  return settings.*precision_member();
}

// What the settings of `torch.backends.fp32_precision` and its kin say, by backend and operation. The
// public getter looks three of them up in a table; values in it stay where they are.
using Precisions = std::unordered_map<
    std::pair<at::Float32Backend, at::Float32Op>, at::Float32Precision,
    c10::hash<std::pair<at::Float32Backend, at::Float32Op>>>;
using PrecisionsMember = Precisions at::Context::*;

PrecisionsMember precisions_member();

template <PrecisionsMember member>
struct RevealPrecisions {
  friend PrecisionsMember precisions_member() {
    return member;
  }
};

template struct RevealPrecisions<&at::Context::fp32_precision>;

// The settings by which the CPU multiplies; the first that is not "none" decides.
inline const std::array<const at::Float32Precision*, 3> precision_places = [] {
  const Precisions& all = settings.*precisions_member();
  auto of = [&all](at::Float32Backend backend, at::Float32Op op) {
    auto found = all.find({backend, op});
    static constexpr auto kNone = at::Float32Precision::NONE;
    return found == all.end() ? &kNone : &found->second;
  };
  return std::array{
      of(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL),
      of(at::Float32Backend::MKLDNN, at::Float32Op::ALL),
      of(at::Float32Backend::GENERIC, at::Float32Op::ALL)};
}();

// Whether the matmul precision of a key is that by which the CPU multiplies: the newer settings go
// their own way, and then torch refuses to tell the older one.
inline bool is_precision_told() {
  static_assert(static_cast<int>(at::Float32Precision::NONE) == 0);
  const auto& places = precision_places;
  if ((static_cast<int>(*places[0]) | static_cast<int>(*places[1]) |
       static_cast<int>(*places[2])) == 0) [[likely]] {
    return true;
  }
  for (const at::Float32Precision* place : places) {
    if (*place == at::Float32Precision::NONE) {
      continue;
    }
    if (*place == at::Float32Precision::BF16) {
      return matmul_precision() == at::Float32MatmulPrecision::MEDIUM;
    }
    return *place != at::Float32Precision::TF32 ||
        matmul_precision() == at::Float32MatmulPrecision::HIGH;
  }
  return true;
}

} // namespace aoti_eager
