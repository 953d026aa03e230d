"""What helps a prior that has few subjects to learn from?

A sixth of the training subjects gives the codes, and each variant is trained for as many epochs as
the shipped prior is on all of them. Weight decay: Kim et al. 2025 (arXiv 2509.14786) find the
best value 30 times above the usual one where data are few. Reading orders: the halves of a brain
are mirror images along a row. All are scored on *validation* subjects, because the comparison is
for choosing.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
from scipy.special import log_softmax, logsumexp

from experiments.variants import ResultsCache
from oasis_helpers import pretrained, training
from oasis_helpers.data import SliceSet
from oasis_helpers.pixelcnn import BATCH, Prior
from oasis_helpers.recipes import RECIPES, Recipe
from oasis_helpers.vqvae import VQVAE

SUBJECTS, SEEDS = 24, (0, 1, 2)
# Changes of our recipe: "prior", arguments of `GatedPixelCNN`; "decay", the weight decay; "order",
# what is done to code maps (N, h, w) before the prior reads them row by row.
VARIANTS = {
    "ours: weight decay 0.02": {},
    "weight decay 0.1": {"decay": 0.1},
    "weight decay 0.5": {"decay": 0.5},
    "weight decay 1.6": {"decay": 1.6},
    "column by column": {"order": lambda codes: codes.swapaxes(1, 2)},
    "from the bottom": {"order": lambda codes: codes[:, ::-1]},
    "128 filters, dropout 0.3": {"prior": {"filters": 128, "dropout": 0.3}},
}


@dataclass
class Tokenizer:
    """The encoder of a VQ-VAE, whose maps are turned for another reading order."""

    vqvae: VQVAE
    order: Callable

    def __post_init__(self):
        self.num_embeddings = self.vqvae.num_embeddings

    def encode(self, images: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.order(self.vqvae.encode(images)))


class WeightDecay(keras.callbacks.Callback):
    """Sets the optimizer's weight decay before the first step."""

    def __init__(self, decay: float):
        super().__init__()
        self.decay = decay

    def on_train_begin(self, logs=None):
        self.model.optimizer.weight_decay = self.decay


def measure(
    root: str | Path, file: Path, weights: str, subjects: int = SUBJECTS, steps: int | None = None
) -> Iterator[dict]:
    """Trains our prior in every variant, with every seed, on the codes of some weights.

    Yields:
        {"name", "steps", "bits_per_code": {"given", "single": one for each seed, and last the mean
        of their probabilities}}: of slices given the one below, and of all slices without it.
    """
    models, cache = pretrained.load_pretrained(weights), ResultsCache(file)
    train, validate = (models.load_slices(root, split) for split in ("train", "validate"))
    few = np.isin(train.subjects, np.unique(train.subjects)[:subjects])
    train = replace(
        train, **{name: getattr(train, name)[few] for name in ("images", "subjects", "slices")}
    )
    schedule = RECIPES[weights].prior_schedule
    schedule = replace(schedule, steps=steps or int(schedule.steps * few.mean()))
    recipe = replace(RECIPES[weights], prior_schedule=schedule)

    def trained(name: str) -> dict:
        return {"name": name, "steps": schedule.steps} | compare(
            recipe, models.vqvae, train, validate, **VARIANTS[name]
        )

    for name in VARIANTS:
        yield cache.get_or_compute("variants", name, trained, name)


def compare(
    recipe: Recipe,
    vqvae: VQVAE,
    train: SliceSet,
    validate: SliceSet,
    prior: dict | None = None,
    decay: float = training.WEIGHT_DECAY,
    order: Callable = lambda codes: codes,
) -> dict:
    """Trains one variant with every seed; "bits_per_code" as `measure` yields them."""
    tokenizer = Tokenizer(vqvae, order)
    codes = tokenizer.encode(validate.images)
    below = validate.codes_below(codes)
    known = validate.below() >= 0
    log_p = {"given": [], "single": []}
    for seed in SEEDS:
        keras.utils.set_random_seed(seed)
        one = replace(recipe, seed=seed, prior=recipe.prior | (prior or {}))
        with tempfile.TemporaryDirectory() as folder:
            checkpoint, callbacks = training.Checkpoint(Path(folder)), [WeightDecay(decay)]
            options = {"checkpoint": checkpoint, "callbacks": callbacks}
            model, _ = training.train_prior(one, tokenizer, train, validate, **options)
            checkpoint.take_best()
        for kind, neighbour in (("given", below), ("single", None)):
            log_p[kind].append(code_log_probs(model, codes, validate.slices, neighbour))
    log_p["given"] = [one[known] for one in log_p["given"]]
    for values in log_p.values():
        values.append(logsumexp(values, axis=0) - np.log(len(values)))
    bits = {
        kind: [round(float(-one.mean() / np.log(2)), 4) for one in values]
        for kind, values in log_p.items()
    }
    return {"bits_per_code": bits}


def code_log_probs(prior: Prior, codes, slice_index, below) -> np.ndarray:
    """Natural logarithm of the probability of each code given the earlier ones, (N, h, w)."""
    inputs = prior.inputs_for(codes, slice_index, below)
    logits = prior.predict(inputs, batch_size=BATCH, verbose=0)
    return np.take_along_axis(log_softmax(logits, axis=-1), codes[..., None], -1)[..., 0]
