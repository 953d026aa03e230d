"""Which sampling temperature gives good and diverse slices?

Sets of slices are sampled at seven temperatures and compared with real slices of *validation*
subjects: fidelity and diversity.
"""

from pathlib import Path

import numpy as np

from oasis_helpers import pretrained, set_metrics
from oasis_helpers.data import SLICES_PER_SUBJECT
from oasis_helpers.sampling import sample_codes

TEMPERATURES = (0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.1)


def measure(root: str | Path, weights: str, stacks: int | None = None) -> dict:
    """Samples and scores a set of slices at each temperature.

    There are `stacks` samples at each slice index, as many as validation subjects by default.

    Returns:
        {"weights", "real": {"pairwise_ssim": [mean, low, high]} of the validation slices,
        "temperatures": {"0.7": `set_metrics.set_table`, ...}}.
    """
    models = pretrained.load_pretrained(weights)
    train, validate = (models.load_slices(root, split) for split in ("train", "validate"))
    networks = pretrained.load_feature_networks(models.scores["data"], train)
    stacks = stacks or len(np.unique(validate.subjects))
    indices = np.repeat(np.arange(SLICES_PER_SUBJECT), stacks)
    numbers = np.tile(np.arange(stacks), SLICES_PER_SUBJECT)
    real = set_metrics.pairwise_ssim(validate.images, validate.slices, validate.subjects)
    tables = {}
    for temperature in TEMPERATURES:
        codes = sample_codes(models.prior, len(indices), indices, temperature, seed=1)
        images = models.vqvae.decode(codes)
        table = set_metrics.set_table(networks, validate, images, indices, numbers)
        tables[str(temperature)] = table
    return {"weights": weights, "real": {"pairwise_ssim": real.rounded()}, "temperatures": tables}
