"""Which type each matrix gets, from what it costs the final vectors: a file no larger, or no worse, than asked for.

1. The unquantized model runs in the engine over calibration texts, and each matrix (of a large model: all of one kind
   in a quarter of the layers) is given each type in turn: its loss is 1 - cosine to the unquantized vector.
2. Losses of different matrices add up nearly (measured on all-MiniLM-L6-v2 in Q4_0: 0.04254 added, 0.04250 together),
   so ``tradeoff.py`` chooses, and what it chose is measured as a whole. Where a lowest cosine was asked for, the
   smallest choice that really has it is searched for.
3. The file is written and run by the engine as a user runs it. It gets its name only if it keeps to the target there,
   too; where its kernels lose more than expected, more bytes are bought.

The figures depend on the processor's kernels in their last digits; on one machine the same input gives the same file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ..checkpoint import Checkpoint
from ..gguf_source import GGUFSource
from ..modules import read_modules
from ..writing import ConversionReport, output_path
from .chooser import Chooser
from .target import BY_DEFAULT, Choice, Log, Measuring, Point, Target, Verify

__all__ = [
    "Choice",
    "Log",
    "Measuring",
    "Point",
    "Target",
    "Verify",
    "convert_to_target",
    "exact_type",
    "quantize_to_target",
    "quantize_to_targets",
]


def quantize_to_target(
    source: Path | str, output: Path | str | None, target: Target, how: Measuring = BY_DEFAULT
) -> Choice:
    """Write a GGUF again with the types that lose least at a size, or weigh least at a loss.

    Args:
        source: an F32, F16 or BF16 GGUF of an embedding model, which this machine can hold in memory.
        output: file to write, or a folder for it.
        target: the size or the cosine.
        how: what it is measured on, with what.

    Raises:
        VerificationError: ``how.verify`` found that the file computes something else.
        InvalidOptionError: the target cannot be met, or the source is quantized already.
        ModelError, ConversionError, EngineError: as ``quantize`` and ``Embedder``.
    """
    (choice,) = quantize_to_targets(source, [(output, target)], how)
    return choice


def quantize_to_targets(
    source: Path | str, targets: Sequence[tuple[Path | str | None, Target]], how: Measuring = BY_DEFAULT
) -> list[Choice]:
    """``quantize_to_target`` for several outputs, measuring once; the frontier is the first target's."""
    with GGUFSource(source) as opened:
        chooser = Chooser(opened, how)
        return chooser.run(
            [
                (output_path(output, f"{opened.name}-{target.label}.gguf".replace("/", "-")), target)
                for output, target in targets
            ]
        )


def convert_to_target(
    folder: Path | str,
    output: Path | str | None,
    target: Target,
    how: Measuring = BY_DEFAULT,
    *,
    convert_exact: Callable[[Path, str], ConversionReport],
    merged: bool = False,
) -> Choice:
    """Convert a checkpoint with the types that ``quantize_to_target`` chooses.

    The model must run before anything can be chosen, so it is converted without loss first, beside the output; that
    file is removed again.

    Args:
        folder: the checkpoint.
        output: file to write, or a folder for it.
        target: the size or the cosine.
        how: what it is measured on, with what.
        convert_exact: converts the checkpoint to a path, with a type.
        merged: whether it adds something to the weights, which their own type may then not hold.

    Raises:
        As ``quantize_to_target``, and what ``convert_exact`` raises.
    """
    place = Path.cwd() if output is None else Path(output)
    place = place if place.is_dir() else place.parent
    exact = place / f".{target.label}.{os.getpid()}.exact.gguf"
    ftype = "f32" if merged else exact_type(folder)
    how.log(f"converting to {ftype} first, to measure")
    try:
        first = convert_exact(exact, ftype)
        choice = quantize_to_target(exact, output, target, how)
    finally:
        exact.unlink(missing_ok=True)
    report = replace(choice.report, skipped=first.skipped, notes=first.notes + choice.report.notes)
    return replace(choice, report=report)


def exact_type(folder: Path | str) -> str:
    """The smallest type that holds a checkpoint's weights without loss: f16 or bf16 where all of them are, else f32."""
    with Checkpoint(read_modules(Path(folder)).transformer) as checkpoint:
        dtypes = {ref.dtype for ref in checkpoint.tensors.values()}
    return dtypes.pop().lower() if len(dtypes) == 1 and dtypes <= {"F16", "BF16"} else "f32"
