"""Both stages beyond one laptop: larger slices, read from the disk, on several workers.

Nothing here trains by itself. Keras's `fit` does, under `keras.distribution.DataParallel` on the
JAX backend: every worker holds the whole model and a part of each batch, and what is computed
over a batch (losses, gradients, the codebook's statistics) is computed over all its parts. What is
left to do is to hand every worker its part, to let one of them keep the checkpoint, and to say in
plain words that a worker was lost.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from oasis_helpers import series
from oasis_helpers.data import SliceStream, stream_slices
from oasis_helpers.pixelcnn import GatedPixelCNN
from oasis_helpers.recipes import WHOLE_FRAME, Recipe, Schedule
from oasis_helpers.training import WEIGHT_DECAY, Batches, Checkpoint, fit, learning_rate
from oasis_helpers.vqvae import VQVAE, improved_vqvae

# Who carries values between workers, and what JAX's errors therefore name when one is gone.
MESSENGERS = ("Gloo", "NCCL", "coordination service", "distributed service")


class Worker(NamedTuple):
    """One of `count` processes that train one model together; the first has rank 0."""

    rank: int = 0
    count: int = 1

    @property
    def name(self) -> str:
        """For people to read: "worker 1 of 2"."""
        return f"worker {self.rank + 1} of {self.count}"


class WorkerLostError(RuntimeError):
    """Another worker is gone; the message says where training goes on from."""


# ------------------------------------------------------------------------------------ workers


def join_workers() -> Worker:
    """Joins the processes that were started together; call it before anything is computed.

    Keras reads their number, this one's rank and the first one's address from
    `KERAS_DISTRIBUTION_NUM_PROCESSES`, `KERAS_DISTRIBUTION_PROCESS_ID` and
    `KERAS_DISTRIBUTION_JOB_ADDRESSES`; where these are unset, JAX asks Slurm or Open MPI. Every
    model made afterwards is held by all workers' devices.

    Raises:
        RuntimeError: on another backend than JAX, where Keras's `fit` knows one process only.
    """
    if keras.backend.backend() != "jax":
        raise RuntimeError(
            f"Several workers need JAX, and this is {keras.backend.backend()}: set "
            "KERAS_BACKEND=jax. (Keras 3's fit doesn't run under TensorFlow's "
            "MultiWorkerMirroredStrategy.)"
        )
    import jax

    keras.distribution.initialize()
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    return Worker(jax.process_index(), jax.process_count())


@contextlib.contextmanager
def apart():
    """Models made in here live on this worker's own device: to encode or to draw its share."""
    together = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(together)


def own_copy(model: keras.Model) -> keras.Model:
    """The same model on this worker's own device; use it inside `apart`."""
    copy = type(model).from_config(model.get_config())
    copy.set_weights(model.get_weights())
    return copy


def gathered(mine: np.ndarray, file: Path, worker: Worker) -> np.ndarray:
    """All workers' arrays, one below the other, by way of files in a folder that all can see."""
    if worker.count == 1:
        return mine
    parts = [file.with_name(f"{file.stem}-{rank}.npy") for rank in range(worker.count)]
    np.save(parts[worker.rank], mine)
    wait_for_all(worker, f"written {file.stem}")
    whole = np.concatenate([np.load(part, allow_pickle=False) for part in parts])
    wait_for_all(worker, f"read {file.stem}")
    return whole


def wait_for_all(worker: Worker, moment: str) -> None:
    """Returns when all workers have come to this moment."""
    if worker.count > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(moment)


# ------------------------------------------------------------------------------------- training


class SharedCheckpoint(Checkpoint):
    """A checkpoint that the first worker writes and all of them go on from."""

    def __init__(self, folder: Path, worker: Worker):
        super().__init__(folder, monitor=None)
        self.worker = worker

    def restore(self, model: keras.Model) -> int:
        epoch = super().restore(model)
        wait_for_all(self.worker, "restored")  # before the first one writes again
        return epoch

    def keep(self, parts: dict[str, np.ndarray]) -> None:
        if self.worker.rank == 0:
            super().keep(parts)


def fit_together(
    model: keras.Model,
    batches: Batches,
    steps: int,
    folder: Path,
    worker: Worker = Worker(),  # noqa: B008, a tuple
    callbacks=(),
    verbose=0,
) -> dict[str, list[float]]:
    """`training.fit` on this worker's part of the batches, kept in a folder that all can see.

    Args:
        model: compiled, and made after `join_workers`.
        batches: this worker's.
        steps: rounded to whole epochs.
        folder: of the checkpoint; what is found there is gone on from.
        worker: this one.
        callbacks, verbose: as for `fit`.

    Returns:
        The curves, {figure: [one value an epoch]}.

    Raises:
        WorkerLostError: when another worker is gone.
    """
    checkpoint = SharedCheckpoint(folder, worker)
    try:
        return fit(model, batches, steps, None, callbacks, checkpoint, verbose)
    except Exception as error:
        if worker.count == 1 or not any(name in str(error) for name in MESSENGERS):
            raise
        raise WorkerLostError(
            f"{worker.name.capitalize()} lost the others: one was stopped, or the network failed. "
            f"{folder} holds the training as it was before the unfinished epoch; start all workers "
            "again with the same command, and they go on from there."
        ) from error


# ---------------------------------------------------------------------------------- larger slices

# The whole frame, and the part of it that holds brain, at three sizes. Twice the size with one more
# stage is the same grid of codes: a cell of 16 x 16 pixels in place of 8 x 8. Without it, it is
# four times as many codes and bits.
_PRIOR = {"filters": 64, "dropout": 0.15, "untold": 0.1}
_EIGHTHS = {"patch": (4, 4), "merge": (2, 2)}
_SCHEDULE = {"fitting": Schedule(5000, 32, 4e-3), "drawing": Schedule(2000, 64, 2e-3)}
SIZES = {
    "80": Recipe("oasis1", 80, vqvae=WHOLE_FRAME, prior=_PRIOR, **_SCHEDULE),
    "128": Recipe(
        "oasis1", 128, vqvae={"field": (16, 24, 96, 80), **_EIGHTHS}, prior=_PRIOR, **_SCHEDULE
    ),
    "256": Recipe(
        "oasis1",
        256,
        vqvae={"field": (32, 48, 192, 160), "widths": (32, 64, 128), **_EIGHTHS},
        prior=_PRIOR,
        **_SCHEDULE,
    ),
    "256, fine": Recipe(
        "oasis1", 256, vqvae={"field": (32, 48, 192, 160), **_EIGHTHS}, prior=_PRIOR, **_SCHEDULE
    ),
}


def train_together(
    recipe: Recipe,
    root: Path,
    folder: Path,
    worker: Worker = Worker(),  # noqa: B008, a tuple
    steps: tuple[int, int] | None = None,
    callbacks: tuple[list, list] = ((), ()),
    verbose=0,
) -> tuple[VQVAE, GatedPixelCNN]:
    """Trains both stages on slices streamed from the disk, with all workers that there are.

    A step of either stage sees `batch` slices over all workers; every other pass of the first
    stage is mirrored. Interrupted, it goes on from the checkpoints in `folder`.

    Args:
        recipe: one of ours, for example of `SIZES`.
        root: of the slices, as for `load_slices`.
        folder: that all workers can see; ends up holding `vqvae.keras` and `prior.keras`.
        worker: what `join_workers` returned.
        steps: of the two stages, in place of the recipe's.
        callbacks: of the two stages.
        verbose: as for `fit`.

    Returns:
        Both stages, on this worker's own device.

    Raises:
        WorkerLostError: when another worker is gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stream = stream_slices(root, "train", recipe.size, recipe.crop)
    count = len(stream)
    steps = steps or (recipe.fitting.steps, recipe.drawing.steps)

    def pictures(numbers):
        images = stream.read(numbers % count)
        mirrored = numbers >= count
        images[mirrored] = images[mirrored, :, ::-1]
        return images, images

    keras.utils.set_random_seed(recipe.seed)
    some = stream.read(range(0, count, -(-count // 200)))
    vqvae = improved_vqvae(float(some.var()), recipe.size, seed=recipe.seed, **recipe.vqvae)
    vqvae.compile(keras.optimizers.Adam(learning_rate(recipe.fitting.rate, steps[0])))
    batches = Batches(pictures, 2 * count, recipe.fitting.batch, recipe.seed, worker)
    fit_together(vqvae, batches, steps[0], folder / "vqvae", worker, callbacks[0], verbose)

    codes, first = _encoded(vqvae, stream, folder, worker)
    keras.utils.set_random_seed(recipe.seed)
    prior = GatedPixelCNN(vqvae.num_embeddings, codes.shape[1:], **recipe.prior)
    prior.compile(
        keras.optimizers.AdamW(
            learning_rate(recipe.drawing.rate, steps[1]),
            WEIGHT_DECAY,
            clipnorm=1.0,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    batches = Batches(
        lambda numbers: ((codes[numbers], stream.slices[numbers]), codes[numbers]),
        count,
        recipe.drawing.batch,
        recipe.seed,
        worker,
    )
    fit_together(prior, batches, steps[1], folder / "prior", worker, callbacks[1], verbose)
    with apart():
        second = own_copy(prior)
        if worker.rank == 0:
            series.save_for_use(first, folder / "vqvae.keras")
            series.save_for_use(second, folder / "prior.keras")
    return first, second


def _encoded(
    vqvae: VQVAE, stream: SliceStream, folder: Path, worker: Worker
) -> tuple[np.ndarray, VQVAE]:
    """The code maps of a stream, each worker encoding its share, and the worker's own VQ-VAE."""
    with apart():
        own = own_copy(vqvae)
        share = np.array_split(np.arange(len(stream)), worker.count)[worker.rank]
        chunks = np.array_split(share, max(1, -(-len(share) // 256)))
        mine = np.concatenate([own.encode(stream.read(chunk)) for chunk in chunks])
    return gathered(mine, folder / "codes", worker), own
