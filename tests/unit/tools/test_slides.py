"""Slides: a figure each, a sentence to unfold, and with it the figure where there is a question."""

import nbformat
import pytest

from oasis_helpers.data import REPOSITORY
from tools import slides

bs4 = pytest.importorskip("bs4", reason="Beautiful Soup is not installed")

PICTURE = nbformat.v4.new_output("display_data", data={"image/png": "aGk=\n"})


def figure(alt, **metadata):
    return nbformat.v4.new_code_cell("show()", metadata=metadata | {"alt": alt}, outputs=[PICTURE])


def text(source, **metadata):
    return nbformat.v4.new_markdown_cell(source, metadata=metadata)


def slides_of(*cells):
    pages = slides.slides_of(nbformat.v4.new_notebook(cells=cells))
    return [bs4.BeautifulSoup(page, "html.parser").section for page in pages]


def test_a_slide_for_each_figure_which_a_question_folds_with_the_sentence():
    cells = [text("# 1. A <title>"), text("## Codes\n\nFirst this. Which code is *most* frequent?")]
    cells += [figure("Bars."), nbformat.v4.new_code_cell("1"), figure("More bars.")]
    cells += [text("Which one is it?"), figure("A map.", question="Where is <black>?")]
    title, *rest = slides_of(*cells)
    assert title.text == "1. A <title>"
    assert [part.h1.text for part in rest] == ["Codes"] * 3
    questions = [part.strong and part.strong.text for part in rest]
    assert questions == ["Which code is most frequent?", None, "Where is <black>?"]
    for part, sentence in zip(rest, ("Bars.", "More bars.", "A map.")):
        assert part.details.contents[-1] == sentence and "open" not in part.details.attrs
        assert bool(part.details.img) == bool(part.strong)
        assert not part.details.find_next_sibling()
    assert [part.img["src"] for part in rest] == ["data:image/png;base64,aGk="] * 3


def test_titles_are_headings_of_the_body_and_deeper_sections_have_no_slides():
    cells = [text("# 1. A title"), text("## Parameters"), figure("First.")]
    cells += [text("## Codes"), text("### Exercise 2 (★): predict"), figure("Bars.")]
    cells += [text("## Deeper: more", tags=["deeper"]), figure("Hidden.", tags=["deeper"])]
    cells += [text("## Check yourself\n\nWhat is a code?"), text("Now look."), figure("Last.")]
    _, *rest = slides_of(*cells)
    assert [part.h1.text for part in rest] == ["Codes"] * 3
    assert not any(part.strong for part in rest)


@pytest.mark.parametrize(
    ("source", "question"),
    [
        ("Two codes. What do the [codes](x.md) `a` show?", "What do the codes a show?"),
        ("Before you run it: which has the lowest SSIM?", ""),
        ("How many entries will each one use?", ""),
        ("And what do the codes show?", ""),
        ("What do the codes show? Look below.", ""),
    ],
)
def test_only_a_whole_last_sentence_is_a_question(source, question):
    assert slides.last_question(source) == question


@pytest.mark.parametrize(
    ("name", "figure_id"),
    [
        ("01_data_exploration", "index-means"),
        ("02_vqvae_building", "staircase"),
        ("03_vqvae_training", "a02af3ff"),
        ("04_codebook_analysis", "094bdb91"),
        ("05_pixelcnn_prior", "field-masked"),
        ("06_generation", "game"),
    ],
)
def test_what_a_minute_plan_predicts_is_asked_on_the_slide(name, figure_id):
    notebook = nbformat.read(REPOSITORY / f"notebooks/{name}.ipynb", as_version=4)
    (asked,) = (cell.metadata for cell in notebook.cells if cell.id == figure_id)
    assert asked.alt and asked.question.endswith("?")
