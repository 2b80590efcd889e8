// What the kernels of this folder offer to hook.cpp.

#pragma once

#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "traits.h"

namespace edge_embed {

// The kernel for an operation, or nullptr where it is left to ggml.
ggml::cpu::tensor_traits * attention(const ggml_tensor * op);
ggml::cpu::tensor_traits * gelu(const ggml_tensor * op);

// Products with Q8_0 weights, which are interleaved when they are loaded.
namespace q8_0 {
bool fits(const ggml_tensor * weights);  // false for all where the processor lacks the instruction
ggml::cpu::tensor_traits * product();
void repack(const ggml_tensor * tensor, const void * data);
}  // namespace q8_0

}  // namespace edge_embed
