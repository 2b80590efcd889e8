"""The 0.6B shape beside transformers: the same ids, the same vectors, the same scores.

    python -m benchmarks.parity06 record  --data DIR --work FOLDER --record FILE     (an interpreter with torch)
    python -m benchmarks.parity06 compare --data DIR --work FOLDER --record FILE     (this project's; 1 if too far)

``record`` runs the originals in float32 on the bfloat16 weights, each text alone, and keeps what they give by the ids
that they were given. It takes some 10 minutes on two idle cores, writes as it goes, and goes on where it was stopped.
``compare`` embeds the same texts with GGUFs of the same weights (BF16 and F16 by default) in calls of many texts: bare,
instructed, and cut one token before, at and behind their own length and in the middle; and scores pairs. FOLDER is
``shape06``'s. Random weights are a hard test: their vectors lie anywhere (the mean cosine of two texts is printed), and
no closeness of meaning hides an error.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from benchmarks.parity_cases import (
    N_PAIRS,
    N_TEXTS,
    Case,
    PairCase,
    cases_of,
    original_ids,
    original_pair_ids,
    pairs_of,
    texts_of,
)
from benchmarks.shape06 import Shape06

MIN_COSINE, MAX_SCORE_DIFFERENCE = 0.9999, 0.01
SAVE_EVERY = 60.0  # seconds
Ids = Sequence[int]
YES, NO = 9693, 2152  # ids of the two words in Qwen3's vocabulary


@dataclass
class Record:
    """What the originals gave, by the ids that they were given, for one checkpoint."""

    path: Path
    checkpoint: str
    vectors: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    log_odds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, checkpoint: str) -> Record:
        """What the file holds; nothing where there is none.

        Raises:
            SystemExit: it is another checkpoint's.
        """
        self = cls(path, checkpoint)
        if path.exists():
            with np.load(path) as file:
                if str(file["checkpoint"]) != checkpoint:
                    sys.exit(f"{path} was recorded from other weights: name another file, or remove it")
                self.vectors = dict(zip(file["keys"].tolist(), file["vectors"], strict=True))
                self.log_odds = dict(zip(file["pair_keys"].tolist(), file["log_odds"].tolist(), strict=True))
        return self

    def save(self) -> None:
        """Write it all, whole or not at all."""
        part = self.path.with_name(self.path.name + ".part.npz")
        np.savez(
            part,
            checkpoint=np.array(self.checkpoint),
            keys=np.array(list(self.vectors), dtype="U40"),
            vectors=np.array(list(self.vectors.values()), dtype=np.float32),
            pair_keys=np.array(list(self.log_odds), dtype="U40"),
            log_odds=np.array(list(self.log_odds.values()), dtype=np.float64),
        )
        part.replace(self.path)


def key_of(ids: Ids) -> str:
    """A name for a list of ids."""
    return hashlib.sha1(np.array(ids, dtype="<i4").tobytes()).hexdigest()


def main() -> int:
    """Run one of the two halves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("record", "compare"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of benchmarks.shape06")
    parser.add_argument("--record", type=Path, required=True, help="an .npz file")
    parser.add_argument("--texts", type=int, default=N_TEXTS, help="fewer for a quick look; the lengths stay spread")
    parser.add_argument("--pairs", type=int, default=N_PAIRS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--type", nargs="*", default=["bf16", "f16"], help="compare: types of the embedding model")
    parser.add_argument("--reranker-type", nargs="*", default=["bf16", "f16"], help="compare: of the reranker")
    parser.add_argument("--partial", action="store_true", help="compare: what is recorded so far, and say how much")
    parser.add_argument("--min-cosine", type=float, default=MIN_COSINE)
    parser.add_argument("--max-difference", type=float, default=MAX_SCORE_DIFFERENCE, help="of scores")
    options = parser.parse_args()
    shape = Shape06(options.work)
    shape.make_checkpoints()
    tokenizer = Tokenizer.from_file(str(shape.checkpoint / "tokenizer.json"))
    pair_tokenizer = Tokenizer.from_file(str(shape.reranker_checkpoint / "tokenizer.json"))
    texts = texts_of(options.data, tokenizer, options.texts)
    cases = cases_of(texts, tokenizer)
    ids = [original_ids(case, tokenizer) for case in cases]
    pairs = pairs_of(options.data, texts, options.pairs)
    pair_ids = [original_pair_ids(pair, pair_tokenizer) for pair in pairs]
    with (shape.checkpoint / "model.safetensors").open("rb") as weights:
        record = Record.open(options.record, hashlib.sha256(weights.read(1 << 28)).hexdigest())
    if options.step == "record":
        make_record(record, shape, ids, pair_ids, options.threads)
        return 0
    known = [i for i, row in enumerate(ids) if key_of(row) in record.vectors]
    known_pairs = [i for i, row in enumerate(pair_ids) if key_of(row) in record.log_odds]
    missing = len(ids) + len(pair_ids) - len(known) - len(known_pairs)
    if missing:
        said = f"{options.record} lacks {missing} of {len(ids) + len(pair_ids)} cases"
        if not options.partial:
            sys.exit(f"{said}: run `record` first")
        print(f"{said}; the others:")
        cases, ids = [cases[i] for i in known], [ids[i] for i in known]
        pairs, pair_ids = [pairs[i] for i in known_pairs], [pair_ids[i] for i in known_pairs]
    print(f"{len(cases)} cases of {len(texts)} texts of up to {max(map(len, ids))} tokens, {len(pairs)} pairs.")
    close = [
        compare_vectors(shape.embedder(ftype), record, cases, ids, options.threads) >= options.min_cosine
        for ftype in (options.type if cases else ())
    ]
    close += [
        compare_scores(shape.reranker(ftype), record, pairs, pair_ids, options.threads) <= options.max_difference
        for ftype in (options.reranker_type if pairs else ())
    ]
    return 0 if all(close) else 1


# ---------------------------------------------------------------- the originals


def make_record(record: Record, shape: Shape06, ids: Sequence[Ids], pair_ids: Sequence[Ids], threads: int) -> None:
    """Run what is missing, the short ones first."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    torch.set_num_threads(threads)

    def vector(model: object, row: Ids) -> None:
        hidden = model(input_ids=torch.tensor([list(row)]), use_cache=False).last_hidden_state[0, -1]  # type: ignore[operator]
        record.vectors[key_of(row)] = torch.nn.functional.normalize(hidden, dim=0).numpy()

    def odds(model: object, row: Ids) -> None:
        logits = model(input_ids=torch.tensor([list(row)]), use_cache=False, logits_to_keep=1).logits[0, -1]  # type: ignore[operator]
        record.log_odds[key_of(row)] = float(logits[YES] - logits[NO])

    jobs: list[tuple[type, Path, Sequence[Ids], dict[str, object], Callable[[object, Ids], None]]] = [
        (AutoModel, shape.checkpoint, ids, record.vectors, vector),  # type: ignore[list-item]
        (AutoModelForCausalLM, shape.reranker_checkpoint, pair_ids, record.log_odds, odds),  # type: ignore[list-item]
    ]
    for kind, folder, rows, known, run in jobs:
        todo = {key_of(row): row for row in rows if key_of(row) not in known}
        n_tokens = sum(map(len, todo.values()))
        print(f"{folder.name}: {len(todo)} to run, {n_tokens} tokens", flush=True)
        if not todo:
            continue
        model = kind.from_pretrained(folder, dtype=torch.float32).eval()  # type: ignore[attr-defined]
        done, started, saved = 0, time.monotonic(), time.monotonic()
        with torch.inference_mode():
            for row in sorted(todo.values(), key=len):
                run(model, row)
                done += len(row)
                if time.monotonic() - saved > SAVE_EVERY:
                    record.save()
                    saved = time.monotonic()
                    print(f"{done}/{n_tokens} tokens, {done / (saved - started):.0f} a second", flush=True)
        record.save()
        del model


# ---------------------------------------------------------------- the comparison


def compare_vectors(path: Path, record: Record, cases: Sequence[Case], ids: Sequence[Ids], threads: int) -> float:
    """Print a line for each group of cases and each range of lengths; returns the lowest cosine, -1 if ids differ."""
    from edge_embed import Embedder

    expected = np.stack([record.vectors[key_of(row)] for row in ids]).astype(np.float64)
    found = np.empty_like(expected)
    lengths = np.array([len(row) for row in ids])
    calls: dict[tuple[str | None, int | None], list[int]] = defaultdict(list)
    for index, case in enumerate(cases):
        calls[case.instruction, case.max_tokens].append(index)
    started = time.monotonic()
    with Embedder(path, n_threads=threads) as embedder:
        counted = np.empty_like(lengths)
        for (instruction, limit), members in calls.items():
            chosen = [cases[i].text for i in members]
            result = embedder.embed(chosen, instruction=instruction, max_tokens=limit)
            found[members], counted[members] = result.vectors, result.n_tokens
        bare = [i for i, case in enumerate(cases) if case.group == "bare"]
        equal = sum(embedder.tokenize(cases[i].text).token_ids.tolist() == list(ids[i]) for i in bare)
    seconds = time.monotonic() - started
    cosine = (found * expected).sum(axis=1)
    apart = expected[bare] @ expected[bare].T
    apart = apart[np.triu_indices(len(bare), 1)]
    same_length = int((counted == lengths).sum())
    print(
        f"\n{path.name}, {seconds:.0f} s. Ids of bare texts: {equal} of {len(bare)} equal; token counts of all cases: "
        f"{same_length} of {len(cases)} equal. Two different texts have a cosine of {apart.mean():.3f} on average.\n\n"
        "| cases | n | min cosine | mean cosine | below 0.9999 |\n|---|---|---|---|---|"
    )
    rows = {group: [i for i, case in enumerate(cases) if case.group == group] for group in _groups(cases)}
    for low, high in ((1, 16), (17, 128), (129, 1024), (1025, 1 << 20)):
        label = f"{low} to {high} tokens" if high < 1 << 20 else f"more than {low - 1} tokens"
        rows[label] = np.flatnonzero((lengths >= low) & (lengths <= high)).tolist()
    for label, members in {**rows, "all": list(range(len(cases)))}.items():
        if members:
            some = cosine[members]
            print(f"| {label} | {len(some)} | {some.min():.6f} | {some.mean():.6f} | {int((some < 0.9999).sum())} |")
    worst = int(cosine.argmin())
    print(f"\nThe lowest: {lengths[worst]} tokens, {cases[worst].group}, begins {cases[worst].text[:40]!r}", flush=True)
    return float(cosine.min()) if equal == len(bare) and same_length == len(cases) else -1.0


def compare_scores(path: Path, record: Record, pairs: Sequence[PairCase], ids: Sequence[Ids], threads: int) -> float:
    """Print a line for a reranker; returns the largest difference of a score, infinite if token counts differ."""
    from edge_embed import Reranker

    odds = np.array([record.log_odds[key_of(row)] for row in ids])
    expected = 1 / (1 + np.exp(-odds))
    found = np.empty_like(expected)
    counted = np.empty(len(ids), dtype=np.int64)
    calls: dict[tuple[str, int | None], list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        calls[pair.instruction, pair.max_tokens].append(index)
    with Reranker(path, n_threads=threads) as reranker:
        for (instruction, limit), members in calls.items():
            chosen = [(pairs[i].query, pairs[i].document) for i in members]
            result = reranker.score(chosen, instruction=instruction, max_tokens=limit)
            found[members], counted[members] = result.scores, result.n_tokens
    difference = np.abs(found - expected)
    same_length = int((counted == [len(row) for row in ids]).sum())
    print(
        f"\n{path.name}: {len(pairs)} pairs, scores from {expected.min():.3f} to {expected.max():.3f}; they differ by "
        f"at most {difference.max():.5f}, {difference.mean():.5f} on average; token counts equal for {same_length}.",
        flush=True,
    )
    return float(difference.max()) if same_length == len(pairs) else float("inf")


def _groups(cases: Sequence[Case]) -> list[str]:
    return list(dict.fromkeys(case.group for case in cases))


if __name__ == "__main__":
    sys.exit(main())
