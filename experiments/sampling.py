"""How much faster are the cached and the compiled sampler than the usual loop?

All three sample the same maps in one run on square grids of several sizes. The network has the size
of the shipped prior and is untrained, because the time does not depend on its training. No
slices are needed.
"""

import keras
import numpy as np

from experiments.compiled_sampler import CompiledSampler
from experiments.variants import machine_facts, timed
from oasis_helpers.pixelcnn import GatedPixelCNN, Prior
from oasis_helpers.recipes import RECIPES
from oasis_helpers.sampling import inverse_cdf, sample_codes

SIDES = (6, 10, 14, 20, 28)  # of the grids
LOOPED_SIDES = (10, 20)  # the usual loop takes up to a minute on these
REPEATS = 5


def measure(maps: int = 10, sides: tuple[int, ...] = SIDES) -> dict:
    """Seconds to sample `maps` code maps side by side, for each sampler and grid.

    Returns:
        {"machine", "maps", "grids": [{"side", "positions", "cached", "compiled", "compiling" (once,
        before), "compiled_speed_up" over cached, "compiled_same_codes" (fraction), "loop",
        "speed_up" of cached over the loop, "same_codes"}, ...], "batch_of_64": seconds at 20 x 20,
        "compiled_batch_of_64": {"compiled", ..., as in "grids"}}.
    """
    keras.utils.set_random_seed(0)
    indices = np.arange(maps, dtype="int32") % 32
    result = {"machine": machine_facts(), "maps": maps, "grids": []}
    for side in sides:
        num_embeddings = 128 if side <= 10 else 256
        prior = GatedPixelCNN(num_embeddings, (side, side), **RECIPES["oasis1"].prior)
        codes, times = two_samplers(prior, indices)
        grid = {"side": side, "positions": side * side, **times}
        if side in LOOPED_SIDES:
            prior.predict((codes, indices), verbose=0)  # compiles
            uniform = np.random.default_rng(0).random((maps, side * side))
            looped, grid["loop"] = timed(predict_loop, prior, indices, uniform)
            grid["speed_up"] = round(grid["loop"] / grid["cached"])
            grid["same_codes"] = float(np.mean(looped == codes))
        result["grids"].append({key: round(value, 4) for key, value in grid.items()})
        if side == 20:
            _, times = two_samplers(prior, np.full(64, 16, "int32"))
            result["batch_of_64"] = round(times.pop("cached"), 2)
            result["compiled_batch_of_64"] = {key: round(t, 4) for key, t in times.items()}
    return result


def two_samplers(prior: Prior, indices: np.ndarray) -> tuple[np.ndarray, dict]:
    """What the cached sampler samples, and median seconds of both samplers, which take turns."""
    sampler = CompiledSampler(prior, len(indices))
    sample_codes(prior, 1)  # what happens only once is not timed
    _, first = timed(sampler, indices)
    turns = [
        (*timed(sample_codes, prior, len(indices), indices), *timed(sampler, indices))
        for _ in range(REPEATS)
    ]
    cached_codes, cached, compiled_codes, compiled = zip(*turns)
    cached, compiled = float(np.median(cached)), float(np.median(compiled))
    return cached_codes[0], {
        "cached": cached,
        "compiled": compiled,
        "compiling": float(first - compiled),
        "compiled_speed_up": round(cached / compiled, 2),
        "compiled_same_codes": float(np.mean(compiled_codes[0] == cached_codes[0])),
    }


def predict_loop(prior: Prior, slice_index: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """The usual way to sample: one `predict` of the whole grid for every position.

    From int (n,) and random numbers, float (n, positions) in [0, 1), to int32 (n, h, w).
    """
    codes = np.zeros((len(uniform), *prior.grid), "int32")
    for position, (row, column) in enumerate(np.ndindex(*prior.grid)):
        logits = prior.predict((codes, slice_index), verbose=0)[:, row, column]
        codes[:, row, column] = inverse_cdf(logits, uniform[:, position])
    return codes
