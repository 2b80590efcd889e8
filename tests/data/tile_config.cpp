// Writes a tile configuration as ggml's AMX kernels do, loads it, and prints the 64 bytes that the processor would
// have read. The assembler macro below takes the instruction's place, so this runs on a machine without AMX and shows
// the same on one that has it. Compile with -ffixed-r15 -ffixed-xmm15: the macro uses these registers.
#include <cstdint>
#include <cstdio>
#include <immintrin.h>

asm(R"(
.macro ldtilecfg operand:vararg
    leaq   \operand, %r15
    movups   (%r15), %xmm15
    movups %xmm15, seen(%rip)
    movups 16(%r15), %xmm15
    movups %xmm15, 16+seen(%rip)
    movups 32(%r15), %xmm15
    movups %xmm15, 32+seen(%rip)
    movups 48(%r15), %xmm15
    movups %xmm15, 48+seen(%rip)
.endm
)");

extern "C" {
alignas(64) unsigned char seen[64] __attribute__((visibility("hidden")));
}

struct tile_config_t {
    uint8_t  palette_id   = 0;
    uint8_t  start_row    = 0;
    uint8_t  reserved[14] = { 0 };
    uint16_t colsb[16]    = { 0 };
    uint8_t  rows[16]     = { 0 };
};

static inline void configure() {
    static thread_local bool done = false;
    if (done) {
        return;
    }
    alignas(64) tile_config_t tc = {};
    tc.palette_id                = 1;
    tc.start_row                 = 0;
    tc.rows[0] = 8;   tc.colsb[0] = 64;
    tc.rows[1] = 8;   tc.colsb[1] = 64;
    tc.rows[2] = 16;  tc.colsb[2] = 32;
    tc.rows[3] = 16;  tc.colsb[3] = 32;
    tc.rows[4] = 16;  tc.colsb[4] = 64;
    tc.rows[5] = 16;  tc.colsb[5] = 64;
    tc.rows[6] = 16;  tc.colsb[6] = 64;
    tc.rows[7] = 16;  tc.colsb[7] = 64;
    _tile_loadconfig(&tc);
    done = true;
}

// A function of its own that calls nothing else: what it keeps on the stack is dead at its end, save for what an
// instruction is known to read.
__attribute__((noinline)) static void compute() {
    configure();
}

int main() {
    compute();
    const volatile unsigned char * bytes = seen;
    for (int i = 0; i < 64; ++i) {
        std::printf("%02x", bytes[i]);
    }
    std::puts("");
    return 0;
}
