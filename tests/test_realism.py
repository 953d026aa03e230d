"""Each measure of realism on sets whose answer is known."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from oasis_helpers import set_metrics
from oasis_helpers.data import SliceSet
from oasis_helpers.metrics import ssim_scores
from oasis_helpers.set_metrics import FeatureSet
from oasis_helpers.pretrained import FEATURES

PEOPLE, LEVELS = 16, 12


def people(shift=0.0, spread=1.0, seed=0, count=PEOPLE):
    """Feature vectors of people whose slices resemble each other, as slices of one head do."""
    rng = np.random.default_rng(seed)
    middle = rng.normal(shift, spread, (count, 1, 6))
    slices = middle + 0.1 * rng.normal(size=(count, LEVELS, 6))
    return FeatureSet(slices.reshape(-1, 6), np.repeat(np.arange(count), LEVELS))


def test_kernel_distance_is_zero_on_average_between_sets_of_one_kind():
    found = [set_metrics.kid(people(seed=i), people(seed=100 + i)) for i in range(40)]
    means = np.array([estimate.mean for estimate in found])
    assert abs(means.mean()) < 2.5 * means.std() / 40**0.5, "biased"
    inside = np.mean([estimate.low <= 0 <= estimate.high for estimate in found])
    assert inside > 0.8


def test_kernel_distance_grows_with_the_difference():
    near, far = (set_metrics.kid(people(), people(shift, seed=1)) for shift in (0.5, 2))
    assert far.mean > near.mean and far.low > 0


def test_kernel_distance_against_a_sum_by_hand():
    """Three people with one slice each, and two others."""
    first, second = np.array([[1.0], [2.0], [0.0]]), np.array([[1.0], [-1.0]])

    def kernel(a, b):
        return (a * b + 1) ** 3

    within_first = np.mean([kernel(1, 2), kernel(1, 0), kernel(2, 0)])
    within_second = kernel(1, -1)
    across = np.mean([kernel(a, b) for a in (1, 2, 0) for b in (1, -1)])
    found = set_metrics.kid(
        FeatureSet(first, np.arange(3)), FeatureSet(second, np.arange(2))
    )
    assert found.mean == pytest.approx(within_first + within_second - 2 * across)


def test_overlap_of_alike_sets_is_high_and_of_distant_ones_zero():
    alike = set_metrics.prdc(people(count=60), people(count=60, seed=1))
    apart = set_metrics.prdc(people(), people(shift=30, seed=1))
    for measure in ("precision", "recall", "coverage"):
        assert alike[measure].mean > 0.35 and apart[measure].mean == 0
    assert alike["density"].mean > 0.5 and apart["density"].mean == 0


def test_overlap_tells_missing_variety_from_missing_quality():
    """A set of near copies of one good head is precise but doesn't cover; a wide one misses."""
    real = people(count=40)
    repeated = people(count=40, spread=0.05, seed=1)
    found = set_metrics.prdc(real, repeated)
    assert found["precision"].mean > 0.9 and found["recall"].mean < 0.3
    wild = set_metrics.prdc(real, people(count=40, spread=4, seed=2))
    assert wild["precision"].mean < 0.3 and wild["recall"].mean > 0.9


def test_a_ball_reaches_to_other_people():
    slices = people()
    reach = set_metrics._reach(slices)
    same = slices.people == slices.people[0]
    to_first = ((slices.values - slices.values[0]) ** 2).sum(1)
    assert reach[0] == pytest.approx(np.sort(to_first[~same])[set_metrics.NEIGHBOURS - 1])


def heads(subjects, seed=0, size=32):
    """Noisy ellipses that grow with the slice index."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - size / 2
    index = np.tile(np.arange(32), subjects).astype("int32")
    radius = (4 + index / 3)[:, None, None] + rng.normal(0, 0.1, (len(index), 1, 1))
    pictures = (np.hypot(y, x) < radius) * rng.uniform(0.4, 0.9, (len(index), size, size))
    names = np.repeat(np.arange(subjects), 32).astype("int32")
    return SliceSet(pictures[..., None].astype("float32"), names, index, "train", Path())


def test_pairwise_ssim_compares_people_and_not_levels():
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


def test_copies_of_training_slices_are_found_mirrored_or_not():
    train, unseen = heads(4), heads(4, seed=1)
    copies = np.concatenate([train.images[:20], train.images[20:40, :, ::-1], unseen.images[:60]])
    distance, place = set_metrics.nearest_pixels(copies, train)
    assert place[:40].tolist() == [*range(20), *range(len(train) + 20, len(train) + 40)]
    assert distance[:40].max() < 1e-3 < distance[40:].min()
    by_hand = np.sqrt(((unseen.images[0] - train.images) ** 2).mean((1, 2, 3))).min()
    assert distance[40] <= by_hand + 1e-6
    limit = set_metrics.nearest_pixels(unseen.images, train)[0]
    share = set_metrics.memorised_fraction(distance, limit, unseen.subjects)
    assert share.mean == pytest.approx(0.4, abs=0.03) and share.low <= share.mean <= share.high


def test_nearest_code_map():
    train = np.arange(24).reshape(2, 3, 4)
    distance, place = set_metrics.nearest_codes(np.array([[[12, 13, 14, 0]] * 3]), train)
    assert distance[0] == pytest.approx(9 / 12) and place[0] == 1


def test_anatomy_of_a_disc_with_a_hole():
    y, x = np.mgrid[:80, :80] - 39.5
    disc, hole = np.hypot(y, x) < 30, np.hypot(y, x) < 8
    picture = np.where(hole, 0.1, 0.5 * disc)
    lopsided = np.where(x > 10, 0.6 * picture, picture)
    found = set_metrics.anatomy(np.stack([picture, lopsided, 0 * picture])[..., None])
    assert found["brain area"][0] == pytest.approx(disc.mean())
    assert found["fluid area"][0] == pytest.approx((8 / 27) ** 2, rel=0.15)
    assert found["symmetry"][0] == pytest.approx(1) and found["symmetry"][1] < 0.95
    assert found["contrast"][1] > found["contrast"][0]
    assert all(np.isnan(found[name][2]) for name in set_metrics.ANATOMY)


def test_features_tell_levels_apart_better_than_random_ones():
    train, unseen = heads(6), heads(4, seed=1)
    shares = [
        features.neighbour_index_accuracy(features.feature_network(train, epochs), unseen)
        for epochs in (12, 0)
    ]
    assert shares[0] > shares[1] and shares[0] > 0.6


def test_damage_is_of_the_kind_asked_for():
    slices = heads(3)
    every = (*set_metrics.CORRUPTIONS, set_metrics.HELD_OUT_CORRUPTION)
    kinds = np.repeat(every, 16)
    found = set_metrics.corrupted(slices, kinds)
    assert found.dtype == np.float32 and 0 <= found.min() and found.max() <= 1
    untouched = (found == slices.images).all((1, 2, 3))
    assert untouched[kinds == "none"].all() and not untouched[kinds == "blurred"].any()
    rough = np.abs(np.diff(found[..., 0], axis=2)).mean((1, 2))
    before = np.abs(np.diff(slices.images[..., 0], axis=2)).mean((1, 2))
    assert (rough < before)[kinds == "blurred"].all() and (rough < before)[
        kinds == "two heads mixed"
    ].all()
    left_half = (
        found[kinds == "two halves"][:, :, :16] == slices.images[kinds == "two halves"][:, :, :16]
    )
    assert left_half.all()
    blocks = found[kinds == set_metrics.HELD_OUT_CORRUPTION]
    assert (blocks[:, ::2] == blocks[:, 1::2]).all()
    background = slices.images[kinds == "noisy"] == 0
    assert (found[kinds == "noisy"][background] == 0).all()


def test_damage_that_was_learnt_is_seen():
    train, others = heads(6), heads(4, seed=1)
    seen = features.sensitivity(features.feature_network(train, 8), train, others)
    assert list(seen) == [*set_metrics.CORRUPTIONS, set_metrics.HELD_OUT_CORRUPTION]
    assert seen["blurred"] > 3 * abs(seen["none"]) and seen["noisy"] > abs(seen["none"])


def test_table_has_every_measure_and_a_floor():
    train, real, others = heads(4), heads(6, seed=1), heads(6, seed=2)
    networks = {"trained": features.feature_network(train, 1)}
    networks["random"] = features.feature_network(train, 0)
    arguments = (others.slices, others.subjects)
    floor = set_metrics.set_table(networks, real, others.images, *arguments)
    dull = set_metrics.set_table(networks, real, others.images * 0.5, *arguments)
    assert set(floor["anatomy"]) == set(set_metrics.ANATOMY) and floor["slices"] == 192
    for measure in ("kid", "kid_random"):
        assert dull[measure][0] > floor[measure][0]
    assert dull["coverage"][0] < floor["coverage"][0]
    assert dull["anatomy"]["mean grey"] == 1 and dull["anatomy"]["brain area"] < 0.3


def test_drawn_slices_against_real_ones():
    """Ellipses that grow with the slice index: told apart when asked for, not when mislabelled."""
    train, unseen, drawn = heads(8), heads(3, seed=1), heads(2, seed=2)
    right = set_metrics.samples_table(drawn.images, drawn.slices, train, unseen)
    assert right["slices"] == {"drawn": 64, "unseen": 96}
    assert min(right["slice_index_accuracy"].values()) > 0.9
    np.testing.assert_allclose(right["high_frequency_power"], 1, atol=0.3)
    wrong = set_metrics.samples_table(drawn.images, 31 - drawn.slices, train, unseen)
    assert wrong["slice_index_accuracy"]["samples"] < 0.3
    dull = set_metrics.samples_table(drawn.images * 0.5, drawn.slices, train, unseen)
    assert max(dull["high_frequency_power"]) < 0.5


@pytest.mark.parametrize("name", ["oasis1", "cohort"])
def test_the_judging_network_is_the_one_that_was_fixed(name):
    """data/features/README.md: whoever changes it trains new weights before judging again."""
    stated = (FEATURES / "README.md").read_text()
    assert hashlib.sha256((FEATURES / f"{name}.keras").read_bytes()).hexdigest() in stated
