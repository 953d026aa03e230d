"""Starts JupyterLab on a student's own copies: `python -m oasis_helpers lab`, or `make lab`.

What is missing in `my_notebooks/` is copied there from `notebooks/`; nothing in it is overwritten.
Git ignores that folder, so `git pull` never meets a student's work. Copies of the series have no
outputs: no answer stands there before its question. If this user cannot write to the checkout, the
copies are in `~/my_brain_course/`. Options after `lab` go to JupyterLab.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from pathlib import Path

from oasis_helpers import REPOSITORY, own_folder
from oasis_helpers.__main__ import ending_with_a_sentence
from oasis_helpers.data import write_bytes

NOTEBOOKS, MINE = REPOSITORY / "notebooks", own_folder("my_notebooks")
# What copies and pages lead to; JupyterLab serves no link that leaves its folder.
PAGES = ("*.md", "docs/*.md", *(f"data/weights/*/*.{kind}" for kind in ("md", "gif", "png")))
START = "00_start.ipynb"
# What JupyterLab writes: where it is stored already, opening a notebook changes nothing.
KERNEL = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
        "version": platform.python_version(),
    },
}

# TensorFlow's libraries greet in red, which no setting of theirs stops: the terminal shows it.
IPYTHON = "c = get_config()\nc.IPKernelApp.capture_fd_output = False\n"


def copy_missing() -> list[str]:
    """Copies what `MINE` lacks; returns the notebooks there that have a newer version."""
    outdated = []
    for source in sorted(NOTEBOOKS.rglob("*")):
        if not source.is_file() or ".ipynb_checkpoints" in source.parts:
            continue
        content, target = source.read_bytes(), MINE / source.relative_to(NOTEBOOKS)
        if source.suffix == ".ipynb":
            notebook = json.loads(content)
            for cell in notebook["cells"] if source.parent == NOTEBOOKS else ():
                if cell["cell_type"] == "code":
                    cell |= {"outputs": [], "execution_count": None}
            sources = json.dumps([cell["source"] for cell in notebook["cells"]])
            version = hashlib.sha256(sources.encode()).hexdigest()[:16]
            notebook["metadata"] |= KERNEL | {"course_version": version}
            content = json.dumps(notebook, indent=1, ensure_ascii=False).encode() + b"\n"
        if target.exists():
            if target.suffix == ".ipynb" and copied_version(target) not in (version, None):
                outdated.append(str(target.relative_to(MINE)))
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, content)
    return outdated


def copy_pages(folder: Path) -> None:
    """Copies the pages to a student's folder, if that is not the checkout; replaces older ones."""
    for pattern in PAGES if folder != REPOSITORY else ():
        for page in REPOSITORY.glob(pattern):
            target = folder / page.relative_to(REPOSITORY)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(target, page.read_bytes())


def copied_version(copy: Path) -> str | None:
    """The version that a copy was made from; None for a notebook of the student's own."""
    try:
        return json.loads(copy.read_bytes())["metadata"].get("course_version")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def main() -> None:
    """Copies what is missing, names what is outdated, and starts JupyterLab."""
    from jupyterlab.labapp import LabApp

    outdated, root = copy_missing(), MINE.parent
    copy_pages(root)
    print(f"Your notebooks are in {MINE}; git leaves this folder alone.")
    for name in outdated:
        print(f"  {name}: the course has a newer version; rename or remove your copy to get it.")
    settings = Path(os.environ["IPYTHONDIR"], "profile_default", "ipython_kernel_config.py")
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_bytes(IPYTHON.encode())
    page = f"--LabApp.default_url=/lab/tree/{MINE.name}/{START}"
    LabApp.launch_instance([f"--ServerApp.root_dir={root}", page, *sys.argv[1:]])


if __name__ == "__main__":
    ending_with_a_sentence(main)
