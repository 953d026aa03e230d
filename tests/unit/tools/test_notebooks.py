"""`run` executes the series only, and keeps the last copies until it has new ones."""

import nbformat
import pytest

from tools import notebooks

FOREIGN = {"kernelspec": {"name": "ir", "display_name": "R", "language": "R"}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A series of two notebooks; executing one takes no kernel here."""
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(notebooks, "BUILD", tmp_path / "build")
    monkeypatch.setattr(notebooks, "summary", lambda: "the summary")
    monkeypatch.setattr(notebooks, "_is_scored_data", lambda: True)
    monkeypatch.setattr(notebooks.pretrained, "data_root", lambda: tmp_path)  # no cohort is made
    monkeypatch.setattr(notebooks, "execute", copy)
    (tmp_path / "notebooks").mkdir()
    for name in ("01_first.ipynb", "02_second.ipynb"):
        write(tmp_path / "notebooks" / name)
    return tmp_path / "notebooks"


def copy(path, output, tolerant):
    output.write_bytes(path.read_bytes())
    return nbformat.read(path, as_version=4)


def write(path, **metadata):
    cells = [nbformat.v4.new_code_cell("1")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)


def test_copies_and_other_files_are_passed_over(folder):
    for name in ("01_first-Copy1.ipynb", "2024 notes.ipynb", "01_first.md", "Untitled.ipynb"):
        (folder / name).write_text("not of the series")
    notebooks.run()
    copies = sorted(path.name for path in (folder.parent / "build" / "notebooks").iterdir())
    assert copies == ["01_first.ipynb", "02_second.ipynb"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"cells": [], "nbformat": 4}', b"\xff\xfe\x00", b"null"]
)
def test_a_broken_notebook_ends_the_run_before_it_starts(folder, content, refused):
    (folder / "02_second.ipynb").write_bytes(content)
    refused(notebooks.run, "02_second.ipynb: not a notebook in Python", "restore it with git")


def test_a_notebook_in_another_language_is_named(folder, refused):
    write(folder / "08_mine.ipynb", **FOREIGN)
    refused(notebooks.run, "08_mine.ipynb", "language: R", "move it away")


def test_the_last_copies_stay_until_there_are_new_ones(folder, monkeypatch):
    last = folder.parent / "build" / "notebooks" / "99_last.ipynb"
    last.parent.mkdir(parents=True)
    last.write_text("a copy of the last run")
    execute = notebooks.execute

    def stop_at_the_second(path, *words, **options):
        if path.name.startswith("02"):
            raise SystemExit("02_second.ipynb stopped")
        return execute(path, *words, **options)

    monkeypatch.setattr(notebooks, "execute", stop_at_the_second)
    with pytest.raises(SystemExit):
        notebooks.run()
    assert [path.name for path in last.parent.iterdir()] == ["99_last.ipynb"]
    monkeypatch.setattr(notebooks, "execute", execute)
    notebooks.run()
    assert not last.exists() and (last.parent / "02_second.ipynb").exists()
    assert sorted(path.name for path in (folder.parent / "build").iterdir()) == [
        "figures",
        "notebooks",
        "unfinished",
    ]


def test_a_folder_that_cannot_be_written_is_the_reason(
    folder, open_folder, as_another_user, monkeypatch
):
    monkeypatch.setattr(notebooks, "BUILD", open_folder)
    monkeypatch.setattr(notebooks, "series_in", lambda folder: [])
    for kind in ("notebooks", "figures"):
        (open_folder / "unfinished" / kind).mkdir(parents=True)
    (open_folder / "unfinished").chmod(0o555)
    with as_another_user(), pytest.raises(PermissionError):
        notebooks.run()
