"""The kinds of source: discs, pictures, the course's layout, and what is none of them."""

import io
import json
import shutil
from pathlib import PureWindowsPath

import numpy as np
import pytest
from PIL import Image

from oasis_helpers import load_slices
from oasis_helpers.convert import convert, output, sources
from oasis_helpers.convert.archives import SourceFile
from oasis_helpers.data import LAYOUT_FOLDER, SPLITS, SliceDataError
from tests.unit.convert.examples import (
    CASES,
    COLUMNS,
    ROWS,
    as_png,
    contents,
    faults_of,
    layout_of,
    t88_name,
    write_files,
    write_zip,
)


def remarks_of(target):
    return json.loads((target / output.PLAN).read_text())["remarks"]


# ----------------------------------------------------------------------------- official OASIS-1


def test_discs_give_back_the_slices_that_their_volumes_were_made_of(converted, pngs):
    layout = converted / LAYOUT_FOLDER
    for case, files in pngs.items():
        for file in files:
            copy = layout / f"keras_png_slices_{CASES[case]}" / file.name
            assert copy.read_bytes() == file.read_bytes()
    assert len(list(layout.glob("*/*"))) == 32 * len(CASES), "the second session is left out"
    assert remarks_of(converted) == ["1 repeated sessions left out."]
    for split in SPLITS:
        subjects = set(load_slices(converted, split, size=64).subjects.tolist())
        assert subjects == {case for case in CASES if CASES[case] == split}


def test_faults_of_file_names_and_contents_are_reported_at_once(disc, tmp_path):
    source = tmp_path / "disc1"
    shutil.copytree(disc, source)
    (source / f"{t88_name(2)}.img").unlink()
    (source / f"{t88_name(98)}.hdr").unlink()
    image = source / f"{t88_name(98)}.img"
    image.with_name(f"copy_{image.name}").write_bytes(b"")
    (source / f"{t88_name(5)}.hdr").write_bytes(b"")
    faults = faults_of(source, tmp_path / "other")
    assert len(faults) == 4 and not list(tmp_path.glob("other*"))
    assert f"{t88_name(2)}.hdr: its .img is missing; both are needed." in faults
    assert f"{t88_name(98)}.img: its .hdr is missing; both are needed." in faults
    assert f"{t88_name(5)}.hdr: the file is empty; download it again." in faults
    assert any(fault.endswith("_t88_masked_gfc.img; remove one of them.") for fault in faults)


# ------------------------------------------------------------------------------------- pictures


@pytest.fixture
def pictures(pngs, tmp_path):
    """Three subjects' slices as JPEGs in class folders, turned by a quarter, numbered 101 to 132
    among others; one subject has a second scan and a second session."""
    source = tmp_path / "imagesoasis"
    for case, group in ((2, "Non Demented"), (98, "Mild Dementia"), (110, "Mild Dementia")):
        (source / group).mkdir(parents=True, exist_ok=True)
        for number in range(100, 134):
            file = pngs[case][min(max(number - 101, 0), 31)]
            pixels = np.rot90(np.asarray(Image.open(file))[ROWS, COLUMNS])
            picture = Image.fromarray(pixels).convert("RGB")
            for scan in ("MR1_mpr-1", "MR1_mpr-2", "MR2_mpr-1")[: 3 if case == 2 else 1]:
                picture.save(source / group / f"OAS1_{case:04d}_{scan}_{number}.jpg", quality=95)
    return source


def test_pictures_with_subject_identifiers_are_turned_and_framed(pictures, pngs, tmp_path):
    target = convert(pictures, tmp_path / "slices")
    remarks = remarks_of(target)
    assert remarks[0] == "1 repeated sessions left out."
    assert "Pictures 101 to 132" in remarks[1] and "Turned by 270 degrees." in remarks[2]
    subjects = [set(load_slices(target, split, size=32).subjects.tolist()) for split in SPLITS]
    assert set.union(*subjects) == {2, 98, 110} and sum(map(len, subjects)) == 3
    copy = np.asarray(Image.open(next(target.rglob("case_098_slice_7.nii.png")))).astype(int)
    assert np.abs(copy - np.asarray(Image.open(pngs[98][7]))).mean() < 2


def test_missing_and_damaged_pictures_are_reported(pictures, tmp_path):
    (pictures / "Mild Dementia" / "OAS1_0098_MR1_mpr-1_110.jpg").write_bytes(b"no JPEG")
    other = pictures / "Mild Dementia" / "OAS1_0110_MR1_mpr-1_120.jpg"
    for damaged, sentence in (
        (b"", "empty"),
        (b"no JPEG", "not a usable picture (no known format)"),
    ):
        other.write_bytes(damaged)
        faults = faults_of(pictures, tmp_path / "slices")
        assert len(faults) == 2 and "0098" in faults[0] and sentence in faults[1]
    other.unlink()
    assert "OAS1_0110_MR1 has no picture number 120" in faults_of(pictures, tmp_path / "slices")[0]


def test_one_subject_in_another_orientation_is_reported(pictures, pngs, tmp_path):
    for number in range(100, 134):
        path = pictures / "Mild Dementia" / f"OAS1_0110_MR1_mpr-1_{number}.jpg"
        Image.open(path).rotate(180).save(path)
    (fault,) = faults_of(pictures, tmp_path / "slices")
    assert "OAS1_0110_MR1_mpr-1_101.jpg: other orientation than in other subjects" in fault
    assert "turn the subject by 180 degrees." in fault


# --------------------------------------------------------------------------------------- layout


def test_one_subject_upside_down_in_a_layout_is_reported(cohort_root, tmp_path):
    files = {
        name: as_png(np.rot90(np.asarray(Image.open(io.BytesIO(content))), 2))
        if "test" in name
        else content
        for name, content in layout_of(cohort_root, 1).items()
    }
    (fault,) = faults_of(write_zip(tmp_path / "slices.zip", files), tmp_path / "target")
    assert "turn the subject by 180 degrees." in fault


def test_layouts_are_copied_unchanged(cohort_root, tmp_path):
    files = layout_of(cohort_root, 1)
    path = write_zip(tmp_path / "slices.zip", files | {"keras_png_slices_seg_train/x.png": b"seg"})
    target = convert(path, tmp_path / "slices")
    assert contents(target / LAYOUT_FOLDER) == files
    assert "Orientation checked" in remarks_of(target)[0]
    again = convert(target, tmp_path / "again")
    assert contents(again / LAYOUT_FOLDER) == files, "a converted folder is a source as well"


def test_layouts_in_another_orientation_are_rejected(cohort_root, tmp_path):
    turned = {
        name: as_png(np.rot90(np.asarray(Image.open(io.BytesIO(content))), 2))
        for name, content in layout_of(cohort_root, 1).items()
    }
    (fault,) = faults_of(write_zip(tmp_path / "slices.zip", turned), tmp_path / "target")
    assert "turn the slices by 180 degrees." in fault


def test_incomplete_layouts_are_copied_without_a_check_of_orientation(cohort_root, tmp_path):
    files = layout_of(cohort_root, 1)
    files = {name: content for name, content in files.items() if "_slice_0." not in name}
    target = convert(write_zip(tmp_path / "slices.zip", files), tmp_path / "slices")
    assert contents(target / LAYOUT_FOLDER) == files
    assert "Orientation not checked" in remarks_of(target)[0]


def test_five_files_damaged_in_five_ways_are_reported_at_once(cohort_root, tmp_path):
    files = layout_of(cohort_root, 2)
    names = [name for name in files if name.endswith("_slice_9.nii.png")]
    names = [names[0], names[1], names[2], names[-2], names[-1]]
    pixels = np.asarray(Image.open(io.BytesIO(files[names[2]])))
    damaged = [
        (files[names[0]][:4000], "not a readable image (", "truncated"),
        (b"", "not a readable image (the file is empty)", ""),
        (as_png(pixels, "RGBA"), "mode RGBA; expected 8-bit grey", ""),
        (as_png(pixels[:200, :200]), "200 x 200 pixels; the rest of the split is", ""),
        (b"a text, not a picture", "not a readable image (no PNG file)", ""),
    ]
    files |= {name: content for name, (content, *_) in zip(names, damaged)}
    path = write_zip(tmp_path / "slices.zip", files)
    faults = faults_of(path, tmp_path / "target")
    assert len(faults) == 5
    for name, (_, sentence, word) in zip(names, damaged):
        (fault,) = (fault for fault in faults if name in fault)
        assert sentence in fault and word in fault and str(path) in fault
    assert not list(tmp_path.glob("target*"))


def test_faults_of_names_and_splits_are_reported_at_once(cohort_root, tmp_path):
    files = layout_of(cohort_root, 1)
    test = "keras_png_slices_test/case_109_slice_"
    files["keras_png_slices_train/brain.png"] = b""
    files["keras_png_slices_train/case_109_slice_40.nii.png"] = files[f"{test}0.nii.png"]
    files["keras_png_slices_train/case_109_slice_3.nii.png"] = files[f"{test}3.nii.png"]
    files[f"{test}8.nii.png"] = b""
    faults = faults_of(write_zip(tmp_path / "slices.zip", files), tmp_path / "target")
    words = ["brain.png", "slice index 40", "the file is empty", "both train and test"]
    assert len(faults) == 4
    assert all(any(word in fault for fault in faults) for word in words)


def test_a_folder_of_windows_is_named_with_slashes(cohort_root):
    files = [
        SourceFile(f"{LAYOUT_FOLDER}/{name}", len(content), lambda content=content: content)
        for name, content in layout_of(cohort_root, 1).items()
    ]
    folder = PureWindowsPath(r"C:\OASIS data")
    kind, (subjects, _, faults) = sources.find_subjects(folder, files)
    assert (kind, len(subjects), faults) == ("layout", 3, [])
    with pytest.raises(SliceDataError, match=f"^C:/OASIS data/{LAYOUT_FOLDER}: without slices of"):
        sources.find_subjects(folder, files[:-32])


# --------------------------------------------------------------------------- what is none of them


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["train/MildDemented/mildDem0.jpg"], "(such as train/MildDemented/mildDem0.jpg)"),
        (["Data/train-00000-of-00001.parquet"], "without subject identifiers"),
        (["OASIS_OAS1_0001_MR1/slice_norm.nii.gz"], "one coronal slice: get the 3-D archive"),
        (["OASIS_OAS1_0001_MR1/norm.nii.gz"], "norm.nii.gz is not in atlas space"),
        (["a/OAS1_0001_MR1_mpr_n4_anon_111_t88_gfc.hdr"], "with the skull"),
        (["notes.txt"], "1 files, none of them known; expected keras_png_slices_data/"),
        ([], "0 files, none of them known"),
        ([t88_name(1) + ".hdr", "keras_png_slices_train/x"], "holds layout and T88_111 at once"),
    ],
)
def test_unknown_sources_are_rejected_with_a_reason(names, sentence, tmp_path):
    source = write_files(tmp_path / "source", dict.fromkeys(names, b"x"))
    source.mkdir(exist_ok=True)
    (fault,) = faults_of(source, tmp_path / "slices")
    assert sentence in fault
    assert not list(tmp_path.glob("slices*"))
