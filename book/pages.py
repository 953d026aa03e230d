"""What the pages of the series need beyond Sphinx, MyST-NB and the theme.

Libraries that do similar things were tried. MyST-NB's cell metadata numbers figures through the
whole book, needs the same words twice (alternative text, caption), and leaves out animations. With
sphinxcontrib-bibtex citations are roles, which JupyterLab shows as raw text, so each notebook would
keep its list of references beside a second copy.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from bs4 import BeautifulSoup
from docutils import nodes
from PIL import Image
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

CONTENTS = "book/contents.md"
BIBLIOGRAPHY = "book/references"
LIVE_PAGE = "book/draw"
FOLDER_PAGES = {"notebooks/solutions": "book/solutions"}  # a link to a folder leads to its page
IDENTIFIER = re.compile(
    r"\barXiv\s+(?P<arxiv>\d{4}\.\d{4,5})\b|\bdoi\s+(?P<doi>10\.\d{4,9}/[^\s,;]+\w)"
)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("executed_notebooks", "", "env", str)
    app.connect("source-read", append_contents)
    app.connect("source-read", show_executed)
    app.connect("doctree-read", describe_figures)
    app.connect("doctree-read", link_identifiers)
    app.connect("doctree-read", link_folders)
    app.connect("env-get-outdated", lambda *_: [BIBLIOGRAPHY])
    app.connect("doctree-resolved", collect_references)
    app.connect("doctree-resolved", collapse_deeper_sections)
    app.connect("build-finished", export_weights)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def append_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """Appends the table of contents to README, where a forge would show the directive as text."""
    if docname == app.config.root_doc:
        source[0] += f"\n{Path(app.srcdir, CONTENTS).read_text(encoding='utf-8')}"


def show_executed(app: Sphinx, docname: str, source: list[str]) -> None:
    """Takes a notebook from the folder of executed ones, where `make pages` names one."""
    folder, name = app.config.executed_notebooks, f"{docname.removeprefix('notebooks/')}.ipynb"
    if (
        folder
        and docname.startswith("notebooks/")
        and (file := Path(app.srcdir, folder, name)).is_file()
    ):
        source[0] = file.read_text(encoding="utf-8")


def collapse_deeper_sections(app: Sphinx, document: nodes.document, docname: str) -> None:
    """Puts sections for the curious, "Deeper: ...", behind their headings."""
    for section in document.findall(nodes.section):
        if section[0].astext().startswith("Deeper:"):
            start, end = '<details class="deeper"><summary>', "</details>"
            parts = (section[0], "</summary>", *section[1:], end)
            raw = (
                nodes.raw("", part, format="html") if isinstance(part, str) else part
                for part in (start, *parts)
            )
            section.children = list(raw)


def export_weights(app: Sphinx, exception: Exception | None) -> None:
    """Writes what the page that samples a slice computes with, beside its script."""
    if exception is None and LIVE_PAGE in app.env.found_docs:
        from tools.export_page import script

        file = Path(app.outdir, "_static", "draw-weights.js")
        file.write_text(script("cohort"), encoding="utf-8")


# -------------------------------------------------------------------------------------- figures


def describe_figures(app: Sphinx, document: nodes.document) -> None:
    """Gives every picture of a notebook its cell's "alt", a number and a caption.

    The caption shows the alternative text to sighted readers. Screen readers read that text with
    the picture, so of the caption they read the number only.
    """
    notebook = re.match(r"notebooks/(?:solutions/)?0*(\d+)_", app.env.docname)
    if not notebook:
        return
    number = 0
    for cell in document.findall(nodes.container):
        for picture in pictures(cell) if cell.get("nb_element") == "cell_code" else ():
            number += 1
            if isinstance(picture, nodes.image):
                picture["alt"] = text = cell["cell_metadata"].get("alt", "")
                with Image.open(Path(app.srcdir, picture["uri"])) as file:
                    picture["width"] = f"{file.width}px"  # the theme links scaled pictures
            else:
                text = BeautifulSoup(picture.astext(), "html.parser").img.get("alt", "")
            frame_figure(picture, f"Figure {notebook[1]}.{number}", text)


def pictures(cell: nodes.container) -> list[nodes.Element]:
    """The cell's pictures, and outputs in HTML that hold one (animations)."""
    animations = [node for node in cell.findall(nodes.raw) if "<img" in node.astext()]
    return [*cell.findall(nodes.image), *animations]


def frame_figure(picture: nodes.Element, label: str, text: str) -> None:
    figure = nodes.figure(ids=[nodes.make_id(label)])
    picture.parent.replace(picture, figure)
    hidden = nodes.raw("", '<span aria-hidden="true">', format="html")
    end = nodes.raw("", "</span>", format="html")
    caption = nodes.caption("", "", nodes.strong("", label), hidden, nodes.Text(f" {text}"), end)
    figure += [picture, caption]


# ------------------------------------------------------------------------------------- references


def link_identifiers(app: Sphinx, document: nodes.document) -> None:
    """Makes links of "arXiv 1711.00937" and "doi 10.1109/TIP.2003.819861"."""
    for element in list(document.findall(nodes.TextElement)):
        if isinstance(element, nodes.reference | nodes.FixedTextElement | nodes.literal):
            continue
        # A line break in the source splits a text, perhaps between "arXiv" and its number.
        runs = itertools.groupby(element.children, lambda child: isinstance(child, nodes.Text))
        pieces = [(is_text, list(run)) for is_text, run in runs]
        element.children = []
        for is_text, run in pieces:
            element += linked("".join(run)) if is_text else run


def linked(text: str) -> list[nodes.Node]:
    parts, end = [], 0
    for found in IDENTIFIER.finditer(text):
        arxiv, doi = found["arxiv"], found["doi"]
        target = f"https://arxiv.org/abs/{arxiv}" if arxiv else f"https://doi.org/{doi}"
        parts += [nodes.Text(text[end : found.start()])]
        parts += [nodes.reference("", " ".join(found[0].split()), refuri=target)]
        end = found.end()
    return [*parts, nodes.Text(text[end:])]


def link_folders(app: Sphinx, document: nodes.document) -> None:
    """Leads a link to a folder to the folder's page."""
    for link in document.findall(pending_xref):
        folder = app.env.relfn2path(link["reftarget"])[0]
        if folder in FOLDER_PAGES:
            target = {"refdomain": "doc", "reftarget": FOLDER_PAGES[folder], "reftargetid": None}
            link.attributes |= target


def collect_references(app: Sphinx, document: nodes.document, docname: str) -> None:
    """Fills the bibliography with the entries under "References" in the notebooks, each once.

    Two entries are one if their links are the same; the first notebook's words are kept.
    """
    if docname != BIBLIOGRAPHY:
        return
    entries: dict[str, nodes.list_item] = {}
    cited_in: dict[str, list[str]] = {}
    for notebook in sorted(app.env.found_docs):
        if not re.match(r"notebooks/\d", notebook):
            continue
        for item in items_of_references(app.env.get_doctree(notebook)):
            link = next(item.findall(nodes.reference), None)
            key = link["refuri"] if link else " ".join(item.astext().split())
            entries.setdefault(key, item.deepcopy())
            cited_in.setdefault(key, []).append(notebook)
    bibliography = nodes.bullet_list(classes=["bibliography"])
    for key in sorted(entries, key=lambda key: surname(entries[key])):
        paragraph = entries[key].next_node(nodes.paragraph)
        paragraph += nodes.Text(" · cited in ")
        for place, notebook in enumerate(cited_in[key]):
            number = nodes.Text(Path(notebook).name[:2])
            link = make_refnode(app.builder, docname, notebook, "references", number)
            paragraph += [nodes.Text(", ")] * (place > 0) + [link]
        bibliography += entries[key]
    document.next_node(nodes.section).append(bibliography)


def items_of_references(document: nodes.document) -> list[nodes.list_item]:
    return [
        item
        for section in document.findall(nodes.section)
        if section.next_node(nodes.title).astext() == "References"
        for item in section.findall(nodes.list_item)
    ]


def surname(item: nodes.list_item) -> str:
    """The first author's name without initials and small words, to sort by."""
    return re.sub(r"^((\w\.[ -]?)|(van |von |den |der |de ))+", "", item.astext()).casefold()
