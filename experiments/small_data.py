"""What helps a prior trained on few subjects?

A sixth of the training subjects gives the codes. Each variant is trained for 11 epochs; all but the
last have half the filters of the shipped prior. Weight decay: Kim et al. 2025 (arXiv 2509.14786)
find the best value 30 times above the usual one where data are few. Reading orders: the halves of a
brain are mirror images along a row. All are scored on *validation* subjects, because the comparison
is for choosing.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
from keras import ops
from scipy.special import log_softmax, logsumexp

from experiments.variants import ResultsCache
from oasis_helpers import pretrained, training
from oasis_helpers.data import SliceSet
from oasis_helpers.pixelcnn import BATCH, Prior
from oasis_helpers.recipes import RECIPES, Recipe, Schedule
from oasis_helpers.vqvae import VQVAE

SUBJECTS, FILTERS, SEEDS = 24, 32, (0, 1, 2)
SCHEDULE = Schedule(792, 64, 2e-3)
BASE = "weight decay 0.02, batches of 64"
# Changes of `BASE`: "schedule"; "prior", arguments of `GatedPixelCNN`; "decay", the weight decay;
# "order", what is done to code maps (N, h, w) before the prior reads them row by row.
VARIANTS = {
    BASE: {},
    "batches of 32": {"schedule": Schedule(1584, 32, 1.5e-3)},
    "weight decay 0.1": {"decay": 0.1},
    "weight decay 0.5": {"decay": 0.5},
    "weight decay 1.6": {"decay": 1.6},
    "column by column": {"order": lambda codes: codes.swapaxes(1, 2)},
    "from the bottom": {"order": lambda codes: codes[:, ::-1]},
    "twice the filters, dropout 0.3": {"prior": {"filters": 2 * FILTERS, "dropout": 0.3}},
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


class Changes(keras.callbacks.Callback):
    """Sets, before the first step, the optimizer's weight decay and what the prior learns.

    With teachers, it learns the mean of their probabilities instead of the codes (distillation,
    Hinton et al. 2015, arXiv 1503.02531).
    """

    def __init__(self, decay: float, teachers: list[Prior]):
        super().__init__()
        self.decay, self.teachers = decay, teachers

    def on_train_begin(self, logs=None):
        self.model.optimizer.weight_decay = self.decay
        if self.teachers:
            self.model.compute_loss = self.distillation_loss

    def distillation_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if not training:  # as without teachers, because the best epoch is chosen by it
            return ops.mean(keras.losses.sparse_categorical_crossentropy(y, y_pred, True))
        target = sum(ops.softmax(teacher(x)) for teacher in self.teachers) / len(self.teachers)
        return ops.mean(keras.losses.categorical_crossentropy(target, y_pred, True))


def measure(root: str | Path, file: Path, weights: str, subjects: int = SUBJECTS) -> Iterator[dict]:
    """Trains our prior in every variant, with every seed, on the codes of some weights.

    Yields:
        {"name", "bits_per_code": {"given", "single": one for each seed, and last the mean
        of their probabilities}}: of slices given the one below, and of all slices without it. The
        first also has "distilled", the same of priors that learn from its own.
    """
    models, cache = pretrained.load_pretrained(weights), ResultsCache(file)
    train, validate = (models.load_slices(root, split) for split in ("train", "validate"))
    few = np.isin(train.subjects, np.unique(train.subjects)[:subjects])
    train = replace(
        train, **{name: getattr(train, name)[few] for name in ("images", "subjects", "slices")}
    )
    recipe = RECIPES[weights]
    recipe = replace(recipe, prior=recipe.prior | {"filters": FILTERS})
    splits = models.vqvae, train, validate

    def compared(name: str) -> dict:
        priors, bits = train_and_score(recipe, *splits, **VARIANTS[name])
        result = {"name": name, "bits_per_code": bits}
        if name == BASE:
            result["distilled"] = train_and_score(recipe, *splits, teachers=priors)[1]
        return result

    for name in VARIANTS:
        yield cache.get_or_compute("variants", name, compared, name)


def train_and_score(
    recipe: Recipe,
    vqvae: VQVAE,
    train: SliceSet,
    validate: SliceSet,
    schedule: Schedule = SCHEDULE,
    prior: dict | None = None,
    decay: float = training.WEIGHT_DECAY,
    order: Callable = lambda codes: codes,
    teachers: list[Prior] = (),
) -> tuple[list[Prior], dict]:
    """The priors of one variant, one for each seed, and "bits_per_code" as `measure` yields it."""
    tokenizer, priors = Tokenizer(vqvae, order), []
    for seed in SEEDS:
        keras.utils.set_random_seed(seed)
        arguments = recipe.prior | (prior or {})
        one = replace(recipe, seed=seed, prior=arguments, prior_schedule=schedule)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint, callbacks = training.Checkpoint(Path(folder)), [Changes(decay, teachers)]
            options = {"checkpoint": checkpoint, "callbacks": callbacks}
            model, _ = training.train_prior(one, tokenizer, train, validate, **options)
            checkpoint.take_best()
        priors.append(model)
    codes, known = tokenizer.encode(validate.images), validate.below() >= 0
    log_p = {
        "given": [
            code_log_probs(model, codes, validate.slices, validate.codes_below(codes))[known]
            for model in priors
        ],
        "single": [code_log_probs(model, codes, validate.slices, None) for model in priors],
    }
    bits = {}
    for kind, values in log_p.items():
        values.append(logsumexp(values, axis=0) - np.log(len(values)))
        bits[kind] = [round(float(-one.mean() / np.log(2)), 4) for one in values]
    return priors, bits


def code_log_probs(prior: Prior, codes, slice_index, below) -> np.ndarray:
    """Natural logarithm of the probability of each code given the earlier ones, (N, h, w)."""
    inputs = prior.inputs_for(codes, slice_index, below)
    logits = prior.predict(inputs, batch_size=BATCH, verbose=0)
    return np.take_along_axis(log_softmax(logits, axis=-1), codes[..., None], -1)[..., 0]
