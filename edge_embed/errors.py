"""Every error that edge-embed raises on purpose, and what each means to a shell or an HTTP client.

::

    EdgeEmbedError
    ├── InputError                 the caller's texts or options
    │   ├── InvalidTextError       not a string, or not encodable (lone surrogates)
    │   ├── TextTooLongError       more tokens than the limit, and truncation was refused
    │   ├── InvalidOptionError     an option outside its range, or two that contradict each other
    │   ├── InvalidDimensionError  truncate_dim outside 1..model size
    │   ├── UnknownPromptError     a prompt name that the model does not have
    │   ├── InputFileError         a file of texts that cannot be read as asked
    │   ├── ResumeError            an interrupted job that is not the one that was asked for
    │   ├── DatabaseMissingError   there is no search database at that place
    │   └── DatabaseMismatchError  a search database that was made with another model, prompt or size
    ├── ModelError                 the model file
    │   ├── ModelNotFoundError     no such file or known model
    │   ├── ModelMissingError      a known model that is not on this machine yet
    │   ├── ModelFileError         not a GGUF, truncated, corrupt, or refused by the engine
    │   └── UnsupportedModelError  a sound file that this runtime cannot embed faithfully
    ├── ConversionError            the checkpoint that is being converted
    │   ├── CheckpointError        a file, tensor, shape or value in it is missing or wrong
    │   ├── UnsupportedCheckpointError  a family, tokenizer or module that is not converted faithfully
    │   ├── OutputFileError        the result cannot be written (disk full, no permission)
    │   └── VerificationError      the file that was made does not compute what the checkpoint does
    ├── EngineError                the native library and the machine
    │   ├── EngineUnavailableError llama-cpp-python is missing, or its layout is not the one we know
    │   ├── EngineBuildError       llama.cpp's libraries could not be built, or put where they belong
    │   ├── EngineMemoryError      a context or batch could not be allocated
    │   ├── EngineClosedError      used after close()
    │   ├── NonFiniteError         the model produced NaN or infinity for named texts
    │   ├── CallCancelledError     stopped by the caller
    │   ├── DeadlineExceededError  stopped because its time was up
    │   ├── ComputeError           the engine returned an error code
    │   ├── CacheFileError         the cache of vectors is another file, damaged, or out of reach
    │   ├── DatabaseFileError      a search database is damaged, in use, or cannot be written
    │   └── ClusterError           a cluster cannot be reached, or loses its workers again and again
    ├── HubError                   downloading from the Hugging Face hub
    │   ├── HubNotFoundError       no such repository, revision or file, or it is private
    │   ├── HubAccessError         gated, or the token is missing or not good enough
    │   ├── HubUnavailableError    offline, no connection, or the hub does not answer
    │   ├── DownloadError          what came is not what the hub had promised, or is not taken
    │   └── DiskSpaceError         not enough room for what would be downloaded
    └── ServerError                a request, or the server that it came to
        ├── RequestShapeError      a body that is not what the route takes
        ├── PayloadTooLargeError   a body, a list or a text above what the server accepts
        ├── RequestTimeoutError    a body that does not arrive
        ├── AccessDeniedError      a missing or wrong key
        ├── ForeignOriginError     a page of another site, or a name that this server does not go by
        ├── RouteNotFoundError     a path that nothing answers
        ├── WrongMethodError       a path that is answered for other methods
        ├── BodyEncodingError      a body that is compressed
        ├── WrongModelKindError    an embedding asked of a reranker, or scores of an embedding model
        ├── QueueFullError         more is waiting than the server keeps, or for too long
        ├── NotReadyError          the server is starting, or ending
        └── ServerSettingsError    a setting that the server cannot start with

This module knows messages and codes. It raises nothing and imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class EdgeEmbedError(Exception):
    """Base of the tree.

    Args:
        message: what was wrong and what was expected, one sentence.
        hint: what to do about it, one sentence; may be empty.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:  # pickled without calling a leaf's own __init__, for process pools
        return EdgeEmbedError.__new__, (type(self), *self.args), self.__dict__


class InputError(EdgeEmbedError):
    """The caller's texts or options."""


class InvalidTextError(InputError):
    """A text that is not a string, or that cannot be encoded as UTF-8."""


class TextTooLongError(InputError):
    """A text is longer than the limit and ``truncate="error"`` was asked for.

    Attributes:
        index: position of the text in the call.
        n_tokens: its length in tokens, special tokens included.
        limit: the most tokens that would have been accepted.
    """

    def __init__(self, index: int, n_tokens: int, limit: int) -> None:
        super().__init__(
            f"text {index} has {n_tokens} tokens, and the limit is {limit}",
            hint='shorten it, split it, or allow truncation with truncate="right" or "left"',
        )
        self.index = index
        self.n_tokens = n_tokens
        self.limit = limit


class InvalidOptionError(InputError):
    """An option outside its range, or two options that contradict each other."""


class InvalidDimensionError(InputError):
    """``truncate_dim`` is not an integer from 1 to the size of the model's vectors."""


class UnknownPromptError(InputError):
    """A prompt name that the model does not have."""


class InputFileError(InputError):
    """A file of texts that cannot be read as asked."""


class ResumeError(InputError):
    """What an interrupted job left behind does not belong to the job that was asked for."""


class DatabaseMissingError(InputError):
    """There is no search database at that place."""


class DatabaseMismatchError(InputError):
    """A search database was made with another model, prompt, size or way of cutting than is asked for now."""


class ModelError(EdgeEmbedError):
    """The model file."""


class ModelNotFoundError(ModelError):
    """No such file, and no known model of that name."""


class ModelMissingError(ModelError):
    """A model that is known by name and not on this machine yet."""


class ModelFileError(ModelError):
    """The file is not a GGUF, is truncated or corrupt, or the engine refused it."""


class UnsupportedModelError(ModelError):
    """The file is sound, but this runtime cannot compute its embeddings faithfully."""


class ConversionError(EdgeEmbedError):
    """The checkpoint that is being converted."""


class CheckpointError(ConversionError):
    """A file, tensor, shape or value in the checkpoint is missing or wrong."""


class UnsupportedCheckpointError(ConversionError):
    """The checkpoint's family, tokenizer or modules cannot be converted faithfully."""


class OutputFileError(ConversionError):
    """The result cannot be written."""


class VerificationError(ConversionError):
    """A GGUF does not compute what the checkpoint does that it is held against."""


class EngineError(EdgeEmbedError):
    """The native library and the machine."""


class EngineUnavailableError(EngineError):
    """llama-cpp-python is missing, broken, or of a layout that is not known."""


class EngineBuildError(EngineError):
    """llama.cpp's libraries could not be built, or not be put where they belong."""


class EngineMemoryError(EngineError):
    """A context or a batch could not be allocated."""


class EngineClosedError(EngineError):
    """The engine was used after ``close()``."""


class NonFiniteError(EngineError):
    """The model produced NaN or infinity for some texts; the others are not lost.

    Attributes:
        indices: positions, in the call, of the texts without a finite vector.
        partial: the call's result with those rows set to NaN, or None where there is none.
    """

    def __init__(self, indices: Sequence[int], partial: Any = None) -> None:
        shown = ", ".join(str(i) for i in indices[:10]) + (", ..." if len(indices) > 10 else "")
        super().__init__(
            f"the model produced non-finite values for {len(indices)} text(s): {shown}",
            hint="the weights overflow on this input: use a BF16, F32 or less aggressive quantization; "
            "the other texts' vectors are in this error's .partial",
        )
        self.indices = tuple(indices)
        self.partial = partial


class CallCancelledError(EngineError):
    """The call was stopped through its Cancellation."""


class DeadlineExceededError(EngineError):
    """The call was stopped because it took longer than it was allowed to."""


class ComputeError(EngineError):
    """The engine returned an error code."""


class CacheFileError(EngineError):
    """The cache of vectors is another kind of file, damaged, or cannot be used as asked."""


class DatabaseFileError(EngineError):
    """A search database is damaged, something else, in use by another process, or cannot be written."""


class ClusterError(EngineError):
    """A cluster cannot be reached, or loses its workers again and again."""


class HubError(EdgeEmbedError):
    """Downloading from the Hugging Face hub."""


class HubNotFoundError(HubError):
    """There is no such repository, revision or file, or it is private."""


class HubAccessError(HubError):
    """The repository is gated or private, and the token is missing or not good enough."""


class HubUnavailableError(HubError):
    """Offline, no connection, or the hub does not answer."""


class DownloadError(HubError):
    """What came is not what the hub had promised (cut off, another checksum), or is not taken."""


class DiskSpaceError(HubError):
    """There is not enough room for what would be downloaded."""


class ServerError(EdgeEmbedError):
    """A request, or the server that it came to."""


class RequestShapeError(ServerError):
    """A body that is not JSON, or not what the route takes.

    Attributes:
        param: the field that is wrong, or None.
    """

    def __init__(self, message: str, *, hint: str = "", param: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.param = param


class PayloadTooLargeError(ServerError):
    """A body, a list of texts or their tokens are more than the server accepts in one request."""


class RequestTimeoutError(ServerError):
    """A body that does not arrive within the time that the server waits for it."""


class AccessDeniedError(ServerError):
    """A missing or wrong key."""


class ForeignOriginError(ServerError):
    """A browser asks on behalf of a page that may not, or under a name that this server does not go by."""


class RouteNotFoundError(ServerError):
    """A path that nothing answers."""


class WrongMethodError(ServerError):
    """A path that is answered for other methods."""


class BodyEncodingError(ServerError):
    """A body that is compressed, which no client of ours does and which hides how large it is."""


class WrongModelKindError(ServerError):
    """An embedding was asked of a reranker, or scores of an embedding model."""


class QueueFullError(ServerError):
    """More is waiting than the server keeps, or something has waited for too long.

    Attributes:
        retry_after: seconds after which there will be room, as far as can be said now.
    """

    def __init__(self, message: str, *, retry_after: float, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class NotReadyError(ServerError):
    """The server is starting, or ending."""


class ServerSettingsError(ServerError):
    """A setting that the server cannot start with."""


# Leaf -> (HTTP status, exit code). Exit codes: 2 usage and input, 3 model, 4 conversion, 5 engine, 6 download,
# 7 server.
CODES: dict[type[EdgeEmbedError], tuple[int, int]] = {
    InvalidTextError: (422, 2),
    TextTooLongError: (400, 2),
    InvalidOptionError: (422, 2),
    InvalidDimensionError: (400, 2),
    UnknownPromptError: (400, 2),
    InputFileError: (400, 2),
    ResumeError: (409, 2),
    DatabaseMissingError: (404, 2),
    DatabaseMismatchError: (409, 2),
    ModelNotFoundError: (404, 3),
    ModelMissingError: (404, 3),
    ModelFileError: (500, 3),
    UnsupportedModelError: (501, 3),
    CheckpointError: (500, 4),
    UnsupportedCheckpointError: (501, 4),
    OutputFileError: (507, 4),
    VerificationError: (500, 4),
    EngineUnavailableError: (503, 5),
    EngineBuildError: (500, 5),
    EngineMemoryError: (507, 5),
    EngineClosedError: (503, 5),
    NonFiniteError: (500, 5),
    CallCancelledError: (499, 5),
    DeadlineExceededError: (504, 5),
    ComputeError: (500, 5),
    CacheFileError: (500, 5),
    DatabaseFileError: (500, 5),
    ClusterError: (503, 5),
    HubNotFoundError: (404, 6),
    HubAccessError: (403, 6),
    HubUnavailableError: (503, 6),
    DownloadError: (502, 6),
    DiskSpaceError: (507, 6),
    RequestShapeError: (400, 7),
    PayloadTooLargeError: (413, 7),
    RequestTimeoutError: (408, 7),
    AccessDeniedError: (401, 7),
    ForeignOriginError: (403, 7),
    RouteNotFoundError: (404, 7),
    WrongMethodError: (405, 7),
    BodyEncodingError: (415, 7),
    WrongModelKindError: (400, 7),
    QueueFullError: (429, 7),
    NotReadyError: (503, 7),
    ServerSettingsError: (500, 7),
}


def http_status(error: EdgeEmbedError) -> int:
    """The HTTP status that answers this error."""
    return CODES[type(error)][0]


def exit_code(error: EdgeEmbedError) -> int:
    """The exit code with which a command ends on this error."""
    return CODES[type(error)][1]
