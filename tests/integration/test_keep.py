"""A student's own weights: kept as a whole, found again, and never lost."""

import os
import shutil

import numpy as np
import pytest

from oasis_helpers import load_pretrained, load_slices, pretrained
from oasis_helpers.pixelcnn import GatedPixelCNN
from oasis_helpers.training import file_lock
from oasis_helpers.vqvae import VQVAE

CURVES = {"loss": np.float32([2, 1]), "val_loss": [3, 2.5]}
NONE = "mine holds no weights of yours; run notebook 03 first."


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "MY_WEIGHTS", tmp_path / "my_weights")
    monkeypatch.setattr(
        pretrained.metrics, "reconstruction_table", table
    )  # of noise: saves seconds
    return tmp_path / "my_weights" / "mine"


def table(vqvae, slices):
    return {"slices": len(slices), "bits_per_slice": round(vqvae.bits_per_slice, 1)}


@pytest.fixture
def test_slices(slice_root):
    return load_slices(slice_root, "test", 16)


def other(model):
    """The same network with other weights."""
    again = type(model).from_config(model.get_config())
    again.set_weights([value * 1.01 for value in model.get_weights()])
    return again


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_both_stages_are_found_again(mine, vqvae, prior, test_slices, capsys):
    pretrained.keep("vqvae", vqvae, CURVES, test_slices)
    said = 'Kept in my_weights/mine. Later notebooks use it with WEIGHTS = "mine".\n'
    assert capsys.readouterr().out == said
    assert load_pretrained("mine").prior is None
    pretrained.keep("prior", prior, CURVES, test_slices)
    assert capsys.readouterr().out == said
    assert {path.name for path in mine.parent.iterdir()} == {"mine", "in-use.lock"}
    models = load_pretrained("mine")
    for model, kept in ((vqvae, models.vqvae), (prior, models.prior)):
        for one, same in zip(model.get_weights(), kept.get_weights(), strict=True):
            np.testing.assert_array_equal(one, same)
    curves = {"loss": [2.0, 1.0], "val_loss": [3.0, 2.5]}
    frame = {"size": 16, "crop": None, "side": 64}
    recipe = {"data": "cohort", **frame}
    assert models.history == {"recipe": recipe, "vqvae": curves, "prior": curves}
    assert models.scores["frame"] == frame and models.scores["recipe"] == recipe
    assert models.scores["test"]["slices"] == 3
    mean, *_ = models.scores["prior_test"]["bits_per_code"]  # one subject has no interval
    assert 0 < mean < np.log2(12) + 0.5  # untrained
    assert models.scored_on(test_slices)


def test_nothing_that_a_student_made_is_lost(mine, vqvae, prior, test_slices, capsys):
    pretrained.keep("vqvae", vqvae, CURVES, test_slices)
    (mine / "notes.txt").write_text("mine")
    pretrained.keep("prior", prior, CURVES, test_slices)
    before = contents(mine)
    assert before["notes.txt"] == b"mine"
    capsys.readouterr()
    for model, stage in ((vqvae, "vqvae"), (prior, "prior")):
        pretrained.keep(stage, model, {"loss": [9]}, test_slices)
        assert capsys.readouterr().out == "my_weights/mine holds these weights already.\n"
    assert contents(mine) == before
    better = other(prior)
    pretrained.keep("prior", better, CURVES, test_slices)
    assert "; the weights that were there are now mine-1." in capsys.readouterr().out
    assert contents(mine.with_name("mine-1")) == before
    second = contents(mine)
    assert second["vqvae.keras"] == before["vqvae.keras"]
    assert second["prior.keras"] != before["prior.keras"]
    pretrained.keep("vqvae", other(vqvae), CURVES, test_slices)
    assert "; the weights that were there are now mine-2." in capsys.readouterr().out
    assert contents(mine.with_name("mine-2")) == second
    assert load_pretrained("mine").prior is None
    earlier = load_pretrained("mine-2").prior
    np.testing.assert_array_equal(earlier.get_weights()[0], better.get_weights()[0])


@pytest.mark.parametrize("name", ["vqvae.keras", "scores.json", "history.json"])
def test_damaged_weights_are_refused_and_renamed(mine, vqvae, prior, test_slices, refused, name):
    pretrained.keep("vqvae", vqvae, CURVES, test_slices)
    (mine / name).write_bytes(b"{")
    refused(lambda: load_pretrained("mine"), str(mine / name))
    refused(lambda: pretrained.keep("prior", prior, CURVES, test_slices), str(mine / name))
    pretrained.keep("vqvae", vqvae, CURVES, test_slices)
    assert (mine.with_name("mine-1") / name).read_bytes() == b"{"
    assert load_pretrained("mine").vqvae.code_shape == (4, 4)


def test_scores_of_other_weights_name_a_way_out(mine, vqvae, test_slices, refused):
    pretrained.keep("vqvae", vqvae, CURVES, test_slices)
    pretrained.save_model(other(vqvae), mine / "vqvae.keras")
    refused(lambda: load_pretrained("mine"), "other weights", "move that folder and train again.")


def test_bad_arguments_are_one_sentence(mine, vqvae, prior, test_slices, slice_root, refused):
    words = 'keep got \'{}\' and a {}; expected "vqvae" and a VQVAE, or "prior" and a Prior, of '
    train = load_slices(slice_root, "train", 16)
    for stage, model in (("decoder", vqvae), ("vqvae", prior), ("prior", vqvae)):
        sentence = words.format(stage, type(model).__name__)
        refused(lambda: pretrained.keep(stage, model, CURVES, test_slices), sentence)  # noqa: B023
    sentence = "keep got slices of train; expected the test slices."
    refused(lambda: pretrained.keep("vqvae", vqvae, CURVES, train), sentence)
    refused(lambda: load_pretrained("mine"), NONE, error=FileNotFoundError)
    refused(lambda: load_pretrained("mine-3"), "mine-3 holds no", error=FileNotFoundError)
    keep_prior = lambda: pretrained.keep("prior", prior, CURVES, test_slices)  # noqa: E731
    refused(keep_prior, NONE, error=FileNotFoundError)


def test_a_prior_of_other_codes_is_refused(mine, vqvae, prior, test_slices, refused):
    pretrained.keep("vqvae", vqvae, CURVES, test_slices)
    of_others = type(prior).from_config(prior.get_config())
    rarest = np.bincount(vqvae.encode(test_slices.images).ravel(), minlength=12).argmin()
    of_others.logits.bias.assign(50 * (np.arange(12) == rarest))  # sure of a code that is rare here
    words = "This prior needs ", f"on the codes of {mine}, more than a guess: train it on them, wi"
    refused(lambda: pretrained.keep("prior", of_others, CURVES, test_slices), *words)
    of_another_grid = GatedPixelCNN(12, (5, 4), filters=4, blocks=1, num_heads=1)
    words = "log_prob got code maps of shape (3, 4, 4); this prior was trained on (N, 5, 4)."
    refused(lambda: pretrained.keep("prior", of_another_grid, CURVES, test_slices), words)
    assert load_pretrained("mine").prior is None


@pytest.mark.parametrize("existing", [False, True])
def test_a_folder_that_cannot_be_written(
    mine, vqvae, test_slices, monkeypatch, open_folder, as_another_user, existing
):
    monkeypatch.setattr(pretrained, "MY_WEIGHTS", open_folder / "my_weights")
    if existing:
        pretrained.keep("vqvae", vqvae, CURVES, test_slices)
    before = sorted(open_folder.rglob("*"))
    words = "my_weights.* cannot be written .*, so your weights are not kept; allow writing there"
    with as_another_user(), pytest.raises(PermissionError, match=words):
        open_folder.chmod(0o555) if os.geteuid() == os.getuid() else None
        pretrained.keep("vqvae", other(vqvae), CURVES, test_slices)
    assert sorted(open_folder.rglob("*")) == before


def test_an_error_while_writing_leaves_the_earlier_weights(
    mine, vqvae, test_slices, monkeypatch, full_disk
):
    pretrained.keep("vqvae", vqvae, CURVES, test_slices)
    before = contents(mine)
    with full_disk(), pytest.raises(OSError, match=r"."):
        pretrained.keep("vqvae", other(vqvae), CURVES, test_slices)
    assert contents(mine) == before and isinstance(load_pretrained("mine").vqvae, VQVAE)
    pretrained.keep("vqvae", other(vqvae), CURVES, test_slices)
    assert contents(mine.with_name("mine-1")) == before


def test_two_processes_do_not_keep_at_once(mine, vqvae, test_slices, refused):
    with file_lock(mine.parent, "keeping weights"):
        words = "Another process is keeping weights in"
        keep = lambda: pretrained.keep("vqvae", vqvae, CURVES, test_slices)  # noqa: E731
        refused(keep, words, error=BlockingIOError)
    shutil.rmtree(mine, ignore_errors=True)
