"""What texts begin with is computed once: found by packing, kept by the engine, and the same vectors come out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_embed import Embedder
from edge_embed.batching import WORTH_SHARING, alone, n_common, pack, sequences
from edge_embed.engine.llama import LlamaEngine
from edge_embed.engine.prefixes import KEPT_TOKENS, RESIDENTS, Residents, worth_keeping
from edge_embed.errors import InvalidOptionError
from edge_embed.types import Batch, Encoding, Shared

# Few different ids, so that texts begin alike at many depths.
IDS = st.lists(st.integers(0, 2), min_size=1, max_size=24)
TEXTS = st.lists(IDS, max_size=40)
BUDGET = st.integers(1, 120)


def encoded(texts: list[list[int]]) -> list[Encoding]:
    """Encodings that end in an id of their own, as the texts of a call do: identical ones are computed once."""
    return [Encoding(np.array([*ids, 100 + i], np.int32), len(ids) + 1) for i, ids in enumerate(texts)]


def shared(texts: list[list[int]], n_batch: int = 1000, n_seq_max: int = 64) -> list[Batch]:
    return list(pack(encoded(texts), n_batch=n_batch, n_seq_max=n_seq_max, share=True))


@given(TEXTS, BUDGET, st.integers(1, 20))
def test_each_text_comes_out_whole_and_once(texts: list[list[int]], n_batch: int, n_seq_max: int) -> None:
    found = {}
    for batch in shared(texts, n_batch, n_seq_max):
        assert batch.n_seqs <= n_seq_max
        assert min(batch.lengths) >= 1
        for index, ids, single in zip(batch.indices, sequences(batch), alone(batch), strict=True):
            assert index not in found
            found[index] = ids.tolist()
            assert single.token_ids.tolist() == ids.tolist()
            assert single.indices == (index,)
    assert {i: encoding.token_ids.tolist() for i, encoding in enumerate(encoded(texts))} == found


@given(TEXTS, BUDGET, st.integers(1, 20))
def test_stretches_enclose_each_other_or_do_not_touch(texts: list[list[int]], n_batch: int, n_seq_max: int) -> None:
    for batch in shared(texts, n_batch, n_seq_max):
        spans = [(s.first, s.end) for s in batch.shared]
        assert spans == sorted(spans, key=lambda span: span[0])
        for i, (first, end) in enumerate(spans):
            assert 0 <= first < end <= batch.n_seqs
            assert end - first >= 2
            for other_first, other_end in spans[:i]:
                assert other_end <= first or (other_first <= first and end <= other_end)


@given(TEXTS)
def test_what_two_neighbours_have_in_common_is_shared(texts: list[list[int]]) -> None:
    for batch in shared(texts):
        own = sequences(batch)
        starts = batch.starts.tolist()
        for i in range(1, batch.n_seqs):
            common = n_common(own[i - 1], own[i])
            both = min(starts[i - 1], starts[i])
            assert common - both < WORTH_SHARING


@given(TEXTS, BUDGET)
def test_a_batch_keeps_its_budget_beside_what_the_one_before_has_computed(texts: list[list[int]], n_batch: int) -> None:
    longest = max((len(ids) + 1 for ids in texts), default=0)
    for batch in shared(texts, n_batch):
        if batch.n_seqs > 1:
            assert batch.n_tokens <= n_batch + longest


def test_an_instruction_and_a_query_within_it_are_two_stretches() -> None:
    instruction, one, two = [1] * 10, [2] * 6, [3] * 6
    texts = [[*instruction, *one, 4, 4], [*instruction, *two, 5], [*instruction, *one, 6], [*instruction, *two, 7, 7]]
    (batch,) = shared(texts)
    assert [(10, 0, 4), (6, 0, 2), (6, 2, 4)] == [(len(s.token_ids), s.first, s.end) for s in batch.shared]
    assert batch.n_tokens == 10 + 6 + 6 + (3 + 2 + 2 + 3)


def test_texts_that_begin_alike_without_an_end_of_their_own_keep_their_last_token() -> None:
    encodings = [Encoding(np.array(ids, np.int32), len(ids)) for ids in ([7] * 8, [7] * 9, [7] * 20)]
    (batch,) = pack(encodings, n_batch=100, n_seq_max=8, share=True)
    assert min(batch.lengths) >= 1
    assert [8, 9, 20] == [len(ids) for ids in sequences(batch)]


# What stays


def test_of_several_texts_what_they_have_in_common_is_kept() -> None:
    (batch,) = shared([[1] * 10 + [2] * 5 + [3], [1] * 10 + [2] * 5 + [4], [1] * 10 + [5]])
    assert [(0, 10, True)] == worth_keeping(batch, sequences(batch))
    (batch,) = shared([[1] * 10 + [0], [1] * 10 + [2] * 5 + [3], [1] * 10 + [2] * 5 + [4]])
    assert [(0, 10, True), (2, 15, True)] == worth_keeping(batch, sequences(batch))


def test_of_one_text_its_beginning_is_kept_but_for_its_last_token() -> None:
    (batch,) = shared([[1, 2, 3, 4, 5]])
    assert [(0, 5, False)] == worth_keeping(batch, sequences(batch))
    (batch,) = shared([[1] * 2000], n_batch=100)
    assert [(0, KEPT_TOKENS, False)] == worth_keeping(batch, sequences(batch))


def test_the_longest_beginning_matches_and_what_was_never_used_goes_first() -> None:
    residents = Residents(8)
    short = residents.add(np.arange(6, dtype=np.int32), proven=False)
    long = residents.add(np.arange(10, dtype=np.int32), proven=False)
    other = residents.add(np.arange(50, 60, dtype=np.int32), proven=False)
    assert {8, 9, 10} == {short.seq, long.seq, other.seq}
    found, n = residents.match(np.array([*range(8), 99, 99], np.int32))
    assert (found, n) == (long, 8)
    assert residents.match(np.array([1, 2, 3, 4, 5], np.int32)) == (None, 0)
    assert residents.match(np.arange(4, dtype=np.int32)) == (None, 0)  # its last token is to be computed
    assert residents.weakest() is short


# Through the engine


def runs(engine: LlamaEngine, encodings: list[Encoding], *, share: bool, n_batch: int = 64) -> np.ndarray:
    rows = np.empty((len(encodings), engine.n_embd), np.float32)
    for batch in pack(encodings, n_batch=n_batch, n_seq_max=16, share=share):
        rows[list(batch.indices)] = engine.decode(batch)
    return rows


def alike(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


@pytest.fixture(scope="module")
def engines(qwen3_path: Path) -> tuple[LlamaEngine, LlamaEngine]:
    """One that shares, and one that computes every text by itself."""
    with Embedder(qwen3_path) as embedder:
        info = embedder.info
    return LlamaEngine(info, n_batch=64, n_seq_max=16), LlamaEngine(info, n_batch=64, deterministic=True)


def batch_of_three(*stretches: tuple[int, int], tokens: int = 2) -> Batch:
    common = tuple(Shared(np.zeros(tokens, np.int32), first, end) for first, end in stretches)
    return Batch(np.array([1, 2, 3], np.int32), np.array([1, 1, 1], np.int32), (0, 1, 2), shared=common)


CALLS = st.lists(st.lists(IDS, min_size=1, max_size=12), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CALLS)
def test_calls_after_one_another_give_what_texts_give_alone(
    engines: tuple[LlamaEngine, LlamaEngine], calls: list[list[list[int]]]
) -> None:
    sharing, lonely = engines
    assert sharing.limits.shares_prefixes
    assert not lonely.limits.shares_prefixes
    for texts in calls:
        encodings = encoded(texts)
        assert alike(runs(sharing, encodings, share=True), runs_alone(lonely, encodings)) > 0.99999


def runs_alone(engine: LlamaEngine, encodings: list[Encoding]) -> np.ndarray:
    rows = [engine.decode(batch) for e in encodings for batch in pack([e], n_batch=64, n_seq_max=1)]
    return np.concatenate(rows)


def test_what_a_batch_began_with_is_not_computed_again(engines: tuple[LlamaEngine, LlamaEngine]) -> None:
    sharing, lonely = engines
    instruction = list(range(200, 240))
    texts = [[*instruction, i, i + 1] for i in range(10)]
    runs(sharing, encoded(texts), share=True)
    held = [resident.token_ids.tolist() for resident in sharing._memory.residents.held]
    assert instruction in held
    computed: list[int] = []
    decode = sharing._lib.c.llama_decode

    class Spy:
        def __getattr__(self, name: str) -> object:
            return getattr(sharing_c, name)

        @staticmethod
        def llama_decode(context: object, batch: object) -> int:
            computed.append(batch.n_tokens)  # type: ignore[attr-defined]
            return int(decode(context, batch))

    sharing_c = sharing._lib.c
    object.__setattr__(sharing._lib, "c", Spy())
    try:
        later = encoded([[*instruction, 7, 8, 9]])
        rows = runs(sharing, later, share=True)
    finally:
        object.__setattr__(sharing._lib, "c", sharing_c)
    assert [4] == computed
    assert alike(rows, runs_alone(lonely, later)) > 0.99999


def test_more_beginnings_than_are_kept_and_longer_ones_than_fit(engines: tuple[LlamaEngine, LlamaEngine]) -> None:
    sharing, lonely = engines
    rng = np.random.default_rng(0)
    beginnings = [rng.integers(0, 90, n).tolist() for n in (5, 40, 200, 300, 400, 450, 7, 12)]
    for _ in range(2):
        for beginning in beginnings:
            encodings = encoded([[*beginning, *rng.integers(0, 90, 5).tolist()] for _ in range(6)])
            assert alike(runs(sharing, encodings, share=True), runs_alone(lonely, encodings)) > 0.99999
            held = sharing._memory.residents.held
            assert len(held) <= RESIDENTS
            assert sharing._memory.residents.n_tokens <= max(KEPT_TOKENS, max(len(r.token_ids) for r in held))


def test_a_batch_whose_stretches_cross_is_refused_before_the_library_sees_it(
    engines: tuple[LlamaEngine, LlamaEngine],
) -> None:
    sharing, _ = engines
    assert sharing.decode(batch_of_three((0, 3), (1, 3))).shape == (3, sharing.n_embd)
    for wrong in (
        batch_of_three((0, 2), (1, 3)),
        batch_of_three((1, 3), (0, 2)),
        batch_of_three((0, 4)),
        batch_of_three((2, 2)),
        batch_of_three((-1, 2)),
        batch_of_three((0, 3), tokens=0),
    ):
        with pytest.raises(InvalidOptionError, match="shared tokens"):
            sharing.decode(wrong)


def test_an_encoder_does_not_share(bert: Embedder) -> None:
    assert not bert.backend.engine.limits.shares_prefixes
    with pytest.raises(InvalidOptionError, match="cannot share"):
        bert.backend.engine.decode(batch_of_three((0, 3)))
