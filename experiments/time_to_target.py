"""How long does our first stage take to become as good as the reference?

The reference is trained for 100 epochs, as published. Ours, whose learning rate decays over 20
epochs, is then trained in the same run until its brain SSIM on *validation* subjects is the best
that the reference ever had. Both times are those of the first measurement that reaches this score.
"""

import time
from pathlib import Path

import keras
import numpy as np

from experiments.ablation import IMPROVED, STEPS
from experiments.variants import machine_facts
from oasis_helpers import metrics
from oasis_helpers.data import SliceSet, load_slices

VARIANTS = {"reference": STEPS[0], "improved": IMPROVED}
EPOCHS = {"reference": 100, "improved": 20}  # at most


class TimedScores(keras.callbacks.Callback):
    """Brain SSIM of some slices every few steps, with the seconds of training until then.

    Scoring does not count as training. Training ends when the score has reached the target.
    """

    def __init__(self, slices: SliceSet, every: int, target: float = 1.0):
        super().__init__()
        self.slices, self.every, self.target = slices, every, target
        self.curve, self.steps, self.seconds = [], 0, 0.0

    def on_train_batch_begin(self, batch, logs=None):
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds += time.perf_counter() - self.started
        self.steps += 1
        if self.steps % self.every:
            return
        decoded = self.model.decode(self.model.encode(self.slices.images))
        score = float(np.nanmean(metrics.ssim_scores(self.slices.images, decoded)[1]))
        self.curve.append([round(self.seconds, 1), round(score, 4)])
        self.model.stop_training = score >= self.target


def measure(root: str | Path) -> dict:
    """Trains the reference for all of its `EPOCHS`, then ours until it is as good.

    Returns:
        {"machine", "reference", "improved": [[seconds of training, brain SSIM], ...],
        "speed_up"}: as `speed_up` returns it.
    """
    train, validate = (load_slices(root, split) for split in ("train", "validate"))
    images, every = train.images, -(-len(train) // VARIANTS["reference"].batch_size)
    curves, target = {}, 1.0
    for name, variant in VARIANTS.items():
        steps = EPOCHS[name] * -(-len(train) // variant.batch_size)
        model = variant.compiled(float(images.var()), steps)
        scored = TimedScores(validate, every, target)
        model.fit(images, images, variant.batch_size, EPOCHS[name], verbose=0, callbacks=[scored])
        curves[name], target = scored.curve, max(score for _, score in scored.curve)
    return {"machine": machine_facts(), **curves, "speed_up": speed_up(**curves)}


def speed_up(reference: list, improved: list) -> float | None:
    """Seconds to the reference's best score, its own over ours; None if ours never has it."""
    best = max(score for _, score in reference)
    slow, fast = (
        next((seconds for seconds, score in curve if score >= best), None)
        for curve in (reference, improved)
    )
    return round(slow / fast, 1) if fast else None
