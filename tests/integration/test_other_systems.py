"""What Windows lacks is not needed: the modules of POSIX, and UTF-8 as the default encoding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from oasis_helpers.data import REPOSITORY
from tests.unit.convert.examples import layout_of, write_zip

# Runs at the start of every Python process, so of kernels too. A file of ours that is opened in the
# encoding of the system, whichever that is, raises an error.
AT_START = """
import sys, warnings
for name in ("resource", "fcntl", "pwd", "termios"):
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
warnings.filterwarnings("error", category=EncodingWarning, module=r"(oasis_helpers|tools)\\b")
"""
ALL = """
import importlib, pkgutil, oasis_helpers, tools
for package in (oasis_helpers, tools):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
print("imported")
"""
RUN = """
import sys
from pathlib import Path
from oasis_helpers.__main__ import ending_with_a_sentence, ignore_other_settings
ignore_other_settings()
from tools import notebooks
notebooks.BUILD = Path(sys.argv[1])
ending_with_a_sentence(notebooks.run)
"""


@pytest.fixture
def python(tmp_path):
    """Runs Python as on another system; returns what it printed."""
    (tmp_path / "sitecustomize.py").write_text(AT_START, encoding="utf-8")
    settings = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    settings |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LANG": "C", "LC_ALL": "C"}
    settings |= {"PYTHONWARNDEFAULTENCODING": "1", "OASIS_CACHE_DIR": str(tmp_path / "cache")}
    settings |= {"OASIS_MY_WEIGHTS": str(tmp_path / "my_weights")}

    def run(*words: str | Path) -> str:
        command = [sys.executable, *map(str, words)]
        environment = os.environ | settings
        done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    return run


def test_doctor_checks_another_system(python):
    assert "Keras backend: tensorflow" in python("-m", "oasis_helpers", "doctor")


def test_another_system_converts(python, cohort_root, tmp_path):
    source = write_zip(tmp_path / "Schädel.zip", layout_of(cohort_root, 1))
    printed = python("-m", "oasis_helpers", "convert", source, tmp_path / "größer")
    assert "96 slices of 1 / 1 / 1 subjects" in printed


def test_every_module_is_imported_on_another_system(python):
    assert python("-c", ALL).endswith("imported\n")


@pytest.mark.long
def test_the_series_runs_on_another_system(python, tmp_path):
    assert "test brain SSIM" in python("-c", RUN, tmp_path / "build")
    assert len(list((tmp_path / "build" / "notebooks").glob("0[1-9]_*.ipynb"))) >= 8
