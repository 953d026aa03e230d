"""A training that is stopped, or finds its checkpoint damaged, ends as if nothing had happened."""

import os
import random
import re

import keras
import numpy as np
import pytest

from oasis_helpers import training

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


@pytest.mark.parametrize("moment", ["writing", "before the renaming"])
def test_stopped_while_a_checkpoint_is_written(tmp_path, undisturbed, monkeypatch, moment):
    def killed(*_, **__):
        raise Stop

    class StoppingCheckpoint(training.Checkpoint):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2 and moment == "writing":
                monkeypatch.setattr(np, "savez", killed)
            elif epoch == 2:
                monkeypatch.setattr(os, "replace", killed)
            super().on_epoch_begin(epoch, logs)

    with pytest.raises(Stop):
        fit_small(StoppingCheckpoint(tmp_path))
    monkeypatch.undo()
    (tmp_path / ".1234-5-latest.npz").write_bytes(b"half of a state")  # a kill leaves that
    assert_same(fit_small(training.Checkpoint(tmp_path)), undisturbed)
    assert [path.name for path in tmp_path.iterdir()] == ["latest.npz"]


def test_a_damaged_checkpoint_is_refused(tmp_path, undisturbed):
    fit_small(training.Checkpoint(tmp_path))
    latest = tmp_path / "latest.npz"
    whole = latest.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", whole[:2000] + bytes(200) + whole[2200:]):
        latest.write_bytes(damage)
        with pytest.raises(ValueError, match=r"latest\.npz cannot be read .* to train again"):
            fit_small(training.Checkpoint(tmp_path))
    latest.unlink()
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


def test_a_checkpoint_with_any_damage_is_resumed_from_or_refused(tmp_path):
    def model():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        model.compile("sgd")
        return model

    def state(model):
        return [np.array(value) for value in model.variables]

    written, checkpoint = model(), training.Checkpoint(tmp_path, "loss")
    checkpoint.set_model(written)
    checkpoint.best = written.get_weights()
    written.optimizer.build(written.trainable_variables)
    checkpoint.on_epoch_begin(1)
    whole = (tmp_path / "latest.npz").read_bytes()
    chance, refused, resumed = random.Random(0), 0, model()
    for number in range(600):
        (tmp_path / "latest.npz").write_bytes(mutated(whole, chance))
        try:
            assert training.Checkpoint(tmp_path).restore(resumed) == 1
        except ValueError as error:
            assert "to train again" in str(error)
            refused += 1
            continue
        for one, other in zip(state(resumed), state(written), strict=True):
            np.testing.assert_array_equal(one, other, f"mutation {number}")
    assert refused > 300


def test_an_interruption_says_how_to_resume(tmp_path, undisturbed):
    with pytest.raises(KeyboardInterrupt, match=r"holds the state before the unfinished epoch"):
        fit_small(training.Checkpoint(tmp_path), [Stopping(2, KeyboardInterrupt)])
    assert_same(fit_small(training.Checkpoint(tmp_path)), undisturbed)


def test_every_epoch_has_an_order_of_its_own(monkeypatch):
    shuffled, shuffle = [], training.Batches.shuffle
    monkeypatch.setattr(
        training.Batches,
        "shuffle",
        lambda batches, epoch: shuffled.append(epoch) or shuffle(batches, epoch),
    )
    fit_small()
    assert shuffled == [0, *range(EPOCHS)]
