"""Every format gives its text, under its headings, with lines and pages; what cannot be read says why."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from edge_embed.search.extract import ExtractError, docx, kind_of, reader_of
from edge_embed.search.extract.worker import Extractor
from edge_embed.search.types import KINDS, Kind, Section
from tests.search.making import docx_bytes, pdf_bytes


def sections(name: str, data: bytes | str) -> list[Section]:
    kind = kind_of(name)
    assert kind is not None
    return list(reader_of(kind)(data if isinstance(data, bytes) else data.encode(), name))


def test_every_kind_has_a_reader() -> None:
    assert all(callable(reader_of(kind)) for kind in KINDS)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.TXT", "text"), ("README", "text"), ("x.ipynb", "notebook"), ("Makefile", "code"), ("a.b.py", "code")],
)
def test_a_name_says_how_a_file_is_read(name: str, kind: Kind) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize("name", ["a.png", "data.json", "noextension", ".md", "x.zip"])
def test_of_other_names_nothing_is_assumed(name: str) -> None:
    assert kind_of(name) is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_utf_8_or_what_its_mark_says(encoding: str) -> None:
    assert [Section("naïve\ncafé 日本", line=1)] == sections("a.txt", "naïve\r\ncafé 日本".encode(encoding))


def test_another_encoding_is_refused_with_the_byte() -> None:
    with pytest.raises(ExtractError, match="byte 4 is 0xe9"):
        sections("a.txt", "café".encode("latin-1"))


@pytest.mark.parametrize("data", [b"\x00\x01\x02" * 100, b"abc\xff\x00\x00", bytes(range(1, 32)) * 20])
def test_bytes_that_are_no_text_are_refused(data: bytes) -> None:
    with pytest.raises(ExtractError, match="binary"):
        sections("a.txt", data)


def test_markdown_is_cut_at_its_headings_not_at_marks_in_code() -> None:
    source = "intro\n\n# A `b` *c*\n\none\n\n```sh\n# no heading\n```\n\nUnder\n-----\ntwo\n\n# D\n\nthree\n"
    assert [
        Section("intro", (), 1),
        Section("one\n\n```sh\n# no heading\n```", ("A b c",), 5),
        Section("two", ("A b c", "Under"), 13),
        Section("three", ("D",), 17),
    ] == sections("a.md", source)


def test_front_matter_is_no_heading() -> None:
    found = sections("a.md", "---\ntitle: The title\ntags: x\n---\n\n# One\n\ntext\n")
    assert [Section("title: The title\ntags: x", ("The title",), 1), Section("text", ("One",), 8)] == found


def test_html_is_what_a_reader_sees() -> None:
    page = """<html><head><title>Site</title><style>p {}</style></head><body><nav>menu</nav>
    <h1>Site</h1><p>A <b>bold</b>ly<br>cut &amp; pasted&nbsp;line.</p><script>x = 1</script>
    <h2>Sub <i>part</i></h2><ul><li>one<li>two</ul><table><tr><td>a</td><td>b</td></tr></table></body></html>"""
    assert [
        Section("A boldly\ncut & pasted line.", ("Site",)),
        Section("one\n\ntwo\n\na b", ("Site", "Sub part")),
    ] == sections("a.html", page)


def test_html_is_read_in_the_encoding_that_it_declares() -> None:
    page = '<html><head><meta charset="iso-8859-1"></head><body><p>café</p></body></html>'
    assert [Section("café")] == sections("a.html", page.encode("latin-1"))


def test_a_page_that_nests_deeply_is_read() -> None:
    assert "deep" in sections("a.html", "<div>" * 200 + "deep" + "</div>" * 200)[0].text


def test_pdf_gives_pages_under_its_title() -> None:
    found = sections("a.pdf", pdf_bytes("the first page", "the second", title="A paper"))
    assert [Section("the first page", ("A paper",), page=1), Section("the second", ("A paper",), page=2)] == found


@pytest.mark.parametrize("cut", [0, 9, 200, 400])
def test_a_truncated_pdf_is_refused(cut: int) -> None:
    with pytest.raises(ExtractError, match=r"no sound PDF|holds no text"):
        sections("a.pdf", pdf_bytes("some text")[:cut])


def test_a_pdf_of_pictures_is_refused() -> None:
    with pytest.raises(ExtractError, match="holds no text"):
        sections("a.pdf", pdf_bytes(""))


def test_word_documents_have_headings_paragraphs_and_tables() -> None:
    assert [Section("They navigate by the sun.\n\nhive | A7", ("Report", "Bees"))] == sections("a.docx", docx_bytes())


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04junk", docx_bytes()[:-200], b"\xd0\xcf\x11\xe0" + bytes(100)])
def test_a_broken_or_encrypted_word_document_is_refused(data: bytes) -> None:
    with pytest.raises(ExtractError, match=r"sound Word document|encrypted"):
        sections("a.docx", data)


def test_a_zip_bomb_is_refused_before_it_is_unpacked() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        with archive.open("word/document.xml", "w", force_zip64=True) as part:
            for _ in range((docx.MAX_UNPACKED >> 20) + 1):
                part.write(bytes(1 << 20))
    assert len(out.getvalue()) < 1 << 20
    with pytest.raises(ExtractError, match="becomes 257 MiB"):
        sections("bomb.docx", out.getvalue())


def message(subject: str, text: str, html: str = "") -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "a@example.org", "b@example.org", subject
    made.set_content(text)
    if html:
        made.add_alternative(html, subtype="html")
        made.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="bill.pdf")
    return made


def test_a_message_is_its_plain_text_under_its_subject() -> None:
    (found,) = sections("a.eml", message("Größe", "Hello there.", "<p>other</p>").as_bytes())
    assert ("Größe",) == found.heading
    assert "From: a@example.org" in found.text
    assert "bill.pdf" in found.text
    assert found.text.endswith("Hello there.")


def test_a_message_of_html_alone_is_read_as_a_page() -> None:
    raw = b"From: a@b.c\nSubject: x\nContent-Type: text/html; charset=utf-8\n\n<h1>Head</h1><p>Body</p>"
    assert Section("Body", ("x", "Head")) in sections("a.eml", raw)


def test_a_mailbox_is_its_messages() -> None:
    box = b"".join(
        b"From x Thu Jan  1 00:00:00 2026\n" + message(s, "text " + s).as_bytes() + b"\n" for s in ("1", "2")
    )
    assert [("1",), ("2",)] == [section.heading for section in sections("a.mbox", box)]


@pytest.mark.parametrize(("name", "data"), [("a.eml", b"no header at all"), ("a.mbox", b"Subject: x\n\ny")])
def test_what_is_no_mail_is_refused(name: str, data: bytes) -> None:
    with pytest.raises(ExtractError, match="is no "):
        sections(name, data)


def test_a_notebook_has_code_under_the_headings_of_its_text() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Load\n", "\n", "The data."]},
        {"cell_type": "code", "source": "x = 1", "outputs": [{"text": "noise"}]},
        {"cell_type": "markdown", "source": "## Plot"},
        {"cell_type": "code", "source": "plot(x)"},
    ]
    assert [
        Section("The data.", ("Load",)),
        Section("x = 1", ("Load",)),
        Section("plot(x)", ("Load", "Plot")),
    ] == sections("a.ipynb", json.dumps({"nbformat": 4, "cells": cells}))


@pytest.mark.parametrize("data", ["", "[]", "{}", '{"cells": [1]}', "[" * 100_000])
def test_what_is_no_notebook_is_refused(data: str) -> None:
    with pytest.raises(ExtractError, match="no notebook"):
        sections("a.ipynb", data)


SOURCES = {
    "a.py": ("import x\n\n@cached\ndef f():\n    pass\n\nclass A:\n    y = 1\n    def g(self):\n        pass\n",
             [((), 1), (("f",), 3), (("A",), 7), (("A", "g"), 9)]),
    "a.cpp": ("namespace n {\n// Adds.\nint *add(int a) { return 0; }\n}\nvoid A::go() {}\n",
              [(("n",), 1), (("n", "add"), 2), (("A::go",), 5)]),
    "a.go": ("package p\n\ntype T struct { a int }\n\nfunc (t T) M() {}\n", [((), 1), (("T",), 3), (("M",), 5)]),
    "a.rs": ("impl Foo {\n    fn bar() {}\n}\n", [(("Foo",), 1), (("Foo", "bar"), 2)]),
    "a.ts": ("export class A {\n  f(): void {}\n}\nexport function g() {}\n",
             [(("A",), 1), (("A", "f"), 2), (("g",), 4)]),
    "a.java": ("class A {\n  int f() { return 1; }\n}\n", [(("A",), 1), (("A", "f"), 2)]),
    "a.lua": ("function f() end\n", [((), 1)]),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_code_is_cut_at_functions_and_classes(name: str) -> None:
    source, expected = SOURCES[name]
    assert expected == [(section.heading, section.line) for section in sections(name, source)]


def test_unfinished_code_loses_nothing() -> None:
    source = "def f(:\n  (((\nclass A\n  def g(self): return 'ü'\n"
    text = "".join(section.text for section in sections("a.py", source))
    assert {"f", "A", "g", "ü"} <= set(text)


@pytest.fixture
def extractor() -> Iterator[Extractor]:
    with Extractor(max_bytes=1_000_000, seconds=20) as made:
        yield made


def test_the_child_gives_what_the_reader_gives(extractor: Extractor, tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("# A\n\nb\x00 \U0001f41d\n", encoding="utf-8")
    found = extractor.read(str(path), "markdown")
    assert (Section("b \U0001f41d", ("A",), 3),) == found.sections
    assert extractor.read(str(path), "markdown", found.digest).known


def test_the_child_names_what_it_cannot_read(extractor: Extractor, tmp_path: Path) -> None:
    for name, content, reason in [("no.txt", None, "cannot be read"), ("big.txt", b"x" * 1_000_001, "is larger than")]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ExtractError, match=reason):
            extractor.read(str(tmp_path / name), "text")


def test_a_child_that_hangs_or_dies_costs_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "edge_hostile.py").write_text(
        "import os, time\nfrom edge_embed.search.extract import worker, text\nread = text.read\n"
        "def hostile(data, name):\n"
        "    if b'hang' in data: time.sleep(60)\n"
        "    if b'die' in data: os.kill(os.getpid(), 11)\n"
        "    if b'eat' in data: bytearray(1 << 40)\n"
        "    return read(data, name)\n"
        "text.read = hostile\nmain = worker.main\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("edge_embed.search.extract.worker._MODULE", "edge_hostile")
    paths = {}
    for word in ("hang", "die", "eat", "well"):
        paths[word] = tmp_path / f"{word}.txt"
        paths[word].write_text(word)
    with Extractor(max_bytes=1000, seconds=3) as extractor:
        reasons = {"hang": "longer than 3 s", "die": "ends the program", "eat": "of memory"}
        for word, reason in reasons.items():
            with pytest.raises(ExtractError, match=reason):
                extractor.read(str(paths[word]), "text")
        assert (Section("well", line=1),) == extractor.read(str(paths["well"]), "text").sections
