"""Imports and library calls leave the process as it was: no variables, loggers or global seeds."""

import os
import random
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import oasis_helpers
from oasis_helpers import recipes, sample_codes, training
from oasis_helpers.data import SliceSet

LIGHT = """
import os, sys
before = dict(os.environ)
import oasis_helpers, oasis_helpers.data, oasis_helpers.checks
from oasis_helpers import load_slices
heavy = {"tensorflow", "keras", "jax", "torch"} & set(sys.modules)
assert not heavy, f"imported {heavy}"
assert dict(os.environ) == before, "an environment variable was set"
"""
ALL = """
import importlib, logging, os, random, warnings
import keras, IPython, ipywidgets, matplotlib.pyplot, nibabel, nilearn.datasets, numpy, PIL.Image
import skimage.metrics, sklearn.pipeline, tqdm.auto

def state():
    names = ("", "tensorflow", "keras", "matplotlib", "absl")
    levels = {name: logging.getLogger(name).level for name in names}
    legacy = numpy.random.get_state()[1].tolist()
    return dict(os.environ), levels, random.getstate(), legacy, list(warnings.filters)

before = state()
for name in MODULES:
    importlib.import_module(f"oasis_helpers.{name}")
for part, after in zip(before, state()):
    assert part == after, "an import changed the process"
"""


def run(code: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "OASIS_DATA_DIR"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_the_first_imports_are_light():
    run(LIGHT)


def test_no_import_changes_the_process():
    folder = Path(oasis_helpers.__file__).parent
    modules = [path.stem for path in folder.glob("*.py") if not path.stem.startswith("__")]
    run(f"MODULES = {[*modules, 'convert', 'convert.synthetic']}\n{ALL}")


@pytest.fixture
def no_seeding(monkeypatch):
    """Lets every function fail that seeds a global generator."""

    def fail(*arguments, **options):
        raise AssertionError("a library call seeded a global generator")

    for module, name in (
        (random, "seed"),
        (np.random, "seed"),
        (tf.random, "set_seed"),
        (keras.utils, "set_random_seed"),
    ):
        monkeypatch.setattr(module, name, fail)


@pytest.fixture
def eager():
    """Runs TensorFlow's functions step by step: a step of a small network needs no compiling."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")
def test_training_and_sampling_seed_nothing_global(no_seeding, eager):
    rng = np.random.default_rng(0)
    images = rng.random((32, 16, 16, 1)).astype("float32")
    slices = SliceSet(images, np.repeat([1, 2], 16), np.arange(32), "train", Path())
    once = recipes.Schedule(1, 16, 1e-3)
    recipe = recipes.Recipe(
        "cohort",
        16,
        vqvae={"widths": (4, 4), "blocks": 1, "num_embeddings": 8},
        vqvae_schedule=once,
        decoder_schedule=once,
        prior={"filters": 4, "blocks": 1, "num_heads": 1},
        prior_schedule=once,
    )
    legacy = np.random.get_state()[1].copy()
    vqvae, _ = training.train_vqvae(recipe, slices, slices)
    training.finetune_decoder(recipe, vqvae, slices, slices)
    prior, _ = training.train_prior(recipe, vqvae, slices, slices)
    python = random.getstate()
    sample_codes(prior, 2)
    assert random.getstate() == python
    np.testing.assert_array_equal(np.random.get_state()[1], legacy)
