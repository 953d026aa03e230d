"""Scores of generated heads notice what they are for."""

import numpy as np

from oasis_helpers.set_metrics import nearest_pixels
from tests.examples import heads as examples
from tools import heads


def stacks(count, seed=0):
    return heads.stacks_of(examples(count, seed).images)


def test_independent_slices_agree_less_than_heads_in_every_third():
    brightness = np.array([0.4, 0.6, 0.8, 1.0])[:, None, None, None, None]
    whole = stacks(4) * brightness
    mixed = np.stack([whole[(np.arange(32) + k) % 4, np.arange(32)] for k in range(4)])
    of_heads, of_mixed = heads.agreement(whole), heads.agreement(mixed)
    assert len(of_heads["difference"]) == len(of_heads["brain_ssim"]) == 3
    assert (np.array(of_mixed["difference"]) > of_heads["difference"]).all()
    assert (np.array(of_mixed["brain_ssim"]) < of_heads["brain_ssim"]).all()


def test_slices_out_of_order_are_rough():
    order = np.r_[0:32:2, 1:32:2]
    rough, smooth = heads.area_roughness(stacks(2)[:, order]), heads.area_roughness(stacks(2))
    assert rough["brain area"] > smooth["brain area"]


def test_the_copy_alarm_notices_a_planted_copy():
    training = examples(5)

    def fraction(slices):
        return heads.one_subject_fraction(nearest_pixels(slices, training)[1], training)

    copies = training.images[:64]
    assert fraction(copies) == {"mean": 1.0, "largest": 1.0}
    assert fraction(copies[:, :, ::-1])["mean"] == 1.0, "mirrored"
    assert fraction(examples(3, seed=1).images)["mean"] < 0.8


def test_copied_heads_are_nearer_than_unseen_ones():
    training, unseen = examples(5), examples(6, seed=1).images
    copies = training.images[: 3 * 32]

    def distances(slices):
        return heads.of_heads(nearest_pixels(slices, training)[0])

    found = heads.memorisation(distances(np.concatenate([copies, unseen])), distances(unseen))
    assert found == {"count": 3, "p_value": round((9 / 15) ** 3, 4)}


def test_frames_of_reformats_keep_every_value():
    planes = np.random.default_rng(0).random((2, 32, 80))
    pictures = heads.framed(planes, 80)
    assert pictures.shape == (2, 80, 80, 1)
    np.testing.assert_array_equal(pictures[:, 8:72:2, :, 0], planes)
    np.testing.assert_array_equal(pictures[:, 9:72:2, :, 0], planes)
    assert not pictures[:, :8].any() and not pictures[:, 72:].any()


def test_means_by_third():
    assert heads.by_third(np.arange(6.0)[None]) == [0.5, 2.5, 4.5]
