"""The spine: texts -> prompt -> tokenize -> batch -> engine -> finish. Readable in one sitting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from edge_embed import postprocess, prompts
from edge_embed.cache import EmbeddingCache, Lookup, ModelCache
from edge_embed.cancellation import Cancellation, stop_of, watched
from edge_embed.encode_methods import EncodeMethods
from edge_embed.errors import EngineClosedError, InvalidOptionError, NonFiniteError
from edge_embed.gguf_header import read_header
from edge_embed.inputs import as_texts, checked_prompts, text_or_ids
from edge_embed.jobs import EmbedJob, distinct, finish, merged, pooled
from edge_embed.model_info import read_model_info, require_embeddings
from edge_embed.progress import Progress
from edge_embed.projection_file import with_projection
from edge_embed.provision import locate
from edge_embed.running import Backend, EngineOptions, adapter_of, compute, compute_tokens, open_model
from edge_embed.tokenizer import Text, Tokenizer
from edge_embed.types import (
    OUTPUTS,
    TEXT_TRUNCATIONS,
    EmbedResult,
    Encoding,
    Engine,
    Float32Array,
    KvType,
    ModelInfo,
    Output,
    Pooling,
    Precision,
    Truncate,
    is_one_of,
)


class Embedder(EncodeMethods):
    """Embeds texts with one GGUF model, offline.

    Any number of threads may use one Embedder; the model itself runs on threads of its own.

    Args:
        model: a GGUF file or a name from ``edge-embed list``; the bundled all-MiniLM-L6-v2 by default.
        pooling: overrides the file: ``mean``, ``cls`` or ``last``.
        max_tokens: most tokens of one text; the model's own limit by default.
        truncate_dim: size that vectors are cut to unless a call says otherwise (MRL).
        prompts: name -> text put before the input; added to those of the file.
        default_prompt_name: the prompt used where a call names none.
        n_threads: CPU threads; the usable physical cores by default.
        n_batch: tokens per batch; a sensible number for the kind of model by default. Encoders compute several batches
            side by side, and one only where they are large (of the bundled model: above 512).
        device: where it computes: ``auto``, ``cpu``, ``cuda:0``, ``metal``, ``vulkan:0``, ...; several with commas
            between them share the layers. ``auto`` takes GPUs that are here, and falls back to the CPU; a device that
            is named is used or refused, unless ``cpu`` stands at the end (``cuda:0,cpu``). What is not as it was asked
            for is a ``DeviceWarning``. By default what the environment variable EDGE_EMBED_DEVICE says, else ``auto``.
        gpu_layers: layers put on a GPU, the output counted as one; as many as fit, by default.
        low_memory: for boards with 1 or 2 GB: the weights stay pages of the file, which the system may drop and read
            again, and little is computed at a time; slower.
        kv_type: how a model with a KV cache keeps what it has seen of a text: ``f16``, or ``q8_0`` in half the memory
            and less exactly.
        deterministic: the same text gives the same bits whatever else is in the call: each is computed by itself,
            which is slower. Encoders on an x86 CPU do so anyway; of other models the company that a text is computed
            in moves the last digits of its vector.
        lora: a LoRA adapter in a GGUF of its own, added while the model computes.
        lora_scale: how much of it is added; 1 is the adapter as trained.
        projection: a learned projection (``edge-embed project fit``) that vectors go through before they are cut.
        cache: where vectors are kept for the next time: an ``EmbeddingCache``, its file, or True for the default one.
        download: whether a known model that is not on this machine may be downloaded, and converted where there is
            no ready file; by default only if the environment variable ``EDGE_EMBED_DOWNLOAD`` is 1.

    Raises:
        ModelMissingError: a known model that is not here, where downloading is not allowed; the message has the
            command that fetches it.
        HubError: the download.
        ModelNotFoundError, ModelFileError, UnsupportedModelError: the model, its adapter or its projection.
        EngineUnavailableError, EngineMemoryError: the machine.
        CacheFileError: the cache's file is something else, or damaged.
        InvalidOptionError, InvalidDimensionError, UnknownPromptError: an argument.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        pooling: Pooling | None = None,
        max_tokens: int | None = None,
        truncate_dim: int | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        n_threads: int | None = None,
        n_batch: int | None = None,
        device: str | None = None,
        gpu_layers: int | None = None,
        low_memory: bool = False,
        kv_type: KvType = "f16",
        deterministic: bool = False,
        lora: str | Path | None = None,
        lora_scale: float = 1.0,
        projection: str | Path | None = None,
        cache: EmbeddingCache | str | Path | bool | None = None,
        download: bool | None = None,
    ) -> None:
        header = read_header(locate(model, download=download, show_progress_bar=True))
        info = read_model_info(header, pooling=pooling, max_tokens=max_tokens)
        require_embeddings(info)
        info = with_projection(info, header, projection, adapted=lora is not None)
        postprocess.check_dim(truncate_dim, info.n_embd)
        adapter = adapter_of(lora, lora_scale)
        options = EngineOptions(
            n_threads=n_threads, n_batch=n_batch, device=device, gpu_layers=gpu_layers, low_memory=low_memory,
            kv_type=kv_type, deterministic=deterministic, lora=adapter,
        )  # fmt: skip
        engine, tokenizer = open_model(header, info, options)
        try:
            kept = ModelCache.open(cache, info, adapter, kv_type=kv_type, deterministic=deterministic)
            self._assemble(info, engine, tokenizer, truncate_dim, prompts, default_prompt_name, kept)
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
        truncate_dim: int | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        cache: ModelCache | None = None,
    ) -> Embedder:
        """An Embedder over any engine, e.g. ``edge_embed.testing.FakeEngine``, without a model file."""
        self = cls.__new__(cls)
        self._assemble(info, engine, tokenizer, truncate_dim, prompts, default_prompt_name, cache)
        return self

    def _assemble(
        self,
        info: ModelInfo,
        engine: Engine,
        tokenizer: Tokenizer,
        truncate_dim: int | None,
        own_prompts: Mapping[str, str] | None,
        default_prompt_name: str | None,
        cache: ModelCache | None,
    ) -> None:
        self.info = info
        self.prompts = {**info.prompts, **checked_prompts(own_prompts)}
        self.default_prompt_name = default_prompt_name or info.default_prompt_name
        self.truncate_dim = truncate_dim
        self.backend = Backend(engine, engine.n_embd, cache)
        self.tokenizer = tokenizer
        self._prefix(None, None, None)  # a default prompt that does not exist is an error now, not at the first call

    # Embedding

    def embed(
        self,
        texts: Sequence[str | Sequence[int]],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        instruction: str | None = None,
        role: prompts.Role | None = None,
        truncate_dim: int | None = None,
        normalize: bool | None = None,
        precision: Precision = "float32",
        truncate: Truncate = "right",
        max_tokens: int | None = None,
        overlap: int | None = None,
        output: Output = "vectors",
        show_progress_bar: bool = False,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
    ) -> EmbedResult:
        """Embed texts and report what was done.

        Args:
            texts: the texts, in any order and of any length; identical ones are computed once. One may be a list of
                token ids, with or without the special tokens around it; the prompt's ids are put before them.
            prompt: text put before each of them.
            prompt_name: name of one of the model's prompts, instead.
            instruction: a task description for a model that takes them, instead.
            role: ``query`` or ``document``: the model's prompt for these, where it has one and none of the three is
                given.
            truncate_dim: values kept of each vector, 1 to the model's size.
            normalize: make each vector unit length (after the cut); by default as the original model does, which
                for a file that does not say is yes.
            precision: ``float32 float16 int8 uint8 binary ubinary``; see ``postprocess.finish``.
            truncate: what happens to a text above the limit: ``right`` drops its end, ``left`` its beginning,
                ``error`` refuses, ``chunk`` reads it in windows that overlap, and the text's vector is the mean of
                theirs. Special tokens are always kept.
            max_tokens: a lower limit for this call.
            overlap: tokens that neighbouring windows have in common with ``truncate="chunk"``; an eighth by default.
            output: ``tokens`` adds the vector of each token.
            show_progress_bar: a bar on a terminal, plain lines otherwise, on stderr.
            timeout: seconds after which the call is stopped.
            cancellation: stops the call from another thread; with a time limit of its own if it is to have one.

        Returns:
            Vectors ``[n, d]`` in input order, token counts and totals.

        Raises:
            InvalidTextError, TextTooLongError: a text, by its position.
            InvalidOptionError, InvalidDimensionError, UnknownPromptError: an argument.
            NonFiniteError: the model overflowed on some texts; ``.partial`` is the EmbedResult of the others.
            EngineMemoryError, ComputeError, EngineClosedError: the engine.
            CallCancelledError, DeadlineExceededError: the call was stopped.
        """
        stop = stop_of(timeout, cancellation)
        job = self.prepare(
            texts,
            prompt=prompt,
            prompt_name=prompt_name,
            instruction=instruction,
            role=role,
            truncate_dim=truncate_dim,
            normalize=normalize,
            precision=precision,
            truncate=truncate,
            max_tokens=max_tokens,
            overlap=overlap,
            output=output,
            cancellation=stop,
        )
        try:
            (result,) = self.run([job], show_progress_bar=show_progress_bar, cancellation=stop)
        except NonFiniteError as error:
            raise NonFiniteError(error.indices, error.partial[0]) from None
        return result

    def prepare(
        self,
        texts: Sequence[str | Sequence[int]],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        instruction: str | None = None,
        role: prompts.Role | None = None,
        truncate_dim: int | None = None,
        normalize: bool | None = None,
        precision: Precision = "float32",
        truncate: Truncate = "right",
        max_tokens: int | None = None,
        overlap: int | None = None,
        output: Output = "vectors",
        cancellation: Cancellation | None = None,
    ) -> EmbedJob:
        """Everything of a call that comes before the model runs. Arguments and errors as for ``embed``."""
        self._check_open()
        watched_texts = watched(as_texts(texts), stop_of(None, cancellation))
        if normalize is not None and not isinstance(normalize, (bool, np.bool_)):
            raise InvalidOptionError(f"normalize is {normalize!r}", hint="True, False or None")
        dim = postprocess.check_dim(
            self.truncate_dim if truncate_dim is None else truncate_dim, self.info.n_embd, precision
        )
        prefix = self._prefix(prompt, prompt_name, instruction, role)
        if not is_one_of(truncate, TEXT_TRUNCATIONS):
            raise InvalidOptionError(f"truncate is {truncate!r}", hint=f"one of {', '.join(TEXT_TRUNCATIONS)}")
        if not is_one_of(output, OUTPUTS):
            raise InvalidOptionError(f"output is {output!r}", hint=f"one of {', '.join(OUTPUTS)}")
        if output == "tokens" and truncate == "chunk":
            raise InvalidOptionError(
                "tokens of overlapping windows have several vectors", hint="choose another truncate"
            )
        if overlap is not None and truncate != "chunk":
            raise InvalidOptionError("overlap is given without windows", hint='it belongs to truncate="chunk"')

        def encode(text: Text, index: int) -> list[Encoding]:
            if truncate == "chunk":
                return self.tokenizer.windows(text, prompt=prefix, overlap=overlap, index=index, max_tokens=max_tokens)
            return [self.tokenizer.encode(text, prompt=prefix, truncate=truncate, index=index, max_tokens=max_tokens)]

        checked = (text_or_ids(text, index, self.info.n_vocab) for index, text in enumerate(watched_texts))
        encodings, parts, positions = distinct(checked, encode)
        return EmbedJob(
            encodings=tuple(encodings),
            parts=tuple(parts),
            positions=tuple(positions),
            dim=dim,
            normalize=self.info.normalize if normalize is None else bool(normalize),
            precision=precision,
            tokens=output == "tokens",
        )

    def run(
        self,
        jobs: Sequence[EmbedJob],
        *,
        show_progress_bar: bool = False,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
    ) -> list[EmbedResult]:
        """The results of jobs, whose texts share the model's batches whatever size, precision or prompt each asks for.

        Args:
            jobs: from ``prepare`` of this Embedder.
            show_progress_bar, timeout, cancellation: as for ``embed``.

        Raises:
            NonFiniteError: the model overflowed on some texts, counted through all jobs; ``.partial`` is the list of
                results.
            The engine's errors, as ``embed``.
        """
        self._check_open()
        stop = stop_of(timeout, cancellation)
        encodings, places = merged(jobs)
        tokens: list[Float32Array] | None = None
        cached = np.zeros(len(encodings), dtype=np.bool_)
        with Progress("embedding", len(encodings), "texts", enabled=show_progress_bar) as progress:
            if any(job.tokens for job in jobs):
                tokens = compute_tokens(self.backend.engine, encodings, progress, stop)
                rows = pooled(tokens, self.info.pooling, self.backend.width)
            else:
                found = compute(self.backend, encodings, progress, stop)
                rows, cached = found.rows, found.cached
        results: list[EmbedResult] = []
        guilty: list[int] = []
        done = 0
        for job, place in zip(jobs, places, strict=True):
            own = [tokens[i] for i in place] if tokens is not None and job.tokens else None
            result, wrong = finish(job, rows[place], cached[place], self.info.dense, own)
            results.append(result)
            guilty += [done + index for index in wrong]
            done += len(job.positions)
        if guilty:
            raise NonFiniteError(guilty, results)
        return results

    def finish(self, job: EmbedJob, found: Lookup, tokens: Sequence[Float32Array] | None = None) -> EmbedResult:
        """The result of a job whose rows something else had computed (a scheduler).

        Args:
            job: from ``prepare`` of this Embedder.
            found: the rows of its encodings, and which of them a cache had.
            tokens: float32 ``[n_tokens, n]`` for each encoding instead, where the job asks for them.

        Raises:
            NonFiniteError: the model overflowed on some texts; ``.partial`` is the result of the others.
        """
        rows, cached = found.rows, found.cached
        if tokens is not None:
            rows, cached = pooled(tokens, self.info.pooling, self.backend.width), np.zeros_like(cached)
        result, wrong = finish(job, rows, cached, self.info.dense, tokens)
        if wrong:
            raise NonFiniteError(wrong, result)
        return result

    def prompt_of(self, role: prompts.Role) -> str:
        """What is put before queries or documents where a call does not say, possibly nothing."""
        return self._prefix(None, None, None, role)

    def tokenize(
        self,
        text: str,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        instruction: str | None = None,
        role: prompts.Role | None = None,
        truncate: Truncate = "right",
        max_tokens: int | None = None,
    ) -> Encoding:
        """The tokens of one text as the model would see them; without a prompt, even a default one, unless it is named.

        ``edge_embed.tokens.Tokens`` gives the same without loading the model. Arguments as for ``embed``.
        """
        self._check_open()
        named = (prompt, prompt_name, instruction, role) != (None,) * 4
        prefix = self._prefix(prompt, prompt_name, instruction, role) if named else ""
        return self.tokenizer.encode(text, prompt=prefix, truncate=truncate, max_tokens=max_tokens)

    # Steps

    def _prefix(
        self, prompt: str | None, prompt_name: str | None, instruction: str | None, role: prompts.Role | None = None
    ) -> str:
        return prompts.resolve(
            self.prompts,
            prompt=prompt,
            prompt_name=prompt_name,
            instruction=instruction,
            role=role,
            default_prompt_name=self.default_prompt_name,
            instruction_template=self.info.instruction_template,
        )

    # Life

    @property
    def device(self) -> str:
        """Where the model computes: ``cpu``, or the GPUs that have layers of it, e.g. ``cuda:0``."""
        return self.backend.device

    def forget(self) -> None:
        """What the next call computes does not depend on earlier ones, to the last bit; a cache is not emptied."""
        self.backend.engine.forget()

    def close(self) -> None:
        """Free the model; a call under way in another thread finishes its batch first."""
        self.backend.close()

    def __enter__(self) -> Embedder:
        self._check_open()
        return self

    def _check_open(self) -> None:
        if self.backend.engine.closed:
            raise EngineClosedError("the embedder is closed", hint="make a new Embedder")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Embedder({self.info.name!r}, {self.info.n_embd} dimensions, {self.info.pooling} pooling)"
