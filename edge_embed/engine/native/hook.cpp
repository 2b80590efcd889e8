// Where ggml's CPU backend asks for kernels of this folder.
//
// ggml lets a buffer type bring kernels of its own ("extra buffer type"). This one is added to the ggml-cpu library by
// llama.cmake, at the place that ggml-cpu.cpp reserves for the Arm library KleidiAI, which no x86 build has: so no
// source of llama.cpp is changed. AMX, where there is any, comes first.
//
// A load with use_extra_bufts=false puts no weights into this buffer type, and so does without the products of
// products.cpp. Kernels that need no weights (attention, GELU) run for every model.

#include "kernels.h"

#include "ggml-cpu.h"

#include <cstdint>
#include <cstdio>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

// ggml-cpu.cpp asks for it by this name.
extern "C" ggml_backend_buffer_type_t ggml_backend_cpu_kleidiai_buffer_type(void);

namespace {

// The product with the whole vocabulary is never computed for an embedding, and where the token embeddings are its
// weights, too, they would be copied for it.
bool vocabulary(const ggml_tensor * weights) {
    return !strcmp(weights->name, "output.weight") || !strcmp(weights->name, "token_embd.weight");
}

ggml::cpu::tensor_traits * product(const ggml_tensor * weights) {
    return vocabulary(weights) ? nullptr : edge_embed::product(weights);
}

#if defined(__linux__)

// What was repacked is not needed in its file's order again. Where it lies in a mapped file this process lets go of
// it, so that the weights are not in memory twice; they stay in the page cache. Other memory would lose what it
// holds, so the kernel is asked what this is.
void let_go(const void * data, size_t size) {
    FILE * maps = fopen("/proc/self/maps", "re");
    char line[512];
    while (maps && fgets(line, sizeof(line), maps)) {
        unsigned long begin, end, inode;
        char access[5];
        if (sscanf(line, "%lx-%lx %4s %*s %*s %lu", &begin, &end, access, &inode) == 4 && begin <= (uintptr_t) data &&
            (uintptr_t) data + size <= end) {
            if (inode && access[1] == '-') {  // a file, and not to be written
                const uintptr_t page = (uintptr_t) sysconf(_SC_PAGESIZE);
                const uintptr_t from = GGML_PAD((uintptr_t) data, page), to = ((uintptr_t) data + size) / page * page;
                if (from < to) {
                    madvise((void *) from, to - from, MADV_DONTNEED);
                }
            }
            break;
        }
    }
    if (maps) {
        fclose(maps);
    }
}

#else

void let_go(const void *, size_t) {}

#endif

ggml_status init_tensor(ggml_backend_buffer_t, ggml_tensor * tensor) {
    tensor->extra = product(tensor);
    return tensor->extra ? GGML_STATUS_SUCCESS : GGML_STATUS_FAILED;  // supports_op lets no other tensor come here
}

void set_tensor(ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    GGML_ASSERT(offset == 0 && size == ggml_nbytes(tensor) && tensor->extra);
    edge_embed::repack(tensor, data);
    let_go(data, size);
}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (buffer) {
        buffer->buft = type;
        buffer->iface.init_tensor = init_tensor;
        buffer->iface.set_tensor = set_tensor;
        buffer->iface.get_tensor = nullptr;
        buffer->iface.cpy_tensor = nullptr;
    }
    return buffer;
}

const char * get_name(ggml_backend_buffer_type_t) {
    return "CPU_VNNI";
}

size_t get_alignment(ggml_backend_buffer_type_t) {
    return 64;
}

class buffer_type : public ggml::cpu::extra_buffer_type {
    static bool ours(const ggml_tensor * op) {
        return op->op == GGML_OP_MUL_MAT && op->src[0]->buffer &&
               op->src[0]->buffer->buft == ggml_backend_cpu_kleidiai_buffer_type();
    }

  public:
    bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) override {
        return ours(op) && product(op->src[0]) && op->src[1]->type == GGML_TYPE_F32 &&
               op->src[1]->nb[0] == sizeof(float) &&
               (!op->src[1]->buffer || ggml_backend_buft_is_host(op->src[1]->buffer->buft));
    }

    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        if (op->op == GGML_OP_MUL_MAT) {
            return ours(op) ? (ggml::cpu::tensor_traits *) op->src[0]->extra : nullptr;
        }
        ggml::cpu::tensor_traits * kernel = edge_embed::gelu(op);
        return kernel ? kernel : edge_embed::attention(op);
    }
};

}  // namespace

ggml_backend_buffer_type_t ggml_backend_cpu_kleidiai_buffer_type(void) {
    static buffer_type context;
    static ggml_backend_buffer_type type = {
        /* .iface   = */ {
            /* .get_name       = */ get_name,
            /* .alloc_buffer   = */ alloc_buffer,
            /* .get_alignment  = */ get_alignment,
            /* .get_max_size   = */ nullptr,
            /* .get_alloc_size = */ nullptr,
            /* .is_host        = */ nullptr,
        },
        /* .device  = */ ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0),
        /* .context = */ &context,
    };
    return &type;
}
