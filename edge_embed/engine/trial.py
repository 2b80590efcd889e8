"""One candidate's settings, tried in a child process: it loads the model with them, computes texts, and says how long.

``Trial`` is the parent's half, ``main`` the child's. What is timed is what a call costs behind the tokenizer: packing
and the engine.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from edge_embed.batching import n_common
from edge_embed.engine import builds
from edge_embed.engine.child import Answer, Child, ChildDiedError, ChildSilentError, serve
from edge_embed.engine.probe import timeout_of
from edge_embed.engine.tune import Settings
from edge_embed.errors import ComputeError, EngineUnavailableError
from edge_embed.together import decode_all, packed
from edge_embed.types import Float32Array, ModelInfo, RerankInfo

T = TypeVar("T")

if TYPE_CHECKING:
    from edge_embed.engine.llama import LlamaEngine
    from edge_embed.tokenizer import Tokenizer
    from edge_embed.types import Encoding

LONGEST: Final = 2048  # tokens of a text that are measured: a repetition is to last seconds
_PURPOSE: Final = "measure settings"
_PATIENCE = 20.0  # a candidate may be this many times as slow as the settings that it is compared with


class CandidateFailedError(Exception):
    """These settings do not work here: the message says why. Never leaves ``engine``."""


@dataclass(frozen=True, slots=True)
class Call:
    """Texts that one call of a program asks for together.

    Attributes:
        texts: what is embedded, or a reranker's documents.
        role: ``query`` or ``document``: which prompt they get.
        query: what a reranker compares them with; not used for embeddings.
    """

    texts: tuple[str, ...]
    role: str
    query: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """The calls that are timed, by the part of the profile that they stand for."""

    parts: Mapping[str, tuple[Call, ...]]

    def first(self, numbers: Mapping[str, int]) -> Work:
        """The first so many texts of each part."""
        parts = {}
        for name, calls in self.parts.items():
            kept = _first([call.texts for call in calls], numbers[name])
            parts[name] = tuple(replace(call, texts=texts) for call, texts in zip(calls, kept, strict=False))
        return Work(parts)


def _first(calls: Sequence[Sequence[T]], number: int) -> list[Any]:
    """The first so many items of lists, in lists; those that are left empty are left out."""
    kept = []
    for call in calls:
        if number > 0:
            kept.append(call[:number])
        number -= len(call)
    return kept


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a child knows once it has loaded the model.

    Attributes:
        n_tokens: tokens of each text of each part, in order.
        shares_prefixes: whether texts that begin alike share their beginning.
        seconds: what loading took.
    """

    n_tokens: Mapping[str, tuple[int, ...]]
    shares_prefixes: bool
    seconds: float


class Trial:
    """A candidate's child process: started at the first use, and again after ``rest``.

    Args:
        info: the model.
        settings: the candidate's.
        work: what is timed.

    Attributes:
        device: where it computes; empty until it was loaded.
    """

    def __init__(self, info: ModelInfo, settings: Settings, work: Work) -> None:
        self.settings, self.device = settings, ""
        self._info, self._work = info, work
        self._numbers: dict[str, int] | None = None
        self._child: Child | None = None
        self._patience = timeout_of(info)

    def load(self) -> Loaded:
        """Start the child and have it load the model and tokenize the texts.

        Raises:
            CandidateFailedError: it died, gave no answer, or refused.
        """
        self.rest()
        used = self._work if self._numbers is None else self._work.first(self._numbers)
        library = self.settings.library  # whatever the user's environment names
        environment = {"LLAMA_CPP_LIB_PATH": library, builds.VARIABLE: ""} if library else {}
        self._child = Child(__name__, _PURPOSE, environment)
        start = time.perf_counter()
        answer = self._ask(
            {
                "path": self._info.path,
                "pooling": self._info.pooling if self._info.rerank is None else None,
                "settings": asdict(self.settings),
                "parts": {name: [asdict(call) for call in calls] for name, calls in used.parts.items()},
            },
            timeout_of(self._info),
        )
        n_tokens = {name: tuple(counts) for name, counts in answer["n_tokens"].items()}
        self.device = str(answer["device"])
        return Loaded(n_tokens, answer["shares_prefixes"], time.perf_counter() - start)

    def limit(self, numbers: Mapping[str, int]) -> None:
        """Compute only the first so many texts of each part from now on, of those that it was made with."""
        self._numbers = dict(numbers)
        self._ask({"first": dict(numbers)}, self._patience)

    def vectors(self, *, alone: bool = False) -> Float32Array:
        """Vectors of all texts, float32 ``[n, width]``: also what warms the engine up before it is timed.

        Args:
            alone: whether each text is computed by itself.
        """
        answer = self._ask({"vectors": "alone" if alone else "packed"}, 2 * self._patience)
        raw = np.frombuffer(base64.b64decode(answer["values"]), dtype="<f4")
        return raw.reshape(answer["shape"]).astype(np.float32)

    def run(self) -> dict[str, float]:
        """Seconds that each part takes."""
        if self._child is None:
            self.load()
            self.vectors()
        answer = self._ask({"run": True}, self._patience)
        return {name: float(seconds) for name, seconds in answer["seconds"].items()}

    def be_patient(self, seconds: float) -> None:
        """Wait for an answer as long as fits work that others did in so many seconds."""
        self._patience = 30 + _PATIENCE * seconds

    def rest(self) -> None:
        """End the child and free its memory."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _ask(self, request: Mapping[str, Any], timeout: float) -> Answer:
        assert self._child is not None
        try:
            answer = self._child.ask(request, timeout)
        except (ChildDiedError, ChildSilentError) as end:
            self._child = None
            raise CandidateFailedError(str(end)) from None
        except EngineUnavailableError as end:  # killed for memory, as a rule
            self._child = None
            raise CandidateFailedError(end.message) from None
        if "error" in answer:
            raise CandidateFailedError(str(answer["error"]))
        return answer


def main() -> None:
    """The child."""
    serve(_Worker().answer)


class _Worker:
    """The child's state: a model, and what it computes."""

    def __init__(self) -> None:
        self._engine: LlamaEngine | None = None
        self._device = ""
        self._turn = 0
        self._all: dict[str, list[list[Encoding]]] = {}
        self._parts: dict[str, list[list[Encoding]]] = {}

    def answer(self, request: Answer) -> Answer:
        if self._engine is None:
            return self._load(request)
        if "first" in request:
            self._parts = {name: _first(calls, request["first"][name]) for name, calls in self._all.items()}
            return {}
        if "run" in request:
            self._turn += 1
            return {"seconds": {name: self._timed(calls) for name, calls in self._parts.items()}}
        rows = self._vectors(alone=request["vectors"] == "alone")
        return {"shape": rows.shape, "values": base64.b64encode(rows.astype("<f4").tobytes()).decode()}

    def _load(self, request: Answer) -> Answer:
        from edge_embed.engine.llama import LlamaEngine
        from edge_embed.gguf_header import read_header
        from edge_embed.model_info import read_model_info
        from edge_embed.tokenizer import tokenizer_of

        header = read_header(request["path"])
        info = read_model_info(header, pooling=request["pooling"])
        engine = LlamaEngine(info, **Settings(**request["settings"]).arguments())
        tokenizer = tokenizer_of(info, header.metadata, engine.tokenize)
        tokenizer = replace(tokenizer, max_tokens=min(tokenizer.max_tokens, LONGEST))
        for name, calls in request["parts"].items():
            self._all[name] = [_encoded(info, tokenizer, call) for call in calls]
        self._parts = self._all
        self._engine, self._device = engine, engine.device
        return {
            "n_tokens": {
                name: [encoding.n_tokens for call in calls for encoding in call] for name, calls in self._parts.items()
            },
            "shares_prefixes": engine.limits.shares_prefixes,
            "device": engine.device,
        }

    def _timed(self, calls: list[list[Encoding]]) -> float:
        assert self._engine is not None
        if self._engine.limits.shares_prefixes:
            calls = unseen(calls, self._turn, self._engine.limits.n_vocab)
        start = time.perf_counter()
        for encodings in calls:
            self._rows(encodings)
        return time.perf_counter() - start

    def _vectors(self, *, alone: bool) -> Float32Array:
        calls = [call for calls in self._parts.values() for call in calls]
        if alone:
            calls = [[encoding] for call in calls for encoding in call]
        return np.concatenate([self._rows(encodings) for encodings in calls])

    def _rows(self, encodings: Sequence[Encoding]) -> Float32Array:
        engine = self._engine
        assert engine is not None
        every: list[Float32Array] = []
        order: list[int] = []
        for batch, rows in decode_all(engine, packed(encodings, engine.limits)):
            every.append(rows)
            order += batch.indices
        found = np.concatenate(every)[np.argsort(order)]
        if engine.device != self._device:
            raise ComputeError(engine.placement.note)
        if not np.isfinite(found).all():
            raise ComputeError("the vectors have values that are not finite")
        return found


def unseen(calls: list[list[Encoding]], turn: int, n_vocab: int) -> list[list[Encoding]]:
    """The same work with texts that the engine has not seen: it keeps what texts begin with from one call to the next,
    and would find in memory what it is timed for. What all texts begin with, a prompt, stays what it was.

    Args:
        calls: the encodings of each call.
        turn: another one gives other texts.
        n_vocab: token ids are below it.
    """
    ids = [encoding.token_ids for call in calls for encoding in call]
    shortest = min(len(tokens) for tokens in ids)
    common = min((n_common(ids[0], tokens) for tokens in ids[1:]), default=0)
    place = min(common, shortest - 1)

    def varied(encoding: Encoding) -> Encoding:
        tokens = encoding.token_ids.copy()
        tokens[place] = (tokens[place] + turn) % n_vocab
        return replace(encoding, token_ids=tokens)

    return [[varied(encoding) for encoding in call] for call in calls]


def _encoded(info: ModelInfo, tokenizer: Tokenizer, call: Mapping[str, Any]) -> list[Encoding]:
    """A call's texts as the model sees them, as ``Embedder`` and ``Reranker`` put them together."""
    from edge_embed import prompts

    head = info.rerank
    if head is None:
        prefix = prompts.resolve(info.prompts, role=call["role"], default_prompt_name=info.default_prompt_name)
        return [tokenizer.encode(text, prompt=prefix) for text in call["texts"]]
    if head.template is None:
        return [tokenizer.encode_pair(call["query"], text) for text in call["texts"]]
    before, behind = prompts.split_rerank_template(head.template)
    tokenizer = replace(tokenizer, suffix=tuple(tokenizer.ids(behind)))
    prefix = prompts.fill_slots(before, call["query"], head.instruction)
    return [tokenizer.encode(text, prompt=prefix) for text in call["texts"]]


def deviation(info: ModelInfo, reference: Float32Array, vectors: Float32Array) -> float:
    """How far vectors are from a reference's, at the worst text: 1 - cosine, or a reranker's difference of scores.

    Args:
        info: the model.
        reference, vectors: float32 ``[n, d]``, of the same texts.
    """
    if info.rerank is not None:
        return float(np.abs(_scores(info.rerank, reference) - _scores(info.rerank, vectors)).max())
    a, b = reference.astype(np.float64), vectors.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(max(0.0, (1 - (a * b).sum(axis=1) / np.maximum(lengths, 1e-30)).max()))


def _scores(head: RerankInfo, rows: Float32Array) -> npt.NDArray[np.float64]:
    """Probabilities of a head's outputs."""
    logits = rows[:, 0].astype(np.float64)
    if len(head.labels) == 2:
        yes = head.labels.index("yes")
        logits = rows[:, yes].astype(np.float64) - rows[:, 1 - yes]
    probabilities: npt.NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
    return probabilities
