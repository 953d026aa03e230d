"""Every 'Try this' of the notebooks does what its bullet says.

The cell `## Try this` carries one entry for each bullet in its metadata, "variations": "kind" is
the mark of the bullet; "change" maps sources to what replaces them, in the one code cell that holds
them ("cell-id::source" names the cell); the cells run up to "until", without those in "skip". For
"raises", "expect" is a part of "Type: message"; else an expression that is true afterwards.
"""

import copy
import dataclasses
import linecache
import os
import random
import re
import warnings

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import pytest
from IPython.display import display

from oasis_helpers import pretrained
from oasis_helpers.data import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("0[1-9]*.ipynb"))
KINDS = ("raises", "looks bad", "misleads")
KEYS = {"kind", "change", "until", "skip", "expect"}


def suggestions(path) -> tuple[list, list]:
    """The bullets of 'Try this', and the entries of its metadata."""
    cells = nbformat.read(path, as_version=4).cells
    (cell,) = (cell for cell in cells if re.search("^## Try this$", cell.source, re.MULTILINE))
    text = cell.source.split("## Try this\n")[1]
    bullets = re.findall(r"^[-*] (?:.|\n(?![-*] |\n))*", text, re.MULTILINE)
    return bullets, cell.metadata.get("variations", [])


def changed_cells(path, entry) -> list[tuple[str, str]]:
    """(id, source) of the code cells to run, with the changes made."""
    cells = nbformat.read(path, as_version=4).cells
    sources = {cell.id: cell.source for cell in cells if cell.cell_type == "code"}
    skipped = entry.get("skip", [])
    assert {entry["until"], *skipped} <= set(sources), "no code cell of that name"
    ids = list(sources)[: list(sources).index(entry["until"]) + 1]
    ids = [name for name in ids if name not in skipped]
    assert entry["change"] and entry["until"] in ids
    for old, new in entry["change"].items():
        named, found, source = old.partition("::")
        inside = [named] if found and named in sources else list(sources)
        old = source if found and named in sources else old
        holders = [name for name in inside if old in sources[name]]
        assert len(holders) == 1 and holders[0] in ids, f"{old!r} stands in {holders}"
        sources[holders[0]] = sources[holders[0]].replace(old, new)
    return [(name, sources[name]) for name in ids]


def run(path, cells, names=None) -> dict:
    """The names after these cells, run one after the other as a kernel does."""
    names = {"__name__": "__main__", "display": display} if names is None else names
    for name, source in cells:
        file = f"<{path.stem}: {name}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        exec(compile(source, file, "exec"), names)
        plt.close("all")
    return names


@pytest.fixture(scope="module")
def loaded():
    """Weights that one variation has loaded serve the next one, too."""
    return {}


@pytest.fixture
def as_in_a_notebook(loaded, monkeypatch):
    """Folder, figures and weights; what a variation does to weights ends with it."""
    load = pretrained.load_pretrained

    def weights(models):
        stages = (models.vqvae, models.prior)
        return [stage.get_weights() if stage else None for stage in stages]

    def load_once(name):
        if name.startswith("mine"):  # may change between two calls
            return load(name)
        key = name, random.getstate()  # loading takes numbers from Keras's global generator
        if key not in loaded:
            models = load(name)
            loaded[key] = models, random.getstate(), weights(models)
        models, state, _ = loaded[key]
        random.setstate(state)
        facts = {name: copy.deepcopy(getattr(models, name)) for name in ("scores", "history")}
        return dataclasses.replace(models, **facts)

    monkeypatch.setattr(pretrained, "load_pretrained", load_once)
    monkeypatch.chdir(REPOSITORY / "notebooks")
    matplotlib.use("Agg")
    environment = dict(os.environ)
    with warnings.catch_warnings(action="ignore"):
        yield
    os.environ.clear()
    os.environ.update(environment)
    for models, _, before in loaded.values():
        for stage, values in zip((models.vqvae, models.prior), before):
            if stage:
                stage.set_weights(values)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_suggestion_has_its_mark_and_its_entry(path):
    bullets, entries = suggestions(path)
    marks = [[kind for kind in KINDS if f"*{kind}*" in bullet.lower()] for bullet in bullets]
    assert marks == [[entry["kind"]] for entry in entries]
    for entry in entries:
        assert set(entry) | {"skip"} == KEYS, entry


@pytest.mark.long
@pytest.mark.parametrize(
    ("path", "number"),
    [
        pytest.param(path, number, id=f"{path.stem}-{number + 1}")
        for path in NOTEBOOKS
        for number in range(len(suggestions(path)[1]))
    ],
)
def test_suggestions_do_what_they_say(path, number, as_in_a_notebook):
    bullets, entries = suggestions(path)
    entry, said = entries[number], (bullets[number : number + 1] or ["no bullet"])[0]
    cells = changed_cells(path, entry)
    if entry["kind"] == "raises":
        with pytest.raises(Exception) as caught:
            run(path, cells)
        assert entry["expect"] in f"{caught.type.__name__}: {caught.value}", said
    else:
        assert eval(entry["expect"], run(path, cells)), said


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_suggests_at_least_three(path):
    assert len(suggestions(path)[1]) >= 3
