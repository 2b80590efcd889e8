// The quantized formats that products.cpp multiplies by: how a file stores them, and how a vector of unsigned bytes
// and its scales come out of it. Layouts: ggml-common.h.
//
// A format's block has 32 values. Its superblock (one block, or eight in the K-quants) is stored in the file row by
// row; here as 32-bit words of ROWS rows side by side, so that lane r of a vector always is row r. The words are the
// file's own, bit for bit, and so are the half-precision scales that lie beside them in some formats: a repacked matrix
// is as large as in the file.
//
//     value = scale * (stored - OFFSET) - min

#pragma once

#include "vnni.h"

#if defined(EDGE_EMBED_VNNI)

namespace edge_embed {

constexpr int ROWS = LANES;
constexpr int BLOCK = 32;         // values
constexpr int QUADS = BLOCK / 4;  // vectors of a block: lane r holds four values of row r

using words = uint32_t[ROWS];

// d, dmin: two halves of a word. Eight scales and eight mins of 6 bits in three words.
struct scales_6 {
    static void expand(const words * w, float * scale, float * min) {
        const ints six = set_ints(0x3f3f3f3f), four = set_ints(0x0f0f0f0f), top = set_ints(0x30303030);
        const ints a = load_ints(w[1]), b = load_ints(w[2]), c = load_ints(w[3]);
        const floats d = low_halves(load_ints(w[0])), dmin = low_halves(right<16>(load_ints(w[0])));
        const floats minus = subtract(zero(), dmin);
        four_of(bits_of(a, six), d, scale);
        four_of(join(right<2>(a), top, bits_of(c, four)), d, scale + 4 * ROWS);
        four_of(bits_of(b, six), minus, min);
        four_of(join(right<2>(b), top, bits_of(right<4>(c), four)), minus, min + 4 * ROWS);
    }

  private:
    static void four_of(ints bytes, floats by, float * out) {
        const ints byte = set_ints(0xff);
        store(out, multiply(to_floats(bits_of(bytes, byte)), by));
        store(out + ROWS, multiply(to_floats(bits_of(right<8>(bytes), byte)), by));
        store(out + 2 * ROWS, multiply(to_floats(bits_of(right<16>(bytes), byte)), by));
        store(out + 3 * ROWS, multiply(to_floats(right<24>(bytes)), by));
    }
};

struct q8_0 {
    static constexpr ggml_type TYPE = GGML_TYPE_Q8_0;
    static constexpr int BLOCKS = 1, BYTES = 34, WORDS = 8, WORDS_AT = 2, HALF_AT = 0;
    static constexpr int PARTS = 1, OFFSET = 128;
    static constexpr bool MIN = false;

    static void expand(const words *, const uint16_t * halves, float * scale, float *) {
        store(scale, load_halves(halves));
    }

    explicit q8_0(int) {}
    ints quad(const words * w, int j) const { return flip(load_ints(w[j]), set_ints((int32_t) 0x80808080)); }
};

// Values of two blocks share bytes: the low and the high four bits.
struct q4_k : scales_6 {
    static constexpr ggml_type TYPE = GGML_TYPE_Q4_K;
    static constexpr int BLOCKS = 8, BYTES = 144, WORDS = 36, WORDS_AT = 0, HALF_AT = -1;
    static constexpr int PARTS = 1, OFFSET = 0;
    static constexpr bool MIN = true;

    static void expand(const words * w, const uint16_t *, float * scale, float * min) {
        scales_6::expand(w, scale, min);
    }

    const int at;
    const ints shift;
    explicit q4_k(int block) : at(4 + block / 2 * QUADS), shift(set_ints(block % 2 * 4)) {}
    ints quad(const words * w, int j) const {
        return bits_of(right(load_ints(w[at + j]), shift), set_ints(0x0f0f0f0f));
    }
};

// As q4_k, and a fifth bit: bit b of byte i is that of value i in block b.
struct q5_k : scales_6 {
    static constexpr ggml_type TYPE = GGML_TYPE_Q5_K;
    static constexpr int BLOCKS = 8, BYTES = 176, WORDS = 44, WORDS_AT = 0, HALF_AT = -1;
    static constexpr int PARTS = 1, OFFSET = 0;
    static constexpr bool MIN = true;

    static void expand(const words * w, const uint16_t *, float * scale, float * min) {
        scales_6::expand(w, scale, min);
    }

    const int at;
    const ints shift, high_shift;
    explicit q5_k(int block)
        : at(12 + block / 2 * QUADS), shift(set_ints(block % 2 * 4)), high_shift(set_ints(block)) {}
    ints quad(const words * w, int j) const {
        const ints low = bits_of(right(load_ints(w[at + j]), shift), set_ints(0x0f0f0f0f));
        return join(left<4>(right(load_ints(w[4 + j]), high_shift)), set_ints(0x10101010), low);
    }
};

// Four blocks share 64 bytes of low and 32 bytes of high bits. A signed scale of 8 bits for each half of a block.
struct q6_k {
    static constexpr ggml_type TYPE = GGML_TYPE_Q6_K;
    static constexpr int BLOCKS = 8, BYTES = 210, WORDS = 52, WORDS_AT = 0, HALF_AT = 208;
    static constexpr int PARTS = 2, OFFSET = 32;
    static constexpr bool MIN = false;

    static void expand(const words * w, const uint16_t * halves, float * scale, float *) {
        const floats d = load_halves(halves);
        for (int i = 0; i < 4; i++, scale += 4 * ROWS) {
            const ints bytes = load_ints(w[48 + i]);
            store(scale, multiply(to_floats(sign_of_top_byte(left<24>(bytes))), d));
            store(scale + ROWS, multiply(to_floats(sign_of_top_byte(left<16>(bytes))), d));
            store(scale + 2 * ROWS, multiply(to_floats(sign_of_top_byte(left<8>(bytes))), d));
            store(scale + 3 * ROWS, multiply(to_floats(sign_of_top_byte(bytes)), d));
        }
    }

    const int at, high;
    const ints shift, high_shift;
    explicit q6_k(int block)
        : at((block / 4 * 2 + block % 2) * QUADS), high(32 + block / 4 * QUADS),
          shift(set_ints(block / 2 % 2 * 4)), high_shift(set_ints(block % 4 * 2)) {}
    ints quad(const words * w, int j) const {
        const ints low = bits_of(right(load_ints(w[at + j]), shift), set_ints(0x0f0f0f0f));
        return join(left<4>(right(load_ints(w[high + j]), high_shift)), set_ints(0x30303030), low);
    }
};

}  // namespace edge_embed

#endif
