"""The VQ-VAE: slices to code maps and back, and the loss that trains it.

A slice in [0, 1] goes through an encoder to a grid of D-vectors, a quantiser replaces each by
the nearest of K codebook entries, and a decoder draws the slice again. The grid of entry numbers
is the code map that the second stage learns to draw.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops
from scipy import ndimage

from oasis_helpers.data import BRAIN_THRESHOLD
from oasis_helpers.layers import (
    EMAVectorQuantizer,
    ResidualBlock,
    VectorQuantizer,
    refuse_other_codes,
)

Field = tuple[int, int, int, int]  # top, left, height, width, in pixels of the network's input


@keras.saving.register_keras_serializable("oasis_helpers")
class VQVAE(keras.Model):
    """Encoder, quantiser and decoder, trained with `compile` and `fit(images, images)`.

    The reconstruction loss is the mean squared error over the variance of the training data
    (van den Oord et al. 2017, arXiv 1711.00937), plus `ssim_weight` x (1 - SSIM) (Zhao et al.
    2015, arXiv 1511.08861); the quantiser adds its own terms.

    Args:
        encoder: model from images (N, size, size, 1) in [0, 1] to vectors (N, h, w, D).
        quantizer: a `VectorQuantizer`.
        decoder: model from vectors (N, h, w, D) to images (N, size, size, 1).
        variance: of the training images, so that the loss has no unit.
        ssim_weight: weight of 1 - SSIM in the loss.
        field: (top, left, height, width) of the part of the picture that the grid of codes
            covers; None for all of it.
    """

    def __init__(
        self,
        encoder: keras.Model,
        quantizer: VectorQuantizer,
        decoder: keras.Model,
        variance: float = 1.0,
        ssim_weight: float = 0.0,
        field: Field | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder
        self.variance, self.ssim_weight = variance, ssim_weight
        self.size = encoder.input_shape[1]
        self.field = tuple(field) if field else (0, 0, self.size, self.size)
        self.blur = gaussian_blur_matrix(self.size)
        self.error = keras.metrics.Mean(name="mse")
        self.similarity = keras.metrics.Mean(name="ssim")
        if not quantizer.built:
            quantizer.build(encoder.output_shape)
        self.built = True

    @property
    def num_embeddings(self) -> int:
        """K, the number of codebook entries."""
        return self.quantizer.num_embeddings

    @property
    def code_shapes(self) -> list[tuple[int, int]]:
        """The height and width of the code map, one pair for each level of codes."""
        return [tuple(self.encoder.output_shape[1:3])]

    @property
    def bits_per_slice(self) -> float:
        """The rate: grid cells x log2 K."""
        return sum(h * w for h, w in self.code_shapes) * float(np.log2(self.num_embeddings))

    def call(self, images, training=False):
        vectors = self.encoder(images, training=training)
        return self.decoder(self.quantizer(vectors, training=training), training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        y, y_pred = ops.cast(y, "float32"), ops.cast(y_pred, "float32")
        error = ops.mean((y - y_pred) ** 2)
        # Scores are taken on [0, 1], which the reference's linear output may leave.
        self.error.update_state(error)
        self.similarity.update_state(ops.mean(ssim(y, ops.clip(y_pred, 0, 1), self.blur)))
        loss = reconstruction_loss(y, y_pred, self.variance, self.ssim_weight, self.blur)
        self.quantizer.update_metrics()
        # Keras's own sum of losses: under `tf.distribute` each device's share of the batch's mean.
        return self._aggregate_additional_loss(loss + sum(self.losses))

    def encode(self, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """Code maps of slices: float (N, size, size, 1) in [0, 1] to int32 (N, h, w).

        Raises:
            ValueError: for another shape, or values outside [0, 1].
        """
        images = np.asarray(images)
        if not np.issubdtype(images.dtype, np.number):
            raise ValueError(f"encode got images of type {images.dtype}; expected float32.")
        images = images.astype("float32", copy=False)
        if images.shape[1:] != (self.size, self.size, 1):
            raise ValueError(
                f"encode got images of shape {images.shape}; expected (N, {self.size}, "
                f"{self.size}, 1): load them with size={self.size}."
            )
        if not (images.min(initial=0) >= 0 and images.max(initial=0) <= 1):
            raise ValueError(
                f"encode got values from {images.min():.3g} to {images.max():.3g}; expected "
                "[0, 1], the range that load_slices returns."
            )
        if not len(images):
            return np.zeros((0, *self.code_shapes[0]), "int32")
        vectors = self.encoder.predict(images, batch_size, verbose=0)
        return ops.convert_to_numpy(self.quantizer.nearest(vectors))

    def decode(self, codes: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """Slices of code maps: int (N, h, w) in 0 ... K-1 to float32 (N, size, size, 1) in [0, 1].

        Raises:
            ValueError: for another shape, or codes outside 0 ... K-1.
        """
        codes = np.asarray(codes)
        if codes.shape[1:] != self.code_shapes[0]:
            raise ValueError(
                f"decode got code maps of shape {codes.shape}; expected (N, "
                f"{self.code_shapes[0][0]}, {self.code_shapes[0][1]})."
            )
        refuse_other_codes("decode got", codes, self.num_embeddings)
        if not len(codes):
            return np.zeros((0, self.size, self.size, 1), "float32")
        vectors = ops.convert_to_numpy(self.quantizer.lookup(codes))
        # `predict` sets up a pipeline at each call, which takes longer than to decode a few maps.
        starts = range(0, len(vectors), batch_size)
        parts = [self.decoder.predict_on_batch(vectors[at : at + batch_size]) for at in starts]
        return np.clip(np.concatenate(parts), 0, 1, dtype="float32")

    def brain_cells(self, images: np.ndarray) -> np.ndarray:
        """bool (N, h, w): the cells that hold brain in images (N, size, size, 1)."""
        top, left, height, width = self.field
        brain = images[:, top : top + height, left : left + width, 0] > BRAIN_THRESHOLD
        rows, columns = self.code_shapes[0]
        cells = brain.reshape(-1, rows, height // rows, columns, width // columns)
        return cells.any(axis=(2, 4))

    def build(self, input_shape):
        """Nothing is left to build when Keras asks for it: the parts are built from the start."""

    def get_config(self):
        parts = {"encoder": self.encoder, "quantizer": self.quantizer, "decoder": self.decoder}
        return {
            **{name: keras.saving.serialize_keras_object(part) for name, part in parts.items()},
            "variance": self.variance,
            "ssim_weight": self.ssim_weight,
            "field": list(self.field),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for part in ("encoder", "quantizer", "decoder"):
            config[part] = keras.saving.deserialize_keras_object(config[part])
        return cls(**config)


def reconstruction_loss(images, decoded, variance: float, ssim_weight: float, blur):
    """Mean squared error over the data's variance, plus `ssim_weight` x (1 - SSIM); a scalar."""
    loss = ops.mean((images - decoded) ** 2) / variance
    if ssim_weight:
        loss += ssim_weight * (1 - ops.mean(ssim(images, decoded, blur)))
    return loss


# ------------------------------------------------------------------------------------- recipes


def reference_vqvae(variance: float, size: int = 80, num_embeddings: int = 128) -> VQVAE:
    """The plain recipe that courses teach, the yardstick for every improvement.

    Strided convolutions of 32, 64 and 128 filters with ReLU, a 1 x 1 convolution to D = 16, a
    codebook trained by gradient, mirrored transposed convolutions and a linear output.

    Args:
        variance: of the training images in [0, 1].
        size: side of the slices, a multiple of 8; the code grid has side size / 8.
        num_embeddings: K.
    """
    encoder, decoder = strided_encoder(size), strided_decoder(size)
    return VQVAE(encoder, VectorQuantizer(num_embeddings, 16), decoder, variance)


def improved_vqvae(
    variance: float,
    size: int = 80,
    field: Field | None = None,
    patch: tuple[int, int] = (4, 4),
    merge: tuple[int, int] = (2, 2),
    num_embeddings: int = 128,
    embedding_dim: int = 16,
    widths: tuple[int, ...] = (64, 128),
    blocks: int = 2,
    ssim_weight: float = 3.0,
    seed: int = 0,
) -> VQVAE:
    """Our recipe: the work is done on small maps, the codebook lives, the output is bounded.

    Args:
        variance: of the training images in [0, 1].
        size: side of the slices in pixels.
        field: (top, left, height, width) that the code grid covers; None for the whole picture.
        patch: height and width of a stem patch in pixels.
        merge: neighbours, vertically and horizontally, that each later stage joins into one.
        num_embeddings: K.
        embedding_dim: D.
        widths: channels of the stages, from the stem's grid to the code grid. Every one after the
            first adds a `merge`: with (4, 4) and (2, 2) two stages make cells of 8 x 8 pixels,
            three make cells of 16 x 16, a quarter of the codes. The rate is the number of cells
            times log2 K.
        blocks: residual blocks on every grid, in the encoder and in the decoder.
        ssim_weight: weight of 1 - SSIM in the loss.
        seed: of the codebook's random draws.
    """
    encoder, decoder = patch_networks(size, embedding_dim, field, patch, merge, widths, blocks)
    quantizer = EMAVectorQuantizer(num_embeddings, embedding_dim, seed=seed)
    return VQVAE(encoder, quantizer, decoder, variance, ssim_weight, field)


STRIDED_FILTERS = (32, 64, 128)
_STRIDED = {"strides": 2, "padding": "same", "activation": "relu"}


def strided_encoder(size: int, embedding_dim: int = 16) -> keras.Model:
    """Three strided convolutions and a 1 x 1 convolution: pictures to vectors on size / 8."""
    _refuse_size(size, 8)
    image = keras.Input((size, size, 1))
    x = layers.Rescaling(1.0, offset=-0.5)(image)
    for filters in STRIDED_FILTERS:
        x = layers.Conv2D(filters, 3, **_STRIDED)(x)
    return keras.Model(image, layers.Conv2D(embedding_dim, 1)(x), name="encoder")


def strided_decoder(size: int, embedding_dim: int = 16, bounded: bool = False) -> keras.Model:
    """The mirror of `strided_encoder`; its output is linear, or a sigmoid where `bounded`."""
    vectors = keras.Input((size // 8, size // 8, embedding_dim))
    x = vectors
    for filters in reversed(STRIDED_FILTERS):
        x = layers.Conv2DTranspose(filters, 3, **_STRIDED)(x)
    x = layers.Conv2DTranspose(1, 3, padding="same")(x)
    x = layers.Activation("sigmoid")(x) if bounded else layers.Rescaling(1.0, offset=0.5)(x)
    return keras.Model(vectors, x, name="decoder")


def patch_networks(
    size: int,
    embedding_dim: int = 16,
    field: Field | None = None,
    patch: tuple[int, int] = (4, 4),
    merge: tuple[int, int] = (2, 2),
    widths: tuple[int, ...] = (64, 128),
    blocks: int = 2,
) -> tuple[keras.Model, keras.Model]:
    """An encoder and a decoder that do their work on small maps, where a processor is fast.

    The part of the picture that can hold brain (`field`) is cut into patches by a convolution
    whose stride equals its kernel (space to depth), looked at by residual blocks, merged to the
    code grid and looked at again; the decoder mirrors this (sub-pixel convolution, Shi et al.
    2016, arXiv 1609.05158) and ends in a sigmoid. Outside the field the picture is black by
    construction.

    Args:
        size, embedding_dim, field, patch, merge, widths, blocks: as for `improved_vqvae`.

    Raises:
        ValueError: for a field that can't be cut into whole cells.
    """
    field = tuple(field) if field else (0, 0, size, size)
    top, left, height, width = field
    cell = [side * step ** (len(widths) - 1) for side, step in zip(patch, merge)]
    if height % cell[0] or width % cell[1]:
        raise ValueError(
            f"A field of {height} x {width} pixels can't be cut into cells of "
            f"{cell[0]} x {cell[1]}: choose sizes that divide."
        )
    border = ((top, size - top - height), (left, size - left - width))
    fine, coarse = widths[0], widths[-1]

    image = keras.Input((size, size, 1))
    x = layers.Rescaling(1.0, offset=-0.5)(layers.Cropping2D(border)(image))
    x = layers.Conv2D(fine, patch, strides=patch)(x)
    for stage, width in enumerate(widths):
        x = layers.Conv2D(width, merge, strides=merge)(x) if stage else x
        for _ in range(blocks):
            x = ResidualBlock(width, width // 2)(x)
    encoder = keras.Model(image, layers.Conv2D(embedding_dim, 1)(x), name="encoder")

    vectors = keras.Input(encoder.output_shape[1:])
    x = layers.Conv2D(coarse, 3, padding="same")(vectors)
    for stage, width in enumerate(reversed(widths)):
        x = layers.Conv2DTranspose(width, merge, strides=merge)(x) if stage else x
        for _ in range(blocks):
            x = ResidualBlock(width, width // 2)(x)
    x = layers.Conv2DTranspose(1, patch, strides=patch, activation="sigmoid")(ops.relu(x))
    return encoder, keras.Model(vectors, layers.ZeroPadding2D(border)(x), name="decoder")


def _refuse_size(size: int, multiple: int) -> None:
    if size % multiple:
        raise ValueError(f"A size of {size} pixels doesn't fit: use a multiple of {multiple}.")


# ---------------------------------------------------------------------------------------- SSIM

SSIM_SIGMA = 1.5  # pixels, Wang et al. 2004
_SSIM_TRUNCATE = 3.5  # standard deviations, as skimage
_SSIM_BORDER = 5  # pixels that the window overlaps and skimage leaves out of the mean


def gaussian_blur_matrix(size: int) -> np.ndarray:
    """float32 (size, size): multiplying a column of pixels by it blurs as SSIM's window does."""
    blur = ndimage.gaussian_filter1d(np.eye(size), SSIM_SIGMA, axis=0, truncate=_SSIM_TRUNCATE)
    return blur.astype("float32")


def ssim(first, second, blur):
    """Structural similarity of pictures in [0, 1], differentiable (Wang et al. 2004).

    The same number as `skimage.metrics.structural_similarity` with Gaussian weights, sigma 1.5,
    `use_sample_covariance=False` and `data_range=1`. The blur is two matrix products, several
    times faster on a processor than a convolution with one channel.

    Args:
        first, second: float (N, size, size, 1) in [0, 1].
        blur: `gaussian_blur_matrix(size)`.

    Returns:
        float (N,).
    """
    first, second = ops.squeeze(first, -1), ops.squeeze(second, -1)
    blur = ops.cast(blur, first.dtype)

    def blurred(x):
        return ops.matmul(ops.matmul(blur, x), ops.transpose(blur))

    mean_1, mean_2 = blurred(first), blurred(second)
    variance_1 = blurred(first**2) - mean_1**2
    variance_2 = blurred(second**2) - mean_2**2
    covariance = blurred(first * second) - mean_1 * mean_2
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)) / (
        (mean_1**2 + mean_2**2 + c1) * (variance_1 + variance_2 + c2)
    )
    inner = slice(_SSIM_BORDER, -_SSIM_BORDER)
    return ops.mean(similarity[:, inner, inner], axis=(1, 2))
