"""What the compiled sampler refuses; tests/integration/test_experiments.py compiles it."""

import keras
import numpy as np
import pytest

from experiments.compiled_sampler import CompiledSampler
from oasis_helpers.pixelcnn import GatedPixelCNN, MaskedPixelCNN


def gated():
    return GatedPixelCNN(12, (2, 2), filters=4, blocks=1, num_heads=1)


def test_another_prior_or_number_is_refused():
    with pytest.raises(ValueError, match="a MaskedPixelCNN; expected a GatedPixelCNN"):
        CompiledSampler(MaskedPixelCNN(12, (2, 2), filters=4), 2)
    with pytest.raises(ValueError, match="n = -1: expected a whole number"):
        CompiledSampler(gated(), -1)


def test_nothing_is_compiled_before_the_settings_are_right(monkeypatch):
    sampler = CompiledSampler(gated(), 2)
    monkeypatch.setattr(sampler, "sample", None)
    with pytest.raises(ValueError, match="temperature = 0: expected a number above"):
        sampler(temperature=0)
    with pytest.raises(ValueError, match="known has shape"):
        sampler(known=np.zeros((2, 3, 3), int))
    with pytest.raises(ValueError, match="slice_index has shape"):
        sampler([1, 2, 3])


def test_a_backend_without_xla_is_refused(monkeypatch):
    prior = gated()
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ValueError, match="Keras runs on torch, without XLA: use `sample_codes`"):
        CompiledSampler(prior, 2)
