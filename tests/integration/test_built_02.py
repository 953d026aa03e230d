"""The quantisers and the VQ-VAE built in notebook 02 equal the package's, with the same weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from oasis_helpers.layers import EMAVectorQuantizer, ResidualBlock, VectorQuantizer
from oasis_helpers.recipes import WHOLE_FRAME, improved_vqvae, reference_vqvae
from oasis_helpers.vqvae import VQVAE
from tests.examples import run_cells

NOTEBOOK = "02_vqvae_building"
K, D = 8, 3


def batch(seed, shape=(2, 4, 5, D)):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def with_gradients(quantizer, vectors):
    """Outputs, codes, loss terms, and the gradient of a loss to the vectors and the codebook."""
    vectors = tf.constant(vectors)
    with tf.GradientTape() as tape:
        tape.watch(vectors)
        quantised, codes = quantizer(vectors)
        loss = ops.sum(quantised * batch(7)) + sum(quantizer.losses)
    to_vectors, to_entries = tape.gradient(loss, [vectors, quantizer.codebook.value])
    return quantised, codes, quantizer.losses, to_vectors, tf.convert_to_tensor(to_entries)


def test_built_02_the_quantiser_is_the_packages():
    mine = run_cells(NOTEBOOK, ("nearest-entry", "my-quantizer"), {"BETA": 0.4})["MyQuantizer"]
    quantizers = mine(K, D), VectorQuantizer(K, D, commitment_cost=0.4)
    for quantizer in quantizers:
        quantizer.build((None, D))
        quantizer.set_weights([batch(1, (K, D))])
    results = (with_gradients(quantizer, batch(0)) for quantizer in quantizers)
    for one, other in zip(*results):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_built_02_the_ema_quantiser_is_the_packages(decay):
    cells = "nearest-entry", "my-ema-quantizer"
    mine = run_cells(NOTEBOOK, cells, {"BETA": 0.4, "DECAY": decay})["MyEMAQuantizer"](K, D)
    theirs = EMAVectorQuantizer(K, D, 0.4, decay, start_from_data=False, restart_below=0)
    far = np.concatenate([batch(1, (K - 1, D)), np.full((1, D), 50, "float32")])  # a dead entry
    for quantizer in (mine, theirs):
        quantizer.build((None, D))
        quantizer.codebook.assign(far)
    for seed in range(4):
        for one, other in zip(mine(batch(seed), training=True), theirs(batch(seed), training=True)):
            np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_allclose(mine.losses, theirs.losses, rtol=1e-5)
        for name in ("codebook", "counts", "sums"):
            one, other = (ops.convert_to_numpy(getattr(q, name)) for q in (mine, theirs))
            np.testing.assert_allclose(one, other, atol=1e-4)
    assert np.array_equal(ops.convert_to_numpy(mine.codebook)[-1], far[-1])


def test_built_02_the_networks_are_the_references():
    space = run_cells(NOTEBOOK, ["networks"], {"SIZE": 32, "FILTERS": (4, 4, 4)})
    theirs = reference_vqvae(1.0, 32)
    inputs = np.random.default_rng(0).random((2, 32, 32, 1)).astype("float32")
    for build, part in (("build_encoder", theirs.encoder), ("build_decoder", theirs.decoder)):
        mine = space[build]((32, 64, 128))
        mine.set_weights(part.get_weights())
        np.testing.assert_allclose(mine(inputs), part(inputs), atol=1e-5)
        inputs = part(inputs)


def test_built_02_the_small_vqvae_is_the_packages():
    cells = ["nearest-entry", "my-ema-quantizer", "networks", "assemble-model"]
    images = np.random.default_rng(0).random((4, 32, 32, 1)).astype("float32")
    space = {"SIZE": 32, "FILTERS": (4, 8, 8), "NUM_EMBEDDINGS": 16, "BETA": 0.25, "DECAY": 0.9}
    space |= {"VQVAE": VQVAE, "EMAVectorQuantizer": EMAVectorQuantizer, "unseen": images}
    space = run_cells(NOTEBOOK, [*cells, "same-vqvae"], {"variance": 0.1, **space})
    mine, theirs = space["small"], space["packaged"]
    np.testing.assert_allclose(mine(images), theirs(images)[0], atol=1e-5)
    losses = mine.train_on_batch(images, images), mine.evaluate(images, images, verbose=0)
    assert np.isfinite(losses).all()


def test_built_02_the_residual_block_is_the_packages():
    given = {"ResidualBlock": ResidualBlock, "SEED": 0, "SIZE": 80, "NUM_EMBEDDINGS": K}
    given |= {"WHOLE_FRAME": WHOLE_FRAME, "improved_vqvae": improved_vqvae, "variance": 0.1}
    given["reference"] = reference_vqvae(0.1, num_embeddings=K)
    residual_block = run_cells(NOTEBOOK, ["residual-block"], given)["residual_block"]
    maps, theirs = keras.Input((6, 6, 8)), ResidualBlock(8, 4)
    mine, inputs = keras.Model(maps, residual_block(maps, 8, 4)), batch(0, (1, 6, 6, 8))
    theirs.build(maps.shape)
    theirs.set_weights([weights + 0.1 for weights in mine.get_weights()])
    assert not np.allclose(mine(inputs), theirs(inputs))
    mine.set_weights(theirs.get_weights())
    np.testing.assert_allclose(mine(inputs), theirs(inputs), atol=1e-5)
