"""Converted files in stock llama.cpp: each loads there and gives the same vectors."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from edge_embed import Embedder
from edge_embed.convert import FTYPES, convert
from tests.checkpoints import QWEN3_EDS, build_tiny_bert, build_tiny_qwen3
from tests.converting import edited, small_qwen3, stock

SENTENCES = ["the cat and the dog", "a long road through the mountain", "three hundred apples , two oranges ."]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT checkpoint that no test changes."""
    return build_tiny_bert(tmp_path_factory.mktemp("checkpoints") / "tiny-bert", max_seq_length=96)


@pytest.fixture(scope="module")
def qwen3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 checkpoint that no test changes."""
    return small_qwen3(tmp_path_factory.mktemp("checkpoints") / "tiny-qwen3")


# ---------------------------------------------------------------- stock llama.cpp


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_stock_llama_cpp_gives_the_same_vectors(family: str, pooling: str, tmp_path: Path) -> None:
    """From the standard keys alone: ids, special tokens and pooling."""
    folder = build_tiny_bert(tmp_path / "m") if family == "bert" else small_qwen3(tmp_path / "m")
    kind = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
    flags = {f"pooling_mode_{flag}": mode == pooling for mode, flag in kind.items()}
    edited(folder / "1_Pooling" / "config.json", **flags)
    path = convert(folder, tmp_path / "m.gguf", ftype="f16").path
    vectors, ids = stock(path, SENTENCES, n_ctx=128)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert ids == [encoding.ids for encoding in tokenizer.encode_batch(SENTENCES)]
    with Embedder(path, n_threads=1) as embedder:
        ours = embedder.encode(SENTENCES, prompt="")
    assert (ours.astype(np.float64) * vectors).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("ftype", FTYPES)
def test_every_type_loads_in_stock_llama_cpp(ftype: str, tmp_path: Path) -> None:
    """And stays near the original: rows of 256, so that K-quants are what they say."""
    folder = small_qwen3(tmp_path / "m", hidden=256)
    exact, _ = stock(convert(folder, tmp_path / "f32.gguf", ftype="f32").path, SENTENCES, n_ctx=128)
    found, _ = stock(convert(folder, tmp_path / "m.gguf", ftype=ftype).path, SENTENCES, n_ctx=128)
    below = {
        "q3_k_m": 0.9,
        "q4_0": 0.95,
        "iq4_xs": 0.95,
        "q4_k_s": 0.95,
        "q4_k_m": 0.95,
        "q5_k_s": 0.98,
        "q5_k_m": 0.98,
    }
    least = below.get(ftype, 0.99)
    assert (exact * found).sum(axis=1).min() > least


def test_the_real_tokenizer_of_qwen3_in_stock_llama_cpp(tmp_path: Path) -> None:
    """151,669 tokens and the EDS token after them, for texts in many scripts."""
    folder = build_tiny_qwen3(tmp_path / "m")
    texts = [
        "What is the capital of China?",
        "中文 日本語 한국어",
        "  two  spaces\n\nand 12345 !?",
        "<think> <|im_end|>",
    ]
    _, ids = stock(convert(folder, tmp_path / "m.gguf", ftype="f16").path, texts, n_ctx=128)
    assert all(found[-1] == QWEN3_EDS and found.count(QWEN3_EDS) == 1 for found in ids)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text, found in itertools.islice(zip(texts, ids, strict=True), 3):
        assert found == tokenizer.encode(text).ids, text
