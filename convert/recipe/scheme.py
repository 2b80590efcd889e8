"""How finely a model is measured: which matrices share a type, and on how many texts. Arithmetic on shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_embed.gguf_header import TensorInfo

from ..blocks.types import RECIPES

# Products of a weight and an activation that measuring may take: a quarter of an hour on two cores. Counted, not
# timed, so that the choice does not depend on what else the machine does.
_BUDGET = 5e13
PER_SECOND = 5e10  # of those, on two cores; for the announcement only
BANDS = 4  # of layers
_FEWEST_TEXTS = 16
_TYPES = 7  # that a matrix is given in turn
POINTS = 8  # of the frontier that are measured


@dataclass(frozen=True, slots=True)
class Scheme:
    """How finely a model is measured.

    Attributes:
        banded: whether the matrices of one kind in a band of layers share a type.
        scaled: whether one type is measured and the others' loss is scaled by the error of the weights.
        texts: those that matrices are measured on.
        products: of a weight and an activation that this takes.
    """

    banded: bool
    scaled: bool
    texts: tuple[str, ...]
    products: float


def scheme_for(matrices: Sequence[TensorInfo], texts: Sequence[str], tokens_per_text: float) -> Scheme:
    """The finest way to measure that the budget allows; the coarsest where it allows none.

    Args:
        matrices: those that get types.
        texts: all that there are.
        tokens_per_text: tokens computed for one of them, on average, in all framings.
    """
    values = sum(math.prod(t.shape) for t in matrices if t.name != "token_embd.weight")
    n_groups = len(groups_of(matrices, banded=True))
    schemes = []
    for banded, scaled, fewest in ((False, False, 64), (True, False, 64), (True, True, _FEWEST_TEXTS)):
        runs = (n_groups if banded else len(matrices)) * (1 if scaled else _TYPES) + POINTS + len(RECIPES)
        for n_texts in sorted({len(texts), *(n for n in (256, 128, 64, 32, 16) if fewest <= n < len(texts))})[::-1]:
            some = tuple(texts[i] for i in np.linspace(0, len(texts) - 1, n_texts).round().astype(int).tolist())
            schemes.append(Scheme(banded, scaled, some, float(values) * n_texts * tokens_per_text * runs))
    return next((scheme for scheme in schemes if scheme.products <= _BUDGET), schemes[-1])


def groups_of(matrices: Sequence[TensorInfo], *, banded: bool) -> list[list[TensorInfo]]:
    """The matrices one by one, or those of one kind and shape in a band of layers together."""
    if not banded:
        return [[tensor] for tensor in matrices]
    layers = [int(match[1]) for t in matrices if (match := re.match(r"blk\.(\d+)\.", t.name))]
    n_layer = max(layers, default=0) + 1
    groups: dict[tuple[str, int, tuple[int, ...]], list[TensorInfo]] = {}
    for tensor in matrices:
        match = re.fullmatch(r"blk\.(\d+)\.(.+)", tensor.name)
        part, band = (match[2], int(match[1]) * BANDS // n_layer) if match else (tensor.name, 0)
        groups.setdefault((part, band, tensor.shape), []).append(tensor)
    return list(groups.values())
