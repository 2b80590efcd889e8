"""Hostile input of every kind: each case ends in a vector or a typed error, and the process lives on.

2,350 cases: texts and options through the whole path (800), batches straight into the engine (800), damaged model
files (750, of which the first ones that pass the checks are opened in processes of their own).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from edge_embed import Embedder
from edge_embed.engine.llama import LlamaEngine
from edge_embed.errors import CODES, EdgeEmbedError, InputError, InvalidOptionError
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info
from edge_embed.types import PRECISIONS, Batch
from tests import mutants
from tests.mutants import mutant, read_only

ROOT = Path(__file__).parent.parent
SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture)

# Texts and options

SPELLED = [
    "[SEP]", "[CLS]", "[PAD]", "[UNK]", "[MASK]", "<|endoftext|>", "<|im_end|>", "<|im_start|>", "</s>", "<unk>",
    "##ing", "\u2581the", "<0x00>", "\x00", "\r\n", "\u200d", "\ufeff", "\U0010ffff", "e\u0301", "中", "🙂", "the cat ",
]  # fmt: skip
ANY_TEXT = (
    st.text(st.characters(), max_size=60)  # every code point, lone surrogates too
    | st.lists(st.sampled_from(SPELLED), max_size=30).map("".join)
    | st.builds(
        lambda unit, n: unit * n, st.sampled_from([*SPELLED, "a", "1", " ", "?", "\u0301"]), st.integers(0, 20_000)
    )
    | st.text(st.characters(min_codepoint=0x300, max_codepoint=0x36F), max_size=200)
)
SOUND = {
    "truncate": st.sampled_from(["right", "left"]),
    "max_tokens": st.none() | st.integers(4, 64),
    "truncate_dim": st.sampled_from([None, 8, 16, 24, 32]),
    "precision": st.sampled_from(PRECISIONS),
    "normalize": st.booleans(),
    "prompt": st.none() | ANY_TEXT,
}
WRONG = {
    "truncate": st.sampled_from(["error", "end", None]),
    "max_tokens": st.integers(-2, 80),
    "truncate_dim": st.integers(-1, 34),
    "precision": st.sampled_from(["int4", None]),
    "prompt_name": st.sampled_from(["query", ""]),
    "instruction": st.just("x"),
}
OPTIONS = st.fixed_dictionaries({}, optional=SOUND) | st.fixed_dictionaries({}, optional=SOUND | WRONG)
TEXTS = st.lists(ANY_TEXT, max_size=5) | st.lists(ANY_TEXT | st.sampled_from([None, 3, b"x"]), max_size=3)


@pytest.mark.parametrize("model", ["bert", "qwen3"])
@settings(max_examples=400, suppress_health_check=SLOW)
@given(texts=TEXTS, options=OPTIONS)
def test_any_text_and_option_gives_vectors_or_an_input_error(
    model: str, texts: list[Any], options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    embedder: Embedder = request.getfixturevalue(model)
    try:
        result = embedder.embed(texts, **options)
    except tuple(kind for kind in CODES if issubclass(kind, InputError)):
        event("error")
        return
    event("vectors")
    dim = options.get("truncate_dim") or 32
    packed = options.get("precision") in ("binary", "ubinary")
    assert (len(texts), dim // 8 if packed else dim) == result.vectors.shape
    assert np.isfinite(result.vectors.astype(np.float64)).all()
    assert (result.n_tokens <= min(options.get("max_tokens") or 9999, embedder.info.max_tokens)).all()
    if options.get("normalize", True) and options.get("precision", "float32") == "float32" and texts:
        assert np.abs(np.linalg.norm(result.vectors, axis=1) - 1).max() < 1e-5


# Batches

N_BATCH, N_SEQ_MAX = 64, 8


@pytest.fixture(scope="module")
def engines(bert_path: Path, qwen3_path: Path) -> Iterator[dict[str, LlamaEngine]]:
    """Engines of small limits, so that they are crossed easily."""
    infos = {"bert": read_model_info(read_header(bert_path)), "qwen3": read_model_info(read_header(qwen3_path))}
    made = {name: LlamaEngine(info, n_threads=1, n_batch=N_BATCH, n_seq_max=N_SEQ_MAX) for name, info in infos.items()}
    yield made
    for engine in made.values():
        engine.close()


def batch_of(lengths: list[int], n_vocab: int, seed: int = 0) -> Batch:
    """A sound batch of these lengths."""
    ids = np.random.default_rng(seed).integers(0, n_vocab, sum(lengths)).astype(np.int32)
    return Batch(ids, np.array(lengths, np.int32), tuple(range(len(lengths))))


def set_id(batch: Batch, at: int, token: int) -> Batch:
    ids = batch.token_ids.copy()
    ids[at % len(ids)] = token
    return Batch(ids, batch.lengths, batch.indices)


def set_length(batch: Batch, at: int, length: int) -> Batch:
    lengths = batch.lengths.copy()
    lengths[at % len(lengths)] = length
    return Batch(batch.token_ids, lengths, batch.indices)


DTYPES = [np.int64, np.uint32, np.int16, np.float32, np.bool_, ">i4", np.object_]
POSITION, INT32 = st.integers(0, 99), st.integers(-(1 << 31), (1 << 31) - 1)
DAMAGE = st.one_of(
    st.builds(lambda at, token: lambda b: set_id(b, at, token), POSITION, INT32),
    st.builds(lambda at, n: lambda b: set_length(b, at, n), POSITION, INT32 | st.integers(-1, 3)),
    st.sampled_from(DTYPES).map(lambda kind: lambda b: Batch(b.token_ids.astype(kind), b.lengths, b.indices)),
    st.sampled_from(DTYPES).map(lambda kind: lambda b: Batch(b.token_ids, b.lengths.astype(kind), b.indices)),
    st.integers(0, 5).map(lambda n: lambda b: Batch(b.token_ids[n:], b.lengths, b.indices)),
    st.integers(0, 5).map(lambda n: lambda b: Batch(b.token_ids, b.lengths[n:], b.indices)),
    st.integers(0, 5).map(lambda n: lambda b: Batch(b.token_ids, b.lengths, b.indices[n:])),
    st.just(lambda b: Batch(b.token_ids[None], b.lengths, b.indices)),
    st.just(lambda b: Batch(b.token_ids, b.lengths[:, None], b.indices)),
    st.just(lambda b: Batch(b.token_ids, b.lengths.sum(), b.indices)),
    st.just(lambda b: Batch(b.token_ids[:0], b.lengths[:0], ())),
    st.just(lambda b: Batch(np.repeat(b.token_ids, 2)[::2], np.repeat(b.lengths, 3)[::3], b.indices)),
)  # fmt: skip
LENGTHS = (
    st.lists(st.integers(1, 8), min_size=1, max_size=8)  # within every limit
    | st.lists(st.integers(1, 1100), min_size=1, max_size=1)
    | st.lists(st.integers(1, 30), min_size=1, max_size=12)
)


@pytest.mark.parametrize("model", ["bert", "qwen3"])
@settings(max_examples=400, suppress_health_check=SLOW)
@given(lengths=LENGTHS, sound=st.booleans(), damage=DAMAGE, seed=st.integers(0, 5))
def test_any_batch_gives_vectors_or_an_error_and_the_next_one_is_right(
    model: str, lengths: list[int], sound: bool, damage: Any, seed: int, engines: dict[str, LlamaEngine]
) -> None:
    engine = engines[model]
    batch = batch_of(lengths, engine.limits.n_vocab, seed)
    batch = batch if sound else damage(batch)
    try:
        rows = engine.decode(batch)
        assert (batch.n_seqs, 32) == rows.shape
        assert np.isfinite(rows).all()
        event("vectors")
    except InvalidOptionError:
        event("error")
    good = batch_of([5, 3], engine.limits.n_vocab)
    rows = engine.decode(good)
    expected = expected_rows(model, engine)
    cosines = (rows * expected).sum(axis=1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.9999


_EXPECTED: dict[str, np.ndarray] = {}


def expected_rows(model: str, engine: LlamaEngine) -> np.ndarray:
    """The good batch's vectors from an engine that has seen nothing else."""
    if model not in _EXPECTED:
        fresh = LlamaEngine(engine._info, n_threads=1)
        _EXPECTED[model] = fresh.decode(batch_of([5, 3], engine.limits.n_vocab))
        fresh.close()
    return _EXPECTED[model]


# Files

N_FILES, N_OPENED = 750, 120


def test_any_damaged_file_is_accepted_or_refused_by_the_checks(tmp_path: Path) -> None:
    """Nothing but a typed error leaves the checks that come before the engine."""
    path, outcomes = tmp_path / "x.gguf", Counter[str]()
    for number in range(N_FILES):
        path.write_bytes(mutant(number))
        outcomes[read_only(path)] += 1
    assert {"accepted", "ModelFileError", "UnsupportedModelError"} == set(outcomes)
    assert outcomes["accepted"] > N_FILES // 4
    assert outcomes["ModelFileError"] > N_FILES // 4


def test_any_damaged_file_opens_or_ends_in_a_typed_error(tmp_path: Path) -> None:
    """Two processes open about half of these files, those that pass the checks, each through its probe's child."""
    half = N_OPENED // 2
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.mutants", str(tmp_path), str(start), str(start + half)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for start in (0, half)
    ]
    answers = [process.communicate() for process in processes]
    for process, (output, errors) in zip(processes, answers, strict=True):
        assert 0 == process.returncode, f"{output[-200:]}\n{errors[-2000:]}"
    outcomes = Counter(line.split(" ", 1)[1] for output, _ in answers for line in output.splitlines())
    opened = outcomes.pop("opening")
    assert opened == outcomes.total()
    assert set() == set(outcomes) - {"vectors", *(kind.__name__ for kind in CODES)}
    assert outcomes["vectors"] > opened // 5
    assert outcomes["ModelFileError"] > opened // 5


def test_the_undamaged_models_give_vectors(tmp_path: Path) -> None:
    """What is damaged above is sound before."""
    for number, model in enumerate(mutants.models()):
        (tmp_path / f"{number}.gguf").write_bytes(mutants.gguf_bytes(*model))
        assert "vectors" == mutants.whole_path(tmp_path / f"{number}.gguf")


# Names of models


@pytest.mark.parametrize(
    "name", ["", ".", "/", "nothing", "a" * 5000, "~nobody-of-that-name/x", "x\0y", "\ud800", "a/b.gguf"]
)
def test_any_name_of_a_model_that_does_not_exist_is_a_typed_error(name: str) -> None:
    with pytest.raises(EdgeEmbedError) as caught:
        Embedder(name)
    assert type(caught.value) in CODES
