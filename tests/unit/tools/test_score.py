"""Scoring and training need a recipe, and its own data set."""

import sys

import numpy as np
import pytest

from oasis_helpers.data import read_json, write_json
from oasis_helpers.recipes import RECIPES, Recipe
from tests.examples import heads
from tools import score, train


@pytest.fixture
def recipe(weights, slice_root, tmp_path, monkeypatch):
    """A recipe named "tiny" for the slices and untrained weights in a temporary folder."""
    monkeypatch.setitem(RECIPES, "tiny", Recipe("oasis1", 16))
    monkeypatch.setenv("OASIS_DATA_DIR", str(slice_root))
    monkeypatch.setattr(train, "CHECKPOINTS", tmp_path / "work")
    for module in (score, train):
        monkeypatch.setattr(module, "WEIGHTS", weights)
    return RECIPES["tiny"]


def test_unknown_recipe(refused):
    words = "There is no recipe 'oasis9'; available: cohort, cohort-faithful, oasis1,"
    refused(lambda: train.train_weights("oasis9"), words)
    refused(lambda: score.score_weights("oasis9"), words)


@pytest.mark.parametrize("command", [score.score_weights, train.train_weights])
def test_unknown_name_on_the_command_line(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", "oasis9"])
    with pytest.raises(SystemExit) as ended:
        score.main("command", "its text", command)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "argument name: invalid choice: 'oasis9'" in message and "cohort" in message


def test_recipes_need_their_own_data(recipe, monkeypatch, refused):
    words = "The weights 'cohort' need other data: unset OASIS_DATA_DIR for the cohort slices."
    refused(lambda: train.train_weights("cohort"), words)
    monkeypatch.delenv("OASIS_DATA_DIR")
    words = "The weights 'tiny' need other data: set OASIS_DATA_DIR to the oasis1 slices."
    refused(lambda: train.train_weights("tiny"), words)
    refused(lambda: score.score_weights("tiny"), words)


def test_damaged_weights_are_not_scored(recipe, weights, refused):
    (weights / "tiny" / "vqvae.keras").write_bytes(b"PK")
    refused(lambda: score.score_weights("tiny"), "vqvae.keras cannot be used (", "restore it")


def test_fine_tuning_needs_the_weights_that_it_starts_from(recipe, weights, monkeypatch, refused):
    monkeypatch.setitem(RECIPES, "base", Recipe("oasis1", 16))
    monkeypatch.setitem(RECIPES, "base", Recipe("oasis1", 16))
    monkeypatch.setitem(RECIPES, "base", Recipe("oasis1", 16))
    monkeypatch.setitem(RECIPES, "fine", Recipe("oasis1", 16, fine_tunes="base"))
    words = "There are no weights named 'base'", "`make train NAME=base` trains them."
    refused(lambda: train.train_weights("fine"), *words, error=FileNotFoundError)


def test_fine_tuning_keeps_the_frame_of_the_weights_that_it_starts_from(
    recipe, weights, monkeypatch
):
    monkeypatch.setitem(RECIPES, "fine", Recipe("oasis1", 16, "brain", fine_tunes="tiny"))
    file = weights / "tiny" / "scores.json"
    write_json(file, read_json(file) | {"frame": {"size": 16, "crop": [8, 8, 48], "side": 64}})
    assert {(part.crop, part.side) for part in score.splits_for("fine").values()} == {
        ((8, 8, 48), 64)
    }
    monkeypatch.setitem(RECIPES, "tiny", Recipe("oasis1", 16, "brain"))
    assert score.splits_for("tiny")["test"].crop == (16, 16, 32), "the box of these brains"


@pytest.mark.filterwarnings("ignore:.*the resized slices cannot be stored")
def test_training_on_a_full_disk_stops_before_it_starts(recipe, full_disk, tmp_path):
    with full_disk(), pytest.raises(OSError, match="File too large") as caught:
        train.train_weights("tiny")
    assert caught.value.filename == str(tmp_path / "work" / "tiny" / "run_signature.json")
    assert not (tmp_path / "work" / "tiny" / "run_signature.json").exists()


def test_training_in_a_folder_that_may_not_be_written(
    recipe, open_folder, as_another_user, monkeypatch
):
    monkeypatch.setattr(train, "CHECKPOINTS", open_folder)
    monkeypatch.setattr(train, "splits_for", lambda name: {})
    open_folder.chmod(0o555)
    with as_another_user(), pytest.raises(PermissionError) as caught:
        train.train_weights("tiny")
    assert caught.value.filename == str(open_folder / "tiny")


def test_samples_against_real_slices():
    """The classifier reads the slice index of ellipses, and notices when it is a wrong one."""
    train, unseen, samples = heads(8), heads(3, seed=1), heads(2, seed=2)
    right = score.samples_table(samples.images, samples.slices, train, unseen)
    assert right["slices"] == {"samples": 64, "unseen": 96}
    assert min(right["slice_index_accuracy"].values()) > 0.9
    np.testing.assert_allclose(right["high_frequency_power"], 1, atol=0.3)
    wrong = score.samples_table(samples.images, 31 - samples.slices, train, unseen)
    assert wrong["slice_index_accuracy"]["samples"] < 0.3
    dark = score.samples_table(samples.images * 0.5, samples.slices, train, unseen)
    assert max(dark["high_frequency_power"]) < 0.5
