"""pyproject.toml, the locks and environment.yml agree; licences are known."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import oasis_helpers

REPOSITORY = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
# extras that each lock holds beside the package's own needs
LOCKS = {
    "requirements.lock": ["notebooks"],
    "requirements-dev.lock": ["notebooks", "test", "docs", "dev"],
}
# GPL and AGPL would reach into what is built on them; LGPL and MPL stay with their files.
STRONG_COPYLEFT = re.compile(
    r"(?<!L)GPL|(?<!Lesser )General Public|SSPL|Commercial|Proprietary", re.IGNORECASE
)
UNNAMED = ["namex"]  # its metadata name no licence; the file that comes with it does
OPTIONAL = {"jax"}  # a backend, imported where it is the one in use


def wanted(extras: list[str]) -> list[Requirement]:
    texts = {*PROJECT["dependencies"], *(text for extra in extras for text in EXTRAS[extra])}
    return [Requirement(text) for text in sorted(texts)]


def pins(lock: str) -> dict[str, set[str]]:
    """Versions of each package of a lock: two where they differ between versions of Python."""
    text = (REPOSITORY / lock).read_text(encoding="utf-8")
    found = {}
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


@pytest.mark.parametrize(("lock", "extras"), LOCKS.items())
def test_locks_hold_what_pyproject_asks_for(lock, extras):
    locked = pins(lock)
    for requirement in wanted(extras):
        versions = locked.get(requirement.name, set())
        assert versions, f"{requirement.name} is not in {lock}: run `make lock`"
        assert all(map(requirement.specifier.contains, versions)), f"{requirement}: `make lock`"


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_file_has_a_hash_and_no_registry_is_named(lock):
    text = (REPOSITORY / lock).read_text(encoding="utf-8")
    assert not re.search(r"https?://|index-url|find-links", text)
    entries = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert entries and all("--hash=sha256:" in entry for entry in entries)


def test_the_second_lock_holds_the_first():
    first, second = map(pins, LOCKS)
    assert first.items() <= second.items()


def test_conda_installs_package_notebooks_and_tests_as_locked():
    conda = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    assert conda["name"] == "oasis-vqvae"
    *exact, editable = conda["dependencies"][-1]["pip"]
    assert editable == "--editable ."
    locked = pins("requirements-dev.lock")
    expected = {
        (need.name, f"=={version}", str(need.marker))
        for need in wanted(["notebooks", "test"])
        for version in locked[need.name]
    }
    found = map(Requirement, exact)
    assert {(need.name, str(need.specifier), str(need.marker)) for need in found} == expected


def imported(folder: Path) -> set[str]:
    """The top-level modules that the Python files of a folder import."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").split(".")[0])
    return names - set(sys.stdlib_module_names) - {folder.name, ""}


def test_the_package_asks_for_what_it_imports_and_for_nothing_else():
    needs = {need.name for need in wanted([])} - {"tensorflow-cpu"}  # another wheel of the same
    distributions = packages_distributions() | {"tensorflow": ["tensorflow"]}
    modules = imported(REPOSITORY / "oasis_helpers") - OPTIONAL
    assert {distributions[module][0].lower() for module in modules} == needs


def test_pyproject_gives_ranges():
    texts = [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]
    assert [text for text in texts if not re.search(r">=[\d.]+,<[\d.]+", text)] == []


def test_every_licence_is_known_and_none_is_strong_copyleft():
    pytest.importorskip("piplicenses", reason="pip-licenses is in the extra 'dev'")
    command = [sys.executable, "-m", "piplicenses", "--format=json", "--with-system", "--packages"]
    run = subprocess.run([*command, *pins("requirements.lock")], capture_output=True, check=True)
    found = {row["Name"]: row["License"] for row in json.loads(run.stdout)}
    assert len(found) > 100, "of some 140 packages"
    assert [name for name, licence in found.items() if licence == "UNKNOWN"] == UNNAMED
    for name in UNNAMED:
        files = [file for file in metadata.files(name) if file.name.startswith("LICEN")]
        assert any("Apache License" in file.read_text() for file in files)
    assert not [row for row in found.items() if STRONG_COPYLEFT.search(row[1])]


def test_strong_copyleft_is_told_from_weak():
    for name in ("GPL-3.0-only", "GNU Affero General Public License v3", "AGPL-3.0"):
        assert STRONG_COPYLEFT.search(name)
    for name in ("LGPL-2.1", "GNU Lesser General Public License", "MPL-2.0", "MIT"):
        assert not STRONG_COPYLEFT.search(name)


def test_the_version_stands_in_one_place():
    dynamic = PYPROJECT["tool"]["setuptools"]["dynamic"]
    assert dynamic == {"version": {"attr": "oasis_helpers.__version__"}}
    files = [REPOSITORY / "pyproject.toml", *(REPOSITORY / "oasis_helpers").rglob("*.py")]
    found = [path for path in files if oasis_helpers.__version__ in path.read_text("utf-8")]
    assert found == [REPOSITORY / "oasis_helpers" / "__init__.py"]


def test_type_checkers_find_the_hints():
    assert (REPOSITORY / "oasis_helpers" / "py.typed").read_text() == ""
