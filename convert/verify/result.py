"""What a verification found, as a value, as metadata of the file, and as the error where something is wrong.

Knows figures and the file's entries for them. Compares nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFValueType

from edge_embed import keys
from edge_embed.errors import InvalidOptionError, VerificationError

from ..container.entries import KeyValue
from ..container.output import patch_numbers
from .compare import ScoreLoss, TensorLoss, VectorLoss
from .limits import Limit


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verification found.

    Attributes:
        path: the GGUF.
        type_name: the coarsest type among its matrices.
        limit: what was expected of that type.
        n_settings: entries of the metadata that were compared.
        n_tensors: tensors that were compared.
        n_texts: texts (pairs of them, for a reranker) whose ids and vectors were compared.
        tensors: those with the largest errors, largest first.
        vectors: the vectors' figures; None for a reranker, and where the file could not be run.
        scores: a reranker's figures, else None.
        problems: one sentence each; empty where the file is sound.
        notes: what was noticed and is no problem.
        seconds: wall time.
    """

    path: Path
    type_name: str
    limit: Limit
    n_settings: int
    n_tensors: int
    n_texts: int
    tensors: tuple[TensorLoss, ...]
    vectors: VectorLoss | None
    scores: ScoreLoss | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def figures(found: Verification | None, *, scores: bool) -> list[KeyValue]:
    """The metadata of a verification; zeros in its place where there is none yet, to be overwritten."""
    number = GGUFValueType.FLOAT32
    entries = [KeyValue(keys.VERIFY_TEXTS, found.n_texts if found is not None else 0, GGUFValueType.UINT32)]
    if scores:
        loss = found.scores if found is not None else None
        difference = 0.0 if loss is None else round(loss.max_difference, 5)
        return [*entries, KeyValue(keys.VERIFY_SCORE_DIFFERENCE, difference, number)]
    vectors = found.vectors if found is not None else None
    values = (0.0, 0.0, 0.0) if vectors is None else (vectors.min_cosine, vectors.mean_cosine, vectors.overlap)
    names = (keys.VERIFY_MIN_COSINE, keys.VERIFY_MEAN_COSINE, keys.VERIFY_OVERLAP)
    return entries + [KeyValue(key, round(value, 5), number) for key, value in zip(names, values, strict=True)]


def require_passed(found: Verification) -> Verification:
    """What was found, where nothing is wrong.

    Raises:
        VerificationError: the file does not compute what the checkpoint does, and is not to be kept.
    """
    if not found.passed:
        raise VerificationError(
            "; ".join(found.problems[:3]) + ("; ..." if len(found.problems) > 3 else ""),
            hint="the file was not kept. --min-cosine sets how much may be lost, --no-verify writes it unseen; where "
            "nothing but loss by quantization should be wrong, this is a bug",
        )
    return found


def record(path: Path, found: Verification) -> None:
    """Put the figures into a file that has a place for them, as one that ``convert`` verified has.

    Raises:
        InvalidOptionError: it has none.
    """
    try:
        patch_numbers(path, figures(found, scores=found.scores is not None))
    except KeyError as error:
        raise InvalidOptionError(
            f"{path} has no place for figures of a verification: {error.args[0]} is missing",
            hint="convert it again without --no-verify",
        ) from None
