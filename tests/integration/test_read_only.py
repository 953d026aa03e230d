"""A class shares a checkout that students cannot write to: `make lab` and notebooks work there."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from oasis_helpers.data import REPOSITORY
from tools import install

OTHER = 65534
AS_OTHER = ["setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups"]
EXECUTE = """
from oasis_helpers.__main__ import ignore_other_settings
ignore_other_settings()
from tools import notebooks
name = "01_data_exploration.ipynb"
notebooks.execute(notebooks.NOTEBOOKS / name, notebooks.BUILD / name)
"""
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("setpriv"),
        reason="only root can become another user, with setpriv of util-linux",
    ),
]


@pytest.fixture
def python():
    """A Python of this version that another user can start; this one may be in root's home."""
    name = f"python{install.VERSION}"
    for path in (os.path.realpath(sys.executable), shutil.which(name, path="/usr/bin")):
        start = [*AS_OTHER, "sh", "-c", '"$0" -c ""', str(path)]  # setpriv itself may start any
        if subprocess.run(start, capture_output=True).returncode == 0:
            return Path(path)
    pytest.skip(f"no {name} that another user can start")


@pytest.fixture
def course(open_folder, cohort_root, python, monkeypatch):
    """A finished checkout of root's: packages installed, cohort made."""
    folder = open_folder / "course"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "build", "cache", "cohort", "my_*")
    shutil.copytree(REPOSITORY, folder, ignore=left_out)
    shutil.copytree(cohort_root, folder / "data" / "cohort")
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").symlink_to(python)
    (folder / ".venv" / "pyvenv.cfg").write_text(
        f"home = {python.parent}\ninclude-system-site-packages = false\n"
    )
    for name in ("lib", "share", "etc"):
        (folder / ".venv" / name).symlink_to(Path(sys.prefix, name))
    monkeypatch.setattr(install, "ROOT", folder)
    lines = (install.line(install.VERSION, lock) for lock in install.LOCKS)
    (folder / ".venv" / "ready").write_text("\n".join(lines))
    return folder


@pytest.fixture
def student(course, python, open_folder):
    """Starts a command of another user in the course; everything that it has is in `home`."""
    home = open_folder / "home"
    home.mkdir()
    os.chown(home, OTHER, OTHER)
    settings = {"HOME": str(home), "PATH": f"{python.parent}:/usr/bin:/bin"}

    def start(*command, **options):
        return subprocess.Popen([*AS_OTHER, *command], cwd=course, env=settings, **options)

    return start


def output_of(process):
    """The exit code, and what was printed."""
    printed = process.communicate(timeout=900)[0]
    return process.returncode, printed


PIPED = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}


def files_in(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


@contextlib.contextmanager
def lab_of(student, home):
    """What the server of `make lab` answers to an address below its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (home / ".jupyter").mkdir()
    (home / ".jupyter" / "jupyter_server_config.py").write_text(
        f"c.ServerApp.port = {port}\nc.ServerApp.open_browser = False\n"
        "c.IdentityProvider.token = 'student'\n"
    )
    for path in (home / ".jupyter", *(home / ".jupyter").iterdir()):
        os.chown(path, OTHER, OTHER)

    def get(address):
        url = f"http://127.0.0.1:{port}/{address}?token=student"
        return urllib.request.urlopen(url, timeout=60).read()

    with open(home.parent / "lab.log", "w", encoding="utf-8") as log:
        server = student("make", "lab", stdout=log, stderr=log)
    try:
        for _ in range(600):
            assert server.poll() is None, (home.parent / "lab.log").read_text()
            with contextlib.suppress(urllib.error.URLError):
                get("api/status")
                break
            time.sleep(0.5)
        yield get
    finally:
        server.terminate()
        server.wait(timeout=60)


def test_another_user_works_in_a_course_that_they_cannot_write_to(course, student, open_folder):
    before, home = files_in(course), open_folder / "home"
    code, said = output_of(student("make", "doctor", **PIPED))
    assert code == 0 and "FAIL" not in said, said
    with lab_of(student, home) as get:
        copies = json.loads(get("api/contents/my_notebooks"))["content"]
        assert {"00_start.ipynb", "solutions"} <= {each["name"] for each in copies}
        assert get("files/data/weights/oasis1/head.gif").startswith(b"GIF8")
        assert "Is this normal?" in json.loads(get("api/contents/docs/faq.md"))["content"]
    code, said = output_of(student(".venv/bin/python", "-c", EXECUTE, **PIPED))
    assert code == 0, said
    own = home / "my_brain_course"
    assert list((own / "data" / "cache").glob("*.npy")) and not (own / "data" / "cohort").exists()
    assert (own / "build" / "01_data_exploration.ipynb").exists()
    assert files_in(course) == before
    (course / "requirements.lock").write_text("numpy==0\n")  # the owner has pulled, but not made
    changed = files_in(course)
    code, said = output_of(student("make", "lab", **PIPED))
    assert code != 0 and f"{course} is read-only" in said and "its owner makes it" in said
    assert files_in(course) == changed
