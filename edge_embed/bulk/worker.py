"""One engine that does block after block: read, embed, write."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edge_embed.bulk import storage
from edge_embed.bulk.blocks import Block, part_name
from edge_embed.bulk.counting import counted_from
from edge_embed.bulk.job import Done, Job, versions
from edge_embed.bulk.manifest import differences
from edge_embed.bulk.reading import reader_of
from edge_embed.bulk.writing import encoded, extension_of, folder_of
from edge_embed.cache.file import sha256_of
from edge_embed.errors import ResumeError

if TYPE_CHECKING:
    from edge_embed.embedder import Embedder


class Worker:
    """An engine for one job. Use as a context manager, or ``close()`` it.

    Args:
        job: the job.
        threads: CPU threads; as the job's options say, by default.
        elsewhere: whether this may be another machine, or another installation, than the one that planned the job.

    Raises:
        ResumeError: versions or the model here are not those of the job.
        EdgeEmbedError: the model cannot be opened.
    """

    def __init__(self, job: Job, *, threads: int | None = None, elsewhere: bool = False) -> None:
        from edge_embed.embedder import Embedder

        if elsewhere:
            settings = job.settings()
            self._refuse([*differences({name: settings[name] for name in versions()}, versions())])
        options = {**job.request.options, **({} if threads is None else {"n_threads": threads})}
        self._job, self._reader, self._digest = job, reader_of(job), job.digest
        self.embedder: Embedder = Embedder(job.request.model, **options)
        if elsewhere:
            try:
                path = Path(self.embedder.info.path)
                self._refuse(differences({f"the model {path}": job.model}, {f"the model {path}": sha256_of(path)}))
            except BaseException:
                self.embedder.close()
                raise

    @staticmethod
    def _refuse(found: list[str]) -> None:
        if found:
            raise ResumeError(
                f"the worker on {os.uname().nodename if hasattr(os, 'uname') else 'this machine'} would give other "
                f"vectors: {'; '.join(found)}",
                hint="install the same versions and the same model file on every machine",
            )

    def do(self, block: Block) -> Done:
        """Read, embed and write a block; what is there of it is replaced by the same.

        Raises:
            InputFileError: the input cannot be read, or has changed.
            InvalidTextError, TextTooLongError, NonFiniteError: a text, counted from the beginning of the input.
            OutputFileError: the block cannot be written.
        """
        begun = time.perf_counter()
        rows = self._reader.read(block)
        started = time.perf_counter()
        self.embedder.forget()  # whatever was done before: a block's bytes are its own
        with counted_from(block.first):
            result = self.embedder.embed(rows.texts, **self._job.request.encode)
        embedding = time.perf_counter() - started
        name = part_name(block.number, self._digest, extension_of(self._job))
        storage.write(folder_of(self._job), name, encoded(self._job, rows, result.vectors))
        return Done(
            block.number,
            block.n_rows,
            result.usage.n_tokens,
            result.usage.n_truncated,
            time.perf_counter() - begun,
            embedding,
            os.getpid(),
        )

    def close(self) -> None:
        """Free the model."""
        self.embedder.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def in_this_process(job: Job, blocks: Iterable[Block]) -> Iterator[Done]:
    """The blocks, one after another, by one engine of this process."""
    with Worker(job) as worker:
        for block in blocks:
            yield worker.do(block)
