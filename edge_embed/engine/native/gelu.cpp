// GELU for ggml's CPU backend on x86 processors. ggml looks each value up in a table, which takes as long as a product
// with Q8_0 weights does in products.cpp. The same formula is computed for 16 (8) values at once instead, and without
// rounding to half precision.

#include "kernels.h"
#include "vectors.h"

#include <cstring>

#if EDGE_EMBED_LANES > 0

namespace edge_embed {
namespace {

// GELU with tanh: x/2 (1 + tanh(u)) = x / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3).
class activation : public ggml::cpu::tensor_traits {
  public:
    static bool fits(const ggml_tensor * op) {
        return op->op == GGML_OP_UNARY && ggml_get_unary_op(op) == GGML_UNARY_OP_GELU && op->type == GGML_TYPE_F32 &&
               op->src[0]->type == GGML_TYPE_F32 && ggml_is_contiguous(op) && ggml_is_contiguous(op->src[0]);
    }

    bool work_size(int, const ggml_tensor *, size_t &) override { return false; }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        const int64_t n = ggml_nelements(op);
        const int64_t n_vectors = n / LANES;
        const auto * x = (const float *) op->src[0]->data;
        auto * y = (float *) op->data;
        const int64_t last = n_vectors * (params->ith + 1) / params->nth;
        for (int64_t i = n_vectors * params->ith / params->nth; i < last; i++) {
            store(y + i * LANES, vector(load(x + i * LANES)));
        }
        if (params->ith == 0 && n % LANES) {
            float rest[LANES] = {};
            memcpy(rest, x + n_vectors * LANES, n % LANES * sizeof(float));
            store(rest, vector(load(rest)));
            memcpy(y + n_vectors * LANES, rest, n % LANES * sizeof(float));
        }
        return true;
    }

  private:
    static floats vector(floats x) {
        const floats minus_2u = multiply(x, multiply_add(multiply(x, x), set(-0.0713548162726f), set(-1.59576912161f)));
        return divide(x, add(exponential(minus_2u), set(1.0f)));
    }
};

}  // namespace

ggml::cpu::tensor_traits * gelu(const ggml_tensor * op) {
    static activation instance;
    return activation::fits(op) ? &instance : nullptr;
}

}  // namespace edge_embed

#else

ggml::cpu::tensor_traits * edge_embed::gelu(const ggml_tensor *) {
    return nullptr;
}

#endif
