// The widest float vectors of this x86 processor, under names that the kernels share. LANES is 0 where there are none.

#pragma once

#include "ggml-impl.h"
#include "vec.h"

#include <cstdint>

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    !defined(EDGE_EMBED_YMM)  // defined by the tests on a machine that has both widths
#define EDGE_EMBED_LANES 16
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define EDGE_EMBED_LANES 8
#else
#define EDGE_EMBED_LANES 0
#endif

#if EDGE_EMBED_LANES > 0

#include <immintrin.h>

namespace edge_embed {

constexpr int LANES = EDGE_EMBED_LANES;

#if EDGE_EMBED_LANES == 16

using floats = __m512;
inline floats zero() { return _mm512_setzero_ps(); }
inline floats set(float x) { return _mm512_set1_ps(x); }
inline floats load(const float * p) { return _mm512_loadu_ps(p); }
inline floats load_halves(const uint16_t * p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p)); }
inline void store(float * p, floats x) { _mm512_storeu_ps(p, x); }
inline floats add(floats x, floats y) { return _mm512_add_ps(x, y); }
inline floats subtract(floats x, floats y) { return _mm512_sub_ps(x, y); }
inline floats multiply(floats x, floats y) { return _mm512_mul_ps(x, y); }
inline floats multiply_add(floats x, floats y, floats z) { return _mm512_fmadd_ps(x, y, z); }
inline floats divide(floats x, floats y) { return _mm512_div_ps(x, y); }
inline floats maximum(floats x, floats y) { return _mm512_max_ps(x, y); }
inline floats exponential(floats x) { return ggml_v_expf(x); }

// Row i's lane j becomes row j's lane i.
inline void transpose(floats (&r)[16]) {
    floats t[16];
    for (int i = 0; i < 16; i += 2) {  // pairs of lanes
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {  // fours: r[i + k] holds column 4 q + k in its quarter q
        const __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]);
        const __m512d c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
        r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    for (int k = 0; k < 4; k++) {  // a 4 x 4 of quarters
        const floats a = _mm512_shuffle_f32x4(r[k], r[k + 4], 0x88), b = _mm512_shuffle_f32x4(r[k], r[k + 4], 0xdd);
        const floats c = _mm512_shuffle_f32x4(r[k + 8], r[k + 12], 0x88);
        const floats d = _mm512_shuffle_f32x4(r[k + 8], r[k + 12], 0xdd);
        t[k] = _mm512_shuffle_f32x4(a, c, 0x88);
        t[k + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
        t[k + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
        t[k + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
    for (int i = 0; i < 16; i++) {
        r[i] = t[i];
    }
}

#else

using floats = __m256;
inline floats zero() { return _mm256_setzero_ps(); }
inline floats set(float x) { return _mm256_set1_ps(x); }
inline floats load(const float * p) { return _mm256_loadu_ps(p); }
inline floats load_halves(const uint16_t * p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)); }
inline void store(float * p, floats x) { _mm256_storeu_ps(p, x); }
inline floats add(floats x, floats y) { return _mm256_add_ps(x, y); }
inline floats subtract(floats x, floats y) { return _mm256_sub_ps(x, y); }
inline floats multiply(floats x, floats y) { return _mm256_mul_ps(x, y); }
inline floats multiply_add(floats x, floats y, floats z) { return _mm256_fmadd_ps(x, y, z); }
inline floats divide(floats x, floats y) { return _mm256_div_ps(x, y); }
inline floats maximum(floats x, floats y) { return _mm256_max_ps(x, y); }
inline floats exponential(floats x) {
#if defined(__AVX512F__)  // ggml has the wider one only
    return _mm512_castps512_ps256(ggml_v_expf(_mm512_castps256_ps512(x)));
#else
    return ggml_v_expf(x);
#endif
}

inline void transpose(floats (&r)[8]) {
    floats t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int k = 0; k < 4; k++) {
        t[k] = _mm256_permute2f128_ps(r[k], r[k + 4], 0x20);
        t[k + 4] = _mm256_permute2f128_ps(r[k], r[k + 4], 0x31);
    }
    for (int i = 0; i < 8; i++) {
        r[i] = t[i];
    }
}

#endif

// Keeps the compiler from reading it from memory again in each instruction that uses it.
inline floats in_register(floats x) {
    asm("" : "+v"(x));
    return x;
}

}  // namespace edge_embed

#endif
