"""What the training of a feature network reports, on features whose answer is known."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from oasis_helpers.data import SliceSet
from oasis_helpers.pretrained import FEATURES
from oasis_helpers.set_metrics import CORRUPTIONS
from tools import features


def uniform_slices(subjects, seed):
    """Slices of one grey each, which grows with the slice index and differs by subject."""
    rng, index = np.random.default_rng(seed), np.tile(np.arange(32), subjects)
    subject = np.repeat(np.arange(subjects), 32)
    grey = 0.2 + index / 60 + rng.normal(0, 0.002, subjects)[subject]
    images = np.tile(grey[:, None, None, None], (1, 8, 8, 1)).astype("float32")
    return SliceSet(images, subject, index, "train", Path())


def network(function):
    """What has a feature network's `predict`."""
    return SimpleNamespace(predict=lambda images, verbose=0: function(images))


def test_nearest_slices_of_other_subjects_show_the_slice_index_or_do_not():
    slices, rng = uniform_slices(4, seed=0), np.random.default_rng(1)
    grey = network(lambda images: images.mean((1, 2)))
    noise = network(lambda images: rng.normal(size=(len(images), 1)))
    assert features.neighbour_index_accuracy(grey, slices) == 1
    assert features.neighbour_index_accuracy(noise, slices) < 0.5


def test_sensitivity_has_a_kid_for_each_corruption():
    train, others = uniform_slices(6, seed=0), uniform_slices(4, seed=1)
    contrast = network(lambda images: 100 * images.std((1, 2)))
    kids = features.sensitivity(contrast, train, others)
    assert list(kids) == [*CORRUPTIONS, features.HELD_OUT_CORRUPTION]
    assert abs(kids["none"]) < 0.1 and abs(kids["blurred"]) < 0.1 < kids["noisy"]


@pytest.mark.parametrize("name", ["oasis1", "cohort"])
def test_shipped_feature_networks_are_those_that_were_fixed(name):
    """data/features/README.md: a changed network may score only weights trained after it."""
    stated = (FEATURES / "README.md").read_text()
    assert hashlib.sha256((FEATURES / f"{name}.keras").read_bytes()).hexdigest() in stated
