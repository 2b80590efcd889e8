"""Which type each tensor gets: the named types (``q4_k_m`` and so on), llama.cpp's mixes and fall-backs.

Knows names and shapes. Knows no values, checkpoints or files. The mixes follow ``llama_tensor_get_type_impl`` and
``tensor_type_fallback`` in llama.cpp's src/llama-quant.cpp (commit 0c1e57098) for dense models of fewer than 80
layers; a test holds every type against ``llama_model_quantize``, byte for byte, with and without an importance matrix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from gguf import GGML_QUANT_SIZES, LlamaFileType
from gguf import GGMLQuantizationType as Kind

from edge_embed.errors import InvalidOptionError

NEVER_QUANTIZED = ("position_embd.weight", "token_types.weight")  # small, and llama.cpp adds them in float32

TABLES = ("token_embd.weight", "output.weight")  # of the vocabulary
# llama.cpp quantizes the head of a cross-encoder like any matrix. It is small and decides the score: at least F16.
HEAD = re.compile(r"cls(\.output)?\.weight")

OVERRIDE_KINDS = (
    *("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0"),
    *("Q4_K", "IQ4_XS", "IQ4_NL", "Q4_1", "Q4_0", "Q3_K"),
)
_FALLBACK = {
    Kind.Q3_K: Kind.Q4_0,
    Kind.IQ4_XS: Kind.IQ4_NL,
    Kind.Q4_K: Kind.Q5_0,
    Kind.Q5_K: Kind.Q5_1,
    Kind.Q6_K: Kind.Q8_0,
}
EXACT = (Kind.F32, Kind.F16, Kind.BF16)  # not made of blocks


@dataclass(frozen=True, slots=True)
class Recipe:
    """A named file type.

    Attributes:
        name: as a caller writes it, lower case.
        default: the type of a weight matrix that no rule names.
        file_type: ``general.file_type``.
        token_embd: the type of the token embeddings. llama.cpp treats them as the output matrix of a model
            with tied embeddings and gives them Q6_K beside every smaller type. So does this table, and for
            untied models too: a row is looked up, never multiplied, so the extra bits cost no time, and their
            error would enter every layer.
        overrides: a regular expression, searched for in a tensor's name, and the type that such a matrix gets
            instead; the first that matches counts.
        chosen: tensor name -> type, where each was chosen by measurement; no rule is then looked at.
    """

    name: str
    default: Kind
    file_type: LlamaFileType
    token_embd: Kind
    overrides: tuple[tuple[str, Kind], ...] = ()
    chosen: Mapping[str, Kind] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What was asked for, e.g. ``q8_0`` or ``q8_0 attn_v=f16``."""
        return " ".join([self.name, *(f"{pattern}={kind.name.lower()}" for pattern, kind in self.overrides)])


@dataclass(frozen=True, slots=True)
class TensorType:
    """What a tensor becomes: the type that the recipe asked for, the one it got, and why where they differ."""

    asked: Kind
    got: Kind
    why: str = ""


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("f32", Kind.F32, LlamaFileType.ALL_F32, Kind.F32),
        Recipe("f16", Kind.F16, LlamaFileType.MOSTLY_F16, Kind.F16),
        Recipe("bf16", Kind.BF16, LlamaFileType.MOSTLY_BF16, Kind.BF16),
        Recipe("q8_0", Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0, Kind.Q8_0),
        Recipe("q6_k", Kind.Q6_K, LlamaFileType.MOSTLY_Q6_K, Kind.Q6_K),
        Recipe("q5_k_m", Kind.Q5_K, LlamaFileType.MOSTLY_Q5_K_M, Kind.Q6_K),
        Recipe("q5_k_s", Kind.Q5_K, LlamaFileType.MOSTLY_Q5_K_S, Kind.Q6_K),
        Recipe("q4_k_m", Kind.Q4_K, LlamaFileType.MOSTLY_Q4_K_M, Kind.Q6_K),
        Recipe("q4_k_s", Kind.Q4_K, LlamaFileType.MOSTLY_Q4_K_S, Kind.Q6_K),
        Recipe("iq4_xs", Kind.IQ4_XS, LlamaFileType.MOSTLY_IQ4_XS, Kind.Q6_K),
        Recipe("q4_0", Kind.Q4_0, LlamaFileType.MOSTLY_Q4_0, Kind.Q6_K),
        Recipe("q3_k_m", Kind.Q3_K, LlamaFileType.MOSTLY_Q3_K_M, Kind.Q6_K),
    )
}


def recipe_named(name: str, overrides: Sequence[tuple[str, str]] = ()) -> Recipe:
    """The recipe of that name in any case, with other types for some tensors.

    Raises:
        InvalidOptionError: an unknown type, or a pattern that is no regular expression.
    """
    recipe = RECIPES.get(name.lower())
    if recipe is None:
        raise InvalidOptionError(f"unknown type {name!r}", hint=f"one of: {', '.join(RECIPES)}")
    checked = []
    for pattern, kind in overrides:
        if kind.upper() not in OVERRIDE_KINDS:
            known = ", ".join(kind.lower() for kind in OVERRIDE_KINDS)
            raise InvalidOptionError(f"unknown tensor type {kind!r} for {pattern!r}", hint=f"one of: {known}")
        try:
            re.compile(pattern)
        except re.error as error:
            raise InvalidOptionError(f"{pattern!r} is not a regular expression: {error}") from None
        checked.append((pattern, Kind[kind.upper()]))
    return replace(recipe, overrides=tuple(checked))


@dataclass(frozen=True, slots=True)
class Traits:
    """What the mixes look at beside a tensor's name.

    Attributes:
        n_layer: layers of the model.
        n_gqa: query heads that share one key/value head; 1 where each has its own.
        imatrix: whether an importance matrix is used.
    """

    n_layer: int
    n_gqa: int = 1
    imatrix: bool = False


def is_quantizable(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of a GGUF with that name and row-major shape is a weight matrix, which a type is chosen for."""
    return (
        int(np.prod(shape[:-1], dtype=np.int64)) > 1  # ggml counts a matrix of one row as a vector
        and name.endswith(".weight")
        and not name.endswith("_norm.weight")
        and name not in NEVER_QUANTIZED
    )


def tensor_type(recipe: Recipe, name: str, shape: tuple[int, ...], traits: Traits) -> TensorType:
    """The type of a tensor of a GGUF with that name and row-major shape."""
    if not is_quantizable(name, shape):
        return TensorType(Kind.F32, Kind.F32)
    if name in recipe.chosen:
        return fitting(recipe.chosen[name], shape[-1])
    asked = recipe.token_embd if name in TABLES else _mixed(recipe, name, traits)
    if HEAD.fullmatch(name) and asked not in EXACT:
        asked = Kind.F16
    asked = next((kind for pattern, kind in recipe.overrides if re.search(pattern, name)), asked)
    return fitting(asked, shape[-1])


def override_notes(recipe: Recipe, names: Iterable[str]) -> tuple[str, ...]:
    """A sentence for each of the recipe's patterns that is found in no matrix's name, most likely a slip of the pen."""
    known = list(names)
    return tuple(
        f"{pattern}={kind.name.lower()} changes nothing: no matrix has such a name"
        for pattern, kind in recipe.overrides
        if not any(re.search(pattern, name) for name in known)
    )


def fitting(asked: Kind, n_cols: int) -> TensorType:
    """That type, or the one that llama.cpp falls back to where the rows do not divide into its blocks."""
    block = GGML_QUANT_SIZES[asked][0]
    if n_cols % block == 0:
        return TensorType(asked, asked)
    why = f"rows of {n_cols} do not divide by {block}"
    smaller = _FALLBACK.get(asked, asked)
    if n_cols % GGML_QUANT_SIZES[smaller][0]:
        smaller = Kind.F16
    return TensorType(asked, smaller, why)


def _mixed(recipe: Recipe, name: str, traits: Traits) -> Kind:
    """The M and S mixes: more bits where llama.cpp found that they matter, attn_v and ffn_down of some layers."""
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if match is None:
        return recipe.default
    layer, part, n_layer = int(match[1]), match[2], traits.n_layer
    if part == "attn_qkv":  # counts as attn_v
        part = "attn_v"
    eighth = n_layer // 8
    more = layer < eighth or layer >= 7 * n_layer // 8 or (layer - eighth) % 3 == 2
    if recipe.name in ("q4_k_m", "q5_k_m") and part in ("attn_v", "ffn_down") and more:
        return Kind.Q6_K
    if recipe.name == "q4_k_s" and ((part == "attn_v" and layer < 4) or (part == "ffn_down" and layer < eighth)):
        return Kind.Q5_K
    if recipe.name == "q3_k_m" and part in ("attn_v", "ffn_down", "attn_output"):
        first = {"attn_v": 2, "ffn_down": n_layer // 16, "attn_output": 0}[part]
        return Kind.Q5_K if layer < first else Kind.Q4_K
    if recipe.name == "iq4_xs" and part == "attn_v" and traits.n_gqa >= 4:
        return Kind.Q5_K
    if recipe.name == "iq4_xs" and part == "ffn_down" and layer < eighth and not traits.imatrix:
        return Kind.Q5_K
    if recipe.name == "q4_0" and part == "ffn_down" and layer < eighth and traits.imatrix:
        return Kind.Q4_1
    return recipe.default
