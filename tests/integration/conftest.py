"""A browser for the tests of pages, of JupyterLab and of the code painter."""

import contextlib
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium: the one that the system has, or the one that playwright brought.

    All tests share it, because playwright cannot be started twice in one process.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    with sync_api.sync_playwright() as playwright:
        bundled = playwright.chromium.executable_path
        executable = next(filter(None, map(shutil.which, names)), bundled)
        if not Path(executable).exists():
            pytest.skip(f"no Chromium: none of {', '.join(names)} is on the path")
        with contextlib.closing(
            playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        ) as chromium:
            yield chromium
