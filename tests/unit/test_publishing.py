"""What the outside sees: workflows, badges, containers and citation agree with the repository."""

import json
import re
import subprocess
import sys
import tomllib

import nbformat
import pytest
import yaml

import oasis_helpers
from oasis_helpers.data import REPOSITORY

ADDRESS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
OWNER_AND_NAME = ADDRESS["Repository"].removeprefix("https://github.com/")
TAG = f"v{re.match(r'[0-9.]+[0-9]', oasis_helpers.__version__)[0]}"
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("0[1-9]*.ipynb"))
PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CITATION.cff")]
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
ELSEWHERE = re.compile(
    r"(?:https://github\.com|colab\.research\.google\.com/github|mybinder\.org/v2/gh|codespaces\.new)"
    r"/([\w.-]+/[\w-]+)(?:/(?:blob/)?(v[\w.]+))?"
)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_what_the_makefile_offers(path):
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    targets = re.search(r"^\.PHONY: (.*?[^\\])\n", makefile, re.DOTALL | re.MULTILINE)[1].split()
    jobs = yaml.safe_load(path.read_text("utf-8"))["jobs"].values()
    commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    assert commands and {f"make {target}" for target in targets} >= {*commands}


def test_every_system_and_python_is_tested():
    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/test.yml").read_text("utf-8"))
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    assert [name.split("-")[0] for name in matrix["system"]] == ["ubuntu", "macos", "windows"]
    assert matrix["python"] == ["3.11", "3.12", "3.13"]


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
def test_the_address_and_the_tag_are_those_of_the_package(path):
    found = ELSEWHERE.findall(path.read_text("utf-8"))
    assert {address for address, _ in found} == {OWNER_AND_NAME}, "see CONTRIBUTING.md"
    assert {tag for _, tag in found} <= {TAG, ""}, "see CONTRIBUTING.md"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_badges_open_their_own_notebook(path):
    title = nbformat.read(path, as_version=4).cells[0].source
    links = re.findall(r"\[!\[(\w+)\]\(images/\w+\.svg\)\]\((\S+?)\)", title)
    assert [name for name, _ in links] == ["Colab", "Binder"]
    assert all(link.endswith(f"/{path.name}") for _, link in links)


@pytest.mark.skipif(sys.platform == "win32", reason="Colab runs Linux")
def test_the_first_cell_installs_the_course_in_colab_alone(tmp_path, monkeypatch):
    cells = {
        next(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code")
        for path in NOTEBOOKS
    }
    (cell,) = cells  # the same in every notebook
    for name in ("git", "pip"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*" >> commands\n', "utf-8")
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(sys, "path", [*sys.path])
    exec(cell, {})
    assert not (tmp_path / "commands").exists() and "course" not in sys.path
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    exec(cell, {})
    assert (tmp_path / "commands").read_text("utf-8").splitlines() == [
        f"git clone -q --depth 1 -b {TAG} https://github.com/{OWNER_AND_NAME} course",
        "pip uninstall -qy tensorflow",
        "pip install -q -e course",
    ]
    assert sys.path[-1] == "course"
    (tmp_path / "pip").write_text("#!/bin/sh\nexit 1\n", "utf-8")
    with pytest.raises(subprocess.CalledProcessError):
        exec(cell, {})


def test_containers_are_built_from_the_lock():
    requirements = (REPOSITORY / ".binder" / "requirements.txt").read_text("utf-8").split()
    assert requirements == ["-r", "../requirements.lock"]
    container = json.loads((REPOSITORY / ".devcontainer/devcontainer.json").read_text("utf-8"))
    assert container["onCreateCommand"].startswith("make environment && ")  # from the same lock


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == oasis_helpers.__version__
