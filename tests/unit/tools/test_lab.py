"""`make lab` copies what is missing for a student, and never what a student has."""

import json
import platform

import nbformat
import pytest

from oasis_helpers.data import REPOSITORY
from tools import lab


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of one notebook with a picture and a solution; the student's folder beside it."""
    monkeypatch.setattr(lab, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(lab, "MINE", tmp_path / "my_notebooks")
    for name in ("01_first.ipynb", "solutions/01_first.ipynb", ".ipynb_checkpoints/x.ipynb"):
        write(tmp_path / "notebooks" / name, "1")
    (tmp_path / "notebooks" / "images").mkdir()
    (tmp_path / "notebooks" / "images" / "one.svg").write_text("<svg/>")
    return tmp_path / "notebooks"


def write(path, code):
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = {"kernelspec": {"name": "python3", "display_name": "another name"}}
    output = nbformat.v4.new_output("stream", text="the answer\n")
    cells = [nbformat.v4.new_code_cell(code, id="a", outputs=[output], execution_count=1)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)


def files_in(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*g*")} | {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.ipynb")
    }


def test_everything_is_copied_once(course):
    assert lab.copy_missing() == []
    copies = files_in(lab.MINE)
    names = {"01_first.ipynb", "solutions/01_first.ipynb", "images/one.svg"}
    assert {path.as_posix() for path in copies} == names
    assert lab.copy_missing() == [] and files_in(lab.MINE) == copies


def test_copies_have_no_outputs_and_originals_keep_theirs(course):
    """Solutions keep theirs: they are read after the exercise."""
    lab.copy_missing()
    cells = {
        (folder.name, name): nbformat.read(folder / name, as_version=4).cells[0]
        for folder in (course, lab.MINE)
        for name in ("01_first.ipynb", "solutions/01_first.ipynb")
    }
    copy = cells.pop(("my_notebooks", "01_first.ipynb"))
    assert copy.outputs == [] and copy.execution_count is None
    assert {cell.outputs[0].text for cell in cells.values()} == {"the answer\n"}


def test_what_a_student_has_stays(course):
    lab.copy_missing()
    write(lab.MINE / "01_first.ipynb", "2")
    (lab.MINE / "images" / "one.svg").write_text("mine")
    (lab.MINE / "solutions" / "01_first.ipynb").write_text("no notebook any more")
    before = files_in(lab.MINE)
    write(course / "01_first.ipynb", "3")
    write(course / "02_second.ipynb", "4")
    assert lab.copy_missing() == []  # these copies do not say what they were made from
    after = files_in(lab.MINE)
    assert {path: after[path] for path in before} == before and len(after) == len(before) + 1


def test_a_copy_of_an_older_version_is_named(course):
    lab.copy_missing()
    write(course / "01_first.ipynb", "3")
    assert lab.copy_missing() == ["01_first.ipynb"]
    (lab.MINE / "01_first.ipynb").unlink()
    assert lab.copy_missing() == []


def test_copies_name_this_kernel_as_jupyterlab_does(course):
    lab.copy_missing()
    notebook = nbformat.read(lab.MINE / "01_first.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.display_name == "Python 3 (ipykernel)"
    assert notebook.metadata.language_info.version == platform.python_version()
    original = json.loads((course / "01_first.ipynb").read_text())
    assert notebook.cells[0].source == "".join(original["cells"][0]["source"])


def test_git_ignores_the_copies_and_links_work_from_there():
    assert f"{lab.MINE.name}*/" in (REPOSITORY / ".gitignore").read_text().splitlines()
    assert lab.MINE.parent == lab.NOTEBOOKS.parent == REPOSITORY


def test_pages_are_copied_beside_a_read_only_course(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "faq.md").write_text("an older one")
    lab.copy_pages(tmp_path)
    for name in ("README.md", "docs/faq.md", "data/weights/oasis1/head.gif"):
        assert (tmp_path / name).read_bytes() == (REPOSITORY / name).read_bytes()
    pages = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in pages) < 2e6, "pages and pictures only"
