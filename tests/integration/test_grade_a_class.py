"""Handed-in notebooks get the right table: kernels of their own, a time limit, no way to cheat."""

import contextlib
import csv
import os
import threading
import time

import nbformat
import psutil
import pytest

from oasis_helpers.data import REPOSITORY
from tools import grade

FIRST = REPOSITORY / "notebooks" / "01_data_exploration.ipynb"
CALL = "\n\n\nchecks.perplexity(perplexity)"
RIGHT = "def perplexity(p):\n    return 2 ** -(p[p > 0] * np.log2(p[p > 0])).sum()" + CALL
ALONE = (
    """
import os, pathlib
assert not list(pathlib.Path().rglob("*.ipynb"))
for name in ("IPYTHONDIR", "OASIS_MY_WEIGHTS"):
    assert pathlib.Path(os.environ[name]).parent == pathlib.Path.cwd(), name
"""
    + RIGHT
)


def hand_in(path, *sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def test_each_notebook_gets_its_verdict(tmp_path):
    """Cells that import no framework, so that a kernel takes a second."""
    set_up = "import numpy as np\nfrom oasis_helpers import checks"
    for name, source in {
        "Ada/right": RIGHT,
        "alone": ALONE,
        "endless": "while True:\n    import time; time.sleep(1)\n" + RIGHT,
        "killed": "import os; os.kill(os.getpid(), 9)\n" + RIGHT,
        "raises": "undefined" + CALL,
    }.items():
        hand_in(tmp_path / f"{name}.ipynb", set_up, source)
    (tmp_path / "damaged.ipynb").write_text("{")
    rows = {
        row.file.removesuffix(".ipynb"): row
        for row in grade.grade(tmp_path, kernels=2, seconds=10)
        if row.exercise != "4.2 upper_pairs"
    }
    assert {file: row.verdict for file, row in rows.items()} == {
        "Ada/right": "passed",
        "alone": "passed",
        "damaged": "crashed",
        "endless": "timed out",
        "killed": "crashed",
        "raises": "crashed",
    }
    assert rows["raises"].says == "NameError: name 'undefined' is not defined"
    assert rows["killed"].says == "Kernel died" and rows["endless"].says.startswith("not finished")


# -------------------------------------------------------------------------------------- a class

STUB = "def mirror_difference(images):\n    mirrored = images[:, :, ::-1]\n"
BRAIN = "    brain = images > BRAIN_THRESHOLD\n    part = np.abs(images - mirrored) * brain\n"
CALL_1 = "\n\nchecks.mirror_difference(mirror_difference)\n"
RIGHT_1 = STUB + BRAIN + "    return part.sum((1, 2, 3)) / brain.sum((1, 2, 3))\n" + CALL_1
WRONG_1 = STUB + "    return np.abs(images - mirrored).mean((1, 2, 3))\n" + CALL_1
CLAIM = "print('mirror_difference: passed (all)')"
HELPER = "def mean(values, brain):\n    return values.sum((1, 2, 3)) / brain.sum((1, 2, 3))"
PATCH = "import oasis_helpers.checks as own; own.mirror_difference = lambda f: " + CLAIM

# (verdict, beginning of a word noticed): (the cell of the exercise, a cell before it)
CLASS = {
    ("passed", ""): [
        (RIGHT_1, ""),
        ("%%time\n" + RIGHT_1, ""),
        (RIGHT_1 + "\nundefined", "1 / 0"),
        (STUB + BRAIN + "    return mean(part, brain)\n" + CALL_1, HELPER),
        (
            RIGHT_1.replace("(mirror_difference)", "(mine)").replace(
                "def mirror_difference", "def mine"
            ),
            "",
        ),
    ],
    ("hint", ""): [
        (WRONG_1, ""),
        (STUB + BRAIN + "    return part.sum((1, 2, 3)) / part.size\n" + CALL_1, ""),
        (STUB + BRAIN + "    return part.sum() / brain.sum()\n" + CALL_1, ""),
        (STUB + "    return np.zeros(len(images))\n" + CALL_1, "import numpy as np"),
        (STUB + "    return 1.0\n" + CALL_1, ""),
    ],
    ("not attempted", ""): [
        (None, ""),
        ("", ""),
        ("# I do not know", ""),
        (STUB + "    ...  # I do not know\n" + CALL_1, ""),
        (STUB + "    return None\n" + CALL_1, "note = 'too difficult'"),
    ],
    ("timed out", ""): [
        (STUB + "    while True: pass\n" + CALL_1, ""),
        ("while True: pass\n" + RIGHT_1, ""),
        ("while True:\n    try: input()\n    except BaseException: pass\n" + RIGHT_1, ""),
    ],
    ("crashed", ""): [
        (STUB + "    return undefined\n" + CALL_1, ""),
        (STUB + "    return images[\n" + CALL_1, ""),
        ("undefined\n" + RIGHT_1, ""),
        (STUB + "    import os; os._exit(1)\n" + CALL_1, ""),
        (STUB + "    raise SystemExit\n" + CALL_1, ""),
    ],
    ("hint", "it prints"): [
        (WRONG_1.replace("\n\n\n", "\n\n" + CLAIM + "\n"), ""),
        (WRONG_1.replace("    return", f"    {CLAIM}\n    return"), ""),
    ],
    ("hint", "the name `checks`"): [
        (WRONG_1, "class checks:\n    mirror_difference = print"),
    ],
    ("hint", "checks.mirror_difference was"): [(WRONG_1, PATCH)],
    ("passed", "checks.mirror_difference was"): [(RIGHT_1, PATCH)],
    ("hint", "checks._failure was"): [(WRONG_1, "checks._failure = lambda *all: ''")],
    ("hint", "something that the checks use"): [
        ("np.allclose = lambda *all, **more: True\n" + WRONG_1, ""),
    ],
}


def hand_in_all(folder):
    """Thirty copies of notebook 01; returns what the table must say, in the order of the files.

    All but the first have a set-up of their own, which imports no framework, so that the test is
    cheap.
    """
    expected = []
    for outcome, submissions in CLASS.items():
        for source, before in submissions:
            notebook = nbformat.read(FIRST, as_version=4)
            (at,) = (i for i, cell in enumerate(notebook.cells) if cell.id == "exercise-2")
            if source is None:
                del notebook.cells[at]
            else:
                notebook.cells[at].source = source
            notebook.cells.insert(at, nbformat.v4.new_code_cell(before))
            if expected:
                (set_up,) = (cell for cell in notebook.cells if cell.id == "set-up")
                set_up.source = "import numpy as np\nfrom oasis_helpers import checks"
                set_up.source += "\nfrom oasis_helpers.data import BRAIN_THRESHOLD"
            nbformat.write(notebook, folder / f"{len(expected):02d} (Zoë).ipynb")
            expected.append(outcome)
    return expected


@contextlib.contextmanager
def watched():
    """Measures kernels of this process: (number, GB in their memory), the most at any time."""
    ended, most = threading.Event(), [0, 0.0]

    def watch():
        while not ended.wait(0.2):
            kernels, size = 0, 0
            for child in psutil.Process(os.getpid()).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    kernels += "ipykernel_launcher" in child.cmdline()
                    size += child.memory_info().rss
            most[:] = max(most[0], kernels), max(most[1], size / 1e9)

    thread = threading.Thread(target=watch)
    thread.start()
    yield most
    ended.set()
    thread.join()


@pytest.mark.long
def test_thirty_notebooks_of_a_class(tmp_path, capsys, monkeypatch):
    expected = hand_in_all(tmp_path)
    assert len(expected) == 30
    words = ["grade", str(tmp_path), "--kernels", "2", "--seconds", "30"]
    monkeypatch.setattr("sys.argv", words)
    started = time.perf_counter()
    with watched() as most:
        grade.main()
    minutes = (time.perf_counter() - started) / 60
    with open(tmp_path / "grades.csv", encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    with capsys.disabled():
        print(f"\n30 notebooks: {minutes:.1f} minutes, {most[0]} kernels, {most[1]:.1f} GB at most")
    assert [row["file"] for row in table] == [f"{i:02d} (Zoë).ipynb" for i in range(30)]
    wrong = [
        row
        for row, (verdict, noticed) in zip(table, expected)
        if row["verdict"] != verdict
        or not row["noticed"].startswith(noticed)
        or bool(row["noticed"]) != bool(noticed)
    ]
    assert not wrong
    assert most[0] == 2 and most[1] < 3
