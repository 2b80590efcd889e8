"""The engine on real files: two ways to a vector that agree, any batching, growth, overflow, kernels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_embed import Embedder
from edge_embed.batching import pack
from edge_embed.convert import convert
from edge_embed.engine.llama import LlamaEngine
from edge_embed.errors import NonFiniteError
from edge_embed.types import Batch, Encoding
from tests import oracle
from tests.checkpoints import build_tiny_bert, build_tiny_qwen3
from tests.scripts import run_script
from tests.tiny_gguf import gguf_bytes, tiny_bert, tiny_decoder

WORDS = "the cat sat on a mat good morning green tea world".split()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def random_encodings(n_vocab: int, lengths: list[int], seed: int = 0) -> list[Encoding]:
    random = np.random.default_rng(seed)
    return [Encoding(random.integers(10, n_vocab, n).astype(np.int32), n) for n in lengths]


def run(engine: LlamaEngine, encodings: list[Encoding], n_batch: int = 512, n_seq_max: int = 64) -> np.ndarray:
    rows = np.empty((len(encodings), engine.n_embd), dtype=np.float32)
    for batch in pack(encodings, n_batch=n_batch, n_seq_max=n_seq_max):
        rows[list(batch.indices)] = engine.decode(batch)
    return rows


# Causal models


def test_hidden_states_equal_llama_cpps_own_pooling(qwen3: Embedder) -> None:
    encodings = random_encodings(qwen3.info.n_vocab, [1, 2, 3, 17, 64, 300, 511, 513, 900])
    hidden, pooled = LlamaEngine(qwen3.info, n_threads=1), LlamaEngine(qwen3.info, n_threads=1, hidden=False)
    assert (hidden.hidden, pooled.hidden) == (True, False)
    assert cosines(run(hidden, encodings), run(pooled, encodings)).min() > 0.99999
    hidden.close()
    pooled.close()


def test_a_graph_without_result_norm_falls_back_to_pooling(qwen3: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    encodings = random_encodings(qwen3.info.n_vocab, [5, 9, 40])
    expected = run(LlamaEngine(qwen3.info, n_threads=1), encodings)
    engine = LlamaEngine(qwen3.info, n_threads=1)
    monkeypatch.setattr(engine._rows, "take", lambda: np.empty((0, engine.n_embd), dtype=np.float32))
    found = run(engine, encodings)
    assert engine.hidden is False
    assert cosines(expected, found).min() > 0.99999


def test_batches_that_share_are_taken_after_the_fall_back_too(qwen3: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were packed before the first of them showed that llama.cpp has to pool."""
    encodings = [Encoding(np.array([7, 8, 9, 10, 11, 20 + i, i], np.int32), 7) for i in range(40)]
    expected = run(LlamaEngine(qwen3.info, n_threads=1), encodings)
    engine = LlamaEngine(qwen3.info, n_threads=1)
    batches = list(pack(encodings, n_batch=16, n_seq_max=64, share=True))
    assert all(batch.shared for batch in batches[:2])
    monkeypatch.setattr(engine._rows, "take", lambda: np.empty((0, engine.n_embd), dtype=np.float32))
    found = np.empty_like(expected)
    for batch in batches:
        found[list(batch.indices)] = engine.decode(batch)
    assert engine.hidden is False
    assert cosines(expected, found).min() > 0.99999


def test_any_number_of_texts_a_batch_leaves_the_process_alive(bert_path: Path) -> None:
    """llama.cpp ends it where a ubatch is no multiple of the sequences."""
    code = """
        import sys
        import numpy as np
        from edge_embed.batching import pack
        from edge_embed.engine.llama import LlamaEngine
        from edge_embed.gguf_header import read_header
        from edge_embed.model_info import read_model_info
        from edge_embed.types import Encoding

        info = read_model_info(read_header(sys.argv[1]))
        encodings = [Encoding(np.arange(5, 5 + n, dtype=np.int32), n) for n in range(1, 12)]
        for n_seq_max in (3, 251):
            engine = LlamaEngine(info, n_threads=1, n_batch=31, n_seq_max=n_seq_max)
            for batch in pack(encodings, n_batch=31, n_seq_max=n_seq_max):
                assert np.isfinite(engine.decode(batch)).all()
            engine.close()
    """
    run_script(code, bert_path)


def test_a_text_longer_than_any_before_makes_the_context_grow(qwen3_path: Path) -> None:
    with Embedder(qwen3_path, n_threads=1, n_batch=16) as embedder:
        short, long = "the cat", " ".join(WORDS * 20)
        alone = embedder.encode([short])
        both = embedder.encode([long, short])
        again = embedder.encode([short])
    assert cosines(both[1], alone[0]) > 0.9999
    assert cosines(again[0], alone[0]) > 0.9999


@pytest.mark.parametrize("n_batch", [8, 64, 700])
def test_batch_sizes_do_not_change_vectors(n_batch: int, bert: Embedder, qwen3: Embedder) -> None:
    for embedder in (bert, qwen3):
        encodings = random_encodings(embedder.info.n_vocab, [1, 2, 3, 5, 8, 13, 21, 34, 55, 60])
        engine = LlamaEngine(embedder.info, n_threads=1, n_batch=n_batch)
        expected = [
            embedder.backend.engine.decode(batch)[0] for e in encodings for batch in pack([e], n_batch=1, n_seq_max=1)
        ]
        assert cosines(np.array(expected), run(engine, encodings, n_batch=n_batch)).min() > 0.9999
        engine.close()


# Overflow


@pytest.fixture(params=["bert", "qwen3"])
def poisoned(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Embedder]:
    """A model in which one token, ``z``, overflows."""
    metadata, tensors = tiny_bert() if request.param == "bert" else tiny_decoder()
    token = next(i for i, t in enumerate(metadata["tokenizer.ggml.tokens"]) if t.strip("\u2581") == "z")
    tensors["token_embd.weight"][token] = np.inf
    path = tmp_path / "poisoned.gguf"
    path.write_bytes(gguf_bytes(metadata, tensors))
    with Embedder(path, n_threads=1) as embedder:
        yield embedder


def test_one_overflowing_text_fails_alone_and_the_next_call_is_finite(poisoned: Embedder) -> None:
    texts = ["the cat", "a z b", "green tea", "good morning world", "z", "the mat"]
    clean = [text for text in texts if "z" not in text]
    expected = np.array([poisoned.encode(text) for text in clean])
    with pytest.raises(NonFiniteError) as caught:
        poisoned.encode(texts)
    assert caught.value.indices == (1, 4)
    assert np.isnan(caught.value.partial.vectors[[1, 4]]).all()
    assert cosines(expected, caught.value.partial.vectors[[0, 2, 3, 5]]).min() > 0.9999
    assert cosines(expected, poisoned.encode(clean)).min() > 0.9999


# Kernels: Q8_0 has one of its own on x86 with VNNI, by tiles of 6, 4, 2 and 1 tokens


@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_q8_0_products_are_right_for_every_number_of_tokens(family: str, tmp_path: Path) -> None:
    builder = build_tiny_bert if family == "bert" else build_tiny_qwen3
    options = {} if family == "bert" else {"real_tokenizer": False}
    folder = builder(tmp_path / family, hidden=128, **options)
    exact, quantized = (
        convert(folder, tmp_path / f"{t}.gguf", ftype=t).path for t in ("f32" if family == "bert" else "f16", "q8_0")
    )
    with Embedder(exact, n_threads=1) as expected, Embedder(quantized, n_threads=2) as found:
        for n in range(1, 42):
            (encoding,) = random_encodings(expected.info.n_vocab, [n], seed=n)
            batch = Batch(encoding.token_ids, np.array([n], dtype=np.int32), (0,))
            assert cosines(expected.backend.engine.decode(batch), found.backend.engine.decode(batch)).min() > 0.995, n


def test_q8_0_agrees_with_the_stock_kernels(tmp_path: Path) -> None:
    path = convert(oracle.minilm_folder(), tmp_path / "q8_0.gguf", ftype="q8_0").path
    texts = [" ".join(WORDS[i % 11 :] * (i % 5 + 1)) for i in range(40)]
    with Embedder(path) as embedder:
        fast = embedder.encode(texts)
        encodings = [embedder.tokenize(text) for text in texts]
        stock = run(LlamaEngine(embedder.info, use_extra_bufts=False), encodings, n_batch=192)
    assert cosines(fast, stock).min() > 0.998  # two ways of rounding activations to 8 bits
