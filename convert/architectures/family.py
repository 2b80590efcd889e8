"""What a data sheet of a model family contains, and how one is applied to a checkpoint's tensors.

Knows names and shapes. Knows no values, tokenizers or files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gguf import GGUFValueType

from edge_embed.errors import CheckpointError, UnsupportedCheckpointError
from edge_embed.types import Pooling

from ..checkpoint import READABLE, Fields, TensorRef, short


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One entry of the GGUF's metadata; ``kind`` is the type of the value, or of an array's items."""

    key: str
    value: Any
    kind: GGUFValueType


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
    """

    n_layer: int
    n_embd: int
    n_rows: int
    max_positions: int
    sizes: Mapping[str, int]
    key_values: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a data sheet: the checkpoint's name, the GGUF's name and the shape in symbols, row-major.

    In the names of a layer's tensors ``{i}`` stands for its number.
    """

    source: str
    target: str
    shape: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """A data sheet.

    Attributes:
        arch: ``general.architecture``.
        model_type: config.json's ``model_type``.
        classes: names in config.json's ``architectures`` that are converted.
        refused: the names that are not, with the reason.
        tokenizer: which kind of tokenizer.json belongs to it.
        default_pooling: used where the checkpoint says nothing; None where nothing is usual.
        hyper: reads and checks config.json.
        prefixes: prefixes of tensor names that some checkpoints have and others do not.
        renames: ``(regular expression, replacement)`` for older spellings.
        tensors: those outside the layers.
        layer: those of each layer.
        skipped: ``(regular expression, reason)`` of tensors that are left out.
    """

    arch: str
    model_type: str
    classes: tuple[str, ...]
    refused: Mapping[str, str]
    tokenizer: Literal["wordpiece", "bpe"]
    default_pooling: Pooling | None
    hyper: Callable[[Fields], Hyper]
    prefixes: tuple[str, ...]
    tensors: tuple[Row, ...]
    layer: tuple[Row, ...]
    skipped: tuple[tuple[str, str], ...]
    renames: tuple[tuple[str, str], ...] = field(default=())


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the checkpoint under its name in the GGUF."""

    ref: TensorRef
    name: str


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
        plain = _plain_name(family, name)
        if plain in found:
            raise CheckpointError(f"tensors {found[plain].name!r} and {name!r} are the same one")
        found[plain] = ref

    rows = list(family.tensors)
    for i in range(hyper.n_layer):
        rows += [Row(r.source.format(i=i), r.target.format(i=i), r.shape) for r in family.layer]
    planned = []
    for row in rows:
        if row.source not in found:
            raise CheckpointError(f"tensor {row.source!r} is missing")
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
        planned.append(PlannedTensor(ref, row.target))

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


def _plain_name(family: Family, name: str) -> str:
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


def uint(key: str, value: int) -> KeyValue:
    """A uint32 entry."""
    return KeyValue(key, value, GGUFValueType.UINT32)


def real(key: str, value: float) -> KeyValue:
    """A float32 entry."""
    return KeyValue(key, value, GGUFValueType.FLOAT32)


def flag(key: str, value: bool) -> KeyValue:
    """A bool entry."""
    return KeyValue(key, value, GGUFValueType.BOOL)


def text(key: str, value: str) -> KeyValue:
    """A string entry."""
    return KeyValue(key, value, GGUFValueType.STRING)


def texts(key: str, values: list[str]) -> KeyValue:
    """An array of strings."""
    return KeyValue(key, values, GGUFValueType.STRING)
