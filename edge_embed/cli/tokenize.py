"""``edge-embed tokenize`` and ``count-tokens``: what a model sees of texts, and how much of it there is.

The model's weights are not loaded, and texts are read one after another, so that a file may be larger than memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import click

from edge_embed.cli.options import (
    AT_LEAST_1,
    POOLINGS,
    Command,
    PromptOptions,
    TextSource,
    grouped,
    prompt_options,
    text_source,
    truncate_option,
)
from edge_embed.cli.pull import ensure
from edge_embed.cli.terminal import note, style

if TYPE_CHECKING:
    from edge_embed.tokens import Tokens
    from edge_embed.types import Encoding, Pooling, Truncate

AT_ONCE = 512  # texts counted between two writes


@dataclass(frozen=True, slots=True)
class TokenOptions:
    """Whose tokens, and beside which query."""

    model: str | None
    pooling: Pooling | None
    max_tokens: int | None
    pair_with: str | None
    yes: bool

    def open(self) -> Tokens:
        """Read the vocabulary, once the model is here."""
        from edge_embed.tokens import Tokens

        return Tokens(ensure(self.model, yes=self.yes), pooling=self.pooling, max_tokens=self.max_tokens)


def _token_options(command: Command) -> Command:
    return grouped(
        "asked",
        TokenOptions,
        command,
        click.option("-m", "--model", metavar="MODEL", help="GGUF file or a name of `edge-embed list`."),
        click.option("--pooling", type=click.Choice(POOLINGS), help="Pool hidden states otherwise than the file says."),
        click.option("--max-tokens", type=AT_LEAST_1, metavar="N", help="Most tokens of a text, if not the file's."),
        click.option(
            "--pair-with", metavar="QUERY", help="Join each text to this query, as a reranker reads the two together."
        ),
        click.option(
            "-y", "--yes", is_flag=True, envvar="EDGE_EMBED_DOWNLOAD", help="Download a model that is missing unasked."
        ),
    )  # fmt: skip


@click.command(
    epilog="""\b
Examples:
  edge-embed tokenize --pretty "naïve café"
  edge-embed tokenize -m qwen3-embedding-0.6b --query "how do bees navigate?"
  edge-embed tokenize -m qwen3-reranker-0.6b --pair-with "how do bees navigate?" "by the sun" --pretty
  edge-embed tokenize -f articles.jsonl --field body --truncate error > tokens.jsonl
"""
)
@text_source
@click.option("--pretty", is_flag=True, help="For people: a line for each token, with what it stands for.")
@prompt_options
@truncate_option("a text")
@_token_options
def tokenize(source: TextSource, prompts: PromptOptions, asked: TokenOptions, pretty: bool, truncate: Truncate) -> None:
    """Show the tokens that the model sees of texts: prompt, special tokens and cuts included.

    TEXTS are the arguments, or the lines of standard input (also as -), or a --file. Each line of the output is a JSON
    object with the text's "index" (counted from 0), "n_tokens", "n_original" (before it was cut), "truncated",
    "token_ids" and "tokens", the latter as the original vocabulary spells them. The model's weights are not loaded.
    """
    _check(prompts, asked)
    tokens = asked.open()
    n_texts = n_truncated = 0
    for index, encoding in enumerate(_encodings(tokens, source.read(), prompts, asked, truncate)):
        for line in _readable(tokens, index, encoding) if pretty else [_as_json(tokens, index, encoding)]:
            click.echo(line)
        n_texts += 1
        n_truncated += encoding.truncated
    if n_texts == 0:
        note("the input holds no texts")
    if n_truncated:
        cut = f"{n_truncated} of {n_texts} texts {'was' if n_truncated == 1 else 'were'} cut"
        note(f"{cut} to {tokens.info.max_tokens} tokens; --truncate error refuses instead")


@click.command(
    name="count-tokens",
    epilog="""\b
Examples:
  edge-embed count-tokens "a text" "another text"
  edge-embed count-tokens -f corpus.jsonl --total
  edge-embed count-tokens -m qwen3-embedding-0.6b --query -f queries.txt | sort -n | tail -1
""",
)
@text_source
@click.option("--total", is_flag=True, help="One number: the tokens of all texts together.")
@prompt_options
@_token_options
def count_tokens(source: TextSource, prompts: PromptOptions, asked: TokenOptions, total: bool) -> None:
    """Count the tokens of texts: a number a line, in their order.

    TEXTS are the arguments, or the lines of standard input (also as -), or a --file. Prompt and special tokens are
    counted, and nothing is cut: how many texts are longer than the model takes is said on standard error. The model's
    weights are not loaded.
    """
    _check(prompts, asked)
    tokens = asked.open()
    limit = tokens.info.max_tokens
    n_texts = n_tokens = n_long = 0
    for counts in _counted(tokens, source.read(), prompts, asked):
        if not total:
            click.echo("\n".join(map(str, counts)))
        n_texts += len(counts)
        n_tokens += sum(counts)
        n_long += sum(count > limit for count in counts)
    if total:
        click.echo(str(n_tokens))
    if n_texts == 0:
        note("the input holds no texts")
    if n_long:
        long = f"{n_long} of {n_texts} texts {'has' if n_long == 1 else 'have'} more than {limit} tokens"
        note(f"{long}, which is the most that the model takes; the rest of {'it' if n_long == 1 else 'them'} is cut")


def _check(prompts: PromptOptions, asked: TokenOptions) -> None:
    if asked.pair_with is None:
        return
    if prompts.prompt is not None or prompts.prompt_name is not None or prompts.role is not None:
        raise click.UsageError("--pair-with is for rerankers, which have no prompts but an --instruction")
    if asked.pooling is not None:
        raise click.UsageError("--pair-with is for rerankers, which pool in a way of their own")


def _encodings(
    tokens: Tokens, texts: Iterable[str], prompts: PromptOptions, asked: TokenOptions, truncate: Truncate
) -> Iterator[Encoding]:
    if asked.pair_with is not None:
        for index, text in enumerate(texts):
            yield tokens.encode_pair(
                asked.pair_with, text, instruction=prompts.instruction, truncate=truncate, index=index
            )
        return
    prefix = _prefix(tokens, prompts)
    for index, text in enumerate(texts):
        yield tokens.encode(text, prefix=prefix, truncate=truncate, index=index)


def _counted(tokens: Tokens, texts: Iterator[str], prompts: PromptOptions, asked: TokenOptions) -> Iterator[list[int]]:
    """Tokens of each text, so many texts at a time as keep memory small."""
    if asked.pair_with is not None:
        for encoding in _encodings(tokens, texts, prompts, asked, "right"):
            yield [encoding.n_original]
        return
    prefix, first = _prefix(tokens, prompts), 0
    while step := list(islice(texts, AT_ONCE)):
        yield tokens.count(step, prefix=prefix, first=first)
        first += len(step)


def _prefix(tokens: Tokens, prompts: PromptOptions) -> str:
    return tokens.prefix(
        prompt=prompts.prompt, prompt_name=prompts.prompt_name, instruction=prompts.instruction, role=prompts.role
    )


def _as_json(tokens: Tokens, index: int, encoding: Encoding) -> str:
    found = {
        "index": index,
        "n_tokens": encoding.n_tokens,
        "n_original": encoding.n_original,
        "truncated": encoding.truncated,
        "token_ids": encoding.token_ids.tolist(),
        "tokens": [piece.token for piece in tokens.pieces(encoding)],
    }
    return json.dumps(found, ensure_ascii=False)


def _readable(tokens: Tokens, index: int, encoding: Encoding) -> Iterator[str]:
    """A heading, and a line for each token: its id, what it stands for, and whether it is a special one."""
    if index:
        yield ""
    cut = f", cut from {encoding.n_original}" if encoding.truncated else ""
    yield style(f"text {index}: {encoding.n_tokens} token{'' if encoding.n_tokens == 1 else 's'}{cut}", bold=True)
    digits = len(str(tokens.info.n_vocab - 1))
    for piece in tokens.pieces(encoding):
        token_id = style(f"{piece.token_id:>{digits}}", dim=True)
        yield f"{token_id}  {style(piece.shown, fg='cyan')}  special" if piece.special else f"{token_id}  {piece.shown}"
