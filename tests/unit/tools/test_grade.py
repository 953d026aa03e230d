"""Which cells the grader runs, and what its own check says in a kernel that was changed."""

import importlib
import re

import nbformat
import numpy as np
import pytest

import oasis_helpers.checks
from oasis_helpers.data import REPOSITORY
from tools import grade
from tools.verdict import verdict

SET_UP = "import numpy as np\nfrom oasis_helpers import checks"
RIGHT = "def perplexity(p):\n    p = p[p > 0]\n    return 2 ** -(p * np.log2(p)).sum()\n\n\n"
CALL = "checks.perplexity(perplexity)"
PERPLEXITY = grade.Exercise("4.1", "perplexity", "perplexity")


def cells(*sources):
    return [nbformat.v4.new_code_cell(source) for source in sources]


def attempt(*sources, given=()):
    return grade.last_attempt(PERPLEXITY, cells(*sources), set(given))


def needed(*sources, given=()):
    return attempt(*sources, given=given).sources


def test_an_attempt_runs_with_what_it_needs_and_no_training():
    helper = "def log2(p):\n    return np.log2(p) / scale"
    scale = "scale: float = 1.0"
    training = "model = train(images)"
    own = f"def perplexity(p):\n    model = log2(p)\n    return model\n\n\n{CALL}"
    sources = [SET_UP, scale, training, helper, own]
    assert needed(*sources) == [SET_UP, scale, helper, own]


def test_what_follows_the_check_is_not_run():
    assert needed(SET_UP, "model = train()", f"{RIGHT}{CALL}  # mine\n\nmodel.predict()") == [
        SET_UP,
        RIGHT + CALL,
    ]


def test_a_stub_or_a_missing_exercise_is_no_attempt():
    stub = f"def perplexity(p):\n    ...\n\n\n{CALL}"
    assert attempt(SET_UP, stub, given={SET_UP, stub}) is None
    assert attempt(SET_UP, given={SET_UP}) is None


def test_the_last_attempt_counts_also_without_its_check():
    first = f"def perplexity(p):\n    return 1\n\n\n{CALL}"
    assert needed(SET_UP, first, RIGHT) == [SET_UP, RIGHT]
    assert attempt(SET_UP, RIGHT, "mine = perplexity", "checks.perplexity(mine)").function == "mine"


@pytest.mark.parametrize(
    "change",
    [
        "checks.perplexity = print",
        "import oasis_helpers.checks as c; c.perplexity = print",
        "from tricks import *",
    ],
)
def test_cells_that_may_change_the_checks_are_run(change):
    assert change in needed(SET_UP, change, RIGHT + CALL)


def test_another_exercise_with_an_endless_loop_is_not_run():
    other = "def kid(x, y):\n    while True: pass\n\n\nchecks.kid(kid)"
    assert needed(SET_UP, other, RIGHT + CALL) == [SET_UP, RIGHT + CALL]


@pytest.mark.parametrize("magic", ["%%time\n", "%matplotlib inline\n", "!ls\n"])
def test_names_are_found_beside_magics(magic):
    assert needed(SET_UP, magic + RIGHT + CALL) == [SET_UP, magic + RIGHT + CALL]


def test_what_is_no_python_is_still_an_attempt():
    broken = f"def perplexity(p:\n\n{CALL}"
    assert needed(SET_UP, broken, given={SET_UP}) == [broken]


def test_every_exercise_of_the_course_has_a_number():
    exercises = [exercise for notebook in grade.course() for exercise in notebook.exercises]
    assert len(exercises) == 14 and {len(notebook.exercises) for notebook in grade.course()}
    assert grade.Exercise("6.3", "kid", "kid") in exercises and PERPLEXITY in exercises


def test_copies_are_recognised_whatever_their_name(tmp_path):
    course = grade.course()
    for path in sorted((REPOSITORY / "notebooks").glob("0[1-9]_*.ipynb")):
        own = grade.notebook_of(grade.code_in(path), course)
        assert own.exercises[0].number.split(".")[0] == str(int(path.name[:2]))
    fourth = grade.notebook_of(cells(SET_UP, RIGHT + CALL), course)
    assert PERPLEXITY in fourth.exercises
    assert grade.notebook_of(cells("print(1)"), course) is None
    (tmp_path / "damaged.ipynb").write_text("{")
    (row, nothing), *others = grade.jobs_of("x", tmp_path / "damaged.ipynb", course)
    assert row.verdict == "crashed" and "not a notebook" in row.says and not (nothing or others)


def test_a_spreadsheet_reads_text_not_formulas(tmp_path):
    rows = [
        grade.Row('=HYPERLINK("x").ipynb', "4.1", "hint", "ä, 1"),
        grade.Row("b", "4.1", "hint"),
    ]
    grade.write_table(rows, tmp_path / "grades.csv")
    lines = (tmp_path / "grades.csv").read_text(encoding="utf-8-sig").splitlines()
    assert lines[0] == "file,exercise,verdict,says,noticed"
    assert lines[1] == '"\'=HYPERLINK(""x"").ipynb",4.1,hint,"ä, 1",'


# ------------------------------------------------------------------------- the grader's own check


def right(p):
    p = p[p > 0]
    return 2 ** -(p * np.log2(p)).sum()


def test_the_verdict_is_that_of_the_check():
    assert verdict("perplexity", right)[0].startswith("passed (") and not verdict("kid", right)[1]
    assert verdict("perplexity", lambda p: None)[0].startswith("not attempted yet")
    assert verdict("perplexity", lambda p: 1 / 0)[0].startswith("your code stopped")
    assert verdict("perplexity", lambda p: 4)[0].startswith("Unequal frequencies")


def test_wrong_answers_fail_in_every_exercise():
    """Solutions pass without a remark: the wrong answers that are made from them do not pass."""
    for path in sorted((REPOSITORY / "notebooks" / "solutions").glob("0[1-9]_*.ipynb")):
        names = {"np": np, "BRAIN_THRESHOLD": oasis_helpers.data.BRAIN_THRESHOLD}
        names["ops"] = importlib.import_module("keras.ops")
        for cell in grade.code_in(path):
            for call in grade.CALL.finditer(cell.source):
                exec(cell.source[: call.start()], names)
                says, noticed = verdict(call[1], names[call[2]])
                assert says.startswith("passed (") and not noticed, (path.name, call[1])


@pytest.mark.parametrize("answer", [right, lambda p: 4])
def test_changes_of_the_checks_are_noticed_and_do_not_count(monkeypatch, answer):
    before, _ = verdict("perplexity", answer)
    monkeypatch.setattr(oasis_helpers.checks, "perplexity", lambda f: print("perplexity: passed"))
    monkeypatch.setattr(oasis_helpers.checks, "_failure", lambda *a: "")
    says, noticed = verdict("perplexity", answer)
    assert says == before
    assert noticed == "checks._failure was changed; checks.perplexity was changed"


def test_another_object_named_checks_is_noticed(monkeypatch):
    monkeypatch.setattr("__main__.checks", oasis_helpers.checks, raising=False)
    assert verdict("perplexity", right)[1] == ""
    monkeypatch.setattr("__main__.checks", object())
    assert verdict("perplexity", right)[1] == "the name `checks` was changed"


def test_numpy_that_finds_everything_equal_is_noticed(monkeypatch):
    monkeypatch.setattr(np, "allclose", lambda *arguments, **options: True)
    says, noticed = verdict("perplexity", lambda p: 0.0)
    assert says.startswith("not known") and "was changed" in noticed


def test_what_the_function_prints_is_no_verdict(monkeypatch):
    monkeypatch.setattr("builtins.print", lambda *a: None)
    says, _ = verdict("perplexity", lambda p: print("perplexity: passed (all)") or 4)
    assert re.match("Unequal", says)
