"""Exercises and their solutions agree; stubs run, and solutions pass."""

import ast
import inspect
import re

import nbformat
import numpy as np
import pytest
from keras import ops

from oasis_helpers import checks
from oasis_helpers.data import BRAIN_THRESHOLD, REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("0[1-9]*.ipynb"))
CALL = re.compile(r"^checks\.(\w+)\((\w+)\)$", re.MULTILINE)


def parts(path):
    """{"exercise-k": text of the exercise}, and {"exercise-k": its code cell}."""
    cells = nbformat.read(path, as_version=4).cells
    texts = {c.id[:-5]: c.source for c in cells if re.fullmatch(r"exercise-\d+-text", c.id)}
    code = {c.id: c for c in cells if re.fullmatch(r"exercise-\d+", c.id)}
    return texts, code


def solution_of(path):
    return path.parent / "solutions" / path.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_exercises_and_solutions_have_the_same_text(path):
    texts, stubs = parts(path)
    solved_texts, solutions = parts(solution_of(path))
    assert len(texts) >= 3
    without_heading = [
        {name: text.split("\n", 1)[1] for name, text in each.items()}
        for each in (texts, solved_texts)
    ]
    assert without_heading[0] == without_heading[1], "an exercise and its solution differ in text"
    cells = nbformat.read(solution_of(path), as_version=4).cells
    discussed = {cell.id for cell in cells}
    assert {f"{name}-discussion" for name in texts} <= discussed
    for name, stub in stubs.items():
        signature = stub.source.split("\n", 1)[0]
        assert signature.startswith("def ") and signature in solutions[name].source
        assert CALL.findall(stub.source) == CALL.findall(solutions[name].source) != []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stubs_are_not_attempted_and_solutions_pass(path, capsys):
    for file, verdict in (path, "not attempted yet"), (solution_of(path), "passed ("):
        for cell in parts(file)[1].values():
            body = ast.parse(cell.source).body
            functions = [node for node in body if isinstance(node, ast.FunctionDef)]
            names = {"np": np, "ops": ops, "BRAIN_THRESHOLD": BRAIN_THRESHOLD}
            exec(compile(ast.Module(functions, []), file.name, "exec"), names)
            for check, function in CALL.findall(cell.source):
                getattr(checks, check)(names[function])
                assert capsys.readouterr().out.startswith(f"{check}: {verdict}")


def test_every_check_belongs_to_one_exercise():
    used = [
        check
        for path in NOTEBOOKS
        for stub in parts(path)[1].values()
        for check, _ in CALL.findall(stub.source)
    ]
    defined = inspect.getmembers(checks, inspect.isfunction)
    assert sorted(used) == [name for name, _ in defined if not name.startswith("_")]
