"""A job that goes on where it was interrupted: what is written down of it, and whether that is the job asked for.

Beside ``NAME.part``, ``NAME.part.json`` says which job this is and how far it came: whole steps only, so that the
rest is computed in the company that it would have had, and the result is the same to the byte. The state is written
after the vectors are on the disk, and replaces the earlier one at once: whatever ends the process, power included,
leaves a state that is true.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from edge_embed.bulk.manifest import differences
from edge_embed.cli.output import Mark, lock, part_of
from edge_embed.errors import InputFileError, ModelFileError, OutputFileError, ResumeError

CHECKPOINT_SECONDS = 1.0  # the least time between two states; a step is short where the model is fast
_FORMAT: Final = 1
_MODEL: Final = "model"
_START_AGAIN: Final = "--no-resume starts again, or write to another file"


@dataclass(frozen=True, slots=True)
class State:
    """How far a job came.

    Attributes:
        mark: where its part ends.
        n_texts: texts that are done.
        n_steps: steps that they were done in.
        n_truncated: how many of them were cut.
        texts: digest of the texts that are done.
        complete: whether those were all.
    """

    mark: Mark
    n_texts: int = 0
    n_steps: int = 0
    n_truncated: int = 0
    texts: str = ""
    complete: bool = False


class TextDigest:
    """A running digest of texts: the ones that are passed over must be those that were done."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, text: str) -> None:
        """Count a text in; its length comes first, so that texts cannot run together."""
        data = text.encode("utf-8", "surrogatepass")
        self._digest.update(len(data).to_bytes(8, "little") + data)

    def hexdigest(self) -> str:
        """The digest of the texts so far."""
        return self._digest.hexdigest()


class Job:
    """The state file of one job.

    Args:
        output: the file that the job writes.
        settings: what makes it this job, as JSON can hold it; names are shown where they differ.
    """

    def __init__(self, output: Path, settings: dict[str, Any]) -> None:
        self._output = output
        self._path = state_of(output)
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._model: dict[str, Any] = {}
        self._saved = 0.0

    def load(self) -> State | None:
        """How far the job came, or None where nothing was begun.

        Raises:
            ResumeError: what is there belongs to another job, or cannot be read.
        """
        found = _read(self._path)
        if found is None:
            return None
        theirs, self._model = dict(found["settings"]), found[_MODEL]
        found_else = differences(theirs, self._settings)
        if found_else:
            self._refuse(found_else)
        state: State = found["state"]
        return state

    def check_model(self, path: Path) -> None:
        """Take the model's digest into the job's settings, computed only where the file may have changed.

        Raises:
            ResumeError: the job was begun with another model.
            ModelFileError: the model cannot be read.
        """
        from edge_embed.cache.file import sha256_of

        try:
            stat = path.stat()
            identity = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            if self._model.get("identity") == identity:
                return
            digest = sha256_of(path)
        except OSError as error:
            raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error
        if self._model and self._model["sha256"] != digest:
            self._refuse([f"the model was {self._model['identity'][0]} and is another one, {path}"])
        self._model = {"identity": identity, "sha256": digest}

    def passed(self, texts: Iterator[str], state: State, digest: TextDigest) -> None:
        """Take the texts that are done, and see that they are the same.

        Raises:
            ResumeError: they are not.
        """
        for _ in range(state.n_texts):
            text = next(texts, None)
            if text is None:
                break
            digest.add(text)
        if digest.hexdigest() != state.texts:
            self._refuse([f"the first {state.n_texts} texts have changed"])

    def is_due(self) -> bool:
        """Whether it is time for another state."""
        return time.monotonic() - self._saved >= CHECKPOINT_SECONDS

    def save(self, state: State) -> None:
        """Write down how far the job is; the vectors up to there must be on the disk.

        Raises:
            OutputFileError: it cannot be written.
        """
        content = {"format": _FORMAT, "settings": self._settings, _MODEL: self._model, "state": asdict(state)}
        new = self._path.with_name(self._path.name + ".new")
        try:
            with new.open("w", encoding="utf-8") as file:
                json.dump(content, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
        except OSError as error:
            raise OutputFileError(f"cannot write {self._path}: {error.strerror or error}") from error
        self._saved = time.monotonic()

    def is_finished(self, state: State) -> bool:
        """Whether only this state is left of a job that was killed at its very end."""
        return state.complete and not part_of(self._output).exists() and self._output.exists()

    def remove(self) -> None:
        """The job is done, and its state no longer needed."""
        self._path.unlink(missing_ok=True)

    def _refuse(self, differences: list[str]) -> None:
        raise ResumeError(
            f"{self._path} belongs to another job: {'; '.join(differences)}",
            hint=f"repeat the command that was interrupted; {_START_AGAIN}",
        )


def state_of(output: Path) -> Path:
    """Where the state of a job lies that writes this file."""
    part = part_of(output)
    return part.with_name(part.name + ".json")


def input_identity(path: Path) -> list[Any]:
    """What a file of texts is known by: its place, size and time of change.

    Raises:
        InputFileError: it is not there, or no file.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise InputFileError(f"{path} cannot be read: {error.strerror or error}") from error
    if not path.is_file():
        raise InputFileError(f"{path} is no file, and can be read only once", hint="--resume needs a file of texts")
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def discard(output: Path) -> None:
    """Remove what an interrupted job left, unless it is being written.

    Raises:
        ResumeError: another process is writing it.
        OutputFileError: it cannot be removed.
    """
    part = part_of(output)
    try:
        if part.exists():
            with part.open("r+b") as file:
                if not lock(file):
                    raise ResumeError(f"another process is writing {part}", hint="let it finish, or end it")
        state_of(output).unlink(missing_ok=True)
        part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputFileError(f"{part} cannot be removed: {error.strerror or error}") from error


def refuse_leftovers(output: Path) -> None:
    """Raise ResumeError if an interrupted job would be lost."""
    path = state_of(output)
    if not path.exists():
        return
    found = _read(path)
    done = found["state"].n_texts if found is not None else 0
    raise ResumeError(
        f"{part_of(output)} holds {done} texts of a job that was interrupted",
        hint=f"--resume goes on with it; {_START_AGAIN}",
    )


def _read(path: Path) -> dict[str, Any] | None:
    """The state file with its State, or None where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != _FORMAT or not isinstance(found["settings"], dict) or not isinstance(found[_MODEL], dict):
            raise ValueError("another format")
        values = found["state"]
        state = State(**{**values, "mark": Mark(**values["mark"])})
        counts = [
            *(getattr(state.mark, name) for name in ("n_bytes", "n_rows", "columns")),
            state.n_texts,
            state.n_steps,
        ]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("a count that is none")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ResumeError(f"{path} cannot be used: {error}", hint=_START_AGAIN) from error
    return {**found, "state": state}
