"""The first stage: SSIM, slices to code maps and back."""

import keras
import numpy as np
import pytest
from keras import ops
from skimage.metrics import structural_similarity

from oasis_helpers.recipes import improved_vqvae, reference_vqvae
from oasis_helpers.vqvae import gaussian_blur_matrix, reconstruction_loss, ssim

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
