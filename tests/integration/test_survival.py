"""Trainings that are killed, repeated or started twice; long use without growth.

Run as a script, this file is one such training: `test_survival.py FOLDER EPOCHS`.
"""

import dataclasses
import gc
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import tracemalloc
import weakref
from pathlib import Path

import keras
import nbformat
import numpy as np
import psutil
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from oasis_helpers import load_pretrained, metrics, pretrained, recipes, sample_codes, training
from oasis_helpers.data import REPOSITORY, SliceSet, read_json
from oasis_helpers.pixelcnn import GatedPixelCNN
from oasis_helpers.recipes import Schedule, improved_vqvae
from tools import train

BATCH = 16
RECIPE = recipes.Recipe(  # with everything random that the real ones have
    "cohort",
    vqvae={**recipes.WHOLE_FRAME, "widths": (8, 8), "blocks": 1, "num_embeddings": 16},
    prior={"filters": 8, "blocks": 1, "num_heads": 1, "dropout": 0.2, "condition_dropout": 0.2},
    views=3,
)
COUNTS = {"train": 2 * BATCH, "validate": BATCH, "test": BATCH}  # slices
VQVAE_EPOCH, PRIOR_EPOCH = 4, 6  # steps: slices are seen mirrored as well, or in three views


def noisy_discs(split: str) -> SliceSet:
    """Discs of noise, so that a training needs no data set."""
    rng, count = np.random.default_rng(len(split)), COUNTS[split]
    y, x = np.mgrid[:80, :80] - 39.5
    images = [0.8 * (np.hypot(y, x) < rng.uniform(15, 24)) for _ in range(count)]
    images = np.stack([image * rng.uniform(0.5, 1, image.shape) for image in images])
    slices = np.arange(count, dtype="int32")
    images = np.rint(255 * images).astype("float32")[..., None] / np.float32(255)
    return SliceSet(images, slices // 8, slices, split, Path("discs"))


def recipe_of(epochs: int, **changes) -> recipes.Recipe:
    schedules = {
        "vqvae_schedule": Schedule(epochs * VQVAE_EPOCH, BATCH, 4e-3),
        "prior_schedule": Schedule(epochs * PRIOR_EPOCH, BATCH, 4e-3),
    }
    return dataclasses.replace(RECIPE, **schedules, **changes)


def train_in(folder: Path, epochs: int) -> None:
    """The whole of `train_weights` except for the scores, with all its files in a folder."""
    recipes.RECIPES["tiny"] = recipe_of(epochs)
    train.WEIGHTS, train.CHECKPOINTS = folder / "weights", folder / "work"
    train.splits_for = lambda name: {split: noisy_discs(split) for split in COUNTS}
    train.score_weights = lambda name: {}
    train.train_weights("tiny")


# ------------------------------------------------------------------------------------- killed


def started(folder: Path, epochs: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, __file__, str(folder), str(epochs)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def killed_after(process: subprocess.Popen, lines: int, seconds: float) -> bool:
    """Kills a training so long after so many of its epochs; False where it ended before."""
    for _ in range(lines):
        if not process.stdout.readline():
            break
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def weights_and_curves(folder: Path) -> tuple[list[np.ndarray], dict]:
    vqvae, prior, _ = pretrained.load_stages(folder / "weights" / "tiny")
    history = read_json(folder / "weights" / "tiny" / "history.json")
    for stage in ("vqvae", "prior"):
        del history[stage]["seconds"]
    return [*vqvae.get_weights(), *prior.get_weights()], history


def survive(folder: Path, kills: int, epochs: int, seed: int) -> None:
    """Kills one training again and again, and compares its end with one that was never killed."""
    chance, done = random.Random(seed), []
    undisturbed = started(folder / "undisturbed", epochs)
    while len(done) < kills:
        # The first line of a process shows that its first epoch is kept.
        lines, seconds = chance.choice((1, 1, 2)), chance.uniform(0, 0.6)
        if not killed_after(started(folder / "killed", epochs), lines, seconds):
            break  # it had come to its end: what follows is the training of another one
        done.append((lines, round(seconds, 3)))
    ending = started(folder / "killed", epochs)
    for process in (ending, undisturbed):
        printed = process.communicate()
        assert process.returncode == 0, printed[1]
    assert len(done) == kills, f"only {done} of {kills} kills; give it more epochs"
    (here, curves), (there, expected) = (
        weights_and_curves(folder / name) for name in ("killed", "undisturbed")
    )
    assert curves == expected, f"killed after (epochs, seconds) {done}"
    assert curves["vqvae"]["epoch"] == curves["prior"]["epoch"] == list(range(epochs))
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one, other, f"killed after (epochs, seconds) {done}")


@pytest.mark.long
def test_a_training_killed_twice_ends_with_the_same_weights(tmp_path):
    survive(tmp_path, kills=2, epochs=3, seed=0)


@pytest.mark.long
def test_a_training_killed_twenty_times_ends_with_the_same_weights(tmp_path):
    survive(tmp_path, kills=20, epochs=40, seed=1)


# ------------------------------------------------------------------------ a notebook's kernel

# Run after the parameters of a notebook: the profile `full`, but small, in a folder of the test.
SMALL_AND_FULL = """
import os, signal
from dataclasses import replace
from pathlib import Path

os.environ["OASIS_PROFILE"] = "full"
pretrained.CHECKPOINTS, TOUR, STEPS = Path({work!r}), False, 12
TRAINING_SUBJECTS, VALIDATION_SUBJECTS = 2, 1
for name in ("cohort", "cohort-faithful"):
    RECIPES[name] = replace(
        RECIPES[name],
        prior={{"filters": 8, "blocks": 1, "num_heads": 1}},
        prior_schedule=replace(RECIPES["cohort"].prior_schedule, steps=96),
        views=1,
    )


class Lines(training.EpochLines):
    def on_train_batch_begin(self, batch, logs=None):
        if {killed} and self.model.optimizer.iterations >= {killed}:
            os.kill(os.getpid(), signal.SIGKILL)


training.EpochLines = Lines
"""


def train_in_notebook(name: str, until: str, work: Path, killed: int) -> list[str]:
    """Runs a notebook's code cells up to one; a kernel killed in between; the lines of epochs."""
    notebook = nbformat.read(REPOSITORY / "notebooks" / name, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    last = next(number for number, cell in enumerate(code) if until in cell.source)
    small = nbformat.v4.new_code_cell(SMALL_AND_FULL.format(work=str(work), killed=killed))
    # Set-up, parameters, then what is made small here; pictures aren't needed.
    notebook.cells = [*code[:2], small, *code[2 : last + 1]]
    for cell in notebook.cells:
        cell.outputs = []
    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(REPOSITORY / "notebooks")}}
    )
    if killed:
        with pytest.raises(DeadKernelError):
            client.execute()
    else:
        client.execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.outputs)
    return re.findall(r"^epoch +(\d+/\d+)", printed, re.MULTILINE)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "until", "killed", "first", "then"),
    [
        # Twelve steps of four batches an epoch for each of two recipes; the first one is killed.
        ("03_vqvae_training.ipynb", "training.train_vqvae(", 6, ["1/3"], ["2/3", "3/3", "1/3"]),
        ("05_pixelcnn_prior.ipynb", "training.train_prior(", 60, ["1/2"], ["2/2"]),
    ],
)
def test_a_restarted_kernel_resumes_the_training(tmp_path, name, until, killed, first, then):
    assert train_in_notebook(name, until, tmp_path, killed) == first
    again = train_in_notebook(name, until, tmp_path, killed=0)
    assert again[: len(then)] == then


# --------------------------------------------------------------------- same seed, same result


@pytest.mark.long
def test_same_seed_same_fine_tuned_decoder():
    """That both stages repeat is shown by the training that is killed."""
    recipe = recipe_of(1, decoder_schedule=Schedule(4, BATCH, 1e-3))
    seen, codes = (noisy_discs("train"), noisy_discs("validate")), np.arange(100).reshape(1, 10, 10)

    def decoded():
        keras.utils.set_random_seed(0)
        vqvae = improved_vqvae(1.0, **RECIPE.vqvae)
        before = vqvae.decode(codes % 16)
        training.finetune_decoder(recipe, vqvae, *seen)
        return before, vqvae.decode(codes % 16)

    (before, after), (_, again) = decoded(), decoded()
    np.testing.assert_array_equal(after, again)
    assert np.abs(after - before).max() > 1e-3, "nothing was trained"


def results_of(seed: int) -> tuple[dict, list[np.ndarray]]:
    """What the notebooks do, small: the three trainings, samples, scores."""
    recipe = recipe_of(2, seed=seed, decoder_schedule=Schedule(4, BATCH, 1e-3))
    splits = {split: noisy_discs(split) for split in COUNTS}
    seen = splits["train"], splits["validate"]
    keras.utils.set_random_seed(seed)
    vqvae, _ = training.train_vqvae(recipe, *seen)
    prior, _ = training.train_prior(recipe, vqvae, *seen)
    scores = metrics.prior_table(vqvae, prior, splits["train"], splits["test"])
    scores |= metrics.reconstruction_table(vqvae, splits["test"])
    codes = sample_codes(prior, 4, seed=seed)
    training.finetune_decoder(recipe, vqvae, *seen)
    return scores, [codes, vqvae.decode(codes)]


@pytest.mark.long
def test_same_seed_same_scores_and_slices():
    (scores, samples), (again, samples_again), (others, _) = map(results_of, (0, 0, 1))
    assert json.dumps(scores) == json.dumps(again)
    for one, other in zip(samples, samples_again):
        np.testing.assert_array_equal(one, other)
    assert json.dumps(scores) != json.dumps(others)


# -------------------------------------------------------------------------------- two at once


@pytest.mark.long
def test_two_trainings_of_the_same_weights_at_once(tmp_path):
    both = [started(tmp_path / "two", 6) for _ in range(2)]
    printed = [process.communicate() for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], printed
    assert any("BlockingIOError: Another process is training 'tiny'" in text for _, text in printed)
    alone = started(tmp_path / "one", 6)
    alone.communicate()
    (here, _), (there, _) = (weights_and_curves(tmp_path / name) for name in ("two", "one"))
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one, other)


TWICE = """
import hashlib, sys
from oasis_helpers import load_slices
from oasis_helpers.convert.synthetic import make_cohort
root, subjects = sys.argv[1], int(sys.argv[2])
make_cohort(root, (subjects, 1, 1))
images = load_slices(root, "train", 32, "brain").images
print(hashlib.sha256(images.tobytes()).hexdigest())
"""


def cohort_twice(folder: Path, subjects: int) -> None:
    """Two processes make a cohort and read it with a cold cache, at the same time."""
    command = [sys.executable, "-c", TWICE, str(folder / "cohort"), str(subjects)]
    environment = {**os.environ, "OASIS_CACHE_DIR": str(folder / "cache")}
    both = [
        subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    found = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert found[0] == found[1] and found[0]
    assert len(list((folder / "cohort").rglob("*.png"))) == 32 * (subjects + 2)
    assert {path.name for path in folder.iterdir()} == {"cohort", "cache"}, "scratch was left"
    assert not list((folder / "cache").glob(".*")), "half a file was left"


@pytest.mark.long
def test_two_processes_with_one_cohort_and_one_cache(tmp_path):
    cohort_twice(tmp_path, 1)


@pytest.mark.long
def test_two_processes_with_one_cohort_and_one_cache_again_and_again(tmp_path):
    for number in range(5):
        cohort_twice(tmp_path / str(number), 6)


# ----------------------------------------------------------------------------------- long use


def sample_and_decode(maps: int, batches: int, measure) -> list[float]:
    """A measure after each so many maps, sampled and decoded by untrained weights."""
    vqvae = improved_vqvae(1.0, num_embeddings=16, widths=(8, 8), blocks=1, **recipes.WHOLE_FRAME)
    prior, found = GatedPixelCNN(16, (10, 10), filters=8, blocks=1, num_heads=1), []
    for number in range(batches):
        vqvae.decode(sample_codes(prior, maps, seed=number))
        gc.collect()
        found.append(measure())
    return found


def test_sampling_and_decoding_hold_nothing_of_earlier_batches():
    tracemalloc.start()  # Python's and NumPy's own memory, which no other process changes
    try:
        found = sample_and_decode(50, 4, lambda: tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    pictures = 50 * 80 * 80 * 4
    assert found[-1] - found[1] < pictures, found


def test_released_weights_are_freed():
    models = load_pretrained("cohort")
    models.vqvae.decode(sample_codes(models.prior, 2))
    watched = [weakref.ref(model) for model in (models.vqvae, models.prior)]
    del models
    keras.utils.clear_session()
    gc.collect()
    assert [reference() for reference in watched] == [None, None]


def resident_memory() -> float:
    """MiB that this process holds."""
    return psutil.Process().memory_info().rss / 2**20


@pytest.mark.long
def test_ten_thousand_maps_are_sampled_in_bounded_memory():
    found = sample_and_decode(500, 20, resident_memory)
    print("MiB:", [round(value) for value in found])
    assert found[-1] < 1.2 * found[3], found  # the pictures alone would be 244 MiB


@pytest.mark.long
def test_weights_are_loaded_fifty_times_in_bounded_memory():
    found = []
    for seed in range(50):
        models = load_pretrained("cohort")
        models.vqvae.decode(sample_codes(models.prior, 2, seed=seed))
        del models
        keras.utils.clear_session()
        gc.collect()
        found.append(resident_memory())
    print("MiB:", [round(value) for value in found])
    assert found[-1] < 1.2 * found[5], found


if __name__ == "__main__":
    train_in(Path(sys.argv[1]), int(sys.argv[2]))
