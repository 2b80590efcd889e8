"""What one call may ask for: sizes mixed in one batch, windows over long texts, the vectors of tokens, a time limit."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_embed import Embedder, testing
from edge_embed.batching import sequences
from edge_embed.cancellation import Cancellation
from edge_embed.errors import (
    CallCancelledError,
    DeadlineExceededError,
    InvalidDimensionError,
    InvalidOptionError,
    InvalidTextError,
    NonFiniteError,
)
from edge_embed.testing import FakeEngine, fake_embedder
from edge_embed.types import Batch, Float32Array
from tests.oracle import smollm2_file
from tests.scripts import run_script
from tests.tiny_gguf import gguf_bytes, tiny_decoder

LONG = " ".join(f"word{i}" for i in range(400))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


# Sizes, precisions and prompts in one batch


def test_calls_of_different_sizes_share_the_batches() -> None:
    engine = FakeEngine()
    embedder = fake_embedder(engine)
    jobs = [
        embedder.prepare(["one", "two"], truncate_dim=4),
        embedder.prepare(["one"], truncate_dim=16, precision="int8"),
        embedder.prepare(["two", "three"], prompt_name="query", normalize=False),
    ]
    four, eight_bits, raw = embedder.run(jobs)
    assert (2, 4) == four.vectors.shape
    assert (1, 16, np.int8) == (*eight_bits.vectors.shape, eight_bits.vectors.dtype)
    assert [sum(e.n_tokens for e in jobs[2].encodings)] == [int(raw.vectors.sum())]  # a one for each token
    computed = [tuple(ids.tolist()) for batch in engine.batches for ids in sequences(batch)]
    assert len(computed) == len(set(computed)) == 4  # "one" of two calls is computed once
    alone = fake_embedder().embed(["one", "two"], truncate_dim=4)
    assert alone.vectors.tolist() == four.vectors.tolist()
    assert alone.usage == four.usage


def test_each_size_is_the_cut_of_the_whole_vector(bert: Embedder) -> None:
    texts = ["a small text", "and another one"]
    whole = bert.embed(texts).vectors
    sizes = (1, 7, 24, bert.info.n_embd)
    for size, result in zip(sizes, bert.run([bert.prepare(texts, truncate_dim=size) for size in sizes]), strict=True):
        cut = whole[:, :size] / np.linalg.norm(whole[:, :size], axis=1, keepdims=True)
        assert np.abs(result.vectors - cut).max() < 1e-6
        assert np.abs(np.linalg.norm(result.vectors, axis=1) - 1).max() < 1e-5


def test_a_size_that_is_not_possible_is_refused_before_anything_runs() -> None:
    engine = FakeEngine()
    with pytest.raises(InvalidDimensionError):
        fake_embedder(engine).prepare(["a"], truncate_dim=17)
    assert [] == engine.batches


def test_the_texts_of_all_calls_are_counted_through_where_some_overflow() -> None:
    embedder = fake_embedder(FakeEngine(poison=3 + ord("!")))
    with pytest.raises(NonFiniteError) as caught:
        embedder.run([embedder.prepare(["fine", "bad!"]), embedder.prepare(["bad!", "good"])])
    assert (1, 2) == caught.value.indices
    first, second = caught.value.partial
    assert [True, False] == np.isfinite(first.vectors).all(axis=1).tolist()
    assert [False, True] == np.isfinite(second.vectors).all(axis=1).tolist()


# Windows


def test_windows_cover_a_text_evenly_and_overlap_as_asked() -> None:
    embedder = fake_embedder(max_tokens=22)  # 20 bytes and two special tokens
    text = "".join(chr(97 + i % 26) for i in range(100))
    job = embedder.prepare([text], truncate="chunk", overlap=5)
    spans = [bytes(int(i) - 3 for i in e.token_ids[1:-1]).decode() for e in job.encodings]
    assert {20} == {len(span) for span in spans}
    assert all((1, 2) == (int(e.token_ids[0]), int(e.token_ids[-1])) for e in job.encodings)
    starts = [text.index(span, start) for start, span in zip([0, 1, 10, 20, 30, 50, 60], spans, strict=False)]
    assert starts[0] == 0
    assert starts[-1] + 20 == 100
    steps = np.diff(starts)
    assert steps.max() <= 15
    assert steps.max() - steps.min() <= 1
    result = embedder.run([job])[0]
    assert [len(spans)] == result.n_windows.tolist()
    assert ([102], [22 * len(spans)]) == (result.n_original.tolist(), result.n_tokens.tolist())
    assert not result.truncated.any()


def test_a_text_that_fits_is_one_window_and_the_same_vector() -> None:
    embedder = fake_embedder()
    chunked, plain = embedder.embed(["short", "short"], truncate="chunk"), embedder.embed(["short", "short"])
    assert chunked.vectors.tolist() == plain.vectors.tolist()
    assert [1, 1] == chunked.n_windows.tolist() == plain.n_windows.tolist()


def test_the_vector_of_windows_is_the_mean_of_theirs(bert: Embedder) -> None:
    result = bert.embed(["short", LONG, "short", LONG], truncate="chunk", max_tokens=64, overlap=16)
    encodings = bert.prepare([LONG], truncate="chunk", max_tokens=64, overlap=16).encodings
    assert [1, len(encodings), 1, len(encodings)] == result.n_windows.tolist()
    windows = []
    for encoding in encodings:
        batch = Batch(encoding.token_ids, np.array([encoding.n_tokens], np.int32), (0,))
        row = bert.backend.engine.decode(batch)[0]
        windows.append(row / np.linalg.norm(row))
    mean = np.mean(windows, axis=0)
    assert cosine(result.vectors[1], mean) > 0.99999
    assert result.vectors[1].tolist() == result.vectors[3].tolist()
    assert abs(np.linalg.norm(result.vectors[1]) - 1) < 1e-5


def test_every_window_has_the_prompt() -> None:
    embedder = fake_embedder(max_tokens=32)
    job = embedder.prepare(["x" * 100], truncate="chunk", prompt_name="query")
    heads = {bytes(int(i) - 3 for i in e.token_ids[1:8]).decode() for e in job.encodings}
    assert {"query: "} == heads
    assert len(job.encodings) > 3


def test_one_window_that_overflows_is_the_text_that_fails() -> None:
    embedder = fake_embedder(FakeEngine(poison=3 + ord("!")), max_tokens=22)
    with pytest.raises(NonFiniteError) as caught:
        embedder.embed(["fine", "x" * 60 + "!" + "x" * 20, "fine too"], truncate="chunk")
    assert (1,) == caught.value.indices


@pytest.mark.parametrize("overlap", [-1, 20, 1000, True, 2.0])
def test_an_overlap_that_is_not_possible_is_refused(overlap: int) -> None:
    with pytest.raises(InvalidOptionError, match="overlap is"):
        fake_embedder(max_tokens=22).embed(["x" * 100], truncate="chunk", overlap=overlap)


def test_options_that_contradict_each_other_are_refused() -> None:
    embedder = fake_embedder()
    with pytest.raises(InvalidOptionError, match="without windows"):
        embedder.embed(["a"], overlap=3)
    with pytest.raises(InvalidOptionError, match="several vectors"):
        embedder.embed(["a"], truncate="chunk", output="tokens")
    with pytest.raises(InvalidOptionError, match="output is"):
        embedder.embed(["a"], output="words")  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match="leaves no room"):
        fake_embedder(max_tokens=8).embed(["x" * 100], truncate="chunk", prompt="a prompt of more")


# Tokens


@pytest.mark.parametrize("model", ["bert", "qwen3"])
def test_the_pooled_vectors_of_tokens_are_the_texts(model: str, request: pytest.FixtureRequest) -> None:
    embedder: Embedder = request.getfixturevalue(model)
    texts = ["a small text", "Über die Brücke, 日本語", "a", LONG[:300], "a small text"]
    plain, result = embedder.embed(texts, normalize=False), embedder.embed(texts, normalize=False, output="tokens")
    assert plain.token_vectors is None
    assert result.token_vectors is not None
    assert result.token_ids is not None
    for i, text in enumerate(texts):
        tokens = result.token_vectors[i]
        assert embedder.tokenize(text).token_ids.tolist() == result.token_ids[i].tolist()
        assert (len(result.token_ids[i]), embedder.info.n_embd) == tokens.shape
        own = tokens[-1] if embedder.info.pooling == "last" else tokens.mean(axis=0)
        assert cosine(own, plain.vectors[i]) > 0.99999
        assert cosine(result.vectors[i], plain.vectors[i]) > 0.99999
    assert np.abs(embedder.embed(texts, normalize=False).vectors - plain.vectors).max() < 1e-2  # and back


# Stopping


class SlowEngine(FakeEngine):
    """Takes a while for each batch, and can be stopped between them alone."""

    def __init__(self) -> None:
        super().__init__(n_seq_max=1)
        self.started = threading.Event()

    def decode(self, batch: Batch, stop: Cancellation | None = None) -> Float32Array:
        self.started.set()
        time.sleep(0.02)
        return super().decode(batch, stop)


def test_a_call_stops_when_its_time_is_up() -> None:
    engine = SlowEngine()
    embedder = fake_embedder(engine)
    with pytest.raises(DeadlineExceededError, match=r"longer than 0\.05 s"):
        embedder.embed([str(i) for i in range(500)], timeout=0.05)
    assert len(engine.batches) < 400
    assert embedder.embed(["the next call"]).vectors.shape == (1, 16)


def test_a_call_stops_when_another_thread_says_so() -> None:
    engine, cancellation = SlowEngine(), Cancellation()
    embedder = fake_embedder(engine)
    threading.Thread(target=lambda: (engine.started.wait(), cancellation.cancel())).start()
    with pytest.raises(CallCancelledError):
        embedder.embed([str(i) for i in range(500)], cancellation=cancellation)
    with pytest.raises(CallCancelledError):
        embedder.embed(["later"], cancellation=cancellation)
    assert testing.fake_reranker().rank("a", ["b"])[0].document == "b"


def test_a_call_stops_while_its_texts_are_tokenized() -> None:
    cancellation, read = Cancellation(), list[str]()

    class Text(str):
        def encode(self, *arguments: Any) -> bytes:
            read.append(self)
            if len(read) == 5:
                cancellation.cancel()
            return super().encode(*arguments)

    texts = [Text(i) for i in range(100)]
    with pytest.raises(CallCancelledError):
        fake_embedder().embed(texts, cancellation=cancellation)
    assert len(read) <= 6
    pairs = [("query", text) for text in texts]
    read, cancellation = [], Cancellation()
    with pytest.raises(CallCancelledError):
        testing.fake_reranker().score(pairs, cancellation=cancellation)
    with pytest.raises(InvalidOptionError, match="cancellation is 3"):
        fake_embedder().embed(["a"], cancellation=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "1", True])
def test_a_time_limit_that_is_none_is_refused(timeout: float) -> None:
    with pytest.raises(InvalidOptionError, match="timeout is"):
        fake_embedder().embed(["a"], timeout=timeout)


def test_a_time_limit_belongs_to_the_cancellation_where_there_is_one() -> None:
    with pytest.raises(InvalidOptionError, match="together"):
        fake_embedder().embed(["a"], timeout=1, cancellation=Cancellation())


def test_a_signals_handler_may_cancel_the_call_that_it_interrupts() -> None:
    """Wherever it is: the handler runs between any two steps of the interrupted thread."""
    code = """
        import signal, time
        from edge_embed.cancellation import Cancellation

        cancellation, times = Cancellation(), []
        signal.signal(signal.SIGALRM, lambda *_: (times.append(0), cancellation.cancel()))
        signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
        while len(times) < 1000:
            with cancellation.interrupting(lambda: None):
                pass
        signal.setitimer(signal.ITIMER_REAL, 0)
        print("done")
    """
    assert run_script(code, timeout=60) == "done\n"


class Recorder:
    """The bindings, with what ``llama_decode`` returned."""

    def __init__(self, c: Any) -> None:
        self._c = c
        self.codes: list[int] = []
        self.begun = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._c, name)

    def llama_decode(self, context: Any, batch: Any) -> int:
        self.begun.set()
        self.codes.append(self._c.llama_decode(context, batch))
        return self.codes[-1]


@pytest.fixture
def long_reader(tmp_path: Path) -> Iterator[tuple[Embedder, Recorder]]:
    """A model that reads 30,000 tokens in one batch, which takes it many seconds, and what its calls of C returned."""
    metadata, tensors = tiny_decoder(layers=16)
    metadata["qwen3.context_length"] = np.uint32(1 << 15)
    path = tmp_path / "long.gguf"
    path.write_bytes(gguf_bytes(metadata, tensors))
    with Embedder(path, n_threads=1) as embedder:
        engine: Any = embedder.backend.engine
        recorder = Recorder(engine._lib.c)
        engine._lib = dataclasses.replace(engine._lib, c=recorder)
        yield embedder, recorder


@pytest.mark.parametrize("how", ["timeout", "cancel", "interrupt"])
def test_a_batch_under_way_is_stopped_in_the_middle(how: str, long_reader: tuple[Embedder, Recorder]) -> None:
    """llama.cpp returns 2 where the computation was aborted."""
    embedder, recorder = long_reader
    text = "word " * 32_000
    expected = embedder.encode("afterwards")
    recorder.codes.clear()
    recorder.begun.clear()
    if how == "timeout":
        job = embedder.prepare([text])
        with pytest.raises(DeadlineExceededError):
            embedder.run([job], timeout=1.5)
    elif how == "cancel":
        cancellation = Cancellation()
        threading.Thread(target=lambda: (recorder.begun.wait(), cancellation.cancel())).start()
        with pytest.raises(CallCancelledError):
            embedder.embed([text], cancellation=cancellation)
    else:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=lambda: (recorder.begun.wait(), os.kill(os.getpid(), signal.SIGINT))).start()
        try:
            with pytest.raises(KeyboardInterrupt):
                embedder.embed([text])
        finally:
            signal.signal(signal.SIGINT, before)
    assert [2] == recorder.codes
    assert cosine(embedder.encode("afterwards"), expected) > 0.99999


# The same bits


def test_deterministic_gives_the_same_bits_in_any_company(qwen3_path: Path) -> None:
    texts = ["a text", "another text that is somewhat longer", "a text that begins like the first", "b"]
    with Embedder(qwen3_path, deterministic=True) as embedder:
        together = embedder.encode(texts)
        backwards = embedder.encode(texts[::-1])[::-1]
        alone = np.stack([embedder.encode(text) for text in texts])
    assert together.tobytes() == backwards.tobytes() == alone.tobytes()


def test_deterministic_gives_the_same_bits_in_the_bundled_model() -> None:
    texts = ["a text", "another text that is somewhat longer", LONG, "b"]
    with Embedder(deterministic=True) as embedder:
        together = embedder.encode(texts)
        alone = np.stack([embedder.encode(text) for text in texts[::-1]])[::-1]
    assert together.tobytes() == alone.tobytes()


def test_keys_and_values_in_8_bits_give_nearly_the_same_vectors() -> None:
    texts = ["a text", LONG]
    path = smollm2_file()
    with Embedder(path, pooling="last", deterministic=True) as exact:
        expected = exact.encode(texts)
    with Embedder(path, pooling="last", kv_type="q8_0", deterministic=True) as embedder:
        found = embedder.encode(texts)
    assert found.tobytes() != expected.tobytes()
    assert min(cosine(a, b) for a, b in zip(found, expected, strict=True)) > 0.998


def test_keys_and_values_in_8_bits_are_refused_where_they_cannot_be(qwen3_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="heads of 16 values"):
        Embedder(qwen3_path, kv_type="q8_0")
    with pytest.raises(InvalidOptionError, match="kv_type is"):
        Embedder(qwen3_path, kv_type="q4_0")  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match="keeps no keys and values"):
        Embedder(kv_type="q8_0")


def test_texts_that_cannot_be_read_are_refused_in_windows_too() -> None:
    with pytest.raises(InvalidTextError, match="lone surrogate"):
        fake_embedder().embed(["\ud800"], truncate="chunk")
