"""The VQ-VAE: slices to code maps and back, and the loss that trains it.

An encoder turns a slice in [0, 1] into a grid of D-vectors, a quantiser replaces each vector by the
nearest of K codebook entries, and a decoder turns these entries into a slice again. The grid of
entry indices is the code map, which the second stage learns to sample.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops
from scipy import ndimage

from oasis_helpers.data import BRAIN_THRESHOLD, SLICES_PER_SUBJECT
from oasis_helpers.layers import (
    CodebookUsage,
    VectorQuantizer,
    checked_codes,
    refuse_nan,
    refuse_targets,
)

Region = tuple[int, int, int, int]  # top, left, height, width, in pixels of the network's input


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
        region: (top, left, height, width), the region of interest: the part of the image that the
            grid of codes covers; None for all of it.

    Call arguments:
        images: float (N, size, size, 1) in [0, 1].

    Returns:
        float (N, size, size, 1), the reconstructions; and int32 (N, h, w), the code maps.
    """

    def __init__(
        self,
        encoder: keras.Model,
        quantizer: VectorQuantizer,
        decoder: keras.Model,
        variance: float = 1.0,
        ssim_weight: float = 0.0,
        region: Region | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder
        self.variance, self.ssim_weight = variance, ssim_weight
        self.size = encoder.input_shape[1]
        self.region = tuple(region) if region else (0, 0, self.size, self.size)
        self.blur = gaussian_blur_matrix(self.size)
        self.mse = keras.metrics.Mean(name="mse")
        self.ssim = keras.metrics.Mean(name="ssim")
        self.usage = CodebookUsage(quantizer.num_embeddings, name="usage")
        self(keras.Input(encoder.input_shape[1:]))  # builds what is not built, for `export` too

    @property
    def num_embeddings(self) -> int:
        """K, the number of codebook entries."""
        return self.quantizer.num_embeddings

    @property
    def code_shape(self) -> tuple[int, int]:
        """The height and width of a code map."""
        return tuple(self.encoder.output_shape[1:3])

    @property
    def bits_per_slice(self) -> float:
        """The rate: grid positions x log2 K."""
        height, width = self.code_shape
        return height * width * float(np.log2(self.num_embeddings))

    def call(self, images, training=False):
        vectors = self.encoder(images, training=training)
        entries, codes = self.quantizer(vectors, training=training)
        return self.decoder(entries, training=training), codes

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        refuse_targets("fit(images, images)", y, sample_weight)
        images, (decoded, codes) = ops.cast(y, "float32"), y_pred
        decoded = ops.cast(decoded, "float32")
        self.mse.update_state(ops.mean((images - decoded) ** 2))
        # Scores are taken on [0, 1], which the reference's linear output may leave.
        self.ssim.update_state(ops.mean(ssim(images, ops.clip(decoded, 0, 1), self.blur)))
        self.usage.update_state(codes)
        loss = reconstruction_loss(images, decoded, self.variance, self.ssim_weight, self.blur)
        return loss + sum(self.losses)  # the quantiser's terms

    def fit(self, x=None, y=None, *arguments, validation_data=None, **options):
        """Keras's `fit`; ValueError for arrays, or a first batch, that `encode` would refuse."""
        first = x[0] if isinstance(x, keras.utils.PyDataset) else (x, y)
        unseen = validation_data if isinstance(validation_data, (tuple, list)) else ()
        for images in (*first[:2], *unseen[:2]):
            if hasattr(images, "shape"):
                self._checked("fit", images)
        return super().fit(x, y, *arguments, validation_data=validation_data, **options)

    def encode(self, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """Code maps of slices: float (N, size, size, 1) in [0, 1] to int32 (N, h, w).

        Raises ValueError for another shape, values outside [0, 1], and weights that hold NaN.
        """
        images = self._checked("encode", images)
        for part in (self.encoder, self.quantizer):
            refuse_nan(f"The weights of the {part.name} hold", *part.get_weights())
        vectors = self.encoder.predict(images, batch_size, verbose=0) if len(images) else images
        with np.errstate(over="ignore"):
            refuse_nan("encode's squared vectors hold", np.square(vectors, dtype="float32"))
        codes = [np.zeros((0, *self.code_shape), "int32")]
        for at in range(0, len(vectors), batch_size):  # all distances at once take gigabytes
            nearest = self.quantizer.nearest(vectors[at : at + batch_size])
            codes.append(ops.convert_to_numpy(nearest))
        return np.concatenate(codes)

    def _checked(self, call: str, images) -> np.ndarray:
        """The images as float32; ValueError for another shape, or values outside [0, 1]."""
        images = np.asarray(images)
        if not np.issubdtype(images.dtype, np.number):
            raise ValueError(f"{call} got images of type {images.dtype}; expected float32.")
        images = images.astype("float32", copy=False)
        if images.shape[1:] != (self.size, self.size, 1):
            raise ValueError(
                f"{call} got images of shape {images.shape}; expected (N, {self.size}, "
                f"{self.size}, 1): load them with size={self.size}."
            )
        if not (images.min(initial=0) >= 0 and images.max(initial=0) <= 1):
            raise ValueError(
                f"{call} got values from {images.min():.3g} to {images.max():.3g}; expected "
                "[0, 1], the range that load_slices returns."
            )
        return images

    def decode(
        self, codes: np.ndarray, batch_size: int = 64, head_decoder: keras.Model | None = None
    ) -> np.ndarray:
        """Slices of code maps: int (N, h, w) in 0 ... K-1 to float32 (N, size, size, 1) in [0, 1].

        A `head_decoder` takes codes `with_neighbours`, int (N, h, w, 3).

        Raises ValueError for another shape, codes outside 0 ... K-1, and weights that hold NaN.
        """
        codes, decoder = np.asarray(codes), head_decoder or self.decoder
        expected = (*self.code_shape, 3) if head_decoder else self.code_shape
        if codes.shape[1:] != expected:
            expected = ", ".join(map(str, expected))
            raise ValueError(
                f"decode got code maps of shape {codes.shape}; expected (N, {expected})."
            )
        codes = checked_codes("decode got", codes, self.num_embeddings)
        for part in (self.quantizer, decoder):
            refuse_nan(f"The weights of the {part.name} hold", *part.get_weights())
        parts = [np.zeros((0, self.size, self.size, 1), "float32")]
        for at in range(0, len(codes), batch_size):
            entries = ops.convert_to_numpy(self.entries(codes[at : at + batch_size]))
            # `predict` sets up a pipeline at each call, which takes longer than a few maps.
            parts.append(decoder.predict_on_batch(entries))
        images = np.concatenate(parts)
        refuse_nan("decode's images hold", images)
        return np.clip(images, 0, 1, dtype="float32")

    def entries(self, codes):
        """What a decoder sees: float (N, h, w, D) of codes (N, h, w), or 3 D of (N, h, w, 3)."""
        depth = self.quantizer.embedding_dim * (codes.shape[3] if len(codes.shape) == 4 else 1)
        return ops.reshape(self.quantizer.lookup(codes), (-1, *self.code_shape, depth))

    def brain_positions(self, images: np.ndarray) -> np.ndarray:
        """bool (N, h, w): the grid positions that hold brain in images (N, size, size, 1)."""
        top, left, height, width = self.region
        brain = images[:, top : top + height, left : left + width, 0] > BRAIN_THRESHOLD
        rows, columns = self.code_shape
        patches = brain.reshape(-1, rows, height // rows, columns, width // columns)
        return patches.any(axis=(2, 4))

    def build(self, input_shape):
        """Does nothing: the parts are built from the start."""

    def get_config(self):
        parts = {"encoder": self.encoder, "quantizer": self.quantizer, "decoder": self.decoder}
        return {
            **{name: keras.saving.serialize_keras_object(part) for name, part in parts.items()},
            "variance": self.variance,
            "ssim_weight": self.ssim_weight,
            "region": list(self.region),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        parts = ("encoder", "quantizer", "decoder")
        load = keras.saving.deserialize_keras_object
        return cls(**config | {part: load(config[part]) for part in parts})


def with_neighbours(codes: np.ndarray, slices: int = SLICES_PER_SUBJECT) -> np.ndarray:
    """int (N, h, w, 3) of code maps (N, h, w): each slice's codes, those below, those above.

    Every `slices` maps are one stack, from the bottom; where a neighbour is missing, at both ends,
    the slice's own codes take its place.
    """
    stacks = codes.reshape(-1, slices, *codes.shape[1:])
    padded = np.pad(stacks, [(0, 0), (1, 1), (0, 0), (0, 0)], mode="edge")
    triples = np.stack([stacks, padded[:, :-2], padded[:, 2:]], axis=-1)
    return triples.reshape(*codes.shape, 3)


def reconstruction_loss(images, decoded, variance: float, ssim_weight: float, blur):
    """Mean squared error over the data's variance, plus `ssim_weight` x (1 - SSIM); a scalar."""
    loss = ops.mean((images - decoded) ** 2) / variance
    if ssim_weight:
        loss += ssim_weight * (1 - ops.mean(ssim(images, decoded, blur)))
    return loss


SSIM_SIGMA = 1.5  # pixels, Wang et al. 2004
_SSIM_TRUNCATE = 3.5  # standard deviations, as skimage
_SSIM_BORDER = 5  # pixels that the window overlaps and skimage leaves out of the mean


def gaussian_blur_matrix(size: int) -> np.ndarray:
    """float32 (size, size): multiplying a column of pixels by it blurs as SSIM's window does."""
    blur = ndimage.gaussian_filter1d(np.eye(size), SSIM_SIGMA, axis=0, truncate=_SSIM_TRUNCATE)
    return blur.astype("float32")


def ssim(first, second, blur):
    """Structural similarity of images in [0, 1], differentiable (Wang et al. 2004).

    The same number as `skimage.metrics.structural_similarity` with Gaussian weights, sigma 1.5,
    `use_sample_covariance=False` and `data_range=1`. The blur, `gaussian_blur_matrix(size)`, is two
    matrix products, several times faster on a processor than a convolution with one channel.

    Returns float (N,) for two float (N, size, size, 1).
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
