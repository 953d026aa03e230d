"""What is wrong is said in a sentence that names it and says what to do; nothing is changed.

Each row of `BROKEN` breaks a small house of slices and weights and returns the call that must
refuse it; each row of `ARGUMENTS` is a call with one argument out of its range.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import types
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from oasis_helpers import __main__ as commands
from oasis_helpers import (
    files,
    ladders,
    load_pretrained,
    load_slices,
    metrics,
    set_metrics,
    recipes,
    sample_codes,
    pretrained,
    training,
)
from oasis_helpers.convert.synthetic import make_cohort
from oasis_helpers.data import REPOSITORY
from oasis_helpers.painter import CodePainter
from oasis_helpers.pixelcnn import GatedPixelCNN
from oasis_helpers.vqvae import improved_vqvae

K, GRID, SIZE = 12, (4, 4), 16
RECIPE = recipes.Recipe("oasis1", SIZE)


# ------------------------------------------------------------------------------------ the house


def write_slices(folder: Path) -> None:
    """Two training subjects of three slices, one subject in either other split."""
    for split, subjects in (("train", (2, 10)), ("validate", (3,)), ("test", (4,))):
        inner = folder / "keras_png_slices_data" / f"keras_png_slices_{split}"
        inner.mkdir(parents=True)
        for subject in subjects:
            for index in (0, 2, 10):
                pixels = np.zeros((64, 64), "uint8")
                pixels[20:44, 24:40] = 150 + 3 * subject + index
                file = inner / f"case_{subject:03d}_slice_{index}.nii.png"
                Image.fromarray(pixels).save(file)


def write_weights(folder: Path) -> None:
    """Untrained weights of 4 x 4 codes out of 12, with what belongs beside them."""
    folder.mkdir(parents=True)
    vqvae = improved_vqvae(1.0, SIZE, patch=(2, 2), num_embeddings=K, widths=(4, 4), blocks=1)
    pretrained.save_model(vqvae, folder / "vqvae.keras")
    prior = GatedPixelCNN(K, GRID, filters=4, blocks=1, heads=1)
    pretrained.save_model(prior, folder / "prior.keras")
    recipe = {"data": "oasis1"}
    scores = {
        "data": "oasis1",
        "frame": {"size": SIZE, "crop": None},
        "recipe": recipe,
        "weights": pretrained.stages_digest(folder),
        "test": {"bits_per_slice": round(vqvae.bits_per_slice, 1)},
        "test_fingerprint": "of other slices",
    }
    files.write_json(folder / "scores.json", scores)
    files.write_json(folder / "history.json", {"recipe": recipe})


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("house")
    write_slices(folder / "slices")
    write_weights(folder / "weights" / "oasis1")
    return folder


@pytest.fixture
def house(built, tmp_path, monkeypatch):
    """A copy of the house, in force: `slices`, `weights` (three names), `train`, `folder`."""
    folder = tmp_path / "house"
    shutil.copytree(built, folder)
    for name in ("tiny", "cohort"):
        shutil.copytree(folder / "weights" / "oasis1", folder / "weights" / name)
    for module, name in ((pretrained, "WORK"), (pretrained, "FEATURES"), (ladders, "KEPT")):
        monkeypatch.setattr(module, name, folder / name.lower())
    monkeypatch.setattr(pretrained, "WEIGHTS", folder / "weights")
    monkeypatch.setattr(pretrained, "COHORT", folder / "cohort")
    monkeypatch.setattr(commands, "BUILD", folder / "build")
    monkeypatch.setitem(recipes.RECIPES, "tiny", RECIPE)
    monkeypatch.setenv("OASIS_DATA_DIR", str(folder / "slices"))
    monkeypatch.setenv("OASIS_CACHE_DIR", str(folder / "cache"))
    monkeypatch.setenv("OASIS_PROFILE", "tour")
    slices = folder / "slices"
    return types.SimpleNamespace(
        folder=folder,
        slices=slices,
        train=slices / "keras_png_slices_data" / "keras_png_slices_train",
        weights=folder / "weights" / "oasis1",
        setenv=monkeypatch.setenv,
        delenv=monkeypatch.delenv,
        run=lambda *words: run_command(monkeypatch, *words),
    )


def run_command(monkeypatch, *words: str) -> None:
    """`python -m oasis_helpers ...`, here; what it would print at its end is raised."""
    monkeypatch.setattr(sys, "argv", ["oasis_helpers", *words])
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            commands.main()
    except SystemExit as ending:
        assert ending.code, "a failed command must not end with 0"
        raise Ended(ending.code if isinstance(ending.code, str) else told.getvalue()) from None


class Ended(Exception):
    """A command ended with this on the screen and a code that says so."""


def contents(folder: Path) -> dict[Path, str]:
    """Every file and link below a folder, with a hash of what it holds."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            found[path] = os.readlink(path)
        elif path.is_file():
            found[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def assert_a_sentence(message: str, words: str) -> None:
    for word in words.split(" | "):
        assert word in message, message
    assert message.strip().endswith((".", ")")) and "Traceback" not in message, message


# --------------------------------------------------------------------- broken files and folders

BROKEN = []


def broken(words: str, error: type[Exception] = ValueError):
    def keep(breaks):
        BROKEN.append(pytest.param(breaks, words, error, id=breaks.__name__))
        return breaks

    return keep


def loading(house, split="train", **options):
    return lambda: load_slices(house.slices, split, **{"size": SIZE, **options})


def a_slice(house) -> Path:
    return house.train / "case_002_slice_2.nii.png"


@broken("/nowhere: this folder is missing; give the one that holds keras_png_slices_data/")
def no_folder(house):
    return lambda: load_slices(house.slices / "nowhere", "train")


@broken("case_002_slice_2.nii.png: this")
def file_for_a_folder(house):
    return lambda: load_slices(a_slice(house), "train")


@broken("around: this folder is missing; give the one")
def folder_that_links_to_itself(house):
    (house.slices / "around").symlink_to("around")
    return lambda: load_slices(house.slices / "around", "train")


@broken("keras_png_slices_train: this folder is missing; the train split is expected there")
def no_split(house):
    house.train.rename(house.slices / "elsewhere")
    return loading(house)


@broken("keras_png_slices_train: this folder is empty; expected files named case_NNN_slice_K")
def empty_split(house):
    for path in house.train.iterdir():
        path.unlink()
    return loading(house)


@broken("case_002_slice_2.nii.png: not a readable image | copy or download it again")
def empty_file(house):
    a_slice(house).write_bytes(b"")
    return loading(house)


@broken("case_002_slice_2.nii.png: not a readable image | copy or download it again")
def truncated_file(house):
    a_slice(house).write_bytes(a_slice(house).read_bytes()[:70])
    return loading(house)


@broken("case_002_slice_2.nii.png: not a readable image | copy or download it again")
def other_kind_of_file(house):
    a_slice(house).write_text("case,slice\n2,2\n")
    return loading(house)


@broken("case_002_slice_2.nii.png: not a readable image | copy or download it again")
def bytes_changed_inside(house):
    data = bytearray(a_slice(house).read_bytes())
    data[50] ^= 0xFF
    a_slice(house).write_bytes(data)
    return loading(house)


@broken("case_002_slice_2.nii.png: not a readable image | decompression bomb")
def picture_that_would_fill_the_memory(house):
    data = bytearray(a_slice(house).read_bytes())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zipfile.crc32(data[12:29]).to_bytes(4, "big")
    a_slice(house).write_bytes(data)
    return loading(house)


@broken("case_002_slice_2.nii.png: mode RGB; expected 8-bit grey (mode L)")
def colour(house):
    Image.new("RGB", (64, 64)).save(a_slice(house))
    return loading(house)


@broken("case_002_slice_2.nii.png: mode I;16; expected 8-bit grey (mode L)")
def sixteen_bits(house):
    Image.fromarray(np.zeros((64, 64), "uint16")).save(a_slice(house))
    return loading(house)


@broken("case_002_slice_2.nii.png: 60 x 64 pixels; the rest of the split is 64 x 64")
def one_of_another_size(house):
    Image.new("L", (60, 64)).save(a_slice(house))
    return loading(house)


@broken("keras_png_slices_train: 60 x 64 pixels; expected square slices")
def none_is_square(house):
    for path in house.train.iterdir():
        Image.new("L", (60, 64)).save(path)
    return loading(house)


@broken("case_two.png: the name doesn't parse; expected case_NNN_slice_K.nii.png")
def other_name(house):
    shutil.copy(a_slice(house), house.train / "case_two.png")
    return loading(house)


@broken("case_002_slice_32.nii.png: slice index 32; expected 0 to 31")
def index_of_no_slice(house):
    shutil.copy(a_slice(house), house.train / "case_002_slice_32.nii.png")
    return loading(house)


@broken("case_2_slice_2.nii.png: the same subject and slice as case_002_slice_2.nii.png; keep one")
def same_slice_twice(house):
    shutil.copy(a_slice(house), house.train / "case_2_slice_2.nii.png")
    return loading(house)


@broken("subject 002 is in both train and test; keep each subject in one split")
def subject_in_two_splits(house):
    test = house.train.with_name("keras_png_slices_test")
    shutil.copy(a_slice(house), test / "case_002_slice_5.nii.png")
    return loading(house)


@broken("case_002_slice_5.nii.png: a folder or a link that leads nowhere; expected a PNG file")
def slice_that_links_to_itself(house):
    (house.train / "case_002_slice_5.nii.png").symlink_to("case_002_slice_5.nii.png")
    return loading(house)


@broken("case_002_slice_5.nii.png: a folder or a link that leads nowhere; expected a PNG file")
def slice_that_is_a_folder(house):
    (house.train / "case_002_slice_5.nii.png").mkdir()
    return loading(house)


@broken("keras_png_slices_data: every training slice is black; expected brains")
def black_slices(house):
    for path in house.train.iterdir():
        Image.new("L", (64, 64)).save(path)
    return loading(house, crop="brain")


@broken("The crop (40, 40, 40) (top, left, side) leaves the 64-pixel frame")
def crop_beyond_the_frame(house):
    return loading(house, crop=(40, 40, 40))


@broken('OASIS_PROFILE is \'quick\'; expected "tour" or "full"')
def unknown_profile(house):
    house.setenv("OASIS_PROFILE", "quick")
    return pretrained.profile


@broken("OASIS_DATA_DIR is '/nowhere', but /nowhere is no folder; set it to", FileNotFoundError)
def data_that_are_nowhere(house):
    house.setenv("OASIS_DATA_DIR", "/nowhere")
    return pretrained.data_root


@broken("OASIS_DATA_DIR is | is no folder; set it to the folder that holds", FileNotFoundError)
def data_in_a_circle(house):
    (house.folder / "around").symlink_to("around")
    house.setenv("OASIS_DATA_DIR", str(house.folder / "around"))
    return pretrained.data_root


@broken(
    "cohort holds something that make_cohort did not make | nothing was changed", FileExistsError
)
def damaged_record_of_the_cohort(house):
    (house.folder / "cohort").mkdir()
    (house.folder / "cohort" / "cohort.json").write_text('{"made_by": "oasis_h')
    return lambda: make_cohort(house.folder / "cohort")


# Weights, and what lies beside them.


def reading(house):
    return lambda: load_pretrained("oasis1")


def rewrite(file: Path, change) -> None:
    """A `.keras` file again, with the text of its configuration changed."""
    with zipfile.ZipFile(file) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    parts["config.json"] = change(parts["config.json"].decode()).encode()
    with zipfile.ZipFile(file, "w") as new:
        for name, content in parts.items():
            new.writestr(name, content)


UNUSABLE = "can't be used | get it back with git, or train it anew"


@broken("There are no weights named 'oasis9' | there are: cohort, oasis1, tiny", FileNotFoundError)
def weights_of_no_name(house):
    return lambda: load_pretrained("oasis9")


@broken(f"vqvae.keras {UNUSABLE}")
def truncated_weights(house):
    file = house.weights / "vqvae.keras"
    file.write_bytes(file.read_bytes()[:5000])
    return reading(house)


@broken(f"prior.keras {UNUSABLE}")
def empty_weights(house):
    (house.weights / "prior.keras").write_bytes(b"")
    return reading(house)


@broken(f"vqvae.keras {UNUSABLE}")
def weights_with_bytes_changed(house):
    file = house.weights / "vqvae.keras"
    data = bytearray(file.read_bytes())
    start = data.index(b"model.weights.h5") + 60
    data[start : start + 200] = bytes(200)
    file.write_bytes(data)
    return reading(house)


@broken(f"vqvae.keras {UNUSABLE} | Lambda")
def weights_that_carry_code(house):
    image = keras.Input((SIZE, SIZE, 1))
    harm = keras.layers.Lambda(lambda x: (Path("harm").touch(), x)[1], output_shape=(SIZE, SIZE, 1))
    keras.Model(image, harm(image)).save(house.weights / "vqvae.keras")
    return reading(house)


@broken(f"vqvae.keras {UNUSABLE}")
def weights_that_name_code_elsewhere(house):
    config = {"module": "os", "class_name": "system", "config": {"command": "touch harm"}}
    rewrite(house.weights / "vqvae.keras", lambda text: json.dumps(config))
    return reading(house)


@broken(f"prior.keras {UNUSABLE}")
def weights_of_another_shape(house):
    rewrite(
        house.weights / "prior.keras", lambda text: text.replace('"filters": 4', '"filters": 8')
    )
    return reading(house)


@broken(f"vqvae.keras {UNUSABLE} | VQVAE9")
def weights_of_another_version(house):
    rewrite(house.weights / "vqvae.keras", lambda text: re.sub(r"\bVQVAE\b", "VQVAE9", text))
    return reading(house)


@broken("vqvae.keras can't be used (it holds a GatedPixelCNN); expected a VQVAE")
def prior_in_place_of_the_vqvae(house):
    shutil.copy(house.weights / "prior.keras", house.weights / "vqvae.keras")
    return reading(house)


@broken("prior.keras draws maps of 9 codes on 4 x 4 cells, vqvae.keras decodes 12 codes on 4 x 4")
def prior_of_another_codebook(house):
    prior = GatedPixelCNN(9, GRID, filters=4, blocks=1, heads=1)
    pretrained.save_model(prior, house.weights / "prior.keras")
    return reading(house)


@broken("prior.keras draws maps of 12 codes on 5 x 4 cells, vqvae.keras decodes 12 codes on 4 x 4")
def prior_of_another_grid(house):
    prior = GatedPixelCNN(K, (5, 4), filters=4, blocks=1, heads=1)
    pretrained.save_model(prior, house.weights / "prior.keras")
    return reading(house)


OTHERS = "belongs to other weights | `python -m oasis_helpers score oasis1` measures them anew"


def change_scores(house, **changes):
    scores = files.read_json(house.weights / "scores.json") | changes
    files.write_json(house.weights / "scores.json", scores)
    return reading(house)


@broken(OTHERS)
def scores_of_another_rate(house):
    return change_scores(house, test={"bits_per_slice": 700.0})


@broken(OTHERS)
def scores_of_another_recipe(house):
    return change_scores(house, recipe={"data": "cohort"})


@broken(OTHERS)
def scores_of_another_frame(house):
    return change_scores(house, frame={"size": 80, "crop": None})


@broken(OTHERS)
def scores_without_a_frame(house):
    return change_scores(house, frame=None)


@broken(OTHERS)
def scores_of_a_twin(house):
    return change_scores(house, weights={"vqvae": "0" * 64, "prior": "0" * 64})


@broken("scores.json: can't be read | get it back with git, or remove it and make it anew")
def damaged_scores(house):
    (house.weights / "scores.json").write_text('{"data": "oasis1", ')
    return reading(house)


@broken("scores.json: holds no names; expected a JSON file of ours")
def scores_of_another_kind(house):
    (house.weights / "scores.json").write_text("[1, 2]")
    return reading(house)


@broken("history.json: can't be read | get it back with git")
def no_history(house):
    (house.weights / "history.json").unlink()
    return reading(house)


@broken("history.json: can't be read | get it back with git")
def history_of_no_text(house):
    (house.weights / "history.json").write_bytes(b"\xff\xfe\x00")
    return reading(house)


@broken("oasis1.keras is missing; `python -m oasis_helpers features` makes it", FileNotFoundError)
def no_feature_network(house):
    return lambda: pretrained.load_feature_networks("oasis1", load_slices(house.slices, "train", SIZE))


@broken(f"oasis1.keras {UNUSABLE}")
def damaged_feature_network(house):
    (house.folder / "features").mkdir()
    (house.folder / "features" / "oasis1.keras").write_bytes(b"PK")
    return lambda: pretrained.load_feature_networks("oasis1", load_slices(house.slices, "train", SIZE))


# Trainings.


@broken("There is no recipe 'oasis9'; there are: cohort")
def recipe_of_no_name(house):
    return lambda: pretrained.train_weights("oasis9")


@broken("need other data: set OASIS_DATA_DIR to the oasis1 slices")
def recipe_without_its_data(house):
    house.delenv("OASIS_DATA_DIR")
    return lambda: pretrained.train_weights("tiny")


@broken("need other data: unset OASIS_DATA_DIR for the cohort slices")
def recipe_with_other_data(house):
    return lambda: pretrained.train_weights("cohort")


@broken("tiny holds a training with another recipe or other slices; remove that folder")
def checkpoints_of_another_training(house):
    files.write_json(made(house.folder / "work" / "tiny") / "run_signature.json", {"recipe": {}})
    return lambda: pretrained.train_weights("tiny")


@broken("run_signature.json: can't be read | or remove it and make it anew")
def damaged_note_of_a_training(house):
    (made(house.folder / "work" / "tiny") / "run_signature.json").write_text("{")
    return lambda: pretrained.train_weights("tiny")


@broken("latest.npz holds the state of another model; remove")
def checkpoint_of_another_model(house):
    work = made(house.folder / "work" / "tiny")
    np.savez(work / "latest.npz", facts='{"epoch": 1}', **{"state 0": np.zeros(3)})
    prior = pretrained.load_model(house.weights / "prior.keras")
    prior.compile("adam")
    return lambda: training.Checkpoint(work).restore(prior)


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


# Commands.


@broken("OASIS_PROFILE is 'quick'; expected", Ended)
def run_in_an_unknown_profile(house):
    (made(house.folder / "build" / "html") / "01.html").write_text("the last pages")
    house.setenv("OASIS_PROFILE", "quick")
    return lambda: house.run("run")


@broken("slice_2.nii.png: not a readable image | case_004_slice_0.nii.png: mode RGB", Ended)
def run_on_faults_in_two_splits(house):
    (made(house.folder / "build" / "html") / "01.html").write_text("the last pages")
    a_slice(house).write_bytes(b"")
    test = house.train.with_name("keras_png_slices_test")
    Image.new("RGB", (64, 64)).save(test / "case_004_slice_0.nii.png")
    return lambda: house.run("run")


@broken("OASIS_DATA_DIR is '/nowhere', but /nowhere is no folder", Ended)
def run_on_data_that_are_nowhere(house):
    house.setenv("OASIS_DATA_DIR", "/nowhere")
    return lambda: house.run("run")


@broken("need other data: set OASIS_DATA_DIR to the oasis1 slices", Ended)
def train_without_the_data(house):
    house.delenv("OASIS_DATA_DIR")
    return lambda: house.run("train", "oasis1")


@broken("argument name: invalid choice: 'oasis9' | choose from | cohort", Ended)
def train_a_recipe_of_no_name(house):
    return lambda: house.run("train", "oasis9")


@broken("argument kind: invalid choice: 'jacob' | choose from | ablation", Ended)
def climb_an_unknown_ladder(house):
    return lambda: house.run("ladder", "jacob")


@broken("oasis1-ablation.json: can't be read | remove it and make it anew", Ended)
def climb_with_damaged_results(house):
    (made(house.folder / "kept") / "oasis1-ablation.json").write_text("{")
    return lambda: house.run("ladder", "ablation")


@broken(f"vqvae.keras {UNUSABLE}", Ended)
def score_damaged_weights(house):
    (house.folder / "weights" / "tiny" / "vqvae.keras").write_bytes(b"PK")
    return lambda: house.run("score", "tiny")


@broken(
    "run_signature.json: File too large; files are replaced whole | give the same command again", Ended
)
def train_on_a_full_disk(house):
    def train():
        with full_disk():
            house.run("train", "tiny")

    return train


@contextlib.contextmanager
def full_disk(room: int = 520):
    """No file of this process may grow beyond so many bytes: writing more fails half way."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(("breaks", "words", "error"), BROKEN)
def test_what_is_broken_is_named_and_nothing_is_changed(house, breaks, words, error, monkeypatch):
    monkeypatch.chdir(house.folder)
    call = breaks(house)
    before = contents(house.folder)
    with pytest.raises(error) as caught:
        call()
    assert_a_sentence(str(caught.value), words)
    after = contents(house.folder)
    assert {path: after.get(path) for path in before} == before
    assert not [path for path in after if path.name == "harm"], "code was run"
    assert not [path for path in after if re.match(r"\.\d+-", path.name)], "a half file was left"


# ----------------------------------------------------------------------------- bad arguments

IMAGES, CODES = np.full((2, SIZE, SIZE, 1), 0.5, "float32"), np.zeros((2, *GRID), "int32")
NAN, PEOPLE = np.full_like(IMAGES, np.nan), np.arange(2)


def drawing(**options):
    return lambda models: sample_codes(models.prior, options.pop("n", 2), **options)


ARGUMENTS = {
    "split": (lambda m: load_slices(".", "exam"), "Unknown split 'exam': choose one of train"),
    "size": (lambda m: load_slices(".", "train", 4), "A size of 4 pixels is too small for a slice"),
    "size, text": (lambda m: load_slices(".", "train", "80"), "size = '80': expected a whole"),
    "crop": (lambda m: load_slices(".", "train", 80, "head"), "Unknown crop 'head': use None"),
    "crop, pair": (
        lambda m: load_slices(".", "train", 80, (1, 2)),
        "Unknown crop (1, 2): use None",
    ),
    "n": (drawing(n=-1), "n = -1: expected a whole number, 0 or more"),
    "n, share": (drawing(n=2.5), "n = 2.5: expected a whole number"),
    "batch of 0": (drawing(batch_size=0), "batch_size = 0: expected a whole number, 1 or more"),
    "seed": (drawing(seed=-1), "seed = -1: expected a whole number, 0 or more"),
    "temperature 0": (drawing(temperature=0), "temperature = 0: expected a number above 0"),
    "temperature -1": (drawing(temperature=-1.0), "temperature = -1.0: expected a number above 0"),
    "temperature NaN": (
        drawing(temperature=np.nan),
        "temperature = nan: expected a number above 0",
    ),
    "temperature, text": (drawing(temperature="hot"), "temperature = 'hot': expected a number"),
    "top_k 0": (drawing(top_k=0), "top_k = 0: expected 1 to 12, the codes"),
    "top_k 13": (drawing(top_k=13), "top_k = 13: expected 1 to 12, the codes"),
    "top_k 1.5": (drawing(top_k=1.5), "top_k = 1.5: expected 1 to 12, the codes"),
    "top_p 0": (drawing(top_p=0), "top_p = 0: expected a probability above 0, at most 1"),
    "top_p NaN": (drawing(top_p=np.nan), "top_p = nan: expected a probability above 0"),
    "index 32": (drawing(slice_index=32), "slice_index [32] ...: expected integers from 0"),
    "index -1": (drawing(slice_index=-1), "slice_index [-1] ...: expected integers from 0"),
    "index 1.5": (drawing(slice_index=1.5), "slice_index [1.5] ...: expected integers from 0"),
    "indices": (drawing(slice_index=[1, 2, 3]), "slice_index has shape (3,) for 2 maps; give one"),
    "known": (drawing(known=CODES[:1]), "known has shape (1, 4, 4); expected (2, 4, 4)"),
    "known codes": (drawing(known=CODES + K), "known holds codes from 12 to 12; expected 0 to 11"),
    "known floats": (drawing(known=CODES * 0.5), "known holds codes of type float64, not integers"),
    "no prior": (lambda m: sample_codes(None, 2), "prior is a NoneType; expected a GatedPixelCNN"),
    "encode, size": (lambda m: m.vqvae.encode(IMAGES[:, 1:]), "expected (N, 16, 16, 1): load them"),
    "encode, range": (lambda m: m.vqvae.encode(IMAGES - 1), "values from -0.5 to -0.5; expected"),
    "encode, bytes": (lambda m: m.vqvae.encode((IMAGES * 255).astype("uint8")), "from 127 to 127"),
    "encode, NaN": (lambda m: m.vqvae.encode(NAN), "encode got values from nan to nan; expected"),
    "encode, text": (lambda m: m.vqvae.encode(IMAGES.astype(str)), "images of type <U32; expected"),
    "decode, K": (
        lambda m: m.vqvae.decode(CODES + K),
        "decode got codes from 12 to 12; expected 0",
    ),
    "decode, -1": (
        lambda m: m.vqvae.decode(CODES - 1),
        "decode got codes from -1 to -1; expected 0",
    ),
    "decode, floats": (
        lambda m: m.vqvae.decode(CODES * 1.0),
        "codes of type float64, not integers",
    ),
    "decode, grid": (lambda m: m.vqvae.decode(CODES[:, 1:]), "shape (2, 3, 4); expected (N, 4, 4)"),
    "log_prob, K": (lambda m: m.prior.log_prob(CODES + K, 0), "another codebook"),
    "log_prob, grid": (lambda m: m.prior.log_prob(CODES[:, 1:], 0), "was trained on (N, 4, 4)"),
    "log_prob, index": (lambda m: m.prior.log_prob(CODES, 32), "expected integers from 0"),
    "log_prob, batch": (lambda m: m.prior.log_prob(CODES, 0, 0), "batch_size = 0: expected"),
    "ssim, shapes": (
        lambda m: metrics.ssim_scores(IMAGES, IMAGES[:1]),
        "expected (N, size, size, 1)",
    ),
    "ssim, range": (
        lambda m: metrics.ssim_scores(IMAGES, IMAGES - 1),
        "expected [0, 1]: SSIM means",
    ),
    "ssim, NaN": (lambda m: metrics.ssim_scores(IMAGES, NAN), "The pictures hold values from nan"),
    "psnr, bytes": (lambda m: metrics.psnr(IMAGES.astype("uint8"), IMAGES), "are of type uint8"),
    "interval": (lambda m: metrics.subject_interval(np.ones(3), PEOPLE), "(3,) values for (2,)"),
    "baselines, K": (
        lambda m: metrics.baseline_bits(CODES, PEOPLE, CODES + K, PEOPLE, K),
        "codes holds codes from 12 to 12; expected 0 to 11",
    ),
    "baselines, grid": (
        lambda m: metrics.baseline_bits(CODES, PEOPLE, CODES[:, 1:], PEOPLE, K),
        "shapes (2, 4, 4) and (2, 3, 4) don't compare; expected one grid",
    ),
    "a set's people": (
        lambda m: set_metrics.FeatureSet(np.ones((3, 2)), PEOPLE),
        "3 slices of 2 people",
    ),
    "a set's NaN": (lambda m: set_metrics.FeatureSet(NAN[..., 0], PEOPLE), "and finite features"),
    "pairwise": (
        lambda m: set_metrics.pairwise_ssim(IMAGES, PEOPLE, np.arange(3)),
        "2 pictures, 2 levels and 3 people don't belong together",
    ),
    "nearest codes": (
        lambda m: set_metrics.nearest_codes(CODES, CODES[:, 1:]),
        "expected one grid: encode both with the same weights",
    ),
    "painter's names": (lambda m: CodePainter(m.vqvae, IMAGES, ["one"]), "2 images and 1 names"),
    "cohort's counts": (lambda m: make_cohort("x", (1, -1, 1)), "three counts (train, validate"),
}


@pytest.fixture(scope="module")
def models(built):
    return types.SimpleNamespace(
        **dict(zip(("vqvae", "prior"), pretrained.load_stages(built / "weights" / "oasis1")))
    )


@pytest.mark.parametrize(("call", "words"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_an_argument_out_of_its_range_is_named(models, call, words):
    with pytest.raises(ValueError) as caught:
        call(models)
    assert_a_sentence(str(caught.value), words)


def test_there_are_enough_of_them():
    assert len(BROKEN) >= 45 and len(ARGUMENTS) >= 45


# ------------------------------------------------------------- faults that don't stop the work


def test_a_cache_that_cannot_be_written_is_warned_of(house):
    with (
        full_disk(),
        pytest.warns(UserWarning, match=r"cache: .* can't be kept there \(File too l"),
    ):
        slices = load_slices(house.slices, "train", SIZE)
    assert len(slices) == 6 and not list((house.folder / "cache").iterdir())
    (house.folder / "file").write_text("mine")
    house.setenv("OASIS_CACHE_DIR", str(house.folder / "file"))
    with pytest.warns(UserWarning, match=r"set OASIS_CACHE_DIR to a folder of yours"):
        again = load_slices(house.slices, "train", SIZE)
    np.testing.assert_array_equal(slices.images, again.images)
    assert (house.folder / "file").read_text() == "mine"


# ------------------------------------------------------- folders that may not be read or written


@pytest.fixture
def nobody():
    """A folder that others may enter, and a way to become someone who isn't its owner."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)

    @contextlib.contextmanager
    def become():
        us = os.geteuid()
        if us == 0:
            os.seteuid(65534)  # who is root may read and write everything
        try:
            yield
        finally:
            os.seteuid(us)

    yield types.SimpleNamespace(folder=folder, become=become)
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_that_may_not_be_read(nobody):
    write_slices(nobody.folder)
    train = nobody.folder / "keras_png_slices_data" / "keras_png_slices_train"
    train.chmod(0)
    with nobody.become(), pytest.raises(ValueError) as caught:
        load_slices(nobody.folder, "train", SIZE)
    assert_a_sentence(str(caught.value), f"{train}: this folder can't be read (Permission denied)")
    train.chmod(0o755)
    (train / "case_002_slice_2.nii.png").chmod(0)
    with nobody.become(), pytest.raises(ValueError, match=r"case_002_slice_2.*Permission denied"):
        load_slices(nobody.folder, "train", SIZE)


def test_a_folder_that_may_not_be_written(house, nobody, monkeypatch):
    monkeypatch.setattr(pretrained, "WORK", nobody.folder)
    monkeypatch.setattr(pretrained, "_splits_for", lambda name: {})
    nobody.folder.chmod(0o555)
    with nobody.become(), pytest.raises(Ended) as caught:
        house.run("train", "tiny")
    assert_a_sentence(str(caught.value), f"{nobody.folder / 'tiny'}: Permission denied")


def test_a_command_ends_with_a_sentence_and_no_traceback():
    environment = {name: value for name, value in os.environ.items() if name != "OASIS_DATA_DIR"}
    done = subprocess.run(
        [sys.executable, "-m", "oasis_helpers", "train", "oasis1"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    told = done.stderr.strip().splitlines()[-1]
    assert_a_sentence(told, "The weights 'oasis1' need other data: set OASIS_DATA_DIR to")


def test_an_interrupted_command_says_how_to_go_on(house, monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt(*sayings.pop(0))

    sayings = [(), ("It goes on.",)]
    monkeypatch.setattr(pretrained, "train_weights", interrupted)
    monkeypatch.setattr(sys, "argv", ["oasis_helpers", "train", "tiny"])
    for said in ("give the same command to start it again", "It goes on."):
        with pytest.raises(SystemExit) as ending:
            commands.main()
        assert ending.value.code == 130 and said in capsys.readouterr().err


def test_a_bug_of_ours_keeps_its_traceback(house, monkeypatch):
    monkeypatch.setattr(pretrained, "train_weights", lambda name: np.zeros(3) @ np.zeros(4))
    with pytest.raises(ValueError, match="mismatch"):
        house.run("train", "tiny")
