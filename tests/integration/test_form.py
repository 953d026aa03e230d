"""The form of what git tracks: rules, layout, docstrings, spelling, sizes."""

import subprocess
import sys

import pytest

from oasis_helpers.data import REPOSITORY

pytest.importorskip("pre_commit", reason="pre-commit is in the extra 'dev'")


def test_what_git_tracks_is_in_form():
    if not (REPOSITORY / ".git").exists():
        pytest.skip("this copy is no git checkout, so nothing says which files belong to it")
    if not (REPOSITORY / ".venv").exists():
        pytest.skip("the hooks run what `make` installs in .venv")
    command = [sys.executable, "-m", "pre_commit", "run", "--all-files"]
    checked = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert checked.returncode == 0, f"`make lint` fails:\n{checked.stdout}{checked.stderr}"
