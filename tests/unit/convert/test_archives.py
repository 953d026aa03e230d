"""Archives and folders: what is listed, what is rejected before anything is read."""

import os
import stat
import tarfile
import zipfile

import pytest

from oasis_helpers import load_slices
from oasis_helpers.convert import archives, convert
from oasis_helpers.convert.subjects import read_splits
from oasis_helpers.data import SliceDataError
from tests.unit.convert.examples import faults_of, layout_of, write_files, write_zip


def link(name):
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.mark.parametrize(
    ("member", "sentence"),
    [
        ("../outside.png", "'../outside.png' points outside of the archive's folder"),
        ("a/../../outside.png", "points outside of the archive's folder"),
        ("a\\..\\outside.png", "points outside of the archive's folder"),
        ("/etc/outside.png", "'/etc/outside.png' has an absolute path"),
        ("C:/outside.png", "has an absolute path"),
        (link("a/link.png"), "'a/link.png' is a link"),
    ],
)
def test_zip_archives_with_unsafe_members_are_rejected(member, sentence, tmp_path):
    path = tmp_path / "slices.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"/etc/passwd")
        archive.writestr("../second.png", b"")
    faults = faults_of(path, tmp_path / "target")
    assert sentence in faults[0] and "nothing was unpacked" in faults[0] and len(faults) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["slices.zip"]


def test_tar_archives_with_unsafe_members_are_rejected(tmp_path):
    path = tmp_path / "disc.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        inside = tarfile.TarInfo("disc1/link.img")
        inside.type, inside.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(inside)
        archive.addfile(tarfile.TarInfo("../outside.img"))
    faults = faults_of(path, tmp_path / "target")
    assert "is a link" in faults[0] and "points outside" in faults[1]


def test_archives_that_declare_too_much_are_rejected(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "bomb.zip", {"keras_png_slices_train/x": bytes(2 * 2**20)})
    monkeypatch.setattr(archives, "MAX_MEMBER", 1)
    assert "declares 2 MiB, more than 1 MiB" in faults_of(path, tmp_path / "target")[0]
    monkeypatch.setattr(archives, "MAX_MEMBER", 2)
    monkeypatch.setattr(archives, "MAX_TOTAL", 0.001)
    assert "of files, more than 0.001 GiB" in faults_of(path, tmp_path / "target")[0]


def test_missing_and_unreadable_sources_are_rejected(tmp_path):
    path = tmp_path / "oasis.tar.gz"
    path.write_bytes(b"moved to another address")
    assert "not a readable archive" in faults_of(path, tmp_path / "target")[0]
    assert (
        "no file and no folder; give one" in faults_of(tmp_path / "nowhere", tmp_path / "target")[0]
    )
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert "no file and no folder; give one" in faults_of(loop, tmp_path / "target")[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_fifos_are_never_opened(tmp_path):
    source = write_files(tmp_path / "source", {"notes.txt": b"x"})
    for name in ("OAS1_0001_MR1_mpr_t88_masked_gfc.hdr", "more.zip", "../splits.csv"):
        os.mkfifo(source / name)
    (source / "case.png").symlink_to("/dev/zero")
    (fault,) = faults_of(source, tmp_path / "target")
    assert "1 files, none of them known" in fault
    with pytest.raises(SliceDataError, match="not a readable table"):
        read_splits(tmp_path / "splits.csv")


def test_links_that_lead_back_are_not_followed(cohort_root, tmp_path):
    source = write_files(tmp_path / "source", layout_of(cohort_root, 1))
    (source / "circle").symlink_to(source)
    target = convert(source, tmp_path / "target")
    assert len(list(target.rglob("*.nii.png"))) == 96


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_folders_without_permission_are_reported(tmp_path):
    (tmp_path / "source" / "closed").mkdir(parents=True)
    (tmp_path / "source" / "closed").chmod(0)
    assert "closed: cannot be listed" in faults_of(tmp_path / "source", tmp_path / "target")[0]


def test_loading_an_archive_names_the_command_that_converts_it(tmp_path):
    path = write_zip(tmp_path / "slices.zip", {})
    with pytest.raises(SliceDataError, match="python -m oasis_helpers convert"):
        load_slices(path, "train")
