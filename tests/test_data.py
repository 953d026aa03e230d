"""Folders of slices: what is read, and every fault that is refused with a sentence."""

import zlib

import numpy as np
import pytest
from PIL import Image

from oasis_helpers import load_slices
from oasis_helpers.data import SliceDataError, brain_box


def write_slice(folder, name, shape=(64, 64), mode="L"):
    """One picture with a block in the middle whose brightness comes from the name."""
    pixels = np.zeros(shape, "uint8")
    pixels[20:44, 24:40] = 155 + zlib.crc32(name.encode()) % 100
    Image.fromarray(pixels).convert(mode).save(folder / name, format="PNG")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Two training subjects of three slices, one subject in either other split."""
    monkeypatch.setenv("OASIS_CACHE_DIR", str(tmp_path / "cache"))
    for split, subjects in (("train", (2, 10)), ("validate", (3,)), ("test", (4,))):
        folder = tmp_path / "keras_png_slices_data" / f"keras_png_slices_{split}"
        folder.mkdir(parents=True)
        for subject in subjects:
            for index in (0, 2, 10):
                write_slice(folder, f"case_{subject:03d}_slice_{index}.nii.png")
    return tmp_path


@pytest.fixture
def train_folder(root):
    return root / "keras_png_slices_data" / "keras_png_slices_train"


def complaint(root, split="train", **options):
    with pytest.raises(SliceDataError) as caught:
        load_slices(root, split, size=32, **options)
    return caught.value


def test_what_is_read(root):
    train = load_slices(root, "train", size=32)
    assert train.images.shape == (6, 32, 32, 1) and train.images.dtype == np.float32
    assert train.images.min() == 0 and 0.6 < train.images.max() <= 1
    assert train.subjects.tolist() == [2, 2, 2, 10, 10, 10]
    assert train.slices.tolist() == [0, 2, 10, 0, 2, 10], "slice 2 comes before slice 10"
    assert train.subjects.dtype == train.slices.dtype == np.int32
    assert train.of_subject(10).slices.tolist() == [0, 2, 10]


def test_either_folder_may_be_named(root):
    inner = load_slices(root / "keras_png_slices_data", "test", size=32)
    np.testing.assert_array_equal(inner.images, load_slices(root, "test", size=32).images)


def test_cache_is_used_and_follows_the_files(root, train_folder, monkeypatch):
    first = load_slices(root, "train", size=32).images
    monkeypatch.setattr("oasis_helpers.data._read", None)  # reading again would now fail
    np.testing.assert_array_equal(load_slices(root, "train", size=32).images, first)
    monkeypatch.undo()
    monkeypatch.setenv("OASIS_CACHE_DIR", str(root / "cache"))
    Image.new("L", (64, 64), 77).save(train_folder / "case_002_slice_0.nii.png")
    assert not np.array_equal(load_slices(root, "train", size=32).images, first)


def test_damaged_cache_is_made_anew(root):
    first = load_slices(root, "train", size=32).images
    for kept in (root / "cache").iterdir():
        kept.write_bytes(kept.read_bytes()[:100])
    np.testing.assert_array_equal(load_slices(root, "train", size=32).images, first)


def test_crop_is_the_box_of_the_training_brains(root):
    box = brain_box(root)
    assert box == (16, 16, 32)  # rows 20-43 with 4 pixels of margin; columns centred alike
    cropped = load_slices(root, "test", size=32, crop="brain")
    assert cropped.crop == box
    np.testing.assert_array_equal(
        cropped.images, load_slices(root, "test", size=32, crop=box).images
    )
    assert cropped.images.mean() > 2 * load_slices(root, "test", size=32).images.mean()


def test_missing_folder(root):
    assert "this folder is missing; give the one" in str(complaint(root / "nowhere"))


def test_missing_split(root):
    folder = root / "keras_png_slices_data" / "keras_png_slices_test"
    folder.rename(root / "elsewhere")
    assert str(complaint(root, "test")) == (
        f"{folder}: this folder is missing; the test split is expected there."
    )


def test_empty_split(root, train_folder):
    for path in train_folder.iterdir():
        path.unlink()
    assert "this folder is empty; expected files named case_NNN" in str(complaint(root))


def test_not_an_image(root, train_folder):
    (train_folder / "case_002_slice_0.nii.png").write_text("not a picture")
    assert "case_002_slice_0.nii.png: not a readable image" in str(complaint(root))


def test_truncated_image(root, train_folder):
    path = train_folder / "case_002_slice_2.nii.png"
    path.write_bytes(path.read_bytes()[:60])
    assert "case_002_slice_2.nii.png: not a readable image" in str(complaint(root))


def test_wrong_mode(root, train_folder):
    write_slice(train_folder, "case_002_slice_0.nii.png", mode="RGB")
    assert "mode RGB; expected 8-bit grey (mode L)." in str(complaint(root))


def test_size_that_differs(root, train_folder):
    write_slice(train_folder, "case_010_slice_2.nii.png", shape=(64, 60))
    assert "case_010_slice_2.nii.png: 60 x 64 pixels; the rest of the split is 64 x 64." in str(
        complaint(root)
    )


def test_name_that_does_not_parse(root, train_folder):
    write_slice(train_folder, "case_x_slice_0.png")
    assert "case_x_slice_0.png: the name doesn't parse; expected case_NNN_slice_K" in str(
        complaint(root)
    )


def test_slice_index_out_of_range(root, train_folder):
    write_slice(train_folder, "case_002_slice_32.nii.png")
    assert "slice index 32; expected 0 to 31." in str(complaint(root))


def test_one_slice_twice(root, train_folder):
    write_slice(train_folder, "case_2_slice_0.nii.png")
    assert "the same subject and slice as case_002_slice_0.nii.png; keep one." in str(
        complaint(root)
    )


def test_subject_in_two_splits(root, train_folder):
    write_slice(train_folder, "case_004_slice_0.nii.png")
    for split in ("train", "test"):
        assert "subject 004 is in both" in str(complaint(root, split))


def test_all_faults_in_one_pass(root, train_folder):
    (train_folder / "case_002_slice_0.nii.png").write_text("not a picture")
    write_slice(train_folder, "case_002_slice_2.nii.png", mode="RGB")
    write_slice(train_folder, "case_010_slice_2.nii.png", shape=(60, 60))
    write_slice(train_folder, "brain.png")
    write_slice(train_folder, "case_004_slice_0.nii.png")
    assert len(complaint(root).faults) == 5


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"split": "tests"}, "Unknown split 'tests': choose one of train, validate, test."),
        ({"size": 4}, "A size of 4 pixels is too small for a slice: use 8 or more."),
        ({"crop": "face"}, "Unknown crop 'face'"),
        ({"crop": (0, 40, 32)}, "leaves the 64-pixel frame."),
    ],
)
def test_settings_that_make_no_sense(root, arguments, sentence):
    with pytest.raises(ValueError) as caught:
        load_slices(**{"root": root, "split": "train", **arguments})
    assert sentence in str(caught.value)


def test_real_slices(real_root):
    """The course's layout as it is out there: 144 / 18 / 18 subjects of 32 slices."""
    counts = {}
    for split in ("train", "validate", "test"):
        slices = load_slices(real_root, split)
        subjects, per_subject = np.unique(slices.subjects, return_counts=True)
        assert set(per_subject.tolist()) == {32}
        counts[split] = len(subjects)
    assert min(counts.values()) > 0
