"""Larger slices, read from the disk, on several workers: nothing changes but the size and speed."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from oasis_helpers import ladders, load_pretrained, load_slices, sample_codes, distributed
from oasis_helpers.data import SliceDataError, stream_slices
from oasis_helpers.recipes import Recipe, Schedule
from oasis_helpers.training import Batches
from oasis_helpers.vqvae import improved_vqvae

HERE = Path(__file__).parent
AWAY = pytest.mark.skipif(sys.platform != "linux", reason="JAX's gloo is tried on Linux only")

# ------------------------------------------------------------------------------------- workers


def start(folder: Path, *options: str, count: int = 1, devices: int = 1) -> list[subprocess.Popen]:
    """Starts so many of tests/workers.py on this machine."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    plain = {**os.environ, "KERAS_BACKEND": "jax"}
    plain["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    started = []
    for rank in range(count):
        named = {
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
            "KERAS_DISTRIBUTION_NUM_PROCESSES": str(count),
            "KERAS_DISTRIBUTION_PROCESS_ID": str(rank),
        }
        started.append(
            subprocess.Popen(
                [sys.executable, HERE / "workers.py", folder, *options],
                env=plain | (named if count > 1 else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def ended(started: list[subprocess.Popen], seconds: float = 3000) -> list[str]:
    """What they printed; none outlives the test."""
    try:
        return [process.communicate(timeout=seconds)[0] for process in started]
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
    said = {name: ended(started) for name, started in running.items()}
    for name, started in running.items():
        assert not any(process.returncode for process in started), said[name]
    one, first, second = seen(folder / "one"), seen(folder / "two"), seen(folder / "two", 1)
    assert len(one["vqvae losses"]) == len(one["prior losses"]) == steps
    assert one["restarts"][0] >= 16, "nothing was restarted: the test says nothing of restarts"
    for name in ("vqvae losses", "prior losses", "perplexity", "restarts"):
        for other in (first, second):
            np.testing.assert_allclose(other[name], one[name], atol=1e-4, rtol=0, err_msg=name)
    for name in ("codebook", "counts", "sums"):
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], one[name], atol=1e-3, err_msg=name)
    for name in ("codes", "drawn"):
        np.testing.assert_array_equal(first[name], second[name])
        assert first[name].shape == one[name].shape
        assert np.mean(first[name] != one[name]) < 0.02, name


@AWAY
def test_two_workers_learn_what_one_learns(tmp_path):
    compare(tmp_path, steps=20, devices=1)


@AWAY
@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 2])
def test_two_workers_learn_what_one_learns_over_fifty_steps(tmp_path, devices):
    compare(tmp_path, steps=52, devices=devices)


@AWAY
@pytest.mark.long
def test_a_lost_worker_is_told_and_training_goes_on_as_if_not(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    survivor, lost = start(killed, "--steps=40", "--die-after=14", count=2)
    said = ended([survivor, lost])
    assert lost.returncode == -signal.SIGKILL
    assert survivor.returncode == 3, said[0]
    assert re.search(r"Worker 1 of 2 lost the others: .* start all workers again", said[0])
    for folder in (killed, whole):
        again = start(folder, "--steps=40", count=2)
        said = ended(again)
        assert [process.returncode for process in again] == [0, 0], said
    resumed, undisturbed = seen(killed), seen(whole)
    assert len(resumed["vqvae losses"]) == 40 - 12, "an epoch has four steps"
    for name in ("vqvae losses", "codebook", "codes", "drawn"):
        expected = undisturbed[name][12:] if name == "vqvae losses" else undisturbed[name]
        np.testing.assert_allclose(resumed[name], expected, atol=1e-6, err_msg=name)


@pytest.mark.long
def test_two_devices_of_one_machine_under_tensorflow_keep_one_codebook():
    ended = subprocess.run(
        [sys.executable, HERE / "mirrored.py"],
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_several_workers_need_jax():
    with pytest.raises(RuntimeError, match="Several workers need JAX, and this is tensorflow"):
        distributed.join_workers()


# -------------------------------------------------------------------------------------- batches


def test_workers_read_together_what_one_reads_alone():
    def order(worker):
        batches, epochs = Batches(lambda numbers: (numbers,), 21, 4, seed=3, part=worker), []
        for epoch in range(2):
            batches.shuffle(epoch)
            epochs.append([batches[number][0] for number in range(len(batches))])
        return np.array(epochs)

    alone, parts = order(distributed.Worker()), [order(distributed.Worker(rank, 2)) for rank in (0, 1)]
    assert alone.shape == (2, 5, 4) and (alone[0] != alone[1]).any()
    assert len(np.unique(alone[0])) == 20
    np.testing.assert_array_equal(np.concatenate(parts, axis=-1), alone)


@pytest.mark.parametrize("batch", [5, 0, 22])
def test_batches_that_cannot_be_shared(batch):
    with pytest.raises(ValueError, match=rf"A batch of {batch} out of 21 for 2 worker\(s\)"):
        Batches(lambda numbers: (numbers,), 21, batch, part=(0, 2))


def test_shares_of_a_drawing_are_the_drawing():
    prior = load_pretrained("cohort").prior
    whole = sample_codes(prior, 5, seed=2)
    shares = [sample_codes(prior, 5, seed=2, part=(rank, 3)) for rank in range(3)]
    assert [len(share) for share in shares] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(shares), whole)


# --------------------------------------------------------------------------------------- slices


def test_a_stream_reads_what_a_set_holds(cohort_root):
    held = load_slices(cohort_root, "validate", 64, "brain")
    stream = stream_slices(cohort_root, "validate", 64, "brain")
    assert len(stream) == len(held) and stream.crop == held.crop
    numbers = np.array([40, 3, 3, 111])
    np.testing.assert_array_equal(stream.read(numbers), held.images[numbers])
    np.testing.assert_array_equal(stream.subjects, held.subjects)
    np.testing.assert_array_equal(stream.slices, held.slices)


def test_a_stream_tells_of_a_damaged_file_when_it_reads_it(tmp_path):
    folder = tmp_path / "keras_png_slices_data" / "keras_png_slices_train"
    folder.mkdir(parents=True)
    damaged = folder / "case_001_slice_0.nii.png"
    damaged.write_bytes(b"no picture")
    stream = stream_slices(tmp_path, "train")
    with pytest.raises(SliceDataError, match=f"{damaged.name}: not a readable image"):
        stream.read([0])


@pytest.mark.parametrize(
    ("name", "cells", "bits"),
    [("80", 100, 700), ("128", 120, 840), ("256", 120, 840), ("256, fine", 480, 3360)],
)
def test_sizes_keep_to_their_rate(name, cells, bits):
    recipe = distributed.SIZES[name]
    vqvae = improved_vqvae(1.0, recipe.size, **recipe.vqvae)
    assert vqvae.bits_per_slice == bits and np.prod(vqvae.code_shape) == cells
    pictures = vqvae.decode(np.zeros((1, *vqvae.code_shape), int))
    assert pictures.shape == (1, recipe.size, recipe.size, 1)


def test_the_part_that_is_coded_is_the_same_at_every_size():
    parts = {tuple(np.array(r.vqvae["region"]) / r.size) for r in distributed.SIZES.values()}
    assert len(parts) == 1


def test_both_stages_from_the_disk_to_a_drawing(cohort_root, monkeypatch):
    small = distributed.SIZES["256"]
    small = Recipe(
        "cohort",
        64,
        vqvae={**small.vqvae, "region": (0, 0, 64, 64), "widths": (8, 8, 8), "blocks": 1},
        prior={"filters": 8, "blocks": 1, "heads": 2},
        vqvae_schedule=Schedule(2, 4, 1e-3),
        prior_schedule=Schedule(2, 4, 1e-3),
    )
    monkeypatch.setattr(distributed, "SIZES", {"small": small})
    few = distributed.stream_slices

    def some(*arguments):
        stream = few(*arguments)
        return type(stream)(
            stream.paths[:8], stream.subjects[:8], stream.slices[:8], stream.size, stream.crop
        )

    monkeypatch.setattr(distributed, "stream_slices", some)
    found = ladders.size_cost("small", cohort_root, steps=3)
    assert (found["positions"], found["bits"]) == (16, 112)
    assert min(found["fit_step"], found["prior_step"], found["sample"]) > 0
    assert 0.1 < found["peak_gb"] < 16
