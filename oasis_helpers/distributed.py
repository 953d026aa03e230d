"""Training beyond one laptop: slices streamed from the disk, several workers, several devices.

Keras's `fit` trains, under `keras.distribution.DataParallel` on the JAX backend: every worker holds
the whole model and a part of each batch, and losses, gradients and the codebook's statistics are
computed over all parts. What remains is to give every worker its part, to let one of them write the
checkpoint, and to name a lost worker. For several devices of one machine under `tf.distribute`,
`mirrored` adds the sums over devices. `tools.train_together` is the command.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from oasis_helpers import data, sampling
from oasis_helpers.layers import EMAVectorQuantizer
from oasis_helpers.pixelcnn import Prior
from oasis_helpers.recipes import WHOLE_FRAME, Recipe, Schedule
from oasis_helpers.training import Batches, Checkpoint, fit
from oasis_helpers.vqvae import VQVAE

# The names in JAX's errors when another worker is lost.
TRANSPORTS = ("Gloo", "NCCL", "coordination service", "distributed service")

_register = keras.saving.register_keras_serializable("oasis_helpers")


class Worker(NamedTuple):
    """One of `count` processes that train one model together; the first has rank 0."""

    rank: int = 0
    count: int = 1

    @property
    def name(self) -> str:
        """For messages: "worker 1 of 2"."""
        return f"worker {self.rank + 1} of {self.count}"


class WorkerLostError(RuntimeError):
    """Another worker was lost; the message says where training resumes."""


def barrier(worker: Worker, name: str) -> None:
    """Returns when all workers have reached the barrier of this name."""
    if worker.count > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


class SharedCheckpoint(Checkpoint):
    """A checkpoint that the first worker writes and all workers resume from."""

    def __init__(self, folder: Path, worker: Worker, monitor: str | None = None):
        super().__init__(folder, monitor)
        self.worker = worker

    def restore(self, model: keras.Model) -> int:
        epoch = super().restore(model)
        barrier(self.worker, "restored")  # before the first worker writes again
        return epoch

    def save(self, parts: dict[str, np.ndarray]) -> None:
        if self.worker.rank == 0:
            super().save(parts)


def fit_together(
    model: keras.Model,
    batches: Batches,
    steps: int,
    folder: Path,
    worker: Worker = Worker(),  # noqa: B008, a tuple
    callbacks=(),
    verbose=0,
) -> dict[str, list[float]]:
    """`training.fit` on this worker's batches, with a checkpoint in a folder that all can see.

    The model was made after `join_workers`. Raises `WorkerLostError` when another worker was lost.
    """
    with naming_lost_workers(folder, worker):
        checkpoint = SharedCheckpoint(folder, worker)
        return fit(model, batches, steps, None, callbacks, checkpoint, verbose)


@contextlib.contextmanager
def naming_lost_workers(folder: Path, worker: Worker):
    """Turns JAX's errors about another worker into a `WorkerLostError` that says what to do."""
    try:
        yield
    except Exception as error:
        if worker.count == 1 or not any(name in str(error) for name in TRANSPORTS):
            raise
        raise WorkerLostError(
            f"{worker.name.capitalize()} lost the others: one was stopped, or the network failed. "
            f"{folder} holds the training as it was before the unfinished epoch; start all workers "
            "again with the same command to resume from there."
        ) from error


def sample_shard(prior: Prior, n: int, worker: Worker, slice_index=None, seed: int = 0):
    """This worker's part, int32 (about n / workers, h, w), of what `sample_codes` returns."""
    state = sampling.initial_state(prior, n, slice_index, None, seed)
    indices, uniform, codes = (np.array_split(part, worker.count)[worker.rank] for part in state)
    sampling.fill(codes, uniform, sampling.start(prior, indices))
    return codes.reshape(-1, *prior.grid)


@dataclass(frozen=True)
class SliceStream:
    """The slices of one split, left on the disk and read a batch at a time.

    For frames and splits that memory cannot hold at once: 11,328 slices of 256 x 256 pixels are
    3 GB as float32, and training copies them.

    Attributes:
        paths: the files, sorted by subject and slice index.
        subjects, slices: int32 (N,), as in `SliceSet`.
        size, crop: the frame that `read` returns.
    """

    paths: tuple[Path, ...]
    subjects: np.ndarray
    slices: np.ndarray
    size: int
    crop: data.Box | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def fingerprint(self) -> str:
        """A hash of the files and of the frame: shows whether a training saw these slices."""
        digest = hashlib.sha256(f"{self.size} {self.crop}".encode())
        for path, subject, index in zip(self.paths, self.subjects, self.slices):
            digest.update(f"{subject} {index} ".encode() + path.read_bytes())
        return digest.hexdigest()

    def read(self, indices) -> np.ndarray:
        """Slices of these indices, float32 (n, size, size, 1) in [0, 1]; or SliceDataError."""
        paths = [self.paths[index] for index in indices]
        return data.read_images(paths, self.size, self.crop).astype("float32")[..., None] / 255


def stream_slices(
    root: str | Path, split: str, size: int = 80, crop: str | data.Box | None = None
) -> SliceStream:
    """Finds the slices of one split without reading them; arguments as for `load_slices`."""
    files = data.checked_files(root, split)
    keys = np.array(list(files), dtype="int32")
    box = data.brain_box(root) if crop == "brain" else crop
    return SliceStream(tuple(files.values()), keys[:, 0], keys[:, 1], size, box)


# The whole frame, and the part of it that holds brain, at three sizes. Twice the size with one more
# stage is the same grid of codes: a code for 16 x 16 pixels instead of 8 x 8. Without that stage
# there are four times as many codes and bits.
_PRIOR = {"filters": 64, "dropout": 0.15, "condition_dropout": 0.1}
_EIGHTHS = {"patch": (4, 4), "merge": (2, 2)}
_SCHEDULE = Schedule(2000, 64, 2e-3)  # of the prior
SIZES = {
    name: Recipe("oasis1", size, vqvae=networks, prior=_PRIOR, prior_schedule=_SCHEDULE)
    for name, size, networks in (
        ("80", 80, WHOLE_FRAME),
        ("128", 128, {"region": (16, 24, 96, 80), **_EIGHTHS}),
        ("256", 256, {"region": (32, 48, 192, 160), "widths": (32, 64, 128), **_EIGHTHS}),
        ("256, fine", 256, {"region": (32, 48, 192, 160), **_EIGHTHS}),
    )
}


def mirrored(vqvae: VQVAE) -> VQVAE:
    """The same model with one codebook for all devices; call it inside a strategy's scope."""
    quantizer = MirroredQuantizer.from_config(vqvae.quantizer.get_config())
    parts = vqvae.encoder, quantizer, vqvae.decoder
    copy = MirroredVQVAE(*parts, vqvae.variance, vqvae.ssim_weight, vqvae.region)
    quantizer.set_weights(vqvae.quantizer.get_weights())
    return copy


@_register
class MirroredQuantizer(EMAVectorQuantizer):
    """An `EMAVectorQuantizer` whose statistics are summed over the devices of a strategy."""

    statistics = None  # of this device's part of the batch, until they are summed

    def add_weight(self, *arguments, **options):
        return super().add_weight(*arguments, aggregation="only_first_replica", **options)

    def update(self, chosen, vector_sums, candidates):
        """Keeps the statistics for `update_together`."""
        self.statistics = chosen, vector_sums, candidates

    def update_together(self):
        """Updates the codebook with the sums over all devices, and the first one's candidates."""
        import tensorflow as tf

        (chosen, vector_sums, candidates), self.statistics = self.statistics, None
        replica = tf.distribute.get_replica_context()
        first = ops.cast(ops.equal(replica.replica_id_in_sync_group, 0), candidates.dtype)
        super().update(*replica.all_reduce("sum", [chosen, vector_sums, first * candidates]))


@_register
class MirroredVQVAE(VQVAE):
    """A `VQVAE` for `MirroredQuantizer`; a strategy adds up the gradients of its devices' losses.

    Devices take turns wherever they wait for a sum, and the list of losses that Keras keeps is one
    for all of them. So the codebook is updated when a device's loss is complete.
    """

    def compute_loss(self, *arguments, **options):
        import tensorflow as tf

        loss = super().compute_loss(*arguments, **options)
        if self.quantizer.statistics:
            self.quantizer.update_together()
        return loss / tf.distribute.get_strategy().num_replicas_in_sync
