/* ggml-openvino compiles a graph once and keeps it, with pointers to the tensors that it was made of. The next time it
 * takes its inputs (the attention's mask, positions, tokens) from those, and looks for them in the graph at hand only
 * where the KV cache's buffer is another one. But llama.cpp may lay out a graph elsewhere in memory whenever a batch has
 * other shapes, and then the inputs are those of an earlier batch: a mask of another size, which ends in an error
 * ("Shape inference of Add_... failed: broadcast_merge_into"), or one of the same size and whatever it holds by now.
 *
 * So it is made to look every time, which takes a few milliseconds of a batch's seconds. llama.cmake includes this file
 * into the one source that asks.
 */
#ifndef EDGE_EMBED_OPENVINO_INPUTS_H
#define EDGE_EMBED_OPENVINO_INPUTS_H

#include "ggml-openvino/ggml-decoder.h"

/* `if (old_m_params.kv_buffer_changed(m_params))` */
#define kv_buffer_changed(params) kv_buffer_changed(params) || true

#endif
