"""``edge-embed classify``: labels for texts, learned from a few examples of each."""

from __future__ import annotations

from pathlib import Path

import click

from edge_embed.cli.corpus import WIDTH, ResultOptions, result_options, seed_option, vectors_option, working
from edge_embed.cli.options import EncodeOptions, ModelOptions, TextSource, encode_options, model_options, text_source
from edge_embed.cli.terminal import note, shorten
from edge_embed.errors import InputFileError


@click.command(
    epilog="""\b
Examples:
  edge-embed classify --examples labelled.csv -f inbox.jsonl --field body -o labels.jsonl
  edge-embed classify --examples labelled.csv --table "My parcel has not come." "How do I pay?"
"""
)
@text_source
@click.option(
    "--examples",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    metavar="FILE",
    help="Texts with their labels: .csv, .tsv or .jsonl, some of each label.",
)
@click.option("--examples-field", metavar="NAME", default="text", show_default=True, help="Where their text is.")
@click.option("--label-field", metavar="NAME", default="label", show_default=True, help="Where their label is.")
@click.option("--all-scores", is_flag=True, help="The probability of every label.")
@seed_option
@vectors_option
@result_options
@encode_options
@model_options
def classify(
    source: TextSource,
    examples: Path,
    examples_field: str,
    label_field: str,
    all_scores: bool,
    seed: int,
    vectors: Path | None,
    result: ResultOptions,
    encoding: EncodeOptions,
    engine: ModelOptions,
) -> None:
    """Give texts the labels that examples have.

    TEXTS are the arguments, or the lines of standard input (also as -), or a --file. Each line of the output is a JSON
    object with the text's "index" (counted from 0), its "label", the probability of that ("score") and the "text".
    How well the examples label each other is said on stderr. Needs scikit-learn: pip install 'edge-embed[corpus]'.
    """
    from edge_embed.corpus.labels import learned

    shown, labels = (list(TextSource((), str(examples), None, field).read()) for field in (examples_field, label_field))
    if any(not label.strip() for label in labels):
        raise InputFileError(f"{examples}: a label is empty", hint="give every example a label, or leave it out")
    texts = list(source.read())
    with working(engine, encoding, result) as embedded:
        classifier = learned(embedded.of(shown), labels, seed=seed)
        found = classifier.probabilities(embedded.of(texts, vectors))
        best = found.argmax(axis=1).tolist() if len(texts) else []
        records = (
            {
                "index": i,
                "label": classifier.labels[best[i]],
                "score": float(found[i, best[i]]),
                **({"scores": dict(zip(classifier.labels, found[i].tolist(), strict=True))} if all_scores else {}),
                "text": text,
            }
            for i, text in enumerate(texts)
        )
        result.say(
            records,
            ("label", "score", "text"),
            (
                (classifier.labels[best[i]], f"{found[i, best[i]]:.3f}", shorten(text, 2 * WIDTH))
                for i, text in enumerate(texts)
            ),
        )
    known = ", ".join(f"{label} ({n})" for label, n in zip(classifier.labels, classifier.counts, strict=True))
    if classifier.accuracy is None:
        note(f"learned {known}; a label with one example cannot be checked")
    else:
        note(f"learned {known}; of the examples themselves {classifier.accuracy:.0%} are labelled right by the others")
