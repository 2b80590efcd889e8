// What the kernels of this folder offer to hook.cpp.

#pragma once

#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "traits.h"

namespace edge_embed {

// The kernel for an operation, or nullptr where it is left to ggml.
ggml::cpu::tensor_traits * attention(const ggml_tensor * op);
ggml::cpu::tensor_traits * gelu(const ggml_tensor * op);

// Products with quantized weights, whose rows are interleaved when they are loaded (products.cpp). nullptr for weights
// that are left to ggml: other formats, sizes that do not divide, a processor without the instruction.
ggml::cpu::tensor_traits * product(const ggml_tensor * weights);
void repack(const ggml_tensor * tensor, const void * data);

}  // namespace edge_embed
