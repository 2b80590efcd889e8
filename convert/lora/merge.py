"""A LoRA adapter merged into the weights of its base while these are read.

Merging adds s B A to W chunk by chunk of rows in float32, so no matrix is ever whole in memory and the result is
rounded once, to the type that is asked for. Knows the adapter and the checkpoint. Knows nothing of GGUF.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from edge_embed.errors import CheckpointError
from edge_embed.types import Float32Array

from ..architectures import family_of
from ..architectures.family import Family, SkippedTensor, plain_name
from ..checkpoint import Checkpoint, TensorRef, read_text
from .peft import Adapter, Update

_BLOCK_VALUES = 2**15  # values that are summed at a time: they stay in the processor's cache


class MergedCheckpoint(Checkpoint):
    """A checkpoint whose weights have an adapter added as they are read.

    Attributes:
        adapter: the adapter.
        notes: files of the adapter's folder that have no part in the result, one sentence each.
    """

    def __init__(self, folder: Path, adapter_folder: Path) -> None:
        """Open both and find the weight that each update belongs to.

        Raises:
            CheckpointError: as for both, and where an update has no weight of its shape.
            UnsupportedCheckpointError: as for both.
        """
        self.adapter = Adapter(adapter_folder)
        try:
            super().__init__(folder)
        except BaseException:
            self.adapter.close()
            raise
        try:
            self._updates, _ = match(self.adapter, family_of(self.config), self.tensors)
        except BaseException:
            self.close()
            raise
        name = self.adapter.folder.name
        self.notes = tuple(
            f"{name}: {file} is not that of the base, which is used" for file in _other_files(folder, adapter_folder)
        )
        # Chunks of a matrix follow each other, so what was read for one serves the next; no more than a few are held.
        self._whole = lru_cache(maxsize=4)(self.adapter.read)

    def left_out(self, skipped: Sequence[SkippedTensor], head: str | None) -> tuple[str, ...]:
        """A sentence for each update that is not, or not wholly, in the result.

        Args:
            skipped: the base's tensors that the file does not hold.
            head: that of them of which some rows are a reranker's head; these rows are read merged.
        """
        name, notes = self.adapter.folder.name, []
        for tensor in skipped:
            update = self._updates.get(tensor.name)
            if update is not None and tensor.name == head:
                notes.append(
                    f"{name}: of {update.module} only the rows that the reranker scores by are changed and kept"
                )
            elif update is not None:
                notes.append(f"{name}: {update.module} is left out: {tensor.reason}")
        return tuple(notes)

    def close(self) -> None:
        super().close()
        self.adapter.close()

    def read_rows(self, ref: TensorRef, first: int, count: int) -> Float32Array:
        """Rows of the merged weight; as for ``Checkpoint``."""
        rows = super().read_rows(ref, first, count)
        update = self._updates.get(ref.name)
        if update is None:
            return rows
        row_bytes = ref.nbytes // ref.n_rows  # a plan may leave out the first rows of a tensor
        first += (ref.offset - self.tensors[ref.name].offset) // row_bytes
        if update.embedding:
            left = np.ascontiguousarray(self._whole(update.a)[:, first : first + count].T)
            right = np.ascontiguousarray(self._whole(update.b).T)
        else:
            left = self.adapter.weights.read_rows(update.b, first, count)
            right = self._whole(update.a)
        rows += update.scale * product(left, right)
        return rows


def match(
    adapter: Adapter, family: Family, tensors: Mapping[str, TensorRef]
) -> tuple[dict[str, Update], tuple[SkippedTensor, ...]]:
    """Name of a weight -> what is added to it, and the updates of weights that the family leaves out.

    Raises:
        CheckpointError: an update has no weight in the base, or one of another shape.
    """
    by_plain_name = {plain_name(family, name): ref for name, ref in tensors.items()}
    found: dict[str, Update] = {}
    ignored: list[SkippedTensor] = []
    for update in adapter.updates:
        plain = plain_name(family, f"{update.module}.weight")
        ref = by_plain_name.get(plain)
        where = f"{update.a.file}: {update.module!r}"
        if ref is None:
            raise CheckpointError(
                f"{where} has no weight in the base model, which has no tensor {plain!r}",
                hint=f"give the adapter's own base: {adapter.base}" if adapter.base else "give the adapter's own base",
            )
        if ref.shape != update.shape:
            raise CheckpointError(
                f"{where} changes a weight of shape {list(update.shape)}, and {ref.name!r} in {ref.file} has shape "
                f"{list(ref.shape)}",
                hint=f"give the adapter's own base: {adapter.base}" if adapter.base else "give the adapter's own base",
            )
        if ref.name in found:
            raise CheckpointError(f"{where} and {found[ref.name].module!r} change the same weight {ref.name!r}")
        found[ref.name] = update
        reason = next((why for pattern, why in family.skipped if re.fullmatch(pattern, plain)), None)
        if reason is not None:
            ignored.append(SkippedTensor(update.module, reason))
    return found, tuple(ignored)


def _other_files(base: Path, adapter: Path) -> list[str]:
    """Files that trainers put beside an adapter and that say something else than the base's of that name."""
    names = ("tokenizer.json", "tokenizer_config.json", "modules.json", "config_sentence_transformers.json")
    return [
        name
        for name in (*names, "sentence_bert_config.json", "1_Pooling/config.json")
        if (adapter / name).is_file()
        and not ((base / name).is_file() and read_text(adapter, name) == read_text(base, name))
    ]


def product(left: Float32Array, right: Float32Array) -> Float32Array:
    """``left @ right`` as a sum over the rank in a fixed order.

    A BLAS sums in an order that depends on the shape and on its threads, and so would the last bits of the file.
    """
    total = np.zeros((len(left), right.shape[1]), dtype=np.float32)
    step = max(1, _BLOCK_VALUES // max(1, right.shape[1]))
    for first in range(0, len(left), step):
        block, part = total[first : first + step], left[first : first + step]
        term = np.empty_like(block)
        for k in range(right.shape[0]):
            np.multiply(part[:, k : k + 1], right[k], out=term)
            block += term
    return total
