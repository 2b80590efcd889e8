"""What the tests of search share: the record of a database, its rows, files of several formats.

Run, it is an indexer that takes its time: ``python -m tests.search.making DB FOLDER``. It says when it begins, so that
a test can end it in the middle.
"""

from __future__ import annotations

import io
import sys
import time
from typing import Any, Final

from edge_embed.cancellation import Cancellation
from edge_embed.search.database import Database
from edge_embed.search.indexing import Indexer
from edge_embed.search.scan import root_of
from edge_embed.search.types import Record
from edge_embed.testing import FakeEngine, fake_embedder
from edge_embed.types import Batch, Float32Array

FAKE_RECORD: Final = Record(
    model=None,
    digest="fake",
    pooling="mean",
    adapter=None,
    projection=None,
    prompt="passage: ",
    query_prompt="query: ",
    dimensions=16,
    short=8,
    chunk_tokens=64,
    overlap=6,
)


def texts_of(engine: FakeEngine) -> list[str]:
    """What the engine was run on, without the prompt and special tokens."""
    found = []
    for batch in engine.batches:
        ids, start = batch.token_ids.tolist(), 0
        for length in batch.lengths.tolist():
            own = ids[start + 1 : start + length - 1]
            found.append(bytes(token - 3 for token in own).decode().removeprefix("passage: "))
            start += length
    return found


def rows_of(database: Database) -> list[tuple[Any, ...]]:
    """Every row, sorted; a row that is there twice is twice in it."""
    table = database._connection.open_table("chunks").to_arrow()
    columns = [name for name in table.schema.names if name != "digest"]
    rows = zip(*(table.column(name).to_pylist() for name in columns), strict=True)
    return sorted(
        (tuple(tuple(value) if isinstance(value, list) else value for value in row) for row in rows), key=repr
    )


def pdf_bytes(*pages: str, title: str = "") -> bytes:
    """A PDF with a line of text on each page, as small as the format allows."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 40 700 Td ({text}) Tj ET"
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        resources = "<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
        about = f"/Parent 2 0 R /MediaBox [0 0 600 800] /Resources {resources}"
        objects.append(f"<< /Type /Page {about} /Contents {len(objects)} 0 R >>")
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    objects.append(f"<< /Title ({title}) >>")
    out, offsets = io.BytesIO(), []
    out.write(b"%PDF-1.4\n")
    for number, content in enumerate(objects, 1):
        offsets.append(out.tell())
        out.write(f"{number} 0 obj\n{content}\nendobj\n".encode())
    start = out.tell()
    out.write(f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode())
    out.write(b"".join(f"{offset:010d} 00000 n \n".encode() for offset in offsets))
    out.write(
        f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R /Info {len(objects)} 0 R >>\n"
        f"startxref\n{start}\n%%EOF\n".encode()
    )
    return out.getvalue()


def docx_bytes() -> bytes:
    """A Word document with headings, a paragraph and a table."""
    from docx import Document

    document = Document()
    document.add_heading("Report", 0)
    document.add_heading("Bees", 1)
    document.add_paragraph("They navigate by the sun.")
    table = document.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "hive", "A7"
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


class SlowEngine(FakeEngine):
    """Takes a while for each batch, as a model does."""

    def decode(self, batch: Batch, stop: Cancellation | None = None) -> Float32Array:
        time.sleep(0.002 * batch.n_seqs)
        return super().decode(batch, stop)


if __name__ == "__main__":
    with Database(sys.argv[1], FAKE_RECORD) as opened:
        print("begins", flush=True)
        print(Indexer(opened, fake_embedder(SlowEngine())).update([root_of(sys.argv[2])]))
