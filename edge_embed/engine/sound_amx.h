/* A sound _tile_loadconfig for GCC before version 14; nothing at all elsewhere.
 *
 * The build of llama-cpp-python force-includes this file into every C and C++ source (edge_embed/engine/llama.cmake).
 *
 * What goes wrong without it. The AMX instruction `ldtilecfg` reads a tile configuration of 64 bytes. GCC's
 * intrinsic of the same purpose was written as
 *
 *     __asm__ volatile ("ldtilecfg\t%X0" :: "m" (*((const void **)__config)));
 *
 * which tells the optimizer that the instruction reads one pointer: 8 bytes. The stores to the other 56 bytes, among
 * them the rows and columns of every tile, are then dead and may be removed, and ldtilecfg or the next tile
 * instruction faults on what happens to lie on the stack. ggml's AMX kernels are such a case: on a processor with AMX,
 * a build by GCC 12.2 dies at its first product with Q8_0, Q4_0 or Q4_K weights.
 *
 * GCC bug target/114098; fixed in 14 and backported to 13.3, 12.4 and 11.5. Distributions patch compilers without
 * changing these numbers, so every GCC before 14 gets the replacement: on a repaired one it changes nothing.
 *
 * What this does. Both intrinsics get an operand as large as what the instruction reads or writes. Only sources
 * that are compiled with AMX switched on (-mamx-tile, or -march=native on such a machine) are touched. Clang and MSVC
 * have it right and see an empty file.
 */
#ifndef EDGE_EMBED_SOUND_AMX_H
#define EDGE_EMBED_SOUND_AMX_H

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 14 && defined(__x86_64__) && defined(__AMX_TILE__) && \
    !defined(__ASSEMBLER__)

/* First the original, whose include guard then keeps it from being read again under the new names. */
#include <immintrin.h>

/* may_alias: the caller's struct is of another type; without it the stores could be reordered past the asm. */
typedef struct {
    unsigned char bytes[64];
} __attribute__((__may_alias__)) edge_embed_tile_config;

static inline __attribute__((__always_inline__, __unused__)) void edge_embed_tile_loadconfig(const void * config) {
    __asm__ volatile("ldtilecfg\t%X0" ::"m"(*(const edge_embed_tile_config *) config));
}

static inline __attribute__((__always_inline__, __unused__)) void edge_embed_tile_storeconfig(void * config) {
    __asm__ volatile("sttilecfg\t%X0" : "=m"(*(edge_embed_tile_config *) config));
}

#define _tile_loadconfig  edge_embed_tile_loadconfig
#define _tile_storeconfig edge_embed_tile_storeconfig

#endif
#endif
