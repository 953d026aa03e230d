"""Slides of the notebooks' figures: `python -m tools.slides`, or `make slides`.

A page for each notebook in `build/slides/`: a figure, a sentence (its alternative text) and a
question on each slide. The pages need no other file and no network. Arrow keys or the space bar
turn them; printing gives one slide a sheet.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from html import escape

import nbformat

from oasis_helpers.data import REPOSITORY, write_bytes

SLIDES = REPOSITORY / "build" / "slides"
SERIES = "0[1-9]_*.ipynb"
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>
body {{ margin: 0; font: 1.5rem/1.4 sans-serif; scroll-snap-type: y mandatory }}
section {{ box-sizing: border-box; height: 100vh; padding: 3vh 5vw; display: flex; gap: 2vh;
  flex-direction: column; align-items: center; justify-content: center; scroll-snap-align: start;
  break-after: page; text-align: center }}
h1 {{ font-size: 1.2rem; margin: 0; color: #555 }} p {{ margin: 0; max-width: 60rem }}
img {{ min-height: 0; flex: 0 1 auto; max-width: 100%; object-fit: contain; zoom: 1.3 }}
</style>{slides}<script>onkeydown = event => {{
  const step = {{ArrowRight: 1, ArrowDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1}}[event.key];
  if (step) {{ event.preventDefault(); scrollBy(0, step * innerHeight) }} }}</script></html>
"""


def slides_of(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """The slides of a notebook, as HTML; a title slide first."""
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    yield f"<section><h1>{escape(prose[0].splitlines()[0].lstrip('# '))}</h1></section>"
    check = "\n".join(prose).partition("### Check yourself")[2].partition("\n## ")[0]
    spare = itertools.cycle(questions(check) or ["What do you see, and what does it not show?"])
    heading, text = "", ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = re.findall(r"^#+ (.+)", f"{heading}\n{cell.source}", re.M)[-1:] or [heading]
            heading, text = f"# {heading[0]}", cell.source
        elif "alt" in cell.metadata:
            data = [output.data for output in cell.outputs if "image/png" in output.get("data", {})]
            title = heading.lstrip("# ").replace("`", "")
            asked = questions(text) or re.findall(r".+\?$", title) or [next(spare)]
            for picture in (one["image/png"].replace("\n", "") for one in data[:1]):
                yield (
                    f"<section><h1>{escape(title)}</h1>"
                    f'<img src="data:image/png;base64,{picture}" alt="">'
                    f"<p>{escape(cell.metadata.alt)}</p>"
                    f"<p><strong>{escape(asked[-1])}</strong></p></section>"
                )
            text = ""


def questions(text: str) -> list[str]:
    """The questions in a text, without answers to unfold, headings and marks."""
    marks = r"(?s:<details>.*?</details>)|^#.*$|[`*]|\[([^\]]+)\]\([^)]*\)"
    text = re.sub(marks, r"\1", text, flags=re.M)
    sentences = re.findall(r"(?:^|[.!?:]\s+)([A-Z][^.!?:]{15,}\?)", " ".join(text.split()))
    return [question for question in sentences if len(question) < 200]


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
