"""A classifier separates sets that differ and no others, and halves are of the subjects named."""

import numpy as np

from experiments import realism
from tests.examples import heads


def test_a_classifier_separates_only_sets_that_differ(monkeypatch):
    monkeypatch.setattr(realism, "EPOCHS", 3)
    rng, subjects = np.random.default_rng(0), np.repeat(np.arange(6), 16)

    def pair(difference):
        first, second = rng.random((2, 96, 16, 16, 1), "float32")
        return first, second + np.float32(difference)

    model = realism.trained(*(realism.labelled(*pair(0.3)) for _ in range(2)))

    def area(difference):
        scores = (model.predict(images, verbose=0)[:, 0] for images in pair(difference))
        return realism.auc(*scores, subjects, subjects)

    assert 0.9 < area(0.3).low and area(0.3).high <= 1
    assert area(-0.3).mean < 0.1
    assert 0.35 < area(0.0).mean < 0.65


def test_halves_of_one_and_of_two_subjects():
    images = heads(3).images
    both, joined = realism.halves(images), realism.halves(realism.of_two_subjects(images, 1))
    assert (both[..., :1] == images[:, :, :16]).all()
    assert (both[..., 1:] == images[:, :, :15:-1]).all()
    assert (joined[..., 0] == both[..., 0]).all()
    assert (joined[32:, ..., 1] == both[:64, ..., 1]).all(), "of another slice index"
    assert (joined[:32, ..., 1] == both[64:, ..., 1]).all()


def test_a_mirrored_slice_has_its_halves_exchanged():
    images, labels = realism.labelled(*[heads(2).images] * 2)
    plain, mirrored = np.split(realism.halves(images[labels == 1]), 2)
    assert (mirrored == plain[..., ::-1]).all() and (plain[..., 0] != plain[..., 1]).any()
