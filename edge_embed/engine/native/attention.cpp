// Attention over a batch of many texts, for ggml's CPU backend on x86 processors.
//
// A batch packs texts of different lengths into one ubatch, and the mask says which token sees which. Stock ggml works
// in tiles of 64 queries by 64 keys wherever they lie, converts the mask to floats again for each head, and computes
// every pair of a tile that any pair of is needed. Of sentences of 15 tokens that is one pair in four, and most of the
// time goes to the mask. Here each query's range of keys is looked up in the mask once for all heads; tiles of queries
// begin and end with the texts, and only blocks of keys that some query of the tile sees are computed.
//
// A tile is some queries of all the heads that share a key head, so that keys and values, which a KV cache holds in
// half precision, are widened once for all of them; its rows are (query, head) pairs, and a few queries fill the lanes,
// too. In a KV cache a query may see a prefix that it shares with other texts and its own text, with other texts in
// between: blocks that no query of a tile sees are skipped wherever they lie.
//
// Scores have rows in lanes, so that the largest of them, exponentials and sums need no shuffles. The products with the
// values have the head's dimensions in lanes. Softmax is computed block by block with a running maximum (Milakov and
// Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867), in float32 throughout.
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
constexpr int AT_ONCE = 8;           // keys whose scores are accumulated at a time
constexpr int64_t TILE_ROWS = 64;    // rows of a tile, unless one query has more
constexpr int64_t LARGEST = 256;     // values of a key
constexpr int64_t STRIDE = LARGEST + 16;  // from a widened key to the next: known to the compiler, no power of two
constexpr int64_t FEW = 4;           // fewer queries than this leave most lanes empty
constexpr uint16_t HIDDEN = 0xfc00;  // -infinity in half precision

// Keys that a query sees lie in [first, end).
struct range {
    int32_t first, end;
};

// One thread's working memory. A vector is LANES rows.
struct scratch {
    float * query;   // [vector][DK][LANES], scaled
    float * output;  // [vector][LANES][DV]
    float * key;     // [KEYS][STRIDE]
    float * value;   // [KEYS][DV]
    float * mask;    // [KEYS][LANES]
    float * score;   // [KEYS][LANES]
    float * largest; // [vector][LANES]
    float * total;   // [vector][LANES]

    static size_t size(int64_t n_vectors, int64_t dk, int64_t dv) {
        return (n_vectors * LANES * (dk + dv + 2) + KEYS * (STRIDE + dv) + 2 * KEYS * LANES) * sizeof(float);
    }
    scratch(float * p, int64_t n_vectors, int64_t dk, int64_t dv) {
        query = p;
        output = query + n_vectors * LANES * dk;
        key = output + n_vectors * LANES * dv;
        value = key + KEYS * STRIDE;
        mask = value + KEYS * dv;
        score = mask + KEYS * LANES;
        largest = score + KEYS * LANES;
        total = largest + n_vectors * LANES;
    }
};

size_t padded(size_t n) {
    return GGML_PAD(n, 64);
}

const char * at(const ggml_tensor * x, int64_t i1, int64_t i2, int64_t i3) {
    return (const char *) x->data + i1 * x->nb[1] + i2 * x->nb[2] + i3 * x->nb[3];
}

bool hidden(const uint16_t * mask) {
    uint16_t other = 0;
    for (int i = 0; i < LANES; i++) {
        other |= (uint16_t) (mask[i] ^ HIDDEN);
    }
    return other == 0;
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

// `n` rows as float32, `stride` apart.
void widen(const ggml_tensor * x, int64_t first, int n, int64_t i2, int64_t i3, float * out, int64_t stride) {
    const int64_t d = x->ne[0];
    for (int i = 0; i < n; i++, out += stride) {
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

// score[key][lane] = key . query
void multiply_keys(const float * key, const float * query, int n_keys, int64_t dk, float * score) {
    for (int k = 0; k < n_keys; k += AT_ONCE) {  // the rows behind the last key hold something, and nobody looks
        floats sum[AT_ONCE];
        std::fill(sum, sum + AT_ONCE, zero());
        const float * first = key + k * STRIDE;
        for (int64_t d = 0; d < dk; d++) {
            const floats q = load(query + d * LANES);
            for (int i = 0; i < AT_ONCE; i++) {
                sum[i] = multiply_add(set(first[i * STRIDE + d]), q, sum[i]);
            }
        }
        for (int i = 0; i < AT_ONCE; i++) {
            store(score + (k + i) * LANES, sum[i]);
        }
    }
}

// output[row] = keep[row] * output[row] + sum of score[key][row] * value[key], for R rows and V vectors of values
template <int R, int V>
void multiply_values(const float * score, const float * value, const float * keep, int n_keys, int64_t dv,
                     float * output) {
    floats sum[R][V];
    for (int r = 0; r < R; r++) {
        for (int v = 0; v < V; v++) {
            sum[r][v] = keep ? multiply(set(keep[r]), load(output + r * dv + v * LANES)) : zero();
        }
    }
    for (int k = 0; k < n_keys; k++) {
        floats x[V];
        for (int v = 0; v < V; v++) {
            x[v] = in_register(load(value + k * dv + v * LANES));
        }
        for (int r = 0; r < R; r++) {
            const floats p = set(score[k * LANES + r]);
            for (int v = 0; v < V; v++) {
                sum[r][v] = multiply_add(p, x[v], sum[r][v]);
            }
        }
    }
    for (int r = 0; r < R; r++) {
        for (int v = 0; v < V; v++) {
            store(output + r * dv + v * LANES, sum[r][v]);
        }
    }
}

void multiply_values(const float * score, const float * value, const float * keep, int n_rows, int n_keys, int64_t dv,
                     float * output) {
    constexpr int R = 4, MOST = LANES / 4;  // 4 x 4 accumulators of 32 registers, or 4 x 2 of 16
    for (int r = 0; r < n_rows; r += R) {   // LANES rows are there, whatever n_rows is
        const float * kept = keep ? keep + r : nullptr;
        float * out = output + r * dv;
        int64_t d = 0;
        for (; d + MOST * LANES <= dv; d += MOST * LANES) {
            multiply_values<R, MOST>(score + r, value + d, kept, n_keys, dv, out + d);
        }
        for (; d < dv; d += LANES) {
            multiply_values<R, 1>(score + r, value + d, kept, n_keys, dv, out + d);
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
               k->type == v->type && q->ne[0] == k->ne[0] && q->ne[0] % LANES == 0 && q->ne[0] <= LARGEST &&
               v->ne[0] % LANES == 0 &&
               q->nb[0] == sizeof(float) && k->nb[0] == ggml_type_size(k->type) &&
               v->nb[0] == ggml_type_size(v->type) && q->ne[1] >= FEW && k->ne[1] < INT32_MAX &&
               k->ne[1] == v->ne[1] && k->ne[2] == v->ne[2] && k->ne[3] == v->ne[3] &&
               q->ne[2] % k->ne[2] == 0 && q->ne[2] / k->ne[2] <= TILE_ROWS && q->ne[3] % k->ne[3] == 0 &&
               (!mask || (mask->type == GGML_TYPE_F16 && mask->nb[0] == sizeof(uint16_t) && mask->ne[2] == 1 &&
                          mask->ne[0] >= k->ne[1] && mask->ne[1] >= q->ne[1] && q->ne[3] % mask->ne[3] == 0));
    }

    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override {
        const sizes n(op);
        size = n.ranges + n_threads * n.scratch;
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3];
        const sizes n(op);
        const int64_t n_queries = q->ne[1], n_streams = q->ne[3];
        auto * ranges = (range *) params->wdata;
        GGML_ASSERT(params->wsize >= n.ranges + params->nth * n.scratch);
        const scratch mine((float *) ((char *) params->wdata + n.ranges + params->ith * n.scratch), n.vectors, k->ne[0],
                           v->ne[0]);

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
                for (end = first + 1; end < n_queries && end - first < n.queries; end++) {
                    if (row[end].first >= keys.end || row[end].end <= keys.first) {
                        break;  // the next text
                    }
                    keys = { std::min(keys.first, row[end].first), std::max(keys.end, row[end].end) };
                }
                for (int64_t head = 0; head < k->ne[2]; head++, number++) {
                    if (number == drawn) {
                        tile(op, mine, { stream, head, first, end - first, q->ne[2] / k->ne[2] }, keys);
                        drawn = ggml_threadpool_chunk_add(params->threadpool, 1);
                    }
                }
            }
        }
        return true;
    }

  private:
    struct sizes {
        int64_t queries, vectors;  // of a tile, at most
        size_t ranges, scratch;    // bytes: of all queries' ranges, of one thread's working memory

        explicit sizes(const ggml_tensor * op) {
            const ggml_tensor * q = op->src[0];
            const int64_t shared = q->ne[2] / op->src[1]->ne[2];
            queries = std::max<int64_t>(1, TILE_ROWS / shared);
            vectors = (queries * shared + LANES - 1) / LANES;
            ranges = padded(q->ne[1] * q->ne[3] * sizeof(range));
            scratch = padded(edge_embed::scratch::size(vectors, q->ne[0], op->src[2]->ne[0]));
        }
    };

    // Queries [first, first + n) of the `shared` heads that have key head `head`. Row i is query i / shared of them.
    struct rows {
        int64_t stream, head, first, n, shared;

        int64_t count() const { return n * shared; }
        int64_t query(int64_t i) const { return first + i / shared; }
        int64_t query_head(int64_t i) const { return head * shared + i % shared; }
        int in_vector(int64_t v) const { return (int) std::min<int64_t>(LANES, count() - v * LANES); }
    };

    static void tile(ggml_tensor * op, const scratch & s, const rows & r, range keys) {
        const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3];
        const int64_t dk = q->ne[0], dv = v->ne[0], kv_stream = r.stream / (q->ne[3] / k->ne[3]);
        const int64_t n_vectors = (r.count() + LANES - 1) / LANES;
        for (int64_t i = 0; i < n_vectors; i++) {
            load_queries(op, r, i, s.query + i * LANES * dk);
            store(s.largest + i * LANES, set(-INFINITY));
            store(s.total + i * LANES, zero());
        }
        bool begun[TILE_ROWS] = {};
        for (int32_t key = keys.first; key < keys.end; key += KEYS) {
            const int n_keys = std::min(KEYS, keys.end - key);
            bool loaded = false;
            for (int64_t i = 0; i < n_vectors; i++) {
                const int mixed = mask ? read_mask(mask, r, i, key, n_keys, s.mask) : 0;
                if (mixed < 0) {
                    continue;
                }
                if (!loaded) {
                    widen(k, key, n_keys, r.head, kv_stream, s.key, STRIDE);
                    widen(v, key, n_keys, r.head, kv_stream, s.value, dv);
                    loaded = true;
                }
                multiply_keys(s.key, s.query + i * LANES * dk, n_keys, dk, s.score);
                alignas(64) float keep[LANES];
                soften(s.score, mixed ? s.mask : nullptr, n_keys, s.largest + i * LANES, s.total + i * LANES, keep);
                multiply_values(s.score, s.value, begun[i] ? keep : nullptr, r.in_vector(i), n_keys, dv,
                                s.output + i * LANES * dv);
                begun[i] = true;
            }
        }
        for (int64_t i = 0; i < r.count(); i++) {
            auto * out = (float *) ((char *) op->data + r.query_head(i) * op->nb[1] + r.query(i) * op->nb[2] +
                                    r.stream * op->nb[3]);
            if (!begun[i / LANES] || s.total[i] == 0.0f) {  // sees nothing
                memset(out, 0, dv * sizeof(float));
                continue;
            }
            const floats by = set(1.0f / s.total[i]);
            for (int64_t d = 0; d < dv; d += LANES) {
                store(out + d, multiply(load(s.output + i * dv + d), by));
            }
        }
    }

    // out[d][lane] = scale * q[lane][d] of a vector's rows
    static void load_queries(const ggml_tensor * op, const rows & r, int64_t vector, float * out) {
        const ggml_tensor * q = op->src[0];
        float scale;
        memcpy(&scale, op->op_params, sizeof(scale));
        const float * row[LANES];
        const int n = r.in_vector(vector);
        for (int i = 0; i < n; i++) {
            row[i] = (const float *) at(q, r.query(vector * LANES + i), r.query_head(vector * LANES + i), r.stream);
        }
        for (int64_t d = 0; d < q->ne[0]; d += LANES) {
            floats lanes[LANES];
            for (int i = 0; i < LANES; i++) {
                lanes[i] = i < n ? multiply(load(row[i] + d), set(scale)) : zero();
            }
            transpose(lanes);
            for (int i = 0; i < LANES; i++) {
                store(out + (d + i) * LANES, lanes[i]);
            }
        }
    }

    // Scores become exponentials of what they are above the largest so far; `keep` is what earlier ones shrink by.
    static void soften(float * score, const float * mask, int n_keys, float * largest, float * total, float * keep) {
        floats top = load(largest);
        for (int i = 0; i < n_keys; i++) {
            floats x = load(score + i * LANES);
            if (mask) {
                x = add(x, load(mask + i * LANES));
                store(score + i * LANES, x);
            }
            top = maximum(x, top);
        }
        // A query that has seen no key yet has -infinity here, and -infinity - -infinity is no number.
        const floats safe = maximum(top, set(-1e30f));
        floats sum = zero();
        for (int i = 0; i < n_keys; i++) {
            const floats p = exponential(subtract(load(score + i * LANES), safe));
            store(score + i * LANES, p);
            sum = add(sum, p);
        }
        const floats kept = exponential(subtract(maximum(load(largest), set(-1e30f)), safe));
        store(keep, kept);
        store(total, multiply_add(load(total), kept, sum));
        store(largest, top);
    }

    // -1: no row of the vector sees a key of the block; 0: all see all; 1: out[key][lane] is what to add.
    static int read_mask(const ggml_tensor * mask, const rows & r, int64_t vector, int32_t key, int n_keys,
                         float * out) {
        const uint16_t * row[LANES];
        alignas(64) uint16_t padded[LANES][KEYS];  // of a block that is not whole
        uint16_t other = 0, any = 0;
        const int n = r.in_vector(vector);
        for (int i = 0; i < n; i++) {
            row[i] = (const uint16_t *) at(mask, r.query(vector * LANES + i), 0, r.stream % mask->ne[3]) + key;
            if (i > 0 && r.query(vector * LANES + i) == r.query(vector * LANES + i - 1)) {
                row[i] = row[i - 1];
                continue;
            }
            if (n_keys < KEYS) {
                std::copy(row[i], row[i] + n_keys, padded[i]);
                std::fill(padded[i] + n_keys, padded[i] + KEYS, row[i][0]);
                row[i] = padded[i];
            }
            for (int j = 0; j < KEYS; j++) {
                other |= (uint16_t) (row[i][j] ^ HIDDEN);
                any |= row[i][j];
            }
        }
        if (other == 0 || any == 0) {
            return other == 0 ? -1 : 0;
        }
        for (int j = 0; j < KEYS; j += LANES) {
            floats lanes[LANES];
            for (int i = 0; i < LANES; i++) {
                lanes[i] = i < n ? load_halves(row[i] + j) : zero();
            }
            transpose(lanes);
            for (int i = 0; i < LANES; i++) {
                store(out + (j + i) * LANES, lanes[i]);
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
