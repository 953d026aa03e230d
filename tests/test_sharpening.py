"""Stage 1b: who learns from which loss, and what stays as it was."""

import keras
import numpy as np
import pytest

from oasis_helpers.adversarial import AdversarialDecoder, patch_discriminator
from oasis_helpers.vqvae import improved_vqvae

FIELD = (0, 4, 32, 24)


@pytest.fixture
def vqvae():
    keras.utils.set_random_seed(0)
    return improved_vqvae(0.1, size=32, region=FIELD, num_embeddings=16, widths=(8, 8), blocks=1)


@pytest.fixture
def pictures():
    return np.random.default_rng(1).random((8, 32, 32, 1)).astype("float32")


def fitted(vqvae, pictures, **weights):
    model = AdversarialDecoder(vqvae, patch_discriminator(32, FIELD, filters=8), **weights)
    model.compile(keras.optimizers.Adam(1e-3))
    before = [value.copy() for value in model.decoder.get_weights()], model.critic.get_weights()
    history = model.fit(vqvae.encode(pictures), pictures, epochs=2, verbose=0).history
    moved = [
        any(not np.array_equal(old, new) for old, new in zip(then, part.get_weights()))
        for then, part in zip(before, (model.decoder, model.critic))
    ]
    return moved, history


def test_codes_stay_and_the_decoder_learns(vqvae, pictures):
    codes, decoded = vqvae.encode(pictures), vqvae.decode(vqvae.encode(pictures))
    codebook = np.array(vqvae.quantizer.codebook)
    moved, history = fitted(vqvae, pictures)
    assert moved == [True, True]
    np.testing.assert_array_equal(vqvae.encode(pictures), codes)
    np.testing.assert_array_equal(np.array(vqvae.quantizer.codebook), codebook)
    assert not np.array_equal(vqvae.decode(codes), decoded)
    assert {"faithful", "realism", "features", "critic", "told_apart"} <= set(history)


def test_the_critics_loss_moves_the_critic_alone(vqvae, pictures):
    off = {"reconstruction_weight": 0.0, "adversarial_weight": 0.0, "feature_weight": 0.0}
    assert fitted(vqvae, pictures, **off)[0] == [False, True]


def test_the_critic_looks_at_the_field_only(pictures):
    critic, outside = patch_discriminator(32, FIELD, filters=8), pictures.copy()
    outside[:, :, :4] = 0.5
    for one, other in zip(critic(pictures), critic(outside)):
        np.testing.assert_array_equal(np.array(one), np.array(other))
    assert critic.output_shape[-1] == (None, 8, 6, 1)
