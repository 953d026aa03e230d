"""Slices, weights and cells of notebooks that several tests take."""

from pathlib import Path

import keras
import nbformat
import numpy as np
from keras import layers, ops

from oasis_helpers.data import REPOSITORY, SliceSet


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


def run_cells(stem, ids, names):
    """The names that code cells of a notebook leave, run in the given order."""
    path = REPOSITORY / "notebooks" / f"{stem}.ipynb"
    sources = {cell.id: cell.source for cell in nbformat.read(path, as_version=4).cells}
    names = {"np": np, "keras": keras, "layers": layers, "ops": ops, **names}
    for name in ids:
        exec(compile(sources[name], f"{stem}: {name}", "exec"), names)
    return names
