"""How many bits does our prior save over the reference prior on the same codes?

The reference PixelCNN gets the codes of shipped weights and as many seconds of training as the
shipped prior had. Both keep the epoch that is best on validation subjects, and both are scored on
*test* subjects.
"""

from pathlib import Path

import keras
import numpy as np

from experiments.variants import StopAfter
from oasis_helpers import metrics, pretrained
from oasis_helpers.pixelcnn import MaskedPixelCNN
from oasis_helpers.recipes import RECIPES

PATIENCE = 15  # epochs without a better one after which the reference ends early


def measure(root: str | Path, weights: str, seconds: float | None = None) -> dict:
    """Trains the reference prior for `seconds`, and scores it beside the shipped prior.

    Returns:
        {"weights", "seconds" allowed, "epochs" trained, "best_epoch", "reference" and "improved"
        as `metrics.prior_table`, "bits_saved": the fraction of bits per code that ours saves}.
    """
    models = pretrained.load_pretrained(weights)
    splits = {split: models.load_slices(root, split) for split in ("train", "validate", "test")}
    seconds = seconds or sum(models.history["prior"]["seconds"])
    codes = {split: models.vqvae.encode(slices.images) for split, slices in splits.items()}
    inputs = {split: (codes[split], slices.slices) for split, slices in splits.items()}
    keras.utils.set_random_seed(0)
    prior = MaskedPixelCNN(models.vqvae.num_embeddings, models.prior.grid)
    schedule = RECIPES["oasis1-reference"].prior_schedule
    prior.compile(
        keras.optimizers.Adam(schedule.learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    best = keras.callbacks.EarlyStopping(patience=PATIENCE, restore_best_weights=True)
    history = prior.fit(
        inputs["train"],
        codes["train"],
        batch_size=schedule.batch_size,
        epochs=10_000,  # time ends it
        validation_data=(inputs["validate"], codes["validate"]),
        callbacks=[StopAfter(seconds=seconds), best],
        verbose=0,
    ).history
    tables = {
        name: metrics.prior_table(models.vqvae, one, splits["train"], splits["test"])
        for name, one in (("reference", prior), ("improved", models.prior))
    }
    bits = {name: table["bits_per_code"][0] for name, table in tables.items()}
    return {
        "weights": weights,
        "seconds": round(seconds),
        "epochs": len(history["loss"]),
        "best_epoch": int(np.argmin(history["val_loss"])) + 1,
        **tables,
        "bits_saved": round(1 - bits["improved"] / bits["reference"], 4),
    }
