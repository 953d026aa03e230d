"""Trainings that are killed, interrupted, repeated or doubled; long use without growth.

Run as a script this file is one such training: `test_survival.py FOLDER EPOCHS compiled|plain`.
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
import warnings
from pathlib import Path

import keras
import nbformat
import numpy as np
import psutil
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from oasis_helpers import files, load_pretrained, metrics, recipes, sample_codes, pretrained, training
from oasis_helpers.data import REPOSITORY, SliceSet, with_mirrored
from oasis_helpers.pixelcnn import GatedPixelCNN
from oasis_helpers.vqvae import improved_vqvae

BATCH = 16
RECIPE = recipes.Recipe(  # with everything random that the real ones have
    "cohort",
    vqvae={**recipes.WHOLE_FRAME, "widths": (8, 8), "blocks": 1, "num_embeddings": 16},
    vqvae_schedule=recipes.Schedule(20, BATCH, 4e-3),
    prior={"filters": 8, "blocks": 1, "heads": 1, "dropout": 0.2, "condition_dropout": 0.2},
    prior_schedule=recipes.Schedule(20, BATCH, 4e-3),
    views=3,
)
COUNTS = {"train": 2 * BATCH, "validate": BATCH, "test": BATCH}  # slices
STEPS_PER_EPOCH = {"fitting": 4, "drawing": 6}  # slices are seen twice, or in three variants


def noisy_discs(split: str) -> SliceSet:
    """Discs of noise, so that a training needs no data set."""
    rng, count = np.random.default_rng(len(split)), COUNTS[split]
    y, x = np.mgrid[:80, :80] - 39.5
    images = [0.8 * (np.hypot(y, x) < rng.uniform(15, 24)) for _ in range(count)]
    images = np.stack([image * rng.uniform(0.5, 1, image.shape) for image in images])
    slices = np.arange(count, dtype="int32")
    images = np.rint(255 * images).astype("float32")[..., None] / np.float32(255)
    return SliceSet(images, slices // 8, slices, split, Path("discs"))


def lasting(epochs: int) -> recipes.Recipe:
    schedules = {
        stage: recipes.Schedule(epochs * steps, BATCH, 4e-3)
        for stage, steps in STEPS_PER_EPOCH.items()
    }
    return dataclasses.replace(RECIPE, **schedules)


compile_as_asked = keras.Model.compile


def compile_plainly(*model, jit_compile=False, **how):
    """`compile` for tests in a hurry: with XLA the prior's first step takes as long as the rest."""
    compile_as_asked(*model, jit_compile=False, **how)


def train_in(folder: Path, epochs: int, compiled: bool) -> None:
    """The whole of `train_weights` but for the scores, with all its files in a folder."""
    if not compiled:
        keras.Model.compile = compile_plainly
    recipes.RECIPES["tiny"] = lasting(epochs)
    pretrained.WEIGHTS, pretrained.CHECKPOINTS = folder / "weights", folder / "work"
    pretrained._splits_for = lambda name: {split: noisy_discs(split) for split in COUNTS}
    pretrained.score_weights = lambda name: {}
    pretrained.train_weights("tiny")


# ------------------------------------------------------------------------------------- killed


def started(folder: Path, epochs: int, how: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, __file__, str(folder), str(epochs), how],
        cwd=REPOSITORY,
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
    vqvae, prior = pretrained.load_stages(folder / "weights" / "tiny")
    history = files.read_json(folder / "weights" / "tiny" / "history.json")
    for stage in ("vqvae", "prior"):
        del history[stage]["seconds"]
    return [*vqvae.get_weights(), *prior.get_weights()], history


def survive(folder: Path, kills: int, epochs: int, seed: int, how: str) -> None:
    """Kills one training again and again, and holds its end against one never killed."""
    chance, done = random.Random(seed), []
    undisturbed = started(folder / "undisturbed", epochs, how)
    while len(done) < kills:
        # The first line of a process tells that its first epoch is kept.
        lines, seconds = chance.choice((1, 1, 2)), chance.uniform(0, 0.6)
        if not killed_after(started(folder / "killed", epochs, how), lines, seconds):
            break  # it had come to its end: what follows is the training of another one
        done.append((lines, round(seconds, 3)))
    ending = started(folder / "killed", epochs, how)
    for process in (ending, undisturbed):
        told = process.communicate()
        assert process.returncode == 0, told[1]
    assert len(done) == kills, f"only {done} of {kills} kills; give it more epochs"
    (here, curves), (there, expected) = (
        weights_and_curves(folder / name) for name in ("killed", "undisturbed")
    )
    assert curves == expected, f"killed after (epochs, seconds) {done}"
    assert curves["vqvae"]["epoch"] == curves["prior"]["epoch"] == list(range(epochs))
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one, other, f"killed after (epochs, seconds) {done}")


def test_a_training_killed_three_times_ends_with_the_same_weights(tmp_path):
    survive(tmp_path, kills=3, epochs=3, seed=0, how="plain")


@pytest.mark.long
def test_a_training_killed_twenty_times_ends_with_the_same_weights(tmp_path):
    survive(tmp_path, kills=20, epochs=40, seed=1, how="compiled")


# --------------------------------------------------------------- one process, every moment


class Stop(Exception):
    """In place of a kill."""


class Stopping(keras.callbacks.Callback):
    """Raises in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.last = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == self.last and batch == 1:
            raise Stop


EPOCHS = 4


def fit_small(checkpoint=None, callbacks=()) -> tuple[list[np.ndarray], dict]:
    """A model with dropout, weight decay and running averages that takes a second to train."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 4)), rng.normal(size=(40, 1))
    number = keras.Input((4,))
    hidden = keras.layers.Dropout(0.5)(keras.layers.Dense(8, activation="relu")(number))
    model = keras.Model(number, keras.layers.Dense(1)(hidden))
    model.compile(keras.optimizers.AdamW(0.01, use_ema=True, ema_momentum=0.9), "mse")
    averaging = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    batches, callbacks = training.Batches.of(x, y, 16), [averaging, *callbacks]
    curves = training.fit(model, batches, 2 * EPOCHS, (x, y), callbacks, checkpoint)
    if checkpoint:
        checkpoint.take_best()
    return model.get_weights(), curves


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    return fit_small(training.Checkpoint(tmp_path_factory.mktemp("whole")))


def assert_same(found, expected):
    assert found[1] == expected[1]
    for one, other in zip(found[0], expected[0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_checkpoint_changes_nothing(never_stopped):
    weights, curves = fit_small()
    assert [float(f"{x:.5g}") for x in curves["val_loss"]] == never_stopped[1]["val_loss"]
    assert np.argmin(curves["val_loss"]) == EPOCHS - 1, "the best epoch isn't the last one"
    for one, other in zip(weights, never_stopped[0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_stopped_in_every_epoch(tmp_path, never_stopped):
    for epoch in range(EPOCHS):
        with pytest.raises(Stop):
            fit_small(training.Checkpoint(tmp_path), [Stopping(epoch)])
    assert_same(fit_small(training.Checkpoint(tmp_path)), never_stopped)


@pytest.mark.parametrize("moment", ["writing", "before the first renaming", "between the two"])
def test_stopped_while_a_checkpoint_is_written(tmp_path, never_stopped, monkeypatch, moment):
    def killed(*_, **__):
        raise Stop

    class Stopping(training.Checkpoint):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2 and moment == "writing":
                monkeypatch.setattr(np, "savez", killed)
            elif epoch == 2:
                renamings = [killed] if "first" in moment else [os.replace, killed]
                monkeypatch.setattr(os, "replace", lambda *names: renamings.pop(0)(*names))
            super().on_epoch_begin(epoch, logs)

    with pytest.raises(Stop):
        fit_small(Stopping(tmp_path))
    monkeypatch.undo()
    (tmp_path / ".1234-5-latest.npz").write_bytes(b"half of a check")  # a kill leaves that
    assert (tmp_path / "latest.npz").is_file() == (moment != "between the two")
    with warnings.catch_warnings(action="error"):
        assert_same(fit_small(training.Checkpoint(tmp_path)), never_stopped)
    assert {path.name for path in tmp_path.iterdir()} == {"latest.npz", "earlier.npz"}


def test_a_damaged_checkpoint_is_noticed_and_the_earlier_one_used(tmp_path, never_stopped):
    fit_small(training.Checkpoint(tmp_path))
    latest, earlier = tmp_path / "latest.npz", tmp_path / "earlier.npz"
    whole = latest.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", whole[:2000] + bytes(200) + whole[2200:]):
        latest.write_bytes(damage)
        checkpoint = training.Checkpoint(tmp_path)
        with pytest.warns(UserWarning, match=r"latest\.npz is damaged; going on from before it"):
            assert_same(fit_small(checkpoint), never_stopped)
    latest.write_bytes(b"")
    earlier.write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged"):
        assert_same(fit_small(training.Checkpoint(tmp_path)), never_stopped)


def test_the_best_epoch_is_kept_with_its_value(tmp_path):
    checkpoint = training.Checkpoint(tmp_path, "loss")
    checkpoint.set_model(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]))
    for epoch, loss in enumerate((3.0, 1.0, 2.0, float("nan"))):
        checkpoint.model.set_weights([np.full((1, 1), loss), np.zeros(1)])
        checkpoint.on_epoch_end(epoch, {"loss": loss})
    checkpoint.take_best()
    assert checkpoint.model.get_weights()[0] == 1.0
    never = training.Checkpoint(tmp_path, "loss")
    never.on_epoch_end(0, {"loss": float("nan")})
    with pytest.raises(ValueError, match=r"loss was never a number .* train with a lower rate"):
        never.take_best()


def test_an_interruption_says_how_to_go_on(tmp_path, never_stopped):
    class Interrupting(Stopping):
        def on_train_batch_end(self, batch, logs=None):
            if self.epoch == self.last:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"holds the state before the unfinished epoch"):
        fit_small(training.Checkpoint(tmp_path), [Interrupting(2)])
    assert_same(fit_small(training.Checkpoint(tmp_path)), never_stopped)


# ------------------------------------------------------------------------ a notebook's kernel

# Run after the parameters of a notebook: the profile `full`, but small, in a folder of the test.
SMALL_AND_FULL = """
import os, signal
from dataclasses import replace
from pathlib import Path

os.environ["OASIS_PROFILE"] = "full"
pretrained.CHECKPOINTS, TOUR, STEPS, TRAINING_SUBJECTS, VALIDATION_SUBJECTS = Path({work!r}), False, 12, 2, 1
for name in ("cohort", "cohort-faithful"):
    RECIPES[name] = replace(
        RECIPES[name],
        prior={{"filters": 8, "blocks": 1, "heads": 1}},
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
    told = "".join(output.get("text", "") for cell in notebook.cells for output in cell.outputs)
    return re.findall(r"^epoch +(\d+/\d+)", told, re.MULTILINE)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "until", "killed", "first", "then"),
    [
        # Twelve steps of four batches an epoch for each of two recipes; the first one is killed.
        ("03_vqvae_training.ipynb", "training.train_vqvae(", 6, ["1/3"], ["2/3", "3/3", "1/3"]),
        ("05_pixelcnn_prior.ipynb", "training.train_prior(", 60, ["1/2"], ["2/2"]),
    ],
)
def test_a_restarted_kernel_goes_on_with_the_training(tmp_path, name, until, killed, first, then):
    assert train_in_notebook(name, until, tmp_path, killed) == first
    again = train_in_notebook(name, until, tmp_path, killed=0)
    assert again[: len(then)] == then


# --------------------------------------------------------------------- same seed, same result


def results_of(seed: int) -> tuple[dict, list[np.ndarray]]:
    """What the notebooks do, in little: the three trainings, drawing, scores."""
    recipe = dataclasses.replace(lasting(2), seed=seed, decoder_schedule=recipes.Schedule(4, BATCH, 1e-3))
    splits = {split: noisy_discs(split) for split in COUNTS}
    seen = splits["train"], splits["validate"]
    vqvae, _ = training.train_vqvae(recipe, *seen)
    prior, _ = training.train_prior(recipe, vqvae, *seen)
    scores = metrics.prior_table(vqvae, prior, splits["train"], splits["test"])
    scores |= metrics.reconstruction_table(vqvae, splits["test"])
    codes = sample_codes(prior, 4, seed=seed)
    training.finetune_decoder(recipe, vqvae, *seen)
    return scores, [codes, vqvae.decode(codes)]


def test_same_seed_same_first_stage_and_same_maps():
    splits = [noisy_discs(split) for split in ("train", "validate", "test")]
    (scores, codes), (again, codes_again) = (
        (
            metrics.reconstruction_table(
                training.train_vqvae(lasting(1), *splits[:2])[0], splits[2]
            ),
            sample_codes(GatedPixelCNN(16, (4, 4), filters=8, blocks=1, heads=1), 4, seed=0),
        )
        for _ in range(2)
    )
    assert json.dumps(scores) == json.dumps(again)
    np.testing.assert_array_equal(codes, codes_again)


@pytest.mark.long
def test_same_seed_same_scores_and_slices():
    (scores, drawn), (again, drawn_again), (others, _) = (results_of(seed) for seed in (0, 0, 1))
    assert json.dumps(scores) == json.dumps(again)
    for one, other in zip(drawn, drawn_again):
        np.testing.assert_array_equal(one, other)
    assert json.dumps(scores) != json.dumps(others)


def test_the_order_of_batches_hangs_on_seed_and_epoch_alone():
    def order(seed, epoch):
        batches = training.Batches.of((np.arange(10), -np.arange(10)), np.arange(10), 4, seed)
        batches.shuffle(epoch)
        for (first, second), target in (batches[number] for number in range(len(batches))):
            np.testing.assert_array_equal(first, target)
            np.testing.assert_array_equal(second, -target)
        return np.concatenate([batches[number][1] for number in range(2)]).tolist()

    assert order(0, 5) == order(0, 5) and len(set(order(0, 5))) == 8
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_the_last_epochs_may_be_of_the_first_things_only():
    batches = training.Batches.of(np.arange(12), np.arange(12), 4, unaugmented=(2, 6))
    seen = []
    for epoch in range(4):
        batches.shuffle(epoch)
        seen.append(np.concatenate([batches[number][0] for number in range(len(batches))]))
    assert sorted(seen[1]) == list(range(12))
    assert sorted(seen[2]) == sorted(seen[3]) == sorted([*range(6), *range(6)])
    assert (seen[2] != seen[3]).any()
    with pytest.raises(ValueError, match="unaugmented on the first 13: there are 12"):
        training.Batches.of(np.arange(12), np.arange(12), 4, unaugmented=(2, 13))


def test_a_prior_ends_with_slices_where_they_lie(monkeypatch):
    monkeypatch.setattr(training, "fit", lambda model, batches, *rest: batches)
    train, vqvae = noisy_discs("train"), improved_vqvae(1.0, **RECIPE.vqvae)
    _, batches = training.train_prior(lasting(6), vqvae, train, noisy_discs("validate"))
    assert len(batches) == 6 and batches.unaugmented == (4, 2 * len(train))
    (codes, slices), _ = batches.read(np.arange(2 * len(train)))
    np.testing.assert_array_equal(codes, vqvae.encode(with_mirrored(train.images)))
    np.testing.assert_array_equal(slices, np.tile(train.slices, 2))


def test_every_epoch_has_an_order_of_its_own(monkeypatch):
    shuffled, shuffle = [], training.Batches.shuffle
    monkeypatch.setattr(
        training.Batches,
        "shuffle",
        lambda batches, epoch: shuffled.append(epoch) or shuffle(batches, epoch),
    )
    fit_small()
    assert shuffled == [0, *range(EPOCHS)]


# -------------------------------------------------------------------------------- two at once


def test_the_same_weights_are_trained_by_one_process_at_a_time(tmp_path):
    with files.file_lock(tmp_path, "at it"):
        with pytest.raises(BlockingIOError, match=r"Another process is at it in .*; wait until"):
            with files.file_lock(tmp_path, "at it"):
                pass
    with files.file_lock(tmp_path, "at it"):
        pass


@pytest.mark.long
def test_two_trainings_of_the_same_weights_at_once(tmp_path):
    both = [started(tmp_path / "two", 6, "compiled") for _ in range(2)]
    told = [training.communicate() for training in both]
    codes = sorted(training.returncode for training in both)
    assert codes == [0, 1], told
    assert any("BlockingIOError: Another process is training 'tiny'" in text for _, text in told)
    alone = started(tmp_path / "one", 6, "compiled")
    alone.communicate()
    (here, _), (there, _) = (weights_and_curves(tmp_path / name) for name in ("two", "one"))
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one, other)


TWICE = """
import hashlib, sys, time
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


def test_two_processes_with_one_cohort_and_one_cache(tmp_path):
    cohort_twice(tmp_path, 1)


@pytest.mark.long
def test_two_processes_with_one_cohort_and_one_cache_again_and_again(tmp_path):
    for number in range(5):
        cohort_twice(tmp_path / str(number), 6)


# ----------------------------------------------------------------------------------- long use


def memory() -> float:
    """MiB that this process holds, garbage collected."""
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


def draw(maps: int, batches: int) -> list[float]:
    """Memory after each so many maps drawn and decoded by untrained weights."""
    vqvae = improved_vqvae(1.0, num_embeddings=16, widths=(8, 8), blocks=1, **recipes.WHOLE_FRAME)
    prior, held = GatedPixelCNN(16, (10, 10), filters=8, blocks=1, heads=1), []
    for number in range(batches):
        vqvae.decode(sample_codes(prior, maps, seed=number))
        held.append(memory())
    return held


def load_and_release(cycles: int) -> list[float]:
    """Memory after each time that shipped weights are loaded, sampled and released."""
    held = []
    for seed in range(cycles):
        models = load_pretrained("cohort")
        models.vqvae.decode(sample_codes(models.prior, 2, seed=seed))
        del models
        keras.utils.clear_session()
        held.append(memory())
    return held


def test_drawing_many_maps_holds_no_memory():
    held = draw(100, 6)
    assert held[-1] - held[1] < 20, held


def test_loading_and_releasing_weights_holds_no_memory():
    held = load_and_release(5)
    assert held[-1] - held[2] < 20, held


@pytest.mark.long
def test_drawing_ten_thousand_maps_holds_no_memory():
    held = draw(500, 20)
    print("MiB:", [round(value) for value in held])
    assert held[-1] - held[3] < 20, held


@pytest.mark.long
def test_fifty_times_loading_and_releasing_weights_holds_no_memory():
    held = load_and_release(50)
    print("MiB:", [round(value) for value in held])
    assert held[-1] - held[5] < 20, held


if __name__ == "__main__":
    train_in(Path(sys.argv[1]), int(sys.argv[2]), compiled=sys.argv[3] == "compiled")
