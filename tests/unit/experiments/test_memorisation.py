"""Planted copies are what they say, and only copies raise the alarm."""

import numpy as np

from experiments import memorisation
from oasis_helpers import set_metrics
from tests.examples import heads


def test_only_copies_raise_the_alarm():
    rng, subjects = np.random.default_rng(0), np.repeat(np.arange(40), 32)
    by_chance = {name: 1 + rng.random(1280) for name in ("samples", "unseen")}
    distances = by_chance | {"near": np.full(128, 0.9), "not near": 1 + rng.random(128)}
    result = memorisation.alarms({"pixels": distances}, subjects)
    near, other = (result["copies"][kind]["pixels"] for kind in ("near", "not near"))
    assert near == {"found": 1.0, "alarms": {"0.01": 20, "0.05": 20, "0.1": 20}}
    assert other["found"] < 0.1 and max(other["alarms"].values()) <= 2
    assert max(alarms["pixels"] for alarms in result["without copies"].values()) <= 2


def test_copies_are_of_training_slices():
    train = heads(4)
    copies = memorisation.copies_of(train)
    assert {images.shape for images in copies.values()} == {(memorisation.COPIES, 32, 32, 1)}
    again, joined = copies["decoded again"], copies["two halves"]
    for pixels, name in ((1, "moved by a pixel"), (2, "moved by two pixels")):
        steps = pixels * np.array(set_metrics.STEPS)
        moved = [np.roll(again, step, axis=(1, 2)) for step in steps]
        assert np.any([(copies[name] == one).all((1, 2, 3)) for one in moved], axis=0).all()
    for half in (np.s_[:, :, :16], np.s_[:, :, 16:]):
        distances = ((joined[half][:, None] - train.images[half][None]) ** 2).sum((2, 3, 4))
        assert distances.min(1).max() == 0
    assert (joined[:, :, :16] == again[:, :, :16]).all()
    assert (joined[:, :, 16:] != again[:, :, 16:]).any((1, 2, 3)).all()
