"""What a worker does in tests/integration/test_workers.py: a process of its own, so no pytest.

    python tests/integration/workers.py FOLDER [--steps N] [--die-after N]

Trains both stages small with `tools.train_together` on slices that it writes into FOLDER, and
writes what it saw to FOLDER/<rank>.npz. The number of workers comes from Keras's environment
variables.
"""

import argparse
import os
import signal
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from oasis_helpers.data import atomic_write
from oasis_helpers.distributed import sample_shard
from oasis_helpers.recipes import Recipe, Schedule
from tools import train_together as together
from tools.train_together import Worker, gather, join_workers, local_scope, train_together

COUNTS = {"train": 96, "validate": 32, "test": 32}  # slices
RECIPE = Recipe(
    "cohort",
    16,
    vqvae={"num_embeddings": 16, "widths": (8, 8), "blocks": 1},
    vqvae_schedule=Schedule(24, 16, 2e-3),  # 12 steps an epoch, every slice mirrored as well
    prior={
        "filters": 8,
        "blocks": 1,
        "num_heads": 2,
        "dropout": 0.1,
        "condition_dropout": 0.1,
    },
    prior_schedule=Schedule(36, 16, 2e-3),  # 18 steps an epoch; the second one is unaugmented
    views=3,
)


class Losses(keras.callbacks.Callback):
    """Keeps every step's loss; ends or stops this process after so many, as a power cut would."""

    def __init__(self, die_after: int = 0, how: int = signal.SIGKILL):
        super().__init__()
        self.die_after, self.how, self.losses, self.epochs = die_after, how, [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.before = 0.0, 0

    def on_train_batch_end(self, batch, logs=None):
        total, steps = self.before
        now = float(logs["loss"]) * (steps + 1)  # Keras shows the mean since the epoch began
        self.losses.append(now - total)
        self.before = now, steps + 1
        if len(self.losses) == self.die_after:
            os.kill(os.getpid(), self.how)

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(logs)


def rings(count: int = 64, seed: int = 0) -> np.ndarray:
    """Images with something to learn, float32 (count, 16, 16, 1) in [0, 1]."""
    y, x = np.mgrid[:16, :16] / 16 - 0.5
    middle = np.random.default_rng(seed).uniform(-0.2, 0.2, (2, count, 1, 1))
    radius = np.hypot(x - middle[0], y - middle[1])
    return (0.5 + 0.5 * np.cos(9 * radius))[..., None].astype("float32")


def write_slices(root: Path) -> None:
    """The three splits of a tiny data set; workers may write it at the same time."""
    for subject, (split, count) in enumerate(COUNTS.items()):
        folder = root / "keras_png_slices_data" / f"keras_png_slices_{split}"
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(np.uint8(255 * rings(count, subject)[..., 0])):
            name = f"case_{10 * subject + number // 32:03d}_slice_{number % 32}.nii.png"
            with atomic_write(folder / name) as temporary:
                Image.fromarray(image).save(temporary, "PNG")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=24, help="of the first stage")
    parser.add_argument("--die-after", type=int, default=0, help="steps; the last worker only")
    parser.add_argument("--stop-after", type=int, default=0, help="the same, but not dead")
    parser.add_argument("--patience", type=float, default=together.PATIENCE)
    parser.add_argument("--join", action="store_true", help="also where no number is set")
    chosen = parser.parse_args()
    several = "KERAS_DISTRIBUTION_NUM_PROCESSES" in os.environ or chosen.join
    together.PATIENCE = chosen.patience
    devices = len(keras.distribution.list_devices()) if not several else 1
    worker = join_workers() if several else Worker()
    if devices > 1:
        keras.distribution.set_distribution(keras.distribution.DataParallel())
    write_slices(chosen.folder / "slices")
    together.barrier(worker, "written")

    recipe = replace(RECIPE, vqvae_schedule=replace(RECIPE.vqvae_schedule, steps=chosen.steps))
    last = worker.rank == worker.count - 1
    how = signal.SIGSTOP if chosen.stop_after else signal.SIGKILL
    first, second = Losses((chosen.stop_after or chosen.die_after) * last, how), Losses()
    keras.utils.set_random_seed(recipe.seed)
    try:
        vqvae, prior = train_together(
            recipe,
            chosen.folder / "slices",
            chosen.folder / "work",
            worker,
            ([first], [second]),
        )
    except together.WorkerLostError as error:
        print(error, flush=True)
        os._exit(3)  # what JAX does on the way out would wait for the worker that is gone
    with local_scope():
        samples = sample_shard(prior, 10, worker)
        codes = vqvae.encode(rings())
    seen = {
        "vqvae losses": first.losses,
        "prior losses": second.losses,
        "perplexity": [logs["perplexity"] for logs in first.epochs],
        "prior val_loss": [logs["val_loss"] for logs in second.epochs],
        "codes": codes,
        "samples": gather(samples, chosen.folder / "samples", worker),
        "prior": np.concatenate([np.ravel(value) for value in prior.get_weights()]),
    }
    for variable in vqvae.quantizer.weights:
        seen[variable.name] = keras.ops.convert_to_numpy(variable)
    np.savez(chosen.folder / f"{worker.rank}.npz", **seen)


if __name__ == "__main__":
    main()
