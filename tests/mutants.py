"""Hostile GGUF files: tiny models, damaged one at a time; and what opening one may end in.

``python -m tests.mutants FOLDER START STOP`` opens the files of these numbers through the whole path and prints what
became of each. It is a process of its own, because that it survives is the promise.
"""

from __future__ import annotations

import random
import struct
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType

from edge_embed import Embedder, Reranker
from edge_embed.convert.convert import convert
from edge_embed.errors import CODES, EdgeEmbedError
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from tests.families import modern_bert, xlm_roberta
from tests.tiny_gguf import Metadata, Tensors, gguf_bytes, spm_metadata, tiny_bert, tiny_decoder, tiny_reranker

INTEGERS = (0, 1, 2, 3, 5, 7, 31, 33, 255, 256, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)
FLOATS = (0.0, -1.0, float("nan"), float("inf"), 1e30, 1e-30)
STRINGS = ("", " ", "none", "bert", "gpt2", "llama", "t5", "default", "qwen2", "x" * 300, "\u2581", "[SEP]", "é", "\n")
TEXTS = [
    "the cat sat",
    "",
    "\x00 e\u0301 🙂 中文 \u200b\t\r\n",
    "ab 12 ?! " * 300,
    "[SEP]<|endoftext|><|im_end|></s><unk>",
]


@cache
def models() -> tuple[tuple[Metadata, Tensors], ...]:
    """The sound models that are damaged: four written by hand, two that the converter made."""
    handmade = tiny_bert(), tiny_decoder(), tiny_decoder("llama", spm_metadata()), tiny_reranker()
    return *handmade, *(_converted(build) for build in (modern_bert.build, xlm_roberta.build))


def _converted(build: Callable[..., Path]) -> tuple[Metadata, Tensors]:
    """A family's tiny checkpoint as a GGUF, in the parts that ``gguf_bytes`` takes."""
    with tempfile.TemporaryDirectory() as folder:
        path = convert(build(Path(folder) / "m", hidden=32, layers=2), Path(folder) / "m.gguf", ftype="f32").path
        reader = GGUFReader(path)
        metadata = {
            name: _typed(field.contents(), field.types)
            for name, field in reader.fields.items()
            if not name.startswith("GGUF.")
        }
        tensors = {t.name: np.array(t.data).reshape([int(n) for n in reversed(t.shape)]) for t in reader.tensors}
        return metadata, tensors


def _typed(value: Any, types: list[GGUFValueType]) -> Any:
    if types[-1] == GGUFValueType.STRING:
        return value
    return np.array(value, types[-1].name.lower().replace("bool", "bool_"))[()]


def mutant(number: int) -> bytes:
    """A damaged file; the same number gives the same bytes."""
    rng = random.Random(number)
    metadata, tensors = (dict(part) for part in rng.choice(models()))
    if rng.random() < 0.65:
        for _ in range(rng.choice((1, 1, 1, 2))):
            rng.choice((_change_value, _change_value, _change_value, _change_array, _change_tensor))(
                rng, metadata, tensors
            )
        return gguf_bytes(metadata, tensors)
    data = bytearray(gguf_bytes(metadata, tensors))
    header = len(data) - sum(-(-array.nbytes // 32) * 32 for array in tensors.values())
    rng.choice((_truncate, _flip, _flip, _splice, _overwrite, _overwrite))(rng, data, header)
    return bytes(data)


def _change_value(rng: random.Random, metadata: Metadata, tensors: Tensors) -> None:
    key = rng.choice([key for key, item in metadata.items() if np.ndim(item) == 0])
    old = metadata[key]
    what = rng.random()
    if what < 0.1:
        del metadata[key]
    elif what < 0.2:
        metadata[key] = rng.choice([np.uint8(1), np.float64(0.5), "text", np.bool_(True), ["a"], np.zeros(3, np.int32)])
    elif isinstance(old, str):
        metadata[key] = rng.choice(STRINGS)
    elif isinstance(old, np.bool_):
        metadata[key] = np.bool_(not old)
    elif isinstance(old, np.floating):
        metadata[key] = old.dtype.type(rng.choice(FLOATS))
    else:
        near = (int(old) + rng.choice((-1, 1, 2, 16)), int(old) * 2, int(old) // 2)
        metadata[key] = _wrapped(rng.choice((*INTEGERS, *near)), old.dtype)


def _wrapped(number: int, dtype: np.dtype[Any]) -> Any:
    size = 8 * dtype.itemsize
    return np.array(number & ((1 << size) - 1), f"u{dtype.itemsize}").view(dtype)[()]


def _change_array(rng: random.Random, metadata: Metadata, tensors: Tensors) -> None:
    key = rng.choice([key for key, item in metadata.items() if np.ndim(item) == 1])
    items = list(metadata[key])
    for _ in range(rng.choice((1, 3, 40))):
        if not items:
            break
        at = rng.randrange(len(items))
        what = rng.random()
        if what < 0.1:
            del items[at:]
        elif what < 0.2:
            items.insert(at, items[0])
        elif isinstance(items[0], str):
            items[at] = rng.choice((*STRINGS, items[rng.randrange(len(items))]))
        elif isinstance(items[0], np.floating):
            items[at] = rng.choice(FLOATS)
        else:
            items[at] = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 99, -1, -(1 << 31)))
    old = metadata[key]
    metadata[key] = items if isinstance(old, list) else np.array(items).astype(old.dtype)  # -1 wraps around


def _change_tensor(rng: random.Random, metadata: Metadata, tensors: Tensors) -> None:
    name = rng.choice(list(tensors))
    array = tensors[name]
    changes: tuple[Callable[[], Any], ...] = (
        lambda: tensors.pop(name),
        lambda: tensors.update({name: array.T.copy()}),
        lambda: tensors.update({name: array.reshape(-1)}),
        lambda: tensors.update({name: array[None]}),
        lambda: tensors.update({name: array[: len(array) // 2 or 1]}),
        lambda: tensors.update({name: array.astype(np.float16 if array.dtype == np.float32 else np.float32)}),
        lambda: tensors.update({name: np.full_like(array, rng.choice((np.nan, np.inf, -np.inf, 60000.0, 0.0)))}),
        lambda: tensors.update({name + "x": tensors.pop(name)}),
        lambda: tensors.update({rng.choice(("output.weight", "cls.weight", "blk.9.attn_q.weight")): array}),
    )
    rng.choice(changes)()


def _truncate(rng: random.Random, data: bytearray, header: int) -> None:
    del data[rng.randrange(rng.choice((header, len(data)))) :]


def _flip(rng: random.Random, data: bytearray, header: int) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(header)] ^= 1 << rng.randrange(8)


def _splice(rng: random.Random, data: bytearray, header: int) -> None:
    at, source, length = rng.randrange(header), rng.randrange(header), rng.choice((1, 4, 8, 32, 200))
    data[at : at + rng.choice((0, length))] = data[source : source + length]


def _overwrite(rng: random.Random, data: bytearray, header: int) -> None:
    size = rng.choice((4, 8))
    at = rng.randrange(4, header - size)
    data[at : at + size] = struct.pack("<Q", rng.choice(INTEGERS))[:size]


def read_only(path: Path) -> str:
    """``accepted``, or the name of the typed error that the checks before the engine end in."""
    try:
        read_model_info(read_header(path))
    except EdgeEmbedError as error:
        return _named(error)
    return "accepted"


def whole_path(path: Path) -> str:
    """``vectors`` (of a reranker: finite scores), or the name of the typed error that opening and computing end in."""
    try:
        if read_model_info(read_header(path)).rerank is not None:
            with Reranker(path, n_threads=1) as reranker:
                scores = np.asarray(reranker.predict("the cat", TEXTS))
                good = scores.shape == (len(TEXTS),) and bool(np.isfinite(scores).all())
                return "vectors" if good else f"bad scores {scores!r}"
        with Embedder(path, n_threads=1) as embedder:
            vectors = embedder.encode(TEXTS)
            good = vectors.shape == (len(TEXTS), embedder.info.n_embd) and bool(np.isfinite(vectors).all())
            return "vectors" if good else f"bad vectors {vectors!r}"
    except EdgeEmbedError as error:
        return _named(error)
    except Exception as error:
        return f"untyped {error!r}"


def _named(error: EdgeEmbedError) -> str:
    return type(error).__name__ if type(error) in CODES else f"no leaf: {type(error).__name__}"


def main() -> None:
    """Open each accepted mutant of a range, one line of outcome for each."""
    folder, start, stop = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for number in range(start, stop):
        path = folder / f"{number}.gguf"
        path.write_bytes(mutant(number))
        if read_only(path) == "accepted":
            print(number, "opening", flush=True)
            print(number, whole_path(path), flush=True)
        path.unlink()


if __name__ == "__main__":
    main()
