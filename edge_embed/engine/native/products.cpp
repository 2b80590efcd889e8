// Quantized weights times float activations on x86 processors with VNNI (AVX-512 VNNI or AVX-VNNI), for ggml's CPU
// backend: Q8_0 and the K-quants of 4 to 6 bits.
//
// Stock ggml multiplies Q8_0 and Q6_K row by row, and spends as much on unpacking and scaling Q4_K as on products. Here
// rows lie side by side (formats.h), so that one `vpdpbusd` serves 16 (8) rows at once and no sum crosses lanes, and
// what is unpacked serves a tile of tokens.
//
// `vpdpbusd` multiplies unsigned by signed bytes. Weights are unsigned as they are stored; where the format subtracts
// an offset from them, the accumulator of a block starts at -offset times the sum of its activations. A format's mins
// are multiplied by the same sums. Activations are quantized in blocks of 32, scale max|x| / 127: finer than the blocks
// of 256 that ggml has for K-quants.
//
// Each thread takes chunks of rows. Tokens are walked in runs whose activations stay in the second-level cache, and the
// scales of a group of rows are widened to floats once for each run.
//
// On processors without VNNI there is nothing here. See hook.cpp for the way from ggml.

#include "ggml-cpu-impl.h"
#include "formats.h"
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#if defined(EDGE_EMBED_VNNI)

namespace edge_embed {
namespace {

// Groups of rows and tokens at a time: 2 x 6 sums and as many totals in 32 registers, or 2 x 3 in 16. One activation
// then serves two vectors of weights, and an unpacked vector of weights all tokens of the tile.
constexpr int GROUPS = 2;
constexpr int TILE = LANES == 16 ? 6 : 3;
constexpr size_t RUN = 384 * 1024;  // bytes of activations that are walked at a time
constexpr int64_t UNIT = 8;         // blocks that a thread quantizes at a time

// A block of TILE tokens.
struct activations {
    float d[TILE];
    union {
        int32_t start[2][TILE];  // of formats with an offset: what the sum of each part starts at
        float sum[TILE];         // of formats with a min: the sum of the values
    };
    int8_t qs[QUADS][TILE][4];
};

int64_t ceil_div(int64_t x, int64_t y) {
    return (x + y - 1) / y;
}

// One token's block into its place of the tile.
template <class F> void quantize(const float * x, activations & out, int t) {
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
    // NaN is never hidden: the caller looks for it in the result.
    const bool lost = _mm256_movemask_ps(bad) || !(largest < INFINITY);
    const float inverse = !lost && largest > 1e-30f ? 127.0f / largest : 0.0f;
    const float d = lost ? NAN : largest / 127.0f;
    __m256i q[4];
    for (int i = 0; i < 4; i++) {
        q[i] = lost ? _mm256_setzero_si256() : _mm256_cvtps_epi32(_mm256_mul_ps(v[i], _mm256_set1_ps(inverse)));
    }
    // 32 to 16 to 8 bits; the packs work within 128-bit halves, so the order is put right at the end
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    alignas(32) int8_t ordered[BLOCK];
    _mm256_store_si256((__m256i *) ordered,
                       _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
    for (int j = 0; j < QUADS; j++) {
        memcpy(out.qs[j][t], ordered + 4 * j, 4);
    }
    int32_t sum[2];
    for (int i = 0; i < 2; i++) {
        const __m256i both = _mm256_add_epi32(q[2 * i], q[2 * i + 1]);
        __m128i s = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
        sum[i] = _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
    }
    out.d[t] = d;
    if constexpr (F::MIN) {
        out.sum[t] = d * (float) (sum[0] + sum[1]);
    } else {
        out.start[0][t] = -F::OFFSET * (F::PARTS == 2 ? sum[0] : sum[0] + sum[1]);
        out.start[1][t] = -F::OFFSET * sum[1];
    }
}

// A group of ROWS rows: the words of all its superblocks, so that no vector crosses a cache line, then their halves.
template <class F> struct group {
    words * w;
    uint16_t * halves;

    group(void * weights, int64_t g, int64_t n_super)
        : w((words *) ((char *) weights + g * n_super * ROWS * F::BYTES)),
          halves((uint16_t *) (w + n_super * F::WORDS)) {}

    static_assert(F::WORDS * 4 + (F::HALF_AT < 0 ? 0 : 2) == F::BYTES, "repacking keeps the size");
};

// Scales and mins of a group as floats: [block][part][row], [block][row].
template <class F> struct expanded {
    float *scale, *min;

    static int64_t size(int64_t n_blocks) { return n_blocks * ROWS * (F::PARTS + F::MIN); }
    expanded(float * at, int64_t n_blocks) : scale(at), min(at + n_blocks * ROWS * F::PARTS) {}
    void fill(const group<F> & from, int64_t n_super) const {
        for (int64_t s = 0; s < n_super; s++) {
            F::expand(from.w + s * F::WORDS, from.halves + s * ROWS, scale + s * F::BLOCKS * F::PARTS * ROWS,
                      F::MIN ? min + s * F::BLOCKS * ROWS : nullptr);
        }
    }
};

// Outputs of G groups of rows, one behind the other, for T tokens, of which n are wanted.
template <class F, int G, int T>
void products(const group<F> & from, const expanded<F> & by, const activations * a, int64_t n_super, int n,
              float * const * out) {
    const int64_t next = n_super * F::BYTES * ROWS;  // bytes from a group to the one behind it
    const int64_t next_scale = expanded<F>::size(n_super * F::BLOCKS);
    const words * w = from.w;
    const float *scale = by.scale, *min = by.min;
    for (int t = 0; t < n; t++) {
        for (int g = 0; g < G; g++) {
            __builtin_prefetch(out[t] + g * ROWS, 1);
        }
    }
    floats total[G][T];
    for (auto & x : total) {
        std::fill(x, x + T, zero());
    }
    for (int64_t s = 0; s < n_super; s++, w += F::WORDS) {
        if constexpr (T <= 2) {
            for (int i = 0; i < F::WORDS; i++) {  // waits for the memory: what comes next is asked for now
                for (int g = 0; g < G; g++) {
                    _mm_prefetch((const char *) w[i] + (G + g) * next, _MM_HINT_T1);
                }
            }
        }
        for (int block = 0; block < F::BLOCKS; block++, a++) {
            const F unpack(block);
#pragma GCC unroll 2
            for (int part = 0; part < F::PARTS; part++, scale += ROWS) {
                ints sum[G][T];
                for (int t = 0; t < T; t++) {
                    for (int g = 0; g < G; g++) {
                        sum[g][t] = F::OFFSET ? set_ints(a->start[part][t]) : no_ints();
                    }
                }
                constexpr int N = QUADS / F::PARTS;
#pragma GCC unroll 8
                for (int j = part * N; j < (part + 1) * N; j++) {
                    ints quad[G];
                    for (int g = 0; g < G; g++) {
                        quad[g] = unpack.quad((const words *) ((const char *) w + g * next), j);
                    }
                    for (int t = 0; t < T; t++) {
                        int32_t four;
                        memcpy(&four, a->qs[j][t], 4);
                        for (int g = 0; g < G; g++) {
                            sum[g][t] = dot(sum[g][t], quad[g], set_ints(four));
                        }
                    }
                }
                for (int t = 0; t < T; t++) {
                    for (int g = 0; g < G; g++) {
                        const floats d = multiply(load(scale + g * next_scale), set(a->d[t]));
                        total[g][t] = multiply_add(to_floats(sum[g][t]), d, total[g][t]);
                    }
                }
            }
            if constexpr (F::MIN) {
                for (int t = 0; t < T; t++) {
                    for (int g = 0; g < G; g++) {  // the mins are negative
                        total[g][t] = multiply_add(load(min + g * next_scale), set(a->sum[t]), total[g][t]);
                    }
                }
                min += ROWS;
            }
        }
    }
    for (int t = 0; t < T; t++) {
        for (int g = 0; g < G; g++) {
            if (t < n) {
                store(out[t] + g * ROWS, total[g][t]);
            }
        }
    }
}

// Row `t` of a tensor whose three outer axes are counted through.
float * row(const ggml_tensor * x, int64_t t) {
    const int64_t i1 = t % x->ne[1];
    const int64_t i2 = t / x->ne[1] % x->ne[2];
    const int64_t i3 = t / x->ne[1] / x->ne[2];
    return (float *) ((char *) x->data + i1 * x->nb[1] + i2 * x->nb[2] + i3 * x->nb[3]);
}

template <class F> class traits : public ggml::cpu::tensor_traits {
    struct sizes {
        int64_t n_tokens, n_tiles, n_blocks, n_super;
        size_t tile, scales;  // bytes: of a tile's activations, of one thread's scales

        explicit sizes(const ggml_tensor * op) {
            const ggml_tensor * x = op->src[1];
            n_tokens = x->ne[1] * x->ne[2] * x->ne[3];
            n_tiles = ceil_div(n_tokens, TILE);
            n_blocks = x->ne[0] / BLOCK;
            n_super = n_blocks / F::BLOCKS;
            tile = n_blocks * sizeof(activations);
            scales = expanded<F>::size(n_blocks) * GROUPS * sizeof(float);
        }
        size_t all(int n_threads) const { return 64 + n_tiles * tile + n_threads * scales; }
    };

  public:
    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override {
        if (op->op != GGML_OP_MUL_MAT) {
            return false;
        }
        size = sizes(op).all(n_threads);
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        if (op->op != GGML_OP_MUL_MAT) {
            return false;
        }
        const ggml_tensor * x = op->src[1];
        const sizes n(op);
        GGML_ASSERT(x->type == GGML_TYPE_F32 && x->nb[0] == sizeof(float) && op->nb[0] == sizeof(float));
        GGML_ASSERT(params->wsize >= n.all(params->nth));
        auto * start = (char *) GGML_PAD((uintptr_t) params->wdata, 64);
        auto * quantized = (activations *) (start + params->nth * n.scales);
        auto * scales = (float *) (start + params->ith * n.scales);

        const int64_t units = ceil_div(n.n_blocks, UNIT);  // of a tile: threads never share a token's block
        for (int64_t u = params->ith; u < n.n_tiles * units; u += params->nth) {
            const int64_t tile = u / units, first = u % units * UNIT, end = std::min(first + UNIT, n.n_blocks);
            for (int64_t t = tile * TILE; t < std::min((tile + 1) * TILE, n.n_tokens); t++) {
                const float * from = row(x, t);
                for (int64_t b = first; b < end; b++) {
                    quantize<F>(from + b * BLOCK, quantized[tile * n.n_blocks + b], (int) (t % TILE));
                }
            }
        }
        // Groups of rows are handed out in chunks, several to a thread: a thread that the system holds up does fewer.
        const int64_t n_groups = op->src[0]->ne[1] / ROWS;
        const int64_t chunk = ceil_div(n_groups, 4 * params->nth);
        if (params->ith == 0) {
            ggml_threadpool_chunk_set(params->threadpool, params->nth);
        }
        ggml_barrier(params->threadpool);
        for (int64_t c = params->ith; c * chunk < n_groups; c = ggml_threadpool_chunk_add(params->threadpool, 1)) {
            rows(op, n, quantized, scales, c * chunk, std::min((c + 1) * chunk, n_groups));
        }
        return true;
    }

  private:
    static void rows(ggml_tensor * op, const sizes & n, const activations * quantized, float * scales, int64_t first,
                     int64_t end) {
        const int64_t run = std::max<int64_t>(1, RUN / n.tile);
        for (int64_t begin = 0; begin < n.n_tiles; begin += run) {
            for (int64_t g = first; g < end; g += GROUPS) {
                const int n_groups = (int) std::min<int64_t>(GROUPS, end - g);
                for (int i = 0; i < n_groups; i++) {
                    const expanded<F> by(scales + i * expanded<F>::size(n.n_blocks), n.n_blocks);
                    by.fill(group<F>(op->src[0]->data, g + i, n.n_super), n.n_super);
                }
                const group<F> weights(op->src[0]->data, g, n.n_super);
                const expanded<F> by(scales, n.n_blocks);
                for (int64_t tile = begin; tile < std::min(begin + run, n.n_tiles); tile++) {
                    const int wanted = (int) std::min<int64_t>(TILE, n.n_tokens - tile * TILE);
                    float * out[TILE];
                    for (int t = 0; t < wanted; t++) {
                        out[t] = row(op, tile * TILE + t) + g * ROWS;
                    }
                    (n_groups == GROUPS ? kernel<GROUPS>(wanted) : kernel<1>(wanted))(
                        weights, by, quantized + tile * n.n_blocks, n.n_super, wanted, out);
                }
            }
        }
    }

    // The narrowest for so many tokens; what it computes beyond them is thrown away.
    template <int G> static decltype(&products<F, G, TILE>) kernel(int n) {
        if (n > 4) {
            return products<F, G, TILE>;
        }
        if (n > 2) {
            return products<F, G, std::min(TILE, 4)>;
        }
        return n == 2 ? products<F, G, 2> : products<F, G, 1>;
    }
};

template <class F> bool rows_fit(const ggml_tensor * weights) {
    return weights->ne[0] % (F::BLOCKS * BLOCK) == 0 && weights->ne[1] % ROWS == 0;
}

template <class F> void repack_rows(const ggml_tensor * tensor, const void * data) {
    const int64_t n_super = tensor->ne[0] / (F::BLOCKS * BLOCK);
    const auto * from = (const char *) data;
    for (int64_t g = 0; g < tensor->ne[1] / ROWS; g++) {
        const group<F> to(tensor->data, g, n_super);
        words * w = to.w;
        uint16_t * halves = to.halves;
        for (int64_t s = 0; s < n_super; s++, w += F::WORDS, halves += ROWS) {
            const char * blocks[ROWS];
            for (int r = 0; r < ROWS; r++) {
                blocks[r] = from + ((g * ROWS + r) * n_super + s) * F::BYTES;
            }
            for (int i = 0; i < F::WORDS; i++) {
                for (int r = 0; r < ROWS; r++) {
                    memcpy(&w[i][r], blocks[r] + F::WORDS_AT + 4 * i, 4);
                }
            }
            for (int r = 0; F::HALF_AT >= 0 && r < ROWS; r++) {
                memcpy(&halves[r], blocks[r] + F::HALF_AT, 2);
            }
        }
    }
}

// What hook.cpp asks for, for each format.
struct entry {
    ggml_type type;
    bool (*fits)(const ggml_tensor *);
    ggml::cpu::tensor_traits * kernel;
    void (*repack)(const ggml_tensor *, const void *);
};

template <class F> entry make() {
    static traits<F> kernel;
    return { F::TYPE, rows_fit<F>, &kernel, repack_rows<F> };
}

const entry * find(const ggml_tensor * weights) {
    static const entry all[] = { make<q8_0>(), make<q4_k>(), make<q5_k>(), make<q6_k>() };
    for (const entry & e : all) {
        if (e.type == weights->type && ggml_n_dims(weights) == 2 && e.fits(weights)) {
            return &e;
        }
    }
    return nullptr;
}

}  // namespace

ggml::cpu::tensor_traits * product(const ggml_tensor * weights) {
    const entry * e = find(weights);
    return e ? e->kernel : nullptr;
}

void repack(const ggml_tensor * tensor, const void * data) {
    find(tensor)->repack(tensor, data);
}

}  // namespace edge_embed

#else  // no VNNI

namespace edge_embed {

ggml::cpu::tensor_traits * product(const ggml_tensor *) {
    return nullptr;
}
void repack(const ggml_tensor *, const void *) {}

}  // namespace edge_embed

#endif
