"""Settings that hold for the tests and for the notebooks that nbval runs."""

import contextlib
import dataclasses
import os
import shutil
from pathlib import Path

import nbval.plugin
import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent
BESIDE = REPOSITORY.parent / "shared" / "oasis1"
REAL_DATA = Path(os.environ.pop("OASIS_DATA_DIR", "") or BESIDE).resolve()

# Stored outputs show the synthetic cohort in the short profile, whatever this shell is set to.
os.environ["OASIS_PROFILE"] = "tour"


def pytest_collection_modifyitems(items):
    """Progress bars and warnings go to stderr, which no two machines share: not compared."""
    for item in items:
        if isinstance(item, nbval.plugin.IPyNbCell) and "stderr" not in item.parent.skip_compare:
            item.parent.skip_compare += ("stderr",)


@pytest.fixture(scope="session")
def real_root() -> Path:
    """The real OASIS-1 slices, where this machine has them."""
    if not (REAL_DATA / "keras_png_slices_data").is_dir():
        pytest.skip("real OASIS-1 slices are not here; set OASIS_DATA_DIR to test on them")
    return REAL_DATA


@pytest.fixture(scope="session")
def cohort_root() -> Path:
    """The synthetic cohort in full, made on first use."""
    from oasis_helpers import pretrained

    return pretrained.data_root()


@pytest.fixture(scope="session")
def load_few():
    """`load_slices` with the first subjects of a split only, so that a training takes seconds."""
    from oasis_helpers.data import load_slices

    def load(root, split, *frame, subjects=6):
        slices = load_slices(root, split, *frame)
        chosen = np.isin(slices.subjects, np.unique(slices.subjects)[:subjects])
        parts = {name: getattr(slices, name)[chosen] for name in ("images", "subjects", "slices")}
        return dataclasses.replace(slices, **parts)

    return load


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium: the system's, or the one that playwright brought.

    One for all tests, because playwright can't be started a second time in a process.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = next(filter(None, map(shutil.which, names)), own)
        if not Path(found).exists():
            pytest.skip(f"no Chromium: none of {', '.join(names)} is on the path")
        with contextlib.closing(
            playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        ) as chromium:
            yield chromium
