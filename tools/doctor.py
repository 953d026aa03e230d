"""Whether the course can run here: `python -m oasis_helpers doctor`, or `make doctor`.

Imports the standard library only, and `oasis_helpers`, which does so too: it works where TensorFlow
is missing or broken. Every check returns its status, "ok", "warn" or "FAIL", and one sentence.
"""

import importlib.util
import os
import re
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from oasis_helpers import REPOSITORY, own_folder

LAYOUT_FOLDER = "keras_png_slices_data"


def check_python(version: tuple = sys.version_info[:3]) -> tuple[str, str]:
    """TensorFlow has wheels for Python 3.11 to 3.13."""
    text = f"Python {'.'.join(map(str, version))}"
    if (3, 11) <= version[:2] <= (3, 13):
        return "ok", text
    return "FAIL", f"{text}; expected 3.11 to 3.13: make the environment with one of these"


def check_cores() -> tuple[str, str]:
    """The minutes that README names were measured on two cores."""
    cores = os.cpu_count() or 1
    return "ok" if cores > 1 else "warn", f"processor cores: {cores}; two or more are good"


def check_memory() -> tuple[str, str]:
    """A notebook takes up to 4 GiB."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return "ok", "memory: unknown; 4 GiB are enough"
    return "ok" if size >= 4 else "warn", f"memory: {size:.1f} GiB; 4 GiB are enough"


def check_disk() -> tuple[str, str]:
    """The cohort, its resized copies and the pages take 0.2 GiB."""
    free = shutil.disk_usage(existing(own_folder("data"))).free / 2**30
    status = "ok" if free >= 1 else "warn" if free >= 0.2 else "FAIL"
    return status, f"free disk: {free:.1f} GiB; the course writes 0.2 GiB, a long training more"


def check_packages() -> tuple[str, str]:
    """Installed files and versions; what has a marker may belong to another system."""
    lock = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    packages = {
        re.sub(r"[-_.]+", "-", each.name).lower(): each for each in metadata.distributions()
    }
    installed = {name: package.version for name, package in packages.items()}
    pins = re.findall(r"^([\w.-]+)==(\S+)( ;)?", lock, re.MULTILINE)
    locked = {(name, version) for name, version, _ in pins}
    needed = {name for name, _, marker in pins if not marker}
    missing = sorted(needed - set(installed))
    differing = [
        f"{name} {installed[name]} (locked: {version})"
        for name, version, _ in pins
        if (name, installed.get(name, version)) not in locked
    ]
    advice = "to repair: python -m pip install --require-hashes -r requirements.lock"
    if damaged := sorted(name for name in needed - set(missing) if _is_damaged(packages[name])):
        advice += "; for damaged ones, add --force-reinstall"
    lacking = [f"{name} is missing" for name in missing] + [
        f"{name} is damaged" for name in damaged
    ]
    if lacking or differing:
        text = f"packages: {', '.join(lacking + differing)}; {advice}"
        return "FAIL" if lacking else "warn", text
    return "ok", f"packages: {len(needed)} as locked"


def _is_damaged(package: metadata.Distribution) -> bool:
    """Whether a listed file is missing or cut, as after an installation that was killed."""
    files = [file for file in package.files or () if file.size and ".." not in file.parts]
    paths = ((Path(file.locate()), file.size) for file in files)
    return not files or any(
        not path.is_file() or path.stat().st_size != size for path, size in paths
    )


def check_backend() -> tuple[str, str]:
    """What Keras will take: `KERAS_BACKEND`, else TensorFlow."""
    name = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if name not in ("tensorflow", "jax", "torch"):
        return "FAIL", f"Keras backend: it is {name!r}; expected tensorflow, jax or torch"
    if importlib.util.find_spec(name):
        return "ok", f"Keras backend: {name}"
    wheel = "; TensorFlow 2.21 has no wheel for Intel Macs: use a Linux container there"
    advice = wheel if name == "tensorflow" else ""
    return "FAIL", f"Keras backend: {name!r} is not installed{advice}"


def check_profile() -> tuple[str, str]:
    """How long the notebooks train."""
    name = os.environ.get("OASIS_PROFILE") or "tour"
    if name in ("tour", "full"):
        return "ok", f"profile: {name}"
    return "FAIL", f'profile: OASIS_PROFILE is {name!r}; expected "tour" or "full"'


def check_data() -> tuple[str, str]:
    """The active data set: `OASIS_DATA_DIR`, else the synthetic cohort."""
    if not (named := os.environ.get("OASIS_DATA_DIR")):
        roots = REPOSITORY / "data" / "cohort", own_folder("data/cohort")
        made = any((root / LAYOUT_FOLDER).is_dir() for root in roots)
        return "ok", f"data: synthetic cohort{'' if made else '; the first use makes it'}"
    root = Path(os.path.realpath(os.path.expanduser(named)))
    if (root / LAYOUT_FOLDER).is_dir() or (root / "keras_png_slices_train").is_dir():
        return "ok", f"data: {root}"
    problem = f"holds no {LAYOUT_FOLDER}/" if root.is_dir() else "is not a folder"
    return "FAIL", f"data: {root} {problem}; change OASIS_DATA_DIR or unset it"


def existing(folder: Path) -> Path:
    """The folder, or the one that it will be made in."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def check_writable(folder: Path, otherwise: str = "FAIL") -> tuple[str, str]:
    """Whether files can be written to this folder, or to the one that it will be made in."""
    try:
        tempfile.TemporaryFile(dir=existing(folder)).close()
    except OSError as error:
        return otherwise, f"{folder}: not writable ({error.strerror}); change its permissions"
    return "ok", f"{folder}: writable"


def diagnose() -> list[tuple[str, str]]:
    """Every check; with another Python, the first alone, as the rest would mean nothing."""
    if (python := check_python())[0] == "FAIL":
        return [python]
    cache = Path(os.environ.get("OASIS_CACHE_DIR") or own_folder("data/cache"))
    checks = (check_cores, check_memory, check_disk, check_packages, check_backend)
    results = [python, *(check() for check in (*checks, check_profile, check_data))]
    results += [check_writable(own_folder(name)) for name in ("build", "data")]
    return [*results, check_writable(cache, "warn")]


def main() -> None:
    """Prints a line for each check; exits with 1 where the course cannot run."""
    sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal can show every path
    results = diagnose()
    print("\n".join(f"{status:<4}  {text}" for status, text in results))
    sys.exit(any(status == "FAIL" for status, _ in results))


if __name__ == "__main__":
    main()
