// Vectors of 32-bit lanes and products of bytes (AVX-512 VNNI or AVX-VNNI), under names that the kernels share.
// EDGE_EMBED_VNNI is not defined where the processor lacks the instruction.

#pragma once

#include "vectors.h"

#if (EDGE_EMBED_LANES == 16 && defined(__AVX512VNNI__)) || \
    (EDGE_EMBED_LANES == 8 && (defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))))
#define EDGE_EMBED_VNNI

namespace edge_embed {

#if EDGE_EMBED_LANES == 16

using ints = __m512i;
inline ints no_ints() { return _mm512_setzero_si512(); }
inline ints set_ints(int32_t x) { return _mm512_set1_epi32(x); }
inline ints load_ints(const void * p) { return _mm512_loadu_si512(p); }
inline ints bits_of(ints x, ints mask) { return _mm512_and_si512(x, mask); }
inline ints flip(ints x, ints mask) { return _mm512_xor_si512(x, mask); }
inline ints join(ints x, ints mask, ints y) { return _mm512_ternarylogic_epi32(x, mask, y, 0xea); }  // (x & mask) | y
template <int N> ints left(ints x) { return _mm512_slli_epi32(x, N); }
template <int N> ints right(ints x) { return _mm512_srli_epi32(x, N); }
inline ints right(ints x, ints n) { return _mm512_srlv_epi32(x, n); }
inline ints sign_of_top_byte(ints x) { return _mm512_srai_epi32(x, 24); }
inline floats to_floats(ints x) { return _mm512_cvtepi32_ps(x); }
inline floats low_halves(ints x) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x)); }
inline ints dot(ints sum, ints u, ints s) { return _mm512_dpbusd_epi32(sum, u, s); }

#else

using ints = __m256i;
inline ints no_ints() { return _mm256_setzero_si256(); }
inline ints set_ints(int32_t x) { return _mm256_set1_epi32(x); }
inline ints load_ints(const void * p) { return _mm256_loadu_si256((const __m256i *) p); }
inline ints bits_of(ints x, ints mask) { return _mm256_and_si256(x, mask); }
inline ints flip(ints x, ints mask) { return _mm256_xor_si256(x, mask); }
inline ints join(ints x, ints mask, ints y) { return _mm256_or_si256(_mm256_and_si256(x, mask), y); }
template <int N> ints left(ints x) { return _mm256_slli_epi32(x, N); }
template <int N> ints right(ints x) { return _mm256_srli_epi32(x, N); }
inline ints right(ints x, ints n) { return _mm256_srlv_epi32(x, n); }
inline ints sign_of_top_byte(ints x) { return _mm256_srai_epi32(x, 24); }
inline floats to_floats(ints x) { return _mm256_cvtepi32_ps(x); }
inline floats low_halves(ints x) {
    const ints packed = _mm256_packus_epi32(_mm256_and_si256(x, _mm256_set1_epi32(0xffff)), _mm256_setzero_si256());
    return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}
#if defined(__AVXVNNI__)
inline ints dot(ints sum, ints u, ints s) { return _mm256_dpbusd_avx_epi32(sum, u, s); }
#else
inline ints dot(ints sum, ints u, ints s) { return _mm256_dpbusd_epi32(sum, u, s); }
#endif

#endif

}  // namespace edge_embed

#endif
