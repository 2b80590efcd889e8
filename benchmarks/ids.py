"""Token ids beside the original tokenizer's: how many texts differ, as they are and in decomposed Unicode.

``python -m benchmarks.ids --data DIR [--tokenizer FILE ...]``. Each tokenizer goes through the converter's keys into a
GGUF and back. The last columns are llama.cpp's own tokenizer on the same file, and how long ours takes to build.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.datasets import mbpp, tatoeba, tokenizer_stress
from edge_embed import Embedder
from edge_embed.errors import EdgeEmbedError
from tests import trained
from tests.checkpoints import qwen3_tokenizer_text
from tests.tiny_gguf import gguf_bytes, tiny_decoder
from tests.tokenizing import metadata_of, runtime_tokenizer, typed, vocabulary_of

SETS: dict[str, Callable[[Path], list[str]]] = {"tokstress": tokenizer_stress, "tatoeba": tatoeba, "mbpp": mbpp}


def main() -> None:
    """Print one line for each tokenizer and set of texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with tokstress, tatoeba and mbpp")
    parser.add_argument("--tokenizer", type=Path, action="append", default=[], help="a tokenizer.json to compare, too")
    options = parser.parse_args()
    texts = {name: read(options.data) for name, read in SETS.items()}
    print("tokenizer             set        texts      ids  differ  differ (NFD)  llama.cpp  llama.cpp (NFD)  build")
    for name, tokenizer in _tokenizers(options.tokenizer):
        _compare(name, tokenizer, texts)


def _tokenizers(files: Iterable[Path]) -> Iterable[tuple[str, dict[str, Any]]]:
    yield "Qwen3", json.loads(qwen3_tokenizer_text())
    for file in files:
        yield f"{file.parent.name}/{file.name}"[-20:], json.loads(file.read_text("utf-8"))
    for name, build in trained.ALL.items():
        yield name, build()


def _compare(name: str, tokenizer: dict[str, Any], texts: dict[str, list[str]]) -> None:
    from tokenizers import Tokenizer as Original

    vocabulary = vocabulary_of(tokenizer)
    metadata = metadata_of(vocabulary)
    started = time.perf_counter()
    ours = runtime_tokenizer(metadata)
    seconds = time.perf_counter() - started
    original = Original.from_str(json.dumps(tokenizer))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = Path(folder) / "tiny.gguf"
        path.write_bytes(gguf_bytes(*tiny_decoder("llama", typed(vocabulary))))
        engine = stack.enter_context(Embedder(path, n_threads=1)).backend.engine
        for set_name, as_they_are in texts.items():
            columns: list[int] = []
            n_ids = 0
            for form in (as_they_are, [unicodedata.normalize("NFD", text) for text in as_they_are]):
                expected = [original.encode(text).ids for text in form]
                plain = [original.encode(text, add_special_tokens=False).ids for text in form]
                n_ids = n_ids or sum(map(len, expected))
                found = [ours.encode(text).token_ids.tolist() for text in form]
                columns.append(sum(a != b for a, b in zip(expected, found, strict=True)))
                columns.append(sum(_stock(engine, text) != b for text, b in zip(form, plain, strict=True)))
            differ, stock, differ_nfd, stock_nfd = columns
            print(
                f"{name:21} {set_name:10} {len(as_they_are):5} {n_ids:8} {differ:7} {differ_nfd:13} {stock:10} "
                f"{stock_nfd:16} {seconds:5.2f}s",
                flush=True,
            )


def _stock(engine: Any, text: str) -> list[int] | None:
    try:
        return list(engine.tokenize(text))
    except EdgeEmbedError:
        return None


if __name__ == "__main__":
    main()
