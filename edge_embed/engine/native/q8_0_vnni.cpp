// Q8_0 weights times float activations on x86 processors with VNNI (AVX-512 VNNI or AVX-VNNI), for ggml's CPU backend.
//
// Stock ggml repacks Q8_0 for AMX and for Arm, and multiplies it row by row on every other processor: five
// instructions for each 32 products. Here the weights are interleaved when the model is loaded, so that one `vpdpbusd`
// serves 16 (8) rows at once: about twelve instructions for 512 (256) products.
//
// How: `vpdpbusd` multiplies unsigned by signed bytes. Weights are stored with 128 added, which makes them unsigned;
// activations stay signed. As (w + 128) a = w a + 128 a, the accumulator of a block starts at -128 times the sum of
// its activations, which costs nothing. Activations are quantized as ggml does it: blocks of 32, scale max|x| / 127.
//
// On processors without VNNI there is nothing here. See hook.cpp for the way from ggml.

#include "ggml-cpu-impl.h"
#include "kernels.h"
#include "vectors.h"

#include <cmath>
#include <cstdint>
#include <cstring>

#if (EDGE_EMBED_LANES == 16 && defined(__AVX512VNNI__)) || \
    (EDGE_EMBED_LANES == 8 && (defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))))

namespace edge_embed::q8_0 {
namespace {

constexpr int ROWS = LANES;  // rows of a group: one 32-bit lane each
#if EDGE_EMBED_LANES == 16
using ints = __m512i;
inline ints set_ints(int32_t x) { return _mm512_set1_epi32(x); }
inline ints load_ints(const void * p) { return _mm512_loadu_si512(p); }
inline ints dot(ints sum, ints u, ints s) { return _mm512_dpbusd_epi32(sum, u, s); }
inline floats to_floats(ints x) { return _mm512_cvtepi32_ps(x); }
constexpr int TILE = 8;  // texts' tokens at a time: 8 + 8 accumulators of 32 registers
#else
using ints = __m256i;
inline ints set_ints(int32_t x) { return _mm256_set1_epi32(x); }
inline ints load_ints(const void * p) { return _mm256_loadu_si256((const __m256i *) p); }
#if defined(__AVXVNNI__)
inline ints dot(ints sum, ints u, ints s) { return _mm256_dpbusd_avx_epi32(sum, u, s); }
#else
inline ints dot(ints sum, ints u, ints s) { return _mm256_dpbusd_epi32(sum, u, s); }
#endif
inline floats to_floats(ints x) { return _mm256_cvtepi32_ps(x); }
constexpr int TILE = 4;  // 4 + 4 accumulators of 16 registers
#endif

constexpr int BLOCK = 32;  // values that share a scale, in Q8_0 and in the activations

// The file's layout (ggml-common.h: block_q8_0).
struct file_block {
    uint16_t d;
    int8_t qs[BLOCK];
};

// A group of rows is as large as the file's blocks that it replaces: first the values of all its blocks, so that no
// vector crosses a cache line, then their half-precision scales.
struct weight_block {
    uint8_t qs[BLOCK / 4][ROWS][4];  // lane r of vector j: values 4j .. 4j+3 of row r, plus 128
};
struct weight_scales {
    uint16_t d[ROWS];
};

inline weight_block * group(void * weights, int64_t g, int64_t n_blocks) {
    return (weight_block *) ((char *) weights + g * n_blocks * ROWS * (int64_t) sizeof(file_block));
}

struct activation_block {
    float d;
    int32_t start;  // -128 times the sum of qs
    int8_t qs[BLOCK];
};

static_assert(sizeof(file_block) == 34, "as ggml packs it");
static_assert(sizeof(weight_block) + sizeof(weight_scales) == ROWS * sizeof(file_block), "repacking keeps the size");
static_assert(sizeof(activation_block) == 40, "no padding");

void quantize(const float * x, activation_block * out, int64_t n_blocks) {
    for (int64_t b = 0; b < n_blocks; b++, x += BLOCK, out++) {
        __m256 v[4];
        __m256 peak = _mm256_setzero_ps();
        __m256 bad = _mm256_setzero_ps();
        for (int i = 0; i < 4; i++) {
            v[i] = _mm256_loadu_ps(x + 8 * i);
            peak = _mm256_max_ps(peak, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v[i]));
            bad = _mm256_or_ps(bad, _mm256_cmp_ps(v[i], v[i], _CMP_UNORD_Q));
        }
        __m128 m = _mm_max_ps(_mm256_castps256_ps128(peak), _mm256_extractf128_ps(peak, 1));
        m = _mm_max_ps(m, _mm_movehl_ps(m, m));
        const float largest = _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
        if (_mm256_movemask_ps(bad) || !(largest < INFINITY)) {  // never hidden: the caller looks for it in the result
            memset(out, 0, sizeof(*out));
            out->d = NAN;
            continue;
        }
        const float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
        out->d = largest / 127.0f;
        __m256i q[4];
        __m256i sum = _mm256_setzero_si256();
        for (int i = 0; i < 4; i++) {
            q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], _mm256_set1_ps(inverse)));
            sum = _mm256_add_epi32(sum, q[i]);
        }
        // 32 to 16 to 8 bits; the packs work within 128-bit halves, so the order is put right at the end
        const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        _mm256_storeu_si256((__m256i *) out->qs,
                            _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
        __m128i s = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
        out->start = -128 * _mm_cvtsi128_si32(s);
    }
}

// ROWS outputs of T tokens. `out` is strided by tokens.
template <int T>
void products(const weight_block * w, const activation_block * a, int64_t n_blocks, float * out, int64_t stride) {
    const auto * scales = (const weight_scales *) (w + n_blocks);
    floats total[T];
    for (int t = 0; t < T; t++) {
        total[t] = zero();
    }
    for (int64_t b = 0; b < n_blocks; b++) {
        ints sum[T];
        for (int t = 0; t < T; t++) {
            sum[t] = set_ints(a[t * n_blocks + b].start);
        }
        for (int j = 0; j < BLOCK / 4; j++) {
            const ints weights = load_ints(w[b].qs[j]);
            for (int t = 0; t < T; t++) {
                int32_t four;
                memcpy(&four, a[t * n_blocks + b].qs + 4 * j, 4);
                sum[t] = dot(sum[t], weights, set_ints(four));
            }
        }
        const floats d = load_halves(scales[b].d);
        for (int t = 0; t < T; t++) {
            total[t] = multiply_add(to_floats(sum[t]), multiply(d, set(a[t * n_blocks + b].d)), total[t]);
        }
    }
    for (int t = 0; t < T; t++) {
        store(out + t * stride, total[t]);
    }
}

class traits : public ggml::cpu::tensor_traits {
  public:
    bool work_size(int, const ggml_tensor * op, size_t & size) override {
        if (op->op != GGML_OP_MUL_MAT) {
            return false;
        }
        size = ggml_nelements(op->src[1]) / BLOCK * sizeof(activation_block);
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        if (op->op != GGML_OP_MUL_MAT) {
            return false;
        }
        const ggml_tensor * weights = op->src[0];
        const ggml_tensor * x = op->src[1];
        GGML_ASSERT(x->type == GGML_TYPE_F32 && x->nb[0] == sizeof(float) && op->nb[0] == sizeof(float));
        const int64_t n_blocks = weights->ne[0] / BLOCK;
        const int64_t n_tokens = x->ne[1] * x->ne[2] * x->ne[3];
        auto * quantized = (activation_block *) params->wdata;
        GGML_ASSERT(params->wsize >= n_tokens * n_blocks * sizeof(activation_block));

        for (int64_t t = params->ith; t < n_tokens; t += params->nth) {
            quantize((const float *) at(x, t), quantized + t * n_blocks, n_blocks);
        }
        // Groups of rows are handed out in chunks, several to a thread: a thread that the system holds up does fewer.
        const int64_t n_groups = weights->ne[1] / ROWS;
        const int64_t chunk = (n_groups + 4 * params->nth - 1) / (4 * params->nth);
        if (params->ith == 0) {
            ggml_threadpool_chunk_set(params->threadpool, params->nth);
        }
        ggml_barrier(params->threadpool);
        const bool dense = op->ne[2] * op->ne[3] == 1;
        for (int64_t c = params->ith; c * chunk < n_groups; c = ggml_threadpool_chunk_add(params->threadpool, 1)) {
            const int64_t end = c * chunk + chunk < n_groups ? c * chunk + chunk : n_groups;
            for (int64_t g = c * chunk; g < end; g++) {
                const weight_block * w = group(weights->data, g, n_blocks);
                int64_t t = 0;
                if (dense) {
                    const int64_t stride = op->nb[1] / sizeof(float);
                    for (; t + TILE <= n_tokens; t += TILE) {
                        products<TILE>(w, quantized + t * n_blocks, n_blocks, (float *) at(op, t) + g * ROWS, stride);
                    }
                    for (; t + 2 <= n_tokens; t += 2) {
                        products<2>(w, quantized + t * n_blocks, n_blocks, (float *) at(op, t) + g * ROWS, stride);
                    }
                }
                for (; t < n_tokens; t++) {
                    products<1>(w, quantized + t * n_blocks, n_blocks, (float *) at(op, t) + g * ROWS, 0);
                }
            }
        }
        return true;
    }

  private:
    // Row `t` of a tensor whose three outer axes are counted through.
    static void * at(const ggml_tensor * x, int64_t t) {
        const int64_t i1 = t % x->ne[1];
        const int64_t i2 = t / x->ne[1] % x->ne[2];
        const int64_t i3 = t / x->ne[1] / x->ne[2];
        return (char *) x->data + i1 * x->nb[1] + i2 * x->nb[2] + i3 * x->nb[3];
    }
};

}  // namespace

bool fits(const ggml_tensor * weights) {
    return weights->type == GGML_TYPE_Q8_0 && ggml_n_dims(weights) == 2 && weights->ne[0] % BLOCK == 0 &&
           weights->ne[1] % ROWS == 0;
}

ggml::cpu::tensor_traits * product() {
    static traits instance;
    return &instance;
}

void repack(const ggml_tensor * tensor, const void * data) {
    const int64_t n_blocks = tensor->ne[0] / BLOCK;
    const auto * from = (const file_block *) data;
    for (int64_t g = 0; g < tensor->ne[1] / ROWS; g++) {
        weight_block * to = group(tensor->data, g, n_blocks);
        auto * scales = (weight_scales *) (to + n_blocks);
        for (int64_t b = 0; b < n_blocks; b++) {
            for (int r = 0; r < ROWS; r++) {
                const file_block & block = from[(g * ROWS + r) * n_blocks + b];
                scales[b].d[r] = block.d;
                for (int i = 0; i < BLOCK; i++) {
                    to[b].qs[i / 4][r][i % 4] = (uint8_t) (block.qs[i] ^ 0x80);
                }
            }
        }
    }
}

}  // namespace edge_embed::q8_0

#else  // no VNNI

namespace edge_embed::q8_0 {

bool fits(const ggml_tensor *) {
    return false;
}
ggml::cpu::tensor_traits * product() {
    return nullptr;
}
void repack(const ggml_tensor *, const void *) {}

}  // namespace edge_embed::q8_0

#endif
