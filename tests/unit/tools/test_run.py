"""`make run` looks at the data before it removes the copies of the last run."""

import pytest
from PIL import Image

from oasis_helpers.data import SliceDataError
from tools import notebooks


@pytest.fixture
def last_page(weights, slice_root, tmp_path, monkeypatch):
    """A copy of the last run, which `refused` compares; the slices are the active data set."""
    monkeypatch.setenv("OASIS_DATA_DIR", str(slice_root))
    monkeypatch.setattr(notebooks, "BUILD", tmp_path / "build")
    page = tmp_path / "build" / "notebooks" / "01.ipynb"
    page.parent.mkdir(parents=True)
    page.write_text("a copy of the last run")
    return page


@pytest.mark.filterwarnings("ignore:These are not the test slices")
def test_settings_that_stop_a_run(last_page, monkeypatch, refused):
    monkeypatch.setenv("OASIS_PROFILE", "quick")
    refused(notebooks.run, "OASIS_PROFILE is 'quick'; expected")
    monkeypatch.setenv("OASIS_DATA_DIR", "/nowhere")
    words = "OASIS_DATA_DIR is '/nowhere', but /nowhere is no folder"
    refused(notebooks.run, words, error=FileNotFoundError)


def test_faults_of_all_splits_stop_a_run(last_page, train_folder, refused):
    (train_folder / "case_002_slice_2.nii.png").write_bytes(b"")
    test = train_folder.with_name("keras_png_slices_test")
    Image.new("RGB", (64, 64)).save(test / "case_004_slice_0.nii.png")
    words = "slice_2.nii.png: not a readable image", "case_004_slice_0.nii.png: mode RGB"
    refused(notebooks.run, *words, error=SliceDataError)
