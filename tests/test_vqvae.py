"""The first stage: quantisers, SSIM, the model's contract."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from skimage.metrics import structural_similarity

from oasis_helpers.layers import (
    CodebookUsage,
    EMAVectorQuantizer,
    FiniteScalarQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
    rotated,
)
from oasis_helpers.vqvae import gaussian_blur_matrix, improved_vqvae, reference_vqvae, ssim


@pytest.fixture(scope="module")
def blobs():
    """Smooth pictures with structure to learn, float32 (64, 32, 32, 1) in [0, 1]."""
    y, x = np.mgrid[:32, :32] / 32
    rng = np.random.default_rng(0)
    angle, phase = rng.uniform(0, 6.3, (2, 64, 1, 1))
    waves = 0.5 + 0.5 * np.sin(9 * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    return (waves * ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.16))[..., None].astype("float32")


def small_model(**options):
    settings = {"size": 32, "num_embeddings": 16, "widths": (16, 16), "blocks": 1}
    return improved_vqvae(0.1, **{**settings, **options})


def test_nearest_and_lookup_agree_with_a_plain_search():
    rng = np.random.default_rng(1)
    layer = VectorQuantizer(8, 3)
    layer.build((None, 3))
    layer.codebook.assign(rng.normal(size=(8, 3)))
    vectors = rng.normal(size=(5, 7, 3)).astype("float32")
    codebook = ops.convert_to_numpy(layer.codebook)
    expected = ((vectors[..., None, :] - codebook) ** 2).sum(-1).argmin(-1)
    codes = ops.convert_to_numpy(layer.nearest(vectors))
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_allclose(ops.convert_to_numpy(layer(vectors)), codebook[expected], atol=1e-6)


def test_plain_quantiser_adds_the_losses_of_the_paper():
    rng = np.random.default_rng(2)
    layer = VectorQuantizer(4, 2, commitment_cost=0.5)
    layer.build((None, 2))
    layer.codebook.assign(rng.normal(size=(4, 2)))
    vectors = rng.normal(size=(10, 2)).astype("float32")
    distance = np.mean((vectors - ops.convert_to_numpy(layer(vectors))) ** 2)
    total = sum(float(loss) for loss in layer.losses)
    assert total == pytest.approx(1.5 * distance, rel=1e-5)


def test_quantiser_refuses_vectors_of_another_length():
    with pytest.raises(ValueError, match="vectors have 3 components, the codebook's entries 2"):
        VectorQuantizer(4, 2).build((None, 3))


def test_ema_entries_become_the_means_of_their_vectors():
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


def test_dead_entries_are_restarted_and_inference_changes_nothing():
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(256, 2)).astype("float32")
    layer = EMAVectorQuantizer(16, 2, decay=0.8)
    layer(vectors, training=True)
    layer.codebook.assign(np.full((16, 2), 50.0) + np.arange(16)[:, None])  # all but one die
    layer.sums.assign(layer.codebook * layer.counts[:, None])
    before = ops.convert_to_numpy(layer.codebook)
    layer(vectors, training=False)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.codebook), before)
    for _ in range(60):
        layer(vectors, training=True)
    assert len(np.unique(ops.convert_to_numpy(layer.nearest(vectors)))) == 16


def test_usage_is_over_everything_since_the_reset():
    usage = CodebookUsage(4)

    def after(*codes):
        usage.update_state(np.bincount(codes, minlength=4))
        found = usage.result()
        return pytest.approx(float(found["perplexity"])), float(found["dead_codes"])

    assert after(0, 1) == (2, 2)
    assert after(2, 3) == (4, 0)
    usage.reset_state()
    assert after(3, 3) == (1, 3)


def test_ssim_is_skimages(blobs):
    noisy = np.clip(blobs + np.random.default_rng(5).normal(0, 0.1, blobs.shape), 0, 1)
    ours = ops.convert_to_numpy(
        ssim(blobs[:8], noisy[:8].astype("float32"), gaussian_blur_matrix(32))
    )
    theirs = [
        structural_similarity(
            first[..., 0],
            second[..., 0],
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
        )
        for first, second in zip(blobs[:8], noisy[:8])
    ]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("make", [lambda: reference_vqvae(0.1, 32, 16), small_model])
def test_contract_training_and_saving(make, blobs, tmp_path):
    keras.utils.set_random_seed(0)
    model = make()
    model.compile(keras.optimizers.Adam(3e-3))
    history = model.fit(blobs, blobs, batch_size=16, epochs=12, verbose=0).history
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    codes, (height, width) = model.encode(blobs), model.code_shape
    assert codes.shape == (64, height, width) and codes.dtype == np.int32
    pictures = model.decode(codes)
    assert pictures.shape == blobs.shape and pictures.dtype == np.float32
    assert 0 <= pictures.min() and pictures.max() <= 1
    assert model.bits_per_slice == height * width * 4
    assert model.brain_positions(blobs).shape == codes.shape

    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(again.encode(blobs), codes)
    np.testing.assert_allclose(again.decode(codes), pictures, atol=1e-6)


def test_outside_the_field_all_is_black(blobs):
    model = small_model(region=(4, 8, 24, 16))
    pictures = model.decode(model.encode(blobs))
    assert model.code_shape == [(3, 2)]
    outside = np.ones((32, 32), bool)
    outside[4:28, 8:24] = False
    assert not pictures[:, outside].any() and pictures[:, ~outside].all()


def test_brain_cells_are_those_with_brain():
    model = small_model(region=(4, 8, 24, 16))
    image = np.zeros((1, 32, 32, 1), "float32")
    image[0, 4 + 8, 8 + 7] = 1  # second row of cells, first column
    np.testing.assert_array_equal(model.brain_positions(image)[0], [[0, 0], [1, 0], [0, 0]])


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (np.zeros((1, 40, 40, 1)), "encode got images of shape (1, 40, 40, 1); expected (N, 32,"),
        (np.full((1, 32, 32, 1), -0.5), "encode got values from -0.5 to -0.5; expected [0, 1]"),
        (np.full((1, 32, 32, 1), np.nan), "encode got values from nan to nan; expected [0, 1]"),
    ],
)
def test_encode_refuses(images, sentence):
    with pytest.raises(ValueError) as caught:
        small_model().encode(images)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("codes", "sentence"),
    [
        (np.zeros((1, 5, 4), int), "decode got code maps of shape (1, 5, 4); expected (N, 4, 4)"),
        (np.full((1, 4, 4), 16), "decode got codes from 16 to 16; expected 0 to 15"),
    ],
)
def test_decode_refuses(codes, sentence):
    with pytest.raises(ValueError) as caught:
        small_model().decode(codes)
    assert sentence in str(caught.value)


def test_recipes_refuse_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="A size of 50 pixels doesn't fit"):
        reference_vqvae(0.1, 50)
    with pytest.raises(ValueError, match="can't be cut into cells of 8 x 8"):
        improved_vqvae(0.1, 50)


def test_rotation_trick_gives_the_entries_and_turns_the_gradient():
    """Seen from the entry, the gradient has the direction that it has seen from the vector."""
    rng = np.random.default_rng(7)
    vectors, entries, upstream = rng.normal(size=(3, 5, 4)).astype("float32")
    with tf.GradientTape() as tape:
        seen = tf.constant(vectors)
        tape.watch(seen)
        reached = rotated(seen, tf.constant(entries))
        loss = tf.reduce_sum(reached * upstream)
    np.testing.assert_allclose(reached.numpy(), entries, atol=1e-5)
    gradient = tape.gradient(loss, seen).numpy()

    def cosine(a, b):
        return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)

    np.testing.assert_allclose(cosine(gradient, vectors), cosine(upstream, entries), atol=1e-5)


def test_fsq_codes_and_grid_points_belong_together():
    layer = FiniteScalarQuantizer((8, 4, 4))
    codes = np.arange(128, dtype="int32")
    points = ops.convert_to_numpy(layer.lookup(codes))
    assert len(np.unique(points, axis=0)) == 128 and np.abs(points).max() == 1
    vectors = np.random.default_rng(8).normal(0, 3, (500, 3)).astype("float32")
    nearest = ops.convert_to_numpy(layer.nearest(vectors))
    assert nearest.min() >= 0 and nearest.max() < 128 and len(np.unique(nearest)) > 100
    np.testing.assert_allclose(ops.convert_to_numpy(layer(vectors)), points[nearest], atol=1e-5)


def test_residual_codes_leave_less_and_less_over():
    vectors = np.random.default_rng(3).normal(size=(400, 4)).astype("float32")
    layer = ResidualQuantizer((8, 4), 4)
    for _ in range(60):
        layer(vectors, training=True)
    codes = ops.convert_to_numpy(layer.nearest(vectors))
    assert codes.min() >= 0 and codes.max() < 32 and len(np.unique(codes)) > 16
    quantised = ops.convert_to_numpy(layer(vectors))
    np.testing.assert_allclose(layer.lookup(codes), quantised, atol=1e-5)
    first = ops.convert_to_numpy(layer.passes[0](vectors))
    left_over = [np.mean((vectors - picture) ** 2) for picture in (0, first, quantised)]
    assert left_over[0] > left_over[1] > left_over[2]


def test_ema_without_start_or_restart_leaves_unused_entries_alone():
    layer = EMAVectorQuantizer(16, 2, start_from_data=False, restart_below=0)
    vectors = np.full((64, 2), 5.0, "float32")
    layer(vectors, training=False)
    before = ops.convert_to_numpy(layer.codebook)
    layer(vectors, training=True)
    after = ops.convert_to_numpy(layer.codebook)
    assert float(layer.restarted.value) == 0
    assert (before != after).any(axis=1).sum() == 1
    np.testing.assert_allclose(after.max(0), 5, atol=1e-5)
