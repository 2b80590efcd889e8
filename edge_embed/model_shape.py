"""How large the parts of a model are: what its memory is computed from, without its weights. Pure.

From the header of a GGUF, or, for a known model that is not here, from the numbers that its publisher gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

# Architectures that attend within a window in some layers: their graph has two masks. Source: llama.cpp, models/*.cpp.
_WINDOWED: Final = ("modern-bert", "gemma-embedding")


@dataclass(frozen=True, slots=True)
class Matrix:
    """Weight matrices of one type and shape, all layers together.

    Attributes:
        type_name: the type they are stored as, e.g. ``Q4_K``; empty where it is not known.
        n_in: values of a row.
        n_out: rows of each.
        n_bytes: of all of them.
    """

    type_name: str
    n_in: int
    n_out: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a model's memory depends on; sizes are bytes of the file's tensors.

    Attributes:
        n_layer: layers.
        n_embd: width of the hidden states.
        n_ff: width of the feed-forward part.
        n_head: attention heads.
        n_head_kv: key/value heads.
        key_length: values of a head's key.
        value_length: values of a head's value.
        n_vocab: rows of the vocabulary.
        n_merges: BPE merges that the tokenizer holds.
        trie: whether the tokenizer is a unigram model, whose library builds a trie.
        gated: whether the feed-forward part has a gate.
        windowed: whether some layers attend within a window.
        tied: whether the token embeddings are the output matrix, too.
        input_bytes: embeddings of tokens, positions and types; they stay in main memory.
        layer_bytes: of each layer.
        output_bytes: final norm, output matrix and heads.
        matrices: the layers' matrices, and the output matrix.
        file_bytes: the whole file.
    """

    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    key_length: int
    value_length: int
    n_vocab: int
    n_merges: int
    trie: bool
    gated: bool
    windowed: bool
    tied: bool
    input_bytes: int
    layer_bytes: tuple[int, ...]
    output_bytes: int
    matrices: tuple[Matrix, ...]
    file_bytes: int

    @property
    def weights_bytes(self) -> int:
        """Every tensor once."""
        return self.input_bytes + sum(self.layer_bytes) + self.output_bytes


class Tensor(Protocol):
    """An entry of a file's directory, as ``gguf_header`` reads it."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def type_name(self) -> str: ...

    @property
    def n_bytes(self) -> int: ...


def shape_of(metadata: Mapping[str, Any], tensors: Iterable[Tensor], file_bytes: int, *, decoder: bool) -> ModelShape:
    """The shape of a GGUF whose header was found to be sound (``soundness``).

    Args:
        metadata: its key-values.
        tensors: its directory.
        file_bytes: its size.
        decoder: whether llama.cpp's graph of the architecture ends with an output matrix.
    """
    arch = metadata["general.architecture"]
    n_layer, n_embd = metadata[f"{arch}.block_count"], metadata[f"{arch}.embedding_length"]
    n_head = metadata[f"{arch}.attention.head_count"]
    by_layer = [0] * n_layer
    input_bytes = output_bytes = 0
    names: set[str] = set()
    sums: dict[tuple[str, int, int], int] = {}
    embeddings: Tensor | None = None
    for tensor in tensors:
        names.add(tensor.name)
        place = tensor.name.split(".")
        in_layer = place[0] == "blk" and place[1].isdigit() and int(place[1]) < n_layer
        if in_layer:
            by_layer[int(place[1])] += tensor.n_bytes
        elif place[0] in ("output", "output_norm", "cls", "cls_out", "dense_2", "dense_3"):
            output_bytes += tensor.n_bytes
        else:
            input_bytes += tensor.n_bytes
            if tensor.name == "token_embd.weight":
                embeddings = tensor
        if len(tensor.shape) == 2 and (in_layer or tensor.name == "output.weight"):
            key = (tensor.type_name, tensor.shape[0], tensor.shape[1])
            sums[key] = sums.get(key, 0) + tensor.n_bytes
    matrices = [Matrix(*key, n_bytes) for key, n_bytes in sums.items()]
    tied = decoder and "output.weight" not in names
    matrices += [_matrix(embeddings)] if tied and embeddings is not None else []
    return ModelShape(
        n_layer=n_layer,
        n_embd=n_embd,
        n_ff=metadata[f"{arch}.feed_forward_length"],
        n_head=n_head,
        n_head_kv=metadata.get(f"{arch}.attention.head_count_kv", n_head),
        key_length=metadata.get(f"{arch}.attention.key_length", n_embd // n_head),
        value_length=metadata.get(f"{arch}.attention.value_length", n_embd // n_head),
        n_vocab=len(metadata["tokenizer.ggml.tokens"]),
        n_merges=len(metadata.get("tokenizer.ggml.merges", ())),
        trie=metadata.get("tokenizer.ggml.model") == "t5",
        gated="blk.0.ffn_gate.weight" in names or arch in ("modern-bert", "nomic-bert"),
        windowed=arch in _WINDOWED,
        tied=tied,
        input_bytes=input_bytes,
        layer_bytes=tuple(by_layer),
        output_bytes=output_bytes,
        matrices=tuple(matrices),
        file_bytes=file_bytes,
    )


def _matrix(tensor: Tensor) -> Matrix:
    return Matrix(tensor.type_name, tensor.shape[0], tensor.shape[1], tensor.n_bytes)


@dataclass(frozen=True, slots=True)
class Published:
    """A decoder's config.json, as far as memory goes. Key and value heads have one length.

    Attributes:
        layers: ``num_hidden_layers``.
        hidden: ``hidden_size``.
        feed_forward: ``intermediate_size``.
        heads: ``num_attention_heads``.
        kv_heads: ``num_key_value_heads``.
        head_dim: ``head_dim``.
        vocabulary: rows of the token embeddings.
        merges: BPE merges of its tokenizer.
    """

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    merges: int

    @property
    def layer_weights(self) -> int:
        """Matrices and norms of a layer with a gate, four attention matrices and norms of queries and keys."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.feed_forward + 2 * self.hidden + 2 * self.head_dim

    @property
    def parameters(self) -> int:
        """All weights; the output matrix is the token embeddings."""
        return self.layers * self.layer_weights + (self.vocabulary + 1) * self.hidden


def shape_of_published(given: Published, bits: float, embedding_bits: float) -> ModelShape:
    """About the shape that a GGUF of a published model has.

    Args:
        given: its numbers.
        bits: of one weight, the token embeddings' included, on average.
        embedding_bits: of one weight of the token embeddings.
    """
    embeddings = round(given.vocabulary * given.hidden * embedding_bits / 8)
    whole = round(given.parameters * bits / 8)
    norm = 4 * given.hidden
    layer = (whole - embeddings - norm) // given.layers
    return ModelShape(
        n_layer=given.layers,
        n_embd=given.hidden,
        n_ff=given.feed_forward,
        n_head=given.heads,
        n_head_kv=given.kv_heads,
        key_length=given.head_dim,
        value_length=given.head_dim,
        n_vocab=given.vocabulary,
        n_merges=given.merges,
        trie=False,
        gated=True,
        windowed=False,
        tied=True,
        input_bytes=embeddings,
        layer_bytes=(layer,) * given.layers,
        output_bytes=norm,
        matrices=(Matrix("", given.hidden, given.feed_forward, layer * given.layers),),
        file_bytes=whole,
    )
