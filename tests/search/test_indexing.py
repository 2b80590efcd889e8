"""An update embeds what is new, removes what is gone, and leaves the same rows whenever it was ended before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_embed import Embedder
from edge_embed.errors import DatabaseFileError
from edge_embed.search.database import Database
from edge_embed.search.indexing import Indexer
from edge_embed.search.scan import Rules, root_of
from edge_embed.testing import FakeEngine, fake_embedder
from tests.search.making import FAKE_RECORD, docx_bytes, pdf_bytes, rows_of, texts_of

OLD_NS = 1_600_000_000_000_000_000


def write(path: Path, text: str | bytes, *, age: int = 0) -> Path:
    """A file that was changed long ago, so that its time of change can be trusted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    os.utime(path, ns=(OLD_NS + age, OLD_NS + age))
    return path


def test_files_become_rows(indexer: Indexer, database: Database, folder: Path) -> None:
    write(folder / "a.md", "# Bees\n\nThey fly.\n")
    write(folder / "sub" / "b.py", "def f():\n    return 1\n")
    report = indexer.update([root_of(folder)])
    assert (2, 2, 0, 2, 2, ()) == (
        report.n_files, report.n_updated, report.n_removed, report.n_chunks, report.n_embedded, report.skipped,
    )  # fmt: skip
    assert [
        ("a.md", "markdown", "Bees", "Bees\nThey fly.", 3),
        ("b.py", "code", "f", "f\ndef f():\n    return 1", 1),
    ] == [(Path(row[0]).name, row[1], row[2], row[3], row[6]) for row in rows_of(database)]


def test_only_the_file_that_changed_is_embedded(
    indexer: Indexer, database: Database, engine: FakeEngine, folder: Path
) -> None:
    for name in "abc":
        write(folder / f"{name}.txt", f"text {name}")
    indexer.update([root_of(folder)])
    engine.batches.clear()
    write(folder / "b.txt", "another text", age=1)
    report = indexer.update([root_of(folder)])
    assert ["another text"] == texts_of(engine)
    assert (1, 0, 1) == (report.n_updated, report.n_removed, report.n_embedded)
    assert ["another text", "text a", "text c"] == sorted(row[3] for row in rows_of(database))


def test_nothing_is_embedded_where_nothing_changed_but_times(
    indexer: Indexer, engine: FakeEngine, folder: Path
) -> None:
    write(folder / "a.txt", "text")
    indexer.update([root_of(folder)])
    engine.batches.clear()
    assert (0, 0) == (indexer.update([root_of(folder)]).n_updated, len(engine.batches))
    write(folder / "a.txt", "text", age=5)
    assert (0, 0) == (indexer.update([root_of(folder)]).n_updated, len(engine.batches))


def test_a_change_of_the_same_size_right_behind_another_is_seen(
    indexer: Indexer, database: Database, folder: Path
) -> None:
    path = folder / "a.txt"
    path.write_text("one")
    times = path.stat()
    indexer.update([root_of(folder)])
    path.write_text("two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # within one tick of a coarse clock
    assert 1 == indexer.update([root_of(folder)]).n_updated
    assert ["two"] == [row[3] for row in rows_of(database)]


def test_what_is_deleted_goes_and_other_folders_stay(indexer: Indexer, database: Database, tmp_path: Path) -> None:
    for name in ("one/a.txt", "one/sub/b.txt", "one-more/c.txt"):
        write(tmp_path / name, name)
    indexer.update([root_of(tmp_path / "one"), root_of(tmp_path / "one-more")])
    (tmp_path / "one" / "sub" / "b.txt").unlink()
    report = indexer.update([root_of(tmp_path / "one")])
    assert (1, 1, 2) == (report.n_files, report.n_removed, report.n_chunks)
    assert ["one-more/c.txt", "one/a.txt"] == sorted(row[3] for row in rows_of(database))


def test_what_cannot_be_looked_into_now_stays(
    indexer: Indexer, database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "closed" / "a.txt", "text")
    indexer.update([root_of(folder)])
    real = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr("os.scandir", refuse)
    report = indexer.update([root_of(folder)])
    assert (0, 1) == (report.n_removed, database.count())
    assert ["cannot be looked into: Permission denied"] == [one.reason for one in report.skipped]


def test_hostile_files_are_named_and_the_rest_is_indexed(indexer: Indexer, database: Database, folder: Path) -> None:
    write(folder / "good.txt", "good text")
    write(folder / "empty.txt", "")
    write(folder / "latin.txt", "café".encode("latin-1"))
    write(folder / "cut.pdf", pdf_bytes("page")[:150])
    write(folder / "cut.docx", docx_bytes()[:-100])
    write(folder / "binary.md", bytes(range(256)))
    write(folder / "not.ipynb", "{")
    with (folder / "line.txt").open("wb") as file:
        file.truncate(1 << 30)
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.txt")
    expected = {"latin.txt", "cut.pdf", "cut.docx", "binary.md", "not.ipynb", "line.txt", "loop", "pipe.txt"}
    for _ in range(2):  # the second time without reading them again
        report = indexer.update([root_of(folder)])
        assert expected == {Path(one.path).name for one in report.skipped}
        assert all(one.reason for one in report.skipped)
        assert (2, 1) == (report.n_files, database.count())


def test_a_file_that_breaks_loses_its_rows_and_one_that_cannot_be_opened_keeps_them(
    indexer: Indexer, database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_embed.search.extract import ExtractError
    from edge_embed.search.extract.worker import Extractor

    path = write(folder / "a.txt", "text")
    indexer.update([root_of(folder)])
    write(path, "longer text")
    with monkeypatch.context() as patch:

        def refuse(*_: object) -> None:
            raise ExtractError("cannot be read: Permission denied")

        patch.setattr(Extractor, "read", refuse)
        assert ["cannot be read: Permission denied"] == [
            one.reason for one in indexer.update([root_of(folder)]).skipped
        ]
    assert 1 == database.count()
    write(path, b"\xff" * 20)
    assert 1 == len(indexer.update([root_of(folder)]).skipped)
    assert 0 == database.count()


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    """The superuser may read everything, so the child of a test that runs as one gives its rights up."""
    import subprocess
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "closed.txt"
        path.write_text("secret")
        path.chmod(0)
        Path(name).chmod(0o755)
        code = (
            "import os, sys\n"
            "from edge_embed.search.extract import worker, text\n"
            "if os.geteuid() == 0: os.seteuid(65534)\n"
            "print(worker._answer({'path': sys.argv[1], 'kind': 'text', 'known': '', 'max_bytes': 100}))"
        )
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "{'problem': 'cannot be read: Permission denied'}" == done.stdout.strip()


def test_a_chunk_that_overflows_is_left_out_and_named(tmp_path: Path, folder: Path) -> None:
    engine = FakeEngine(poison=3 + ord("~"))
    write(folder / "a.txt", "fine")
    write(folder / "b.txt", "bad ~ text")
    with Database(tmp_path / "db", FAKE_RECORD) as database:
        report = Indexer(database, fake_embedder(engine)).update([root_of(folder)])
        assert [("b.txt", "1 of 1 chunks make the model overflow, and are left out")] == [
            (Path(one.path).name, one.reason) for one in report.skipped
        ]
        assert ["fine"] == [row[3] for row in rows_of(database)]


def test_paths_of_any_script_are_found_changed_and_removed(indexer: Indexer, database: Database, folder: Path) -> None:
    path = write(folder / "Übung" / "it's 日本 \U0001f41d.txt", "eins")
    indexer.update([root_of(folder)])
    write(path, "zwei!")
    assert 1 == indexer.update([root_of(folder)]).n_updated
    assert [(str(path.resolve()), "zwei!")] == [(row[0], row[3]) for row in rows_of(database)]
    path.unlink()
    assert (1, 0) == (indexer.update([root_of(folder)]).n_removed, database.count())


def test_the_database_itself_is_not_read(folder: Path, embedder: Embedder) -> None:
    write(folder / "a.txt", "text")
    with Database(folder / "db", FAKE_RECORD) as database:
        write(folder / "db" / "note.txt", "inside")
        assert 1 == Indexer(database, embedder).update([root_of(folder)]).n_files


def test_two_writers_do_not_meet(indexer: Indexer, database: Database, folder: Path) -> None:
    with (
        database.writing(),
        Database(database.path) as second,
        pytest.raises(DatabaseFileError, match="another process is writing"),
    ):
        Indexer(second, fake_embedder()).update([root_of(folder)])


class StopError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("step", ["add", "record_files", "remove"])
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("before", [True, False])
def test_an_end_at_any_step_loses_and_doubles_nothing(
    tmp_path: Path, folder: Path, step: str, place: int, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps are the database's commits; a process may end before or behind each of them."""
    monkeypatch.setattr("edge_embed.search.indexing._FIRST", 3)
    monkeypatch.setattr("edge_embed.search.indexing._MOST", 3)
    for number in range(4):
        write(folder / f"{number}.txt", f"text {number}")
    write(folder / "long.txt", "\n\n".join(f"A paragraph that is number {number}." for number in range(30)))
    root = [root_of(folder)]

    def index(path: Path) -> None:
        with Database(path, FAKE_RECORD) as database:
            Indexer(database, fake_embedder()).update(root)

    index(tmp_path / "interrupted")
    write(folder / "1.txt", "another")
    write(folder / "long.txt", "\n\n".join(f"A paragraph which is number {number}." for number in range(25)))
    write(folder / "new.txt", "a new one")
    (folder / "2.txt").unlink()
    calls = 0
    real = getattr(Database, step)

    def stop(self: Database, *arguments: object) -> None:
        nonlocal calls
        calls += 1
        if before and calls == place + 1:
            raise StopError
        real(self, *arguments)
        if calls == place + 1:
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(Database, step, stop)
        with pytest.raises(StopError):
            index(tmp_path / "interrupted")
    index(tmp_path / "interrupted")
    index(tmp_path / "undisturbed")
    with Database(tmp_path / "interrupted") as one, Database(tmp_path / "undisturbed") as other:
        assert rows_of(one) == rows_of(other)
        assert one.files() == other.files()


def test_a_run_that_goes_on_embeds_only_what_is_missing(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_embed.search.indexing._FIRST", 4)
    monkeypatch.setattr("edge_embed.search.indexing._MOST", 4)
    write(folder / "long.txt", "\n\n".join(f"A paragraph that is number {number}." for number in range(30)))
    real = Database.add
    added = 0

    def add(self: Database, rows: list[object], *arguments: object) -> None:
        nonlocal added
        real(self, rows, *arguments)  # type: ignore[arg-type]
        added += len(rows)
        if added >= 12:
            raise StopError

    with Database(tmp_path / "db", FAKE_RECORD) as database:
        with monkeypatch.context() as patch:
            patch.setattr(Database, "add", add)
            with pytest.raises(StopError):
                Indexer(database, fake_embedder()).update([root_of(folder)])
        report = Indexer(database, fake_embedder()).update([root_of(folder)])
        assert 12 == report.n_chunks - report.n_embedded
        assert len({row[5] for row in rows_of(database)}) <= report.n_chunks


def test_rules_that_change_change_what_is_there(database: Database, embedder: Embedder, folder: Path) -> None:
    write(folder / "a.txt", "a")
    write(folder / "drafts" / "b.txt", "b")
    Indexer(database, embedder).update([root_of(folder)])
    report = Indexer(database, embedder, Rules(exclude=("drafts/",))).update([root_of(folder)])
    assert (1, 1) == (report.n_removed, database.count())
