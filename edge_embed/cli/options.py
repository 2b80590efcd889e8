"""Options that several commands share: which texts, which model, and what is done with them.

Each group of options becomes one frozen value, so that a command has a handful of arguments instead of twenty.
The names of choices are spelled out here because the modules that define them import NumPy; a test compares them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from edge_embed.cli.pull import ensure
from edge_embed.files import INPUT_FORMATS, InputFormat, format_of, read_file, read_stream

if TYPE_CHECKING:
    from edge_embed.embedder import Embedder
    from edge_embed.prompts import Role
    from edge_embed.types import EmbedResult, KvType, Pooling, Precision, Truncate

KV_TYPES: Final = ("f16", "q8_0")
POOLINGS: Final = ("mean", "cls", "last")
PRECISIONS: Final = ("float32", "float16", "int8", "uint8", "binary", "ubinary")
TRUNCATIONS: Final = ("right", "left", "error")
TEXT_TRUNCATIONS: Final = (*TRUNCATIONS, "chunk")

DEVICE_HELP: Final = (
    "Where it computes: auto, cpu, or GPUs with commas between them (cuda:0, vulkan:1, metal), perhaps with cpu at the "
    "end for what they cannot do; by default what EDGE_EMBED_DEVICE says, else auto."
)

Command = Callable[..., None]
Group = TypeVar("Group")
STDIN: Final = "-"
AT_LEAST_1: Final = click.IntRange(min=1)
BATCH_TOKENS: Final = (
    "Tokens that the model is given at once. Encoders compute several batches side by side, and one only where N is "
    "large (of the bundled model: above 512)."
)


def device_option() -> Callable[[Command], Command]:
    """Adds ``--device``."""
    return click.option("--device", metavar="DEVICE", help=DEVICE_HELP)


def gpu_layers_option() -> Callable[[Command], Command]:
    """Adds ``--gpu-layers``; the command gets None for ``auto``."""
    return click.option(
        "--gpu-layers",
        type=_Layers(),
        default="auto",
        show_default=True,
        metavar="auto|N",
        help="Layers on the GPU, the output counted as one; -1 for all, auto for as many as fit.",
    )


def low_memory_option() -> Callable[[Command], Command]:
    """Adds ``--low-memory``."""
    return click.option(
        "--low-memory",
        is_flag=True,
        help="For boards with 1 or 2 GB: weights stay pages of the file, little is computed at a time; slower.",
    )


class _Layers(click.IntRange):
    """A number of layers, or ``auto``, which is None."""

    name = "layers"

    def __init__(self) -> None:
        super().__init__(-1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return None if value == "auto" else super().convert(value, param, ctx)


@dataclass(frozen=True, slots=True)
class TextSource:
    """Where texts come from.

    Attributes:
        texts: as arguments; ``-`` alone, or none, means the file or standard input.
        file: a file of texts, ``-`` for standard input, or None.
        input_format: how the file or standard input stores them, or None to go by the extension.
        field: the field or column that holds them, or None.
    """

    texts: tuple[str, ...]
    file: str | None
    input_format: InputFormat | None
    field: str | None

    def check(self) -> TextSource:
        """Itself, if exactly one source is named; click.UsageError otherwise."""
        arguments = bool(self.texts) and self.texts != (STDIN,)
        if self.texts and self.file is not None:
            raise click.UsageError("give texts as arguments or a --file, not both")
        if arguments and (self.input_format or self.field):
            raise click.UsageError("--input-format and --field are about a --file or standard input, not arguments")
        if not self.texts and self.file is None and sys.stdin.isatty():
            raise click.UsageError("no texts: give some as arguments, with --file, or through a pipe")
        return self

    def read(self) -> Iterator[str]:
        """The texts, in order."""
        if self.texts and self.texts != (STDIN,):
            return iter(self.texts)
        if self.file is not None and self.file != STDIN:
            return read_file(Path(self.file), input_format=self.input_format, field=self.field)
        stream = sys.stdin.buffer
        return read_stream(stream, "standard input", input_format=self.input_format or "txt", field=self.field)

    def count(self) -> int | None:
        """How many texts there are, every one of them read and checked; None where they can be read only once."""
        if self.texts and self.texts != (STDIN,):
            return len(self.texts)
        if self.file is None or self.file == STDIN:
            return None
        path = Path(self.file)
        if self.input_format is None:
            format_of(path)
        return None if path.exists() and not path.is_file() and not path.is_dir() else sum(1 for _ in self.read())


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model, and how it is run; None leaves the choice to the library."""

    model: str | None
    pooling: Pooling | None
    max_tokens: int | None
    threads: int | None
    batch_tokens: int | None
    device: str | None
    gpu_layers: int | None
    low_memory: bool
    kv_type: KvType
    deterministic: bool
    lora: tuple[str, float]
    projection: str | None
    cache: bool
    yes: bool

    def open(self) -> Embedder:
        """Load the model, once it is here."""
        from edge_embed.embedder import Embedder

        return Embedder(ensure(self.model, yes=self.yes), **self.arguments())

    def arguments(self) -> dict[str, Any]:
        """Arguments of ``Embedder``, the model aside."""
        lora, scale = self.lora
        return {
            "pooling": self.pooling,
            "max_tokens": self.max_tokens,
            "n_threads": self.threads,
            "n_batch": self.batch_tokens,
            "device": self.device,
            "gpu_layers": self.gpu_layers,
            "low_memory": self.low_memory,
            "kv_type": self.kv_type,
            "deterministic": self.deterministic,
            "lora": lora or None,
            "lora_scale": scale,
            "projection": self.projection,
            "cache": self.cache,
        }


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """What is put before the texts."""

    prompt: str | None
    prompt_name: str | None
    instruction: str | None
    query: bool
    document: bool

    def check(self) -> PromptOptions:
        """Itself, if the options do not contradict each other; click.UsageError otherwise."""
        given = {
            "--prompt": self.prompt is not None,
            "--prompt-name": self.prompt_name is not None,
            "--instruction": self.instruction is not None and not self.query,  # a query takes an instruction
            "--query": self.query,
            "--document": self.document,
        }
        chosen = [name for name, is_given in given.items() if is_given]
        if len(chosen) > 1:
            raise click.UsageError(f"{' and '.join(chosen)} contradict each other: give one of them")
        return self

    @property
    def role(self) -> Role | None:
        """What the texts are, as far as it was said."""
        return "query" if self.query else "document" if self.document else None


@dataclass(frozen=True, slots=True)
class EncodeOptions(PromptOptions):
    """What is put before the texts, and what is done with long ones and with the vectors."""

    dimensions: int | None
    truncate: Truncate
    overlap: int | None

    def check(self) -> EncodeOptions:
        """Itself, if the options do not contradict each other; click.UsageError otherwise."""
        super(EncodeOptions, self).check()  # slots make another class of this one, which a bare super() does not find
        if self.overlap is not None and self.truncate != "chunk":
            raise click.UsageError("--overlap is about windows: it belongs to --truncate chunk")
        return self

    def embed(
        self,
        embedder: Embedder,
        texts: Sequence[str],
        *,
        normalize: bool | None = None,
        precision: Precision = "float32",
        show_progress_bar: bool = False,
    ) -> EmbedResult:
        """The vectors of texts and what is known about them."""
        arguments = self.arguments()
        return embedder.embed(
            texts, **arguments, normalize=normalize, precision=precision, show_progress_bar=show_progress_bar
        )

    def arguments(self) -> dict[str, Any]:
        """Arguments of ``Embedder.embed``."""
        return {
            "prompt": self.prompt,
            "prompt_name": self.prompt_name,
            "instruction": self.instruction,
            "role": self.role,
            "truncate_dim": self.dimensions,
            "truncate": self.truncate,
            "overlap": self.overlap,
        }


def text_source(command: Command) -> Command:
    """Adds ``[TEXTS]...`` and the options of a file; the command gets ``source``, a TextSource."""
    return texts_of(TextSource, command)


def texts_of(group: type[Group], command: Command, *more: Callable[[Command], Command]) -> Command:
    """Likewise; ``source`` is a ``group``, a kind of TextSource with ``more`` parameters."""
    return grouped(
        "source",
        group,
        command,
        click.argument("texts", nargs=-1),
        click.option(
            "-f", "--file", metavar="PATH", help="Read texts from a .txt, .jsonl, .csv or .tsv file, - is stdin."
        ),
        click.option(
            "--input-format",
            type=click.Choice(INPUT_FORMATS),
            help="How the file or stdin stores texts; by default the file's extension says so, and stdin is txt.",
        ),
        click.option(
            "--field",
            "--column",
            "field",
            metavar="NAME",
            help='Field or column that holds the text; "text" or the only column by default.',
        ),
        *more,
    )


def model_options(command: Command) -> Command:
    """Adds the options of the model; the command gets ``engine``, a ModelOptions."""
    return grouped(
        "engine",
        ModelOptions,
        command,
        click.option("-m", "--model", metavar="MODEL", help="GGUF file or a name of `edge-embed list`."),
        click.option("--pooling", type=click.Choice(POOLINGS), help="Pool hidden states otherwise than the file says."),
        click.option("--max-tokens", type=AT_LEAST_1, metavar="N", help="Most tokens of a text, if not the file's."),
        click.option("--threads", type=AT_LEAST_1, metavar="N", help="CPU threads, if not all physical cores."),
        click.option("--batch-tokens", type=AT_LEAST_1, metavar="N", help=BATCH_TOKENS),
        device_option(),
        gpu_layers_option(),
        low_memory_option(),
        click.option(
            "--kv-type",
            type=click.Choice(KV_TYPES),
            default="f16",
            show_default=True,
            help="How a causal model keeps what it has read of a text; q8_0 takes half the memory, less exactly.",
        ),
        click.option(
            "--deterministic", is_flag=True, help="The same bits whatever else is embedded, text by text; slower."
        ),
        click.option(
            "--lora",
            metavar="FILE[:SCALE]",
            default="",
            callback=lambda _ctx, _param, value: lora_file(value),
            help="A LoRA adapter (GGUF) to add to the model, as much of it as SCALE says; 1 by default.",
        ),
        click.option(
            "--projection", metavar="FILE", help="A projection of `edge-embed project fit` that vectors go through."
        ),
        cache_option("vectors"),
        click.option(
            "-y", "--yes", is_flag=True, envvar="EDGE_EMBED_DOWNLOAD", help="Download a model that is missing unasked."
        ),
    )  # fmt: skip


def cache_option(what: str) -> Callable[[Command], Command]:
    """Adds ``--cache``."""
    return click.option(
        "--cache/--no-cache",
        default=False,
        envvar="EDGE_EMBED_CACHE_VECTORS",
        help=f"Keep {what} for the next time (see `edge-embed cache`); also EDGE_EMBED_CACHE_VECTORS=1.",
    )


def lora_file(value: str) -> tuple[str, float]:
    """``FILE`` or ``FILE:SCALE`` in two; a colon that no number follows belongs to the name."""
    path, _, scale = value.rpartition(":")
    try:
        return (path, float(scale)) if path else (value, 1.0)
    except ValueError:
        return value, 1.0


_PROMPTS: Final = (
    click.option("--prompt", metavar="TEXT", help="Text put before each input."),
    click.option("--prompt-name", metavar="NAME", help="A prompt of the model, see `edge-embed show`."),
    click.option("--instruction", metavar="TEXT", help="Task description, for a model that was trained with them."),
    click.option("--query", is_flag=True, help="The texts are search queries: use the model's prompt for these."),
    click.option("--document", is_flag=True, help="The texts are to be found: use the model's prompt for these."),
)


def prompt_options(command: Command) -> Command:
    """Adds what is put before the texts; the command gets ``prompts``, a PromptOptions."""
    return grouped("prompts", PromptOptions, command, *_PROMPTS)


def encode_options(command: Command) -> Command:
    """Adds prompts, dimensions and truncation; the command gets ``encoding``, an EncodeOptions."""
    return grouped(
        "encoding",
        EncodeOptions,
        command,
        *_PROMPTS,
        click.option(
            "-d",
            "--dimensions",
            "--truncate-dim",
            "dimensions",
            type=AT_LEAST_1,
            metavar="N",
            help="Values kept of each vector (MRL); all by default.",
        ),
        click.option(
            "--truncate",
            type=click.Choice(TEXT_TRUNCATIONS),
            default="right",
            show_default=True,
            help="What happens to a text that is too long: lose its end, its beginning, be refused, or be read in "
            "windows, the mean of whose vectors is its own (chunk).",
        ),
        click.option(
            "--overlap",
            type=click.IntRange(min=0),
            metavar="N",
            help="Tokens that neighbouring windows have in common; an eighth by default.",
        ),
    )


def truncate_option(what: str) -> Callable[[Command], Command]:
    """Adds ``--truncate``."""
    return click.option(
        "--truncate",
        type=click.Choice(TRUNCATIONS),
        default="right",
        show_default=True,
        help=f"What happens to {what} that is too long: lose its end, its beginning, or be refused.",
    )


def grouped(name: str, group: type[Group], command: Command, *parameters: Callable[[Command], Command]) -> Command:
    """The command with those parameters, which reach it as one value called ``name``, a dataclass ``group``."""
    names = [field.name for field in fields(group)]  # type: ignore[arg-type]  # every group is a dataclass

    @functools.wraps(command)
    def call(**values: Any) -> None:
        made = group(**{field: values.pop(field) for field in names})
        command(**{name: made.check() if isinstance(made, (TextSource, PromptOptions)) else made}, **values)

    result: Command = call
    for parameter in reversed(parameters):
        result = parameter(result)
    return result
