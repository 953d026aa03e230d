"""What the unit tests share."""

import os

import filelock
import pytest
from PIL import Image

from oasis_helpers.convert.synthetic import make_subject
from oasis_helpers.data import LAYOUT_FOLDER

SUBJECTS = {"train": (1, 2, 5), "validate": (97, 98), "test": (109, 110)}


@pytest.fixture(scope="session")
def cohort_root(tmp_path_factory):
    """Seven subjects of the synthetic cohort, each as in the full one, in seconds.

    The first worker of pytest-xdist that needs them makes them for all.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cohort"
    with filelock.FileLock(f"{root}.lock"):
        if not root.exists():
            write_cohort(root)
    return root


def write_cohort(root):
    for split, subjects in SUBJECTS.items():
        folder = root / LAYOUT_FOLDER / f"keras_png_slices_{split}"
        folder.mkdir(parents=True)
        for subject in subjects:
            for index, picture in enumerate(make_subject(subject)):
                file = folder / f"case_{subject:03d}_slice_{index}.nii.png"
                Image.fromarray(picture).save(file)
