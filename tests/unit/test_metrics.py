"""Every score against a case worked by hand."""

import numpy as np
import pytest
from scipy import stats

from oasis_helpers import metrics
from oasis_helpers.pixelcnn import GatedPixelCNN
from tests.examples import heads

IMAGES, CODES = np.full((2, 16, 16, 1), 0.5, "float32"), np.zeros((2, 4, 4), "int32")
PAIR = np.arange(2)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    images = np.zeros((4, 80, 80, 1), "float32")
    images[:, 20:60, 24:56] = rng.uniform(0.2, 1, (4, 40, 32, 1))
    return images


def test_ssim_of_an_image_with_itself_is_one(images):
    whole, brain = metrics.ssim_scores(images, images)
    np.testing.assert_allclose(whole, 1)
    np.testing.assert_allclose(brain, 1)


def test_brain_ssim_ignores_the_background(images):
    """A change inside the brain counts fully there, and little over the whole frame."""
    changed = images.copy()
    changed[:, 30:50, 30:50] = 0.5
    whole, brain = metrics.ssim_scores(images, changed)
    assert (brain < whole - 0.1).all()


def test_black_image_scores_on_the_whole_frame_but_not_on_the_brain(images):
    whole, brain = metrics.ssim_scores(images, np.zeros_like(images))
    assert (whole > 0.3).all() and (brain < 0.2).all()
    assert np.isnan(metrics.ssim_scores(np.zeros_like(images), images)[1]).all()


def test_psnr():
    black, grey = np.zeros((2, 9, 9, 1)), np.full((2, 9, 9, 1), 0.1)
    np.testing.assert_allclose(metrics.psnr(black, grey), [20, 20], rtol=1e-6)


def test_slices_of_a_subject_do_not_narrow_its_interval():
    """Ten equal slices of each subject say no more than one."""
    values = np.random.default_rng(1).normal(size=12)
    few = metrics.subject_interval(values, np.arange(12))
    many = metrics.subject_interval(np.repeat(values, 10), np.repeat(np.arange(12), 10))
    np.testing.assert_allclose(
        [few.mean, few.low, few.high], [many.mean, many.low, many.high], rtol=1e-9
    )
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose([few.low, few.high], expected)


@pytest.mark.parametrize("count", [12, 18])
def test_intervals_cover(count):
    """Of 3,000 sets of a few subjects, 94 to 96 % have the true mean in their interval."""
    rng, slices = np.random.default_rng(0), 4
    subjects = np.repeat(np.arange(count), slices)
    values = np.repeat(rng.normal(size=(3000, count)), slices, axis=1)
    values += rng.normal(size=values.shape)
    estimates = (metrics.subject_interval(one, subjects) for one in values)
    covered = np.mean([estimate.low <= 0 <= estimate.high for estimate in estimates])
    assert 0.94 < covered < 0.96


def test_a_single_subject_has_no_interval():
    estimate = metrics.subject_interval(np.array([1.0, 3.0]), np.zeros(2, int))
    assert estimate.mean == 2 and np.isnan([estimate.low, estimate.high]).all()


def test_interval_leaves_nan_out():
    estimate = metrics.subject_interval(np.array([1.0, np.nan, 3.0]), np.array([0, 0, 1]))
    assert estimate.mean == 2
    assert str(metrics.Estimate(0.5, 0.4, 0.6)) == "0.500 [0.400, 0.600]"


def test_interval_leaves_subjects_without_a_value_out():
    values, subjects = np.array([1, np.nan, 3, np.nan]), np.array([2, 5, 7, 9])
    expected = metrics.subject_interval(values[[0, 2]], subjects[[0, 2]])
    assert metrics.subject_interval(values, subjects) == expected
    assert np.isfinite([expected.low, expected.high]).all()


# ------------------------------------------------------------------------------ codes and priors


@pytest.mark.parametrize(
    ("counts", "expected"), [([1, 0, 0, 0], 1), ([5, 5, 5, 5], 4), ([4, 2, 1, 1], 2**1.75)]
)
def test_perplexity(counts, expected):
    assert metrics.perplexity(np.array(counts)) == pytest.approx(expected)


def test_code_counts():
    assert metrics.code_counts(np.array([[0, 2], [2, 2]]), 4).tolist() == [1, 0, 3, 0]


def test_bits_per_code():
    assert metrics.bits_per_code(np.array([-100 * np.log(2)]), 50).tolist() == [2.0]


def test_baselines_of_codes_that_position_and_slice_index_decide():
    """Code = slice index at position 0, position elsewhere: each finer table must gain."""
    slices = np.tile(np.arange(4), 200)
    codes = np.tile(np.arange(8).reshape(2, 4), (800, 1, 1))
    codes[:, 0, 0] = slices
    bits = metrics.baseline_bits(codes, slices, codes, slices, 8)
    assert bits["uniform"] == 3
    assert bits["uniform"] > bits["marginal"] > bits["per position"]
    assert bits["per position"] == pytest.approx(2 / 8, abs=0.02)  # 2 bits at one of 8 positions
    assert bits["per slice index and position"] == pytest.approx(0, abs=0.05)


def test_counts_of_neighbouring_slice_indices_help_where_codes_change_slowly():
    """A code for every eight indices, wrong one time in four; two slices at each index."""
    rng, slices = np.random.default_rng(0), np.tile(np.arange(32), 4)
    codes = np.repeat(slices // 8, 6).reshape(-1, 2, 3)
    noisy = np.where(rng.random(codes.shape) < 0.25, rng.integers(8, size=codes.shape), codes)
    train, test = np.split(noisy, 2)
    bits = metrics.baseline_bits(train, slices[: len(train)], test, slices[len(train) :], 8)
    alone, shared = list(bits.values())[-2:]
    assert shared < alone - 0.05
    one_each = np.repeat(slices % 8, 6).reshape(-1, 2, 3)  # the neighbour's code is never its own
    bits = metrics.baseline_bits(one_each[:64], slices[:64], one_each[64:], slices[64:], 8)
    alone, shared = list(bits.values())[-2:]
    assert shared == pytest.approx(alone, abs=0.01)


def test_baselines_give_codes_that_were_never_seen_a_probability():
    train, test = np.zeros((5, 2, 2), int), np.ones((5, 2, 2), int)
    bits = metrics.baseline_bits(train, np.zeros(5, int), test, np.zeros(5, int), 2)
    assert all(np.isfinite(value) for value in bits.values())


# -------------------------------------------------------------------------------------- sharpness


def waves(frequency, size=80):
    """A disc of waves of one frequency (cycles per pixel) around mid grey, black outside."""
    y, x = np.mgrid[:size, :size]
    disc = np.hypot(y - size / 2, x - size / 2) < 34
    image = disc * (0.5 + 0.3 * np.sin(2 * np.pi * frequency * x + 1))
    return image[None, ..., None].astype("float32")


@pytest.mark.parametrize("frequency", [0.1, 0.28, 0.4])
def test_power_lies_in_the_band_of_the_waves(frequency):
    power = metrics.band_power(waves(frequency))[0]
    band = np.searchsorted(metrics.BAND_EDGES, frequency) - 1
    assert power[band] > 0.9 * power.sum()
    fraction = metrics.high_frequency_power(power[None])[0] / power.sum()
    assert fraction > 0.9 if frequency > metrics.HALF_NYQUIST else fraction < 0.01


def test_sharpness_shows_lost_detail_and_detail_in_the_wrong_place():
    image = np.clip(waves(0.1) + 0.3 * (waves(0.35) - 0.5), 0, 1)
    moved = np.clip(waves(0.1) + 0.3 * (waves(0.35)[:, :, ::-1] - 0.5), 0, 1)
    same = metrics.sharpness_table(image, image)
    assert same["high_frequency_power"] == 1 and same["high_frequency_correlation"] == 1
    assert set(same["bands"]) == {1.0}
    assert metrics.sharpness_table(image, waves(0.1))["high_frequency_power"] < 0.1
    wrong = metrics.sharpness_table(image, moved)
    assert wrong["high_frequency_power"] == pytest.approx(1, abs=0.15)
    assert wrong["high_frequency_correlation"] < 0.9


def test_inner_brain_leaves_the_rim_out():
    weights = metrics.inner_brain(waves(0.1))[0]
    assert weights[40, 40] == pytest.approx(1) and weights[40, 40 - 33] < 0.01
    assert (metrics.inner_brain(np.zeros((1, 80, 80, 1))) == 0).all()


# --------------------------------------------------------------------------------------- refusals

ARGUMENTS = {
    "different shapes": (
        lambda: metrics.ssim_scores(IMAGES, IMAGES[:1]),
        "Images of shapes (2, 16, 16, 1) and (1, 16, 16, 1) cannot be compared; expected (N, size",
    ),
    "range": (
        lambda: metrics.ssim_scores(IMAGES, IMAGES - 1),
        "The images hold values from -0.5 to -0.5; expected [0, 1]: SSIM means nothing on data",
    ),
    "grey values": (
        lambda: metrics.ssim_scores(IMAGES * 255, IMAGES),
        "The originals hold values from 128 to 128; expected [0, 1]: divide by the highest",
    ),
    "NaN": (
        lambda: metrics.ssim_scores(IMAGES, IMAGES * np.nan),
        "The images hold values from nan to nan; expected [0, 1]",
    ),
    "bytes": (
        lambda: metrics.psnr(IMAGES.astype("uint8"), IMAGES),
        "The originals are of type uint8; expected floats in [0, 1].",
    ),
    "subjects": (
        lambda: metrics.subject_interval(np.ones(3), PAIR),
        "(3,) values for (2,) subjects make no mean; expected one subject for each value",
    ),
    "no value": (
        lambda: metrics.subject_interval(np.full(2, np.nan), PAIR),
        "make no mean; expected one subject for each value, and finite values.",
    ),
    "infinite": (
        lambda: metrics.subject_interval(np.array([1, np.inf]), PAIR),
        "make no mean; expected one subject for each value, and finite values.",
    ),
    "codes": (
        lambda: metrics.baseline_bits(CODES, PAIR, CODES + 12, PAIR, 12),
        "codes holds codes from 12 to 12; expected 0 to 11",
    ),
    "grids": (
        lambda: metrics.baseline_bits(CODES, PAIR, CODES[:, 1:], PAIR, 12),
        "Code maps of shapes (2, 4, 4) and (2, 3, 4) cannot be compared; expected one grid",
    ),
}


@pytest.mark.parametrize(("call", "words"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_out_of_range(refused, call, words):
    refused(call, words)


def test_bits_given_the_slice_below():
    """Every slice of these heads is a copy of the one below, which the baseline notices."""
    train, slices = heads(3), heads(2, seed=1)
    prior = GatedPixelCNN(12, (4, 4), filters=4, blocks=1, num_heads=1, below_dropout=0.1)
    rng = np.random.default_rng(0)
    codes = [np.repeat(rng.integers(12, size=(n, 4, 4)), 32, 0) for n in (3, 2)]
    table = metrics._bits_given_below(prior, train, codes[0], slices, codes[1])
    assert len(table["by_index"]) == 31 and table["baseline"] < 1
    assert table["bits_per_code"][0] == pytest.approx(np.mean(table["by_index"]), abs=1e-3)
