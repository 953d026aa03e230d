"""What the comparisons share: variants of the first stage, their training, stored results."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from oasis_helpers import training
from oasis_helpers.data import SliceSet, read_json, with_mirrored, write_json
from oasis_helpers.vqvae import VQVAE

SECONDS = 60.0  # of training for each variant
TIMED_STEPS = 30  # of an untrained copy, to turn seconds into steps


@dataclass(frozen=True)
class Variant:
    """One way to train the first stage.

    Attributes:
        name: says what it changes.
        build: makes the model from the variance of the training images.
        base: the name of the variant that it changes one thing of; "" for the first one.
        learning_rate, decays: fixed, or the peak after a warm-up, from which a cosine decays.
        batch_size: slices in a step.
        mirrored: whether it also trains on left-right mirrored slices.
        seed: of weights, batches and everything else random.
    """

    name: str
    build: Callable[[float], VQVAE]
    base: str = ""
    learning_rate: float = 1e-3
    decays: bool = False
    batch_size: int = 128
    mirrored: bool = False
    seed: int = 0

    def compiled(self, variance: float, steps: int) -> VQVAE:
        """The untrained model, with an optimizer for so many steps; seeds Keras first."""
        keras.utils.set_random_seed(self.seed)
        model, rate = self.build(variance), self.learning_rate
        rate = training.learning_rate(rate, steps) if self.decays else rate
        model.compile(keras.optimizers.Adam(rate))
        return model


def train_variant(variant: Variant, train: SliceSet, steps: int) -> VQVAE:
    """Trains one variant for a number of steps."""
    model = variant.compiled(float(train.images.var()), steps)
    images = with_mirrored(train.images) if variant.mirrored else train.images
    epochs, stop = -(-steps * variant.batch_size // len(images)), StopAfter(steps)
    model.fit(images, images, variant.batch_size, epochs, verbose=0, callbacks=[stop])
    return model


class StopAfter(keras.callbacks.Callback):
    """Ends `fit` after so many steps or seconds; `ended` holds the second each step ended at."""

    def __init__(self, steps: float = np.inf, seconds: float = np.inf):
        super().__init__()
        self.steps, self.seconds, self.ended = steps, seconds, []

    def on_train_begin(self, logs=None):
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.ended.append(time.perf_counter() - self.started)
        if len(self.ended) >= self.steps or self.ended[-1] >= self.seconds:
            self.model.stop_training = True

    @property
    def step_seconds(self) -> float:
        """The median seconds of a step, without the first one, which compiles."""
        return float(np.median(np.diff(self.ended)))


def step_seconds(model: keras.Model, x, y, batch_size: int, steps: int = TIMED_STEPS) -> float:
    """Seconds of a step of a compiled model's `fit`, on arrays that are repeated as needed."""
    rows, stop = np.arange(steps * batch_size) % len(y), StopAfter()
    x, y = keras.tree.map_structure(lambda array: array[rows], (x, y))
    model.fit(x, y, batch_size, verbose=0, callbacks=[stop])
    return stop.step_seconds


def timed(function: Callable, *args) -> tuple:
    """What a function returns, and the seconds that it takes."""
    started = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - started


class ResultsCache:
    """Results in a JSON file, each computed once and stored at once.

    Args:
        file: read where it exists, so that an interrupted comparison resumes.

    Raises:
        ValueError: for a damaged file.
    """

    def __init__(self, file: Path):
        self.file = file
        self.content = read_json(file) if file.is_file() else {"machine": machine_facts()}

    def get_or_compute(self, group: str, name: str, compute: Callable[..., dict], *args) -> dict:
        """The result of that name in that group of the file; `compute(*args)` where it is new."""
        results = self.content.setdefault(group, {})
        if name not in results:
            results[name] = compute(*args)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.file, self.content, indent=1)
        return results[name]


def plan_steps(
    cache: ResultsCache, variants: list[Variant], train: SliceSet, seconds: float, steps: int | None
) -> dict[str, dict]:
    """{variant's name: {"steps", "seconds"}}: as many steps as take `seconds`, or `steps` for all.

    All variants are timed before the first is trained, on an otherwise idle machine. Training then
    counts steps only. Variants whose steps are the same are timed once.
    """
    paces = {}

    def planned(variant: Variant) -> dict:
        step = variant.build, variant.batch_size
        if step not in paces:
            model = variant.compiled(1.0, TIMED_STEPS)
            paces[step] = step_seconds(model, train.images, train.images, variant.batch_size)
        count = steps or max(1, round(seconds / paces[step]))
        return {"steps": count, "seconds": round(count * paces[step], 1)}

    return {v.name: cache.get_or_compute("plan", v.name, planned, v) for v in variants}


def machine_facts() -> dict:
    """What the timings were taken on."""
    return {
        "processors": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
    }
