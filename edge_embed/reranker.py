"""The spine for pairs: query and document -> template -> tokenize -> batch -> engine -> score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np

from edge_embed.cache import EmbeddingCache, Lookup, ModelCache
from edge_embed.cancellation import Cancellation, stop_of, watched
from edge_embed.errors import EngineClosedError, InvalidOptionError, InvalidTextError, NonFiniteError
from edge_embed.gguf_header import read_header
from edge_embed.jobs import RerankJob, distinct, usage
from edge_embed.model_info import read_model_info, require_scores
from edge_embed.progress import Progress
from edge_embed.prompts import INSTRUCTION_SLOT, fill_slots, split_rerank_template
from edge_embed.provision import locate
from edge_embed.running import Backend, adapter_of, compute, open_model
from edge_embed.tokenizer import Tokenizer, check_text
from edge_embed.types import (
    Encoding,
    Engine,
    Float32Array,
    ModelInfo,
    RankedDocument,
    RerankInfo,
    RerankResult,
    Truncate,
)

Pair = tuple[str, str]


class Reranker:
    """Scores how well documents answer a query with one GGUF model, offline.

    Two kinds of model do that. A cross-encoder (BERT, XLM-RoBERTa) reads the two texts joined by its separators. A
    causal reranker (Qwen3-Reranker) reads them in a template, with an instruction that says what is looked for, and
    the score is the probability that it would answer *yes* rather than *no*.

    Any number of threads may use one Reranker; the model itself runs on one thread of its own.

    Args:
        model: a GGUF file or a name from ``edge-embed list``.
        instruction: what is looked for, where a call does not say; the model's own by default.
        max_tokens: most tokens of a pair; the model's own limit by default.
        n_threads: CPU threads; the usable physical cores by default.
        n_batch: tokens per batch; a sensible number for the kind of model by default.
        device, gpu_layers, low_memory: where it computes, and in how much memory; see ``Embedder``.
        lora, lora_scale: a LoRA adapter and how much of it is added; see ``Embedder``.
        cache: where logits are kept for the next time; see ``Embedder``.
        download: whether a known model that is not here may be downloaded; see ``Embedder``.

    Raises:
        ModelMissingError, HubError: a known model that is not here; its download.
        ModelNotFoundError, ModelFileError, UnsupportedModelError: the model; the last for an embedding model, too.
        EngineUnavailableError, EngineMemoryError: the machine.
        InvalidOptionError: an argument.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        instruction: str | None = None,
        max_tokens: int | None = None,
        n_threads: int | None = None,
        n_batch: int | None = None,
        device: str | None = None,
        gpu_layers: int | None = None,
        low_memory: bool = False,
        lora: str | Path | None = None,
        lora_scale: float = 1.0,
        cache: EmbeddingCache | str | Path | bool | None = None,
        download: bool | None = None,
    ) -> None:
        header = read_header(locate(model, download=download, show_progress_bar=True))
        info = read_model_info(header, max_tokens=max_tokens)
        require_scores(info)
        adapter = adapter_of(lora, lora_scale)
        engine, tokenizer = open_model(
            header,
            info,
            {
                "n_threads": n_threads,
                "n_batch": n_batch,
                "device": device,
                "gpu_layers": gpu_layers,
                "low_memory": low_memory,
                "lora": adapter,
            },
        )
        try:
            self._assemble(info, engine, tokenizer, instruction, ModelCache.open(cache, info, adapter))
        except BaseException:
            engine.close()
            raise

    @classmethod
    def from_parts(
        cls,
        info: ModelInfo,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        instruction: str | None = None,
        cache: ModelCache | None = None,
    ) -> Reranker:
        """A Reranker over any engine that gives the logits of ``info.rerank.labels``, without a model file."""
        self = cls.__new__(cls)
        self._assemble(info, engine, tokenizer, instruction, cache)
        return self

    def _assemble(
        self,
        info: ModelInfo,
        engine: Engine,
        tokenizer: Tokenizer,
        instruction: str | None,
        cache: ModelCache | None,
    ) -> None:
        self.info = info
        self._head = require_scores(info)
        self.backend = Backend(engine, len(self._head.labels), cache)
        self.tokenizer = tokenizer
        self._before = ""
        if self._head.template is not None:
            self._before, behind = split_rerank_template(self._head.template)
            self.tokenizer = replace(tokenizer, suffix=tuple(tokenizer.ids(behind)))
        self.instruction = self._instruction(instruction) if instruction is not None else self._head.instruction
        self._check_room()

    # Scoring

    def score(
        self,
        pairs: Sequence[Pair],
        *,
        instruction: str | None = None,
        truncate: Truncate = "right",
        max_tokens: int | None = None,
        show_progress_bar: bool = False,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
    ) -> RerankResult:
        """Score pairs and report what was done.

        A text that spells a special token is read as that token, as the original models' tokenizers do.

        Args:
            pairs: (query, document) pairs; identical ones are computed once.
            instruction: what is looked for, for a model whose template takes one.
            truncate: what happens to a pair above the limit: the document loses its end (``right``) or its beginning
                (``left``), or the pair is refused (``error``). The query and all that stands behind the document
                are always kept.
            max_tokens: a lower limit for this call.
            show_progress_bar: a bar on a terminal, plain lines otherwise, on stderr.
            timeout: seconds after which the call is stopped.
            cancellation: stops the call from another thread; with a time limit of its own if it is to have one.

        Returns:
            Scores ``[n]`` in input order, the logits that they were made of, token counts and totals.

        Raises:
            InvalidTextError, TextTooLongError: a pair, by its position.
            InvalidOptionError: an argument, or a query that leaves no room for a document.
            NonFiniteError: the model overflowed on some pairs; ``.partial`` is the RerankResult of the others.
            EngineMemoryError, ComputeError, EngineClosedError: the engine.
            CallCancelledError, DeadlineExceededError: the call was stopped.
        """
        stop = stop_of(timeout, cancellation)
        job = self.prepare(pairs, instruction=instruction, truncate=truncate, max_tokens=max_tokens, cancellation=stop)
        with Progress("reranking", len(job.encodings), "pairs", enabled=show_progress_bar) as progress:
            found = compute(self.backend, job.encodings, progress, stop)
        return self.finish(job, found)

    def prepare(
        self,
        pairs: Sequence[Pair],
        *,
        instruction: str | None = None,
        truncate: Truncate = "right",
        max_tokens: int | None = None,
        max_document_tokens: int | None = None,
        cancellation: Cancellation | None = None,
    ) -> RerankJob:
        """Everything of a call that comes before the model runs.

        Args:
            pairs, instruction, truncate, max_tokens, cancellation: as for ``score``, with its errors.
            max_document_tokens: most tokens of a document alone.
        """
        self._check_open()
        chosen = self.instruction if instruction is None else self._instruction(instruction)
        if max_document_tokens is not None and (type(max_document_tokens) is not int or max_document_tokens < 1):
            raise InvalidOptionError(f"max_document_tokens is {max_document_tokens!r}", hint="give 1 or more, or None")

        def encode(pair: Pair, index: int) -> list[Encoding]:
            limit = max_tokens
            if max_document_tokens is not None:
                longest = self._n_around(pair[0], chosen) + max_document_tokens
                limit = min(longest, self.info.max_tokens if max_tokens is None else max_tokens)
            return [self._encode(*pair, chosen, truncate, index, limit)]

        stop = stop_of(None, cancellation)
        encodings, _, positions = distinct(watched(_as_pairs(pairs), stop), encode)
        return RerankJob(tuple(encodings), tuple(positions))

    def finish(self, job: RerankJob, found: Lookup) -> RerankResult:
        """The result of a job whose rows were computed, by ``score`` or by something else (a scheduler).

        Args:
            job: from ``prepare`` of this Reranker.
            found: the rows of its encodings, and which of them a cache had.

        Raises:
            NonFiniteError: the model overflowed on some pairs; ``.partial`` is the result of the others.
        """
        logits = _logits(found.rows, self._head)[list(job.positions)]
        counted = usage(job.encodings, job.parts, job.positions, found.cached)
        result = RerankResult(_activated(logits, self._head), logits, *counted)
        guilty = np.flatnonzero(~np.isfinite(logits))
        if len(guilty):
            raise NonFiniteError(guilty.tolist(), result)
        return result

    def predict(
        self,
        sentences: Sequence[Pair] | Pair | str,
        documents: Sequence[str] | None = None,
        *,
        instruction: str | None = None,
        raw_scores: bool = False,
        truncate: Truncate = "right",
        max_tokens: int | None = None,
        show_progress_bar: bool = False,
    ) -> Float32Array | np.float32:
        """Scores of pairs, ``[n]`` in input order (a number for a single pair).

        Args:
            sentences: pairs, one pair, or, where ``documents`` are given, the query of them all.
            documents: the documents of one query.
            raw_scores: the logits instead: of causal rerankers the log-odds of *yes*.
            instruction, truncate, max_tokens, show_progress_bar: as for ``score``.
        """
        pairs, single = _pairs_of(sentences, documents)
        result = self.score(
            pairs,
            instruction=instruction,
            truncate=truncate,
            max_tokens=max_tokens,
            show_progress_bar=show_progress_bar,
        )
        scores = result.logits if raw_scores else result.scores
        return cast(np.float32, scores[0]) if single else scores

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        instruction: str | None = None,
        top_k: int | None = None,
        raw_scores: bool = False,
        truncate: Truncate = "right",
        max_tokens: int | None = None,
        show_progress_bar: bool = False,
    ) -> list[RankedDocument]:
        """The documents from best to worst; of equal ones the earlier comes first.

        Args:
            query: what they are compared with.
            documents: the texts to order.
            top_k: how many are returned, if not all.
            instruction, raw_scores, truncate, max_tokens, show_progress_bar: as for ``predict``.
        """
        if top_k is not None and (type(top_k) is not int or top_k < 1):
            raise InvalidOptionError(f"top_k is {top_k!r}", hint="give an integer of at least 1, or None for all")
        pairs, _ = _pairs_of(query, documents)
        result = self.score(
            pairs,
            instruction=instruction,
            truncate=truncate,
            max_tokens=max_tokens,
            show_progress_bar=show_progress_bar,
        )
        scores = result.logits if raw_scores else result.scores
        best = np.argsort(-result.logits, kind="stable")[:top_k]  # by logits: probabilities near 1 are all alike
        cut = result.truncated
        return [RankedDocument(int(i), float(scores[i]), pairs[i][1], bool(cut[i])) for i in best]

    def tokenize(
        self,
        query: str,
        document: str,
        *,
        instruction: str | None = None,
        truncate: Truncate = "right",
        max_tokens: int | None = None,
    ) -> Encoding:
        """The tokens of one pair as the model would see them."""
        self._check_open()
        chosen = self.instruction if instruction is None else self._instruction(instruction)
        (checked,) = _as_pairs([(query, document)])
        return self._encode(*checked, chosen, truncate, 0, max_tokens)

    # Steps

    def _check_room(self) -> None:
        """Refuse a limit under which no pair fits, however short: now, and not at the first call."""
        own = self.tokenizer
        if self._head.template is None:
            between = [*(own.separator or ()), *own.ids("a")]
        else:
            between = [*own.ids(fill_slots(self._before, "", self.instruction) + "a")]
        smallest = len(own.prefix) + len(between) + len(own.suffix)
        if self.info.max_tokens < smallest:
            raise InvalidOptionError(
                f"max_tokens is {self.info.max_tokens}, and a pair without a query and with a document of one letter "
                f"has {smallest} tokens",
                hint=f"give at least {smallest}, and as many more as queries and documents need",
            )

    def _instruction(self, instruction: str) -> str:
        if not isinstance(instruction, str):
            raise InvalidOptionError(f"instruction must be a string, got {type(instruction).__name__}")
        if self._head.template is None or INSTRUCTION_SLOT not in self._head.template:
            raise InvalidOptionError(
                "this model has no template for instructions", hint="it was not trained with them: leave it out"
            )
        try:
            instruction.encode()
        except UnicodeEncodeError:
            raise InvalidOptionError("instruction holds a lone surrogate, which no encoding can carry") from None
        return instruction

    def _n_around(self, query: str, instruction: str | None) -> int:
        """Tokens of a pair that are not the document's."""
        own = self.tokenizer
        if self._head.template is None:
            between = [*own.ids(query), *(own.separator or ())]
        else:
            between = [*own.ids(fill_slots(self._before, query, instruction))]
        return len(own.prefix) + len(between) + len(own.suffix)

    def _encode(
        self, query: str, document: str, instruction: str | None, truncate: Truncate, index: int, limit: int | None
    ) -> Encoding:
        if self._head.template is None:
            return self.tokenizer.encode_pair(query, document, truncate=truncate, index=index, max_tokens=limit)
        before = fill_slots(self._before, query, instruction)
        return self.tokenizer.encode(document, prompt=before, truncate=truncate, index=index, max_tokens=limit)

    # Life

    def close(self) -> None:
        """Free the model; a call under way in another thread finishes its batch first."""
        self.backend.close()

    def __enter__(self) -> Reranker:
        self._check_open()
        return self

    def _check_open(self) -> None:
        if self.backend.engine.closed:
            raise EngineClosedError("the reranker is closed", hint="make a new Reranker")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Reranker({self.info.name!r}, {self._head.activation})"


def _pairs_of(sentences: object, documents: object) -> tuple[list[Pair], bool]:
    """The pairs that a caller means, and whether it is a single one."""
    if isinstance(sentences, str):
        return [(sentences, document) for document in _texts("documents", documents)], False
    if documents is not None:
        raise InvalidTextError(
            f"documents were given with {type(sentences).__name__} instead of a query",
            hint="give one query and its documents, or pairs alone",
        )
    items = _texts("pairs", sentences)
    if len(items) == 2 and all(isinstance(item, str) for item in items):
        return [(items[0], items[1])], True
    return cast(list[Pair], items), False


def _texts(what: str, items: object) -> list[Any]:
    """The items, if they have an order and are not one string."""
    if isinstance(items, (str, bytes, Mapping, Set)) or not isinstance(items, Iterable):
        raise InvalidTextError(
            f"{what} are {type(items).__name__}, not a list", hint="give (query, document) pairs, or a query and a list"
        )
    return list(items)


def _as_pairs(pairs: object) -> list[Pair]:
    """The pairs, if each is of two texts that can be encoded."""
    checked = []
    for index, pair in enumerate(_texts("pairs", pairs)):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InvalidTextError(
                f"pair {index} is {type(pair).__name__}, not two texts", hint="a pair is (query, document)"
            )
        checked.append((check_text(pair[0], index), check_text(pair[1], index)))
    return checked


def _logits(rows: Float32Array, head: RerankInfo) -> Float32Array:
    """One logit for each row: the head's only one, or the log-odds of yes over no."""
    if len(head.labels) == 1:
        return rows[:, 0]
    yes = head.labels.index("yes")
    return rows[:, yes] - rows[:, 1 - yes]


def _activated(logits: Float32Array, head: RerankInfo) -> Float32Array:
    """Scores of logits. The sigmoid of log-odds is the softmax over the two outputs."""
    if head.activation == "identity":
        return logits
    small = np.exp(-np.abs(logits))  # never overflows
    scores: Float32Array = np.where(logits < 0, small, np.float32(1)) / (1 + small)
    return scores
