"""A job from its manifest to its last block: what is done already is left as it is, the rest goes to an engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from edge_embed.bulk import manifest, storage
from edge_embed.bulk.blocks import Block, cut, done_blocks, is_part
from edge_embed.bulk.job import Done, Job
from edge_embed.bulk.worker import in_this_process
from edge_embed.bulk.writing import commit_lance, extension_of, folder_of, lance_digest
from edge_embed.errors import InputFileError, OutputFileError, ResumeError
from edge_embed.progress import Progress

Engine = Callable[[Job, Sequence[Block]], Iterator[Done]]


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did.

    Attributes:
        n_rows: rows of the whole job.
        n_before: rows that an earlier run had done.
        n_blocks: blocks of the whole job.
        n_tokens: tokens that were embedded now.
        n_truncated: texts that were cut now.
        seconds: what it took, the start of the engine included.
        busy: seconds of all workers together that blocks took.
        embedding: what of that was embedding.
        workers: processes that did blocks.
    """

    n_rows: int
    n_before: int
    n_blocks: int
    n_tokens: int
    n_truncated: int
    seconds: float
    busy: float
    embedding: float
    workers: int


class Run:
    """One attempt at a job.

    Args:
        job: the job.
        engine: who does the blocks; one engine in this process by default.
        again: remove what an earlier job left at the output, and begin anew.

    Raises:
        ResumeError: the output is another job's.
        OutputFileError: it is something else, or cannot be written.
    """

    def __init__(self, job: Job, engine: Engine = in_this_process, *, again: bool = False) -> None:
        self.job, self._engine = job, engine
        self.folder, self._digest = folder_of(job), job.digest
        self._blocks = list(cut(job.tables, job.request.block_rows))
        self._todo: list[Block] = []
        self.complete = self._prepare(again)
        if not self.complete or job.output_format != "lance":
            there = done_blocks(storage.names(self.folder), self._digest, extension_of(job))
            self._todo = [block for block in self._blocks if block.number not in there]
            self.complete = self.complete and not self._todo
        self.n_before = job.n_rows - sum(block.n_rows for block in self._todo)
        self.n_done = self.n_before

    def _prepare(self, again: bool) -> bool:
        """Write the manifest, or see that the one that is there is this job's; whether that was completed."""
        job = self.job
        if job.output_format == "lance":
            if not self._blocks:
                raise InputFileError("the input holds no rows, and a Lance table of none has no columns")
            found = lance_digest(job)
            if found == self._digest and not again:
                storage.remove(self.folder, storage.names(self.folder))  # of a run that was ended right behind
                return True
            if found is not None and not again:
                self._refuse("was made by another job: with another input, model or settings")
        storage.make(self.folder)
        names = storage.names(self.folder)
        before = manifest.load(self.folder) if not again else None
        if before is not None and before.digest != self._digest:
            self._refuse(f"belongs to another job: {'; '.join(manifest.differences(before.settings, job.settings()))}")
        ours = [name for name in names if is_part(name) or name == manifest.NAME or name in storage.unfinished(names)]
        strange = [name for name in names if name not in storage.unfinished(names)]
        if before is None and not again and strange:
            raise OutputFileError(
                f"{storage.shown(self.folder)} is not empty, and no job like this wrote it: {strange[0]} is there",
                hint="write to another folder, or an empty one",
            )
        if again:
            storage.remove(self.folder, ours)
            storage.make(self.folder)
        self._manifest = manifest.Manifest(job.settings(), self._digest, len(self._blocks), job.n_rows)
        if before is None:
            manifest.save(self.folder, self._manifest)
        return before is not None and before.complete

    def _refuse(self, why: str) -> None:
        raise ResumeError(
            f"{storage.shown(self.job.request.output)} {why}",
            hint="repeat the command that was interrupted; --no-resume starts again, or write to another place",
        )

    def steps(self) -> Iterator[Done]:
        """Do what is left; each block as it is done. Errors as of the engine; what is done stays."""
        if self._todo:  # else no model is loaded
            for done in self._engine(self.job, self._todo):
                self.n_done += done.n_rows
                yield done
        if not self.complete:
            self._finish()

    def finish(self, *, shown: bool = False) -> Report:
        """Do what is left, with progress on stderr if it is to be ``shown``."""
        begun = time.perf_counter()
        done: list[Done] = []
        with Progress("embedding", self.job.n_rows, "texts", start=self.n_before, enabled=shown) as progress:
            for one in self.steps():
                done.append(one)
                progress.reach(self.n_done)
        return Report(
            n_rows=self.job.n_rows,
            n_before=self.n_before,
            n_blocks=len(self._blocks),
            n_tokens=sum(one.n_tokens for one in done),
            n_truncated=sum(one.n_truncated for one in done),
            seconds=time.perf_counter() - begun,
            busy=sum(one.seconds for one in done),
            embedding=sum(one.embedding for one in done),
            workers=len({one.process for one in done}),
        )

    def _finish(self) -> None:
        """See that every block is there, and say so; or put them together."""
        job, numbers = self.job, [block.number for block in self._blocks]
        names = storage.names(self.folder)
        missing = set(numbers) - done_blocks(names, self._digest, extension_of(job))
        if missing:
            raise OutputFileError(f"block {min(missing)} is gone from {storage.shown(self.folder)}")
        left = storage.unfinished(names)
        if job.output_format == "lance":
            commit_lance(job, numbers)
            left = storage.names(self.folder)
        else:
            manifest.save(self.folder, replace(self._manifest, complete=True))
        storage.remove(self.folder, left)
        self.complete = True
