"""How fast is each stage, compared with two simpler recipes?

Training steps of both stages and sampling are timed in one run, on blank slices: the time does not
depend on what is in the images or on how well the networks are trained. How good the result is,
`time_to_target` measures. No slices are needed.
"""

import keras
import numpy as np
from keras import layers

from experiments.variants import machine_facts, step_seconds, timed
from oasis_helpers.layers import VectorQuantizer
from oasis_helpers.pixelcnn import GatedPixelCNN, MaskedPixelCNN, Prior
from oasis_helpers.recipes import RECIPES, improved_vqvae, reference_vqvae
from oasis_helpers.sampling import sample_codes
from oasis_helpers.vqvae import VQVAE

REPEATS = 13  # of a position of the usual sampling loop; all positions cost the same


def keras_example(variance: float, size: int = 80) -> VQVAE:
    """A baseline after the description of Keras's own VQ-VAE example, not its code.

    Two strided convolutions of 32 and 64 filters, D = 16, K = 128 trained by gradient, mirrored
    transposed convolutions and a linear output: a grid of size / 4.
    """
    strided = {"kernel_size": 3, "strides": 2, "padding": "same", "activation": "relu"}
    encoder = [layers.Conv2D(filters, **strided) for filters in (32, 64)]
    encoder = keras.Sequential([keras.Input((size, size, 1)), *encoder, layers.Conv2D(16, 1)])
    decoder = [layers.Conv2DTranspose(filters, **strided) for filters in (64, 32)]
    decoder += [layers.Conv2DTranspose(1, 3, padding="same")]
    decoder = keras.Sequential([keras.Input(encoder.output_shape[1:]), *decoder])
    return VQVAE(encoder, VectorQuantizer(128, 16), decoder, variance)


def improved(variance: float) -> VQVAE:
    """Our first stage, as in the weights `oasis1`."""
    return improved_vqvae(variance, **RECIPES["oasis1"].vqvae)


VARIANTS = {  # name: first stage and its batch size, prior with its options and batch size
    "Keras example": (keras_example, 128, MaskedPixelCNN, {}, 128),
    "reference": (reference_vqvae, 128, MaskedPixelCNN, {}, 64),
    "improved": (improved, 32, GatedPixelCNN, RECIPES["oasis1"].prior, 64),
}


def measure(steps: int = 8, maps: int = 8) -> dict:
    """Times so many steps of every network, and the sampling of so many maps side by side.

    Returns:
        {"machine", "recipes": {name: as `stage_times`}, "ratios": {name of a simpler recipe:
        {"images", "maps", "samples": how many times as many ours processes per second}}}.
    """
    rows = {name: stage_times(name, steps, maps) for name in VARIANTS}
    ours = rows["improved"]
    ratios = {
        name: {
            "images": ours["images_per_second"] / row["images_per_second"],
            "maps": ours["maps_per_second"] / row["maps_per_second"],
            "samples": row["sample"] / ours["sample"],
        }
        for name, row in rows.items()
        if name != "improved"
    }
    return {"machine": machine_facts(), "recipes": rounded(rows), "ratios": rounded(ratios)}


def rounded(table: dict[str, dict]) -> dict[str, dict]:
    """A table of numbers with three significant digits."""
    return {
        name: {key: float(f"{value:.3g}") for key, value in row.items()}
        for name, row in table.items()
    }


def stage_times(name: str, steps: int, maps: int) -> dict[str, float]:
    """Times of one variant, in seconds.

    Returns:
        {"batch_size", "fit_step", "images_per_second", "prior_batch_size", "prior_step",
        "maps_per_second", "sample": one code map}.
    """
    build, batch_size, kind, options, prior_batch_size = VARIANTS[name]
    vqvae = build(1.0)
    vqvae.compile(keras.optimizers.Adam())
    images = np.zeros((1, vqvae.size, vqvae.size, 1), "float32")
    fit_step = step_seconds(vqvae, images, images, batch_size, steps + 1)
    prior = kind(vqvae.num_embeddings, vqvae.code_shape, **options)
    prior.compile(
        keras.optimizers.Adam(), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    codes, index = np.zeros((1, *prior.grid), "int32"), np.zeros(1, "int32")
    prior_step = step_seconds(prior, (codes, index), codes, prior_batch_size, steps + 1)
    return {
        "batch_size": batch_size,
        "fit_step": fit_step,
        "images_per_second": batch_size / fit_step,
        "prior_batch_size": prior_batch_size,
        "prior_step": prior_step,
        "maps_per_second": prior_batch_size / prior_step,
        "sample": sample_seconds(prior, maps),
    }


def sample_seconds(prior: Prior, maps: int) -> float:
    """Seconds to sample one map: by our cached sampler, or by the usual loop of `predict`."""
    if isinstance(prior, GatedPixelCNN):
        sample_codes(prior, 1)  # what happens only once is not timed
        return timed(sample_codes, prior, maps, 0)[1] / maps
    codes, index = np.zeros((maps, *prior.grid), "int32"), np.zeros(maps, "int32")
    seconds = [timed(lambda: prior.predict((codes, index), verbose=0))[1] for _ in range(REPEATS)]
    return float(np.median(seconds)) * codes[0].size / maps  # the first one compiles
