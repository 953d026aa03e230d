"""Both stages beyond one laptop: larger slices, read from the disk, on several workers.

Nothing here trains by itself. Keras's `fit` does, under `keras.distribution.DataParallel` on the
JAX backend: every worker holds the whole model and a part of each batch, and what is computed
over a batch (losses, gradients, the codebook's statistics) is computed over all its parts. What is
left to do is to hand every worker its part, to let one of them keep the backup, and to say in
plain words that a worker was lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from oasis_helpers import series
from oasis_helpers.data import SliceStream, stream_slices
from oasis_helpers.pixelcnn import GatedPixelCNN
from oasis_helpers.series import Recipe, Schedule
from oasis_helpers.vqvae import VQVAE, improved_vqvae

BACKUP_EVERY = 50  # steps
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
    from jax.experimental import multihost_utils

    files = [file.with_name(f"{file.stem}-{rank}.npy") for rank in range(worker.count)]
    np.save(files[worker.rank], mine)
    multihost_utils.sync_global_devices(f"written {file.stem}")
    whole = np.concatenate([np.load(each, allow_pickle=False) for each in files])
    multihost_utils.sync_global_devices(f"read {file.stem}")
    return whole


# -------------------------------------------------------------------------------------- batches


class Batches(keras.utils.PyDataset):
    """One epoch after another in a seeded order; every worker reads its part of each batch.

    The order depends on the seed and the epoch, not on the number of workers: two workers see
    together what one would see alone. What doesn't fill a batch is left out until the next epoch.

    Args:
        read: from numbers, int (n,), to what `fit` needs, (x, y).
        count: of the things that can be read.
        batch: in a step, over all workers.
        seed: of the order.
        worker: whose part is read.

    Raises:
        ValueError: for a batch that the workers can't share evenly, or that is never full.
    """

    def __init__(
        self,
        read: Callable[[np.ndarray], tuple],
        count: int,
        batch: int,
        seed: int = 0,
        worker: Worker = Worker(),  # noqa: B008, a tuple
        **threads,
    ):
        super().__init__(**threads)
        if batch % worker.count or not 0 < batch <= count:
            raise ValueError(
                f"A batch of {batch} out of {count} for {worker.count} workers: choose a "
                f"multiple of {worker.count} up to {count}."
            )
        self.read, self.count, self.batch = read, count, batch
        self.seed, self.worker, self.epoch = seed, worker, 0
        self._shuffle()

    def __len__(self) -> int:
        return self.count // self.batch

    def __getitem__(self, number: int) -> tuple:
        whole = self.order[number * self.batch : (number + 1) * self.batch]
        return self.read(np.split(whole, self.worker.count)[self.worker.rank])

    def on_epoch_end(self):
        self.epoch += 1
        self._shuffle()

    def _shuffle(self):
        self.order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)


# ------------------------------------------------------------------------------------- training


class SharedBackup(keras.callbacks.BackupAndRestore):
    """A backup that the first worker writes and all of them go on from."""

    def __init__(self, folder: Path, worker: Worker, every: int | str = BACKUP_EVERY):
        super().__init__(folder, save_freq=every, delete_checkpoint=False)
        self.writes = worker.rank == 0

    # Keras makes a blank optimizer to learn what to save. On all workers' devices it would wait
    # for workers that don't save: hence `apart`.

    def _load_model(self):
        with apart():
            super()._load_model()

    def _save_model(self):
        _ = self.model  # all workers: under JAX this fetches the state, which they do together
        if self.writes:
            with apart():
                super()._save_model()


def fit_together(
    model: keras.Model,
    batches: Batches,
    steps: int,
    folder: Path,
    callbacks=(),
    backup_every: int | str = BACKUP_EVERY,
    verbose=0,
) -> dict[str, list[float]]:
    """`fit` on this worker's part of the batches, backed up into a folder that all can see.

    Args:
        model: compiled, and made after `join_workers`.
        batches: this worker's.
        steps: rounded up to whole epochs.
        folder: of the backup; what is found there is gone on from.
        callbacks, verbose: as for `fit`.
        backup_every: steps between backups, or "epoch".

    Returns:
        The history, {figure: [one value an epoch]}.

    Raises:
        WorkerLostError: when another worker is gone.
    """
    backup = SharedBackup(folder, batches.worker, backup_every)
    try:
        fitted = model.fit(
            batches,
            epochs=-(-steps // len(batches)),
            shuffle=False,  # the order of the batches is theirs, the same for all workers
            callbacks=[backup, *callbacks],
            verbose=verbose,
        )
    except Exception as error:
        if batches.worker.count == 1 or not any(name in str(error) for name in MESSENGERS):
            raise
        raise WorkerLostError(
            f"{batches.worker.name.capitalize()} lost the others: one was stopped, or the network "
            f"failed. {folder} holds the training as it was at most {backup_every} steps ago; "
            "start all workers again with the same command, and they go on from there."
        ) from error
    return fitted.history


# ---------------------------------------------------------------------------------- larger slices

# The whole frame, and the part of it that holds brain, at three sizes. Twice the size with one more
# stage is the same grid of codes: a cell of 16 x 16 pixels in place of 8 x 8. Without it, it is
# four times as many codes and bits.
_PRIOR = {"filters": 64, "dropout": 0.15, "untold": 0.1}
_EIGHTHS = {"patch": (4, 4), "merge": (2, 2)}
_SCHEDULE = {"fitting": Schedule(5000, 32, 4e-3), "drawing": Schedule(2000, 64, 2e-3)}
SIZES = {
    "80": Recipe("oasis1", 80, vqvae=series.WHOLE_FRAME, prior=_PRIOR, **_SCHEDULE),
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
    stage is mirrored. Interrupted, it goes on from the backups in `folder`.

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
    vqvae.compile(keras.optimizers.Adam(series.learning_rate(recipe.fitting.rate, steps[0])))
    batches = Batches(pictures, 2 * count, recipe.fitting.batch, recipe.seed, worker)
    fit_together(vqvae, batches, steps[0], folder / "vqvae", callbacks[0], verbose=verbose)

    codes, first = _encoded(vqvae, stream, folder, worker)
    keras.utils.set_random_seed(recipe.seed)
    prior = GatedPixelCNN(vqvae.num_embeddings, codes.shape[1:], **recipe.prior)
    prior.compile(
        keras.optimizers.AdamW(
            series.learning_rate(recipe.drawing.rate, steps[1]), series.WEIGHT_DECAY, clipnorm=1.0
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
    fit_together(prior, batches, steps[1], folder / "prior", callbacks[1], verbose=verbose)
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
