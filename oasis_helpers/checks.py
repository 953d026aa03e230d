"""Self-checks of the exercises.

A check calls the student's function on small cases and prints one line: "not attempted yet" (also
if a `return` is missing), a hint that names the mistake but not the solution, or "passed" with the
cases. A check never raises an error, so that a notebook with open exercises runs to its end.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# The hint if the result is wrong: the arguments, and the expected value or a test of the result.
Cases = dict[str, tuple[tuple, object]]


def _report(exercise: str, function: Callable, cases: Cases, tried: str) -> None:
    """Calls the function on the cases, the simplest first, and prints the first failure."""
    for hint, (arguments, expected) in cases.items():
        try:
            failure = _failure(function(*arguments), expected, hint)
        except Exception as error:  # a student's code may raise anything
            failure = f"your code stopped with {type(error).__name__}: {error}"
        if failure:
            break
    print(f"{exercise}: {failure or f'passed ({tried})'}")


def _failure(result, expected, hint: str) -> str:
    """What is wrong with a result; "" if it is right."""
    if result is None or result is Ellipsis:
        return "not attempted yet, or nothing is returned"
    if callable(expected):
        return "" if expected(result) else hint
    if np.shape(result) != np.shape(expected):
        return f"the result has shape {np.shape(result)}; expected {np.shape(expected)}."
    return "" if np.allclose(result, expected, atol=1e-5) else hint


# 1. Exploration
def mirror_difference(function: Callable) -> None:
    """`mirror_difference(images)`: float (N, h, w, 1) in [0, 1] -> float (N,)."""
    symmetric = np.zeros((1, 8, 8, 1), "float32")
    symmetric[0, 2:6, 2:6] = 0.5
    half = symmetric.copy()
    half[0, :, 4:] *= 0.5  # the right half 0.25, the left half 0.5
    dirty = symmetric.copy()
    dirty[0, 0, 0] = 0.02  # below the threshold: not brain
    lopsided = symmetric.copy()
    lopsided[0, 4:, 4:] = 0  # a quarter is missing, but its mirror image is there
    both = np.concatenate([symmetric, half])
    cases = {
        "A symmetric brain must not differ from its mirror image.": ((symmetric,), [0]),
        "Take the mean over the brain's pixels, not over the frame.": ((half,), [0.25]),
        "Pixels up to BRAIN_THRESHOLD are not brain: leave them out.": ((dirty,), [0]),
        "Use the brain pixels of the slice, not those of its mirror image.": ((lopsided,), [1 / 6]),
        "Return one number for each picture, each over its own brain.": ((both,), [0, 0.25]),
    }
    tried = (
        "a symmetric brain, a half-dark one, dirt outside the brain, a lopsided one, two pictures"
    )
    _report("mirror_difference", function, cases, tried)


# 2. Building
def straight_through(function: Callable) -> None:
    """`straight_through(vectors, entries)`: two tensors (N, D) -> tensor (N, D)."""
    import tensorflow as tf  # the other checks need no framework

    def part(number: int):
        """The output (0), its gradient to the vectors (1) or to the entries (2)."""
        sources = tf.constant([[0.2, 0.4]]), tf.constant([[1.0, 0.0]])
        with tf.GradientTape() as tape:
            tape.watch(sources)
            output = function(*sources)
            if output is None or output is Ellipsis:
                return None
            total = tf.reduce_sum(output * [[3.0, 5.0]])
        return (output, *tape.gradient(total, sources, unconnected_gradients="zero"))[number]

    cases = {
        "In the forward pass, the result must be the entries.": ((0,), [[1, 0]]),
        "In the backward pass, the vectors must get the gradient unchanged: does every part of "
        "your line pass what it should, and stop what it should?": ((1,), [[3, 5]]),
        "The entries must get no gradient here: they have a loss of their own.": ((2,), [[0, 0]]),
    }
    tried = "the value, the gradient to the vectors, the gradient to the entries"
    _report("straight_through", part, cases, tried)


def ema_entry(function: Callable) -> None:
    """`ema_entry(count, total, chosen, decay)`: one entry's new (count, total, entry).

    `chosen` are the vectors (n, D) that chose the entry in this batch.
    """
    chosen = np.array([[1.0, 2.0], [3.0, 4.0]])

    def as_row(*arguments):
        result = function(*arguments)
        return result if result is None or result is Ellipsis else np.hstack(result)

    cases = {
        "With a decay of 0 only the new vectors count: their number, their sum, their mean.": (
            (2.0, np.array([2.0, 2.0]), chosen, 0.0),
            [2, 4, 6, 2, 3],
        ),
        "The old value has the weight `decay`, the new one the rest; this holds for the count "
        "and for the total.": (
            (10.0, np.array([10.0, 20.0]), chosen, 0.9),
            [9.2, 9.4, 18.6, 9.4 / 9.2, 18.6 / 9.2],
        ),
        "If no vector chooses an entry, its count and total shrink, but the entry stays.": (
            (4.0, np.array([4.0, 8.0]), np.zeros((0, 2)), 0.5),
            [2, 2, 4, 1, 2],
        ),
    }
    _report("ema_entry", as_row, cases, "decay 0, decay 0.9, an entry that no vector chose")


def nearest_by_cosine(function: Callable) -> None:
    """`nearest_by_cosine(vectors, entries)`: float (N, D), (K, D) -> int (N,)."""
    vectors = np.array([[0.1, 0.2], [3.0, 0.5], [-0.2, -0.1]])
    entries = np.array([[10.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    cases = {
        "A vector that equals an entry must choose it.": ((np.eye(2), np.eye(2)), [0, 1]),
        "Only the direction may count: which length does your similarity still depend on?": (
            (vectors, entries),
            [1, 0, 2],
        ),
    }
    tried = "unit vectors, and a long entry that must not win by its length"
    _report("nearest_by_cosine", function, cases, tried)


# 3. Training
def slice_interval(function: Callable) -> None:
    """`slice_interval(values, seed)`: float (N,) -> (low, high), a 95 % interval of the mean."""
    values = np.random.default_rng(3).normal(0.8, 0.1, 400)
    theory = 2 * 1.96 * values.std() / len(values) ** 0.5  # the width

    def width(interval) -> float:
        return (interval[1] - interval[0]) / theory

    hints = {
        "All means are equal: sample *with* replacement.": lambda x: abs(width(x)) > 1e-6,
        "Return the low end first, then the high end.": lambda x: x[0] < x[1],
        "The mean of the values should be inside.": lambda x: x[0] < values.mean() < x[1],
        "Far too wide: this is the spread of the slices, not of their mean.": lambda x: (
            width(x) < 3
        ),
        "Nearly. Which two percentiles have 95 % of the means between them, and are a few "
        "thousand means enough?": lambda x: 0.85 < width(x) < 1.15,
    }
    cases = {hint: ((values, 0), test) for hint, test in hints.items()}
    _report("slice_interval", function, cases, "400 values, against the width that theory gives")


# 4. Codebook
def perplexity(function: Callable) -> None:
    """`perplexity(frequencies)`: float (K,) with sum 1 -> float."""
    cases = {
        "Four equally frequent codes have a perplexity of 4.": ((np.full(4, 0.25),), 4),
        "Unequal frequencies: compute the average surprise first. Do the power and the "
        "logarithm have the same base?": ((np.array([0.5, 0.25, 0.125, 0.125]),), 2**1.75),
        "A code that is never used must add nothing.": ((np.array([1.0, 0, 0]),), 1),
    }
    _report("perplexity", function, cases, "equal frequencies, unequal ones, dead codes")


def upper_pairs(function: Callable) -> None:
    """`upper_pairs(codes, K)`: int (N, h, w) -> int (K, K), how often [upper, lower] occurs."""
    codes = np.array([[[0, 1], [2, 0]]])
    expected = np.array([[0, 0, 1], [1, 0, 0], [0, 0, 0]])
    twice = np.array([[[0, 0], [1, 1]]])
    cases = {
        "The upper code is the row of the table, the code below it the column. Which axis of "
        "`codes` goes down the map?": ((codes, 3), expected),
        "A pair that occurs twice counts twice: `table[a, b] += 1` adds only once per entry.": (
            (twice, 2),
            [[0, 2], [0, 0]],
        ),
        "The last row of one map is not above the first row of the next map.": (
            (np.concatenate([codes, codes]), 3),
            2 * expected,
        ),
    }
    tried = "one map, a pair that occurs twice, and two separate maps"
    _report("upper_pairs", function, cases, tried)


# 5. Prior
def column_mask(function: Callable) -> None:
    """`column_mask(side, kind)`: an odd int, "A" or "B" -> (side, side) of zeros and ones."""
    five = np.zeros((5, 5))
    five[:, :2], five[:2, 2] = 1, 1
    cases = {
        "Earlier are the columns to the left, and the upper part of the position's own column.": (
            (3, "A"),
            [[1, 1, 0], [1, 0, 0], [1, 0, 0]],
        ),
        'Type "B" differs from "A" at a single position.': (
            (3, "B"),
            [[1, 1, 0], [1, 1, 0], [1, 0, 0]],
        ),
        "Every odd side must work: where is the middle?": ((5, "A"), five),
    }
    _report("column_mask", function, cases, "both types, sides 3 and 5")


def map_bits(function: Callable) -> None:
    """`map_bits(logits, codes)`: float (N, h, w, K), int (N, h, w) -> bits per code, float (N,)."""
    codes = np.array([[[0, 1]], [[2, 2]]])
    logits = np.log([0.5, 0.25, 0.25]) + np.array([0.0, 1000.0])[:, None, None, None]
    logits = np.tile(logits, (1, 1, 2, 1))
    cases = {
        "Equal logits cost log2 K bits at every code.": ((logits[:1] * 0, codes[:1]), [np.log2(3)]),
        "Take the true code's probability: 1 and 2 bits here.": ((logits[:1], codes[:1]), [1.5]),
        "exp(1000) overflows. What can you subtract from all logits?": ((logits, codes), [1.5, 2]),
    }
    _report("map_bits", function, cases, "equal logits, unequal ones, and logits of a thousand")


# 6. Generation
def softmax_with_temperature(function: Callable) -> None:
    """`softmax_with_temperature(logits, temperature)`: float (K,) -> probabilities, float (K,)."""
    logits = np.log([0.5, 0.3, 0.2])
    cases = {
        "At T = 1 the probabilities must not change.": ((logits, 1.0), [0.5, 0.3, 0.2]),
        "A low temperature must favour the most probable code. Do you divide the logits, and "
        "is the sum of the probabilities 1?": ((logits, 0.5), np.square([0.5, 0.3, 0.2]) / 0.38),
        "exp(1000) is too large for any computer. What can you subtract from all logits?": (
            (np.array([0.0, 1000.0]), 1.0),
            [0, 1],
        ),
    }
    tried = "T = 1, T = 1/2, and logits of a thousand"
    _report("softmax_with_temperature", function, cases, tried)


def kid(function: Callable) -> None:
    """`kid(x, y)`: float (N, C), (M, C) -> float, unbiased."""
    x, y = np.array([[1.0], [2.0], [0.0]]), np.array([[1.0], [-1.0]])
    by_hand = np.mean([27, 1, 1]) + 0 - 2 * np.mean([8, 0, 27, -1, 1, 1])
    wide = np.random.default_rng(0).normal(size=(40, 8))
    kernel = (wide @ wide.T / 8 + 1) ** 3
    with_itself = 2 * (kernel.sum() - np.trace(kernel)) / (40 * 39) - 2 * kernel.mean()
    cases = {
        "Three means: within x, within y, and between them. Which pairs within a set do not "
        "count? Between the sets all pairs count.": ((x, y), by_hand),
        "Where does C, the number of components, belong?": ((wide, wide), with_itself),
    }
    _report("kid", function, cases, "a sum by hand, and a set with itself")


# 7. Whole heads
def neighbours_below(function: Callable) -> None:
    """`neighbours_below(codes)`: int (32, h, w) -> int (32, h, w), -1 where there is none."""
    codes = np.arange(32 * 6).reshape(32, 2, 3)
    below = np.concatenate([np.full((1, 2, 3), -1), codes[:-1]])
    cases = {
        "The lowest slice has no neighbour: -1.": ((codes,), lambda x: np.all(x[0] == below[0])),
        "The neighbour of slice k is slice k - 1, not k + 1.": ((codes,), below),
    }
    _report("neighbours_below", function, cases, "32 different maps")


# 8. Scaling
def shard(function: Callable) -> None:
    """`shard(batch, rank, workers)`: int (n,), two ints -> int (n / workers,)."""
    batch = np.array([5, 3, 9, 1, 7, 2])
    cases = {
        "A single worker reads everything.": ((batch, 0, 1), batch),
        "The shards, one after the other, must give the batch.": ((batch, 0, 2), [5, 3, 9]),
        "Where does the shard of this rank begin?": ((batch, 1, 2), [1, 7, 2]),
        "Three workers: how long is a shard?": ((batch, 2, 3), [7, 2]),
    }
    _report("shard", function, cases, "one worker, two and three")


def merged_entry(function: Callable) -> None:
    """`merged_entry(counts, totals)`: float (workers,), (workers, D) -> one entry, float (D,)."""
    cases = {
        "An entry is the mean of all vectors that chose it, on every worker.": (
            (np.array([2.0, 2.0]), np.array([[2.0, 4.0], [6.0, 0.0]])),
            [2, 1],
        ),
        "One worker has nine vectors, the other has one: a mean of means ignores that.": (
            (np.array([9.0, 1.0]), np.array([[9.0], [11.0]])),
            [2],
        ),
        "A worker whose shard never chose the entry must not change it.": (
            (np.array([0.0, 4.0]), np.array([[0.0], [2.0]])),
            [0.5],
        ),
    }
    _report("merged_entry", function, cases, "equal counts, unequal ones, an empty shard")
