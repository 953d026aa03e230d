"""Shipped weights: what they score, what they generate, and the scores that we set as targets."""

import numpy as np
import pytest

from oasis_helpers import (
    load_pretrained,
    load_slices,
    metrics,
    pretrained,
    sample_codes,
    sample_heads,
    set_metrics,
)
from oasis_helpers.data import SPLITS, read_json

NAMES = sorted(path.parent.name for path in pretrained.WEIGHTS.glob("*/scores.json"))


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_weights(name, request):
    """Measured again on test subjects; processors differ by a code here and there."""
    models = load_pretrained(name)
    fixture = {"cohort": "cohort_root", "oasis1": "real_root"}[models.scores["data"]]
    root = request.getfixturevalue(fixture)
    test, train = (models.load_slices(root, split) for split in ("test", "train"))
    if not models.scored_on(test):
        pytest.skip(f"{root} holds other test slices than those the weights were scored on")
    measured, stated = metrics.reconstruction_table(models.vqvae, test), models.scores["test"]
    for figure, tolerance in (("ssim", 0.002), ("brain_ssim", 0.005), ("psnr_db", 0.1)):
        np.testing.assert_allclose(measured[figure], stated[figure], atol=tolerance)
    assert measured["perplexity"] == pytest.approx(stated["perplexity"], rel=0.02)
    power, expected = (table["sharpness"]["high_frequency_power"] for table in (measured, stated))
    assert power == pytest.approx(expected, rel=0.03)
    if models.prior:
        prior = metrics.prior_table(models.vqvae, models.prior, train, test)
        bits = models.scores["prior_test"]["bits_per_code"][0]
        assert prior["bits_per_code"][0] == pytest.approx(bits, abs=0.02)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("-faithful")])
def test_weights_generate_brains(name):
    models = load_pretrained(name)
    if not models.prior:
        pytest.skip(f"{name} has no prior")
    images = models.vqvae.decode(sample_codes(models.prior, 2, slice_index=[4, 28]))
    size = models.scores["frame"]["size"]
    assert images.shape == (2, size, size, 1) and images.dtype == np.float32
    brain = images > 0.04
    assert brain.mean() > 0.2 and images[brain].mean() > 0.15


@pytest.mark.parametrize("name", ["cohort", "oasis1"])
def test_fine_tuned_and_reconstruction_trained_decoders_share_their_codes(name):
    ours, twin = load_pretrained(name).vqvae, load_pretrained(f"{name}-faithful").vqvae
    for part in ("encoder", "quantizer"):
        pairs = zip(getattr(ours, part).get_weights(), getattr(twin, part).get_weights())
        for one, other in pairs:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["cohort", "oasis1"])
def test_slices_of_a_head_agree_better_when_decoded_together(name):
    models = load_pretrained(name)
    heads = sample_heads(models.prior, 2, seed=1)
    alone = models.vqvae.decode(heads.reshape(-1, *models.prior.grid))
    together = models.decode_heads(heads)
    alone = alone.reshape(together.shape)
    one, other = (set_metrics.neighbour_agreement(x)[1].mean() for x in (alone, together))
    assert other > one + 0.02


def test_real_slices_are_complete(real_root):
    """Every subject of the course's data set has its 32 slices."""
    for split in SPLITS:
        _, counts = np.unique(load_slices(real_root, split).subjects, return_counts=True)
        assert len(counts) > 0 and set(counts.tolist()) == {32}


# ------------------------------------------------- targets, on real test subjects of the releases


def scores_of(name):
    scores = read_json(pretrained.WEIGHTS / name / "scores.json")
    assert scores["test"]["subjects"] == 18 and scores["test"]["slices"] == 576
    return scores


def test_target_scores_at_700_bits():
    scores = scores_of("oasis1-10x10")
    test, prior = scores["test"], scores["prior_test"]
    assert test["bits_per_slice"] == 700
    assert test["ssim"][0] >= 0.93 and test["brain_ssim"][0] >= 0.82
    assert test["perplexity_brain"] >= 90
    assert scores["train"]["dead_codes"] == 0
    assert prior["bits_per_code"][0] < min(prior["baselines"].values())


def test_target_scores_at_3200_bits():
    test = scores_of("oasis1-20x20")["test"]
    assert test["bits_per_slice"] <= 3200
    assert test["ssim"][0] >= 0.965 and test["brain_ssim"][0] >= 0.92


def test_the_fine_tuned_decoder_is_sharp_and_close_to_its_twin():
    ours, twin = scores_of("oasis1")["test"], scores_of("oasis1-faithful")["test"]
    assert 0.8 <= ours["sharpness"]["high_frequency_power"] <= 1.1
    assert twin["ssim"][0] - ours["ssim"][0] <= 0.02


def test_samples_are_much_closer_to_real_slices_than_those_of_the_reference():
    names = "oasis1", "oasis1-reference-100"
    ours, reference = (scores_of(name)["set_metrics"] for name in names)
    assert {row["slices"] for row in (*ours.values(), *reference.values())} == {576}

    def gap_closed(score):
        start, end = reference["samples"][score][0], ours["real"][score][0]
        return (start - ours["samples"][score][0]) / (start - end)

    assert gap_closed("kid") >= 0.9
    assert gap_closed("recall") >= 0.5 and gap_closed("coverage") >= 0.5


def test_samples_are_new_and_sharp_and_show_their_slice_index():
    scores = scores_of("oasis1")
    assert min(test["p_value"] for test in scores["memorisation"].values()) > 0.05, "copies"
    assert all(0.8 <= ratio <= 1.1 for ratio in scores["samples"]["high_frequency_power"])
    assert scores["samples"]["slices"]["samples"] == 640
    assert scores["samples"]["slice_index_accuracy"]["samples"] >= 0.8
