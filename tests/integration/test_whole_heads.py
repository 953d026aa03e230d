"""Whole heads: the cached sampler against the full pass, and what shipped priors sample."""

import functools

import numpy as np
import pytest

from oasis_helpers import sample_codes, sample_heads, sampling
from oasis_helpers.pixelcnn import GatedPixelCNN
from tests.examples import with_large_weights

K = 12


@pytest.mark.parametrize("options", [{}, {"ventricles": 2, "temperature": 0.8}])
def test_the_cache_samples_the_heads_that_the_full_pass_samples(options, monkeypatch):
    small = {"filters": 16, "blocks": 3, "num_heads": 2, "below_dropout": 0.3, "head_bins": 3}
    prior = with_large_weights(GatedPixelCNN(K, (4, 5), **small))
    heads = sample_heads(prior, 3, seed=3, **options)
    known = np.where(np.arange(32)[:, None, None] % 5 < 2, heads, -1)
    again = sample_heads(prior, 3, seed=4, known=known)
    np.testing.assert_array_equal(again[known >= 0], heads[known >= 0])
    full_pass = functools.partial(sampling.start, cached=False)
    monkeypatch.setattr(sampling, "start", full_pass)
    np.testing.assert_array_equal(heads, sample_heads(prior, 3, seed=3, **options))
    np.testing.assert_array_equal(again, sample_heads(prior, 3, seed=4, known=known))


@pytest.fixture(scope="module")
def neighbour():
    options = {"filters": 4, "blocks": 1, "num_heads": 1, "below_dropout": 0.3, "head_bins": 3}
    return with_large_weights(GatedPixelCNN(K, (3, 4), **options))


def test_heads_depend_on_the_seed_and_not_on_their_number(neighbour):
    heads = sample_heads(neighbour, 2, seed=3)
    assert heads.shape == (2, 32, 3, 4) and heads.dtype == np.int32
    assert 0 <= heads.min() and heads.max() < K
    np.testing.assert_array_equal(heads, sample_heads(neighbour, 3, seed=3)[:2])
    assert not np.array_equal(heads, sample_heads(neighbour, 2, seed=4))


def test_every_slice_follows_from_the_one_below(neighbour):
    heads = sample_heads(neighbour, 4, temperature=1e-9, ventricles=1, brightness=2)
    conditions = sampling.head_conditions(neighbour, 4, ventricles=1, brightness=2)
    for index in (0, 1, 30):
        below = heads[:, index - 1] if index else None
        logits = neighbour(neighbour.inputs_for(heads[:, index], index, below, conditions))
        np.testing.assert_array_equal(np.argmax(logits, -1), heads[:, index])
    slices = sample_codes(neighbour, 4, 5, below=heads[:, 4], top_k=1)
    logits = neighbour(neighbour.inputs_for(slices, 5, heads[:, 4]))
    np.testing.assert_array_equal(np.argmax(logits, -1), slices)
    options = {"slice_index": 5, "below": heads[:, 4], "batch_size": 3}
    full = sample_codes(neighbour, 4, cached=False, **options)
    np.testing.assert_array_equal(sample_codes(neighbour, 4, **options), full)


def test_known_slices_are_kept_and_continued(neighbour):
    known = np.full((3, 32, 3, 4), -1)
    known[:, :4] = np.random.default_rng(0).integers(K, size=(3, 4, 3, 4))
    known[:, 7:] = 7
    heads = sample_heads(neighbour, 3, known=known)
    np.testing.assert_array_equal(heads[known >= 0], known[known >= 0])
    assert heads.min() >= 0 and len(np.unique(heads[:, 4:7])) > 3
    np.testing.assert_array_equal(sample_heads(neighbour, 3, known=heads), heads)
