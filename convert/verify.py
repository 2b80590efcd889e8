"""A GGUF held against the checkpoint that it was made from: settings, ids, tensors and vectors (or scores).

Four comparisons, from what is cheap and names its cause to what proves the whole:

- settings: what the metadata says of the network, the pooling and the prompts, beside config.json and its companions;
- ids: the original tokenizer (``tokenizers``, its post-processor included) beside the runtime's, text by text;
- tensors: every tensor read back from its blocks, beside the checkpoint's values;
- vectors: the runtime's beside those of ``reference``, which knows neither the GGUF nor the data sheets.

What is broken fails, ordinary loss by quantization does not: ``limits`` says where the line is. Knows the converter's
plan of a checkpoint; crosses to the runtime inside functions, and asks it as a user would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType

from edge_embed import keys
from edge_embed.errors import InputError, InvalidOptionError, ModelError, NonFiniteError, VerificationError
from edge_embed.gguf_header import GgufHeader, read_header
from edge_embed.projection_file import without_projection
from edge_embed.types import Float32Array, Pooling

from . import reference
from .architectures.family import KeyValue
from .calibration_texts import TEXTS
from .checkpoint import short
from .compare import ScoreLoss, TensorLoss, TensorPair, VectorLoss, parts_of, score_loss, tensor_losses, vector_loss
from .container import patch_numbers
from .limits import LIMITS, Limit, coarsest_type, score_problems, tensor_problems, vector_problems
from .original_tokenizer import Ids, OriginalTokenizer
from .plan import Plan, opened_plan

Progress = Callable[[int, int, str], None]
"""Called with (bytes of the checkpoint read, bytes to read in all, what is compared)."""


@dataclass(frozen=True, slots=True)
class Scope:
    """How much is compared.

    Attributes:
        flops: what the reference may compute; None for all texts.
        tensor_parts: chunks of each tensor, a million values each; None for all.
        needs_memory: whether the model is run even where it does not fit into the memory that is free.
    """

    flops: float | None
    tensor_parts: int | None
    needs_memory: bool = True


# Of a conversion, which itself needs little memory: a machine may make a file that it cannot run.
QUICK = Scope(0.25e12, 2, needs_memory=False)  # seconds; half a minute for 4 billion weights
THOROUGH = Scope(2e12, None)
LEAST_TOKENS = 160  # below that a figure says little, however large the model is
WORST = 5  # tensors that are named


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verification found.

    Attributes:
        path: the GGUF.
        type_name: the coarsest type among its matrices.
        limit: what was expected of that type.
        n_settings: entries of the metadata that were compared.
        n_tensors: tensors that were compared.
        n_texts: texts (pairs of them, for a reranker) whose ids and vectors were compared.
        tensors: those with the largest errors, largest first.
        vectors: the vectors' figures; None for a reranker, and where the file could not be run.
        scores: a reranker's figures, else None.
        problems: one sentence each; empty where the file is sound.
        notes: what was noticed and is no problem.
        seconds: wall time.
    """

    path: Path
    type_name: str
    limit: Limit
    n_settings: int
    n_tensors: int
    n_texts: int
    tensors: tuple[TensorLoss, ...]
    vectors: VectorLoss | None
    scores: ScoreLoss | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(
    gguf: Path | str,
    source: Path | str,
    *,
    texts: Sequence[str] | None = None,
    min_cosine: float | None = None,
    pooling: Pooling | None = None,
    merge_lora: Path | str | None = None,
    reranker: bool = False,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compare a GGUF with the checkpoint that it was made from.

    Args:
        gguf: the file, of this or another converter.
        source: the checkpoint's folder.
        texts: what is embedded (a reranker scores each two that follow one another); a built-in set in many
            languages by default, as much of it as half a minute of reference allows.
        min_cosine: the least cosine of any text, instead of the type's own in ``limits.LIMITS``.
        pooling: mean, cls or last, for a checkpoint that does not say.
        merge_lora: folder of the PEFT adapter that was merged.
        reranker: that a Qwen3 checkpoint is a Qwen3-Reranker, where it does not say so itself.
        n_threads: CPU threads of the runtime.
        progress: called as tensors are read.

    Raises:
        CheckpointError, UnsupportedCheckpointError: the checkpoint.
        ModelNotFoundError, ModelFileError: the file is not there, or no whole GGUF.
        InvalidOptionError: an argument.
        EngineError: the native library.
    """
    lora = None if merge_lora is None else Path(merge_lora)
    with opened_plan(Path(source), merge_lora=lora, reranker=reranker, pooling=pooling) as plan:
        scope = THOROUGH if texts is None else Scope(None, None)
        return check(
            Path(gguf), plan, scope, texts=texts, min_cosine=min_cosine, n_threads=n_threads, progress=progress
        )


def require_runtime() -> None:
    """Load the native library: that it is missing is better known before a long conversion than behind it.

    Raises:
        EngineUnavailableError: it is missing, or of a layout that is not known.
    """
    from edge_embed.engine import bindings

    bindings.load()


def check(
    path: Path,
    plan: Plan,
    scope: Scope = QUICK,
    *,
    texts: Sequence[str] | None = None,
    min_cosine: float | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """The comparisons, one behind the other, so that memory holds the chunks of one: the model is loaded last."""
    started = time.perf_counter()
    if min_cosine is not None and not -1.0 <= min_cosine <= 1.0:
        raise InvalidOptionError(f"min_cosine is {min_cosine!r}", hint="give a cosine, -1 to 1")
    if min_cosine is not None and plan.settings.pooling == "rank":
        raise InvalidOptionError("min_cosine is about vectors, and this is a reranker")
    header = read_header(path)
    type_name = coarsest_type(header)
    notes: list[str] = []
    n_settings, problems = _check_settings(header, plan, notes)

    tokenizer = OriginalTokenizer(plan)
    chosen = _chosen(tokenizer, plan, scope, list(TEXTS if texts is None else texts), notes)
    pairs = _tensor_pairs(header, plan, scope, problems, notes)
    reading = _Reading(progress, sum(p.n_bytes for p in pairs) + sum(t.ref.nbytes for t in _multiplied(plan)))
    losses = tensor_losses(path, plan.checkpoint, pairs, reading)
    problems += tensor_problems(losses)
    vectors, scores = None, None
    free = None if scope.needs_memory or min_cosine is not None else _free_memory()
    if free is not None and free < 1.2 * header.size_bytes:
        notes.append(
            f"ids and {'scores' if tokenizer.pairs else 'vectors'} were not compared: {free / 1e9:.1f} GB of memory are"
            " free, too little to run the file; `edge-embed verify` compares them on a larger machine"
        )
        chosen = []
    else:
        expected = _reference(plan, tokenizer, chosen, reading)
        try:
            ids, found = (_scored if tokenizer.pairs else _embedded)(path, plan, chosen, n_threads)
        except (ModelError, InputError, NonFiniteError) as error:
            problems.append(f"the runtime cannot use the file: {error.message}")
        else:
            problems += _ids_problems(tokenizer, chosen, ids)
            n_tokens, whole = sum(len(text.ids.ids) for text in chosen), [text.whole for text in chosen]
            if expected.shape != found.shape:
                problems.append(f"vectors: they have {found.shape[1]} values, and the checkpoint's {expected.shape[1]}")
            elif tokenizer.pairs:
                scores = score_loss(expected, found, whole, n_tokens)
                problems += score_problems(scores, type_name)
            else:
                vectors = vector_loss(expected, found, whole, n_tokens)
                problems += vector_problems(vectors, type_name, min_cosine)
    return Verification(
        path=path,
        type_name=type_name,
        limit=LIMITS[type_name],
        n_settings=n_settings,
        n_tensors=len(pairs),
        n_texts=len(chosen),
        tensors=tuple(sorted(losses, key=lambda loss: -loss.error)[:WORST]),
        vectors=vectors,
        scores=scores,
        problems=tuple(problems),
        notes=tuple(notes),
        seconds=time.perf_counter() - started,
    )


# ---------------------------------------------------------------- figures in the file


def figures(found: Verification | None, *, scores: bool) -> list[KeyValue]:
    """The metadata of a verification; zeros in its place where there is none yet, to be overwritten."""
    number = GGUFValueType.FLOAT32
    entries = [KeyValue(keys.VERIFY_TEXTS, found.n_texts if found is not None else 0, GGUFValueType.UINT32)]
    if scores:
        loss = found.scores if found is not None else None
        difference = 0.0 if loss is None else round(loss.max_difference, 5)
        return [*entries, KeyValue(keys.VERIFY_SCORE_DIFFERENCE, difference, number)]
    vectors = found.vectors if found is not None else None
    values = (0.0, 0.0, 0.0) if vectors is None else (vectors.min_cosine, vectors.mean_cosine, vectors.overlap)
    names = (keys.VERIFY_MIN_COSINE, keys.VERIFY_MEAN_COSINE, keys.VERIFY_OVERLAP)
    return entries + [KeyValue(key, round(value, 5), number) for key, value in zip(names, values, strict=True)]


def require_passed(found: Verification) -> Verification:
    """What was found, where nothing is wrong.

    Raises:
        VerificationError: the file does not compute what the checkpoint does, and is not to be kept.
    """
    if not found.passed:
        raise VerificationError(
            "; ".join(found.problems[:3]) + ("; ..." if len(found.problems) > 3 else ""),
            hint="the file was not kept. --min-cosine sets how much may be lost, --no-verify writes it unseen; where "
            "nothing but loss by quantization should be wrong, this is a bug",
        )
    return found


def record(path: Path, found: Verification) -> None:
    """Put the figures into a file that has a place for them, as one that ``convert`` verified has.

    Raises:
        InvalidOptionError: it has none.
    """
    try:
        patch_numbers(path, figures(found, scores=found.scores is not None))
    except KeyError as error:
        raise InvalidOptionError(
            f"{path} has no place for figures of a verification: {error.args[0]} is missing",
            hint="convert it again without --no-verify",
        ) from None


# ---------------------------------------------------------------- settings


def _check_settings(header: GgufHeader, plan: Plan, notes: list[str]) -> tuple[int, list[str]]:
    """How many entries were compared, and a sentence for each that differs.

    What another converter leaves out has a default in llama.cpp or the runtime, and the vectors show whether it fits.
    """
    arch = plan.family.arch
    entries = {e.key: e.value for e in plan.key_values if e.key.startswith((f"{arch}.", keys.PREFIX))}
    entries["general.architecture"] = arch
    problems: list[str] = []
    missing: list[str] = []
    for key, value in entries.items():
        if key not in header.metadata:
            if value not in ("", []):  # an empty array has no type in GGUF, and is not written
                missing.append(key)
        elif not _same(header.metadata[key], value):
            problems.append(f"settings: {key} is {short(header.metadata[key])}, the checkpoint makes it {short(value)}")
    for key in header.metadata:
        if key.startswith(keys.PROMPT) and key not in entries:
            problems.append(f"settings: {key} is {short(header.metadata[key])}, the checkpoint has no such prompt")
    if missing and keys.VERSION in header.metadata:
        problems.append(f"settings: missing in the metadata: {', '.join(missing)}")
    elif missing:
        notes.append(f"another converter made this file; it does not record {', '.join(missing)}")
    return len(entries), problems


def _same(found: Any, expected: Any) -> bool:
    if isinstance(expected, float) and isinstance(found, float):
        return bool(np.float32(found) == np.float32(expected))
    return bool(found == (list(expected) if isinstance(expected, tuple) else expected))


# ---------------------------------------------------------------- texts and ids


@dataclass(frozen=True, slots=True)
class _Text:
    """What is embedded or scored: a prompt and a text, or a query and a document; and its ids by the original."""

    first: str
    second: str
    ids: Ids

    @property
    def whole(self) -> str:
        """Both, for messages."""
        return self.first + (" | " if self.ids.is_pair else "") + self.second


def _chosen(
    tokenizer: OriginalTokenizer, plan: Plan, scope: Scope, texts: Sequence[str], notes: list[str]
) -> list[_Text]:
    """Texts with one of the distinct prompts each in turn, or pairs; the shortest ones where the reference is slow."""
    if not texts:
        raise InvalidOptionError("there are no texts to verify with")
    if tokenizer.pairs:
        couples = [(query, texts[(i + 1) % len(texts)]) for i, query in enumerate(texts)]
        found = [_Text(*couple, tokenizer.encode_pair(*couple)) for couple in couples]
        found = [text for text in found if len(text.ids.ids) <= plan.settings.max_tokens]
    else:
        prompts = list(dict.fromkeys(["", *plan.settings.prompts.values()]))
        framed = [(prompts[i % len(prompts)], text) for i, text in enumerate(texts)]
        found = [_Text(prompt, text, tokenizer.encode(prompt + text)) for prompt, text in framed]
    if scope.flops is None:
        return found
    values = sum(tensor.ref.n_rows * tensor.ref.n_cols for tensor in _multiplied(plan))
    left = max(LEAST_TOKENS, int(scope.flops / (2 * max(1, values))))
    kept: list[int] = []
    for i in sorted(range(len(found)), key=lambda i: len(found[i].ids.ids)):
        left -= len(found[i].ids.ids)
        if left < 0 and len(kept) > 1:
            notes.append(f"{len(kept)} of {len(found)} texts, the shortest: the reference of a large model is slow")
            break
        kept.append(i)
    return [found[i] for i in sorted(kept)]


def _multiplied(plan: Plan) -> list[Any]:
    """The matrices that each token is multiplied with: not the tables that rows are looked up in."""
    tables = ("token_embd.weight", "position_embd.weight", "token_types.weight")
    return [tensor for tensor in plan.tensors if len(tensor.ref.shape) > 1 and tensor.name not in tables]


def _ids_problems(tokenizer: OriginalTokenizer, texts: Sequence[_Text], ids: Sequence[Sequence[int]]) -> list[str]:
    different = [i for i, text in enumerate(texts) if text.ids.ids != list(ids[i])]
    if not different:
        return []
    i = min(different, key=lambda i: len(ids[i]))
    a, b = texts[i].ids.ids, list(ids[i])
    at = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return [
        f"ids: {len(different)} of {len(texts)} texts get other token ids than the original tokenizer's. "
        f"{short(texts[i].whole)}: {len(a)} expected, {len(b)} found; number {at + 1} should be "
        f"{tokenizer.shown(a, at)} and is {tokenizer.shown(b, at)}"
    ]


# ---------------------------------------------------------------- tensors


class _Reading:
    """Counts bytes of the checkpoint as they are read, for a progress bar."""

    def __init__(self, report: Progress | None, total: int) -> None:
        self._report, self._total = report, total
        self._done = 0
        self.what = "tensors"

    def __call__(self, n: int) -> None:
        self._done += n
        if self._report is not None:
            self._report(min(self._done, self._total), self._total, self.what)


def _tensor_pairs(
    header: GgufHeader, plan: Plan, scope: Scope, problems: list[str], notes: list[str]
) -> list[TensorPair]:
    """The tensors that can be compared; what is missing, unknown or of another shape is a problem."""
    found = []
    for tensor in plan.tensors:
        stored, shape = header.tensors.get(tensor.name), tensor.ref.shape
        if stored is None:
            problems.append(f"tensor {tensor.name}: it is missing")
        elif _plain(stored.shape[::-1]) != _plain(shape):
            problems.append(f"tensor {tensor.name}: its shape is {list(stored.shape[::-1])}, expected {list(shape)}")
        else:
            found.append(TensorPair(tensor, stored, parts_of(tensor, scope.tensor_parts)))
    for name in sorted(header.tensors.keys() - {tensor.name for tensor in plan.tensors}):
        if name == "output.weight":
            notes.append("the vocabulary projection (output.weight) is not used for embeddings and was not compared")
        else:
            problems.append(f"tensor {name}: the checkpoint has nothing that becomes it")
    return found


def _plain(shape: Iterable[int]) -> list[int]:
    """A shape without its ones: one row is a vector, too."""
    return [n for n in shape if n != 1]


# ---------------------------------------------------------------- vectors and scores


def _reference(plan: Plan, tokenizer: OriginalTokenizer, texts: Sequence[_Text], reading: _Reading) -> Float32Array:
    """Vectors ``[n, d]``, or logits ``[n]``: of yes over no for a causal reranker."""
    reading.what = "scores" if tokenizer.pairs else "vectors"
    tokens = reference.Tokens.pack([text.ids.ids for text in texts], [text.ids.types for text in texts])
    if not tokenizer.pairs:
        settings = plan.settings
        return reference.vectors(
            plan.checkpoint,
            tokens,
            pooling=settings.pooling,
            normalize=settings.normalize,
            modules=plan.folder,
            on_read=reading,
        )
    if plan.head is None or plan.head.tokens is None:
        return reference.label_scores(plan.checkpoint, tokens, on_read=reading)[:, 0]
    yes, no = plan.head.tokens
    logits = reference.word_scores(plan.checkpoint, tokens, [yes] if no is None else [yes, no], on_read=reading)
    return logits[:, 0] if no is None else logits[:, 0] - logits[:, 1]


def _embedded(
    path: Path, plan: Plan, texts: Sequence[_Text], n_threads: int | None
) -> tuple[list[list[int]], Float32Array]:
    """Ids and vectors of the runtime. Prompts go by the names that the file has for them, as a user asks for them."""
    from edge_embed.embedder import Embedder

    with Embedder(path, n_threads=n_threads) as embedder:
        embedder.info = without_projection(embedder.info)  # the checkpoint has none
        names = {prompt: name for name, prompt in plan.settings.prompts.items() if prompt and name in embedder.prompts}
        prompts = [embedder.prompts[names[text.first]] if text.first in names else text.first for text in texts]
        ids = [embedder.tokenize(p + text.second).token_ids.tolist() for p, text in zip(prompts, texts, strict=True)]
        found: dict[int, Float32Array] = {}
        for prompt in dict.fromkeys(text.first for text in texts):
            rows = [i for i, text in enumerate(texts) if text.first == prompt]
            asked, literal = (names[prompt], None) if prompt in names else (None, prompt)
            found |= zip(rows, embedder.encode([texts[i].second for i in rows], asked, literal), strict=True)
    return ids, np.stack([found[i] for i in range(len(texts))])


def _scored(path: Path, _: Plan, texts: Sequence[_Text], n_threads: int | None) -> tuple[list[list[int]], Float32Array]:
    """Ids and logits of the runtime."""
    from edge_embed.reranker import Reranker

    with Reranker(path, n_threads=n_threads) as reranker:
        ids = [reranker.tokenize(text.first, text.second).token_ids.tolist() for text in texts]
        return ids, reranker.score([(text.first, text.second) for text in texts]).logits


def _free_memory() -> int | None:
    """Bytes that a program could take without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else 1024 * int(found)
