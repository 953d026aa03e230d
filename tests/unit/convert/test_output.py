"""The target folder: manifest, montage, what is resumed, and what is never overwritten."""

import csv
import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oasis_helpers.convert import convert, describe, output
from oasis_helpers.data import LAYOUT_FOLDER
from tests.unit.convert.examples import (
    COLUMNS,
    ROWS,
    analyze,
    faults_of,
    layout_of,
    t88_name,
    write_files,
    write_zip,
)


def test_the_manifest_lists_the_source_of_every_slice(converted, disc):
    with open(converted / output.MANIFEST, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == {
        path.relative_to(converted).as_posix()
        for path in (converted / LAYOUT_FOLDER).rglob("*.png")
    }
    for row in rows[::17]:
        assert row["sha256"] == hashlib.sha256((converted / row["file"]).read_bytes()).hexdigest()
        source = disc / row["source"]
        assert row["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
        assert row["position"] == f"z {row['slice']} mm" and row["session"] == "MR1"
        assert source.name.startswith(f"OAS1_0{row['case']}_MR1")
    assert Image.open(converted / output.MONTAGE).size == (8 * 128, 4 * 128)
    assert {path.name for path in converted.iterdir()} == {
        *(LAYOUT_FOLDER, output.MANIFEST, output.PLAN, output.MONTAGE)
    }


def times_of(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.nii.png")}


def test_only_repaired_and_changed_files_are_converted_again(disc, volume_of_case, tmp_path):
    source = tmp_path / "disc1"
    shutil.copytree(disc, source)
    damaged = [source / f"{t88_name(case)}.img" for case in (2, 98)]
    intact = [path.read_bytes() for path in damaged]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-5])
    faults = faults_of(source, tmp_path / "slices")
    assert len(faults) == 2
    assert all("not a readable volume (Expected" in fault for fault in faults)
    assert not (tmp_path / "slices").exists()
    before = times_of(tmp_path / "slices.unfinished")
    assert len(before) == 64
    for path, content in zip(damaged, intact):
        path.write_bytes(content)
    for ending, content in zip(("hdr", "img"), analyze(volume_of_case[5].astype("int16"))):
        (source / f"{t88_name(5)}.{ending}").write_bytes(content)
    after = times_of(convert(source, tmp_path / "slices"))
    assert len(after) == 128
    same = {name[:8] for name in before if after[name] == before[name]}
    assert same == {"case_110"}, "5 is changed, 2 and 98 are repaired"


def test_targets_are_never_overwritten(cohort_root, tmp_path):
    path = write_zip(tmp_path / "slices.zip", layout_of(cohort_root, 1))
    target = convert(path, tmp_path / "slices")
    before = {file: file.stat().st_mtime_ns for file in target.rglob("*")}
    assert convert(path, target) == target
    assert {file: file.stat().st_mtime_ns for file in target.rglob("*")} == before
    other = write_zip(tmp_path / "others.zip", layout_of(cohort_root, 2))
    with pytest.raises(FileExistsError, match=r"holds another conversion \(other source, files"):
        convert(other, target)
    next(target.rglob("*_slice_3.nii.png")).unlink()
    with pytest.raises(FileExistsError, match="of subject 001 have changed since the conversion"):
        convert(path, target)


def test_files_of_a_user_are_left_alone(cohort_root, tmp_path):
    path = write_zip(tmp_path / "slices.zip", layout_of(cohort_root, 1))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all of it")
    for target in (mine, mine / "thesis.txt"):
        with pytest.raises(FileExistsError, match="holds something that no conversion made"):
            convert(path, target)
    assert (mine / "thesis.txt").read_text() == "all of it"


def test_arguments_that_make_no_sense_are_rejected(cohort_root, tmp_path):
    path = write_zip(tmp_path / "slices.zip", layout_of(cohort_root, 1))
    with pytest.raises(ValueError, match="is inside of"):
        convert(tmp_path, tmp_path / "slices")
    with pytest.raises(ValueError, match="has splits already"):
        convert(path, tmp_path / "new", splits=path)
    with pytest.raises(ValueError, match="seed must be 0 or more"):
        convert(path, tmp_path / "new", seed=-1)


def test_a_conversion_of_another_version_is_left_alone(cohort_root, tmp_path):
    path = write_zip(tmp_path / "slices.zip", layout_of(cohort_root, 1))
    target = convert(path, tmp_path / "slices")
    plan = json.loads((target / output.PLAN).read_text())
    (target / output.PLAN).write_text(json.dumps(plan | {"version": 1}))
    with pytest.raises(FileExistsError, match=r"another conversion \(other version\)"):
        convert(path, target)


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.fixture
def source(cohort_root, tmp_path):
    """The course's layout with one subject in each split."""
    return write_files(tmp_path / "source" / LAYOUT_FOLDER, layout_of(cohort_root, 1)).parent


@pytest.fixture
def unfinished(source, tmp_path, monkeypatch):
    """The folder of a conversion of `source` that was interrupted at its very end."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(output, "finish", interrupt)
        convert(source, tmp_path / "slices")
    return tmp_path / "slices.unfinished"


def test_a_volume_of_the_same_size_is_converted_again(disc, volume_of_case, tmp_path, monkeypatch):
    source = shutil.copytree(disc, tmp_path / "disc1")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(output, "finish", interrupt)
        convert(source, tmp_path / "slices")
    exchanged = volume_of_case[5] // 2
    (source / f"{t88_name(5)}.img").write_bytes(analyze(exchanged)[1])
    target = convert(source, tmp_path / "slices")
    (path,) = target.rglob("case_005_slice_9.nii.png")
    assert np.array_equal(np.asarray(Image.open(path))[ROWS, COLUMNS], exchanged[:, :, 84].T)


def test_a_finished_target_is_compared_with_its_source(disc, tmp_path):
    source = shutil.copytree(disc, tmp_path / "disc1")
    target = convert(source, tmp_path / "slices")
    header = source / f"{t88_name(98)}.hdr"
    header.write_bytes(header.read_bytes()[:-1] + b"x")
    with pytest.raises(FileExistsError, match="of subject 098 have changed since the conversion"):
        convert(source, target)


def test_a_damaged_slice_of_a_finished_target_is_noticed(source, tmp_path):
    target = convert(source, tmp_path / "slices")
    path = next(target.rglob("case_001_slice_3.nii.png"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FileExistsError, match="of subject 001 have changed since the conversion"):
        convert(source, target)


@pytest.mark.parametrize("damaged", ["", "file,sha256\n", None])
def test_a_damaged_manifest_loses_no_subject(source, unfinished, damaged, tmp_path):
    manifest = unfinished / output.MANIFEST
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:40]) + lines[41] if damaged is None else damaged)
    target = convert(source, tmp_path / "slices")
    assert len(output.read_manifest(target)) == 96


def test_files_of_a_user_in_the_unfinished_folder_stay(source, unfinished, tmp_path):
    (unfinished / ".records").mkdir()
    (unfinished / ".records" / "notes.txt").write_text("all of it")
    target = convert(source, tmp_path / "slices")
    assert (target / ".records" / "notes.txt").read_text() == "all of it"


def test_a_target_that_looks_empty_is_used(source, tmp_path):
    (tmp_path / "slices").mkdir()
    (tmp_path / "slices" / ".DS_Store").write_bytes(b"of macOS")
    target = convert(source, tmp_path / "slices")
    assert len(list(target.rglob("*.nii.png"))) == 96
    assert not (tmp_path / "slices.unfinished").exists()


def test_a_target_that_is_a_link_is_followed(source, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "slices")
    assert convert(source, tmp_path / "link") == tmp_path / "slices"
    assert len(list((tmp_path / "slices").rglob("*.nii.png"))) == 96


@pytest.mark.parametrize("target", ["", ".", "..", "/", "~nobody-of-this-name/slices"])
def test_targets_without_a_name_are_rejected(source, target):
    with pytest.raises(ValueError, match=r"names no folder to make|no such home folder"):
        convert(source, target)


def test_one_process_at_a_time_writes_a_target(source, tmp_path):
    with output.lock(tmp_path / "slices"), ThreadPoolExecutor(1) as other:
        with pytest.raises(BlockingIOError, match="Another process is converting into"):
            other.submit(convert, source, tmp_path / "slices").result()


def test_a_full_disk_names_the_file(source, tmp_path, monkeypatch):
    def write(path, content, real=Path.write_bytes):
        if "_slice_5" in path.name:
            raise OSError(28, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OSError) as caught:
        convert(source, tmp_path / "slices")
    assert Path(caught.value.filename).name == "case_001_slice_5.nii.png"
    assert Path(caught.value.filename).is_relative_to(tmp_path / "slices.unfinished")


def test_names_that_are_not_utf_8_are_escaped(source, tmp_path):
    (source / LAYOUT_FOLDER).rename(os.fsdecode(os.fsencode(source) + b"/Gr\xf6\xdfe"))
    target = convert(source, tmp_path / "slices")
    assert output.read_manifest(target)[0]["source"].startswith(r"Gr\udcf6\udcdfe/keras")
    assert describe(target).isascii()
