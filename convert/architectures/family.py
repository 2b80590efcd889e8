"""What a data sheet of a model family contains, and how one is applied to a checkpoint's tensors.

Knows names and shapes. Knows no values, tokenizers or files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from edge_embed.errors import CheckpointError, UnsupportedCheckpointError
from edge_embed.types import Float32Array, Pooling

from ..checkpoint import READABLE, Fields, TensorRef, short
from ..container.entries import KeyValue

TokenizerKind = Literal["wordpiece", "bpe", "unigram", "sentencepiece"]
"""``bpe`` is byte-level, ``sentencepiece`` is SentencePiece's BPE, with tokens for single bytes."""


@dataclass(frozen=True, slots=True)
class Hyper:
    """Hyper-parameters read from config.json.

    Attributes:
        n_layer: number of layers.
        n_embd: size of the hidden state.
        n_rows: rows of the token embedding matrix.
        max_positions: most tokens that the model has positions for.
        sizes: the symbols that the family's tensor shapes are written in.
        key_values: ``{arch}.*`` entries.
        notes: what was decided without config.json saying so, one sentence each.
        computed: tensors of the GGUF that the checkpoint has no weights for, one row each.
    """

    n_layer: int
    n_embd: int
    n_rows: int
    max_positions: int
    sizes: Mapping[str, int]
    key_values: tuple[KeyValue, ...]
    notes: tuple[str, ...] = ()
    computed: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a data sheet: the checkpoint's name, the GGUF's name and the shape in symbols, row-major.

    In the names of a layer's tensors ``{i}`` stands for its number.

    Attributes:
        source: name in the checkpoint.
        target: name in the GGUF.
        shape: in the checkpoint.
        first_layer: the first layer that has this tensor.
        drop: the symbol for how many rows at the front are left out, or None.
        plus: added to every value.
        heads: the symbol for the number of heads whose rows are reordered, see ``values.rotary_row``, or None.
    """

    source: str
    target: str
    shape: tuple[str, ...]
    first_layer: int = 0
    drop: str | None = None
    plus: float = 0.0
    heads: str | None = None


def linear(source: str, target: str, n_out: str, n_in: str) -> tuple[Row, Row]:
    """The two lines of a linear layer with a bias."""
    return (
        Row(f"{source}.weight", f"{target}.weight", (n_out, n_in)),
        Row(f"{source}.bias", f"{target}.bias", (n_out,)),
    )


def norm(source: str, target: str) -> tuple[Row, Row]:
    """The two lines of a layer norm with a bias."""
    return Row(f"{source}.weight", f"{target}.weight", ("embd",)), Row(f"{source}.bias", f"{target}.bias", ("embd",))


@dataclass(frozen=True, slots=True)
class Family:
    """A data sheet.

    Attributes:
        arch: ``general.architecture``.
        model_type: config.json's ``model_type``.
        classes: names in config.json's ``architectures`` that are converted.
        refused: the names that are not, with the reason.
        tokenizer: which kind of tokenizer belongs to it, or which kinds do.
        default_pooling: used where the checkpoint says nothing; None where nothing is usual.
        hyper: reads and checks config.json.
        prefixes: prefixes of tensor names that some checkpoints have and others do not.
        renames: ``(regular expression, replacement)`` for older spellings.
        own_code: the class in ``auto_map``'s ``AutoModel`` that this sheet stands for, as a regular expression, where
            checkpoints of the family bring code of their own; None where they do not.
        tensors: those outside the layers.
        layer: those of each layer.
        skipped: ``(regular expression, reason)`` of tensors that are left out.
    """

    arch: str
    model_type: str
    classes: tuple[str, ...]
    refused: Mapping[str, str]
    tokenizer: TokenizerKind | tuple[TokenizerKind, ...]
    default_pooling: Pooling | None
    hyper: Callable[[Fields], Hyper]
    prefixes: tuple[str, ...]
    tensors: tuple[Row, ...]
    layer: tuple[Row, ...]
    skipped: tuple[tuple[str, str], ...]
    renames: tuple[tuple[str, str], ...] = field(default=())
    own_code: str | None = None


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the GGUF, and where its values come from; ``values.read_rows`` reads it.

    Attributes:
        ref: the tensor in the checkpoint; a made-up one where ``values`` has it.
        name: its name in the GGUF.
        plus: added to every value.
        n_heads: heads whose rows are reordered; 0 where the rows stay.
        values: the tensor itself, where it is not one of the transformer's weights.
    """

    ref: TensorRef
    name: str
    plus: float = 0.0
    n_heads: int = 0
    values: Float32Array | None = None


@dataclass(frozen=True, slots=True)
class SkippedTensor:
    """A tensor of the checkpoint that is left out, and why."""

    name: str
    reason: str


def plan_tensors(
    family: Family, hyper: Hyper, tensors: Mapping[str, TensorRef]
) -> tuple[tuple[PlannedTensor, ...], tuple[SkippedTensor, ...]]:
    """Match a checkpoint's tensors with the data sheet, in the sheet's order.

    Raises:
        CheckpointError: a tensor is missing, has the wrong shape or dtype, is there twice, or is in no line of the
            sheet.
    """
    found: dict[str, TensorRef] = {}
    for name, ref in tensors.items():
        plain = plain_name(family, name)
        if plain in found:
            raise CheckpointError(f"tensors {found[plain].name!r} and {name!r} are the same one")
        found[plain] = ref

    rows = list(family.tensors)
    for i in range(hyper.n_layer):
        rows += [
            replace(r, source=r.source.format(i=i), target=r.target.format(i=i))
            for r in family.layer
            if i >= r.first_layer
        ]
    planned = []
    for row in rows:
        if row.source not in found:
            files = ", ".join(sorted({ref.file for ref in tensors.values()}))
            raise CheckpointError(f"{files or 'the checkpoint'}: tensor {row.source!r} is missing")
        ref = found.pop(row.source)
        expected = tuple(hyper.sizes[symbol] for symbol in row.shape)
        if ref.shape != expected:
            raise CheckpointError(
                f"{ref.file}: tensor {ref.name!r} has shape {list(ref.shape)}, "
                f"and config.json makes it {list(expected)}"
            )
        if ref.dtype not in READABLE:
            raise CheckpointError(
                f"{ref.file}: tensor {ref.name!r} has dtype {ref.dtype}, expected one of {', '.join(READABLE)}"
            )
        if row.drop is not None:
            ref = _without_first_rows(ref, hyper.sizes[row.drop])
        n_heads = 0 if row.heads is None else hyper.sizes[row.heads]
        planned.append(PlannedTensor(ref, row.target, row.plus, n_heads))
    planned += [in_memory(name, np.array(values, dtype=np.float32)) for name, values in hyper.computed.items()]

    skipped = []
    for plain, ref in found.items():
        reason = next((why for pattern, why in family.skipped if re.fullmatch(pattern, plain)), None)
        if reason is None:
            raise CheckpointError(
                f"{ref.file}: unknown tensor {ref.name!r} for {family.arch} with {hyper.n_layer} layers",
                hint="the checkpoint computes something that this family does not; it is not left out silently",
            )
        skipped.append(SkippedTensor(ref.name, reason))
    return tuple(planned), tuple(sorted(skipped, key=lambda s: s.name))


def in_memory(name: str, values: Float32Array) -> PlannedTensor:
    """A planned tensor whose values are at hand."""
    return PlannedTensor(TensorRef(name, "", "F32", values.shape, 0, values.nbytes), name, values=values)


def _without_first_rows(ref: TensorRef, count: int) -> TensorRef:
    """The same tensor from row ``count`` on: rows lie one after the other in the file."""
    row_bytes = ref.nbytes // ref.shape[0]
    return replace(
        ref,
        shape=(ref.shape[0] - count, *ref.shape[1:]),
        offset=ref.offset + count * row_bytes,
        nbytes=ref.nbytes - count * row_bytes,
    )


def plain_name(family: Family, name: str) -> str:
    """A tensor's name as the data sheet has it: without a prefix, in the newer spelling."""
    for prefix in family.prefixes:
        if name.startswith(prefix):
            name = name[len(prefix) :]
            break
    for pattern, replacement in family.renames:
        name = re.sub(pattern, replacement, name)
    return name


def must_be(config: Fields, key: str, allowed: tuple[Any, ...], why: str) -> None:
    """Refuse a config.json whose field, where it is set, is not one of the allowed values."""
    value = config.values.get(key)
    if value is not None and value not in allowed:
        raise UnsupportedCheckpointError(f"{config.file}: {key} is {short(value)}, and {why}")
