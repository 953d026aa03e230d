"""Notebooks are compared with their stored outputs, and run through on a user's own slices."""

import re
import shutil
import subprocess
import sys

import nbformat
import pytest

from oasis_helpers.data import REPOSITORY
from tools import notebooks

FIRST = REPOSITORY / "notebooks" / "01_data_exploration.ipynb"
SOLUTIONS = sorted((REPOSITORY / "notebooks" / "solutions").glob("*.ipynb"))


def test_a_changed_output_turns_the_run_red(tmp_path, cohort_root):
    """The test of the tests: the first cells of notebook 01 pass; with one digit altered, fail."""
    notebook = nbformat.read(FIRST, as_version=4)
    code = [number for number, cell in enumerate(notebook.cells) if cell.cell_type == "code"][:4]
    notebook.cells = notebook.cells[: code[-1] + 1]
    printed = [
        output
        for cell in notebook.cells
        if "nbval-ignore-output" not in cell.metadata.get("tags", ())
        for output in cell.get("outputs", ())
        if output.get("name") == "stdout"
    ]
    folder = REPOSITORY / "build" / tmp_path.name  # below the root, where conftest.py applies
    folder.mkdir(parents=True)
    try:
        nbformat.write(notebook, folder / "stored.ipynb")
        text = printed[-1].text
        digit = re.search(r"\d(?=\D*$)", text)
        changed = str((int(digit[0]) + 1) % 10)
        printed[-1].text = text[: digit.start()] + changed + text[digit.end() :]
        nbformat.write(notebook, folder / "changed.ipynb")
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--nbval"]
        run = subprocess.run(
            [*command, "--tb=line", "-rf", str(folder)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=300,
        )
    finally:
        shutil.rmtree(folder)
    assert run.returncode == 1 and f"1 failed, {2 * len(code) - 1} passed" in run.stdout, run.stdout
    assert re.findall(r"^FAILED (\S+)::", run.stdout, re.M) == [
        f"build/{tmp_path.name}/changed.ipynb"
    ]


def test_a_run_on_own_slices_continues_after_a_claim_that_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "BUILD", tmp_path)
    cells = [nbformat.v4.new_code_cell(code) for code in ('assert 0, "not here"', "print('on')")]
    path, executed = tmp_path / "claim.ipynb", tmp_path / "executed.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    with pytest.raises(SystemExit, match=r"claim\.ipynb stopped; .*\nnot here"):
        notebooks.execute(path, executed)
    notebooks.execute(path, executed, tolerant=True)
    assert "On these slices a cell stopped: not here" in capsys.readouterr().out
    assert nbformat.read(executed, as_version=4).cells[1].outputs[0].text == "on\n"


@pytest.mark.long
@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_solutions_run_with_their_trainings(path, tmp_path):
    """nbval skips the experiments that train for a minute."""
    notebooks.execute(path, tmp_path / path.name)
