"""What a worker does in tests/test_scaling.py: a process of its own, so no pytest in here.

    python tests/workers.py FOLDER [--steps N] [--die-after N]

Trains both stages small, writes what it saw to FOLDER/<rank>.npz. How many workers there are, it
learns from Keras's environment variables.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np

from oasis_helpers import sample_codes, distributed
from oasis_helpers.pixelcnn import GatedPixelCNN
from oasis_helpers.training import Batches
from oasis_helpers.vqvae import improved_vqvae

COUNT, BATCH = 64, 16


class Losses(keras.callbacks.Callback):
    """Keeps every step's loss; ends this process after so many, as a power cut would."""

    def __init__(self, die_after: int):
        super().__init__()
        self.die_after, self.losses, self.before = die_after, [], (0.0, 0)
        self.figures = []

    def on_epoch_begin(self, epoch, logs=None):
        self.before = 0.0, 0

    def on_train_batch_end(self, batch, logs=None):
        total, steps = self.before
        now = float(logs["loss"]) * (steps + 1)  # Keras shows the mean since the epoch began
        self.losses.append(now - total)
        self.before = now, steps + 1
        if len(self.losses) == self.die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch_end(self, epoch, logs=None):
        self.figures.append((logs.get("perplexity"), logs.get("restarts")))


def rings() -> np.ndarray:
    """Pictures with something to learn, float32 (COUNT, 16, 16, 1) in [0, 1]."""
    y, x = np.mgrid[:16, :16] / 16 - 0.5
    middle = np.random.default_rng(0).uniform(-0.2, 0.2, (2, COUNT, 1, 1))
    away = np.hypot(x - middle[0], y - middle[1])
    return (0.5 + 0.5 * np.cos(9 * away))[..., None].astype("float32")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--die-after", type=int, default=0, help="steps; the last worker only")
    chosen = parser.parse_args()
    several = "KERAS_DISTRIBUTION_NUM_PROCESSES" in os.environ
    devices = len(keras.distribution.list_devices()) if not several else 1
    worker = distributed.join_workers() if several else distributed.Worker()
    if devices > 1:
        keras.distribution.set_distribution(keras.distribution.DataParallel())
    images, seen = rings(), {}

    keras.utils.set_random_seed(0)
    vqvae = improved_vqvae(0.1, 16, num_embeddings=16, widths=(8, 8), blocks=1)
    vqvae.compile(keras.optimizers.Adam(1e-3))
    last = worker.rank == worker.count - 1
    losses = Losses(chosen.die_after if last else 0)
    batches = Batches(lambda n: (images[n], images[n]), COUNT, BATCH, 0, worker)
    try:
        distributed.fit_together(
            vqvae, batches, chosen.steps, chosen.folder / "vqvae", worker, [losses]
        )
    except distributed.WorkerLostError as error:
        print(error, flush=True)
        os._exit(3)  # what JAX does on the way out would wait for the worker that is gone
    seen["vqvae losses"] = losses.losses
    seen["perplexity"], seen["restarts"] = zip(*losses.figures)
    for variable in vqvae.quantizer.weights:
        seen[variable.name] = keras.ops.convert_to_numpy(variable)

    with distributed.local_scope():
        own = distributed.to_local(vqvae)
        mine = own.encode(np.array_split(images, worker.count)[worker.rank])
    codes = distributed.gathered(mine, chosen.folder / "codes", worker)
    seen["codes"], indices = codes, np.arange(COUNT) % 32

    keras.utils.set_random_seed(0)
    prior = GatedPixelCNN(16, (2, 2), filters=8, blocks=1, heads=2, dropout=0.1, condition_dropout=0.1)
    prior.compile(
        keras.optimizers.AdamW(1e-3, clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    losses = Losses(0)
    batches = Batches(lambda n: ((codes[n], indices[n]), codes[n]), COUNT, BATCH, 0, worker)
    distributed.fit_together(prior, batches, chosen.steps, chosen.folder / "prior", worker, [losses])
    seen["prior losses"] = losses.losses
    with distributed.local_scope():
        drawn = sample_codes(distributed.to_local(prior), 10, part=worker)
    seen["samples"] = distributed.gathered(drawn, chosen.folder / "drawn", worker)
    np.savez(chosen.folder / f"{worker.rank}.npz", **seen)


if __name__ == "__main__":
    sys.exit(main())
