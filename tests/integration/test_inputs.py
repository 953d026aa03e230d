"""Folders of slices as people meet them: each one loads right, or one true sentence says why not.

They are made as the public reports describe them, of ellipses and noise.
"""

import os
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from oasis_helpers import load_slices
from oasis_helpers.convert.layout import check_layout
from oasis_helpers.data import SPLITS, SliceDataError, brain_box
from oasis_helpers.pretrained import Pretrained

SUBJECTS = {"train": (1, 2, 3), "validate": (4,), "test": (5,)}
SET = "keras_png_slices_data"
BOX = (32, 34, 188)
APPLE_DOUBLE = b"\0\5\26\7\0\2\0\0Mac OS X        "  # how a ._ file of macOS begins
CASES = []


def picture(subject, index, size=256):
    """uint8 (size, size): an ellipse with two dark horns, other for each subject and index."""
    rows, columns = np.mgrid[:size, :size].astype(float)
    y, x = (rows / size - 0.5) * 2, (columns / size - 0.5) * 2
    radius = (x / 0.55) ** 2 + ((y + 0.02) / 0.7) ** 2
    grey = np.where(radius < 1, 110 + 60 * np.cos(9 * radius + subject), 0)
    for side in (-1, 1):
        horn = ((x - side * 0.12) / 0.07) ** 2 + ((y - 0.05) / (0.1 + 0.008 * index)) ** 2
        grey = np.where(horn < 1, 30, grey)
    noise = np.random.default_rng(subject * 100 + index).normal(0, 4, grey.shape)
    return np.clip(grey + noise * (radius < 1), 0, 255).astype(np.uint8)


def slices_in(folder, split, subject=None):
    names = f"case_{subject:03d}_slice_*" if subject else "*"
    return sorted((folder / f"keras_png_slices_{split}").glob(names))


def write_layout(folder, size=256):
    for split, numbers in SUBJECTS.items():
        (folder / f"keras_png_slices_{split}").mkdir(parents=True)
        for number in numbers:
            for index in range(0, 32, 4):
                name = f"keras_png_slices_{split}/case_{number:03d}_slice_{index}.nii.png"
                Image.fromarray(picture(number, index, size)).save(folder / name)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The layout as it should be: five subjects of eight slices."""
    folder = tmp_path_factory.mktemp("good")
    write_layout(folder / SET)
    return folder


def case(*words, warning=None):
    """Registers a change to the good layout, and the words of what `load_slices` says of it."""

    def register(change):
        CASES.append(pytest.param(change, words, warning, id=change.__name__))
        return change

    return register


@case()
def as_it_should_be(root):
    """Nothing is changed."""


@case(warning="512 x 512 pixels; the weights' frame is of 256 x 256, so it is scaled")
def frames_of_512_pixels(root):
    shutil.rmtree(root / SET)
    write_layout(root / SET, 512)


@case(warning="240 x 240 pixels; the weights' frame is of 256 x 256, so it is scaled")
def frames_of_240_pixels(root):
    shutil.rmtree(root / SET)
    write_layout(root / SET, 240)


@case("case_001_slice_0.nii.png of 256 x 256", "case_005_slice_0.nii.png of 512 x 512 pixels; exp")
def frames_mixed(root):
    for path in slices_in(root / SET, "test"):
        Image.open(path).resize((512, 512)).save(path)


@case(
    warning="grey pixels at the frame's edge or far from the brains in 1 files, case_001_slice_0."
)
def one_dot(root):
    file = slices_in(root / SET, "train", 1)[0]
    pixels = np.array(Image.open(file))
    pixels[0, 0] = 20
    Image.fromarray(pixels).save(file)


@case("keras_png_slices_train: this folder is missing; expected the train split.")
def folder_between(root):
    (root / SET).rename(root / "slices")
    (root / SET).mkdir()
    (root / "slices").rename(root / SET / "slices")


@case("keras_png_slices_train: this folder is missing; expected the train split.")
def doubled_folder(root):
    (root / SET).rename(root / "slices")
    (root / SET).mkdir()
    (root / "slices").rename(root / SET / SET)


@case("keras_png_slices_train: this folder is missing; expected the train split.")
def short_names(root):
    for split in SUBJECTS:
        (root / SET / f"keras_png_slices_{split}").rename(root / SET / split)


@case("subject 001 of train has no slice 4, which", "subject 004 of validate has no slice 12, 24,")
def missing_slices(root):
    for split, number, gone in (
        ("train", 1, (4,)),
        ("train", 2, (0, 8)),
        ("validate", 4, (12, 24)),
    ):
        for index in gone:
            folder = root / SET / f"keras_png_slices_{split}"
            (folder / f"case_{number:03d}_slice_{index}.nii.png").unlink()


@case()
def linked_split(root):
    (root / SET / "keras_png_slices_test").rename(root / "elsewhere")
    (root / SET / "keras_png_slices_test").symlink_to(root / "elsewhere")


@case()
def linked_set(root):
    (root / SET).rename(root / "elsewhere")
    (root / SET).symlink_to(root / "elsewhere")


@case()
def files_of_windows(root):
    for name in ("Thumbs.db", "desktop.ini"):
        (root / SET / "keras_png_slices_train" / name).write_bytes(b"\xd0\xcf\x11\xe0")


@case()
def files_of_macos(root):
    shutil.copytree(root / SET, root / "__MACOSX" / SET)
    for path in list(root.rglob("*.png")):
        path.with_name(f"._{path.name}").write_bytes(APPLE_DOUBLE)
    (root / SET / "keras_png_slices_train" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")


@case("case_20231105001_slice_0.nii.png: the name does not parse; expected case_NNN_slice_K.nii")
def long_number(root):
    for path in slices_in(root / SET, "train", 1):
        path.rename(path.with_name(path.name.replace("001", "20231105001")))


@case("case_001_slice_0.nii.png: mode I;16 with 16 bits; expected 8-bit grey (mode L).")
def pictures_of_16_bits(root):
    for path in slices_in(root / SET, "train"):
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 16).save(path)


@case("case_001_slice_0.nii.png: mode LA; expected 8-bit grey (mode L).")
def pictures_with_a_transparent_background(root):
    for path in slices_in(root / SET, "train"):
        Image.open(path).convert("LA").save(path)


@case("case_001_slice_99.nii.png: slice index 99; expected 0 to 31.")
def slice_index_of_another_stack(root):
    file = slices_in(root / SET, "train", 1)[0]
    file.rename(file.with_name("case_001_slice_99.nii.png"))


@case("case_001_slice_1.nii.png: not a regular file; expected a PNG file.")
def pipe_among_the_slices(root):
    os.mkfifo(root / SET / "keras_png_slices_train" / "case_001_slice_1.nii.png")


@case("this folder is missing; expected the train split.")
def pictures_in_class_folders(root):
    shutil.rmtree(root / SET)
    (root / "Data" / "Non Demented").mkdir(parents=True)
    file = root / "Data" / "Non Demented" / "OAS1_0001_MR1_mpr-1_100.jpg"
    Image.fromarray(picture(1, 0)).save(file)


@pytest.mark.parametrize(("change", "words", "warning"), CASES)
def test_input_loads_right_or_a_sentence_says_why_not(
    good, tmp_path, monkeypatch, change, words, warning
):
    monkeypatch.setenv("OASIS_CACHE_DIR", str(tmp_path / "cache"))
    root = shutil.copytree(good, tmp_path / "input")
    change(root)
    if words:
        with pytest.raises(SliceDataError) as caught:
            load_slices(root, "train")
        assert all(any(word in fault for fault in caught.value.faults) for word in words)
        with pytest.raises(SliceDataError):
            check_layout(root / SET)
        return
    frame = {"size": 80, "crop": BOX, "side": 256}
    models = Pretrained(None, None, None, {"frame": frame, "data": "cohort"}, {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        slices = {split: models.load_slices(root, split) for split in SPLITS}
        box = brain_box(root)
    ours = [str(one.message) for one in caught if "than the 12 / 3 / 3 sub" not in str(one.message)]
    assert all(warning in message for message in ours) if warning else not ours
    expected = load_slices(good, "train", 80, BOX).images
    assert np.abs(slices["train"].images - expected).mean() < 0.02
    assert {split: sorted(set(part.subjects)) for split, part in slices.items()} == {
        split: list(numbers) for split, numbers in SUBJECTS.items()
    }
    assert check_layout(root / SET).keys() == slices.keys()
    assert box == BOX or "frames" in change.__name__
