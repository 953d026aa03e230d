"""Both recipes, side by side: the networks of the VQ-VAE, and how each set of weights is trained.

`reference_vqvae` is the recipe that courses teach, `improved_vqvae` is ours. `RECIPES` says
for each set of weights in `data/weights/` which networks it has and how long they are trained.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import keras
import numpy as np
from keras import layers, ops

from oasis_helpers.layers import (
    EMAVectorQuantizer,
    ResidualBlock,
    VectorQuantizer,
    refuse_below_one,
)
from oasis_helpers.vqvae import VQVAE, Region


def reference_vqvae(variance: float, size: int = 80, num_embeddings: int = 128) -> VQVAE:
    """The reference: the recipe that courses teach, and the baseline of every improvement.

    Strided convolutions of 32, 64 and 128 filters with ReLU, a 1 x 1 convolution to D = 16, a
    codebook trained by gradient, mirrored transposed convolutions and a linear output.

    Args:
        variance: of the training images in [0, 1].
        size: side of the slices, a multiple of 8; the code grid has side size / 8.
    """
    encoder, decoder = strided_encoder(size), strided_decoder(size)
    return VQVAE(encoder, VectorQuantizer(num_embeddings, 16), decoder, variance)


def improved_vqvae(
    variance: float,
    size: int = 80,
    region: Region | None = None,
    num_embeddings: int = 128,
    embedding_dim: int = 16,
    ssim_weight: float = 3.0,
    seed: int = 0,
    **networks,
) -> VQVAE:
    """Our recipe: small feature maps, a codebook that stays alive, a bounded output.

    Args:
        variance: of the training images in [0, 1].
        size: side of the slices in pixels.
        region: (top, left, height, width) that the code grid covers; None for the whole image.
        num_embeddings, embedding_dim: K and D.
        ssim_weight: weight of 1 - SSIM in the loss.
        seed: of the codebook's random samples.
        networks: patch, merge, widths and blocks, as for `patch_networks`.
    """
    encoder, decoder = patch_networks(size, embedding_dim, region, **networks)
    quantizer = EMAVectorQuantizer(num_embeddings, embedding_dim, seed=seed)
    return VQVAE(encoder, quantizer, decoder, variance, ssim_weight, region)


LEAST_SIZE = 16  # pixels: SSIM's window leaves no score of images below 11
STRIDED_FILTERS = (32, 64, 128)
_STRIDED = {"strides": 2, "padding": "same", "activation": "relu"}


def strided_encoder(size: int, embedding_dim: int = 16) -> keras.Model:
    """Three strided convolutions and a 1 x 1 convolution: images to vectors on size / 8."""
    _refuse_size(size, 8)
    image = keras.Input((size, size, 1))
    x = layers.Rescaling(1.0, offset=-0.5)(image)
    for filters in STRIDED_FILTERS:
        x = layers.Conv2D(filters, 3, **_STRIDED)(x)
    return keras.Model(image, layers.Conv2D(embedding_dim, 1)(x), name="encoder")


def strided_decoder(size: int, embedding_dim: int = 16, bounded: bool = False) -> keras.Model:
    """The mirror of `strided_encoder`; its output is linear, or a sigmoid where `bounded`."""
    _refuse_size(size, 8)
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
    region: Region | None = None,
    patch: tuple[int, int] = (4, 4),
    merge: tuple[int, int] = (2, 2),
    widths: tuple[int, ...] = (64, 128),
    blocks: int = 2,
) -> tuple[keras.Model, keras.Model]:
    """An encoder and a decoder that work on small feature maps, where a processor is fast.

    A convolution whose stride equals its kernel (space to depth) cuts the region of interest into
    patches. Residual blocks follow, then a merge to the code grid, then more residual blocks. The
    decoder mirrors this (sub-pixel convolution, Shi et al. 2016, arXiv 1609.05158) and ends in a
    sigmoid. Outside the region the image is black by construction.

    Args:
        size, embedding_dim, region: as for `improved_vqvae`.
        patch: height and width of a stem patch in pixels.
        merge: positions, vertically and horizontally, that each later stage merges into one.
        widths: channels of the stages, from the stem's grid to the code grid. Every stage after
            the first merges: with (4, 4) and (2, 2), two stages give one code for 8 x 8 pixels,
            three give one for 16 x 16. The rate is the number of grid positions times log2 K.
        blocks: residual blocks on every grid, in the encoder and in the decoder.

    Raises:
        ValueError: for a region outside the image, or one that the patches do not divide.
    """
    _refuse_size(size)
    refuse_below_one(embedding_dim=embedding_dim)
    if not widths:
        raise ValueError(f"widths = {widths}: expected a number of channels for each stage.")
    region = tuple(region) if region else (0, 0, size, size)
    border, (height, width) = border_of(region, size), region[2:]
    rows, columns = (side * step ** (len(widths) - 1) for side, step in zip(patch, merge))
    if min(rows, columns) < 1 or height % rows or width % columns:
        raise ValueError(
            f"A region of {height} x {width} pixels cannot be divided into patches of "
            f"{rows} x {columns}: choose sizes that divide."
        )
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


def _refuse_size(size: int, multiple: int = 1) -> None:
    whole = isinstance(size, (int, np.integer))
    if not whole or size < LEAST_SIZE:
        raise ValueError(f"A size of {size!r} pixels does not fit: use {LEAST_SIZE} or more.")
    if size % multiple:
        raise ValueError(f"A size of {size} pixels does not fit: use a multiple of {multiple}.")


def border_of(region: Region, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The pixels (above, below), (left, right) of a region of an image with sides `size`."""
    whole = len(region) == 4 and all(isinstance(number, (int, np.integer)) for number in region)
    if whole:
        top, left, height, width = region
        border = (top, size - top - height), (left, size - left - width)
        if min(*border[0], *border[1]) >= 0 and min(height, width) > 0:
            return border
    raise ValueError(
        f"The region {tuple(region)} (top, left, height, width) is no part of {size} x {size} "
        "pixels: choose whole numbers inside."
    )


@dataclass(frozen=True)
class Schedule:
    """How long and how fast one stage is trained.

    Attributes:
        steps: number of batches; rounded to whole epochs.
        batch_size: slices or code maps in a step.
        learning_rate: the peak between warm-up and cosine decay; fixed for the reference.
    """

    steps: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class Recipe:
    """How one set of weights is made.

    Attributes:
        data: "cohort" or "oasis1".
        size, crop: the frame, as for `load_slices`.
        vqvae: arguments of `improved_vqvae`, or {"reference": True} for the reference.
        vqvae_schedule: of the first stage; None where it is taken from `fine_tunes`.
        fine_tunes: the weights that give encoder and codebook, and the decoder that is fine-tuned
            against a discriminator.
        decoder_schedule: of that fine-tuning, and of the decoder of whole heads.
        prior: arguments of `GatedPixelCNN`, or {"reference": True} for the reference.
        prior_schedule: of the prior; None for weights without one.
        views: augmented versions of every training slice whose codes the prior learns: 1, as it
            is; 2, mirrored as well; more, also shifted.
        seed: of everything random.
    """

    data: str
    size: int = 80
    crop: str | None = None
    vqvae: dict = field(default_factory=dict)
    vqvae_schedule: Schedule | None = Schedule(5000, 32, 4e-3)
    fine_tunes: str | None = None
    decoder_schedule: Schedule | None = None
    prior: dict = field(default_factory=dict)
    prior_schedule: Schedule | None = None
    views: int = 1
    seed: int = 0


# At 80 x 80 the brains of OASIS's atlas frame lie in rows 12-66 and columns 18-61; the code grid
# covers that part with a margin, one code for 6 x 5 pixels, or for 3 x 3.
WHOLE_FRAME = {"region": (10, 15, 60, 50), "patch": (3, 5), "merge": (2, 1)}
FINE_GRID = {"region": (10, 10, 60, 60), "patch": (3, 3), "merge": (1, 1), "widths": (64, 96)}
# Cropped to the brains' square they lie in rows 2-77 and columns 9-70: 13 x 11 codes of 6 x 6.
CROPPED = {"region": (1, 7, 78, 66), "patch": (3, 3), "merge": (2, 2)}

_REFERENCE = {"reference": True}
_REFERENCE_20_EPOCHS = Recipe(  # in the frame of "oasis1", so that their slices compare
    "oasis1",
    crop="brain",
    vqvae=_REFERENCE,
    vqvae_schedule=Schedule(720, 128, 1e-3),
    prior=_REFERENCE,
    prior_schedule=Schedule(1500, 64, 3e-4),
)
_BEFORE_FINE_TUNING = Recipe("oasis1", 80, "brain", CROPPED, Schedule(4600, 32, 4e-3))
_FINE_TUNED = replace(
    _BEFORE_FINE_TUNING,
    vqvae_schedule=None,
    fine_tunes="oasis1-faithful",
    decoder_schedule=Schedule(1152, 32, 1e-3),
    prior={"filters": 64, "dropout": 0.15, "condition_dropout": 0.1},
    prior_schedule=Schedule(2000, 64, 2e-3),
    views=6,
)

_WITH_NEIGHBOUR = _FINE_TUNED.prior | {"below_dropout": 0.3, "head_bins": 6}

RECIPES = {
    "oasis1-faithful": _BEFORE_FINE_TUNING,
    "oasis1": replace(
        _FINE_TUNED,
        decoder_schedule=Schedule(2304, 32, 1e-3),
        prior=_WITH_NEIGHBOUR,
        prior_schedule=Schedule(9504, 32, 1.5e-3),
        seed=1,
    ),
    "oasis1-10x10": replace(
        _FINE_TUNED,
        crop=None,
        vqvae=WHOLE_FRAME,
        vqvae_schedule=Schedule(5000, 32, 4e-3),
        fine_tunes=None,
        decoder_schedule=None,
    ),
    "oasis1-20x20": Recipe(
        "oasis1", vqvae=FINE_GRID | {"num_embeddings": 256}, vqvae_schedule=Schedule(2000, 32, 4e-3)
    ),
    "oasis1-reference": _REFERENCE_20_EPOCHS,
    "oasis1-reference-100": replace(  # 100 epochs of each stage, as published
        _REFERENCE_20_EPOCHS,
        vqvae_schedule=Schedule(3600, 128, 1e-3),
        prior_schedule=Schedule(7200, 64, 3e-4),
    ),
    "cohort-faithful": replace(
        _BEFORE_FINE_TUNING, data="cohort", vqvae_schedule=Schedule(2000, 32, 4e-3)
    ),
    "cohort": replace(
        _FINE_TUNED,
        data="cohort",
        fine_tunes="cohort-faithful",
        decoder_schedule=Schedule(960, 32, 1e-3),
        prior=_WITH_NEIGHBOUR,
        prior_schedule=Schedule(3840, 32, 1.5e-3),
    ),
}
