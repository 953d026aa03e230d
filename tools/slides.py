"""Slides of the notebooks' figures: `python -m tools.slides`, or `make slides`.

A page for each notebook in `build/slides/`: on each slide a figure, and a sentence (the alternative
text) that unfolds on a click. Where the notebook asks a question, the figure unfolds with it. The
pages need no other file and no network. Arrow keys or the space bar turn them; printing unfolds all
and gives one slide a sheet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

import nbformat

from oasis_helpers.data import REPOSITORY, write_bytes

SLIDES = REPOSITORY / "build" / "slides"
SERIES = "0[1-9]_*.ipynb"
# Of the body: a figure under "Parameters" or "Exercise 2" belongs to the nearest other heading.
HEADING = re.compile(
    r"^##+ (?!Objectives|Before you start|Set-up|Parameters|Exercise|Check yourself)(.+)", re.M
)
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>
body {{ margin: 0; font: 1.5rem/1.4 sans-serif; scroll-snap-type: y mandatory }}
section {{ box-sizing: border-box; height: 100vh; padding: 3vh 5vw; display: flex; gap: 2vh;
  flex-direction: column; align-items: center; justify-content: center; scroll-snap-align: start;
  break-after: page; text-align: center }}
h1 {{ font-size: 1.2rem; margin: 0; color: #555 }} p, details {{ margin: 0; max-width: 60rem }}
img {{ min-height: 0; flex: 0 1 auto; max-width: 100%; object-fit: contain; zoom: 1.3 }}
details img {{ display: block; margin: 2vh auto; max-height: 45vh }}
</style>{slides}<script>onbeforeprint = () => document.querySelectorAll("details").forEach(
  details => details.open = true); onkeydown = event => {{
  const step = {{ArrowRight: 1, ArrowDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1}}[event.key];
  if (step) {{ event.preventDefault(); scrollBy(0, step * innerHeight) }} }}</script></html>
"""


def slides_of(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """The slides of a notebook's main path, as HTML; a title slide first."""
    cells = [cell for cell in notebook.cells if "deeper" not in cell.metadata.get("tags", [])]
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    yield f"<section><h1>{escape(prose[0].splitlines()[0].lstrip('# '))}</h1></section>"
    title, text = (HEADING.findall("\n".join(prose)) or [""])[0], ""
    for cell in cells:
        if cell.cell_type == "markdown":
            title, text = [title, *HEADING.findall(cell.source)][-1], cell.source
        elif "alt" in cell.metadata:
            data = [output.data for output in cell.outputs if "image/png" in output.get("data", {})]
            asked = cell.metadata.get("question") or last_question(text)
            for picture in (one["image/png"].replace("\n", "") for one in data[:1]):
                image = f'<img src="data:image/png;base64,{picture}" alt="">'
                question = f"<p><strong>{escape(asked)}</strong></p>" if asked else ""
                yield (
                    f"<section><h1>{escape(title.replace('`', ''))}</h1>{question or image}"
                    "<details><summary>What the figure shows</summary>"
                    f"{question and image}{escape(cell.metadata.alt)}</details></section>"
                )
            text = ""


def last_question(text: str) -> str:
    """The last sentence of a text if it is a question that needs no sentence before it, or ""."""
    text = re.sub(r"^#.*$|[`*]|\[([^\]]+)\]\([^)]*\)", r"\1", text, flags=re.M)
    last = re.split(r"(?<=[.!?:])\s", " ".join(text.split()))[-1]
    leans = r"(And|But|So|Then)\b|.*\b(it|they|them|this|these|those|ones?)\b"
    return last if re.fullmatch(rf"(?!{leans})[A-Z].{{15,}}\?", last) else ""


def main() -> None:
    """Writes a page of slides for each notebook."""
    for path in sorted((REPOSITORY / "notebooks").glob(SERIES)):
        slides = list(slides_of(nbformat.read(path, as_version=4)))
        page = PAGE.format(title=path.stem, slides="\n".join(slides))
        SLIDES.mkdir(parents=True, exist_ok=True)
        write_bytes(SLIDES / f"{path.stem}.html", page.encode())
        print(f"{SLIDES / path.stem}.html: {len(slides)} slides")


if __name__ == "__main__":
    main()
