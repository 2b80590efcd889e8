"""An importance matrix, measured: a model run over texts with an observer of what its weights are multiplied by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .imatrix import Columns, ImportanceMatrix, write_imatrix
from .observed import ObservedModel, Tick, texts_or_default


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """What a calibration did.

    Attributes:
        path: the importance matrix.
        name: the model's name.
        n_texts: texts computed, each counted once for each framing.
        n_tokens: tokens computed.
        framings: how they were framed, e.g. ``("query", "document")``.
        n_matrices: weight matrices that were measured.
    """

    path: Path
    name: str
    n_texts: int
    n_tokens: int
    framings: tuple[str, ...]
    n_matrices: int


def calibrate(
    model: Path | str,
    texts: Iterable[str] | None,
    output: Path | str,
    *,
    dataset: str = "built-in",
    threads: int | None = None,
    tick: Tick | None = None,
) -> CalibrationReport:
    """Measure an importance matrix and write it.

    Args:
        model: a GGUF; F32, F16 or BF16 measures the model itself, a quantized one its approximation.
        texts: such as the model will see; identical and blank ones are left out. The built-in ones for None.
        output: the file to write, whole or not at all.
        dataset: what the texts are called in it.
        threads: CPU threads; the usable physical cores by default.
        tick: called as texts are done.

    Raises:
        ModelError, EngineError: the model cannot be run.
        InvalidOptionError: there are no texts.
        OutputFileError: the file cannot be written.
    """
    from edge_embed.engine.observe import InputObserver

    chosen = texts_or_default(texts)
    observer = InputObserver()
    with ObservedModel(Path(model), observer, threads=threads) as observed:
        _, n_tokens = observed.vectors(chosen, tick)
        name, used = observed.embedder.info.name, observed.framings
    n_texts = len(chosen) * len(used)
    columns = {
        name: Columns(inputs.sums.astype(np.float32), float(inputs.count))
        for name, inputs in sorted(observer.inputs.items())
    }
    # llama.cpp cuts its text into chunks of equal length; ours are whole texts, so the length is their mean.
    matrix = ImportanceMatrix(Path(output).name, columns, (dataset,), n_texts, max(1, round(n_tokens / n_texts)))
    write_imatrix(Path(output), matrix)
    return CalibrationReport(Path(output), name, n_texts, n_tokens, used, len(columns))
