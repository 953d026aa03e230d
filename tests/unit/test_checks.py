"""Each check prints the right line for stubs, crashes and typical mistakes."""

import inspect

import numpy as np
import pytest
from keras import ops

from oasis_helpers import checks

CHECKS = {
    name: check
    for name, check in inspect.getmembers(checks, inspect.isfunction)
    if not name.startswith("_")
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_stub_and_a_crash_are_reported_and_not_raised(name, capsys):
    CHECKS[name](lambda *_: ...)
    assert capsys.readouterr().out == f"{name}: not attempted yet, or nothing is returned\n"
    CHECKS[name](lambda *_: 1 / 0)
    assert "your code stopped with ZeroDivisionError" in capsys.readouterr().out


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


WRONG = {
    "the top below the bottom": (
        "neighbours_below",
        lambda codes: np.roll(codes, 1, axis=0),
        "has no neighbour",
    ),
    "the slice above": (
        "neighbours_below",
        lambda codes: np.concatenate([codes[:1] * 0 - 1, codes[1:]]),
        "not k + 1",
    ),
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
        "not those of its mirror",
    ),
    "gradient cancelled": (
        "straight_through",
        lambda z, e: z + ops.stop_gradient(e) - z,
        "the vectors must get the gradient",
    ),
    "entries alone": ("straight_through", lambda z, e: e, "pass what it should, and stop"),
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
    "product for cosine": ("nearest_by_cosine", lambda v, e: (v @ e.T).argmax(1), "the direction"),
    "without replacement": (
        "slice_interval",
        lambda v, s: tuple(np.sort([v.mean(), np.random.default_rng(s).permutation(v).mean()])),
        "*with* replacement",
    ),
    "high end first": ("slice_interval", lambda v, s: (v.mean() + 1, v.mean() - 1), "low end"),
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
    "rows for columns": ("column_mask", lambda s, k: np.tri(s, s, -1).T, "Earlier are"),
    "overflow of bits": (
        "map_bits",
        lambda x, codes: (
            np.log2(np.exp(x).sum(-1)) - np.take_along_axis(x, codes[..., None], -1)[..., 0]
            / np.log(2)
        ).mean((1, 2)),
        "overflows",
    ),
    "not divided": (
        "softmax_with_temperature",
        lambda x, t: softmax(x * t),
        "low temperature",
    ),
    "overflow": ("softmax_with_temperature", lambda x, t: softmax(x / t), "exp(1000)"),
    "biased": (
        "kid",
        lambda x, y: sum(((a @ b.T / a.shape[1] + 1) ** 3).mean() * w
                         for a, b, w in ((x, x, 1), (y, y, 1), (x, y, -2))),
        "Which pairs within a set",
    ),
    "every second": ("shard", lambda b, r, w: b[r::w], "one after the other"),
    "mean of means": ("merged_entry", lambda c, t: (t / c[:, None]).mean(0), "a mean of means"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("misconception", WRONG)
def test_typical_mistakes_get_a_hint_and_no_solution(misconception, capsys):
    name, attempt, hint = WRONG[misconception]
    CHECKS[name](attempt)
    printed = capsys.readouterr().out
    assert hint in printed and "passed" not in printed
