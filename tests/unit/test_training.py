"""`fit` resumes exactly; the order of batches is fixed; one process at a time uses a folder."""

import dataclasses
import os
import random
import re
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

from oasis_helpers import load_slices, recipes, training
from oasis_helpers.data import SliceSet, with_mirrored
from tests.examples import heads

EPOCHS = 4


class Stop(Exception):
    """In place of a kill."""


class Stopping(keras.callbacks.Callback):
    """Raises in the middle of an epoch."""

    def __init__(self, epoch: int, error: type[BaseException] = Stop):
        super().__init__()
        self.last, self.error = epoch, error

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == self.last and batch == 1:
            raise self.error


def fit_small(checkpoint=None, callbacks=()) -> tuple[list[np.ndarray], dict]:
    """A model with dropout, weight decay and weight averaging, trained in a fraction of a second.

    Returns:
        The weights of its best epoch with a checkpoint, else the last ones; the curves.
    """
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 4)), rng.normal(size=(40, 1))
    number = keras.Input((4,))
    hidden = keras.layers.Dropout(0.5)(keras.layers.Dense(8, activation="relu")(number))
    model = keras.Model(number, keras.layers.Dense(1)(hidden))
    optimizer = keras.optimizers.AdamW(0.01, use_ema=True, ema_momentum=0.9)
    model.compile(optimizer, "mse", run_eagerly=True)  # tracing takes longer than eight steps
    averaging = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    batches, callbacks = training.Batches.of(x, y, 16), [averaging, *callbacks]
    curves = training.fit(model, batches, 2 * EPOCHS, (x, y), callbacks, checkpoint)
    if checkpoint:
        checkpoint.take_best()
    return model.get_weights(), curves


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return fit_small(training.Checkpoint(tmp_path_factory.mktemp("whole")))


def assert_same(found, expected):
    assert found[1] == expected[1]
    for one, other in zip(found[0], expected[0], strict=True):
        np.testing.assert_array_equal(one, other)


# ---------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_changes_nothing(undisturbed):
    weights, curves = fit_small()
    assert [float(f"{x:.5g}") for x in curves["val_loss"]] == undisturbed[1]["val_loss"]
    assert np.argmin(curves["val_loss"]) == EPOCHS - 1, "the best epoch is not the last one"
    for one, other in zip(weights, undisturbed[0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_stopped_in_every_epoch(tmp_path, undisturbed):
    for epoch in range(EPOCHS):
        with pytest.raises(Stop):
            fit_small(training.Checkpoint(tmp_path), [Stopping(epoch)])
    assert_same(fit_small(training.Checkpoint(tmp_path)), undisturbed)


@pytest.mark.parametrize("moment", ["writing", "before the first renaming", "between the two"])
def test_stopped_while_a_checkpoint_is_written(tmp_path, undisturbed, monkeypatch, moment):
    def killed(*_, **__):
        raise Stop

    class StoppingCheckpoint(training.Checkpoint):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2 and moment == "writing":
                monkeypatch.setattr(np, "savez", killed)
            elif epoch == 2:
                renamings = [killed] if "first" in moment else [os.replace, killed]
                monkeypatch.setattr(os, "replace", lambda *names: renamings.pop(0)(*names))
            super().on_epoch_begin(epoch, logs)

    with pytest.raises(Stop):
        fit_small(StoppingCheckpoint(tmp_path))
    monkeypatch.undo()
    (tmp_path / ".1234-5-latest.npz").write_bytes(b"half of a state")  # a kill leaves that
    assert (tmp_path / "latest.npz").is_file() == (moment != "between the two")
    with warnings.catch_warnings(action="error"):
        assert_same(fit_small(training.Checkpoint(tmp_path)), undisturbed)
    assert {path.name for path in tmp_path.iterdir()} == {"latest.npz", "earlier.npz"}


def test_a_damaged_checkpoint_is_noticed_and_the_earlier_one_used(tmp_path, undisturbed):
    fit_small(training.Checkpoint(tmp_path))
    latest, earlier = tmp_path / "latest.npz", tmp_path / "earlier.npz"
    whole = latest.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", whole[:2000] + bytes(200) + whole[2200:]):
        latest.write_bytes(damage)
        checkpoint = training.Checkpoint(tmp_path)
        with pytest.warns(UserWarning, match=r"latest\.npz is damaged; resuming from an earlier"):
            assert_same(fit_small(checkpoint), undisturbed)
    latest.write_bytes(b"")
    earlier.write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged"):
        assert_same(fit_small(training.Checkpoint(tmp_path)), undisturbed)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A file with bytes changed, cut out, repeated, inserted, or cut off."""
    headers = [match.start() for match in re.finditer(b"PK", content)]
    at, length = chance.choice(headers) + chance.randrange(50), chance.choice((1, 1, 1, 4, 40))
    at = min(at, len(content) - 1) if chance.random() < 0.7 else chance.randrange(len(content))
    before, here, after = content[:at], content[at : at + length], content[at + length :]
    return chance.choice(
        (
            before + chance.randbytes(len(here)) + after,
            before + bytes([here[0] ^ 1 << chance.randrange(8)]) + here[1:] + after,
            before + after,
            before + here + here + after,
            before + chance.randbytes(length) + here + after,
            before,
        )
    )


def test_a_checkpoint_with_any_damage_is_resumed_from_or_passed_over(tmp_path):
    def model():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        model.compile("sgd")
        return model

    def state(model):
        return [np.array(value) for value in model.variables]

    written, checkpoint = model(), training.Checkpoint(tmp_path, "loss")
    checkpoint.set_model(written)
    checkpoint.best, states = written.get_weights(), {}
    for epoch in (1, 2):
        written.set_weights([np.full(value.shape, epoch) for value in written.get_weights()])
        written.optimizer.build(written.trainable_variables)
        checkpoint.on_epoch_begin(epoch)
        states[epoch] = state(written)
    whole = (tmp_path / "latest.npz").read_bytes()
    chance, found, resumed = random.Random(0), {1: 0, 2: 0}, model()
    for number in range(600):
        (tmp_path / "latest.npz").write_bytes(mutated(whole, chance))
        with warnings.catch_warnings(action="ignore"):
            epoch = training.Checkpoint(tmp_path).restore(resumed)
        found[epoch] += 1
        for one, other in zip(state(resumed), states[epoch], strict=True):
            np.testing.assert_array_equal(one, other, f"mutation {number}")
    assert found[1] > 300, found


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path, undisturbed):
    (tmp_path / "latest.npz").mkdir()
    with pytest.warns(UserWarning, match=r"latest\.npz cannot be read \(Is a directory\)"):
        training.Checkpoint(tmp_path).restore(small_model())


def test_a_number_after_nan_is_the_best(tmp_path):
    checkpoint = training.Checkpoint(tmp_path, "val_loss")
    checkpoint.set_model(small_model())
    nan = float("nan")
    for epoch, loss in enumerate((nan, 2.0, float("-inf"), 1.0, nan, 3.0)):
        checkpoint.model.set_weights([np.full((1, 1), epoch), np.zeros(1)])
        checkpoint.on_epoch_end(epoch, {"val_loss": loss})
    checkpoint.take_best()
    assert checkpoint.model.get_weights()[0] == 3


def small_model():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd")
    return model


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
    with pytest.raises(ValueError, match=r"loss was never a number .* lower learning rate"):
        never.take_best()


def test_an_interruption_says_how_to_resume(tmp_path, undisturbed):
    with pytest.raises(KeyboardInterrupt, match=r"holds the state before the unfinished epoch"):
        fit_small(training.Checkpoint(tmp_path), [Stopping(2, KeyboardInterrupt)])
    assert_same(fit_small(training.Checkpoint(tmp_path)), undisturbed)


# -------------------------------------------------------------------------------------- batches


def test_batch_order_depends_only_on_the_seed_and_the_epoch():
    def order(seed, epoch):
        batches = training.Batches.of((np.arange(10), -np.arange(10)), np.arange(10), 4, seed)
        batches.shuffle(epoch)
        for (first, second), target in (batches[number] for number in range(len(batches))):
            np.testing.assert_array_equal(first, target)
            np.testing.assert_array_equal(second, -target)
        return np.concatenate([batches[number][1] for number in range(2)]).tolist()

    assert order(0, 5) == order(0, 5) and len(set(order(0, 5))) == 8
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_every_epoch_has_an_order_of_its_own(monkeypatch):
    shuffled, shuffle = [], training.Batches.shuffle
    monkeypatch.setattr(
        training.Batches,
        "shuffle",
        lambda batches, epoch: shuffled.append(epoch) or shuffle(batches, epoch),
    )
    fit_small()
    assert shuffled == [0, *range(EPOCHS)]


def test_final_epochs_may_use_the_first_examples_only():
    batches = training.Batches.of(np.arange(12), np.arange(12), 4, unaugmented=(2, 6))
    seen = []
    for epoch in range(4):
        batches.shuffle(epoch)
        seen.append(np.concatenate([batches[number][0] for number in range(len(batches))]))
    assert sorted(seen[1]) == list(range(12))
    assert sorted(seen[2]) == sorted(seen[3]) == sorted([*range(6), *range(6)])
    assert (seen[2] != seen[3]).any()
    with pytest.raises(ValueError, match="unaugmented names the first 13 of 12"):
        training.Batches.of(np.arange(12), np.arange(12), 4, unaugmented=(2, 13))


@pytest.mark.parametrize(("steps", "unaugmented"), [(36, 4), (6, 1), (1, 1), (12, 1)])
def test_a_prior_ends_with_unshifted_slices(monkeypatch, steps, unaugmented):
    """But where there is one epoch only, it shows all that was encoded."""
    monkeypatch.setattr(training, "fit", lambda model, batches, *rest: batches)
    images = np.random.default_rng(0).random((32, 16, 16, 1), "float32")
    indices = np.arange(32, dtype="int32")
    train = SliceSet(images, indices // 8, indices, "train", Path("noise"))
    recipe = recipes.Recipe(
        "cohort",
        16,
        vqvae={"num_embeddings": 16, "widths": (4, 4), "blocks": 1},
        prior={"filters": 8, "blocks": 1, "num_heads": 1},
        prior_schedule=recipes.Schedule(steps, 16, 4e-3),  # six steps an epoch
        views=3,
    )
    vqvae = recipes.improved_vqvae(1.0, recipe.size, **recipe.vqvae)
    validate = dataclasses.replace(train, split="validate")
    _, batches = training.train_prior(recipe, vqvae, train, validate)
    assert len(batches) == 6 and batches.unaugmented == (unaugmented, 2 * len(train))
    (codes, slices), _ = batches.read(np.arange(2 * len(train)))
    np.testing.assert_array_equal(codes, vqvae.encode(with_mirrored(train.images)))
    np.testing.assert_array_equal(slices, np.tile(train.slices, 2))


def test_a_neighbour_moves_with_its_slice(monkeypatch):
    """In every view, a neighbour is shifted and mirrored as its slice; bins are a head's."""
    monkeypatch.setattr(training, "fit", lambda model, batches, steps, validation, *_: batches)
    train = heads(4, size=32)
    stripes = np.float32(np.arange(32) % 5 == 1) / 2  # so that shifts and mirroring show
    train = dataclasses.replace(train, images=np.clip(train.images + stripes[:, None], 0, 1))
    recipe = recipes.Recipe(
        "cohort",
        32,
        vqvae={"num_embeddings": 16, "widths": (4, 4), "blocks": 1},
        prior={"filters": 4, "blocks": 1, "num_heads": 1, "below_dropout": 0.1, "head_bins": 2},
        prior_schedule=recipes.Schedule(1, 16, 4e-3),
        views=4,
    )
    vqvae = recipes.improved_vqvae(1.0, recipe.size, **recipe.vqvae)
    same = dataclasses.replace(train, images=np.repeat(train.images[::32], 32, 0))  # no anatomy
    prior, batches = training.train_prior(recipe, vqvae, same, same)
    (codes, slices, below, conditions), _ = batches.read(np.arange(4 * len(train)))
    assert (below[slices == 0] == -1).all()
    equal = [training.shifted_and_mirrored(same.images, seed) for seed in (2, 3)]
    moved = np.concatenate([with_mirrored(same.images), *equal])
    np.testing.assert_array_equal(codes, vqvae.encode(moved))
    np.testing.assert_array_equal(below[slices > 0], codes[slices > 0])
    assert prior.head_counts.numpy().sum() == len(codes)
    per_head = conditions.reshape(4, 4, 32, 2)  # views, heads, slices
    assert (per_head == per_head[:1, :, :1]).all() and set(per_head.ravel()) == {0, 1}


@pytest.mark.parametrize(("count", "size"), [(3, 4), (0, 4), (3, 0), (3, -1)])
def test_epochs_need_a_batch_that_can_be_filled(refused, count, size):
    words = f"A batch of {size} out of {count} for 1 worker(s): choose a multiple of 1 up to"
    refused(lambda: training.epochs_for(10, count, size), words)


# ------------------------------------------------------------------------------------ the folder


def test_one_process_at_a_time_uses_a_folder(tmp_path):
    with training.file_lock(tmp_path, "training"):
        with pytest.raises(BlockingIOError, match=r"Another process is training in .*; wait until"):
            with training.file_lock(tmp_path, "training"):
                pass
    with training.file_lock(tmp_path, "training"):
        pass


def test_checkpoint_of_another_model(prior, tmp_path, refused):
    model = type(prior).from_config(prior.get_config())
    model.compile("adam")
    np.savez(tmp_path / "latest.npz", facts='{"epoch": 1}', **{"state 0": np.zeros(3)})
    words = "latest.npz holds the state of another model; remove", "to train again."
    refused(lambda: training.Checkpoint(tmp_path).restore(model), *words)


def test_folder_of_another_training(slice_root, prior, tmp_path, refused):
    train, validate = (load_slices(slice_root, split, 16) for split in ("train", "validate"))
    work, recipe = tmp_path / "work", recipes.Recipe("oasis1", 16)
    for _ in range(2):  # the second call finds its own signature
        assert training.verify_run_signature(work, recipe, train, validate) == work
    words = "work holds a training with another recipe or other slices; remove that folder to"
    for other in (
        (dataclasses.replace(recipe, seed=1), train, validate),
        (recipe, train.of_subject(2), validate),
        (recipe, train, train),
        (recipe, train, validate, prior),
    ):
        refused(lambda other=other: training.verify_run_signature(work, *other), words)
    (work / "run_signature.json").write_text("{")
    words = "run_signature.json: cannot be read (", "remove it and make it again."
    refused(lambda: training.verify_run_signature(work, recipe, train, validate), *words)


def test_no_best_epoch_without_a_number(tmp_path):
    with pytest.raises(ValueError, match=r"val_loss was never a number in .*lower learning rate"):
        training.Checkpoint(tmp_path).take_best()
