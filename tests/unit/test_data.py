"""Folders of slices: what is read, and the sentence for every fault in them."""

import shutil
import zlib

import numpy as np
import pytest
from PIL import Image

from oasis_helpers import load_slices
from oasis_helpers.convert.layout import check_layout
from oasis_helpers.data import (
    SliceDataError,
    atomic_write,
    brain_box,
    fingerprint,
    read_json,
    shifted_and_mirrored,
    with_mirrored,
    write_bytes,
)

NAME = "case_002_slice_2.nii.png"


def image(path, shape=(64, 64), mode="L"):
    Image.new(mode, shape[::-1]).save(path, format="PNG")


# -------------------------------------------------------------------------------- what is read


def test_slices_are_sorted_scaled_and_numbered(slice_root):
    train = load_slices(slice_root, "train", size=32)
    assert train.images.shape == (6, 32, 32, 1) and train.images.dtype == np.float32
    assert train.images.min() == 0 and 0.6 < train.images.max() <= 1
    assert train.subjects.tolist() == [2, 2, 2, 10, 10, 10]
    assert train.slices.tolist() == [0, 2, 10, 0, 2, 10], "slice 2 comes before slice 10"
    assert train.subjects.dtype == train.slices.dtype == np.int32
    assert train.of_subject(10).slices.tolist() == [0, 2, 10]


def test_root_may_be_the_inner_folder(slice_root):
    inner = load_slices(slice_root / "keras_png_slices_data", "test", size=32)
    np.testing.assert_array_equal(inner.images, load_slices(slice_root, "test", size=32).images)


def test_crop_is_the_box_of_the_training_brains(slice_root):
    box = brain_box(slice_root)
    assert box == (16, 16, 32)  # rows 20-43 with a margin of 4 pixels; as many columns
    cropped = load_slices(slice_root, "test", size=32, crop="brain")
    assert cropped.crop == box
    same = load_slices(slice_root, "test", size=32, crop=box)
    np.testing.assert_array_equal(cropped.images, same.images)
    assert cropped.images.mean() > 2 * load_slices(slice_root, "test", size=32).images.mean()


def test_fingerprint_depends_on_pixels_and_on_subjects(slice_root):
    train, test = (load_slices(slice_root, split, 32) for split in ("train", "test"))
    assert fingerprint(train.of_subject(2)) == fingerprint(train.of_subject(2))
    assert len({fingerprint(part) for part in (train, test, train.of_subject(10))}) == 3


def test_layout_of_all_splits(slice_root):
    layout = check_layout(slice_root / "keras_png_slices_data")
    assert {split: list(files) for split, files in layout.items()} == {
        "train": [(2, 0), (2, 2), (2, 10), (10, 0), (10, 2), (10, 10)],
        "validate": [(3, 0), (3, 2), (3, 10)],
        "test": [(4, 0), (4, 2), (4, 10)],
    }


def test_layout_lists_the_faults_of_all_splits(slice_root, train_folder):
    (train_folder / NAME).write_bytes(b"")
    image(train_folder / "case_004_slice_0.nii.png")
    shutil.rmtree(train_folder.with_name("keras_png_slices_validate"))
    with pytest.raises(SliceDataError) as caught:
        check_layout(slice_root / "keras_png_slices_data")
    words = ("not a readable image", "the validate split is expected", "subject 004 is in both")
    assert len(caught.value.faults) == 3 and all(word in str(caught.value) for word in words)


def test_augmented_slices_are_mirrored_and_shifted_by_whole_pixels():
    images = np.zeros((40, 8, 8, 1), "float32")
    images[:, 3, 2] = 1
    assert with_mirrored(images)[40:, 3, 5].all()
    rows, columns = np.nonzero(shifted_and_mirrored(images, seed=0)[..., 0])[1:]
    assert set(rows) == {2, 3, 4} and set(columns) == {1, 2, 3, 4, 5, 6}
    again = shifted_and_mirrored(images, seed=0)
    np.testing.assert_array_equal(again, shifted_and_mirrored(images, seed=0))
    assert not np.array_equal(again, shifted_and_mirrored(images, seed=1))


# --------------------------------------------------------------------------------------- cache


def test_cache_is_used_and_follows_the_files(slice_root, train_folder, monkeypatch):
    first = load_slices(slice_root, "train", size=32).images
    with monkeypatch.context() as patch:
        patch.setattr("oasis_helpers.data.read_images", None)  # reading again would fail
        np.testing.assert_array_equal(load_slices(slice_root, "train", size=32).images, first)
    Image.new("L", (64, 64), 77).save(train_folder / NAME)
    assert not np.array_equal(load_slices(slice_root, "train", size=32).images, first)


def test_damaged_cache_is_made_again(slice_root, tmp_path):
    first = load_slices(slice_root, "train", size=32).images
    for cached in (tmp_path / "cache").iterdir():
        cached.write_bytes(cached.read_bytes()[:100])
    np.testing.assert_array_equal(load_slices(slice_root, "train", size=32).images, first)


def test_cache_that_cannot_be_written_is_a_warning(slice_root, tmp_path, full_disk, monkeypatch):
    with full_disk(), pytest.warns(UserWarning, match=r"cannot be stored there \(File too l"):
        slices = load_slices(slice_root, "train", 32)
    assert len(slices) == 6 and not list((tmp_path / "cache").iterdir())
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("OASIS_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"set OASIS_CACHE_DIR to another folder"):
        again = load_slices(slice_root, "train", 32)
    np.testing.assert_array_equal(slices.images, again.images)
    assert (tmp_path / "file").read_text() == "mine"


# -------------------------------------------------------------------------------------- faults

FAULTS = []


def fault(*words, **options):
    """Registers a function that breaks the training folder, with the words of the sentence."""

    def register(break_it):
        FAULTS.append(pytest.param(break_it, words, options, id=break_it.__name__))
        return break_it

    return register


@fault("keras_png_slices_train: this folder is missing; the train split is expected there.")
def missing_split(folder):
    folder.rename(folder.parents[1] / "elsewhere")


@fault("keras_png_slices_train: this folder is empty; expected files named case_NNN_slice_K")
def empty_split(folder):
    for path in folder.iterdir():
        path.unlink()


@fault(f"{NAME}: not a readable image (the file is empty); copy or download it again.")
def empty_file(folder):
    (folder / NAME).write_bytes(b"")


@fault(f"{NAME}: not a readable image (", "); copy or download it again.")
def truncated_file(folder):
    (folder / NAME).write_bytes((folder / NAME).read_bytes()[:70])


@fault(f"{NAME}: not a readable image (no known format); copy or download it again.")
def other_kind_of_file(folder):
    (folder / NAME).write_text("case,slice\n2,2\n")


@fault(f"{NAME}: not a readable image (", "); copy or download it again.")
def changed_bytes(folder):
    content = bytearray((folder / NAME).read_bytes())
    content[50] ^= 0xFF
    (folder / NAME).write_bytes(content)


@fault(f"{NAME}: not a readable image (", "decompression bomb")
def image_that_would_fill_the_memory(folder):
    content = bytearray((folder / NAME).read_bytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (folder / NAME).write_bytes(content)


@fault(f"{NAME}: mode RGB; expected 8-bit grey (mode L).")
def colour(folder):
    image(folder / NAME, mode="RGB")


@fault(f"{NAME}: mode I;16; expected 8-bit grey (mode L).")
def sixteen_bits(folder):
    image(folder / NAME, mode="I;16")


@fault(f"{NAME}: 60 x 64 pixels; the rest of the split is 64 x 64.")
def one_of_another_size(folder):
    image(folder / NAME, (64, 60))


@fault("keras_png_slices_train: 60 x 64 pixels; expected square slices.")
def none_is_square(folder):
    for path in folder.iterdir():
        image(path, (64, 60))


@fault("case_two.png: the name does not parse; expected case_NNN_slice_K.nii.png.")
def other_name(folder):
    image(folder / "case_two.png")


@fault("case_002_slice_32.nii.png: slice index 32; expected 0 to 31.")
def slice_index_of_no_slice(folder):
    image(folder / "case_002_slice_32.nii.png")


@fault(f"case_2_slice_2.nii.png: the same subject and slice as {NAME}; keep one.")
def one_slice_twice(folder):
    image(folder / "case_2_slice_2.nii.png")


@fault("subject 004 is in both train and test; keep each subject in one split.")
def subject_in_two_splits(folder):
    image(folder / "case_004_slice_5.nii.png")


@fault("subject 002 is in both test and train; keep each subject in one split.", split="test")
def subject_of_training_in_the_test_split(folder):
    image(folder.with_name("keras_png_slices_test") / "case_002_slice_5.nii.png")


@fault("case_002_slice_5.nii.png: a folder or a link that leads nowhere; expected a PNG file.")
def slice_that_links_to_itself(folder):
    (folder / "case_002_slice_5.nii.png").symlink_to("case_002_slice_5.nii.png")


@fault("case_002_slice_5.nii.png: a folder or a link that leads nowhere; expected a PNG file.")
def slice_that_is_a_folder(folder):
    (folder / "case_002_slice_5.nii.png").mkdir()


@fault("keras_png_slices_data: every training slice is black; expected brains.", crop="brain")
def black_slices(folder):
    for path in folder.iterdir():
        image(path)


@pytest.mark.parametrize(("break_it", "words", "options"), FAULTS)
def test_fault_in_a_folder_is_named(slice_root, train_folder, refused, break_it, words, options):
    break_it(train_folder)
    arguments = {"split": "train", "size": 16} | options
    refused(lambda: load_slices(slice_root, **arguments), *words, error=SliceDataError)


def test_root_that_is_no_folder(slice_root, train_folder, refused):
    (slice_root / "loop").symlink_to("loop")
    for name in ("nowhere", "loop"):
        words = f"{name}: this folder is missing; give the one that holds keras_png_slices_data/."
        refused(lambda root=slice_root / name: load_slices(root, "train"), words)
    refused(lambda: load_slices(train_folder / NAME, "train"), f"{NAME}: this is a file, not a")


def test_all_faults_are_found_in_one_pass(slice_root, train_folder):
    (train_folder / NAME).write_text("not an image")
    image(train_folder / "case_002_slice_0.nii.png", mode="RGB")
    image(train_folder / "case_010_slice_2.nii.png", (60, 60))
    image(train_folder / "brain.png")
    image(train_folder / "case_004_slice_0.nii.png")
    with pytest.raises(SliceDataError) as caught:
        load_slices(slice_root, "train")
    assert len(caught.value.faults) == 5
    for number in range(30):
        image(train_folder / f"brain{number}.png")
    with pytest.raises(SliceDataError, match=r"\.\.\. and 15 more faults\."):
        load_slices(slice_root, "train")


def test_folders_and_files_that_may_not_be_read(slice_root, open_folder, as_another_user):
    root = shutil.copytree(slice_root, open_folder / "slices")
    train = root / "keras_png_slices_data" / "keras_png_slices_train"
    train.chmod(0)
    with as_another_user(), pytest.raises(SliceDataError) as caught:
        load_slices(root, "train", 16)
    train.chmod(0o755)
    expected = f"{train}: this folder cannot be read (Permission denied); allow reading it."
    assert str(caught.value) == expected
    (train / NAME).chmod(0)
    with as_another_user(), pytest.raises(SliceDataError, match=rf"{NAME}: .*Permission denied"):
        load_slices(root, "train", 16)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "exam"}, "Unknown split 'exam': choose one of train, validate, test."),
        ({"size": 4}, "A size of 4 pixels is too small for a slice: use 8 or more."),
        ({"size": "80"}, "size = '80': expected a whole number of pixels, such as 80."),
        ({"crop": "head"}, "Unknown crop 'head': use None, \"brain\" or (top, left, side)."),
        ({"crop": (1, 2)}, 'Unknown crop (1, 2): use None, "brain" or (top, left, side).'),
        ({"crop": (40, 40, 40)}, "The crop (40, 40, 40) (top, left, side) leaves the 64-pixel"),
    ],
)
def test_settings_out_of_range(slice_root, refused, arguments, words):
    refused(lambda: load_slices(**{"root": slice_root, "split": "train"} | arguments), words)


# --------------------------------------------------------------------------------------- files


def test_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, full_disk):
    file = tmp_path / "scores.json"
    file.write_text("before")
    with full_disk(), pytest.raises(OSError, match="File too large") as caught:
        write_bytes(file, bytes(1000))
    assert caught.value.filename == str(file)
    with pytest.raises(KeyError), atomic_write(file) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
    with open(file) as reader:  # a reader that opened the old file still sees the old file
        write_bytes(file, b"after")
        assert reader.read() == "before"
    assert [path.read_text() for path in tmp_path.iterdir()] == ["after"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read ("),
        (b'{"data": ', "cannot be read ("),
        (b"\xff\xfe\x00", "cannot be read ("),
        (b"[1, 2]", "is no object"),
    ],
)
def test_json_that_cannot_be_used(tmp_path, refused, content, words):
    file = tmp_path / "scores.json"
    if content is not None:
        file.write_bytes(content)
    advice = "restore it with git, or remove it and make it again."
    refused(lambda: read_json(file), f"{file}: {words}", advice)
