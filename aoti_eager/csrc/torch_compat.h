// Every private name of torch's C++ that the hit path uses, each with the reason.

#pragma once

#include <ATen/Context.h>

namespace aoti_eager {

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

inline at::Float32MatmulPrecision matmul_precision(const at::Context& context) {
  return context.*precision_member();
}

} // namespace aoti_eager
