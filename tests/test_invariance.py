"""The same text gives the same bits whatever else is in the batch, wherever it stands, and on any number of threads.

Of encoders, on the CPU, with the kernels of ``engine/native``: see ``engine/pooling.py`` for what that rests on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_embed import Embedder
from edge_embed.batching import pack
from edge_embed.convert import convert
from edge_embed.engine.llama import LlamaEngine
from edge_embed.engine.pooling import in_company, pooled
from edge_embed.types import Batch, Encoding, ModelInfo
from tests.oracle import minilm_folder
from tests.test_kernels import tolerance

# Lengths around every size that a kernel works in: 4 queries, 6 tokens of a tile, ggml's 8, 16 lanes, 32 keys, 64 rows.
LENGTHS = [1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 97, 128, 200, 384]
BATCH = 384


class Known:
    """Engines of one model, random texts, and what each gives alone, on one thread."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        random = np.random.default_rng(0)
        self.texts = [random.integers(1000, 28000, n).astype(np.int32) for n in LENGTHS]
        self.engines = {n: LlamaEngine(info, n_threads=n, n_batch=BATCH) for n in (1, 2, 3)}
        self.alone = [self.engines[1].decode(batch([ids]))[0] for ids in self.texts]
        self.tokens = [self.engines[1].decode_tokens(batch([ids])) for ids in self.texts]


def batch(texts: Sequence[np.ndarray]) -> Batch:
    return Batch(
        token_ids=np.concatenate(texts),
        lengths=np.array([len(ids) for ids in texts], dtype=np.int32),
        indices=tuple(range(len(texts))),
    )


@pytest.fixture(scope="module", params=["bundled", "f16", "q3_k_m"])
def known(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Known]:
    path = None
    if request.param != "bundled":
        path = convert(minilm_folder(), tmp_path_factory.mktemp("minilm") / "m.gguf", ftype=request.param).path
    with Embedder(path, n_threads=1) as embedder:
        info = embedder.info
    models = Known(info)
    yield models
    for engine in models.engines.values():
        engine.close()


def ours() -> bool:
    """Whether the library has our kernel for attention; stock ggml's works in tiles of the batch."""
    return tolerance() < 1e-3


@st.composite
def companies(draw: st.DrawFn) -> list[int]:
    """Which texts a batch holds, in which order; one may occur more than once."""
    drawn = draw(st.lists(st.integers(0, len(LENGTHS) - 1), min_size=1, max_size=40))
    members: list[int] = []
    for index in drawn:
        if not members or sum(LENGTHS[i] for i in members) + LENGTHS[index] <= BATCH:
            members.append(index)
    return members


@settings(max_examples=60)
@given(members=companies(), n_threads=st.sampled_from([1, 2, 3]), tokens=st.booleans())
def test_any_company_any_place_any_threads(known: Known, members: list[int], n_threads: int, tokens: bool) -> None:
    engine, together = known.engines[n_threads], batch([known.texts[i] for i in members])
    if tokens:
        found = np.split(engine.decode_tokens(together), np.cumsum(together.lengths)[:-1])
        expected = [known.tokens[i] for i in members]
    else:
        found, expected = list(engine.decode(together)), [known.alone[i] for i in members]
    differs = [LENGTHS[i] for i, a, b in zip(members, found, expected, strict=True) if a.tobytes() != b.tobytes()]
    if ours():
        assert differs == []
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=0.1)


@pytest.mark.parametrize(("n_batch", "n_seq_max"), [(1, 1), (40, 3), (100, 252), (4096, 64)])
def test_any_way_of_packing(known: Known, n_batch: int, n_seq_max: int) -> None:
    """Other limits, so other contexts; one text at a time is what ``deterministic`` does."""
    encodings = [Encoding(ids, len(ids)) for ids in known.texts * 2]
    engine = LlamaEngine(known.info, n_threads=2, n_batch=n_batch, n_seq_max=n_seq_max)
    rows = np.empty((len(encodings), known.info.n_hidden), dtype=np.float32)
    for packed in pack(encodings, n_batch=n_batch, n_seq_max=n_seq_max):
        rows[list(packed.indices)] = engine.decode(packed)
    engine.close()
    np.testing.assert_allclose(rows, np.stack(known.alone * 2), atol=0.1)
    if ours():
        assert rows.tobytes() == np.stack(known.alone * 2).tobytes()


def test_texts_through_the_embedder() -> None:
    random = np.random.default_rng(0)
    words = "a cat sleeps on the warm windowsill while interest rates rise again and nobody bakes sourdough".split()
    texts = [" ".join(random.choice(words, n)) for n in random.integers(0, 40, 300)]
    texts[7] = texts[100] = ""
    with Embedder(cache=False) as embedder, Embedder(deterministic=True, cache=False) as exact:
        together = embedder.encode(texts)
        backwards = embedder.encode(texts[::-1])[::-1]
        expected = np.stack([exact.encode(text) for text in texts[:120]])
    np.testing.assert_allclose(together[:120], expected, atol=0.01)
    if ours():
        assert together.tobytes() == backwards.tobytes()
        assert together[:120].tobytes() == expected.tobytes()


# The pieces


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), width=st.sampled_from([1, 3, 32, 100]))
def test_a_mean_has_the_bits_of_its_own_rows(lengths: list[int], width: int) -> None:
    sizes = np.array(lengths, dtype=np.int32)
    rows = np.random.default_rng(0).standard_normal((sizes.sum(), width)).astype(np.float32) * np.float32(1e3)
    means, firsts, lasts = (pooled(rows, sizes, how) for how in ("mean", "cls", "last"))
    for i, own in enumerate(np.split(rows, np.cumsum(sizes)[:-1])):
        assert means[i].tobytes() == pooled(own.copy(), sizes[i : i + 1], "mean")[0].tobytes()
        np.testing.assert_allclose(means[i], own.astype(np.float64).mean(axis=0), rtol=1e-6, atol=1e-4)
        assert (firsts[i].tobytes(), lasts[i].tobytes()) == (own[0].tobytes(), own[-1].tobytes())


def test_what_is_not_finite_stays_in_its_text() -> None:
    rows = np.ones((6, 4), dtype=np.float32)
    rows[2, 1], rows[3, 0] = np.nan, np.inf
    means = pooled(rows, np.array([2, 2, 2], dtype=np.int32), "mean")
    assert np.isfinite(means).tolist() == [[True] * 4, [False, False, True, True], [True] * 4]


@pytest.mark.parametrize("lengths", [[1], [2], [7], [1, 1, 1], [1] * 7, [4, 2]])
def test_few_tokens_get_company_behind_them(lengths: list[int]) -> None:
    few = batch([np.arange(5, 5 + n, dtype=np.int32) for n in lengths])
    whole = in_company(few)
    assert (whole.n_tokens, whole.n_seqs, whole.lengths.dtype) == (8, len(lengths) + 1, np.int32)
    assert whole.token_ids.tolist() == [*few.token_ids.tolist(), *[5] * (8 - few.n_tokens)]
    enough = batch([np.arange(8, dtype=np.int32)])
    assert in_company(enough) is enough
