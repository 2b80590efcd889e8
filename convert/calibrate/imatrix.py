"""Importance matrices: how much each input column of a weight matrix is used, in llama.cpp's own file format.

Knows the file (a GGUF of ``general.type`` ``imatrix``) and what the numbers mean to a quantizer. Knows nothing of how
they are measured: ``calibrate.py`` does that, and llama.cpp's ``llama-imatrix``.

For each matrix NAME the file holds ``NAME.in_sum2``, the sum of the squared inputs of each column, and ``NAME.counts``,
the number of inputs. Their quotient weighs a column's error while its blocks are fitted. Source: save_imatrix in
llama.cpp's tools/imatrix/imatrix.cpp and load_imatrix in tools/quantize/quantize.cpp (commit 0c1e57098).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind

from edge_embed import keys
from edge_embed.errors import CheckpointError, ModelFileError
from edge_embed.gguf_header import GgufHeader, TensorInfo, read_header
from edge_embed.types import Float32Array

from ..container.entries import KeyValue, text, texts, uint
from ..container.output import GGUFOutput, OutputTensor
from ..container.raw import encode_entry, encode_head

TYPE = "imatrix"
_DATASETS, _CHUNKS, _CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
_SUMS, _COUNTS = ".in_sum2", ".counts"
_HINT = "make one with `edge-embed calibrate`, or with llama.cpp's llama-imatrix (--output-format gguf)"


@dataclass(frozen=True, slots=True)
class Columns:
    """What was measured for one matrix: sums of squared inputs, float32 ``[n_cols]``, of so many inputs."""

    sums: Float32Array
    count: float


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """An importance matrix in memory.

    Attributes:
        name: the file's name, without its folder.
        columns: GGUF tensor name -> what was measured.
        datasets: names of the texts' files.
        chunk_count: how many chunks of text were read.
        chunk_size: tokens of a chunk.
        sha256: digest of the file; empty before there is one.
    """

    name: str
    columns: Mapping[str, Columns]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    sha256: str = ""

    def importance(self, tensor: str, n_cols: int) -> Float32Array | None:
        """Mean squared input of each column, or None where the tensor was not measured.

        Raises:
            CheckpointError: the entry is of another width: the matrix belongs to another model.
        """
        found = self.columns.get(tensor)
        if found is None:
            return None
        if found.sums.shape != (n_cols,):
            raise CheckpointError(
                f"{self.name}: the entry of {tensor!r} has {found.sums.size} columns, and the tensor has {n_cols}",
                hint="the importance matrix was made for another model",
            )
        if found.count <= 0:
            return np.ones(n_cols, np.float32)
        return np.ascontiguousarray(found.sums / np.float32(found.count))

    @property
    def key_values(self) -> list[KeyValue]:
        """What a quantized file says of it, in llama.cpp's own keys."""
        entries = [text("quantize.imatrix.file", self.name)]
        if self.datasets:
            entries.append(text("quantize.imatrix.dataset", self.datasets[0]))
        entries.append(uint("quantize.imatrix.entries_count", len(self.columns)))
        if self.chunk_count > 0:
            entries.append(uint("quantize.imatrix.chunks_count", self.chunk_count))
        if self.sha256:
            entries.append(text(keys.IMATRIX_SHA256, self.sha256))
        return entries

    def missing_note(self, names: Sequence[str]) -> str | None:
        """One sentence on the quantized tensors that have no entry, or None where all have one."""
        missing = [name for name in names if name not in self.columns]
        if not missing:
            return None
        shown = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
        return (
            f"{self.name} has no entry for {len(missing)} of the {len(names)} quantized tensors ({shown}); "
            "these are quantized without (embeddings are looked up, never multiplied, and have none)"
        )


def read_imatrix(path: Path | str) -> ImportanceMatrix:
    """Read an importance matrix, ours or llama.cpp's.

    Raises:
        ModelNotFoundError: no such file.
        ModelFileError: not a sound GGUF, not an importance matrix, or with values that no inputs can give.
    """
    path = Path(path)
    header = _header(path)
    if header.metadata.get("general.type") != TYPE:
        raise ModelFileError(f"{path} is a GGUF, but not an importance matrix (general.type imatrix)", hint=_HINT)
    datasets = header.metadata.get(_DATASETS, [])
    chunks, chunk_size = (header.metadata.get(key, 0) for key in (_CHUNKS, _CHUNK_SIZE))
    if not isinstance(datasets, list) or type(chunks) is not int or type(chunk_size) is not int:
        raise ModelFileError(f"{path}: imatrix.datasets, chunk_count or chunk_size is of another type", hint=_HINT)
    names = [name.removesuffix(_SUMS) for name in header.tensors if name.endswith(_SUMS)]
    if not names or header.tensors.keys() != {name + suffix for name in names for suffix in (_SUMS, _COUNTS)}:
        raise ModelFileError(f"{path}: it does not hold a pair of in_sum2 and counts for each matrix", hint=_HINT)
    columns = {}
    with path.open("rb") as file:
        for name in sorted(names):
            sums, counts = (_values(file, path, header.tensors[name + suffix]) for suffix in (_SUMS, _COUNTS))
            if counts.size != 1:
                raise ModelFileError(f"{path}: {name!r} is of a mixture of experts, which is not supported")
            if not np.isfinite(sums).all() or not np.isfinite(counts).all() or (sums < 0).any():
                raise ModelFileError(f"{path}: {name!r} has values that are not sums of squares", hint="measure again")
            columns[name] = Columns(sums, float(counts[0]))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ImportanceMatrix(path.name, columns, tuple(map(str, datasets)), chunks, chunk_size, digest)


def write_imatrix(path: Path, matrix: ImportanceMatrix) -> None:
    """Write it as llama.cpp does, whole or not at all.

    Raises:
        OutputFileError: it cannot be written.
    """
    entries = [
        text("general.type", TYPE),
        texts(_DATASETS, list(matrix.datasets)),
        uint(_CHUNKS, matrix.chunk_count),
        uint(_CHUNK_SIZE, matrix.chunk_size),
    ]
    tables: list[tuple[OutputTensor, Float32Array]] = []
    for name, columns in sorted(matrix.columns.items()):
        for suffix, values in ((_SUMS, columns.sums), (_COUNTS, np.array([columns.count], np.float32))):
            info = OutputTensor(name + suffix, (1, values.size), Kind.F32, values.nbytes)
            tables.append((info, values.astype("<f4", copy=False)))
    infos = [info for info, _ in tables]
    head = encode_head([encode_entry(entry) for entry in entries], infos)
    with GGUFOutput(path, "", (), infos, head=head) as file:
        for _, values in tables:
            file.write(values.tobytes())
            file.pad()


def _header(path: Path) -> GgufHeader:
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelFileError(
                    f"{path} is not a GGUF; importance matrices of llama.cpp's older format (.dat) are not read",
                    hint="rewrite it: llama-imatrix --in-file OLD.dat --output-format gguf -o NEW.gguf",
                )
    return read_header(path)


def _values(file: BinaryIO, path: Path, tensor: TensorInfo) -> Float32Array:
    if tensor.type_name != "F32":
        raise ModelFileError(f"{path}: {tensor.name!r} is {tensor.type_name}, expected F32", hint=_HINT)
    file.seek(tensor.offset)
    data = file.read(tensor.n_bytes)
    if len(data) != tensor.n_bytes:
        raise ModelFileError(f"{path} ended inside {tensor.name!r}")
    return np.frombuffer(data, "<f4").astype(np.float32)


def weights_for(
    matrix: ImportanceMatrix | None, tensors: Sequence[tuple[str, int, Kind]]
) -> tuple[dict[str, Float32Array], tuple[str, ...]]:
    """The importance of each tensor that is to be quantized and was measured, and notes on those that were not.

    Args:
        matrix: None gives nothing.
        tensors: GGUF name, columns and type of each tensor of the file.

    Raises:
        CheckpointError: the matrix is of another model.
    """
    if matrix is None:
        return {}, ()
    quantized = [(name, n_cols) for name, n_cols, kind in tensors if GGML_QUANT_SIZES[kind][0] > 1]
    if not quantized:
        return {}, (f"{matrix.name} has no part in the file: nothing in it is quantized",)
    found = {name: matrix.importance(name, n_cols) for name, n_cols in quantized}
    note = matrix.missing_note([name for name, _ in quantized])
    used = {name: importance for name, importance in found.items() if importance is not None}
    if not used:
        raise CheckpointError(
            f"{matrix.name} has no entry for any of the model's {len(quantized)} quantized tensors",
            hint="the importance matrix was made for another model",
        )
    return used, () if note is None else (note,)
