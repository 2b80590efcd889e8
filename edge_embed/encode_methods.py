"""``encode`` and its relatives: the methods that sentence-transformers' programs call, over ``Embedder.embed``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from edge_embed import postprocess, prompts
from edge_embed.types import AnyArray, EmbedResult, Float32Array, Precision, Truncate


class EncodeMethods:
    """What ``Embedder`` has of them; names and order of the arguments are sentence-transformers'."""

    @abstractmethod
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
        show_progress_bar: bool = False,
    ) -> EmbedResult:
        """Vectors of texts, and what was done; see ``Embedder.embed``."""

    def encode(
        self,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        instruction: str | None = None,
        role: prompts.Role | None = None,
        truncate_dim: int | None = None,
        normalize: bool | None = None,
        precision: Precision = "float32",
        truncate: Truncate = "right",
        max_tokens: int | None = None,
        show_progress_bar: bool = False,
    ) -> AnyArray:
        """Vectors of texts, ``[n, d]`` in input order (``[d]`` for a single string). Arguments as for ``embed``."""
        single = isinstance(sentences, str)
        result = self.embed(
            [sentences] if isinstance(sentences, str) else sentences,
            prompt=prompt,
            prompt_name=prompt_name,
            instruction=instruction,
            role=role,
            truncate_dim=truncate_dim,
            normalize=normalize,
            precision=precision,
            truncate=truncate,
            max_tokens=max_tokens,
            show_progress_bar=show_progress_bar,
        )
        return result.vectors[0] if single else result.vectors

    def encode_query(
        self,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        instruction: str | None = None,
        truncate_dim: int | None = None,
        normalize: bool | None = None,
        precision: Precision = "float32",
        truncate: Truncate = "right",
        max_tokens: int | None = None,
        show_progress_bar: bool = False,
    ) -> AnyArray:
        """``encode`` with the model's ``query`` prompt, where it has one and the call names no other."""
        return self.encode(
            sentences,
            prompt_name,
            prompt,
            instruction=instruction,
            role="query",
            truncate_dim=truncate_dim,
            normalize=normalize,
            precision=precision,
            truncate=truncate,
            max_tokens=max_tokens,
            show_progress_bar=show_progress_bar,
        )

    def encode_document(
        self,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        truncate_dim: int | None = None,
        normalize: bool | None = None,
        precision: Precision = "float32",
        truncate: Truncate = "right",
        max_tokens: int | None = None,
        show_progress_bar: bool = False,
    ) -> AnyArray:
        """``encode`` with the model's ``document`` (``passage``, ``corpus``) prompt, where it has one."""
        return self.encode(
            sentences,
            prompt_name,
            prompt,
            role="document",
            truncate_dim=truncate_dim,
            normalize=normalize,
            precision=precision,
            truncate=truncate,
            max_tokens=max_tokens,
            show_progress_bar=show_progress_bar,
        )

    def similarity(self, a: AnyArray, b: AnyArray) -> Float32Array:
        """Cosine of each vector of ``a`` with each of ``b``, float32 ``[n, m]``."""
        return postprocess.similarity(a, b)
