// Attention over a batch of many texts, for ggml's CPU backend on x86 processors.
//
// A batch packs texts of different lengths into one ubatch, and the mask says which token sees which. Stock ggml works
// in tiles of 64 queries by 64 keys wherever they lie, converts the mask to floats again for each head, and computes
// every pair of a tile that any pair of is needed. Of sentences of 15 tokens that is one pair in four, and most of the
// time goes to the mask. Here each query's range of keys is looked up in the mask once for all heads; tiles of queries
// begin and end with the texts, and only blocks of keys that some query of the tile sees are computed.
//
// Scores have queries in lanes, so that the largest of them, exponentials and sums need no shuffles. The products with
// the values have the head's dimensions in lanes. Softmax is computed block by block with a running maximum (Milakov
// and Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867), in float32 throughout.
//
// Biases by distance (ALiBi), capped scores, sinks, and a handful of queries are left to ggml.

#include "ggml-cpu-impl.h"
#include "kernels.h"
#include "vectors.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#if EDGE_EMBED_LANES > 0

namespace edge_embed {
namespace {

constexpr int KEYS = 32;             // keys of a block: their scores stay in the first-level cache
constexpr int AT_ONCE = LANES / 2;   // keys whose scores are accumulated at a time
constexpr int64_t FEW = 4;           // fewer queries than this leave most lanes empty
constexpr uint16_t HIDDEN = 0xfc00;  // -infinity in half precision

// Keys that a query sees lie in [first, end).
struct range {
    int32_t first, end;
};

// One thread's working memory.
struct scratch {
    float * query;   // [DK][LANES], scaled
    float * key;     // [KEYS][DK]
    float * value;   // [KEYS][DV]
    float * mask;    // [KEYS][LANES]
    float * score;   // [KEYS][LANES]
    float * output;  // [LANES][DV]

    static size_t size(int64_t dk, int64_t dv) {
        return (dk * LANES + KEYS * dk + KEYS * dv + 2 * KEYS * LANES + LANES * dv) * sizeof(float);
    }
    scratch(float * p, int64_t dk, int64_t dv) {
        query = p;
        key = query + dk * LANES;
        value = key + KEYS * dk;
        mask = value + KEYS * dv;
        score = mask + KEYS * LANES;
        output = score + KEYS * LANES;
    }
};

size_t padded(size_t n) {
    return GGML_PAD(n, 64);
}

const char * at(const ggml_tensor * x, int64_t i1, int64_t i2, int64_t i3) {
    return (const char *) x->data + i1 * x->nb[1] + i2 * x->nb[2] + i3 * x->nb[3];
}

bool hidden(const uint16_t * mask) {
    return std::all_of(mask, mask + LANES, [](uint16_t m) { return m == HIDDEN; });
}

range seen(const uint16_t * mask, int64_t n) {
    int64_t first = 0, end = n;
    while (first + LANES <= n && hidden(mask + first)) {
        first += LANES;
    }
    while (first < n && mask[first] == HIDDEN) {
        first++;
    }
    while (end - LANES >= first && hidden(mask + end - LANES)) {
        end -= LANES;
    }
    while (end > first && mask[end - 1] == HIDDEN) {
        end--;
    }
    return { (int32_t) first, (int32_t) end };
}

// `n` rows as float32, one after another.
void widen(const ggml_tensor * x, int64_t first, int n, int64_t i2, int64_t i3, float * out) {
    const int64_t d = x->ne[0];
    for (int i = 0; i < n; i++, out += d) {
        const char * row = at(x, first + i, i2, i3);
        if (x->type == GGML_TYPE_F32) {
            memcpy(out, row, d * sizeof(float));
        } else {
            for (int64_t j = 0; j < d; j += LANES) {
                store(out + j, load_halves((const uint16_t *) row + j));
            }
        }
    }
}

// out[d][lane] = scale * q[lane][d]
void load_queries(const ggml_tensor * q, int64_t first, int n, int64_t i2, int64_t i3, float scale, float * out) {
    for (int64_t d = 0; d < q->ne[0]; d += LANES) {
        floats rows[LANES];
        for (int i = 0; i < LANES; i++) {
            rows[i] = i < n ? multiply(load((const float *) at(q, first + i, i2, i3) + d), set(scale)) : zero();
        }
        transpose(rows);
        for (int i = 0; i < LANES; i++) {
            store(out + (d + i) * LANES, rows[i]);
        }
    }
}

// score[key][lane] = key . query
void multiply_keys(const float * key, const float * query, int n_keys, int64_t dk, float * score) {
    for (int k = 0; k < n_keys; k += AT_ONCE) {  // the rows behind the last key hold something, and nobody looks
        floats sum[AT_ONCE];
        for (auto & s : sum) {
            s = zero();
        }
        for (int64_t d = 0; d < dk; d++) {
            const floats q = load(query + d * LANES);
            for (int i = 0; i < AT_ONCE; i++) {
                sum[i] = multiply_add(set(key[(k + i) * dk + d]), q, sum[i]);
            }
        }
        for (int i = 0; i < AT_ONCE; i++) {
            store(score + (k + i) * LANES, sum[i]);
        }
    }
}

// output[query] = keep[query] * output[query] + sum of score[key][query] * value[key], for ROWS queries and V vectors
template <int ROWS, int V>
void multiply_values(const float * score, const float * value, const float * keep, int n_keys, int64_t dv,
                     float * output) {
    floats sum[ROWS][V];
    for (int r = 0; r < ROWS; r++) {
        for (int v = 0; v < V; v++) {
            sum[r][v] = keep ? multiply(set(keep[r]), load(output + r * dv + v * LANES)) : zero();
        }
    }
    for (int k = 0; k < n_keys; k++) {
        floats x[V];
        for (int v = 0; v < V; v++) {
            x[v] = load(value + k * dv + v * LANES);
        }
        for (int r = 0; r < ROWS; r++) {
            const floats p = set(score[k * LANES + r]);
            for (int v = 0; v < V; v++) {
                sum[r][v] = multiply_add(p, x[v], sum[r][v]);
            }
        }
    }
    for (int r = 0; r < ROWS; r++) {
        for (int v = 0; v < V; v++) {
            store(output + r * dv + v * LANES, sum[r][v]);
        }
    }
}

void multiply_values(const scratch & s, const float * keep, int n_rows, int n_keys, int64_t dv) {
    constexpr int ROWS = 4, MOST = LANES / 4;  // 4 x 4 accumulators of 32 registers, or 4 x 2 of 16
    for (int r = 0; r < n_rows; r += ROWS) {   // LANES rows are there, whatever n_rows is
        const float * kept = keep ? keep + r : nullptr;
        float * out = s.output + r * dv;
        int64_t d = 0;
        for (; d + MOST * LANES <= dv; d += MOST * LANES) {
            multiply_values<ROWS, MOST>(s.score + r, s.value + d, kept, n_keys, dv, out + d);
        }
        for (; d < dv; d += LANES) {
            multiply_values<ROWS, 1>(s.score + r, s.value + d, kept, n_keys, dv, out + d);
        }
    }
}

class flash_attention : public ggml::cpu::tensor_traits {
  public:
    static bool fits(const ggml_tensor * op) {
        if (op->op != GGML_OP_FLASH_ATTN_EXT) {
            return false;
        }
        const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3];
        float parameters[3];  // scale, bias by distance, cap
        memcpy(parameters, op->op_params, sizeof(parameters));
        return parameters[1] == 0.0f && parameters[2] == 0.0f && !op->src[4] && q->type == GGML_TYPE_F32 &&
               op->type == GGML_TYPE_F32 && (k->type == GGML_TYPE_F16 || k->type == GGML_TYPE_F32) &&
               k->type == v->type && q->ne[0] == k->ne[0] && q->ne[0] % LANES == 0 && v->ne[0] % LANES == 0 &&
               q->nb[0] == sizeof(float) && k->nb[0] == ggml_type_size(k->type) &&
               v->nb[0] == ggml_type_size(v->type) && q->ne[1] >= FEW && k->ne[1] < INT32_MAX &&
               k->ne[1] == v->ne[1] && k->ne[2] == v->ne[2] && k->ne[3] == v->ne[3] &&
               q->ne[2] % k->ne[2] == 0 && q->ne[3] % k->ne[3] == 0 &&
               (!mask || (mask->type == GGML_TYPE_F16 && mask->nb[0] == sizeof(uint16_t) && mask->ne[2] == 1 &&
                          mask->ne[0] >= k->ne[1] && mask->ne[1] >= q->ne[1] && q->ne[3] % mask->ne[3] == 0));
    }

    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override {
        const ggml_tensor * q = op->src[0];
        size = padded(q->ne[1] * q->ne[3] * sizeof(range)) +
               n_threads * padded(scratch::size(q->ne[0], op->src[2]->ne[0]));
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3];
        const int64_t n_queries = q->ne[1], n_streams = q->ne[3];
        auto * ranges = (range *) params->wdata;
        const size_t ranges_size = padded(n_queries * n_streams * sizeof(range));
        const size_t one = padded(scratch::size(q->ne[0], v->ne[0]));
        GGML_ASSERT(params->wsize >= ranges_size + params->nth * one);
        const scratch mine((float *) ((char *) params->wdata + ranges_size + params->ith * one), q->ne[0], v->ne[0]);

        for (int64_t i = params->ith; i < n_queries * n_streams; i += params->nth) {
            ranges[i] = { 0, (int32_t) k->ne[1] };
            if (mask) {
                ranges[i] = seen((const uint16_t *) at(mask, i % n_queries, 0, i / n_queries % mask->ne[3]), k->ne[1]);
            }
        }
        if (params->ith == 0) {
            ggml_threadpool_chunk_set(params->threadpool, params->nth);
        }
        ggml_barrier(params->threadpool);

        // Every thread walks all tiles; it computes those (tile, key head) whose number it drew.
        int64_t number = 0, drawn = params->ith;
        for (int64_t stream = 0; stream < n_streams; stream++) {
            const range * const row = ranges + stream * n_queries;
            for (int64_t first = 0, end; first < n_queries; first = end) {
                range keys = row[first];
                for (end = first + 1; end < n_queries && end - first < LANES; end++) {
                    if (row[end].first >= keys.end || row[end].end <= keys.first) {
                        break;  // the next text
                    }
                    keys = { std::min(keys.first, row[end].first), std::max(keys.end, row[end].end) };
                }
                for (int64_t head = 0; head < k->ne[2]; head++, number++) {
                    if (number == drawn) {
                        tile(op, mine, stream, head, first, (int) (end - first), keys);
                        drawn = ggml_threadpool_chunk_add(params->threadpool, 1);
                    }
                }
            }
        }
        return true;
    }

  private:
    // Queries [first, first + n) of all heads that share key head `head`.
    static void tile(ggml_tensor * op, const scratch & s, int64_t stream, int64_t head, int64_t first, int n,
                     range keys) {
        const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3];
        const int64_t shared = q->ne[2] / k->ne[2], dk = q->ne[0], dv = v->ne[0];
        const int64_t kv_stream = stream / (q->ne[3] / k->ne[3]);
        float scale;
        memcpy(&scale, op->op_params, sizeof(scale));
        const bool one_block = keys.end - keys.first <= KEYS;  // then its keys serve all heads
        bool loaded = false;
        for (int64_t h = head * shared; h < (head + 1) * shared; h++) {
            load_queries(q, first, n, h, stream, scale, s.query);
            floats largest = set(-INFINITY), total = zero();
            bool begun = false;
            for (int32_t key = keys.first; key < keys.end; key += KEYS) {
                const int n_keys = std::min(KEYS, keys.end - key);
                const int mixed = mask ? read_mask(mask, stream, first, n, key, n_keys, s.mask) : 0;
                if (mixed < 0) {
                    continue;
                }
                if (!one_block || !loaded) {
                    widen(k, key, n_keys, head, kv_stream, s.key);
                    widen(v, key, n_keys, head, kv_stream, s.value);
                    loaded = true;
                }
                multiply_keys(s.key, s.query, n_keys, dk, s.score);
                floats top = largest;
                for (int i = 0; i < n_keys; i++) {
                    floats x = load(s.score + i * LANES);
                    if (mixed) {
                        x = add(x, load(s.mask + i * LANES));
                        store(s.score + i * LANES, x);
                    }
                    top = maximum(x, top);
                }
                // A query that has seen no key yet has -infinity here, and -infinity - -infinity is no number.
                const floats safe = maximum(top, set(-1e30f));
                floats sum = zero();
                for (int i = 0; i < n_keys; i++) {
                    const floats p = exponential(subtract(load(s.score + i * LANES), safe));
                    store(s.score + i * LANES, p);
                    sum = add(sum, p);
                }
                alignas(64) float keep[LANES];
                const floats kept = exponential(subtract(maximum(largest, set(-1e30f)), safe));
                store(keep, kept);
                total = multiply_add(total, kept, sum);
                largest = top;
                multiply_values(s, begun ? keep : nullptr, n, n_keys, dv);
                begun = true;
            }
            alignas(64) float sums[LANES];
            store(sums, total);
            for (int i = 0; i < n; i++) {
                auto * out = (float *) at(op, h, first + i, stream);
                if (!begun || sums[i] == 0.0f) {  // sees nothing
                    memset(out, 0, dv * sizeof(float));
                    continue;
                }
                const floats by = set(1.0f / sums[i]);
                for (int64_t d = 0; d < dv; d += LANES) {
                    store(out + d, multiply(load(s.output + i * dv + d), by));
                }
            }
        }
    }

    // -1: no query of the tile sees a key of the block; 0: all see all; 1: out[key][lane] is what to add.
    static int read_mask(const ggml_tensor * mask, int64_t stream, int64_t first, int n, int32_t key, int n_keys,
                         float * out) {
        bool all = true, none = true;
        for (int i = 0; i < n; i++) {
            const auto * row = (const uint16_t *) at(mask, first + i, 0, stream % mask->ne[3]) + key;
            for (int j = 0; j < n_keys; j++) {
                all &= row[j] == 0;
                none &= row[j] == HIDDEN;
            }
        }
        if (none || all) {
            return none ? -1 : 0;
        }
        for (int i = 0; i < n; i++) {
            const auto * row = (const uint16_t *) at(mask, first + i, 0, stream % mask->ne[3]) + key;
            for (int j = 0; j < n_keys; j++) {
                out[j * LANES + i] = row[j] == HIDDEN ? -INFINITY : GGML_CPU_FP16_TO_FP32(row[j]);
            }
        }
        return 1;
    }
};

}  // namespace

ggml::cpu::tensor_traits * attention(const ggml_tensor * op) {
    static flash_attention instance;
    return flash_attention::fits(op) ? &instance : nullptr;
}

}  // namespace edge_embed

#else

ggml::cpu::tensor_traits * edge_embed::attention(const ggml_tensor *) {
    return nullptr;
}

#endif
