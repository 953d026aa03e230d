"""Sampling code maps: the cache is exact, seeds and settings do what they promise."""

import threading
import warnings

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from oasis_helpers import sample_codes, sample_heads
from oasis_helpers.pixelcnn import NO_CONDITION, GatedPixelCNN, MaskedPixelCNN
from oasis_helpers.sampling import fill, head_conditions, inverse_cdf, truncate_logits
from tests.examples import with_large_weights

K = 12
CODES = np.zeros((2, 4, 4), "int32")


@pytest.fixture(scope="module")
def gated():
    options = {"filters": 16, "blocks": 3, "num_heads": 2, "condition_dropout": 0.1}
    return with_large_weights(GatedPixelCNN(K, (5, 7), **options))


@pytest.fixture(scope="module")
def masked():
    return with_large_weights(MaskedPixelCNN(K, (4, 4), filters=16))


@pytest.mark.parametrize(
    "options",
    [
        {"slice_index": [0, 9, 31], "temperature": 0.9, "top_k": 9, "seed": 4},
        {"slice_index": NO_CONDITION, "top_p": 0.9},
    ],
)
def test_the_cache_samples_what_the_full_pass_samples(gated, options):
    maps = sample_codes(gated, 3, **options)
    np.testing.assert_array_equal(maps, sample_codes(gated, 3, cached=False, **options))
    assert maps.shape == (3, 5, 7) and maps.dtype == np.int32
    assert 0 <= maps.min() and maps.max() < K


def test_the_slice_index_makes_a_difference(gated):
    assert np.mean(sample_codes(gated, 8, 0) != sample_codes(gated, 8, 31)) > 0.1


def test_a_prior_without_a_cache_is_sampled_by_the_full_pass(masked):
    maps = sample_codes(masked, 4, seed=1)
    assert maps.shape == (4, 4, 4) and len(np.unique(maps)) > 3
    np.testing.assert_array_equal(maps, sample_codes(masked, 4, seed=1, cached=False))


def test_the_seed_decides_and_the_batch_size_does_not(gated):
    maps = sample_codes(gated, 10, seed=1)
    np.testing.assert_array_equal(maps, sample_codes(gated, 10, seed=1, batch_size=3))
    assert not np.array_equal(maps, sample_codes(gated, 10, seed=2))
    assert sample_codes(gated, 0).shape == (0, 5, 7)


def test_without_an_index_the_maps_are_spread_over_all_of_them(gated):
    maps = sample_codes(gated, 4, seed=1)
    np.testing.assert_array_equal(maps, sample_codes(gated, 4, [0, 8, 16, 24], seed=1))


def test_known_codes_are_kept_and_condition_the_others(gated):
    known = np.random.default_rng(0).integers(K, size=(6, 5, 7))
    known[:, 2:] = -1
    maps = sample_codes(gated, 6, 3, known=known)
    np.testing.assert_array_equal(maps[:, :2], known[:, :2])
    assert maps.min() >= 0 and len(np.unique(maps[:, 2:])) > 3
    np.testing.assert_array_equal(maps, sample_codes(gated, 6, 3, known=known, cached=False))


def test_samples_follow_the_distribution():
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    uniform = np.random.default_rng(6).random(20_000)
    logits = np.tile(np.log(probabilities), (len(uniform), 1))
    frequencies = np.bincount(inverse_cdf(logits, uniform), minlength=4) / len(uniform)
    np.testing.assert_allclose(frequencies, probabilities, atol=0.015)


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [(2, None, 2), (None, 0.79, 2), (None, 0.81, 3), (1, 0.81, 1), (None, 1.0, 4)],
)
def test_only_the_likeliest_codes_are_kept(top_k, top_p, kept):
    logits = np.log([[0.15, 0.5, 0.05, 0.3]])
    finite = np.isfinite(truncate_logits(logits.copy(), top_k, top_p))[0]
    assert finite.tolist() == (np.argsort(np.argsort(-logits[0])) < kept).tolist()


# --------------------------------------------------------------------------- whole heads


@pytest.fixture(scope="module")
def neighbour():
    options = {"filters": 4, "blocks": 1, "num_heads": 1, "below_dropout": 0.3, "head_bins": 3}
    return with_large_weights(GatedPixelCNN(K, (3, 4), **options))


def test_bins_are_sampled_as_training_heads_combine_them(neighbour):
    counts = np.zeros((3, 3, 3, 3))
    counts[0, 2, 1, 0], counts[1, 1, 0, 2], counts[2, 0, 1, 1] = 600, 200, 200
    neighbour.head_counts.assign(counts)
    bins = head_conditions(neighbour, 4000)
    assert bins.dtype == np.int32
    assert set(map(tuple, bins)) == {(0, 2, 1, 0), (1, 1, 0, 2), (2, 0, 1, 1)}
    assert np.mean(bins[:, 0] == 0) == pytest.approx(0.6, abs=0.03)
    np.testing.assert_array_equal(bins[:5], head_conditions(neighbour, 5))
    assert head_conditions(neighbour, 3, ventricles=2).tolist() == [[2, 0, 1, 1]] * 3
    asked = head_conditions(neighbour, 2, brightness=[0, 1])
    assert asked.tolist() == [[2, 0, 1, 1], [1, 1, 0, 2]]
    assert (head_conditions(neighbour, 2, 0, 0)[:, :2] == 0).all()
    assert sample_heads(neighbour, 0, ventricles=1).shape == (0, 32, 3, 4)


HEADS = {
    "n": ({"n": -1}, "n = -1: expected a whole number, 0 or more."),
    "temperature": ({"temperature": 0}, "temperature = 0: expected a number above 0."),
    "known": ({"known": CODES}, "known has shape (2, 4, 4); expected (2, 32, 3, 4)."),
    "code": ({"known": np.full((2, 32, 3, 4), K)}, "known holds codes from 12 to 12; expected 0"),
    "bin 3": ({"ventricles": 3}, "A condition is 3; expected a bin from 0 to 2, or"),
    "bins": (
        {"brightness": [1]},
        "A condition is [1]; expected a bin from 0 to 2, or one",
    ),
    "half": ({"ventricles": 0.5}, "A condition is 0.5; expected a bin from 0 to 2, or one"),
}


@pytest.mark.parametrize(("options", "words"), HEADS.values(), ids=HEADS)
def test_heads_refuse_what_is_out_of_range(neighbour, refused, options, words):
    refused(lambda: sample_heads(**{"prior": neighbour, "n": 2} | options), words)


def test_heads_need_a_prior_with_neighbours(prior, refused):
    words = "This prior was trained without the slice below; expected one with it."
    refused(lambda: sample_heads(prior, 2), words)


SETTINGS = {
    "n -1": ({"n": -1}, "n = -1: expected a whole number, 0 or more."),
    "n 2.5": ({"n": 2.5}, "n = 2.5: expected a whole number, 0 or more."),
    "batch_size": ({"batch_size": 0}, "batch_size = 0: expected a whole number, 1 or more."),
    "seed": ({"seed": -1}, "seed = -1: expected a whole number, 0 or more."),
    "temperature 0": ({"temperature": 0}, "temperature = 0: expected a number above 0."),
    "temperature -1": ({"temperature": -1.0}, "temperature = -1.0: expected a number above 0."),
    "temperature NaN": ({"temperature": np.nan}, "temperature = nan: expected a number above 0."),
    "temperature text": ({"temperature": "hot"}, "temperature = 'hot': expected a number above 0."),
    "top_k 0": ({"top_k": 0}, "top_k = 0: expected 1 to 12, the codes."),
    "top_k 13": ({"top_k": 13}, "top_k = 13: expected 1 to 12, the codes."),
    "top_k 1.5": ({"top_k": 1.5}, "top_k = 1.5: expected 1 to 12, the codes."),
    "top_p 0": ({"top_p": 0}, "top_p = 0: expected a probability above 0, at most 1."),
    "top_p 1.5": ({"top_p": 1.5}, "top_p = 1.5: expected a probability above 0, at most 1."),
    "top_p NaN": ({"top_p": np.nan}, "top_p = nan: expected a probability above 0, at most 1."),
    "index": ({"slice_index": 33}, "slice_index [33] ...: expected integers from 0 (midbrain) to"),
    "indices": ({"slice_index": [1]}, "slice_index has shape (1,) for 2 maps; give one integer"),
    "known": ({"known": CODES[:1]}, "known has shape (1, 4, 4); expected (2, 4, 4)."),
    "known code": ({"known": CODES + K}, "known holds codes from 12 to 12; expected 0 to 11, and"),
    "known half": ({"known": CODES / 2}, "known holds codes of type float64, not integers;"),
    "no prior": ({"prior": None}, "prior is a NoneType; expected a GatedPixelCNN or a MaskedPixel"),
}


@pytest.mark.parametrize(("options", "words"), SETTINGS.values(), ids=SETTINGS)
def test_settings_out_of_range(prior, refused, options, words):
    refused(lambda: sample_codes(**{"prior": prior, "n": 2} | options), words)


# --------------------------------------------------------------------------- nothing silently wrong


@pytest.mark.parametrize("temperature", [1e-38, 1e-39, 1e-300, 5e-324, np.float32(1e-45)])
def test_a_temperature_near_zero_takes_the_likeliest_code(gated, temperature):
    with warnings.catch_warnings(action="error", category=RuntimeWarning):
        maps = sample_codes(gated, 2, 3, temperature=temperature)
    np.testing.assert_array_equal(maps, sample_codes(gated, 2, 3, top_k=1))
    assert len(np.unique(maps)) > 1


@pytest.mark.parametrize("temperature", [1e30, 1e300])
def test_a_very_high_temperature_takes_any_code(gated, temperature):
    with warnings.catch_warnings(action="error", category=RuntimeWarning):
        maps = sample_codes(gated, 20, 3, temperature=temperature)
    assert np.bincount(maps.ravel(), minlength=K).min() > 30


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("value", [np.nan, 3e38])
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_logits_that_are_no_numbers_are_refused(refused, value, cached):
    prior = GatedPixelCNN(K, (4, 4), filters=4, blocks=1, num_heads=1)
    for weight in prior.logits.weights:
        weight.assign(np.full(weight.shape, value))
    what = "The prior's weights" if np.isnan(value) else "sample_codes' logits"
    words = f"{what} hold NaN or infinity: the weights are damaged"
    refused(lambda: sample_codes(prior, 2, cached=cached), words)


@pytest.mark.parametrize("kind", ["int8", "uint8", "uint64"])
def test_known_codes_may_have_any_integer_type(prior, kind):
    known = np.random.default_rng(0).integers(K, size=(2, 4, 4)).astype(kind)
    np.testing.assert_array_equal(sample_codes(prior, 2, known=known), known)
    assert sample_codes(prior, 0, known=known[:0]).shape == (0, 4, 4)


def test_sampling_in_threads_leaves_the_number_of_blas_threads(prior):
    """Overlapping calls that each restore what they found would leave one thread."""
    first, second = threading.Event(), threading.Event()

    class Waiting:
        def __init__(self, started, ended):
            self.started, self.ended = started, ended

        def next_logits(self):
            self.started.set()
            self.ended.wait(0.5)
            return np.zeros((1, K), "float32")

        def append(self, codes):
            pass

    def sample(*events):
        fill(np.full((1, 1), -1), np.zeros((1, 1)), Waiting(*events))
        events[0].set()

    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    with threadpool_limits(3, user_api="blas"):
        before = threads()
        events = (first, second), (second, threading.Event())
        workers = [threading.Thread(target=sample, args=pair) for pair in events]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert threads() == before
