"""Where loss by quantization ends and breakage begins: what a sound file of each type keeps.

Knows types and figures. Knows no files, models or texts beyond naming them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge_embed.errors import UnsupportedModelError
from edge_embed.gguf_header import GgufHeader

from ..checkpoint import short
from .compare import ScoreLoss, TensorLoss, VectorLoss


@dataclass(frozen=True, slots=True)
class Limit:
    """What a sound file of one type keeps.

    Attributes:
        cosine: least cosine of any text's vector.
        tensor: most relative error of a tensor, root mean square.
        score: most that a reranker's score may differ, as a probability.
    """

    cosine: float
    tensor: float
    score: float


_4_BITS = Limit(0.65, 0.25, 0.5)
# Ordered from fine to coarse. Vectors and scores go by the coarsest type among a file's matrices, tensors by their own.
# all-MiniLM-L6-v2 at the worst of the built-in texts: Q8_0 0.997, Q5_K_M 0.957, Q4_0 0.843; broken on purpose: two
# layers swapped 0.57, capitals kept 0.38, keys for queries 0.11. A tensor's error is usually a third of its limit.
LIMITS: Mapping[str, Limit] = {
    "F32": Limit(0.9999, 1e-6, 0.01),
    "F16": Limit(0.9999, 2e-3, 0.01),
    "BF16": Limit(0.999, 8e-3, 0.02),
    "Q8_0": Limit(0.98, 0.03, 0.1),
    "Q6_K": Limit(0.95, 0.06, 0.15),
    "Q5_K": Limit(0.9, 0.12, 0.25),
    "Q5_1": Limit(0.9, 0.12, 0.25),
    "Q5_0": Limit(0.9, 0.12, 0.25),
    "Q4_K": _4_BITS,
    "IQ4_NL": _4_BITS,
    "IQ4_XS": _4_BITS,
    "Q4_1": _4_BITS,
    "Q4_0": _4_BITS,
    "Q3_K": Limit(0.4, 0.4, 0.7),
    "Q2_K": Limit(0.2, 0.7, 0.8),
}


def coarsest_type(header: GgufHeader) -> str:
    """The coarsest type among a file's matrices.

    Raises:
        UnsupportedModelError: a matrix has a type of which nothing is known here.
    """
    found = {tensor.type_name for tensor in header.tensors.values() if len(tensor.shape) > 1}
    if unknown := sorted(found - LIMITS.keys()):
        raise UnsupportedModelError(f"{header.path} has tensors of type {', '.join(unknown)}, which are not verified")
    return [name for name in LIMITS if name in found][-1] if found else "F32"


def tensor_problems(losses: Sequence[TensorLoss]) -> list[str]:
    """A sentence for each tensor that is farther off than its type explains."""
    return [
        f"tensor {loss.name}: its relative error is {loss.error:.3g}, and {loss.type_name} explains "
        f"{LIMITS[loss.type_name].tensor:g}"
        for loss in losses
        if not loss.error <= LIMITS[loss.type_name].tensor
    ]


def vector_problems(found: VectorLoss, type_name: str, min_cosine: float | None) -> list[str]:
    """A sentence where the worst text is farther off than the type explains, or than the caller allows."""
    least = LIMITS[type_name].cosine if min_cosine is None else min_cosine
    if found.min_cosine >= least:
        return []
    text, cosine = found.worst[0]
    why = f"{type_name} explains" if min_cosine is None else "asked for is"
    return [f"vectors: the least cosine is {cosine:.5f}, and {why} {least:g}; the text is {short(text)}"]


def score_problems(found: ScoreLoss, type_name: str) -> list[str]:
    """A sentence where the worst pair's score is farther off than the type explains."""
    limit = LIMITS[type_name].score
    if found.max_difference <= limit:
        return []
    pair, difference = found.worst[0]
    return [f"scores: one differs by {difference:.4f}, and {type_name} explains {limit:g}; the pair is {short(pair)}"]
