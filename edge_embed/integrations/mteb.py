# ruff: noqa: ARG002 - mteb passes a device
"""mteb: score a GGUF as its leaderboard scores models. ``mteb.evaluate(EdgeEncoder("model.gguf"), tasks)``.

``EdgeCrossEncoder`` takes part in its reranking tasks. mteb itself needs torch; nothing here does.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from edge_embed.cache.file import sha256_of
from edge_embed.embedder import Embedder
from edge_embed.integrations import extra
from edge_embed.integrations.base import Vectors, open_reranker
from edge_embed.reranker import Reranker
from edge_embed.types import AnyArray, ModelInfo

with extra("mteb"):
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.types import PromptType

STEP = 4096  # texts that are embedded at once: enough to pack, and a bounded number of tokens in memory


class EdgeEncoder(AbsEncoder):
    """An encoder as mteb asks for it.

    Queries, and the texts of symmetric tasks, get mteb's instruction for the task where the model takes instructions.
    Other models get what mteb looks for among their prompts (by task, by kind of task), else their own prompt for
    queries or for documents.

    Args:
        model_name: an open Embedder, a GGUF file or a name from ``edge-embed list``; the bundled model by default.
        revision: what results are filed under; the file's sha256 by default.
        device: not used: the engine chooses.
        truncate_dim: values kept of each vector (MRL).
    """

    def __init__(
        self,
        model_name: Embedder | str | Path | None = None,
        revision: str | None = None,
        *,
        device: str | None = None,
        truncate_dim: int | None = None,
    ) -> None:
        self.model = Vectors(model_name, truncate_dim=truncate_dim).embedder
        self._truncate_dim = truncate_dim
        self.model_prompts = dict(self.model.prompts)
        width = self.model.info.n_embd if truncate_dim is None else truncate_dim
        self.mteb_model_meta = _meta(self.model.info, type(self), revision, width)

    def encode(
        self,
        inputs: Iterable[dict[str, Any]],
        *,
        task_metadata: Any,
        prompt_type: PromptType | None = None,
        show_progress_bar: bool = False,
        **_: Any,
    ) -> AnyArray:
        """Vectors float32 ``[n, d]`` of the texts in all batches; mteb's batch size counts for nothing."""
        prompts: dict[str, Any] = {"role": None if prompt_type is None else PromptType(prompt_type).value}
        if self.model.info.instruction_template is not None:
            if prompt_type != PromptType.document:
                prompts = {"instruction": self.get_instruction(task_metadata, prompt_type)}
        elif (name := self.get_prompt_name(task_metadata, prompt_type)) is not None:
            prompts = {"prompt_name": name}
        texts = [text for batch in inputs for text in batch["text"]]
        parts = [
            self.model.embed(
                texts[first : first + STEP],
                truncate_dim=self._truncate_dim,
                show_progress_bar=show_progress_bar,
                **prompts,
            ).vectors
            for first in range(0, max(len(texts), 1), STEP)
        ]
        return np.concatenate(parts)


class EdgeCrossEncoder:
    """A reranker as mteb asks for it.

    Args:
        model_name: an open Reranker, a GGUF file or a name from ``edge-embed list``.
        revision, device: as for ``EdgeEncoder``.
        instruction: what is looked for, for a model that takes instructions; its own by default.
    """

    def __init__(
        self,
        model_name: Reranker | str | Path,
        revision: str | None = None,
        device: str | None = None,
        *,
        instruction: str | None = None,
    ) -> None:
        self.model = open_reranker(model_name)
        self._instruction = instruction
        self.mteb_model_meta = _meta(self.model.info, type(self), revision, None)

    def predict(
        self,
        inputs1: Iterable[dict[str, Any]],
        inputs2: Iterable[dict[str, Any]],
        *,
        show_progress_bar: bool = False,
        **_: Any,
    ) -> AnyArray:
        """Scores float32 ``[n]`` of the pairs of a query and a document."""
        queries = [text for batch in inputs1 for text in batch["text"]]
        documents = [text for batch in inputs2 for text in batch["text"]]
        pairs = list(zip(queries, documents, strict=True))
        return self.model.score(pairs, instruction=self._instruction, show_progress_bar=show_progress_bar).scores


def _meta(info: ModelInfo, loader: type, revision: str | None, width: int | None) -> ModelMeta:
    """What mteb files results under, and shows of a model."""
    path = Path(info.path)
    if revision is None:
        revision = sha256_of(path)[:16] if path.is_file() else "opened"
    return ModelMeta(
        loader=loader,
        name=f"edge-embed/{path.stem}",
        revision=revision,
        release_date=None,
        languages=None,
        n_parameters=None,
        memory_usage_mb=info.size_bytes / 2**20 or None,
        max_tokens=info.max_tokens,
        embed_dim=width,
        license=info.license or None,
        open_weights=True,
        public_training_code=None,
        public_training_data=None,
        framework=["GGUF"],
        similarity_fn_name=ScoringFunction.COSINE if width else None,
        use_instructions=info.instruction_template is not None or bool(info.prompts),
        training_datasets=None,
        model_type=["dense"] if width else ["cross-encoder"],
    )
