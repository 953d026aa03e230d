"""The form of notebooks and pages: complete, described, linked, and compared with their outputs."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from oasis_helpers.data import REPOSITORY
from tools import tables
from tools.lab import KERNEL

START = REPOSITORY / "notebooks" / "00_start.ipynb"
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("0[1-9]*.ipynb"))
SOLUTIONS = sorted((REPOSITORY / "notebooks" / "solutions").glob("*.ipynb"))
PAGES = [
    path
    for pattern in ("*.md", "docs/*.md", "data/**/README.md", "notebooks/README.md")
    for path in sorted(REPOSITORY.glob(pattern))
]
NOT_COMPARED = {"nbval-ignore-output", "nbval-skip"}
COMPARED_FLOOR = 0.75  # of the cells that print something
MOST_WORDS, MOST_WORDS_IN_ALL, MOST_CODE_CELLS = 2500, 17_000, 45  # of the main path
OPTION = re.compile(r"<details>\s*<summary>.*?</summary>\s*(.*?)\s*</details>", re.DOTALL)


def relative(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def has_picture(cell) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


# --------------------------------------------------------------------------------------- pages


@pytest.mark.parametrize("name", tables.PAGES)
def test_pages_show_the_measured_results(name):
    page = (REPOSITORY / name).read_text(encoding="utf-8")
    assert tables.with_tables(page) == page, "run `make results`"


def test_every_table_of_results_stands_on_a_page():
    text = "".join((REPOSITORY / name).read_text(encoding="utf-8") for name in tables.PAGES)
    for name in tables.TABLES:
        assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1, name


@pytest.mark.parametrize("page", [*PAGES, START, *NOTEBOOKS, *SOLUTIONS], ids=relative)
def test_relative_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "\n".join(cell.source for cell in read(page).cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", text) + re.findall(r'src="([^"]+)"', text)
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_readme_fits_a_few_screens():
    lines = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130
    assert all(word in lines[0] for word in ("VQ-VAE", "PixelCNN", "brain MRI", "Keras"))


@pytest.mark.parametrize("page", ["README.md", "notebooks/00_start.ipynb", "docs/teaching.md"])
def test_tables_of_the_series_lead_to_every_notebook(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    rows = re.findall(r"\| \[[^]]+\]\((?:\S*/)?(0[1-9]_\w+)\.ipynb\) \|", text)
    assert rows == [path.stem for path in NOTEBOOKS]


# ----------------------------------------------------------------------------------- notebooks


def test_the_start_page_is_short_and_opens_unchanged():
    notebook = read(START)
    nbformat.validate(notebook)
    assert len(code_cells(notebook)) <= 2 and notebook.metadata.kernelspec == KERNEL["kernelspec"]
    assert len(" ".join(cell.source for cell in notebook.cells).split()) < 600


def test_the_series_is_complete():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_data_exploration",
        "02_vqvae_building",
        "03_vqvae_training",
        "04_codebook_analysis",
        "05_pixelcnn_prior",
        "06_generation",
        "07_whole_heads",
        "08_scaling_out",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_form(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "not run top to bottom in a fresh kernel"
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = re.findall(r"^#+ .*", prose, re.M)
    wanted = ["## Objectives", "## Before you start", "## Set-up", "## Parameters", "## Try this"]
    wanted += ["## Exercises", "## Summary", "## References", "## Next"]
    assert headings[0].startswith("# ")
    assert [heading for heading in headings if heading in wanted] == wanted
    time_box = re.search(r"^\*\*Time\*\*:(.+?)\n\n", prose, re.M | re.S)
    assert time_box and all(word in time_box[1] for word in ("`tour`", "`full`", "work through"))


def is_deeper(cell) -> bool:
    return "deeper" in cell.metadata.get("tags", [])


def words(path: Path) -> int:
    """Of the text that every student reads: without the 'Deeper' sections."""
    cells = (cell for cell in read(path).cells if cell.cell_type == "markdown")
    return sum(len(cell.source.split()) for cell in cells if not is_deeper(cell))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_sitting(path):
    assert words(path) <= MOST_WORDS
    assert sum(not is_deeper(cell) for cell in code_cells(read(path))) <= MOST_CODE_CELLS


def test_the_series_is_a_course():
    assert sum(map(words, NOTEBOOKS[:-1])) <= MOST_WORDS_IN_ALL  # without the appendix


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_deeper_sections_are_folded_and_stand_before_try_this(path):
    cells = read(path).cells
    tagged = [number for number, cell in enumerate(cells) if is_deeper(cell)]
    headings = [n for n, cell in enumerate(cells) if re.search("^#+ Deeper", cell.source, re.M)]
    assert set(headings) <= set(tagged)
    if not tagged:
        return
    (end,) = (n for n, cell in enumerate(cells) if cell.source.startswith("## Try this"))
    assert tagged == list(range(tagged[0], end)) and tagged[0] in headings
    for number in tagged:
        lines = cells[number].source.strip().split("\n")
        if number in headings:  # JupyterLab folds what follows the cell of the heading
            assert lines[0].startswith("## Deeper: ") and len(lines) == 1
            assert cells[number].metadata.get("jp-MarkdownHeadingCollapsed") is True
        elif cells[number].cell_type == "markdown":
            assert not [line for line in lines if re.match("##? ", line)], "a section not 'Deeper'"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_questions_have_one_right_answer(path):
    prose = "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    _, *after = re.split("^### Check yourself$", prose, flags=re.MULTILINE)
    assert len(after) == 1 and "\n## Exercises" in after[0]
    text = re.split("^#+ ", after[0], maxsplit=1, flags=re.MULTILINE)[0]
    questions, end = [], 0
    for option in OPTION.finditer(text):
        if text[end : option.start()].strip():  # the text of a question
            questions.append([])
        questions[-1].append(option[1].split(":")[0])
        end = option.end()
    assert 4 <= len(questions) <= 6
    for answers in questions:
        assert len(answers) >= 3 and sorted({*answers}) == ["No", "Right"], answers
        assert answers.count("Right") == 1, answers


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_exercises_shadow_nothing_of_the_package(path):
    imported, stubs = set(), set()
    for cell in code_cells(read(path)):
        tree = ast.parse(cell.source)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("oasis_helpers"):
                imported |= {alias.asname or alias.name for alias in node.names}
        if cell.id.startswith("exercise-"):
            functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
            stubs |= {function.name for function in functions}
    assert not imported & stubs


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_is_described_in_words(path):
    notebook = read(path)
    texts = {c.id: c.metadata.get("alt", "") for c in code_cells(notebook) if has_picture(c)}
    assert texts and not [cell for cell, text in texts.items() if len(text) < 40]
    assert len(set(texts.values())) == len(texts), "two figures have the same description"


def compared(cell) -> bool:
    """Whether nbval compares something of this cell that says more than a figure's size."""
    texts = [
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for output in cell.outputs
        if output.get("name") != "stderr"
    ]
    says = any(text.strip() and not text.startswith("<Figure") for text in texts)
    return says and NOT_COMPARED.isdisjoint(cell.metadata.get("tags", []))


@pytest.mark.parametrize(
    "paths", [*([path] for path in NOTEBOOKS), SOLUTIONS], ids=lambda paths: paths[0].stem
)
def test_fraction_of_compared_cells(paths):
    cells = [cell for path in paths for cell in code_cells(read(path)) if cell.outputs]
    fraction = sum(map(compared, cells)) / len(cells)
    assert fraction >= COMPARED_FLOOR, f"only {fraction:.0%} of cells with output are compared"
