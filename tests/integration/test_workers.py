"""Several workers, or several devices, learn what one learns; a lost worker costs an epoch."""

import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from workers import RECIPE, write_slices

from oasis_helpers import load_slices, training
from oasis_helpers.recipes import Schedule
from tools import train_together as together
from tools.train_together import to_local, train_together

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="JAX's gloo is tried on Linux only")


def start(folder: Path, *options: str, count: int = 1, devices: int = 1) -> list[subprocess.Popen]:
    """Starts so many of workers.py on this machine.

    Without most of its optimisations, XLA compiles in half the time.
    """
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(REPOSITORY)}
    alone["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    alone["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    started = []
    for rank in range(count):
        together = {
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
            "KERAS_DISTRIBUTION_NUM_PROCESSES": str(count),
            "KERAS_DISTRIBUTION_PROCESS_ID": str(rank),
        }
        started.append(
            subprocess.Popen(
                [sys.executable, HERE / "workers.py", folder, *options],
                env=alone | (together if count > 1 else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def ended(started: list[subprocess.Popen]) -> list[str]:
    """What they printed; none outlives the test."""
    try:
        return [process.communicate(timeout=3000)[0] for process in started]
    finally:
        for process in started:
            process.kill()


def seen(folder: Path, rank: int = 0) -> dict[str, np.ndarray]:
    return dict(np.load(folder / f"{rank}.npz"))


def compare(folder: Path, steps: int, devices: int) -> None:
    """One worker with so many devices, and two workers, see and learn the same."""
    running = {
        "one": start(folder / "one", f"--steps={steps}", devices=devices),
        "two": start(folder / "two", f"--steps={steps}", count=2),
    }
    printed = {name: ended(started) for name, started in running.items()}
    for name, started in running.items():
        assert not any(process.returncode for process in started), printed[name]
    one, first, second = seen(folder / "one"), seen(folder / "two"), seen(folder / "two", 1)
    assert len(one["vqvae losses"]) == steps and len(one["prior losses"]) == 36
    assert one["restarts"] >= 16, "nothing was restarted: the test shows nothing of restarts"
    for name, expected in one.items():
        np.testing.assert_array_equal(first[name], second[name], name)
        if expected.dtype.kind == "i":  # codes may differ where two entries are as near
            assert first[name].shape == expected.shape
            assert np.mean(first[name] != expected) < 0.02, name
        else:
            np.testing.assert_allclose(first[name], expected, atol=1e-3, rtol=0, err_msg=name)


@pytest.mark.long
@ON_LINUX
def test_two_workers_learn_what_one_learns(tmp_path):
    compare(tmp_path, steps=24, devices=1)


@ON_LINUX
@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 2])
def test_two_workers_learn_what_one_learns_over_sixty_steps(tmp_path, devices):
    compare(tmp_path, steps=60, devices=devices)


@ON_LINUX
@pytest.mark.long
def test_a_lost_worker_is_named_and_training_resumes_exactly(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    survivor, lost = start(killed, "--steps=48", "--die-after=14", count=2)
    printed = ended([survivor, lost])
    assert lost.returncode == -signal.SIGKILL
    assert survivor.returncode == 3, printed[0]
    assert re.search(r"Worker 1 of 2 lost the others: .* start all workers again", printed[0])
    for folder in (killed, whole):
        again = start(folder, "--steps=48", count=2)
        printed = ended(again)
        assert [process.returncode for process in again] == [0, 0], printed
    resumed, undisturbed = seen(killed), seen(whole)
    assert len(resumed["vqvae losses"]) == 48 - 12, "an epoch has twelve steps"
    for name, expected in undisturbed.items():
        if name in ("vqvae losses", "perplexity"):
            expected = expected[-len(resumed[name]) :]
        np.testing.assert_allclose(resumed[name], expected, atol=1e-6, err_msg=name)


@pytest.mark.long
def test_slices_from_the_disk_teach_what_slices_in_memory_teach(tmp_path):
    write_slices(tmp_path)
    recipe = replace(RECIPE, views=2)  # shifts are seeded differently

    keras.utils.set_random_seed(0)
    streamed = train_together(recipe, tmp_path, tmp_path / "work")

    keras.utils.set_random_seed(0)
    train, validate = (load_slices(tmp_path, split, recipe.size) for split in ("train", "validate"))
    vqvae, _ = training.train_vqvae(recipe, train, validate)
    to_local(vqvae)  # the copy took seeds from Keras's generator
    checkpoint = training.Checkpoint(tmp_path / "prior")
    prior, _ = training.train_prior(recipe, vqvae, train, validate, checkpoint=checkpoint)
    checkpoint.take_best()
    for one, other in zip(streamed, (vqvae, prior)):
        for value, expected in zip(one.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(value, expected, atol=1e-5)


def test_another_training_in_the_same_folder_is_refused(tmp_path, refused, monkeypatch):
    """Other slices, another seed, another rate."""
    write_slices(tmp_path)
    work, changed = tmp_path / "work", replace(RECIPE, vqvae_schedule=Schedule(24, 16, 1e-3))
    monkeypatch.setattr(together, "_train_vqvae", lambda *arguments: 1 / 0)  # later than the check
    with pytest.raises(ZeroDivisionError):
        train_together(RECIPE, tmp_path, work)
    words = "work holds a training with another recipe or other slices; remove that folder"
    for recipe in (changed, replace(RECIPE, seed=1)):
        refused(lambda recipe=recipe: train_together(recipe, tmp_path, work), words)
    first, second, *_ = sorted((tmp_path / "keras_png_slices_data").rglob("case_000*"))
    first.write_bytes(second.read_bytes())
    refused(lambda: train_together(RECIPE, tmp_path, work), words)


# ---------------------------------------------------------------------------- a worker is missing


def ended_within(started: subprocess.Popen, seconds: float) -> str:
    try:
        printed = started.communicate(timeout=seconds)[0]
    finally:
        started.kill()
    assert started.returncode == 3, printed
    return printed


@pytest.mark.long
@ON_LINUX
@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_worker_is_named(tmp_path, rank):
    """Rank 1 alone is also one with another worker's address."""
    started = start(tmp_path, "--patience=3", count=2)
    started.pop(1 - rank).kill()
    printed = ended_within(started[0], 60)
    assert "The workers did not find each other within 3.0 seconds" in printed
    assert f"KERAS_DISTRIBUTION_PROCESS_ID={rank}" in printed and "start all of them" in printed


@pytest.mark.long
@ON_LINUX
def test_a_worker_that_is_stopped_is_named(tmp_path):
    survivor, stopped = start(tmp_path, "--patience=20", "--stop-after=3", count=2)
    try:
        printed = ended_within(survivor, 240)
    finally:
        stopped.kill()
    assert "Worker 1 of 2 has seen no sign of life of worker 2 for 20.0 seconds" in printed
    assert "start all workers again" in printed and "Check failure stack trace" not in printed


@ON_LINUX
def test_workers_without_a_number_are_told_what_to_set(tmp_path):
    (alone,) = start(tmp_path, "--join")
    printed = alone.communicate(timeout=60)[0]
    assert alone.returncode and "The workers cannot be joined (" in printed
    assert "KERAS_DISTRIBUTION_JOB_ADDRESSES=None); set all three on every worker" in printed


@pytest.mark.long
def test_two_devices_of_one_machine_under_tensorflow_keep_one_codebook():
    ended = subprocess.run(
        [sys.executable, HERE / "mirrored.py"],
        env={**os.environ, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
