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
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from edge_embed.errors import InputError, InvalidOptionError, ModelError, NonFiniteError
from edge_embed.gguf_header import GgufHeader, read_header
from edge_embed.projection_file import without_projection
from edge_embed.types import Float32Array, Pooling

from .. import reference
from ..calibrate.texts import TEXTS
from ..checkpoint import Progress
from ..plan import Plan, opened_plan
from .compare import TensorPair, parts_of, score_loss, tensor_losses, vector_loss
from .limits import LIMITS, coarsest_type, score_problems, tensor_problems, vector_problems
from .original_tokenizer import OriginalTokenizer
from .result import Verification, figures, record, require_passed
from .settings import check_settings
from .texts import QUICK, THOROUGH, Scope, Text, chosen_texts, ids_problems, multiplied

__all__ = [
    "QUICK",
    "THOROUGH",
    "Scope",
    "Verification",
    "check",
    "figures",
    "record",
    "require_passed",
    "require_runtime",
    "verify",
]

WORST = 5  # tensors that are named


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
        progress: called with (bytes of the checkpoint read, bytes to read in all, what is compared).

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
    n_settings, problems = check_settings(header, plan, notes)

    tokenizer = OriginalTokenizer(plan)
    chosen = chosen_texts(tokenizer, plan, scope, list(TEXTS if texts is None else texts), notes)
    pairs = _tensor_pairs(header, plan, scope, problems, notes)
    reading = _Reading(progress, sum(p.n_bytes for p in pairs) + sum(t.ref.nbytes for t in multiplied(plan)))
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
            problems += ids_problems(tokenizer, chosen, ids)
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


def _reference(plan: Plan, tokenizer: OriginalTokenizer, texts: Sequence[Text], reading: _Reading) -> Float32Array:
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
    path: Path, plan: Plan, texts: Sequence[Text], n_threads: int | None
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


def _scored(path: Path, _: Plan, texts: Sequence[Text], n_threads: int | None) -> tuple[list[list[int]], Float32Array]:
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
