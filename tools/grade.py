"""Grades the *fill in* exercises of handed-in notebooks: `python -m oasis_helpers grade FOLDER`.

Every exercise of every notebook gets a fresh kernel in an empty folder of its own. The kernel runs
the student's last attempt up to its check, and before it the earlier cells that define a name which
these cells use: imports and helpers, but no training that the exercise does not need. Then
`tools/verdict.py` checks the function again. The table is written to `FOLDER/grades.csv`.
"""

from __future__ import annotations

import argparse
import ast
import csv
import io
import logging
import os
import re
import subprocess
import symtable
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

from oasis_helpers.__main__ import ending_with_a_sentence
from oasis_helpers.data import REPOSITORY, write_bytes
from tools.verdict import PASSED

CALL = re.compile(r"^checks\.(\w+)\((\w+)\)", re.MULTILINE)
USES_CHECKS = re.compile(r"\bchecks\b|\bimport \*")  # a star may import anything
VERDICTS = {  # of what a check says; anything else is a hint
    PASSED: "passed",
    "not attempted yet": "not attempted",
    "your code stopped": "crashed",
}


class Exercise(NamedTuple):
    """An exercise that checks itself, such as 6.3, `checks.kid(kid)`."""

    number: str
    check: str
    function: str


class Notebook(NamedTuple):
    """A notebook of the course: the code that students were given, and its exercises."""

    sources: set[str]
    exercises: list[Exercise]


class Attempt(NamedTuple):
    """A student's last attempt at an exercise."""

    check: str
    function: str  # the name that the check is called with
    sources: list[str]  # of the cells to run; the last one ends with that call
    claims: bool  # whether the output that was handed in says `passed`
    given: set[str]  # what the course gave: known to end


class Row(NamedTuple):
    """A line of the table."""

    file: str
    exercise: str
    verdict: str
    says: str = ""
    noticed: str = ""


def course() -> list[Notebook]:
    """The notebooks of the course."""
    notebooks = []
    for path in sorted((REPOSITORY / "notebooks").glob("0[1-9]_*.ipynb")):
        cells = code_in(path)
        exercises = [
            Exercise(f"{int(path.name[:2])}.{cell.id.removeprefix('exercise-')}", *call)
            for cell in cells
            for call in CALL.findall(cell.source)
        ]
        notebooks.append(Notebook({cell.source for cell in cells}, exercises))
    return notebooks


def code_in(path: Path) -> list[nbformat.NotebookNode]:
    """The code cells of a notebook.

    Raises:
        ValueError: when the file is no notebook.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # a damaged file makes nbformat raise almost anything
        reason = str(error).partition("\n")[0]
        raise ValueError(f"not a notebook ({type(error).__name__}: {reason})") from None
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def notebook_of(cells: list[nbformat.NotebookNode], notebooks: list[Notebook]) -> Notebook | None:
    """The notebook of the course that these cells are from; None for any other notebook."""
    sources = {cell.source for cell in cells}

    def common(notebook: Notebook) -> int:
        calls = [f"checks.{exercise.check}(" for exercise in notebook.exercises]
        return len(sources & notebook.sources) + sum(call in "".join(sources) for call in calls)

    likest = max(notebooks, key=common)
    return likest if common(likest) else None


def names_in(source: str) -> tuple[set[str], set[str]]:
    """The global names that a cell defines, and those that it uses; none if it is no Python."""
    try:
        python = TransformerManager().transform_cell(re.sub(r"\A\s*%%.*", "", source))
        top = symtable.symtable(python, "cell", "exec")
    except SyntaxError:
        return set(), set()
    defined = {
        name.get_name() for name in top.get_symbols() if name.is_assigned() or name.is_imported()
    }
    used, waiting = set(), [top]
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        used |= {
            name.get_name()
            for name in table.get_symbols()
            if name.is_referenced() and (table is top or name.is_global())
        }
    return defined, used


def last_attempt(
    exercise: Exercise, cells: list[nbformat.NotebookNode], given: set[str]
) -> Attempt | None:
    """A student's last attempt, with the cells that it needs; None where there is none.

    An attempt is a cell that the student wrote or changed, and that defines the function or calls
    the check. Their cells that do anything else with `checks` run before it, so that it is noticed.
    """
    sources = [cell.source for cell in cells]
    names = [names_in(source) for source in sources]
    own = [i for i, source in enumerate(sources) if source not in given]
    call = f"checks.{exercise.check}("
    attempts = [i for i in own if exercise.function in names[i][0] or call in sources[i]]
    if not attempts:
        return None
    last, function, end = attempts[-1], exercise.function, None
    for match in CALL.finditer(sources[last]):
        if match[1] == exercise.check:
            function, end = match[2], match.end()
    tried = sources[last][:end]
    needed = {i for i in own if i < last and USES_CHECKS.search(CALL.sub("", sources[i]))}
    while True:
        used = names_in(tried)[1].union(*(names[i][1] for i in needed))
        if not (more := {i for i in range(last) if names[i][0] & used} - needed):
            break
        needed |= more
    run = [*(sources[i] for i in sorted(needed)), tried]
    claims = says_passed(exercise.check, cells[last])
    return Attempt(exercise.check, function, run, claims, given)


def says_passed(check: str, cell: nbformat.NotebookNode) -> bool:
    """Whether the output of a cell says `passed`, whatever printed it."""
    return any(f"{check}: passed" in output.get("text", "") for output in cell.outputs)


def run(attempt: Attempt, seconds: int) -> tuple[str, str, str]:
    """Runs an attempt in a fresh kernel: its verdict, what the check says, what was noticed."""
    check, function = attempt.check, attempt.function
    question = f"__import__('tools.verdict').verdict.verdict({check!r}, {function})"
    cells = [nbformat.v4.new_code_cell(source) for source in (*attempt.sources, question)]
    with tempfile.TemporaryDirectory(prefix="grade-", ignore_cleanup_errors=True) as folder:
        client = NotebookClient(
            nbformat.v4.new_notebook(cells=cells),
            timeout_func=lambda cell: seconds * (10 if cell.source in attempt.given else 1),
            kernel_name="python3",
            allow_errors=True,
            shutdown_kernel="immediate",
            resources={"metadata": {"path": folder}},
        )
        client.log.disabled = True  # the table says what went wrong
        client.create_kernel_manager().kernel_spec_manager.kernel_dirs = []  # this Python, no other
        # Not the teacher's weights, nor the history of what other students' kernels ran.
        own = {"IPYTHONDIR": f"{folder}/ipython", "OASIS_MY_WEIGHTS": f"{folder}/my_weights"}
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        try:
            *_, last, asked = client.execute(env={**os.environ, **own}, **silent).cells
        except TimeoutError:
            return "timed out", f"not finished after {seconds} seconds", ""
        except RuntimeError as error:  # the kernel has died, or did not start
            return "crashed", f"{error}", ""
    for part in asked.outputs:
        if part.output_type == "execute_result":
            says, noticed = ast.literal_eval(part.data["text/plain"])
            verdicts = [verdict for begin, verdict in VERDICTS.items() if says.startswith(begin)]
            verdict = verdicts[0] if verdicts else "hint"
            if verdict != "passed" and says_passed(check, last):
                noticed += "; it prints `passed` itself"
            return verdict, says, noticed.removeprefix("; ")
    errors = [part for cell in (last, asked) for part in cell.outputs if "ename" in part]
    return "crashed", "{ename}: {evalue}".format(**errors[0]) if errors else "no answer", ""


def jobs_of(file: str, path: Path, notebooks: list[Notebook]) -> Iterator[tuple[Row, Attempt]]:
    """The lines of a file, each with the attempt that fills it; None where nothing has to run."""
    try:
        cells = code_in(path)
        if not (notebook := notebook_of(cells, notebooks)):
            raise ValueError("not a notebook of this course")
    except ValueError as error:
        yield Row(file, "", "crashed", str(error)), None
        return
    for exercise in notebook.exercises:
        attempt = last_attempt(exercise, cells, notebook.sources)
        yield Row(file, f"{exercise.number} {exercise.check}", "not attempted"), attempt


def graded(job: tuple[Row, Attempt | None], seconds: int) -> Row:
    """The finished line."""
    row, attempt = job
    if attempt:
        row = Row(row.file, row.exercise, *run(attempt, seconds))
        if attempt.claims and row.verdict != "passed" and not row.noticed:
            row = row._replace(noticed="the output that was handed in says `passed`")
    return row


def grade(folder: Path, kernels: int, seconds: int) -> list[Row]:
    """Grades all notebooks below a folder, so many kernels at once; prints each line."""
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*.ipynb"))}
    paths = {file: path for file, path in paths.items() if ".ipynb_checkpoints" not in path.parts}
    if not paths:
        raise ValueError(f"{folder}: no notebooks are there; name the folder that holds them.")
    notebooks, rows = course(), []
    jobs = [job for file, path in paths.items() for job in jobs_of(file, path, notebooks)]
    with ThreadPoolExecutor(kernels) as pool:
        for row in pool.map(partial(graded, seconds=seconds), jobs):
            print(f"{row.file}  {row.exercise}  {row.verdict}  {row.noticed}".rstrip(), flush=True)
            rows.append(row)
    return rows


def write_table(rows: list[Row], path: Path) -> None:
    """Writes a CSV file that spreadsheets read as text, also what looks like a formula."""
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(Row._fields)
    for row in rows:
        writer.writerow(f"'{text}" if text[:1] in set("=+-@") else text for text in row)
    write_bytes(path, table.getvalue().encode("utf-8-sig"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m oasis_helpers grade", description=__doc__)
    parser.add_argument("folder", type=Path, help="holds notebooks, also in folders of students")
    parser.add_argument("--kernels", type=int, default=os.cpu_count() or 1, help="at once")
    parser.add_argument("--seconds", type=int, default=60, help="for each cell of theirs")
    options = parser.parse_args()
    logging.getLogger("asyncio").disabled = True  # nbclient leaves tasks of kernels that it killed
    rows = grade(options.folder, options.kernels, options.seconds)
    write_table(rows, options.folder / "grades.csv")
    counts = Counter(row.verdict for row in rows)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()))
    print(f"{sum(bool(row.noticed) for row in rows)} to look at: see {options.folder}/grades.csv")


if __name__ == "__main__":
    ending_with_a_sentence(main)
