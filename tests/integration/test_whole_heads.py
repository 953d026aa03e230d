"""Whole heads: the cached sampler against the full pass, and what shipped priors sample."""

import functools

import numpy as np
import pytest

from oasis_helpers import sample_heads, sampling
from oasis_helpers.pixelcnn import GatedPixelCNN
from tests.examples import with_large_weights


@pytest.mark.parametrize("options", [{}, {"ventricles": 2, "temperature": 0.8}])
def test_the_cache_samples_the_heads_that_the_full_pass_samples(options, monkeypatch):
    small = {"filters": 16, "blocks": 3, "num_heads": 2, "below_dropout": 0.3, "head_bins": 3}
    prior = with_large_weights(GatedPixelCNN(12, (4, 5), **small))
    heads = sample_heads(prior, 3, seed=3, **options)
    known = np.where(np.arange(32)[:, None, None] % 5 < 2, heads, -1)
    again = sample_heads(prior, 3, seed=4, known=known)
    np.testing.assert_array_equal(again[known >= 0], heads[known >= 0])
    full_pass = functools.partial(sampling.start, cached=False)
    monkeypatch.setattr(sampling, "start", full_pass)
    np.testing.assert_array_equal(heads, sample_heads(prior, 3, seed=3, **options))
    np.testing.assert_array_equal(again, sample_heads(prior, 3, seed=4, known=known))
