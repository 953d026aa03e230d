"""What training refuses: checkpoints and folders that belong to another training."""

import dataclasses

import numpy as np
import pytest

from oasis_helpers import load_slices, training
from oasis_helpers.recipes import Recipe


def test_checkpoint_of_another_model(prior, tmp_path, refused):
    model = type(prior).from_config(prior.get_config())
    model.compile("adam")
    np.savez(tmp_path / "latest.npz", facts='{"epoch": 1}', **{"state 0": np.zeros(3)})
    words = "latest.npz holds the state of another model; remove", "to train again."
    refused(lambda: training.Checkpoint(tmp_path).restore(model), *words)


def test_folder_of_another_training(slice_root, prior, tmp_path, refused):
    train, validate = (load_slices(slice_root, split, 16) for split in ("train", "validate"))
    work, recipe = tmp_path / "work", Recipe("oasis1", 16)
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
