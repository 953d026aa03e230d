"""Slices and weights that several tests make."""

from pathlib import Path

import numpy as np

from oasis_helpers.data import SliceSet


def heads(count, seed=0, size=32):
    """Noisy ellipses that grow with the slice index."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - size / 2
    index = np.tile(np.arange(32), count).astype("int32")
    radius = (4 + index / 3)[:, None, None] + rng.normal(0, 0.1, (len(index), 1, 1))
    images = (np.hypot(y, x) < radius) * rng.uniform(0.4, 0.9, (len(index), size, size))
    numbers = np.repeat(np.arange(count), 32).astype("int32")
    return SliceSet(images[..., None].astype("float32"), numbers, index, "train", Path())


def with_large_weights(prior):
    """Random weights, large enough that every earlier code makes a difference."""
    rng = np.random.default_rng(3)
    for weight in prior.trainable_weights:
        weight.assign(rng.normal(0, 0.4, weight.shape))
    return prior
