"""The quantisers that the ablation compares: values, codes, gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from experiments.quantizers import (
    FiniteScalarQuantizer,
    ResidualQuantizer,
    RotationQuantizer,
    rotated,
)
from oasis_helpers.layers import EMAVectorQuantizer


def cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_rotation_trick_gives_the_entries_and_rotates_the_gradient():
    """The new gradient has the angle to the vector that the old one has to the entry."""
    vectors, entries, upstream = np.random.default_rng(7).normal(size=(3, 5, 4)).astype("float32")
    with tf.GradientTape() as tape:
        watched = tf.constant(vectors)
        tape.watch(watched)
        result = rotated(watched, tf.constant(entries))
        loss = tf.reduce_sum(result * upstream)
    np.testing.assert_allclose(result.numpy(), entries, atol=1e-5)
    gradient = tape.gradient(loss, watched).numpy()
    np.testing.assert_allclose(cosine(gradient, vectors), cosine(upstream, entries), atol=1e-5)


def test_rotation_quantiser_differs_in_its_gradient_only():
    vectors = np.random.default_rng(7).normal(size=(50, 4)).astype("float32")
    results, gradients = [], []
    for kind in (EMAVectorQuantizer, RotationQuantizer):
        keras.utils.set_random_seed(0)
        layer, watched = kind(8, 4), tf.constant(vectors)
        layer(vectors, training=True)
        with tf.GradientTape() as tape:
            tape.watch(watched)
            entries, codes = layer(watched, training=True)
            loss = tf.reduce_sum(entries**2)
        results.append([ops.convert_to_numpy(x) for x in (entries, codes, *layer.weights)])
        gradients.append(tape.gradient(loss, watched).numpy())
        assert len(layer.losses) == 1
    for one, other in zip(*results):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert np.abs(gradients[0] - gradients[1]).max() > 0.1


def test_fsq_codes_and_grid_points_belong_together():
    layer = FiniteScalarQuantizer((8, 4, 4))
    codes = np.arange(128, dtype="int32")
    points = ops.convert_to_numpy(layer.lookup(codes))
    assert len(np.unique(points, axis=0)) == 128 and np.abs(points).max() == 1
    assert layer.num_embeddings == 128
    vectors = np.random.default_rng(8).normal(0, 3, (500, 3)).astype("float32")
    nearest = ops.convert_to_numpy(layer.nearest(vectors))
    assert nearest.min() >= 0 and nearest.max() < 128 and len(np.unique(nearest)) > 100
    entries, codes = map(ops.convert_to_numpy, layer(vectors))
    np.testing.assert_allclose(entries, points[nearest], atol=1e-5)
    np.testing.assert_array_equal(codes, nearest)


def test_residual_codes_leave_less_and_less_over():
    vectors = np.random.default_rng(3).normal(size=(400, 4)).astype("float32")
    keras.utils.set_random_seed(0)
    layer = ResidualQuantizer((8, 4), 4)
    for _ in range(30):
        layer(vectors, training=True)
    nearest = ops.convert_to_numpy(layer.nearest(vectors))
    assert nearest.min() >= 0 and nearest.max() < 32 and len(np.unique(nearest)) > 16
    entries, codes = map(ops.convert_to_numpy, layer(vectors))
    np.testing.assert_array_equal(codes, nearest)
    np.testing.assert_allclose(layer.lookup(codes), entries, atol=1e-5)
    first = ops.convert_to_numpy(layer.passes[0](vectors)[0])
    left_over = [np.mean((vectors - quantised) ** 2) for quantised in (0, first, entries)]
    assert left_over[0] > left_over[1] > left_over[2]


@pytest.mark.parametrize(
    ("layer", "losses"),
    [
        (RotationQuantizer(8, 3), 1),
        (FiniteScalarQuantizer((2, 2, 2)), 0),
        (ResidualQuantizer((4, 2), 3), 2),
    ],
)
def test_quantisers_have_the_interface_that_a_vqvae_needs(layer, losses):
    vectors = np.random.default_rng(2).normal(size=(2, 4, 5, 3)).astype("float32")
    entries, codes = layer(vectors, training=True)
    assert entries.shape == vectors.shape and codes.shape == (2, 4, 5) and codes.dtype == "int32"
    assert layer.nearest(vectors).dtype == "int32" and len(layer.losses) == losses
    assert layer.lookup(codes).shape == vectors.shape
    assert (layer.num_embeddings, layer.embedding_dim) == (8, 3)
