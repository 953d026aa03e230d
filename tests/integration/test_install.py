"""`make` makes `.venv` as a whole: after kills, moves, copies, and changes of lock or Python.

A small course stands for the real one: three tiny packages in a folder, no index, no network.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BACKEND = """
import zipfile

def build_editable(folder, settings=None, metadata=None):
    name = "course-1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        info = "course-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: course\\nVersion: 1.0\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name

def build_wheel(folder, settings=None, metadata=None):
    raise NotImplementedError
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\n'
COURSE = """
import many, os, subprocess, sys
assert many.whole(), "files are missing"
assert subprocess.run([".venv/bin/hello"], check=True, stdout=subprocess.PIPE).stdout == b"hello\\n"
print("runs in", os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "with", sys.version)
"""
COUNT = 400  # modules in a package, so that a kill can hit in between
WHOLE = f"""
import importlib.util
def whole():
    specs = [importlib.util.find_spec(f"many.part{{k}}") for k in range({COUNT})]
    return all(spec and open(spec.origin).read() for spec in specs)
def hello():
    print("hello")
"""
OTHERS = [name for name in ("3.11", "3.12", "3.13") if name != sys.version[:4]]


def write_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> str:
    """A wheel of these files; its line of a lock."""
    path, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nhello = many:hello\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture
def course(tmp_path):
    """A small course with the Makefile and `tools/install.py` of this one."""
    folder, wheels = tmp_path / "a course", tmp_path / "wheels"
    for part in (folder / "tools", folder / "oasis_helpers", wheels):
        part.mkdir(parents=True)
    shutil.copy(REPOSITORY / "Makefile", folder)
    shutil.copy(REPOSITORY / "tools" / "install.py", folder / "tools")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "oasis_helpers" / "__main__.py").write_text(COURSE)
    many = {f"many/part{k}.py": f"value = {k}\n" * 200 for k in range(COUNT)}
    lock = write_wheel(wheels, "backend", "1.0", {"backend.py": BACKEND})
    lock += write_wheel(wheels, "many", "1.0", many | {"many/__init__.py": WHOLE})
    (folder / "requirements.lock").write_text(lock)
    extra = write_wheel(wheels, "extra", "1.0", {"extra.py": "", "pytest.py": ""})
    (folder / "requirements-dev.lock").write_text(lock + extra)
    return folder


def start_make(course: Path, *words: str, **settings: str) -> subprocess.Popen:
    names = ("PATH", "HOME")  # no setting of pip's, of make's or of this environment
    own = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": (course.parent / "wheels").as_uri()}
    own |= {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.Popen(
        ["make", "--no-print-directory", *words],
        cwd=course,
        env={name: os.environ[name] for name in names} | own | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def make(course: Path, *words: str, **settings: str) -> tuple[int, str]:
    """The exit code of make, and all that it printed."""
    settings = {"PYTHON": sys.executable} | settings
    process = start_make(course, *words, **settings)
    output = process.communicate(timeout=120)[0]
    return process.returncode, output


@pytest.mark.long
def test_the_environment_is_made_once_and_again_where_it_does_not_fit(course):
    code, output = make(course, "run")
    assert code == 0 and "Making" in output and f"runs in {course}" in output, output
    assert not list(course.glob(".venv.unfinished*"))
    code, output = make(course, "run")
    assert code == 0 and "Making" not in output

    copied = course.parent / "copied"
    shutil.copytree(course, copied, symlinks=True)
    code, output = make(copied, "run")
    assert code == 0 and "Making" in output and f"runs in {copied}" in output, output
    assert str(course) not in (copied / ".venv" / "bin" / "hello").read_text()

    renamed = course.parent / "renamed"
    copied.rename(renamed)
    code, output = make(renamed, "run")
    assert code == 0 and "Making" in output and f"runs in {renamed}" in output, output

    with open(renamed / "requirements.lock", "a", encoding="utf-8") as lock:
        lock.write("# changed\n")
    code, output = make(renamed, "run")
    assert code == 0 and "Making" in output

    (renamed / ".venv" / "bin" / "python").unlink()
    (renamed / ".venv" / "bin" / "python").symlink_to("/no/such/python")
    code, output = make(renamed, "run")
    assert code == 0 and "Making" in output


def test_one_environment_serves_run_and_test(course):
    assert make(course, "environment-dev")[0] == 0
    code, output = make(course, "run")
    assert code == 0 and "Making" not in output


def test_an_environment_of_an_earlier_version_is_made_again(course):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", course / ".venv"], check=True)
    (course / ".venv" / "ready").touch()
    code, output = make(course, "run")
    assert code == 0 and f"runs in {course}" in output, output


@pytest.mark.long
def test_a_failed_installation_says_so_and_is_repeated(course):
    lock = (course / "requirements.lock").read_text()
    (course / "requirements.lock").write_text(f"{lock}no-such-package==1 --hash=sha256:{'0' * 64}")
    code, output = make(course, "run")
    assert code != 0 and "no-such-package" in output
    assert "is not complete" in output and "Traceback" not in output
    assert not (course / ".venv").exists()
    (course / "requirements.lock").write_text(lock)
    assert make(course, "run")[0] == 0


def executable(version: str) -> str | None:
    """A Python of this version, on the path or of pyenv, that starts."""
    paths = [*Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}")]
    for path in filter(None, [shutil.which(f"python{version}"), *paths]):
        if not subprocess.run([path, "-c", ""], capture_output=True).returncode:
            return str(path)
    return None


def python_of(*versions: str) -> str:
    found = next(filter(None, map(executable, versions)), None)
    return found or pytest.skip(f"none of Python {', '.join(versions)} is on the path")


def test_another_python_is_refused_before_anything_is_made(course):
    old = python_of("3.9", "3.10", "3.8", "3.14")
    before = sorted(course.rglob("*"))
    code, output = make(course, "run", PYTHON=old)
    assert code != 0 and f"{old} is Python 3." in output and "expected 3.11 to 3.13" in output
    assert "Traceback" not in output and sorted(course.rglob("*")) == before
    assert make(course, "run")[0] == 0
    code, output = make(course, "run", PYTHON=old)
    assert code != 0 and "expected 3.11 to 3.13" in output


@pytest.mark.long
def test_a_named_python_counts_and_is_remembered(course):
    other = python_of(*OTHERS)
    assert make(course, "run")[0] == 0
    code, output = make(course, "run", f"PYTHON={other}")
    assert code == 0 and "Making" in output, output
    process = start_make(course, "run")  # without a name, whatever python3 is here
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and "Making" not in output, output


def kill(process: subprocess.Popen, everything: bool) -> None:
    """Kills make with its children, or `tools/install.py` alone, so that its pip goes on."""
    if everything:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        children = f"/proc/{process.pid}/task/{process.pid}/children"
        for child in Path(children).read_text("utf-8").split():
            os.kill(int(child), signal.SIGKILL)
        process.kill()


def killed_and_made(course: Path, seconds: float, everything: bool) -> None:
    shutil.rmtree(course / ".venv", ignore_errors=True)
    process = start_make(course, "run", PYTHON=sys.executable)
    time.sleep(seconds)
    if process.poll() is None:
        kill(process, everything)
    process.wait()
    code, output = make(course, "run")
    assert code == 0 and f"runs in {course}" in output, (seconds, everything, output)


@pytest.mark.long
def test_an_installation_that_was_killed_is_made_again(course):
    killed_and_made(course, 3, everything=True)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are found in /proc")
def test_an_installation_waits_for_the_pip_that_outlived_its_parent(course):
    killed_and_made(course, 3, everything=False)


@pytest.mark.long
def test_ten_kills_at_random_moments(course):
    started = time.perf_counter()
    assert make(course, "run")[0] == 0
    duration, chance = time.perf_counter() - started, random.Random(0)
    for number in range(10):
        everything = number % 2 == 0 or not Path("/proc/self/task").is_dir()
        killed_and_made(course, chance.uniform(0, duration), everything)


def test_two_at_once_make_one(course):
    processes = [start_make(course, "run", PYTHON=sys.executable) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs


# --------------------------------------------------------------------------- make's variables


@pytest.mark.parametrize("where", ["environment", "command line"])
@pytest.mark.parametrize("name", ["OASIS_DATA_DIR", "OASIS_CACHE_DIR", "NAME", "PYTHON", "OTHER"])
def test_values_are_never_run(course, name, where):
    made, python = course / "made", course / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(shutil.which("true"))
    value = f"$(shell touch '{made}')`touch '{made}'`\"; touch '{made}'; \"$$(touch '{made}')"
    settings = {"PYTHON": "true"}
    if where == "environment":
        make(course, "train", **(settings | {name: value}))
    else:
        make(course, "train", f"{name}={value}", **settings)
    assert not made.exists()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("slices", "{}/slices"),
        ("my slices/$HOME #1", "{}/my slices/$HOME #1"),
        ("/abs/a $(x) b", "/abs/a $(x) b"),
        ("~/a b", "~/a b"),
        ("Größe", "{}/Größe"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("name", ["OASIS_DATA_DIR", "OASIS_CACHE_DIR"])
def test_folders_reach_the_kernels_as_they_were_given(course, name, value, expected):
    with open(course / "Makefile", "a", encoding="utf-8") as file:
        file.write(f"\nshow:\n\t@printenv {name} || true\n")
    for words, settings in (([], {name: value}), ([f"{name}={value}"], {})):
        assert make(course, "show", *words, **settings)[1].strip() == expected.format(course)


def test_clones_have_the_line_ends_of_the_repository_on_every_system(tmp_path):
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a clone")
    clone = ["git", "clone", "-q", "-c", "core.autocrlf=true", str(REPOSITORY), str(tmp_path / "c")]
    subprocess.run(clone, check=True)
    listed = subprocess.run(
        ["git", "ls-files", "--eol"], cwd=tmp_path / "c", capture_output=True, text=True, check=True
    )
    assert not [line for line in listed.stdout.splitlines() if "w/crlf" in line]
