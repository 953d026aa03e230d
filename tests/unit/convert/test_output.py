"""The target folder: manifest, montage, what is resumed, and what is never overwritten."""

import csv
import hashlib
import json
import shutil

import pytest
from PIL import Image

from oasis_helpers.convert import convert, output
from oasis_helpers.data import LAYOUT_FOLDER
from tests.unit.convert.examples import analyze, faults_of, layout_of, t88_name, write_zip


def test_the_manifest_lists_the_source_of_every_slice(converted, disc):
    with open(converted / output.MANIFEST, newline="") as file:
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
    with pytest.raises(FileExistsError, match="lacks 1 files of its manifest"):
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
