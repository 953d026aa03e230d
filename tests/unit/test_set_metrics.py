"""Each score of a set on sets whose answer is known."""

import random

import numpy as np
import pytest

from oasis_helpers import set_metrics
from oasis_helpers.metrics import ssim_scores
from oasis_helpers.set_metrics import FeatureSet
from tests.examples import heads

SLICES = 12  # of each subject in feature space


def subjects(shift=0.0, spread=1.0, seed=0, count=16):
    """Feature vectors whose slices resemble each other within a subject, as those of a head do."""
    rng = np.random.default_rng(seed)
    middle = rng.normal(shift, spread, (count, 1, 6))
    slices = middle + 0.1 * rng.normal(size=(count, SLICES, 6))
    return FeatureSet(slices.reshape(-1, 6), np.repeat(np.arange(count), SLICES))


# -------------------------------------------------------------------------- between two sets


def test_kid_of_sets_of_one_distribution_is_zero_on_average():
    estimates = [set_metrics.kid(subjects(seed=i), subjects(seed=100 + i)) for i in range(40)]
    means = np.array([estimate.mean for estimate in estimates])
    assert abs(means.mean()) < 2.5 * means.std() / 40**0.5, "biased"
    assert np.mean([estimate.low <= 0 <= estimate.high for estimate in estimates]) > 0.9


@pytest.mark.long
@pytest.mark.parametrize("count", [12, 18])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_intervals_of_sets_cover(count, shift):
    """Of 200 pairs of sets, 90 % or more have the mean of each score in its interval."""
    rows = []
    for seed in range(200):
        pair = subjects(seed=seed, count=count), subjects(shift, seed=1000 + seed, count=count)
        estimates = {"kid": set_metrics.kid(*pair)} | set_metrics.prdc(*pair)
        rows.append([[one.mean, one.low, one.high] for one in estimates.values()])
    mean, low, high = np.moveaxis(rows, -1, 0)
    true = mean.mean(0)
    covered = dict(zip(estimates, ((low <= true) & (true <= high)).mean(0)))
    assert min(covered.values()) >= 0.9, covered


def test_kid_grows_with_the_difference():
    near, far = (set_metrics.kid(subjects(), subjects(shift, seed=1)) for shift in (0.5, 2))
    assert far.mean > near.mean and far.low > 0


def test_kid_against_a_sum_by_hand():
    """Three subjects with one slice each, and two others."""
    first, second = np.array([[1.0], [2.0], [0.0]]), np.array([[1.0], [-1.0]])

    def kernel(a, b):
        return (a * b + 1) ** 3

    within_first = np.mean([kernel(1, 2), kernel(1, 0), kernel(2, 0)])
    within_second = kernel(1, -1)
    across = np.mean([kernel(a, b) for a in (1, 2, 0) for b in (1, -1)])
    estimate = set_metrics.kid(FeatureSet(first, np.arange(3)), FeatureSet(second, np.arange(2)))
    assert estimate.mean == pytest.approx(within_first + within_second - 2 * across)


def test_kid_leaves_pairs_within_a_subject_out():
    """A second copy of every slice under its subject's name adds no new pair."""
    one, other = (
        FeatureSet(np.random.default_rng(i).normal(size=(6, 2)), np.arange(6)) for i in range(2)
    )
    twice = FeatureSet(np.repeat(one.values, 2, 0), np.repeat(one.subjects, 2))
    expected = set_metrics.kid(one, other).mean
    assert set_metrics.kid(twice, other).mean == pytest.approx(expected)


def test_prdc_of_similar_sets_is_high_and_of_distant_ones_zero():
    alike = set_metrics.prdc(subjects(count=60), subjects(count=60, seed=1))
    apart = set_metrics.prdc(subjects(), subjects(shift=30, seed=1))
    for measure in ("precision", "recall", "coverage"):
        assert alike[measure].mean > 0.35 and apart[measure].mean == 0
    assert alike["density"].mean > 0.5 and apart["density"].mean == 0


def test_prdc_separates_missing_variety_from_missing_quality():
    """Near copies of one good head are precise but do not cover; a wide set misses."""
    real = subjects(count=40)
    repeated = set_metrics.prdc(real, subjects(count=40, spread=0.05, seed=1))
    assert repeated["precision"].mean > 0.9 and repeated["recall"].mean < 0.3
    wild = set_metrics.prdc(real, subjects(count=40, spread=4, seed=2))
    assert wild["precision"].mean < 0.3 and wild["recall"].mean > 0.9


def test_a_ball_reaches_to_the_fifth_nearest_slice_of_other_subjects():
    """Seven subjects on a line, three slices each; the other set is a single point."""
    line = np.repeat(np.arange(7.0), 3)[:, None]
    real = FeatureSet(line, np.repeat(np.arange(7), 3))
    # Seen from 0, slices of others lie at 1, 1, 1, 2, 2, so its ball ends at -2.
    for place, inside in ((-2.0, True), (-2.1, False)):
        other = FeatureSet(np.full((12, 1), place), np.arange(12))
        assert set_metrics.prdc(real, other)["precision"].mean == inside


def test_pairwise_ssim_compares_subjects_at_one_slice_index():
    slices = heads(3)
    same = np.tile(slices.images[:32], (3, 1, 1, 1))
    alike = set_metrics.pairwise_ssim(same, slices.slices, slices.subjects)
    assert alike.mean == pytest.approx(1)
    apart = set_metrics.pairwise_ssim(slices.images, slices.slices, slices.subjects)
    assert apart.mean < 0.9 and apart.low < apart.mean < apart.high
    by_hand = [
        ssim_scores(slices.images[32 * a : 32 * a + 32], slices.images[32 * b : 32 * b + 32])[0]
        for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    assert apart.mean == pytest.approx(np.mean(by_hand))


# ------------------------------------------------------------------------------- memorisation


def test_copies_of_training_slices_are_found_mirrored_or_not():
    train, unseen = heads(4), heads(4, seed=1)
    copies = np.concatenate([train.images[:20], train.images[20:40, :, ::-1], unseen.images[:60]])
    distance, place = set_metrics.nearest_pixels(copies, train)
    assert place[:40].tolist() == [*range(20), *range(len(train) + 20, len(train) + 40)]
    assert distance[:40].max() < 1e-2 < distance[40:].min()
    count, chance = set_metrics.memorisation_test(distance[:60], distance[40:])
    assert count == 40 and chance == pytest.approx(0.5**40)


def test_nearness_is_of_each_half_and_relative_to_fifty_slices():
    train, unseen = heads(4), heads(1, seed=1).images[3:4]
    joined = np.concatenate([train.images[:1, :, :16], train.images[70:71, :, 16:]], axis=2)
    assert set_metrics.nearest_pixels(joined, train)[0] == pytest.approx(0, abs=1e-2)
    candidates = np.concatenate([train.images, train.images[:, :, ::-1]])
    by_hand = []
    for half in (slice(16), slice(16, None)):
        squares = (unseen[:, :, half].astype("float64") - candidates[:, :, half]) ** 2
        nearest = np.sort(np.sqrt(squares.sum((1, 2, 3))))[:50]
        by_hand.append(nearest[0] / nearest.mean())
    ratio = set_metrics.nearest_pixels(unseen, train)[0]
    np.testing.assert_allclose(ratio, np.mean(by_hand), rtol=1e-4)


def test_the_memorisation_test_is_quiet_in_19_of_20_sets_without_copies():
    """Distances from one distribution: 2,000 sets of 60 samples and 50 unseen slices."""
    distances = np.random.default_rng(0).random((2000, 110))
    chances = [set_metrics.memorisation_test(one[:60], one[60:])[1] for one in distances]
    assert 0.01 < np.mean(np.array(chances) < 0.05) < 0.05


class Identity:
    """A tokenizer whose codes are the pixels."""

    @staticmethod
    def decode(codes):
        return codes[..., None]

    @staticmethod
    def encode(images):
        return images[..., 0]


def test_nearest_code_map():
    train = np.arange(24).reshape(2, 3, 4)
    maps = np.array([[[12, 13, 14, 0]] * 3, *np.roll(train[1:], 1, axis=2)])
    distance = set_metrics.nearest_codes(Identity, maps, train)
    assert distance.tolist() == pytest.approx([9 / 12, 0]), "a map that moved is the same"


# ------------------------------------------------------------------------ anatomy, slice index


def test_anatomy_of_a_disc_with_a_hole():
    y, x = np.mgrid[:80, :80] - 39.5
    disc, hole = np.hypot(y, x) < 30, np.hypot(y, x) < 8
    image = np.where(hole, 0.1, 0.5 * disc)
    lopsided = np.where(x > 10, 0.6 * image, image)
    values = set_metrics.anatomy(np.stack([image, lopsided, 0 * image])[..., None])
    assert values["brain area"][0] == pytest.approx(disc.mean())
    assert values["fluid area"][0] == pytest.approx((8 / 27) ** 2, rel=0.15)
    assert values["symmetry"][0] == pytest.approx(1) and values["symmetry"][1] < 0.95
    assert values["contrast"][1] > values["contrast"][0]
    assert all(np.isnan(values[name][2]) for name in set_metrics.ANATOMY)


# ---------------------------------------------------------------------- features and the table


def test_corruptions_are_of_the_kind_asked_for():
    slices = heads(3)
    kinds = np.repeat(set_metrics.CORRUPTIONS, 20)[: len(slices)]
    images = set_metrics.corrupted(slices, kinds)
    assert images.dtype == np.float32 and 0 <= images.min() and images.max() <= 1
    equal = (images == slices.images).all((1, 2, 3))
    assert equal[kinds == "none"].all() and not equal[kinds == "blurred"].any()
    roughness, before = (
        np.abs(np.diff(x[..., 0], axis=2)).mean((1, 2)) for x in (images, slices.images)
    )
    for kind in ("blurred", "two heads mixed"):
        assert (roughness < before)[kinds == kind].all()
    halves = kinds == "two halves"
    assert (images[halves][:, :, :16] == slices.images[halves][:, :, :16]).all()
    noisy = kinds == "noisy"
    assert (images[noisy][slices.images[noisy] == 0] == 0).all()


def test_feature_layers_depend_on_their_seed_and_touch_no_global_one():
    python, legacy = random.getstate(), np.random.get_state()[1].copy()
    first, same, other = (
        set_metrics.feature_layers((32, 32, 1), seed).get_weights()[0] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    assert random.getstate() == python
    np.testing.assert_array_equal(np.random.get_state()[1], legacy)


def test_table_has_every_score_and_shows_a_difference():
    train, real, others = heads(4), heads(6, seed=1), heads(6, seed=2)
    networks = {
        kind: set_metrics.standardised(set_metrics.feature_layers((32, 32, 1), seed), train)
        for kind, seed in (("trained", 1), ("random", 2))
    }
    features = networks["random"].predict(train.images, verbose=0)
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(features.std(0), 1, atol=1e-2)
    numbers = others.slices, others.subjects
    baseline = set_metrics.set_table(networks, real, others.images, *numbers)
    dark = set_metrics.set_table(networks, real, others.images * 0.5, *numbers)
    assert set(baseline["anatomy"]) == set(set_metrics.ANATOMY) and baseline["slices"] == 192
    for score in ("kid", "kid_random"):
        assert dark[score][0] > baseline[score][0]
    assert dark["coverage"][0] < baseline["coverage"][0]
    assert dark["anatomy"]["mean grey"] == 1 and dark["anatomy"]["brain area"] < 0.3


ARGUMENTS = {
    "lengths": (
        lambda: FeatureSet(np.ones((3, 2)), np.arange(2)),
        "A set of 3 slices of 2 subjects cannot be scored; expected a subject for each slice",
    ),
    "NaN": (
        lambda: FeatureSet(np.full((2, 2), np.nan), np.arange(2)),
        "cannot be scored; expected a subject for each slice, and finite features.",
    ),
    "KID of one": (
        lambda: set_metrics.kid(subjects(count=1), subjects()),
        "The KID needs two subjects or more in each set; these have 1 and 16.",
    ),
    "PRDC of few": (
        lambda: set_metrics.prdc(FeatureSet(np.ones((8, 6)), np.arange(8) // 4), subjects()),
        "needs 5 slices of other subjects for each slice, in each half of a set; choose",
    ),
    "PRDC of three slices": (
        lambda: set_metrics.prdc(subjects(), FeatureSet(np.ones((3, 6)), np.arange(3))),
        "needs 5 slices of other subjects for each slice, in each half of a set; choose",
    ),
    "PRDC of one": (
        lambda: set_metrics.prdc(subjects(), subjects(count=1)),
        "needs 5 slices of other subjects for each slice, in each half of a set; choose",
    ),
    "two subjects": (
        lambda: set_metrics.pairwise_ssim(np.ones((2, 16, 16, 1)), np.zeros(2), np.arange(2)),
        "Pairs of slices of 2 subjects have no interval; expected three subjects or more",
    ),
    "no common index": (
        lambda: set_metrics.pairwise_ssim(np.ones((3, 16, 16, 1)), np.arange(3), np.arange(3)),
        "expected three subjects or more with slices at the same index.",
    ),
    "one subject": (
        lambda: set_metrics.slice_index_classifier(heads(1)),
        "The number of samples must be more than the number of classes.",
    ),
    "pairs": (
        lambda: set_metrics.pairwise_ssim(np.ones((2, 16, 16, 1)), np.arange(2), np.arange(3)),
        "2 images, 2 slice indices and 3 subjects do not belong together; expected one of each",
    ),
}


@pytest.mark.parametrize(("call", "words"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_that_do_not_fit(refused, call, words):
    refused(call, words)


def test_a_classifier_of_fewer_slices_than_components():
    few = heads(2)
    classifier = set_metrics.slice_index_classifier(few)
    predicted = classifier.predict(few.images.reshape(64, -1))
    assert predicted.shape == (64,) and set(predicted) <= set(range(32))


# --------------------------------------------------------------------------- whole heads


def test_neighbours_of_a_head_agree_more_than_those_of_two():
    slices = heads(2)
    stacks = slices.images.reshape(2, 32, 32, 32, 1)
    difference, similarity = set_metrics.neighbour_agreement(stacks)
    assert difference.shape == similarity.shape == (2, 31)
    first = np.sqrt(np.mean((stacks[0, 0] - stacks[0, 1]) ** 2))
    assert difference[0, 0] == pytest.approx(first, rel=1e-5)
    same = set_metrics.neighbour_agreement(np.repeat(stacks[:, :1], 32, axis=1))
    assert not same[0].any() and same[1].min() == pytest.approx(1)


def test_reformats_are_planes_of_the_volume():
    stacks = np.random.default_rng(0).random((2, 32, 16, 16, 1))
    planes = set_metrics.reformats(stacks)
    assert {name: x.shape for name, x in planes.items()} == {
        "coronal": (2, 16, 32, 16),
        "sagittal": (2, 16, 32, 16),
    }
    np.testing.assert_array_equal(planes["coronal"][1, 5, 0], stacks[1, 31, 5, :, 0])
    np.testing.assert_array_equal(planes["sagittal"][1, 5, 30], stacks[1, 1, :, 5, 0])


def test_head_measures_are_means_of_subjects_and_bins_are_equally_filled():
    slices = heads(6)
    measures = set_metrics.head_measures(slices.images, slices.subjects)
    assert measures.shape == (6, 4) and np.isfinite(measures).all()
    grey = set_metrics.anatomy(slices.images[32:64])["mean grey"]
    assert measures[1, 1] == pytest.approx(np.nanmean(grey))
    bins = set_metrics.quantile_bins(np.random.default_rng(0).random((6, 2)), 3)
    assert (np.sort(bins, axis=0) == [[0, 0], [0, 0], [1, 1], [1, 1], [2, 2], [2, 2]]).all()
