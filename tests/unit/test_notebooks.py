"""The house keeps its promises: pins, README, the notebooks' form, the test of the tests."""

import html
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from jupyter_server.serverapp import ServerApp

from oasis_helpers import __main__ as commands
from oasis_helpers.__main__ import locked_licences, page_of, with_results
from oasis_helpers.data import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb"))
IGNORED = "nbval-ignore-output"
COMPARED_FLOOR = 0.75  # of the cells that print something


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def compared(cell) -> bool:
    """Whether nbval compares something of this cell that says more than a figure's size."""
    texts = [
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for output in cell.outputs
        if output.get("name") != "stderr"
    ]
    says = any(text.strip() and not text.startswith("<Figure") for text in texts)
    return says and IGNORED not in cell.metadata.get("tags", [])


# ------------------------------------------------------------------------------- dependencies


def test_conda_and_pip_pin_the_same_versions():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    assert conda["name"] == "oasis-vqvae"
    pip = next(part["pip"] for part in conda["dependencies"] if isinstance(part, dict))
    assert pip == [*project["dependencies"], "--editable ."]


def test_lock_holds_the_pins_with_hashes_and_names_no_registry():
    lock = (REPOSITORY / "requirements.lock").read_text()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        name_and_version = requirement.split(";")[0].strip()
        assert re.search(rf"^{re.escape(name_and_version)}[ \\;]", lock, re.MULTILINE), requirement
    assert "--hash=sha256:" in lock
    assert not re.search(r"https?://|index-url|find-links", lock)


def test_every_licence_is_known_and_none_is_strong_copyleft():
    """GPL and AGPL would reach into what is built on them; LGPL and MPL stay with their files."""
    found = locked_licences()
    assert len(found) > 100, "of some 130 packages"
    assert not [row for row in found if not row[2] or "unknown" in row[2].lower()]
    strong = re.compile(r"(?<!L)GPL|(?<!Lesser )General Public|SSPL|Commercial|Proprietary", re.I)
    assert not [row for row in found if strong.search(row[2])]
    assert strong.search("GPL-3.0-only") and strong.search("GNU Affero General Public License v3")
    assert not strong.search("LGPL-2.1") and not strong.search("GNU Lesser General Public License")


# ---------------------------------------------------------------------------------- safe defaults


@pytest.mark.parametrize("page", ["Makefile", "README.md", "notebooks/README.md"])
def test_jupyter_listens_to_this_machine_only(page):
    """JupyterLab's own default; no command of ours may open it to the network."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    assert not re.search(r"--(?:\w+\.)?ip\b|0\.0\.0\.0|allow[_-]root|token=|password=", text)
    assert "jupyter lab notebooks" in (REPOSITORY / "Makefile").read_text()
    assert ServerApp().ip == "localhost"


def test_nothing_is_loaded_that_could_carry_code():
    """Arrays without pickle; models through `pretrained.load_model`, in Keras's safe mode, only."""
    for path in (REPOSITORY / "oasis_helpers").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"\bpickle\.|joblib|unsafe_deserialization|safe_mode=False|eval\(", text
        )
        for call in re.findall(r"np\.load\([^)]*\)", text):
            assert "allow_pickle=False" in call, path
        for call in re.findall(r"\bload_model\([^)]*\)", text):
            assert "safe_mode=True" in call, path


# -------------------------------------------------------------------------------------- README


def test_readme_shows_the_scores_of_the_weights():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for mark in ("<!-- results -->", "<!-- /results -->"):
        assert readme.count(mark) == 1
    assert with_results(readme) == readme, "run `make results`"


PAGES = ("README.md", "data/README.md", "notebooks/README.md")
SOLUTIONS = sorted((REPOSITORY / "notebooks" / "solutions").glob("*.ipynb"))


@pytest.mark.parametrize("page", [*(REPOSITORY / page for page in PAGES), *NOTEBOOKS, *SOLUTIONS])
def test_relative_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "\n".join(cell.source for cell in read(page).cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", text) + re.findall(r'src="([^"]+)"', text)
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


# ----------------------------------------------------------------------------------- notebooks


def test_the_series_is_complete():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_data_exploration",
        "02_vqvae_building",
        "03_vqvae_training",
        "04_codebook_analysis",
        "05_pixelcnn_prior",
        "06_generation",
        "07_scaling_out",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_form(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    assert path.stat().st_size < 5 * 2**20, "too large to read or to review"
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "not run top to bottom in a fresh kernel"
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = re.findall(r"^#+ .*", prose, re.M)
    wanted = ["## Objectives", "## Before you start", "## Set-up", "## Parameters", "## Try this"]
    wanted += ["## Exercises", "## Summary", "## References", "## Next"]
    assert headings[0].startswith("# ")
    assert [heading for heading in headings if heading in wanted] == wanted
    time_box = re.search(r"^\*\*Time\*\*:(.+?)\n\n", prose, re.M | re.S)
    assert time_box and all(word in time_box[1] for word in ("`tour`", "`full`", "work through"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_is_described_in_words(path):
    notebook = read(path)
    figures = [
        cell
        for cell in code_cells(notebook)
        if any("image/png" in output.get("data", {}) for output in cell.outputs)
    ]
    poor = [cell.id for cell in figures if len(cell.metadata.get("alt", "")) < 40]
    assert figures and not poor
    texts = [cell.metadata["alt"] for cell in figures]
    assert len(set(texts)) == len(texts)
    page = page_of(notebook)
    assert all(f'alt="{html.escape(text)}"' in page for text in texts)
    assert "No description has been provided" not in page


@pytest.mark.parametrize("path", [*NOTEBOOKS, *SOLUTIONS], ids=lambda path: path.stem)
def test_share_of_compared_cells(path):
    cells = [cell for cell in code_cells(read(path)) if cell.outputs]
    share = sum(map(compared, cells)) / len(cells)
    assert share >= COMPARED_FLOOR, f"only {share:.0%} of the cells with output are compared"


def run_nbval(path: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(path)]
    return subprocess.run(
        [*command, f"--confcutdir={REPOSITORY}", f"--rootdir={REPOSITORY}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_changed_output_turns_the_run_red(tmp_path, cohort_root):
    """The test of the tests: the first cells of notebook 01 pass; with one digit altered, fail."""
    notebook = read(NOTEBOOKS[0])
    first = [number for number, cell in enumerate(notebook.cells) if cell.cell_type == "code"][:4]
    notebook.cells = notebook.cells[: first[-1] + 1]
    folder = REPOSITORY / "build" / "nbval"  # below the root, where conftest.py applies
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{tmp_path.name}.ipynb"
    try:
        nbformat.write(notebook, path)
        untouched = run_nbval(path)
        assert untouched.returncode == 0, untouched.stdout
        cell = [cell for cell in code_cells(notebook) if compared(cell)][-1]
        printed = next(output for output in cell.outputs if output.get("name") == "stdout")
        digit = re.search(r"\d(?=\D*$)", printed.text)
        changed = str((int(digit[0]) + 1) % 10)
        printed.text = printed.text[: digit.start()] + changed + printed.text[digit.end() :]
        nbformat.write(notebook, path)
        assert run_nbval(path).returncode == 1
    finally:
        path.unlink(missing_ok=True)


def test_a_run_on_slices_of_ones_own_goes_on_after_a_claim_that_fails(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(commands, "BUILD", tmp_path)
    cells = [nbformat.v4.new_code_cell(code) for code in ('assert 0, "not here"', "print('on')")]
    path, executed = tmp_path / "claim.ipynb", tmp_path / "executed.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    with pytest.raises(SystemExit, match=r"claim\.ipynb stopped; .*\nnot here"):
        commands._executed(path, executed)
    commands._executed(path, executed, tolerant=True)
    assert "On these slices a cell stopped: not here" in capsys.readouterr().out
    assert read(executed).cells[1].outputs[0].text == "on\n"
