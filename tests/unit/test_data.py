"""Folders of slices: what is read, and the sentence for every fault in them."""

import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oasis_helpers import load_slices
from oasis_helpers.convert.layout import check_layout
from oasis_helpers.data import (
    SliceDataError,
    SliceSet,
    atomic_write,
    brain_box,
    fingerprint,
    read_json,
    shifted_and_mirrored,
    with_mirrored,
    write_bytes,
)

NAME = "case_002_slice_2.nii.png"


def image(path, shape=(64, 64), mode="L", form="PNG"):
    Image.new(mode, shape[::-1]).save(path, format=form)


def chunk(kind, body):
    return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)


def png(rows, side=64, depth=8, interlace=0, more=b""):
    """A grey PNG of these bytes, each row with its filter byte before it."""
    header = side.to_bytes(4) * 2 + bytes([depth, 0, 0, 0, interlace])
    parts = chunk(b"IHDR", header), more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def of_size(size, folder):
    """Enlarges or reduces every slice of a split."""
    for path in folder.iterdir():
        Image.open(path).resize((size, size), Image.Resampling.NEAREST).save(path, format="PNG")


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


def test_box_for_another_frame_is_scaled_with_a_warning(slice_root, train_folder):
    box = brain_box(slice_root)
    before = load_slices(slice_root, "test", 32, box, 64)
    assert (before.crop, before.side) == (box, 64)
    for split in ("train", "validate", "test"):
        of_size(128, train_folder.with_name(f"keras_png_slices_{split}"))
    words = r"_test: 128 x 128 pixels; the weights' frame is of 64 x 64, so it is scaled"
    with pytest.warns(UserWarning, match=words):
        scaled = load_slices(slice_root, "test", 32, box, 64)
    assert (scaled.crop, scaled.side) == (box, 64)
    assert np.abs(scaled.images - before.images).mean() < 0.01
    assert np.abs(load_slices(slice_root, "test", 32, box).images - before.images).mean() > 0.1


def test_grey_apart_from_the_brains_does_not_move_their_box(slice_root, train_folder, recwarn):
    box = brain_box(slice_root)
    assert not recwarn.list
    words = rf"_train: grey pixels at the frame's edge or far from .* in 1 files, {NAME}; expected"
    for at in ((0, 0), (slice(3), 63), (slice(60, 64), slice(None))):
        pixels = np.array(Image.open(train_folder / NAME))
        pixels[at] = 20
        Image.fromarray(pixels).save(train_folder / NAME)
        with pytest.warns(UserWarning, match=words):
            assert brain_box(slice_root) == box
    Image.fromarray(255 - pixels).save(train_folder / NAME)
    with pytest.warns(UserWarning, match=words):
        assert brain_box(slice_root) == (0, 0, 64), "the brain is part of a grey background"


def test_interlaced_slices_are_read(slice_root, train_folder):
    pixels = np.asarray(Image.open(train_folder / NAME))
    adam7 = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2))
    rows = b"".join(
        b"\0" + row.tobytes()
        for top, down, left, right in (*adam7, (1, 2, 0, 1))
        for row in pixels[top::down, left::right]
    )
    before = load_slices(slice_root, "train", 32).images
    (train_folder / NAME).write_bytes(png(rows, interlace=1))
    np.testing.assert_array_equal(load_slices(slice_root, "train", 32).images, before)


def test_files_that_systems_leave_are_passed_over(slice_root, train_folder):
    for name in ("._case_002_slice_0.nii.png", ".DS_Store", "Thumbs.db", "desktop.ini", "Icon\r"):
        (train_folder / name).write_bytes(b"\0\5\26\7")
    (train_folder / "@eaDir").mkdir()
    assert len(load_slices(slice_root, "train", 32)) == 6
    assert len(check_layout(slice_root / "keras_png_slices_data")["train"]) == 6


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
    words = ("not a readable image", "without slices of the validate split", "004 is in both")
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


def test_files_changed_without_a_trace_are_read_again(slice_root, train_folder):
    other = train_folder / "case_010_slice_2.nii.png"
    first = load_slices(slice_root, "train", 32).images
    times = {path: path.stat().st_mtime_ns for path in (train_folder / NAME, other)}
    for path, grey in zip(times, (33, 44)):  # repaired by `rsync -t`
        path.write_bytes(png((b"\0" + bytes([grey] * 64)) * 64))
        os.utime(path, ns=(0, 10**18))
    second = load_slices(slice_root, "train", 32).images
    assert not np.array_equal(first[1], second[1])
    assert (train_folder / NAME).stat().st_size == other.stat().st_size
    (train_folder / NAME).rename(train_folder / "other")
    other.rename(train_folder / NAME)
    (train_folder / "other").rename(other)
    swapped = load_slices(slice_root, "train", 32).images
    np.testing.assert_array_equal(swapped[[1, 4]], second[[4, 1]])


@pytest.mark.parametrize("content", ["shorter", "another's", "one bit", "text", "folder", "pipe"])
def test_cache_of_other_content_is_made_again(slice_root, tmp_path, content):
    first, box = load_slices(slice_root, "train", 32).images, brain_box(slice_root)
    for cached in list((tmp_path / "cache").iterdir()):
        array, whole = np.load(cached), bytearray(cached.read_bytes())
        whole[len(whole) // 2] ^= 1
        cached.unlink()
        if content == "pipe":
            getattr(os, "mkfifo", os.mkdir)(cached)  # Windows has no pipes in folders
        elif content == "folder":
            cached.mkdir()
        elif content == "one bit":
            cached.write_bytes(whole)
        elif content == "text":
            cached.write_text("mine")
        else:
            with open(cached, "wb") as file:
                np.save(file, array[:4] if content == "shorter" else array[::-1])
    for _ in range(2):
        np.testing.assert_array_equal(load_slices(slice_root, "train", 32).images, first)
    assert brain_box(slice_root) == box


def test_cache_in_the_home_folder(slice_root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OASIS_CACHE_DIR", "~/copies")
    load_slices(slice_root, "train", 32)
    assert len(list((tmp_path / "copies").iterdir())) == 1


def test_copies_of_a_read_only_course_are_used_and_own_ones_go_home(
    slice_root, tmp_path, monkeypatch
):
    shared, home = tmp_path / "course" / "data" / "cache", tmp_path / "home" / "my_brain_course"
    monkeypatch.delenv("OASIS_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("oasis_helpers.REPOSITORY", tmp_path / "course")
    monkeypatch.setattr("oasis_helpers.data.REPOSITORY", tmp_path / "course")
    shared.mkdir(parents=True)
    load_slices(slice_root, "train", 32)
    assert len(list(shared.iterdir())) == 1
    monkeypatch.setattr("os.access", lambda path, mode: False)
    load_slices(slice_root, "validate", 32)
    assert len(list(shared.iterdir())) == len(list((home / "data" / "cache").iterdir())) == 1
    monkeypatch.setattr("oasis_helpers.data.read_images", None)  # reading again would fail
    assert len(load_slices(slice_root, "train", 32)) == 6


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


@fault("keras_png_slices_train: this folder is missing; expected the train split.")
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


@fault(f"{NAME}: not a readable image (no PNG file); copy or download it again.")
def other_kind_of_file(folder):
    (folder / NAME).write_text("case,slice\n2,2\n")


@fault(f"{NAME}: not a readable image (", "); copy or download it again.")
def changed_bytes(folder):
    content = bytearray((folder / NAME).read_bytes())
    content[50] ^= 0xFF
    (folder / NAME).write_bytes(content)


def declare(path, side):
    content = bytearray(path.read_bytes())
    content[16:24] = side.to_bytes(4) * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    path.write_bytes(content)


@fault("_train: 13000 x 13000 pixels; expected squares of up to 2048.")
def images_that_would_fill_the_memory_together(folder):
    for path in folder.iterdir():
        declare(path, 13_000)


@fault(f"{NAME}: not a readable image (", "decompression bomb")
def image_that_would_fill_the_memory(folder):
    declare(folder / NAME, 60_000)


@fault(f"{NAME}: mode RGB; expected 8-bit grey (mode L).")
def colour(folder):
    image(folder / NAME, mode="RGB")


@fault(f"{NAME}: mode I;16 with 16 bits; expected 8-bit grey (mode L).")
def sixteen_bits(folder):
    image(folder / NAME, mode="I;16")


@fault(f"{NAME}: mode L with 4 bits; expected 8-bit grey (mode L).")
def four_bits(folder):
    (folder / NAME).write_bytes(png(bytes(33 * 64), depth=4))


@fault(f"{NAME}: mode L with transparency; expected 8-bit grey (mode L).")
def transparent_grey(folder):
    (folder / NAME).write_bytes(png(bytes(65 * 64), more=chunk(b"tRNS", b"\0\0")))


@fault(f"{NAME}: not a readable image (its chunk IDAT is damaged or truncated); copy or")
def pixels_of_another_checksum(folder):
    content = bytearray((folder / NAME).read_bytes())
    content[-14] ^= 1  # before the 12 bytes of the last chunk
    (folder / NAME).write_bytes(content)


@fault(f"{NAME}: not a readable image (index out of range); copy or download it again.")
def colour_profile_that_is_cut(folder):
    content = png(bytes(65 * 64))
    (folder / NAME).write_bytes(content[:-12] + chunk(b"iCCP", b"x\0") + content[-12:])


@fault(f"{NAME}: not a readable image (it holds 31 of 64 rows); copy or download it again.")
def rows_that_are_missing(folder):
    (folder / NAME).write_bytes(png(bytes(65 * 31)))


@fault(f"{NAME}: not a readable image (its chunk IEND is damaged or truncated); copy or")
def end_that_is_missing(folder):
    (folder / NAME).write_bytes(png(bytes(65 * 64))[:-12])


@fault(f"{NAME}: not a readable image (no PNG file); copy or download it again.")
def jpeg_under_the_name_of_a_png(folder):
    image(folder / NAME, form="JPEG")


@fault(f"{NAME}: not a readable image (no PNG file); copy or download it again.")
def postscript_under_the_name_of_a_png(folder):
    image(folder / NAME, form="EPS")


@fault(f"{NAME}: 60 x 64 pixels; the rest of the split is 64 x 64.")
def one_of_another_size(folder):
    image(folder / NAME, (64, 60))


@fault("keras_png_slices_train: 60 x 64 pixels; expected squares of up to 2048.")
def none_is_square(folder):
    for path in folder.iterdir():
        image(path, (64, 60))


@fault("case_two.png: the name does not parse; expected case_NNN_slice_K.nii.png, with up")
def other_name(folder):
    image(folder / "case_two.png")


@fault("case_20231105001_slice_0.nii.png: the name does not parse; expected case_NNN_slice_K.nii")
def number_of_eleven_digits(folder):
    image(folder / "case_20231105001_slice_0.nii.png")


@fault(
    "case_٠٠٢_slice_5.nii.png: the name does not parse; expected case_NNN_slice_K.nii.png, with up"
)
def digits_of_another_script(folder):
    image(folder / "case_٠٠٢_slice_5.nii.png")


@fault(
    r"case\x1b[2J\n\u202e.png: the name does not parse; expected case_NNN_slice_K.nii.png, with up"
)
def control_characters(folder):
    image(folder / "case\x1b[2J\n\u202e.png")


@fault(r"case_\udcff.png: the name does not parse; expected case_NNN_slice_K.nii.png, with up")
def name_that_is_not_text(folder):
    image(os.fsencode(folder) + b"/case_\xff.png")


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


@fault("_data: subject 002 of train has no slice 2, which others have; add it, or remove the subj")
def slice_that_is_missing(folder):
    (folder / NAME).unlink()


@fault("_data: subject 004 of test has no slice 0, 10, which others have; add it, or remove the s")
def slices_that_are_missing_in_another_split(folder):
    for index in (0, 10):
        (folder.with_name("keras_png_slices_test") / f"case_004_slice_{index}.nii.png").unlink()


@fault("case_002_slice_0.nii.png of 64 x 64, keras_png_slices_validate/case_003_slice_0.nii.png of")
def split_of_another_size(folder):
    of_size(128, folder.with_name("keras_png_slices_test"))


@fault("case_002_slice_5.nii.png: not a regular file; expected a PNG file.")
def slice_that_is_a_pipe(folder):
    getattr(os, "mkfifo", os.mkdir)(folder / "case_002_slice_5.nii.png")  # none on Windows


@fault("case_002_slice_5.nii.png: not a regular file; expected a PNG file.")
def slice_that_links_to_a_device(folder):
    (folder / "case_002_slice_5.nii.png").symlink_to("/dev/zero")


@fault("case_002_slice_5.nii.png: not a regular file; expected a PNG file.")
def slice_that_links_to_itself(folder):
    (folder / "case_002_slice_5.nii.png").symlink_to("case_002_slice_5.nii.png")


@fault("case_002_slice_5.nii.png: not a regular file; expected a PNG file.")
def slice_that_is_a_folder(folder):
    (folder / "case_002_slice_5.nii.png").mkdir()


@fault("keras_png_slices_train: every slice is black; expected brains.", crop="brain")
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
        ({"size": 4}, "size = 4: expected a whole number of pixels, 8 or more."),
        ({"size": "80"}, "size = '80': expected a whole number of pixels, 8 or more."),
        ({"crop": "head"}, "Unknown crop 'head': use None, \"brain\" or (top, left, side)."),
        ({"crop": 5}, 'Unknown crop 5: use None, "brain" or (top, left, side).'),
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
    with open(file, encoding="utf-8") as reader:  # who opened the old file still sees it
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


def test_lower_neighbours_are_of_the_same_subject():
    numbers = {"subjects": [1, 1, 1, 4, 4, 5], "slices": [0, 1, 3, 3, 4, 5]}
    arrays = {name: np.array(value, "int32") for name, value in numbers.items()}
    slices = SliceSet(np.zeros((6, 8, 8, 1), "float32"), **arrays, split="train", root=Path())
    assert slices.below().tolist() == [-1, 0, -1, -1, 3, -1]
    codes = np.arange(6)[:, None, None] * np.ones((1, 2, 2), "int32")
    assert slices.codes_below(codes)[:, 0, 0].tolist() == [-1, 0, -1, -1, 3, -1]
