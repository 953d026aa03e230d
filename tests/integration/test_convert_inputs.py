"""Sources as people have them: each gives the right slices, or one true sentence."""

import io
import shutil
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from oasis_helpers.convert import convert
from oasis_helpers.data import LAYOUT_FOLDER, SPLITS, SliceDataError

SUBJECTS = {"train": (1, 2, 3), "validate": (4,), "test": (5,)}
INDICES = (0, 1)
APPLE_DOUBLE = b"\0\5\26\7\0\2\0\0Mac OS X        "  # how a ._ file of macOS begins
INPUTS = []


def ellipse(subject, index, height=64, width=64):
    """uint8 (height, width): nobody's brain, another one for each subject and index."""
    rows, columns = np.mgrid[:height, :width]
    y, x = 2 * rows / height - 1, 2 * columns / width - 1
    inside = (x / 0.55) ** 2 + (y / 0.7) ** 2 < 1
    return (inside * (100 + 10 * subject + index)).astype("uint8")


def write_layout(root, inner=LAYOUT_FOLDER, subjects=SUBJECTS, indices=INDICES, side=64):
    for split, cases in subjects.items():
        folder = root / inner / f"keras_png_slices_{split}"
        folder.mkdir(parents=True, exist_ok=True)
        for case in cases:
            for index in indices:
                file = folder / f"case_{case:03d}_slice_{index}.nii.png"
                Image.fromarray(ellipse(case, index, side, side)).save(file)
    return root / inner


def write_pictures(root, name="OAS1_{:04d}_MR1_mpr-1_{}.png", change=lambda pixels: pixels):
    for case in (1, 2, 3, 4):
        folder = root / "Data" / ("Non Demented", "Mild Dementia")[case % 2]
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(32):
            pixels = change(ellipse(case, index, 64, 48))
            Image.fromarray(pixels).save(folder / name.format(case, 100 + index))
    return root


def members(root):
    """{name: content} of a layout."""
    folder = write_layout(root / "scratch").parent
    paths = sorted(folder.rglob("*.png"))
    content = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    shutil.rmtree(folder)
    return content


def write_zip(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            member = zipfile.ZipInfo("member")
            member.filename = name  # ZipInfo itself would change some names
            archive.writestr(member, data)
    return path


def write_tar(path, content, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def source(expected):
    """Keeps a function that makes a source; a text is the fault, a number counts the slices."""

    def keep(make):
        INPUTS.append(pytest.param(make, expected, id=make.__name__))
        return make

    return keep


# ------------------------------------------------------------------------------------- the layout


@source(10)
def good(root):
    write_layout(root)


@source(10)
def between(root):
    write_layout(root, f"{LAYOUT_FOLDER}/slices")


@source(10)
def doubled(root):
    write_layout(root, f"{LAYOUT_FOLDER}/{LAYOUT_FOLDER}")


@source(10)
def frames_of_512(root):
    write_layout(root, side=512)


@source("keras_png_slices_test/case_005_slice_0.nii.png of 96 x 96 pixels")
def frames_mixed(root):
    write_layout(root, subjects={"train": (1, 2, 3), "validate": (4,)})
    write_layout(root, subjects={"test": (5,)}, side=96)


@source(10)
def one_dot(root):
    file = write_layout(root) / "keras_png_slices_train" / "case_001_slice_0.nii.png"
    pixels = np.array(Image.open(file))
    pixels[0, 0] = 20
    Image.fromarray(pixels).save(file)


@source("subject 001 of train has no slice 1, which others have; add it, or remove the subject.")
def missing_slices(root):
    (write_layout(root) / "keras_png_slices_train" / "case_001_slice_1.nii.png").unlink()


@source("without slices of the test split; expected keras_png_slices_test/case_NNN")
def missing_split(root):
    shutil.rmtree(write_layout(root) / "keras_png_slices_test")


@source("without slices of the test split; expected keras_png_slices_test/case_NNN")
def empty_split(root):
    folder = write_layout(root) / "keras_png_slices_test"
    shutil.rmtree(folder)
    folder.mkdir()


@source("outside of the folders keras_png_slices_train, _validate, _test; put them there.")
def short_names(root):
    folder = write_layout(root)
    for split in SPLITS:
        (folder / f"keras_png_slices_{split}").rename(folder / split)


@source("outside of the folders keras_png_slices_train, _validate, _test; put them there.")
def no_splits(root):
    for split in SPLITS:
        shutil.copytree(write_layout(root) / f"keras_png_slices_{split}", root, dirs_exist_ok=True)
        shutil.rmtree(root / LAYOUT_FOLDER)


@source(10)
def linked_split(root):
    folder = write_layout(root) / "keras_png_slices_test"
    folder.rename(root / "elsewhere")
    folder.symlink_to(root / "elsewhere")


@source(10)
def linked_set(root):
    elsewhere = root.with_name("elsewhere")
    write_layout(elsewhere)
    (root / LAYOUT_FOLDER).symlink_to(elsewhere / LAYOUT_FOLDER)
    (elsewhere / LAYOUT_FOLDER / "back").symlink_to(elsewhere)


@source("holds the layout in several places, a/, b/; give one.")
def two_sets(root):
    write_layout(root, "a")
    write_layout(root, "b")


@source(10)
def files_of_windows_and_of_a_file_server(root):
    folder = write_layout(root) / "keras_png_slices_train"
    for name in ("Thumbs.db", "desktop.ini", "@eaDir/case_001_slice_0.nii.png", ".git/x.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\xd0\xcf\x11\xe0")


@source(10)
def folder_of_macos(root):
    write_layout(root)
    for path in write_layout(root, f"__MACOSX/{LAYOUT_FOLDER}").rglob("*.png"):
        path.write_bytes(APPLE_DOUBLE)
        path.rename(path.with_name(f"._{path.name}"))


@source("case_20231105001_slice_0.nii.png: the name does not parse")
def long_number(root):
    file = write_layout(root) / "keras_png_slices_train" / "case_001_slice_0.nii.png"
    file.rename(file.with_name("case_20231105001_slice_0.nii.png"))


@source("_slice_0.nii.png: the name does not parse")
def digits_of_another_script(root):
    file = write_layout(root) / "keras_png_slices_train" / "case_001_slice_0.nii.png"
    file.rename(file.with_name("case_٠٠١_slice_0.nii.png"))


@source(r"case_\x1b[2J_slice_0.nii.png: the name does not parse")
def control_characters(root):
    file = write_layout(root) / "keras_png_slices_train" / "case_001_slice_0.nii.png"
    file.rename(file.with_name("case_\x1b[2J_slice_0.nii.png"))


@source("case_001_slice_0.nii.png: not a readable image ([Errno 2]")
def link_to_nowhere(root):
    file = write_layout(root) / "keras_png_slices_train" / "case_001_slice_0.nii.png"
    file.unlink()
    file.symlink_to("nowhere")


@source("case_001_slice_0.nii.png: mode L with 4 bits; expected 8-bit grey (mode L).")
def grey_of_four_bits(root):
    file = write_layout(root) / "keras_png_slices_train" / "case_001_slice_0.nii.png"
    file.write_bytes(png_of_depth(4, 64, 64))


@source("case_001_slice_0.nii.png: mode L with transparency; expected 8-bit grey (mode L).")
def grey_with_a_transparent_level(root):
    file = write_layout(root) / "keras_png_slices_train" / "case_001_slice_0.nii.png"
    Image.open(file).save(file, transparency=0)


# --------------------------------------------------------------------------------------- archives


@source(10)
def zip_with_backslashes(root):
    files = {name.replace("/", "\\"): content for name, content in members(root).items()}
    return write_zip(root / "slices.zip", files)


@source(10)
def zip_of_the_three_splits(root):
    files = {name.partition("/")[2]: content for name, content in members(root).items()}
    return write_zip(root / "slices.ZIP", files | {"__MACOSX/keras_png_slices_test/._x": b"x"})


@source(10)
def zip_in_a_folder(root):
    write_zip(root / "slices.ZIP", members(root))


@source(10)
def tar(root):
    return write_tar(root / "slices.tar", {f"./{n}": c for n, c in members(root).items()})


@source(10)
def compressed_tar(root):
    files = dict(reversed(members(root).items()))
    return write_tar(root / "slices.tgz", files, "w:gz")


@source("not a readable archive (no end mark follows its last whole member)")
def tar_that_ends_between_members(root):
    path = write_tar(root / "slices.tar", members(root))
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: last.offset])
    return path


@source("not a readable archive (no end mark follows its last whole member)")
def two_tars_in_one_file(root):
    path = write_tar(root / "slices.tar", members(root))
    path.write_bytes(2 * path.read_bytes())
    return path


@source("not a readable archive (Not a gzipped file")
def compressed_tar_with_garbage_after_its_end(root):
    path = write_tar(root / "slices.tar.gz", members(root), "w:gz")
    path.write_bytes(path.read_bytes() + b"<html>Bad gateway</html>")
    return path


@source("not a readable archive (Compressed file ended before the end-of-stream marker")
def compressed_tar_without_its_last_bytes(root):
    path = write_tar(root / "slices.tar.gz", members(root), "w:gz")
    path.write_bytes(path.read_bytes()[:-6])
    return path


@source("more.tar.gz: not a readable archive ([Errno 2] No such file or directory")
def archive_that_is_a_link_to_nowhere(root):
    write_layout(root)
    (root / "more.tar.gz").symlink_to("nowhere")


# --------------------------------------------------------------------------------------- pictures


def png_of_depth(depth, height=64, width=48, colour=0):
    """A black PNG of another depth, which Pillow itself does not write."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    row = bytes(1 + width * depth * (3 if colour else 1) // 8)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(row * height)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in chunks)


def picture(root, case=2, number=105):
    return root / "Data" / "Non Demented" / f"OAS1_{case:04d}_MR1_mpr-1_{number}.png"


@source(128)
def pictures(root):
    write_pictures(root, "OAS1_{:04d}_MR1_mpr-1_{}.jpg")


@source(128)
def grey_pictures_in_colour(root):
    write_pictures(root, change=lambda grey: np.stack([grey, grey, grey, grey * 0 + 255], -1))


@source(128)
def pictures_with_twins_of_macos(root):
    for path in list(write_pictures(root).rglob("*.png")):
        path.with_name(f"._{path.name}").write_bytes(APPLE_DOUBLE)


@source("not a usable picture (16 bits, mode I;16; expected 8-bit grey or colour)")
def pictures_of_16_bits(root):
    write_pictures(root, change=lambda pixels: pixels.astype("uint16") * 16)


@source("not a usable picture (16 bits, mode RGB; expected 8-bit grey or colour)")
def a_colour_picture_of_16_bits(root):
    picture(write_pictures(root)).write_bytes(png_of_depth(16, colour=2))


@source("not a usable picture (coloured or transparent; expected grey and opaque pixels)")
def pictures_on_a_transparent_ground(root):
    write_pictures(root, change=lambda grey: np.stack([grey, grey, grey, grey], -1))


@source("not a usable picture (coloured or transparent; expected grey and opaque pixels)")
def a_coloured_picture(root):
    grey = np.asarray(Image.open(picture(write_pictures(root))))
    Image.fromarray(np.stack([grey, grey // 2, grey], -1)).save(picture(root))


@source("OAS1_0002_MR1_mpr-1_105.png: not a usable picture (64 x 64 pixels; expected one size")
def pictures_of_two_sizes(root):
    Image.fromarray(ellipse(2, 5)).save(picture(write_pictures(root)))


@source("not a usable picture (13000 x 13000 pixels; expected one size, at most 2048 a side)")
def pictures_that_declare_many_pixels(root):
    data = bytearray(png_of_depth(8))
    data[16:24] = (13000).to_bytes(4, "big") * 2
    data[29:33] = zipfile.crc32(data[12:29]).to_bytes(4, "big")
    for path in write_pictures(root).rglob("*.png"):
        path.write_bytes(data)


@source("OAS1_0002_MR1_mpr-1_105.png: not a usable picture (it holds 60 of 64 rows)")
def a_colour_picture_without_its_last_rows(root):
    content = bytearray(png_of_depth(8, height=60, colour=2))
    content[20:24] = (64).to_bytes(4)
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    picture(write_pictures(root)).write_bytes(content)


@source("not a usable picture (its chunk IEND is damaged or truncated)")
def a_picture_without_its_end(root):
    content = picture(write_pictures(root)).read_bytes()
    picture(root).write_bytes(content[:-12])


@source("OAS1_0002_MR1_mpr-1_105.png: not a usable picture (no known format)")
def another_format(root):
    Image.open(picture(write_pictures(root))).save(picture(root), "BMP")


@source("OAS1_0002_MR1 has no picture number 105 (1 of 32 are missing)")
def picture_that_is_a_link_to_a_device(root):
    picture(write_pictures(root)).unlink()
    picture(root).symlink_to("/dev/zero")


@source("pictures with other names (such as Data/Mild Dementia/OAS1_0001_MR1_slice_100.png) than")
def pictures_without_scan(root):
    write_pictures(root, "OAS1_{:04d}_MR1_slice_{}.png")


@pytest.mark.parametrize(("make", "expected"), INPUTS)
def test_every_source_gives_its_slices_or_one_true_sentence(make, expected, tmp_path):
    root, target = tmp_path / "source", tmp_path / "slices"
    root.mkdir()
    path = make(root) or root
    if isinstance(expected, int):
        convert(path, target)
        assert len(list(target.rglob("case_*_slice_*.nii.png"))) == expected
        splits = {file.parent.name for file in target.rglob("case_*.png")}
        assert splits == {f"keras_png_slices_{split}" for split in SPLITS}
        return
    with pytest.raises(SliceDataError) as caught:
        convert(path, target)
    faults = caught.value.faults
    assert expected in faults[0], faults[0]
    assert all(fault.isprintable() and fault.endswith(".") for fault in faults)
    assert not target.exists()


TABLE = "case,split\n1,train\n2,train\n3,validate\n4,test\n"


@pytest.mark.parametrize(
    "content",
    [
        TABLE.encode(),
        b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode(),
        TABLE.replace(",", ";").encode("cp1252"),
        TABLE.replace(",", "\t").encode(),
        TABLE.encode() + b",\n",
    ],
    ids=["plain", "Excel, UTF-8", "Excel, German", "tabs", "empty row"],
)
def test_tables_of_splits_are_read_as_excel_saves_them(content, tmp_path):
    (tmp_path / "splits.csv").write_bytes(content)
    source, target = write_pictures(tmp_path / "source"), tmp_path / "slices"
    convert(source, target, splits=tmp_path / "splits.csv")
    files = target.rglob("case_*_slice_0.nii.png")
    assert {(path.name[5:8], path.parent.name.rpartition("_")[2]) for path in files} == {
        *{("001", "train"), ("002", "train"), ("003", "validate"), ("004", "test")}
    }
