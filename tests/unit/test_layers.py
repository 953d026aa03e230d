"""Quantisers, and how their codebook is used."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from oasis_helpers.layers import (
    CodebookUsage,
    EMAVectorQuantizer,
    ResidualBlock,
    VectorQuantizer,
    refuse_other_codes,
    straight_through,
)


def with_random_codebook(layer):
    layer.build((None, layer.embedding_dim))
    entries = np.random.default_rng(1).normal(size=(layer.num_embeddings, layer.embedding_dim))
    layer.codebook.assign(entries)
    return entries.astype("float32")


def test_quantiser_agrees_with_a_plain_search():
    layer = VectorQuantizer(8, 3)
    codebook = with_random_codebook(layer)
    vectors = np.random.default_rng(2).normal(size=(5, 7, 3)).astype("float32")
    expected = ((vectors[..., None, :] - codebook) ** 2).sum(-1).argmin(-1)
    entries, codes = map(ops.convert_to_numpy, layer(vectors))
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.nearest(vectors)), expected)
    np.testing.assert_allclose(entries, codebook[expected], atol=1e-6)
    assert codes.dtype == np.int32


def test_quantiser_adds_the_losses_of_the_paper():
    layer = VectorQuantizer(4, 2, commitment_cost=0.5)
    with_random_codebook(layer)
    vectors = np.random.default_rng(2).normal(size=(10, 2)).astype("float32")
    distance = np.mean((vectors - ops.convert_to_numpy(layer(vectors)[0])) ** 2)
    assert sum(map(float, layer.losses)) == pytest.approx(1.5 * distance, rel=1e-5)


def test_gradient_passes_straight_through_and_losses_pull_both_ways():
    layer = VectorQuantizer(4, 2, commitment_cost=0.5)
    codebook = with_random_codebook(layer)
    vectors, upstream = tf.constant([[0.5, -1.0]]), tf.constant([[3.0, -2.0]])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(vectors)
        entries, codes = layer(vectors)
        passed = tf.reduce_sum(entries * upstream)
        codebook_loss, commitment_loss = layer.losses
    assert tape.gradient(passed, layer.codebook.value) is None
    np.testing.assert_array_equal(tape.gradient(passed, vectors), upstream)
    difference = vectors - codebook[int(codes[0])]  # the mean is over two components
    np.testing.assert_allclose(tape.gradient(commitment_loss, vectors), 0.5 * difference, rtol=1e-5)
    assert tape.gradient(codebook_loss, vectors) is None
    pull = tf.convert_to_tensor(tape.gradient(codebook_loss, layer.codebook.value))
    np.testing.assert_allclose(pull[int(codes[0])], -difference[0], rtol=1e-5)


def test_straight_through_returns_the_entries():
    np.testing.assert_allclose(straight_through(np.float32([1, 2]), np.float32([5, 9])), [5, 9])


def test_quantiser_refuses_vectors_of_another_length():
    with pytest.raises(ValueError, match="vectors have 3 components, the codebook's entries 2"):
        VectorQuantizer(4, 2).build((None, 3))


def test_quantisers_stay_in_float32_under_half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer = EMAVectorQuantizer(4, 2)
        layer(np.ones((3, 2), "float16"), training=True)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {variable.dtype for variable in layer.weights} == {"float32"}


# ----------------------------------------------------------------------------- moving averages


def test_entries_become_the_means_of_their_vectors():
    centres = np.array([[20, 20], [30, 20], [20, 30], [30, 30]], "float32")
    rng = np.random.default_rng(3)
    layer = EMAVectorQuantizer(16, 2, decay=0.5)
    for _ in range(40):
        cloud = centres[rng.integers(4, size=400)] + rng.normal(0, 0.1, (400, 2))
        layer(cloud.astype("float32"), training=True)
    codebook = ops.convert_to_numpy(layer.codebook)
    distance = np.linalg.norm(codebook[:, None] - centres, axis=-1)
    assert distance.min(0).max() < 0.2, "a cluster without an entry"
    assert distance.min(1).max() < 0.4, "an entry far from all clusters"


def test_one_update_by_hand():
    layer = EMAVectorQuantizer(2, 1, decay=0.75, start_from_data=False, restart_below=0)
    layer.build((None, 1))
    layer.codebook.assign([[0.0], [10.0]])
    layer.counts.assign([4.0, 4.0])
    layer.sums.assign([[0.0], [40.0]])
    layer(np.float32([[2], [4], [9], [9], [9]]), training=True)
    np.testing.assert_allclose(layer.counts, [0.75 * 4 + 0.25 * 2, 0.75 * 4 + 0.25 * 3])
    np.testing.assert_allclose(layer.codebook, [[1.5 / 3.5], [(30 + 6.75) / 3.75]], rtol=1e-6)


def test_unused_entries_are_restarted_in_training_only():
    vectors = np.random.default_rng(4).normal(size=(256, 2)).astype("float32")
    layer = EMAVectorQuantizer(16, 2, decay=0.8)
    layer(vectors, training=True)
    assert float(layer.restarts) == 16, "all entries start from the data"
    layer.codebook.assign(np.full((16, 2), 50.0) + np.arange(16)[:, None])  # one is the nearest
    layer.sums.assign(layer.codebook * layer.counts[:, None])
    before = ops.convert_to_numpy(layer.codebook)
    layer(vectors, training=False)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.codebook), before)
    for _ in range(60):
        layer(vectors, training=True)
    assert len(np.unique(ops.convert_to_numpy(layer.nearest(vectors)))) == 16
    assert float(layer.restarts) > 16


def test_without_start_and_restart_unused_entries_stay():
    layer = EMAVectorQuantizer(16, 2, start_from_data=False, restart_below=0)
    vectors = np.full((64, 2), 5.0, "float32")
    layer(vectors, training=False)
    before = ops.convert_to_numpy(layer.codebook)
    layer(vectors, training=True)
    after = ops.convert_to_numpy(layer.codebook)
    assert float(layer.restarts) == 0
    assert (before != after).any(axis=1).sum() == 1
    np.testing.assert_allclose(after.max(0), 5, atol=1e-5)


def test_restarts_prefer_vectors_with_a_large_error():
    """Two thirds of a slice are black: a uniform sample would pick little else."""
    layer = EMAVectorQuantizer(64, 2, start_from_data=False)
    layer.build((None, 2))
    vectors = np.zeros((1000, 2), "float32")
    vectors[:20] = 1
    *_, candidates = layer.batch_statistics(vectors, layer.nearest(vectors))
    assert ops.convert_to_numpy(candidates).mean() > 0.9


# ---------------------------------------------------------------------------- usage, other parts


def test_usage_counts_everything_since_the_reset():
    usage = CodebookUsage(4)

    def after(*codes):
        usage.update_state(np.array(codes))
        result = usage.result()
        return pytest.approx(float(result["perplexity"])), float(result["dead_codes"])

    assert after(0, 1) == (2, 2)
    assert after(2, 3) == (4, 0)
    usage.reset_state()
    assert after(3, 3) == (1, 3)


def test_residual_block_adds_to_its_input():
    block = ResidualBlock(3, 2)
    images = np.random.default_rng(5).normal(size=(1, 4, 4, 3)).astype("float32")
    assert np.abs(ops.convert_to_numpy(block(images)) - images).max() > 0
    block.conv1x1.set_weights([np.zeros((1, 1, 2, 3)), np.ones(3)])
    np.testing.assert_allclose(ops.convert_to_numpy(block(images)), images + 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("codes", "lowest", "words"),
    [
        ([0, 12], 0, "x codes from 0 to 12; expected 0 to 11: these codes belong to another"),
        ([-1, 3], 0, "x codes from -1 to 3; expected 0 to 11:"),
        ([-2, 3], -1, "x codes from -2 to 3; expected 0 to 11, and -1 where a code is to be"),
        ([0.5], 0, "x codes of type float64, not integers; expected 0 to 11"),
    ],
)
def test_codes_of_another_codebook_are_refused(refused, codes, lowest, words):
    refused(lambda: refuse_other_codes("x", np.array(codes), 12, lowest), words)
    refuse_other_codes("x", np.array([0, 11]), 12)
    refuse_other_codes("x", np.array([-1, 11]), 12, lowest=-1)
