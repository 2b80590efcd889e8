"""Stores a learned projection: beside a model as a small GGUF, or inside a copy of the model.

Inside, the arrays are appended to the metadata, and everything else stays byte for byte: entries, table of tensors,
data. Not as tensors, because llama.cpp refuses a file with one that it does not know; so stock llama.cpp still runs the
copy, and gives the vectors before the projection. ``edge_embed.projection_file`` reads both.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from gguf import GGMLQuantizationType as Kind

from edge_embed import keys
from edge_embed.errors import ModelFileError, OutputFileError
from edge_embed.gguf_header import GgufHeader
from edge_embed.projection import Projection
from edge_embed.projection_file import MEAN, TYPE, WEIGHT, model_key

from .container.entries import KeyValue, text, uint
from .container.output import GGUFOutput, OutputTensor
from .container.raw import encode_entry, encode_floats, encode_head, read_entries

_CHUNK = 1 << 20


def write_beside(path: Path, projection: Projection, model: GgufHeader) -> None:
    """A GGUF with the projection alone, and what tells the model that it belongs to.

    Raises:
        OutputFileError: it cannot be written.
    """
    entries = [
        text("general.architecture", str(model.metadata.get("general.architecture", ""))),
        text("general.type", TYPE),
        text("general.name", str(model.metadata.get("general.name", model.path.stem))),
        text(keys.PROJECTION_MODEL, model_key(model)),
        *_settings(projection),
    ]
    tables = [(WEIGHT, projection.weight)] + ([(MEAN, projection.mean)] if projection.centered else [])
    infos = [OutputTensor(name, values.shape, Kind.F32, values.nbytes) for name, values in tables]
    with GGUFOutput(path, "", (), infos, head=encode_head(list(map(encode_entry, entries)), infos)) as file:
        for _, values in tables:
            file.write(values.astype("<f4", copy=False).tobytes())
            file.pad()


def write_inside(
    path: Path, projection: Projection, model: GgufHeader, *, progress: Callable[[int, int, str], None] | None = None
) -> None:
    """A copy of the model with the projection at the end of its metadata.

    Args:
        path: file to write, another one than the model.
        projection: what its vectors shall go through.
        model: the file to copy.
        progress: called with (bytes done, bytes in all, what).

    Raises:
        ModelFileError: the model cannot be read again as it was.
        OutputFileError: the copy cannot be written.
    """
    if path.exists() and path.samefile(model.path):
        raise OutputFileError(f"{path} is the model itself", hint="give another file: the model stays as it is")
    arrays = [(keys.PROJECTION_WEIGHT, projection.weight)]
    if projection.centered:
        arrays.append((keys.PROJECTION_MEAN, projection.mean))
    new = [*map(encode_entry, _settings(projection)), *(encode_floats(key, values) for key, values in arrays)]
    entries = list(read_entries(model.path).values())
    table_at = 24 + sum(map(len, entries))  # magic, version and two counts come first
    # What gguf_header reads of each tensor: name, number of axes, axes, type, offset
    n_table = sum(8 + len(t.name.encode()) + 4 + 8 * len(t.shape) + 4 + 8 for t in model.tensors.values())
    alignment = int(model.metadata.get("general.alignment", 32))
    data_at = -(-(table_at + n_table) // alignment) * alignment
    n_data = model.size_bytes - data_at
    space = [OutputTensor("data", (), Kind.F32, n_data)]  # so that a full disk is noticed before it is
    try:
        with model.path.open("rb") as source, GGUFOutput(path, "", (), space, head=b"") as file:
            start = source.read(8)
            source.seek(table_at)
            table = source.read(n_table)
            counts = struct.pack("<QQ", len(model.tensors), len(entries) + len(new))
            file.write(b"".join([start, counts, *entries, *new, table]))
            file.write(b"\0" * (-file.size % alignment))
            source.seek(data_at)
            done = 0
            while done < n_data:
                chunk = source.read(min(_CHUNK, n_data - done))
                if not chunk:
                    raise ModelFileError(f"{model.path} is shorter than it was")
                file.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, n_data, path.name)
    except OSError as error:
        raise ModelFileError(f"{model.path} cannot be read: {error.strerror or error}") from error


def _settings(projection: Projection) -> list[KeyValue]:
    return [
        uint(keys.PROJECTION_IN_FEATURES, projection.n_in),
        text(keys.PROJECTION_POOLING, projection.pooling),
        uint(keys.PROJECTION_TEXTS, projection.n_texts),
    ]
