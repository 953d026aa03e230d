"""Trains both stages on slices streamed from the disk, with one worker or several.

Start one process for each worker: `python -m tools.train_together SIZE FOLDER`, on the JAX backend
where there are several. `join_workers` says how they find each other.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from oasis_helpers.__main__ import ending_with_a_sentence
from oasis_helpers.data import shifted_and_mirrored
from oasis_helpers.distributed import SIZES, SliceStream, stream_slices
from oasis_helpers.pixelcnn import Prior
from oasis_helpers.pretrained import data_root, save_model
from oasis_helpers.recipes import Recipe, improved_vqvae
from oasis_helpers.training import (
    Batches,
    Checkpoint,
    fit,
    fit_prior,
    learning_rate,
    verify_run_signature,
)
from oasis_helpers.vqvae import VQVAE

CHUNK = 64  # slices that are read and encoded at a time
SETTINGS = ("NUM_PROCESSES", "PROCESS_ID", "JOB_ADDRESSES")  # KERAS_DISTRIBUTION_...
# The names in JAX's errors when another worker is lost.
TRANSPORTS = ("Gloo", "NCCL", "coordination service", "distributed service")
PATIENCE = 60  # seconds that a worker waits for the others; JAX waits up to 300 and then aborts


class Worker(NamedTuple):
    """One of `count` processes that train one model together; the first has rank 0."""

    rank: int = 0
    count: int = 1


def train_together(
    recipe: Recipe,
    root: Path,
    folder: Path,
    worker: Worker = Worker(),  # noqa: B008, a tuple
    callbacks: tuple[list, list] = ((), ()),
    verbose=0,
) -> tuple[VQVAE, Prior]:
    """Trains both stages on streamed slices, with all workers, and resumes after an interruption.

    A step of either stage sees `batch_size` slices over all workers. The first stage sees every
    slice also mirrored; the second stage is `training.fit_prior`.

    Args:
        recipe: one of ours, for example of `SIZES`.
        root: of the slices, as for `load_slices`.
        folder: that all workers share; in the end it holds `vqvae.keras` and `prior.keras`.
        worker: from `join_workers`.
        callbacks: of both stages.
        verbose: as for `fit`.

    Returns:
        Both stages, on this worker's own device.

    Raises:
        WorkerLostError: when another worker was lost.
        ValueError: when the folder holds the checkpoints of another training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with watching_others(folder, worker):
        trained = _train_stages(recipe, root, folder, worker, callbacks, verbose)
        barrier(worker, "trained")  # so that nobody misses a worker that has ended
    return trained


def _train_stages(recipe, root, folder: Path, worker, callbacks, verbose) -> tuple[VQVAE, Prior]:
    train, validate = (
        stream_slices(root, split, recipe.size, recipe.crop) for split in ("train", "validate")
    )
    signature = folder, recipe, fingerprint(train), fingerprint(validate)
    if worker.rank == 0 and not (folder / "run_signature.json").is_file():
        verify_run_signature(*signature)  # writes it
    barrier(worker, "signed")
    verify_run_signature(*signature)
    vqvae = _train_vqvae(recipe, train, folder / "vqvae", worker, callbacks[0], verbose)
    with local_scope():
        local_vqvae = to_local(vqvae)
    views = [_encode(local_vqvae, train, view, folder, worker) for view in range(recipe.views)]
    unseen = _encode(local_vqvae, validate, 0, folder, worker)
    training = np.concatenate(views), np.tile(train.slices, recipe.views)
    with naming_lost_workers(folder / "prior", worker):
        checkpoint = SharedCheckpoint(folder / "prior", worker)
        prior, _ = fit_prior(
            recipe,
            vqvae.num_embeddings,
            (*training, min(recipe.views, 2) * len(train)),
            ((unseen, validate.slices), unseen),
            callbacks[1],
            worker,
            checkpoint=checkpoint,
            verbose=verbose,
        )
    checkpoint.take_best()
    with local_scope():
        local_prior = to_local(prior)
        if worker.rank == 0:
            save_model(local_vqvae, folder / "vqvae.keras")
            save_model(local_prior, folder / "prior.keras")
    return local_vqvae, local_prior


def _train_vqvae(recipe, train: SliceStream, folder: Path, worker, callbacks, verbose) -> VQVAE:
    schedule, count = recipe.vqvae_schedule, len(train)

    def read(indices):
        images = train.read(indices % count)
        mirrored = indices >= count
        images[mirrored] = images[mirrored, :, ::-1]
        return images, images

    sample = train.read(range(0, count, -(-count // 200)))
    vqvae = improved_vqvae(float(sample.var()), recipe.size, seed=recipe.seed, **recipe.vqvae)
    vqvae.compile(keras.optimizers.Adam(learning_rate(schedule.learning_rate, schedule.steps)))
    batches = Batches(read, 2 * count, schedule.batch_size, recipe.seed, worker)
    with naming_lost_workers(folder, worker):
        checkpoint = SharedCheckpoint(folder, worker, None)
        fit(vqvae, batches, schedule.steps, None, callbacks, checkpoint, verbose)
    return vqvae


def fingerprint(stream: SliceStream) -> str:
    """A hash of the files and of the frame: shows whether a training saw these slices."""
    digest = hashlib.sha256(f"{stream.size} {stream.crop}".encode())
    for path, subject, index in zip(stream.paths, stream.subjects, stream.slices):
        digest.update(f"{subject} {index} ".encode() + path.read_bytes())
    return digest.hexdigest()


def _encode(vqvae: VQVAE, stream: SliceStream, view: int, folder: Path, worker: Worker):
    """The code maps of a stream, int32 (N, h, w); each worker encodes some of its chunks.

    View 0 is the slices as they are, view 1 mirrored; later views are shifted and mirrored by
    chance, with a seed for every chunk, so that the number of workers changes nothing.
    """
    starts = range(0, len(stream), CHUNK)
    codes = [np.zeros((0, *vqvae.code_shape), "int32")]  # a worker may have no chunk
    for number in np.array_split(np.arange(len(starts)), worker.count)[worker.rank]:
        images = stream.read(range(starts[number], min(starts[number] + CHUNK, len(stream))))
        if view == 1:
            images = images[:, :, ::-1]
        elif view > 1:
            images = shifted_and_mirrored(images, (view, int(number)))
        with local_scope():
            codes.append(vqvae.encode(images))
    return gather(np.concatenate(codes), folder / f"codes-{view}", worker)


def join_workers() -> Worker:
    """Joins the processes that were started together; call it before anything is computed.

    Keras reads their number, this one's rank and the first one's address from
    `KERAS_DISTRIBUTION_NUM_PROCESSES`, `KERAS_DISTRIBUTION_PROCESS_ID` and
    `KERAS_DISTRIBUTION_JOB_ADDRESSES`; where these are unset, JAX asks Slurm or Open MPI. Every
    model made afterwards lives on all workers' devices.

    Ends the process with a sentence when the others do not join within `PATIENCE` seconds.

    Raises:
        ValueError: on another backend than JAX, where Keras's `fit` supports one process only, and
            for addresses, numbers or ranks that JAX refuses.
    """
    if keras.backend.backend() != "jax":
        raise ValueError(
            f"Several workers need JAX, and this is {keras.backend.backend()}: set "
            "KERAS_BACKEND=jax. (Keras 3's fit does not run under TensorFlow's "
            "MultiWorkerMirroredStrategy.)"
        )
    import jax

    named = {name: os.environ.get(f"KERAS_DISTRIBUTION_{name}") for name in SETTINGS}
    settings = ", ".join(f"KERAS_DISTRIBUTION_{name}={value}" for name, value in named.items())
    sentence = (
        f"The workers did not find each other within {PATIENCE} seconds ({settings}): start all of "
        "them, each with a rank of its own and with the address of the first one."
    )
    timer = threading.Timer(PATIENCE, _end, [sentence])
    timer.daemon = True
    timer.start()
    try:
        keras.distribution.initialize()
    except Exception as error:  # JAX raises what its transport, its cluster or its checks raise
        raise ValueError(
            f"The workers cannot be joined ({str(error).splitlines()[0]}; {settings}); set all "
            "three on every worker, or none under Slurm and Open MPI."
        ) from error
    finally:
        timer.cancel()
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    return Worker(jax.process_index(), jax.process_count())


class SharedCheckpoint(Checkpoint):
    """A checkpoint that the first worker writes and all workers resume from."""

    def __init__(self, folder: Path, worker: Worker, monitor: str | None = "val_loss"):
        super().__init__(folder, monitor)
        self.worker = worker

    def restore(self, model: keras.Model) -> int:
        epoch = super().restore(model)
        barrier(self.worker, "restored")  # before the first worker writes again
        return epoch

    def on_epoch_begin(self, epoch, logs=None):
        if self.worker.rank == 0:
            super().on_epoch_begin(epoch, logs)


def barrier(worker: Worker, name: str) -> None:
    """Returns when all workers have reached the barrier of this name."""
    if worker.count > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


class WorkerLostError(RuntimeError):
    """Another worker was lost; the message says where training resumes."""


@contextlib.contextmanager
def naming_lost_workers(folder: Path, worker: Worker) -> Iterator[None]:
    """Turns JAX's errors about another worker into a `WorkerLostError` that says what to do."""
    try:
        yield
    except Exception as error:
        if worker.count == 1 or not any(name in str(error) for name in TRANSPORTS):
            raise
        raise WorkerLostError(
            f"{name_of(worker)} lost the others: one was stopped, or the network failed. "
            f"{folder} holds the training as it was before the unfinished epoch; start all workers "
            "again with the same command to resume from there."
        ) from error


def name_of(worker: Worker) -> str:
    """For messages: "Worker 1 of 2"."""
    return f"Worker {worker.rank + 1} of {worker.count}"


@contextlib.contextmanager
def watching_others(folder: Path, worker: Worker) -> Iterator[None]:
    """Ends this process with a sentence when another worker shows no sign of life.

    A worker that is stopped leaves the others waiting, and JAX aborts them after 100 seconds. So
    every worker touches a file in the folder that all share, and looks at the files of the others.
    """
    files = [folder / f".worker-{rank + 1}" for rank in range(worker.count)]
    left = threading.Event()

    def watch():
        stamps = {}
        while not left.wait(PATIENCE / 12):
            files[worker.rank].touch()
            for number, file in enumerate(files, 1):
                stamp = file.stat().st_mtime_ns if file.is_file() else 0
                last, since = stamps.get(file, (None, 0))
                if stamp != last:
                    stamps[file] = stamp, time.monotonic()
                elif time.monotonic() - since > PATIENCE:
                    _end(
                        f"{name_of(worker)} has seen no sign of life of worker {number} "
                        f"for {PATIENCE} seconds: it was stopped, never started, or has another "
                        f"{folder}. That folder holds the training as it was before the unfinished "
                        "epoch; start all workers again with the same command to resume from there."
                    )

    if worker.count > 1:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        left.set()


def _end(sentence: str) -> None:
    """Ends the process at once: what JAX does on the way out would wait for the others."""
    print(sentence, file=sys.stderr, flush=True)
    os._exit(3)


@contextlib.contextmanager
def local_scope():
    """Models made in here live on this worker's own device, to encode or sample its part."""
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def to_local(model: keras.Model) -> keras.Model:
    """A copy of the model on this worker's own device; use it inside `local_scope`."""
    copy = type(model).from_config(model.get_config())
    copy.set_weights(model.get_weights())
    return copy


def gather(part: np.ndarray, file: Path, worker: Worker) -> np.ndarray:
    """All workers' arrays, concatenated, exchanged as files in a folder that all workers share."""
    if worker.count == 1:
        return part
    files = [file.with_name(f"{file.stem}-{rank}.npy") for rank in range(worker.count)]
    np.save(files[worker.rank], part)
    barrier(worker, f"written {file.stem}")
    whole = np.concatenate([np.load(one, allow_pickle=False) for one in files])
    barrier(worker, f"read {file.stem}")
    return whole


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.train_together", description=__doc__)
    parser.add_argument("size", choices=list(SIZES), help="side of the slices in pixels")
    parser.add_argument("folder", type=Path, help="that all workers share")
    arguments = parser.parse_args()
    recipe = SIZES[arguments.size]
    several = keras.backend.backend() == "jax" or f"KERAS_DISTRIBUTION_{SETTINGS[0]}" in os.environ
    worker = join_workers() if several else Worker()
    keras.utils.set_random_seed(recipe.seed)
    try:
        train_together(recipe, data_root(), arguments.folder, worker, verbose=2)
    except (WorkerLostError, ValueError, OSError) as error:
        if worker.count == 1:
            raise
        _end(str(error))


if __name__ == "__main__":
    ending_with_a_sentence(main)
