"""Slides: one figure, one sentence, one question each."""

import nbformat
import pytest

from tools import slides

bs4 = pytest.importorskip("bs4", reason="Beautiful Soup is not installed")

PICTURE = nbformat.v4.new_output("display_data", data={"image/png": "aGk=\n"})


def figure(alt):
    return nbformat.v4.new_code_cell("show()", metadata={"alt": alt}, outputs=[PICTURE])


def text(source):
    return nbformat.v4.new_markdown_cell(source)


def test_a_slide_for_each_figure_with_a_question():
    cells = [text("# 1. A <title>"), text("## Codes\n\nFirst this. Which code is *most* frequent?")]
    cells += [figure("Bars."), nbformat.v4.new_code_cell("1"), figure("More bars.")]
    cells += [text("## Which one?\n\nNo question in the text."), figure("A map.")]
    cells += [text("### Check yourself\n\nWhat is a `code` here?\n\n<details>Is it?</details>")]
    pages = slides.slides_of(nbformat.v4.new_notebook(cells=cells))
    title, *rest = (bs4.BeautifulSoup(page, "html.parser").section for page in pages)
    assert title.text == "1. A <title>"
    assert [part.h1.text for part in rest] == ["Codes", "Codes", "Which one?"]
    assert [part.p.text for part in rest] == ["Bars.", "More bars.", "A map."]
    assert [part.strong.text for part in rest] == [
        "Which code is most frequent?",
        "What is a code here?",
        "Which one?",
    ]
    assert {part.img["src"] for part in rest} == {"data:image/png;base64,aGk="}
