"""The active data set, the profile, and weights that can be used or are refused."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from oasis_helpers import load_pretrained, load_slices, pretrained
from oasis_helpers.convert import synthetic
from oasis_helpers.data import fingerprint, read_json, write_json
from oasis_helpers.pixelcnn import MaskedPixelCNN

# ------------------------------------------------------------------------ data set and profile


def test_profile(monkeypatch, refused):
    monkeypatch.delenv("OASIS_PROFILE", raising=False)
    assert pretrained.profile() == "tour"
    monkeypatch.setenv("OASIS_PROFILE", "full")
    assert pretrained.profile() == "full"
    monkeypatch.setenv("OASIS_PROFILE", "quick")
    refused(pretrained.profile, 'OASIS_PROFILE is \'quick\'; expected "tour" or "full".')


def test_active_data_set(monkeypatch, slice_root):
    monkeypatch.setenv("OASIS_DATA_DIR", str(slice_root))
    assert pretrained.data_name() == "oasis1" and pretrained.data_root() == slice_root
    monkeypatch.setenv("HOME", str(slice_root.parent))
    monkeypatch.setenv("OASIS_DATA_DIR", "~/slices")
    assert pretrained.data_root() == slice_root
    monkeypatch.delenv("OASIS_DATA_DIR")
    monkeypatch.setattr(pretrained, "make_cohort", lambda root: root)
    assert pretrained.data_name() == "cohort" and pretrained.data_root() == pretrained.COHORT


def test_a_copy_of_the_cohort_is_the_cohort(slice_root, monkeypatch):
    record = synthetic._record((96, 12, 12), 0)
    for root in (slice_root, slice_root / "keras_png_slices_data"):
        monkeypatch.setenv("OASIS_DATA_DIR", str(root))
        (slice_root / "cohort.json").write_text(json.dumps(record))
        assert pretrained.data_name() == "cohort"
        for other in ({**record, "seed": 1}, {**record, "made_by": "me"}, [], None):
            (slice_root / "cohort.json").write_text(json.dumps(other))
            assert pretrained.data_name() == "oasis1"


def test_active_data_set_that_is_no_folder(monkeypatch, tmp_path, refused):
    (tmp_path / "loop").symlink_to("loop")
    for place in ("/nowhere", tmp_path / "loop"):
        monkeypatch.setenv("OASIS_DATA_DIR", str(place))
        words = f"OASIS_DATA_DIR is '{place}', but {place} is no folder; set it to the folder that"
        refused(pretrained.data_root, words, error=FileNotFoundError)


# ------------------------------------------------------------------------------------- weights


def test_weights_come_with_scores_history_and_their_frame(weights, slice_root):
    models = load_pretrained("oasis1")
    assert models.prior.grid == models.vqvae.code_shape == (4, 4)
    assert models.history == {"recipe": {"data": "oasis1"}} and models.scores["data"] == "oasis1"
    assert models.load_slices(slice_root, "train").images.shape == (6, 16, 16, 1)


def test_other_test_slices_than_the_scored_ones_are_a_warning(weights, slice_root, recwarn):
    with pytest.warns(UserWarning, match="not the test slices that the shipped weights were sco"):
        test = load_pretrained("oasis1").load_slices(slice_root, "test")
    change_scores(weights / "oasis1", {"test_fingerprint": fingerprint(test)})
    recwarn.clear()
    models = load_pretrained("oasis1")
    assert models.scored_on(models.load_slices(slice_root, "test"))
    assert not [one for one in recwarn if "scored on" in str(one.message)]


@pytest.mark.parametrize("crop", [None, (16, 16, 32)])
def test_slices_of_another_frame_are_scaled_with_a_warning(weights, slice_root, crop):
    change_scores(weights / "oasis1", {"frame": {"size": 16, "crop": crop, "side": 64}})
    models = load_pretrained("oasis1")
    before = models.load_slices(slice_root, "validate")
    assert (before.crop, before.side) == (crop, 64)
    for path in slice_root.rglob("*.png"):
        Image.open(path).resize((240, 240), Image.Resampling.BICUBIC).save(path)
    words = r"_validate: 240 x 240 pixels; the weights' frame is of 64 x 64, so it is scaled"
    with pytest.warns(UserWarning, match=words):
        scaled = models.load_slices(slice_root, "validate")
    assert np.abs(scaled.images - before.images).max() < 0.1


def test_fewer_subjects_than_the_notebooks_need_are_a_warning(weights, slice_root):
    words = (
        r"slices: fewer than the 12 / 3 / 3 subjects \(train / validate / test\) with 32 slices "
    )
    for split in ("train", "validate", "test"):
        with pytest.warns(UserWarning, match=words):
            load_pretrained("oasis1").load_slices(slice_root, split)


def test_weights_without_a_prior(weights):
    folder = weights / "oasis1"
    (folder / "prior.keras").unlink()
    change_scores(folder, {"weights": pretrained.stages_digest(folder)})
    assert load_pretrained("oasis1").prior is None


def test_no_weights_of_that_name(weights, refused):
    words = "There are no weights named 'oasis9' in", "available: cohort, oasis1, tiny."
    refused(lambda: load_pretrained("oasis9"), *words, error=FileNotFoundError)


def test_a_saved_model_is_smaller_than_with_its_optimizer_and_computes_the_same(vqvae, tmp_path):
    images = np.random.default_rng(0).random((3, 16, 16, 1)).astype("float32")
    compiled = type(vqvae).from_config(vqvae.get_config())
    compiled.set_weights(vqvae.get_weights())
    compiled.compile("adam")
    compiled.optimizer.build(compiled.trainable_variables)
    compiled.save(tmp_path / "whole.keras")
    pretrained.save_model(compiled, tmp_path / "model.keras")
    sizes = [(tmp_path / f"{name}.keras").stat().st_size for name in ("model", "whole")]
    assert sizes[0] < sizes[1]
    again = pretrained.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.encode(images), vqvae.encode(images))


# ----------------------------------------------------------------------- weights that are broken

BROKEN = []
UNUSABLE = "cannot be used ("
ADVICE = "without code of its own: restore it with git, or train it again."
OTHER = "belongs to other weights than those beside it; `make score NAME=oasis1` scores them again."
JSON = "restore it with git, or remove it and make it again."


def broken(*words):
    """Registers a function that breaks a folder of weights, with the words of the sentence."""

    def register(break_it):
        BROKEN.append(pytest.param(break_it, words, id=break_it.__name__))
        return break_it

    return register


def change_scores(folder: Path, changes: dict) -> None:
    write_json(folder / "scores.json", read_json(folder / "scores.json") | changes)


def rewrite_config(file: Path, change) -> None:
    """Writes a `.keras` file again, with the text of its configuration changed."""
    with zipfile.ZipFile(file) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    parts["config.json"] = change(parts["config.json"].decode()).encode()
    with zipfile.ZipFile(file, "w") as new:
        for name, content in parts.items():
            new.writestr(name, content)


@broken("vqvae.keras", UNUSABLE, ADVICE)
def truncated_weights(folder):
    (folder / "vqvae.keras").write_bytes((folder / "vqvae.keras").read_bytes()[:5000])


@broken("prior.keras", UNUSABLE, ADVICE)
def empty_weights(folder):
    (folder / "prior.keras").write_bytes(b"")


@broken("vqvae.keras", UNUSABLE, ADVICE)
def weights_with_changed_bytes(folder):
    content = bytearray((folder / "vqvae.keras").read_bytes())
    start = content.index(b"model.weights.h5") + 60
    content[start : start + 200] = bytes(200)
    (folder / "vqvae.keras").write_bytes(content)


@broken("vqvae.keras", UNUSABLE, "Lambda", ADVICE)
def weights_that_carry_code(folder):
    image = keras.Input((16, 16, 1))
    harm = keras.layers.Lambda(lambda x: (Path("harm").touch(), x)[1], output_shape=(16, 16, 1))
    keras.Model(image, harm(image)).save(folder / "vqvae.keras")
    (folder / "harm").unlink(missing_ok=True)


@broken("vqvae.keras", UNUSABLE, ADVICE)
def weights_that_name_code_elsewhere(folder):
    code = {"module": "os", "class_name": "system", "config": {"command": "touch harm"}}
    rewrite_config(folder / "vqvae.keras", lambda text: json.dumps(code))


@broken("prior.keras", UNUSABLE, ADVICE)
def weights_of_another_shape(folder):
    def change(text):
        return text.replace('"filters": 4', '"filters": 8')

    rewrite_config(folder / "prior.keras", change)


@broken("vqvae.keras", UNUSABLE, "VQVAE9", ADVICE)
def weights_of_another_version(folder):
    rewrite_config(folder / "vqvae.keras", lambda text: re.sub(r"\bVQVAE\b", "VQVAE9", text))


@broken("vqvae.keras cannot be used (it holds a GatedPixelCNN); expected a VQVAE that this", ADVICE)
def prior_in_place_of_the_vqvae(folder):
    shutil.copy(folder / "prior.keras", folder / "vqvae.keras")


@broken(OTHER)
def prior_of_another_codebook(folder):
    prior = MaskedPixelCNN(9, (4, 4), filters=2, blocks=0)
    pretrained.save_model(prior, folder / "prior.keras")


@broken(OTHER)
def prior_of_another_grid(folder):
    prior = MaskedPixelCNN(12, (5, 4), filters=2, blocks=0)
    pretrained.save_model(prior, folder / "prior.keras")


@broken("scores.json: cannot be read (", JSON)
def damaged_scores(folder):
    (folder / "scores.json").write_text('{"data": "oasis1", ')


@broken("history.json: cannot be read (", JSON)
def no_history(folder):
    (folder / "history.json").unlink()


@pytest.mark.parametrize(("break_it", "words"), BROKEN)
def test_broken_weights_are_refused(weights, refused, monkeypatch, break_it, words):
    monkeypatch.chdir(weights / "oasis1")
    break_it(weights / "oasis1")
    refused(lambda: load_pretrained("oasis1"), *words)
    assert not (weights / "oasis1" / "harm").exists(), "code from a file was run"


@pytest.mark.parametrize(
    "changes",
    [
        {"test": {"bits_per_slice": 700.0}},
        {"recipe": {"data": "cohort"}},
        {"frame": {"size": 80, "crop": None, "side": 64}},
        {"frame": {"size": 16, "side": 64}},
        {"frame": {"size": 16, "crop": None}},
        {"frame": None},
        {"weights": {"vqvae": "0" * 64, "prior": "0" * 64}},
    ],
)
def test_scores_of_other_weights_are_refused(weights, vqvae, prior, refused, monkeypatch, changes):
    stages = [vqvae, prior, None]
    monkeypatch.setattr(pretrained, "load_stages", lambda folder: stages)  # saves seconds
    assert load_pretrained("oasis1").vqvae is vqvae
    change_scores(weights / "oasis1", changes)
    refused(lambda: load_pretrained("oasis1"), OTHER)


@pytest.mark.parametrize("name", ["cohort", "oasis1", "oasis1-10x10"])
def test_shipped_weights_know_the_side_of_the_pictures_that_they_were_trained_on(name):
    assert read_json(pretrained.WEIGHTS / name / "scores.json")["frame"]["side"] == 256


# ------------------------------------------------------------------ feature networks, results


def test_feature_networks_that_cannot_be_used(monkeypatch, tmp_path, slice_root, refused):
    monkeypatch.setattr(pretrained, "FEATURES", tmp_path)
    train = load_slices(slice_root, "train", 16)

    def load():
        return pretrained.load_feature_networks("oasis1", train)

    words = "oasis1.keras is missing; `python -m tools.features` trains it on the training slices"
    refused(load, words, error=FileNotFoundError)
    (tmp_path / "oasis1.keras").write_bytes(b"PK")
    refused(load, "oasis1.keras", UNUSABLE, ADVICE)


def test_kept_results(monkeypatch, tmp_path, refused):
    monkeypatch.setattr(pretrained, "RESULTS", tmp_path)
    write_json(tmp_path / "ablation.json", {"variants": []})
    assert pretrained.results("ablation") == {"variants": []}
    words = "there are no results of 'rate'; available: ablation. `python -m experiments rate` mea"
    refused(lambda: pretrained.results("rate"), words, error=FileNotFoundError)
    (tmp_path / "ablation.json").write_text("{")
    refused(lambda: pretrained.results("ablation"), "ablation.json: cannot be read (", JSON)


@pytest.mark.parametrize(("name", "advised"), [("oasis1", True), ("oasis2", False)])
def test_only_weights_with_a_recipe_are_said_to_be_trainable(tmp_path, monkeypatch, name, advised):
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        pretrained.load_pretrained(name)
    assert ("`make train NAME=" in str(caught.value)) == advised


@pytest.mark.parametrize("setting", ["image_data_format", "floatx"])
def test_settings_of_another_project_are_named(untrained, refused, setting):
    """`~/.keras/keras.json` is read by Keras when it is imported."""
    change, value = getattr(keras.config, f"set_{setting}"), getattr(keras.config, setting)()
    change({"image_data_format": "channels_first", "floatx": "float16"}[setting])
    try:
        words = "keras.json", "expected float32 and channels_last", "KERAS_HOME"
        refused(lambda: pretrained.load_model(untrained / "vqvae.keras"), *words)
    finally:
        change(value)


def test_a_package_outside_of_the_repository_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path / "site-packages" / "data" / "weights")
    with pytest.raises(FileNotFoundError, match=r"outside of its repository; .*--editable"):
        pretrained.load_pretrained("cohort")
