"""Exercises and solutions keep in step, and every check says what it should."""

import inspect
import re

import nbformat
import numpy as np
import pytest
from keras import ops

from oasis_helpers import checks
from oasis_helpers.data import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb"))
CHECKS = {
    name: check
    for name, check in inspect.getmembers(checks, inspect.isfunction)
    if not name.startswith("_") and check.__module__ == checks.__name__
}
CALL = re.compile(r"^checks\.(\w+)\((\w+)\)$", re.MULTILINE)


def parts(path):
    """{"exercise-k": text of the exercise}, and {"exercise-k": its code cell}."""
    cells = nbformat.read(path, as_version=4).cells
    texts = {c.id[:-5]: c.source for c in cells if re.fullmatch(r"exercise-\d+-text", c.id)}
    code = {c.id: c for c in cells if re.fullmatch(r"exercise-\d+", c.id)}
    return texts, code


def printed(cell):
    return "".join(part.get("text", "") for part in cell.outputs)


def solution_of(path):
    return path.parent / "solutions" / path.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_exercises_and_solutions_keep_in_step(path):
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
def test_stubs_are_not_attempted_and_solutions_pass(path):
    for name, stub in parts(path)[1].items():
        assert re.fullmatch(r"\w+: not attempted yet, or nothing is returned\n", printed(stub)), (
            name
        )
    for name, solution in parts(solution_of(path))[1].items():
        if CALL.search(solution.source):
            assert re.search(r"^\w+: passed \(.+\)$", printed(solution), re.MULTILINE), name


def test_every_check_belongs_to_one_exercise():
    used = [
        check
        for path in NOTEBOOKS
        for stub in parts(path)[1].values()
        for check, _ in CALL.findall(stub.source)
    ]
    assert sorted(used) == sorted(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_a_stub_and_a_crash_are_told_and_not_raised(name, capsys):
    CHECKS[name](lambda *_: ...)
    assert capsys.readouterr().out == f"{name}: not attempted yet, or nothing is returned\n"
    CHECKS[name](lambda *_: 1 / 0)
    assert "your code stopped with ZeroDivisionError" in capsys.readouterr().out


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


WRONG = {
    "whole frame": (
        "mirror_difference",
        lambda x: np.abs(x - x[:, :, ::-1]).mean((1, 2, 3)),
        "over the brain's pixels",
    ),
    "one number for all": (
        "mirror_difference",
        lambda x: np.abs(x - x[:, :, ::-1])[x > 0.04].mean(),
        "has shape ()",
    ),
    "brain of either": (
        "mirror_difference",
        lambda x: np.array([
            np.abs(a - a[:, ::-1])[np.maximum(a, a[:, ::-1]) > 0.04].mean() for a in x
        ]),
        "not in its mirror",
    ),
    "gradient cancelled": (
        "straight_through",
        lambda z, e: z + ops.stop_gradient(e) - z,
        "the vectors must get the gradient",
    ),
    "entries get it": (
        "straight_through",
        lambda z, e: e + z - ops.stop_gradient(z),
        "must get no gradient",
    ),
    "decay swapped": (
        "ema_entry",
        lambda c, t, v, d: (
            c := (1 - d) * c + d * len(v),
            t := (1 - d) * t + d * v.sum(0),
            t / c,
        ),
        "only the new vectors count",
    ),
    "product for cosine": ("nearest_by_cosine", lambda v, e: (v @ e.T).argmax(1), "directions"),
    "without replacement": (
        "slice_interval",
        lambda v, s: tuple(np.sort([v.mean(), np.random.default_rng(s).permutation(v).mean()])),
        "*with* replacement",
    ),
    "scatter of slices": ("slice_interval", lambda v, s: np.percentile(v, [2.5, 97.5]), "too wide"),
    "nan of a dead code": (
        "perplexity",
        lambda p: 2 ** -np.sum(p * np.log2(np.maximum(p, 1e-30)) + (p == 0)),
        "must add nothing",
    ),
    "mixed bases": ("perplexity", lambda p: 2 ** -np.sum(p * np.log(p)), "perplexity of 4"),
    "left for upper": (
        "upper_pairs",
        lambda c, k: np.add.at(t := np.zeros((k, k)), (c[:, :, :-1], c[:, :, 1:]), 1) or t,
        "Which axis",
    ),
    "repeated pairs lost": (
        "upper_pairs",
        lambda c, k: np.array([
            [np.any((c[:, :-1] == a) & (c[:, 1:] == b)) for b in range(k)] for a in range(k)
        ]),
        "counts twice",
    ),
    "B for A": ("mask", lambda s, k: np.tril(np.ones((s, s))), 'Type "A"'),
    "halves swapped": (
        "gate",
        lambda f: np.tanh(f[..., 2:]) / (1 + np.exp(-f[..., :2])),
        "Which half",
    ),
    "not divided": ("heated", lambda x, t: softmax(x * t), "Colder"),
    "overflow": ("heated", lambda x, t: softmax(x / t), "exp(1000)"),
    "biased": (
        "kernel_distance",
        lambda x, y: sum(((a @ b.T / a.shape[1] + 1) ** 3).mean() * w
                         for a, b, w in ((x, x, 1), (y, y, 1), (x, y, -2))),
        "Which pairs within a set",
    ),
    "every second": ("share", lambda b, r, w: b[r::w], "one after the other"),
    "mean of means": ("joined_entry", lambda c, t: (t / c[:, None]).mean(0), "a mean of means"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("misconception", WRONG)
def test_typical_mistakes_get_a_hint_and_no_solution(misconception, capsys):
    name, attempt, hint = WRONG[misconception]
    CHECKS[name](attempt)
    said = capsys.readouterr().out
    assert hint in said and "passed" not in said
