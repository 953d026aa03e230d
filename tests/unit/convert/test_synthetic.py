"""The synthetic cohort: its pixels, its layout, and how it treats what is already there."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from oasis_helpers.convert.synthetic import make_cohort, make_subject

SUBJECTS = (2, 1, 1)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("data") / "cohort", SUBJECTS, seed=3)


@pytest.fixture(scope="module")
def brains():
    return np.stack([make_subject(subject) for subject in range(1, 5)])


def files(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


# --------------------------------------------------------------------------------------- pixels


def test_frame_and_background(brains):
    assert brains.shape == (4, 32, 256, 256) and brains.dtype == np.uint8
    assert not brains[..., :34, :].any() and not brains[..., 222:, :].any()
    assert not brains[..., :50].any() and not brains[..., 206:].any()
    black = (brains == 0).mean(axis=(1, 2, 3))
    assert np.all((black > 0.70) & (black < 0.74)), black
    assert np.all(np.percentile(brains, 99.5, axis=(1, 2, 3)) > 190)


def test_position_and_area_are_those_of_oasis(brains):
    _, rows, columns = np.nonzero(brains.max(axis=0) > 0)
    assert abs(rows.mean() - 127.5) < 5 and abs(columns.mean() - 127.5) < 3
    areas = (brains > 0).sum(axis=(2, 3)).mean(axis=0)
    assert 18_000 < areas[0] < 19_500 and 16_500 < areas[31] < 18_000


def test_every_slice_is_one_piece(brains):
    for image in brains[:2].reshape(-1, 256, 256):
        _, pieces = ndimage.label(image)
        assert pieces == 1


def test_same_seed_same_slices_and_others_differ(brains):
    np.testing.assert_array_equal(make_subject(1), brains[0])
    assert not np.array_equal(make_subject(1, seed=1), brains[0])
    inside = (brains[0] > 0) & (brains[1] > 0)
    assert np.abs(brains[0].astype(int) - brains[1])[inside].mean() > 30


def test_ventricles_vary(brains):
    dark = (brains[:, 20, 70:190, 100:156] < 70).mean(axis=(1, 2))
    assert dark.max() > 1.5 * dark.min(), dark


# --------------------------------------------------------------------------------------- layout


def test_layout(cohort):
    expected = ["cohort.json"] + [
        f"keras_png_slices_data/keras_png_slices_{split}/case_{subject:03d}_slice_{k}.nii.png"
        for split, subject in (("train", 1), ("train", 2), ("validate", 3), ("test", 4))
        for k in range(32)
    ]
    assert files(cohort) == sorted(expected)
    beside = {path.name for path in cohort.parent.iterdir()}
    assert beside == {"cohort", ".cohort.lock"}, "scratch was left behind"
    record = json.loads((cohort / "cohort.json").read_text())
    assert record["subjects"] == list(SUBJECTS) and record["seed"] == 3
    with Image.open(cohort / expected[1 + 5]) as image:
        assert image.mode == "L" and image.size == (256, 256)
        np.testing.assert_array_equal(np.asarray(image), make_subject(1, seed=3)[5])


def test_no_subject_in_two_splits(cohort):
    folders = (cohort / "keras_png_slices_data").iterdir()
    subjects = [set(re.findall(r"case_\d+", " ".join(files(folder)))) for folder in folders]
    assert sum(map(len, subjects)) == len(set.union(*subjects)) == sum(SUBJECTS)


def test_second_call_rewrites_nothing(cohort):
    before = {path: path.stat().st_mtime_ns for path in cohort.rglob("*")}
    assert make_cohort(str(cohort), SUBJECTS, seed=3) == cohort
    assert {path: path.stat().st_mtime_ns for path in cohort.rglob("*")} == before


def test_two_calls_at_once_with_any_number_of_workers(tmp_path):
    root = tmp_path / "new" / "cohort"
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(make_cohort, root, (1, 0, 0), 3, workers) for workers in (1, 2)]
        assert [job.result() for job in jobs] == [root, root]
    image = root / "keras_png_slices_data/keras_png_slices_train/case_001_slice_9.nii.png"
    np.testing.assert_array_equal(np.asarray(Image.open(image)), make_subject(1, seed=3)[9])


# -------------------------------------------------------------------------------------- refusals


def test_folder_of_something_else_is_refused(tmp_path, refused):
    mine = tmp_path / "keras_png_slices_data" / "mine.png"
    mine.parent.mkdir()
    mine.write_bytes(b"a person made this")
    words = "holds something that make_cohort did not make", "give another folder"
    refused(lambda: make_cohort(tmp_path, SUBJECTS), *words, error=FileExistsError)
    refused(lambda: make_cohort(mine, SUBJECTS), "did not make", error=FileExistsError)
    (tmp_path / "cohort.json").write_text('{"made_by": "oasis_h')
    refused(lambda: make_cohort(tmp_path, SUBJECTS), *words, error=FileExistsError)


def test_other_parameters_and_missing_slices_are_refused(cohort, tmp_path, refused):
    words = "another cohort (", "seed 3, not ", "seed 4", "nothing was changed"
    refused(lambda: make_cohort(cohort, SUBJECTS, seed=4), *words, error=FileExistsError)
    (tmp_path / "cohort.json").write_text((cohort / "cohort.json").read_text())
    words = "holds 0 slices where its cohort.json promises 128"
    refused(lambda: make_cohort(tmp_path, SUBJECTS, seed=3), words, error=FileExistsError)


@pytest.mark.parametrize("subjects", [(1, 1), (-1, 1, 1), (0, 0, 0), (900, 90, 10)])
def test_impossible_counts_are_refused(tmp_path, refused, subjects):
    words = "subjects must be three counts (train, validate, test), none negative, 1 to 999 in all"
    refused(lambda: make_cohort(tmp_path / "cohort", subjects), words)


def test_impossible_numbers_are_refused(tmp_path, refused):
    root = tmp_path / "cohort"
    refused(lambda: make_subject(0), "subject must be 1 or more, not 0.")
    refused(lambda: make_cohort(root, SUBJECTS, seed=-1), "seed must be 0 or more, not -1.")
    refused(lambda: make_cohort(root, SUBJECTS, workers=0), "workers must be 1 or more, or None")


def test_what_a_killed_process_left_is_removed(tmp_path):
    left = tmp_path / ".cohort-left"
    (left / "cohort").mkdir(parents=True)
    make_cohort(tmp_path / "cohort", (1, 0, 0))
    assert not left.exists()
