"""Checks of the exercises that a student fills in.

A check calls the student's function on small cases and prints one line: "not attempted yet" (also
where a `return` was forgotten), a hint that says what is wrong without giving the answer away, or
"passed" with what was tried. It never raises, so that a notebook with stubs runs to its end.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

# Arguments, whether what comes back is right (or a sentence on its form), else the hint.
Trial = tuple[tuple, Callable[..., bool | str], str]


def _judge(exercise: str, function: Callable, trials: list[Trial], tried: str) -> None:
    """Calls the function on each trial, the simplest first, and prints the first that fails."""
    verdict = f"passed ({tried})"
    for arguments, is_right, hint in trials:
        try:
            found = function(*arguments)
            if found is None or found is Ellipsis:
                verdict = "not attempted yet, or nothing is returned"
                break
            right = is_right(found)
        except Exception as error:  # whatever a student's code may raise
            verdict = f"your code stopped with {type(error).__name__}: {error}"
            break
        if right is not True:
            verdict = right or hint
            break
    print(f"{exercise}: {verdict}")


def _equals(expected) -> Callable:
    """Whether what is found has, nearly, the expected values; a sentence if its shape is wrong."""

    def is_right(found) -> bool | str:
        if np.shape(found) != np.shape(expected):
            return f"the result has shape {np.shape(found)}; expected {np.shape(expected)}."
        return bool(np.allclose(found, expected, atol=1e-5))

    return is_right


# ----------------------------------------------------------------------------- 1. exploration


def mirror_difference(function: Callable) -> None:
    """`mirror_difference(images)`: float (N, h, w, 1) in [0, 1] -> float (N,)."""
    symmetric = np.zeros((1, 8, 8, 1), "float32")
    symmetric[0, 2:6, 2:6] = 0.5
    half = symmetric.copy()
    half[0, :, 4:] *= 0.5  # the right half 0.25, the left half 0.5
    dirty = symmetric.copy()
    dirty[0, 0, 0] = 0.02  # below the threshold: not brain
    lopsided = symmetric.copy()
    lopsided[0, 4:, 4:] = 0  # a quarter is missing, which its mirror image has
    trials = [
        ((symmetric,), _equals([0]), "A symmetric brain differs from its mirror image by nothing."),
        ((half,), _equals([0.25]), "Take the mean over the brain's pixels, not over the frame."),
        ((dirty,), _equals([0]), "Pixels up to BRAIN_THRESHOLD aren't brain: leave them out."),
        ((lopsided,), _equals([1 / 6]), "Brain is what is brain in the slice, not in its mirror."),
        (
            (np.concatenate([symmetric, half]),),
            _equals([0, 0.25]),
            "Return one number for each picture, each over its own brain.",
        ),
    ]
    tried = (
        "a symmetric brain, a half-dark one, dirt outside the brain, a lopsided one, two pictures"
    )
    _judge("mirror_difference", function, trials, tried)


# -------------------------------------------------------------------------------- 2. building


def straight_through(function: Callable) -> None:
    """`straight_through(vectors, entries)`: two tensors (N, D) -> tensor (N, D)."""

    def value_and_gradients(vectors, entries):
        with tf.GradientTape() as tape:
            tape.watch([vectors, entries])
            output = function(vectors, entries)
            if output is None or output is Ellipsis:
                return None
            total = tf.reduce_sum(output * [[3.0, 5.0]])
        sources = [vectors, entries]
        return output, *tape.gradient(total, sources, unconnected_gradients="zero")

    pair = tf.constant([[0.2, 0.4]]), tf.constant([[1.0, 0.0]])
    trials = [
        (
            pair,
            lambda found: _equals([[1, 0]])(found[0]),
            "Forward, the result must be the entries.",
        ),
        (
            pair,
            lambda found: _equals([[3, 5]])(found[1]),
            "Backward, the vectors must get the gradient as it comes: is something stopped that "
            "should pass?",
        ),
        (
            pair,
            lambda found: _equals([[0, 0]])(found[2]),
            "The entries must get no gradient here: they have a loss of their own.",
        ),
    ]
    tried = "the value, the gradient to the vectors, the gradient to the entries"
    _judge("straight_through", value_and_gradients, trials, tried)


def ema_entry(function: Callable) -> None:
    """`ema_entry(count, total, chosen, decay)`: one entry's new (count, total, entry).

    `chosen` are the vectors (n, D) that chose the entry in this batch.
    """
    chosen = np.array([[1.0, 2.0], [3.0, 4.0]])
    trials = [
        (
            (2.0, np.array([2.0, 2.0]), chosen, 0.0),
            lambda found: _equals([2, 4, 6, 2, 3])(np.hstack(found)),
            "With a decay of 0 only the new vectors count: their number, their sum, their mean.",
        ),
        (
            (10.0, np.array([10.0, 20.0]), chosen, 0.9),
            lambda found: _equals([9.2, 9.4, 18.6, 9.4 / 9.2, 18.6 / 9.2])(np.hstack(found)),
            "What was there weighs `decay`, what is new the rest, for the count and for the total.",
        ),
        (
            (4.0, np.array([4.0, 8.0]), np.zeros((0, 2)), 0.5),
            lambda found: _equals([2, 2, 4, 1, 2])(np.hstack(found)),
            "An entry that nobody chose shrinks in count and total, and stays where it was.",
        ),
    ]
    _judge("ema_entry", function, trials, "decay 0, decay 0.9, an entry that nobody chose")


def nearest_by_cosine(function: Callable) -> None:
    """`nearest_by_cosine(vectors, entries)`: float (N, D), (K, D) -> int (N,)."""
    vectors = np.array([[0.1, 0.2], [3.0, 0.5], [-0.2, -0.1]])
    entries = np.array([[10.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    trials = [
        ((np.eye(2), np.eye(2)), _equals([0, 1]), "A vector that equals an entry must choose it."),
        (
            (vectors, entries),
            _equals([1, 0, 2]),
            "Only directions may count: whose length does your similarity still depend on?",
        ),
    ]
    tried = "unit vectors, and a long entry that must not win by its length"
    _judge("nearest_by_cosine", function, trials, tried)


# -------------------------------------------------------------------------------- 3. training


def slice_interval(function: Callable) -> None:
    """`slice_interval(values, seed)`: float (N,) -> (low, high), a 95 % interval of the mean."""
    values = np.random.default_rng(3).normal(0.8, 0.1, 400)
    theory = 2 * 1.96 * values.std() / len(values) ** 0.5  # the width

    def width(found):
        return (found[1] - found[0]) / theory

    once = (values, 0)
    trials = [
        (
            once,
            lambda found: bool(found[1] - found[0] > 1e-9),
            "All means are equal: draw *with* replacement.",
        ),
        (
            once,
            lambda found: bool(found[0] < values.mean() < found[1]),
            "The interval should hold the mean of the values.",
        ),
        (
            once,
            lambda found: bool(width(found) < 3),
            "Far too wide: so do slices scatter, not means.",
        ),
        (
            once,
            lambda found: bool(0.85 < width(found) < 1.15),
            "Nearly. Which two percentiles leave 95 % of the means between them, and are a few "
            "thousand means enough?",
        ),
    ]
    _judge("slice_interval", function, trials, "400 values, against the width that theory gives")


# -------------------------------------------------------------------------------- 4. codebook


def perplexity(function: Callable) -> None:
    """`perplexity(shares)`: float (K,) that add up to 1 -> float."""
    trials = [
        ((np.full(4, 0.25),), _equals(4), "Four equally used codes have a perplexity of 4."),
        (
            (np.array([0.5, 0.25, 0.125, 0.125]),),
            _equals(2**1.75),
            "Uneven shares: work out the average surprise first. Is the base of your power that "
            "of your logarithm?",
        ),
        ((np.array([1.0, 0, 0]),), _equals(1), "A code that is never used must add nothing."),
    ]
    _judge("perplexity", function, trials, "even shares, uneven shares, dead codes")


def upper_pairs(function: Callable) -> None:
    """`upper_pairs(codes, K)`: int (N, h, w) -> int (K, K), how often [upper, lower] occurs."""
    codes = np.array([[[0, 1], [2, 0]]])
    expected = np.array([[0, 0, 1], [1, 0, 0], [0, 0, 0]])
    twice = np.array([[[0, 0], [1, 1]]])
    trials = [
        (
            (codes, 3),
            _equals(expected),
            "The upper code is the row of the table, the one below it the column. Which axis of "
            "`codes` runs downwards?",
        ),
        (
            (twice, 2),
            _equals([[0, 2], [0, 0]]),
            "A pair that occurs twice counts twice: `table[a, b] += 1` adds to each place once.",
        ),
        (
            (np.concatenate([codes, codes]), 3),
            _equals(2 * expected),
            "The last row of one map doesn't stand above the first row of the next.",
        ),
    ]
    _judge(
        "upper_pairs",
        function,
        trials,
        "one map, a pair that occurs twice, and two maps that must stay apart",
    )


# ----------------------------------------------------------------------------------- 5. prior


def mask(function: Callable) -> None:
    """`mask(side, kind)`: an odd int, "A" or "B" -> (side, side) of zeros and ones."""
    five = np.zeros((5, 5))
    five[:2], five[2, :2] = 1, 1
    trials = [
        (
            (3, "A"),
            _equals([[1, 1, 1], [1, 0, 0], [0, 0, 0]]),
            'Type "A" lets through what comes earlier in reading order, not the position itself.',
        ),
        (
            (3, "B"),
            _equals([[1, 1, 1], [1, 1, 0], [0, 0, 0]]),
            'Type "B" differs from "A" in a single cell.',
        ),
        ((5, "A"), _equals(five), "Every odd side must work: where is the middle?"),
    ]
    _judge("mask", function, trials, "both types, sides 3 and 5")


def gate(function: Callable) -> None:
    """`gate(features)`: float (..., 2 C) -> float (..., C)."""
    features = np.array([[2.0, -1.0, 0.0, 4.0]])
    by_hand = np.tanh([[2.0, -1.0]]) / (1 + np.exp([[0.0, -4.0]]))
    trials = [
        (
            (features,),
            _equals(by_hand),
            "Which half of the channels holds the values, which the switches, and what is done to "
            "each?",
        ),
        (
            (np.zeros((2, 3, 6)),),
            _equals(np.zeros((2, 3, 3))),
            "Split the last axis, whatever stands before it.",
        ),
    ]
    _judge("gate", function, trials, "two channels by hand, and a whole map")


# ------------------------------------------------------------------------------ 6. generation


def heated(function: Callable) -> None:
    """`heated(logits, temperature)`: float (K,) -> probabilities, float (K,)."""
    logits = np.log([0.5, 0.3, 0.2])
    trials = [
        ((logits, 1.0), _equals([0.5, 0.3, 0.2]), "At T = 1 nothing may change."),
        (
            (logits, 0.5),
            _equals(np.square([0.5, 0.3, 0.2]) / 0.38),
            "Colder must be more decided. Is it the logits that you divide, and do the "
            "probabilities still add up to 1?",
        ),
        (
            (np.array([0.0, 1000.0]), 1.0),
            _equals([0, 1]),
            "exp(1000) is too large for any computer. What may be taken off all logits?",
        ),
    ]
    _judge("heated", function, trials, "T = 1, T = 1/2, and logits of a thousand")


def kernel_distance(function: Callable) -> None:
    """`kernel_distance(x, y)`: float (N, C), (M, C) -> float, unbiased."""
    x, y = np.array([[1.0], [2.0], [0.0]]), np.array([[1.0], [-1.0]])
    by_hand = np.mean([27, 1, 1]) + 0 - 2 * np.mean([8, 0, 27, -1, 1, 1])
    wide = np.random.default_rng(0).normal(size=(40, 8))
    kernel = (wide @ wide.T / 8 + 1) ** 3
    with_itself = 2 * (kernel.sum() - np.trace(kernel)) / (40 * 39) - 2 * kernel.mean()
    trials = [
        (
            (x, y),
            _equals(by_hand),
            "Three means: within x, within y, across. Which pairs within a set don't count? Across "
            "the sets all pairs count.",
        ),
        ((wide, wide), _equals(with_itself), "Where does C, the number of components, come in?"),
    ]
    _judge("kernel_distance", function, trials, "a sum by hand, and a set with itself")


# --------------------------------------------------------------------------------- 7. scaling


def share(function: Callable) -> None:
    """`share(batch, rank, workers)`: int (n,), two ints -> int (n / workers,)."""
    batch = np.array([5, 3, 9, 1, 7, 2])
    trials = [
        ((batch, 0, 1), _equals(batch), "One worker alone reads everything."),
        (
            (batch, 0, 2),
            _equals([5, 3, 9]),
            "Shares, one after the other, give the batch back.",
        ),
        ((batch, 1, 2), _equals([1, 7, 2]), "Where does the share of this rank begin?"),
        ((batch, 2, 3), _equals([7, 2]), "Three workers: how long is a share?"),
    ]
    _judge("share", function, trials, "one worker, two and three")


def joined_entry(function: Callable) -> None:
    """`joined_entry(counts, totals)`: float (workers,), (workers, D) -> one entry, float (D,)."""
    trials = [
        (
            (np.array([2.0, 2.0]), np.array([[2.0, 4.0], [6.0, 0.0]])),
            _equals([2, 1]),
            "An entry is the mean of all the vectors that chose it, wherever they are.",
        ),
        (
            (np.array([9.0, 1.0]), np.array([[9.0], [11.0]])),
            _equals([2]),
            "One worker has nine vectors, the other a single one: a mean of means forgets that.",
        ),
        (
            (np.array([0.0, 4.0]), np.array([[0.0], [2.0]])),
            _equals([0.5]),
            "A worker whose part of the batch never chose the entry must not spoil it.",
        ),
    ]
    _judge("joined_entry", function, trials, "equal shares, unequal ones, an empty one")
