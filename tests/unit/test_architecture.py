"""The house: small, imports go one way, every public name is used, and words are the field's."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = sorted((ROOT / "oasis_helpers").glob("*.py"))
SOURCES = sorted(
    path
    for name in ("oasis_helpers", "experiments", "tools")
    for path in (ROOT / name).rglob("*.py")
)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("**/[0-9]*.ipynb"))
MAY_IMPORT = {
    "notebooks": {"oasis_helpers"},
    "oasis_helpers": {"oasis_helpers"},
    "experiments": {"experiments", "oasis_helpers"},
    "tools": {"tools", "oasis_helpers"},
}
OURS = {"oasis_helpers", "experiments", "tools", "tests"}

# GLOSSARY's left columns: words that are no part of an identifier (split at underscores, capitals),
WORDS = """
    drawn drawing drawings told tell tells telling untold whose people person rung rungs ladder
    ladders climb race settling lie lying slab dealt heated judge judged house room faithful fog
    foggy sharpened sharpening sharpener critic learnt claim ledger imaginary crispness cell cells
    share shares
""".split()
# names that are no identifier,
NAMES = """
    ANY_SLICE GlobalBatch IMAGINARY_OBSERVATIONS KEPT above apart bias_above before_gate brain_cells
    code_shapes down embed field fine_power fitting found in_line joined keep kept kernel_distance
    lot look made_of mix narrow once only_one out_left own_copy place reach realism scaling seen
    series share_of_per_position shown tell_right these told_apart too_near wait_for_all widen
    written_beside
""".split()
# and what no message, label or docstring says.
TEXT = re.compile(
    r"""\bdrawn\b | \bdrawings?\b | \btold\b | \bwhose[ ]it[ ]is | \bwhoever\b | \bpeople\b
    | \brungs?\b | \bladders?\b | \bclimb | \bsettling\b | \bslab\b | \bdealt\b
    | data[ ]in[ ]force | \bheated\b | \bjudges?[ ] | \bfaithful\b | \bfog(gy)?\b
    | \bsharpen(ed|ing|er) | \bcritic | fine[ ]power | crispness | kernel[ ]distance | too[ ]near
    | counted[ ]per | imaginary | plain[ ](recipe|pipeline) | \blearnt\b | \banew\b
    | hangs?[ ]on | \bshares?[ ]of | (?<!notebook[ ])\bcells?\b
    | (?<!grey[ ])(?<!FSQ,[ ])\blevels?\b""",
    re.IGNORECASE | re.VERBOSE,
)
EXCEPTIONS = {  # name: (part of the file's path, reason)
    "FileNotFoundError": ("", "Python's"),
    "field": ("oasis_helpers/recipes.py", "dataclasses.field"),
    "cell": ("/tools/", "of a notebook"),
    "cells": ("/tools/", "of a notebook"),
    "cell_type": ("/tools/", "nbformat's"),
    "new_code_cell": ("/tools/", "nbformat's"),
    "transform_cell": ("/tools/", "IPython's"),
    "CELL_TIMEOUT": ("tools/notebooks.py", "of a notebook"),
    "keep": ("", "pretrained.keep, which notebooks 03 and 05 call"),
}
MAY_SAY = {  # of notebooks, of FSQ
    "tools/notebooks.py": "cell",
    "tools/grade.py": "cell",
    "tools/lab.py": "cell",
    "experiments/quantizers.py": "level",
}
PAIRS = {  # that a command of tools/ uses, and whose counterparts notebooks use
    "save_model": "of load_model",
    "finetune_decoder": "of train_vqvae and train_prior",
}
WEIGHTS = re.compile(r"[\w*`{}()]*-faithful")  # names of weights, fixed in DESIGN 3


def tree(path: Path) -> ast.Module:
    if path.suffix == ".py":
        return ast.parse(path.read_text(encoding="utf-8"))
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return ast.parse("\n".join(code))


@cache
def parsed() -> dict[Path, ast.Module]:
    return {path: tree(path) for path in [*SOURCES, *NOTEBOOKS]}


def imported(module: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module}
    return {name.split(".")[0] for name in names} & OURS


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_go_one_way(folder):
    for path, module in parsed().items():
        if path.relative_to(ROOT).parts[0] == folder:
            assert imported(module) <= MAY_IMPORT[folder], path


def test_package_is_small():
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE}
    assert len(lines) <= 18, sorted(lines)
    assert max(lines.values()) <= 500, lines
    assert sum(lines.values()) <= 5000, lines


def public_names(path: Path) -> set[str]:
    """Functions, classes and constants without a leading underscore."""
    names = set()
    for node in parsed()[path].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


@cache
def used_names(module: ast.Module) -> set[str]:
    used = {node.id for node in ast.walk(module) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(module) if isinstance(node, ast.Attribute)}
    imports = (node for node in ast.walk(module) if isinstance(node, ast.ImportFrom))
    return used | {alias.name for node in imports for alias in node.names}


def test_every_public_name_is_used_by_a_notebook_or_by_a_module_that_is():
    """Or by experiments/ and tools/ both, which may not import each other."""
    modules = {path.stem: path for path in PACKAGE}
    reached, waiting = set(), [parsed()[path] for path in NOTEBOOKS]
    while waiting:
        names = used_names(waiting.pop())
        for stem, path in modules.items():
            if stem in reached or not (stem in names or names & public_names(path)):
                continue
            reached.add(stem)
            waiting.append(parsed()[path])
    assert reached | {"__init__", "__main__"} == set(modules)
    everywhere = [path for path in parsed() if path.is_relative_to(ROOT / "oasis_helpers")]
    everywhere += NOTEBOOKS
    both = [set(), set()]
    for path in SOURCES:
        for number, folder in enumerate(("experiments", "tools")):
            if path.is_relative_to(ROOT / folder):
                both[number] |= used_names(parsed()[path])
    for path in PACKAGE:
        if path.stem in ("__init__", "__main__"):
            continue
        elsewhere = set().union(
            *(used_names(parsed()[other]) for other in everywhere if other != path)
        )
        inside = used_names(parsed()[path])
        unused = public_names(path) - elsewhere - inside - (both[0] & both[1]) - set(PAIRS)
        assert not unused, f"{path.name}: {sorted(unused)}"


def identifiers(module: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(module):
        names |= {
            getattr(node, kind)
            for kind in ("id", "attr", "arg", "name")
            if isinstance(getattr(node, kind, None), str)
        }
    return names


def words_of(identifier: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", identifier)}


@pytest.mark.parametrize(
    "path", [*SOURCES, *NOTEBOOKS], ids=lambda path: str(path.relative_to(ROOT))
)
def test_identifiers_are_the_fields_words(path):
    names = identifiers(parsed()[path])
    names -= {name for name, (file, _) in EXCEPTIONS.items() if file in str(path)}
    assert not {name for name in names if words_of(name) & set(WORDS) or name in NAMES}


def texts(module: ast.Module) -> list[str]:
    """String constants and the constant parts of f-strings: messages, labels, keys, docstrings."""
    strings = (node for node in ast.walk(module) if isinstance(node, ast.Constant))
    return [node.value for node in strings if isinstance(node.value, str)]


@pytest.mark.parametrize(
    "path", [*SOURCES, *NOTEBOOKS], ids=lambda path: str(path.relative_to(ROOT))
)
def test_messages_and_labels_are_the_fields_words(path):
    shown = (WEIGHTS.sub("", text) for text in texts(parsed()[path]))
    said = {match[0]: text for text in shown if (match := TEXT.search(text))}
    allowed = MAY_SAY.get(str(path.relative_to(ROOT)), "nothing")
    assert not {word: text for word, text in said.items() if allowed not in word.lower()}
