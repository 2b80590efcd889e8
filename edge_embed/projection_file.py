"""Reads a learned projection, from a file beside a model or from the model's own metadata, trusting neither.

Beside a model it is a small GGUF of ``general.type`` ``projection``: the matrix and the mean are tensors, and a key
says which model it was fit for. Inside one both are arrays of the metadata, because llama.cpp refuses a file with a
tensor that it does not know. Either way its settings are under ``edge_embed.projection.*``. What it means is
``projection``'s business.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Final, cast

import numpy as np

from edge_embed import keys
from edge_embed.architectures import MAX_WIDTH
from edge_embed.errors import InvalidOptionError, ModelFileError, UnsupportedModelError
from edge_embed.gguf_header import GgufHeader, TensorInfo, read_header
from edge_embed.metadata import Metadata
from edge_embed.projection import Projection
from edge_embed.types import Float32Array, ModelInfo, Pooling

TYPE: Final = "projection"
WEIGHT: Final = "projection.weight"
MEAN: Final = "projection.mean"
_POOLINGS: Final = ("mean", "cls", "last")
_SAMPLE_BYTES: Final = 1 << 16  # of each tensor, for telling models apart
_HINT: Final = "make one for this model: `edge-embed project fit MODEL -f TEXTS -o FILE`"


def with_projection(
    info: ModelInfo, header: GgufHeader, path: str | Path | None = None, *, adapted: bool = False
) -> ModelInfo:
    """What is known of a model whose vectors go through a projection: the one in ``path``, if that is given.

    Args:
        info: the model's, with the projection that its file may hold.
        header: the model's table of contents.
        path: a projection beside it, or None.
        adapted: whether a LoRA adapter changes the vectors.

    Raises:
        ModelNotFoundError, ModelFileError: no such projection, or not a sound one.
        UnsupportedModelError: it is none, or was fit for another model.
        InvalidOptionError: it was fit on other vectors than these: another pooling, no adapter, a projection before it.
    """
    inside = has_projection(info)
    if adapted and (inside or path is not None):
        raise InvalidOptionError(
            "a projection was fit on the model's vectors as they are without the adapter",
            hint="merge the adapter (`edge-embed convert DIR --merge-lora ADAPTER`) and fit one for the result",
        )
    if path is None:
        return info
    if inside:
        raise InvalidOptionError(f"{info.path} holds a projection already, and {path} would be applied to its result")
    if not isinstance(path, (str, Path)):
        raise InvalidOptionError(f"projection is {path!r}", hint="give a file of `edge-embed project fit`")
    beside = read_header(path)
    projection = read_projection(beside)
    read = Metadata(beside)
    if read.text(keys.PROJECTION_MODEL) != model_key(header):
        raise UnsupportedModelError(
            f"{path} was fit for {read.text('general.name', 'another model')!r}, and {info.path} is not that model",
            hint=_HINT,
        )
    if projection.n_in != info.n_embd:
        raise ModelFileError(f"{path} is for vectors of {projection.n_in} values, and the model's have {info.n_embd}")
    check_pooling(projection, info.pooling, path)
    return projected(info, projection)


def has_projection(info: ModelInfo) -> bool:
    """Whether the vectors of a model go through one."""
    return bool(info.dense) and info.dense[-1].unit_input


def projected(info: ModelInfo, projection: Projection) -> ModelInfo:
    """The model behind the projection. Sizes that it was trained for say nothing of turned vectors."""
    return replace(info, n_embd=projection.n_out, dense=(*info.dense, projection.layer), mrl_dimensions=())


def without_projection(info: ModelInfo) -> ModelInfo:
    """The model before the projection that it may hold."""
    if not has_projection(info):
        return info
    return replace(info, n_embd=info.dense[-1].n_in, dense=info.dense[:-1])


def check_pooling(projection: Projection, pooling: Pooling, where: str | Path) -> None:
    """Refuse vectors of another pooling than those it was fit on.

    Raises:
        InvalidOptionError: they are.
    """
    if projection.pooling != pooling:
        raise InvalidOptionError(
            f"the projection in {where} was fit on vectors of {projection.pooling} pooling, and these are of {pooling}",
            hint="leave --pooling out, or fit a projection with the same",
        )


def read_projection(header: GgufHeader) -> Projection:
    """The projection of a file that holds nothing else.

    Raises:
        UnsupportedModelError: the file is something else.
        ModelFileError: a setting or a tensor is missing or wrong.
    """
    read = Metadata(header)
    kind = header.metadata.get("general.type", "model")
    if kind != TYPE:
        raise UnsupportedModelError(f"{header.path} is not a projection: general.type is {kind!r}", hint=_HINT)
    n_in = read.count(keys.PROJECTION_IN_FEATURES, MAX_WIDTH)
    if not {WEIGHT} <= header.tensors.keys() <= {WEIGHT, MEAN}:
        raise ModelFileError(f"{header.path}: it does not hold just {WEIGHT} and perhaps {MEAN}", hint=_HINT)
    weight = _tensor(header, header.tensors[WEIGHT])
    if weight.shape[-1] != n_in:
        raise ModelFileError(f"{header.path}: {WEIGHT} takes vectors of {weight.shape[-1]} values instead of {n_in}")
    mean = _tensor(header, header.tensors[MEAN]) if MEAN in header.tensors else np.zeros(0, np.float32)
    return _checked(read, n_in, weight.ravel(), mean.ravel())


def projection_inside(read: Metadata, n_embd: int) -> Projection | None:
    """The projection in a model's metadata, or None.

    Args:
        read: the metadata.
        n_embd: size of the vectors that come in.

    Raises:
        ModelFileError: it is malformed, or for vectors of another size.
    """
    if not any(key.startswith(keys.PROJECTION) for key in read.values):
        return None
    n_in = read.count(keys.PROJECTION_IN_FEATURES, MAX_WIDTH)
    if n_in != n_embd:
        raise ModelFileError(f"{read.path}: its projection takes vectors of {n_in} values, and gets those of {n_embd}")
    return _checked(read, n_in, read.reals(keys.PROJECTION_WEIGHT), read.reals(keys.PROJECTION_MEAN))


def model_key(header: GgufHeader) -> str:
    """What tells a model from others, the same for all types that a file of it may be quantized to where that is known.

    Our converter records the digest of the weights that it read, which stays in every file made of them. Of other
    files the beginning of each tensor is digested: one model in two types is then two models.
    """
    source = header.metadata.get(keys.SOURCE_SHA256)
    if isinstance(source, str) and source:
        lora = header.metadata.get(keys.SOURCE_LORA_SHA256)
        return f"weights {source}" + (f" with adapter {lora}" if lora else "")
    digest = hashlib.sha256()
    with header.path.open("rb") as file:
        for tensor in sorted(header.tensors.values(), key=lambda tensor: tensor.name):
            digest.update(f"{tensor.name} {tensor.type_name} {tensor.shape}\n".encode())
            file.seek(tensor.offset)
            digest.update(file.read(min(tensor.n_bytes, _SAMPLE_BYTES)))
    return f"tensors {digest.hexdigest()}"


def _checked(read: Metadata, n_in: int, weight: Float32Array, mean: Float32Array) -> Projection:
    if weight.size == 0 or weight.size % n_in or weight.size > n_in * n_in or mean.size not in (0, n_in):
        raise ModelFileError(
            f"{read.path}: a projection of {weight.size} weights and {mean.size} means, for vectors of {n_in} values"
        )
    rows = weight.reshape(-1, n_in)
    if not np.isfinite(rows).all() or not np.isfinite(mean).all():
        raise ModelFileError(f"{read.path}: its projection has a value that is not finite")
    if not _is_orthonormal(rows) or np.linalg.norm(mean.astype(np.float64)) > 1.001:
        raise ModelFileError(f"{read.path}: its projection's rows are not orthonormal, or its mean is longer than 1")
    pooling = read.text(keys.PROJECTION_POOLING)
    if pooling not in _POOLINGS:
        raise ModelFileError(f"{read.path}: {keys.PROJECTION_POOLING} is {pooling!r}, not {', '.join(_POOLINGS)}")
    n_texts = read.count(keys.PROJECTION_TEXTS, 2**32 - 1)
    return Projection(rows, mean if mean.size else np.zeros(n_in, np.float32), cast(Pooling, pooling), n_texts)


def _is_orthonormal(rows: Float32Array) -> bool:
    """By the length of each row, and by what W Wt makes of a few random vectors: all products would take seconds."""
    wide = rows.astype(np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    probes = np.random.default_rng(0).standard_normal((len(rows), 4))
    return bool(np.abs(lengths - 1).max() < 1e-3 and np.abs(wide @ (wide.T @ probes) - probes).max() < 1e-2)


def _tensor(header: GgufHeader, tensor: TensorInfo) -> Float32Array:
    """The values of a small float32 tensor, row-major."""
    if tensor.type_name != "F32" or len(tensor.shape) > 2 or max(tensor.shape) > MAX_WIDTH:
        raise ModelFileError(
            f"{header.path}: {tensor.name} is {tensor.type_name} of shape {tensor.shape}, expected F32, at most a "
            f"matrix of {MAX_WIDTH} by {MAX_WIDTH}"
        )
    try:
        with header.path.open("rb") as file:
            file.seek(tensor.offset)
            data = file.read(tensor.n_bytes)
    except OSError as error:
        raise ModelFileError(f"{header.path} cannot be read: {error.strerror or error}") from error
    if len(data) != tensor.n_bytes:
        raise ModelFileError(f"{header.path} ended inside {tensor.name}")
    return np.frombuffer(data, "<f4").astype(np.float32).reshape(tensor.shape[::-1])
