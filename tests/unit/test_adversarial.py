"""Adversarial fine-tuning: which loss moves which network, and what stays as it was."""

import keras
import numpy as np
import pytest

from oasis_helpers.adversarial import AdversarialDecoder, head_decoder, patch_discriminator
from oasis_helpers.recipes import improved_vqvae
from oasis_helpers.vqvae import with_neighbours

REGION = (0, 4, 32, 24)
LOSSES = ("reconstruction_loss", "adversarial_loss", "feature_loss", "discriminator_loss")
OFF = {"reconstruction_weight": 0.0, "adversarial_weight": 0.0, "feature_weight": 0.0}


@pytest.fixture
def vqvae():
    keras.utils.set_random_seed(0)
    return improved_vqvae(0.1, size=32, region=REGION, num_embeddings=16, widths=(8, 8), blocks=1)


@pytest.fixture
def images():
    return np.random.default_rng(1).random((8, 32, 32, 1)).astype("float32")


def train_two_steps(vqvae, images, **weights):
    """Which of decoder and discriminator moved, and the logs of the last step."""
    model = AdversarialDecoder(vqvae, patch_discriminator(32, REGION, filters=8), **weights)
    model.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
    parts, codes = (model.decoder, model.discriminator), vqvae.encode(images)
    before = [[value.copy() for value in part.get_weights()] for part in parts]
    for _ in range(2):
        logs = model.train_on_batch(codes, images, return_dict=True)
    moved = [
        any(not np.array_equal(*pair) for pair in zip(old, part.get_weights()))
        for old, part in zip(before, parts)
    ]
    return moved, logs


def test_codes_stay_and_the_decoder_learns(vqvae, images):
    codes, decoded = vqvae.encode(images), vqvae.decode(vqvae.encode(images))
    codebook = np.array(vqvae.quantizer.codebook)
    moved, logs = train_two_steps(vqvae, images)
    assert moved == [True, True]
    np.testing.assert_array_equal(vqvae.encode(images), codes)
    np.testing.assert_array_equal(np.array(vqvae.quantizer.codebook), codebook)
    assert not np.array_equal(vqvae.decode(codes), decoded)
    assert {*LOSSES, "discriminator_accuracy"} <= set(logs)
    assert 0 <= logs["discriminator_accuracy"] <= 1


def test_the_discriminators_loss_moves_the_discriminator_only(vqvae, images):
    assert train_two_steps(vqvae, images, **OFF)[0] == [False, True]


def test_the_decoders_terms_leave_the_discriminator_alone(vqvae, images):
    """Its weights after a step of gradient descent are the same with these terms and without."""
    start, after = patch_discriminator(32, REGION, filters=8).get_weights(), []
    for weights in (OFF, {"adversarial_weight": 5.0, "feature_weight": 5.0}):
        discriminator = patch_discriminator(32, REGION, filters=8)
        discriminator.set_weights(start)
        model = AdversarialDecoder(vqvae, discriminator, **weights)
        model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
        model.train_on_batch(vqvae.encode(images), images)
        after.append(discriminator.get_weights())
    for without, with_terms in zip(*after):
        np.testing.assert_allclose(with_terms, without, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weight", ["adversarial_weight", "feature_weight"])
def test_each_term_of_the_decoder_moves_the_decoder(vqvae, images, weight):
    assert train_two_steps(vqvae, images, **OFF | {weight: 1.0})[0] == [True, True]


def test_the_discriminator_sees_the_region_only(images):
    discriminator, outside = patch_discriminator(32, REGION, filters=8), images.copy()
    outside[:, :, :4] = 0.5
    for one, other in zip(discriminator(images), discriminator(outside)):
        np.testing.assert_array_equal(np.array(one), np.array(other))
    assert discriminator.output_shape[-1] == (None, 8, 6, 1)


def test_accuracy_counts_real_and_generated_patches(vqvae, images):
    model = AdversarialDecoder(vqvae, patch_discriminator(32, REGION, filters=8))
    score = model.discriminator.layers[-1]
    score.set_weights([np.zeros(shape.shape) for shape in score.get_weights()[:1]] + [np.ones(1)])
    model.compile("sgd", run_eagerly=True)
    logs = model.test_on_batch(vqvae.encode(images), images, return_dict=True)
    assert logs["discriminator_accuracy"] == 0.5, "all patches pass for real ones"


def test_fit_refuses(vqvae, images, refused):
    model = AdversarialDecoder(vqvae, patch_discriminator(32, REGION, filters=8))
    model.compile("sgd", run_eagerly=True)
    codes, words = vqvae.encode(images), "call fit(codes, images)."
    refused(lambda: model.fit(codes, verbose=0), "fit needs targets", words)
    refused(lambda: model.fit(codes, images, sample_weight=np.ones(8), verbose=0), words)


# -------------------------------------------------------------------------------- whole heads


def test_a_head_decoder_starts_as_the_decoder(vqvae, images):
    codes, wide = vqvae.encode(images), head_decoder(vqvae.decoder)
    decoded = vqvae.decode(with_neighbours(codes, 4), head_decoder=wide)
    np.testing.assert_allclose(decoded, vqvae.decode(codes), atol=1e-6)


def test_a_trained_head_decoder_sees_both_neighbours_and_leaves_the_decoder(vqvae, images):
    codes = vqvae.encode(images)
    triples, before = with_neighbours(codes, 4), vqvae.decode(codes)
    wide = head_decoder(vqvae.decoder)
    model = AdversarialDecoder(vqvae, patch_discriminator(32, REGION, filters=8), wide)
    model.compile(keras.optimizers.Adam(1e-2), run_eagerly=True)
    model.train_on_batch(triples, images)
    np.testing.assert_array_equal(vqvae.decode(codes), before)
    decoded = vqvae.decode(triples, head_decoder=wide)
    for neighbour in (1, 2):
        changed = triples.copy()
        changed[..., neighbour] = (changed[..., neighbour] + 1) % 16
        difference = np.abs(vqvae.decode(changed, head_decoder=wide) - decoded)
        assert difference.max((1, 2, 3)).min() > 0
