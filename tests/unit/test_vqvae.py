"""The first stage: SSIM, slices to code maps and back."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from skimage.metrics import structural_similarity

from oasis_helpers.layers import VectorQuantizer
from oasis_helpers.recipes import improved_vqvae, reference_vqvae
from oasis_helpers.training import Batches
from oasis_helpers.vqvae import (
    gaussian_blur_matrix,
    reconstruction_loss,
    ssim,
    with_neighbours,
)

IMAGES = np.full((2, 16, 16, 1), 0.5, "float32")
CODES = np.zeros((2, 4, 4), "int32")


@pytest.fixture(scope="module")
def blobs():
    """Smooth discs of waves, float32 (8, 32, 32, 1) in [0, 1]."""
    y, x = np.mgrid[:32, :32] / 32
    angle, phase = np.random.default_rng(0).uniform(0, 6.3, (2, 8, 1, 1))
    waves = 0.5 + 0.5 * np.sin(9 * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    return (waves * ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.16))[..., None].astype("float32")


def small_model(**options):
    settings = {"size": 32, "num_embeddings": 16, "widths": (8, 8), "blocks": 1}
    return improved_vqvae(0.1, **settings | options)


def test_ssim_is_the_one_of_skimage(blobs):
    noise = np.random.default_rng(5).normal(0, 0.1, blobs.shape)
    noisy = np.clip(blobs + noise, 0, 1).astype("float32")
    ours = ops.convert_to_numpy(ssim(blobs, noisy, gaussian_blur_matrix(32)))
    theirs = [
        structural_similarity(
            first[..., 0],
            second[..., 0],
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
        )
        for first, second in zip(blobs, noisy)
    ]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_reconstruction_loss_is_error_over_variance_plus_one_minus_ssim(blobs):
    blur, darker = gaussian_blur_matrix(32), 0.8 * blobs
    error = np.mean((blobs - darker) ** 2) / 0.1
    similarity = ops.convert_to_numpy(ssim(blobs, darker, blur)).mean()
    assert float(reconstruction_loss(blobs, darker, 0.1, 0, blur)) == pytest.approx(error, rel=1e-5)
    both = float(reconstruction_loss(blobs, darker, 0.1, 3, blur))
    assert both == pytest.approx(error + 3 * (1 - similarity), rel=1e-4)


@pytest.mark.parametrize("make", [lambda: reference_vqvae(0.1, 32, 16), small_model])
def test_codes_and_images_have_the_promised_form_also_from_a_file(make, blobs, tmp_path):
    model = make()
    codes, (height, width) = model.encode(blobs), model.code_shape
    assert codes.shape == (8, height, width) == (8, 4, 4) and codes.dtype == np.int32
    decoded = model.decode(codes)
    assert decoded.shape == blobs.shape and decoded.dtype == np.float32
    assert 0 <= decoded.min() and decoded.max() <= 1
    assert model.num_embeddings == 16 and model.bits_per_slice == height * width * 4

    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(again.encode(blobs), codes)
    np.testing.assert_allclose(again.decode(codes), decoded, atol=1e-6)


def test_batch_size_changes_nothing_and_no_slice_is_allowed(blobs):
    model = small_model()
    codes = model.encode(blobs)
    np.testing.assert_array_equal(model.encode(blobs, batch_size=3), codes)
    np.testing.assert_allclose(model.decode(codes, 3), model.decode(codes), atol=1e-6)
    assert model.encode(blobs[:0]).shape == (0, 4, 4)
    assert model.decode(codes[:0]).shape == (0, 32, 32, 1)


def test_one_step_reports_scores_and_the_use_of_codes(blobs):
    model = small_model()
    model.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
    logs = model.train_on_batch(blobs, blobs, return_dict=True)
    assert {"loss", "mse", "ssim", "perplexity", "dead_codes"} <= set(logs)
    assert 1 <= logs["perplexity"] <= 16 and np.isfinite(logs["loss"])


def test_outside_the_region_all_is_black(blobs):
    model = small_model(region=(4, 8, 24, 16))
    decoded = model.decode(model.encode(blobs))
    assert model.code_shape == (3, 2)
    outside = np.ones((32, 32), bool)
    outside[4:28, 8:24] = False
    assert not decoded[:, outside].any() and decoded[:, ~outside].all()


def test_brain_positions_are_those_with_a_bright_pixel():
    model = small_model(region=(4, 8, 24, 16))
    image = np.zeros((1, 32, 32, 1), "float32")
    image[0, 4 + 8, 8 + 7] = 1  # second row of grid positions, first column
    np.testing.assert_array_equal(model.brain_positions(image)[0], [[0, 0], [1, 0], [0, 0]])


ENCODE = {
    "shape": (IMAGES[:, 1:], "shape (2, 15, 16, 1); expected (N, 16, 16, 1): load them with size="),
    "range": (IMAGES - 1, "encode got values from -0.5 to -0.5; expected [0, 1], the range that"),
    "bytes": ((IMAGES * 255).astype("uint8"), "encode got values from 127 to 127; expected [0, 1]"),
    "NaN": (IMAGES * np.nan, "encode got values from nan to nan; expected [0, 1]"),
    "text": (IMAGES.astype(str), "encode got images of type <U32; expected float32."),
}
DECODE = {
    "grid": (CODES[:, 1:], "decode got code maps of shape (2, 3, 4); expected (N, 4, 4)."),
    "too high": (
        CODES + 12,
        "decode got codes from 12 to 12; expected 0 to 11: these codes belong",
    ),
    "negative": (CODES - 1, "decode got codes from -1 to -1; expected 0 to 11"),
    "fractions": (CODES / 2, "decode got codes of type float64, not integers; expected 0 to 11"),
}


@pytest.mark.parametrize(("images", "words"), ENCODE.values(), ids=ENCODE)
def test_encode_refuses(vqvae, refused, images, words):
    refused(lambda: vqvae.encode(images), words)


@pytest.mark.parametrize(("codes", "words"), DECODE.values(), ids=DECODE)
def test_decode_refuses(vqvae, refused, codes, words):
    refused(lambda: vqvae.decode(codes), words)


# --------------------------------------------------------------------------- nothing silently wrong


def test_encode_holds_the_distances_of_one_batch_only(blobs, monkeypatch):
    """All at once they take 3.4 GiB for 3,072 slices, 20 x 20 codes and 256 entries."""
    model, rows, nearest = small_model(), [], VectorQuantizer.nearest
    monkeypatch.setattr(
        VectorQuantizer,
        "nearest",
        lambda layer, vectors: rows.append(len(vectors)) or nearest(layer, vectors),
    )
    expected = ops.convert_to_numpy(nearest(model.quantizer, model.encoder.predict(blobs)))
    np.testing.assert_array_equal(model.encode(blobs, batch_size=3), expected)
    assert max(rows) == 3


@pytest.mark.parametrize("kind", ["int8", "uint8", "uint16", "uint64"])
def test_decode_takes_codes_of_any_integer_type(vqvae, kind):
    np.testing.assert_array_equal(vqvae.decode(CODES.astype(kind)), vqvae.decode(CODES))


@pytest.mark.parametrize("part", ["encoder", "quantizer", "decoder"])
def test_weights_that_are_no_numbers_are_refused(refused, blobs, part):
    model = small_model()
    codes = model.encode(blobs)
    weight = getattr(model, part).weights[0]  # a ReLU may turn NaN into 0
    weight.assign(np.full(weight.shape, np.nan))
    words = f"The weights of the {getattr(model, part).name} hold NaN or infinity: the weights are"
    if part != "decoder":
        refused(lambda: model.encode(blobs), words)
    if part != "encoder":
        refused(lambda: model.decode(codes), words)


def test_activations_that_overflow_are_refused(refused, blobs):
    model = small_model()
    _, bias = model.encoder.layers[-1].weights
    bias.assign(np.full(bias.shape, 1e20))
    refused(lambda: model.encode(blobs), "encode's squared vectors hold NaN or infinity")


FITS = {
    "range": (lambda x: {"x": 255 * x, "y": 255 * x}, "fit got values from 0 to", "[0, 1]"),
    "targets": (lambda x: {"x": x, "y": 255 * x}, "fit got values from 0 to", "[0, 1]"),
    "validation": (
        lambda x: {"x": x, "y": x, "validation_data": (x, 255 * x)},
        "fit got values from 0 to",
    ),
    "batches": (
        lambda x: {"x": Batches.of(255 * x, 255 * x, 4)},
        "fit got values from 0 to",
    ),
    "size": (
        lambda x: {"x": x[:, ::2, ::2], "y": x[:, ::2, ::2]},
        "shape (8, 16, 16, 1); expected",
    ),
    "no targets": (lambda x: {"x": x}, "fit needs targets: call fit(images, images)."),
    "weights": (
        lambda x: {"x": x, "y": x, "sample_weight": np.zeros(len(x))},
        "weights of samples or classes have no part in this loss; call fit(images, images).",
    ),
}


@pytest.mark.parametrize("case", FITS.values(), ids=FITS)
def test_fit_refuses(refused, blobs, case):
    model, (arguments, *words) = small_model(), case
    model.compile("adam")
    refused(lambda: model.fit(**arguments(blobs), verbose=0), *words)


def test_a_model_that_was_never_called_is_exported(tmp_path, blobs):
    model = small_model()
    model.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "exported")
    decoded, codes = loaded.serve(blobs)
    np.testing.assert_array_equal(codes, model.encode(blobs))
    np.testing.assert_allclose(np.clip(decoded, 0, 1), model.decode(model.encode(blobs)), atol=1e-5)


def test_neighbours_are_the_slices_below_and_above():
    triples = with_neighbours(np.arange(6)[:, None, None] + np.zeros((1, 2, 2), int), slices=3)
    assert triples.shape == (6, 2, 2, 3)
    assert triples[:, 0, 0].tolist() == [
        *([0, 0, 1], [1, 0, 2], [2, 1, 2]),
        *([3, 3, 4], [4, 3, 5], [5, 4, 5]),
    ]
