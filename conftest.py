"""Settings for the tests and for the notebooks that nbval runs."""

import atexit
import dataclasses
import os
import shutil
import tempfile
from pathlib import Path

import nbval.plugin
import numpy as np
import pytest

from oasis_helpers.__main__ import ignore_other_settings

# Stored outputs show the synthetic cohort in the short profile, whatever this shell is set to.
# The second variable hands the folder on to the workers of pytest-xdist, which import this again.
os.environ["OASIS_PROFILE"] = "tour"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
NAMED = os.environ.pop("OASIS_DATA_DIR", "") or os.environ.get("OASIS_REAL_SLICES", "")
os.environ["OASIS_REAL_SLICES"] = NAMED
BESIDE = Path(__file__).resolve().parents[1] / "shared" / "oasis1"
WIDGET = "application/vnd.jupyter.widget-view+json"
REAL_SLICES = Path(NAMED).expanduser().resolve() if NAMED else BESIDE
# Notebook 03 keeps what it trains; a student's own weights stay as they are.
KEPT = tempfile.mkdtemp()
os.environ["OASIS_MY_WEIGHTS"] = str(Path(KEPT) / "my_weights")
atexit.register(shutil.rmtree, KEPT, ignore_errors=True)


ignore_other_settings()


def has_real_slices() -> bool:
    folders = (REAL_SLICES / "keras_png_slices_data", REAL_SLICES / "keras_png_slices_train")
    return any(folder.is_dir() for folder in folders)


def pytest_report_header():
    if not has_real_slices():
        return f"real slices: none in {REAL_SLICES}, so tests that need them are skipped"
    return f"real slices: {REAL_SLICES} ({'OASIS_DATA_DIR' if NAMED else 'beside the checkout'})"


def pytest_configure(config):
    """Settings of nbval for every working folder, and a worker for a notebook, not for a cell."""
    config.option.nbval_sanitize_with = str(Path(__file__).parent / "tests" / "nbval.cfg")
    if config.option.nbval and config.getoption("dist", "no") in ("load", "worksteal"):
        config.option.dist = "loadfile"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Cells run in order, also with plugins that shuffle.

    Progress bars and warnings go to stderr, which no two machines share: not compared.
    """
    cells = [item for item in items if isinstance(item, nbval.plugin.IPyNbCell)]
    cells.sort(key=lambda cell: (cell.path, cell.cell_num))
    items[:] = [item for item in items if item not in cells] + cells
    for item in cells:
        if "stderr" not in item.parent.skip_compare:
            item.parent.skip_compare += ("stderr",)


def without_widgets(
    cell, test, ref, skip_compare=None, compare=nbval.plugin.IPyNbCell.compare_outputs
):
    """Progress bars are widgets, which no two runs share; stored outputs have none."""
    return compare(
        cell, [part for part in test if WIDGET not in part.get("data", {})], ref, skip_compare
    )


nbval.plugin.IPyNbCell.compare_outputs = without_widgets


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """nbval does not compare pictures; that there is one is checked here."""
    result = yield
    if isinstance(item, nbval.plugin.IPyNbCell) and "alt" in item.cell.metadata:
        if not any("image/png" in output.get("data", {}) for output in item.test_outputs):
            item.raise_cell_error("The cell describes a figure but shows none")
    return result


@pytest.fixture(scope="session")
def real_root() -> Path:
    """The real OASIS-1 slices, where this machine has them."""
    if not has_real_slices():
        pytest.skip(f"no real slices in {REAL_SLICES}; set OASIS_DATA_DIR to test on them")
    return REAL_SLICES


@pytest.fixture(scope="session")
def cohort_root() -> Path:
    """The synthetic cohort, made on first use."""
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
