"""The best epoch is found, the order of batches is fixed, one process at a time uses a folder."""

import dataclasses

import keras
import numpy as np
import pytest

from oasis_helpers import load_slices, recipes, training
from oasis_helpers.pixelcnn import MaskedPixelCNN

# ---------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_that_cannot_be_read_is_refused(tmp_path, refused):
    (tmp_path / "latest.npz").mkdir()
    words = "latest.npz cannot be read", "Is a directory", "remove", "to train again"
    refused(lambda: training.Checkpoint(tmp_path).restore(small_model()), *words)


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


def test_final_epochs_may_use_the_first_examples_only():
    batches = training.Batches.of(np.arange(12), np.arange(12), 4, unaugmented=(2, 6))
    seen = []
    for epoch in range(4):
        batches.shuffle(epoch)
        seen.append(np.concatenate([batches[number][0] for number in range(len(batches))]))
    assert sorted(seen[1]) == list(range(12))
    assert sorted(seen[2]) == sorted(seen[3]) == sorted([*range(6), *range(6)])
    assert (seen[2] != seen[3]).any()


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


# ---------------------------------------------------------------------------------------- prior


def test_the_prior_of_the_reference_is_trained_like_ours():
    codes, index = np.zeros((8, 3, 3), "int32"), np.zeros(8, "int32")
    schedule = recipes.Schedule(2, 4, 1e-3)
    recipe = recipes.Recipe("cohort", prior={"reference": True}, prior_schedule=schedule)
    validation = (codes, index), codes
    prior, history = training.fit_prior(recipe, 5, (codes, index, len(codes)), validation)
    assert isinstance(prior, MaskedPixelCNN) and np.isfinite(history["val_loss"]).all()
