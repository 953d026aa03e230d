"""Kernels that `run` and nbval start: no settings of other projects, sentences when they stop."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from oasis_helpers.data import REPOSITORY

FIGURE = "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()"
EXECUTE = """
import sys
from pathlib import Path
from oasis_helpers import __main__ as commands

def command():
    commands.ignore_other_settings()
    from tools import notebooks
    notebooks.NOTEBOOKS, notebooks.BUILD = Path({folder!r}), Path({folder!r})
    notebooks.execute(Path({folder!r}, "00_test.ipynb"), Path({folder!r}, "executed.ipynb"))

commands.ending_with_a_sentence(command)
"""


@pytest.fixture
def foreign_home(tmp_path):
    """A home folder with the settings of another project."""
    home = tmp_path / "home"
    other = {"floatx": "float16", "backend": "theano", "image_data_format": "channels_first"}
    for file, text in {
        ".keras/keras.json": json.dumps(other | {"epsilon": 1e-3}),
        ".config/matplotlib/matplotlibrc": "backend: agg\nimage.cmap: hot\n",
        ".ipython/profile_default/startup/00.py": "print = len = None\n",
        ".ipython/profile_default/ipython_config.py": "c.InlineBackend.figure_formats = ['svg']\n",
        ".pythonstartup": "print = len = None\n",
    }.items():
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).write_text(text)
    kernel = home / ".local" / "share" / "jupyter" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": ["/no/such/python"], "display_name": "other"}))
    settings = {"HOME": str(home), "PYTHONSTARTUP": str(home / ".pythonstartup")}
    settings |= {"MPLBACKEND": "Agg", "JUPYTER_PREFER_ENV_PATH": "0"}
    names = ("KERAS_HOME", "KERAS_BACKEND", "IPYTHONDIR", "MATPLOTLIBRC")
    return {name: os.environ[name] for name in os.environ if name not in names} | settings


def write_notebook(folder: Path, *sources: str, **metadata) -> Path:
    cells = [nbformat.v4.new_code_cell(source, metadata=metadata) for source in sources]
    path = folder / "00_test.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def start(folder: Path, **options) -> subprocess.Popen:
    code = EXECUTE.format(folder=str(folder))
    command = [sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=REPOSITORY, **pipes, **options)


def ended(process: subprocess.Popen) -> tuple[int, str]:
    output = "".join(process.communicate(timeout=120))
    assert "Traceback" not in output, output
    return process.returncode, output


@pytest.mark.long
def test_settings_of_other_projects_stay_out(tmp_path, foreign_home):
    show = "import keras; print(keras.config.floatx(), keras.config.image_data_format())"
    lines = "print(keras.backend.backend(), len('abc'), plt.rcParams['image.cmap'])"
    where = "import oasis_helpers; print(oasis_helpers.__file__)"
    write_notebook(tmp_path, FIGURE, show, lines, where)
    code, output = ended(start(tmp_path, env=foreign_home))
    assert code == 0, output
    cells = nbformat.read(tmp_path / "executed.ipynb", as_version=4).cells
    assert any("image/png" in part.get("data", {}) for part in cells[0].outputs)
    printed = "".join(part.text for cell in cells[1:] for part in cell.outputs)
    imported = REPOSITORY / "oasis_helpers" / "__init__.py"
    assert printed == f"float32 channels_last\ntensorflow 3 gray\n{imported}\n".replace(
        "gray", "viridis"
    )


@pytest.mark.parametrize("backend", ["", "theano", "jax-not-installed", "os"])
def test_the_command_run_needs_a_backend_that_keras_has(foreign_home, backend):
    foreign_home |= {"OASIS_DATA_DIR": "/nowhere"} | {"KERAS_BACKEND": backend}
    command = [sys.executable, "-m", "oasis_helpers", "run"]
    run = subprocess.run(command, env=foreign_home, cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    words = f"KERAS_BACKEND is {backend!r}" if backend else "OASIS_DATA_DIR is '/nowhere'"
    assert words in run.stderr


def test_a_backend_that_is_not_installed_is_named(foreign_home, tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")")
    foreign_home |= {"KERAS_BACKEND": "torch", "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "oasis_helpers", "run"]
    run = subprocess.run(command, env=foreign_home, cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "No module named 'torch'" in run.stderr and "oasis_helpers doctor" in run.stderr


def test_a_kernel_that_cannot_start_is_a_sentence(tmp_path):
    write_notebook(tmp_path, "1")
    (tmp_path / "ipykernel_launcher.py").write_text("raise ImportError('a file of the same name')")
    code, output = ended(start(tmp_path))
    assert code == 1 and f"see {tmp_path / 'kernels.log'}" in output
    assert "a file of the same name" in (tmp_path / "kernels.log").read_text()


@pytest.mark.long
def test_a_missing_figure_stops_the_run(tmp_path):
    write_notebook(tmp_path, "print('no figure')", alt="A line that rises from 1 to 2.")
    code, output = ended(start(tmp_path))
    assert code == 1 and "Cell 1 shows no figure" in output
    write_notebook(tmp_path, FIGURE, alt="A line that rises from 1 to 2.")
    assert ended(start(tmp_path))[0] == 0


@pytest.mark.parametrize("seconds", [0, pytest.param(1.5, marks=pytest.mark.long)])
def test_an_interruption_ends_with_130(tmp_path, seconds):
    started = tmp_path / "started"
    write_notebook(tmp_path, f"open({str(started)!r}, 'w'); import time; time.sleep(100)")
    process = start(tmp_path, start_new_session=True)
    while seconds and not started.exists():
        time.sleep(0.1)
    if not seconds:  # while the kernel starts
        while not (tmp_path / "kernels.log").exists():
            time.sleep(0.02)
    time.sleep(seconds or 0.3)
    process.send_signal(signal.SIGINT)
    code, output = ended(process)
    assert code == 130 and "Interrupted; give the same command" in output, output


# ------------------------------------------------------------------------------------- nbval


@pytest.fixture
def notebook_in_the_repository(tmp_path):
    """Notebooks below the repository, where its conftest.py applies."""
    path = REPOSITORY / "build" / f"nbval-{tmp_path.name}"
    path.mkdir(parents=True)
    yield path
    shutil.rmtree(path)


def pytest_in(cwd: Path, *words, **settings) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, words)]
    run = subprocess.run(
        command, cwd=cwd, env=os.environ | settings, capture_output=True, text=True, timeout=120
    )
    return run


def stored(folder: Path, *cells, name="00_test.ipynb") -> Path:
    """A notebook as if it had been run: (source, printed text, shows a figure) of each cell."""
    notebook = nbformat.v4.new_notebook()
    for count, (source, text, figure) in enumerate(cells, 1):
        outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)] if text else []
        if figure:
            data = {"image/png": "AA==", "text/plain": "<Figure size 640x480 with 1 Axes>"}
            outputs += [nbformat.v4.new_output("display_data", data)]
        metadata = {"alt": "A line that rises from 1 to 2."} if figure else {}
        cell = nbformat.v4.new_code_cell(source, outputs=outputs, metadata=metadata)
        cell.execution_count = count
        notebook.cells.append(cell)
    nbformat.write(notebook, folder / name)
    return folder / name


def test_nbval_shows_figures_and_notices_a_missing_one(notebook_in_the_repository):
    shown = stored(notebook_in_the_repository, (FIGURE, "", True))
    run = pytest_in(REPOSITORY, "--nbval", shown, MPLBACKEND="Agg")
    assert run.returncode == 0, run.stdout
    tagged = "# NBVAL_IGNORE_OUTPUT"  # what the cell prints, not that it shows a figure
    gone = stored(notebook_in_the_repository, (tagged, "", True))
    run = pytest_in(REPOSITORY, "--nbval", gone)
    assert run.returncode == 1 and "shows none" in run.stdout, run.stdout


@pytest.mark.long
def test_cells_run_in_order_in_one_kernel_whatever_shuffles(notebook_in_the_repository):
    folder = notebook_in_the_repository
    cells = [("k = 0", "", False)] + [("k += 1; print(k)", f"{k}\n", False) for k in range(1, 7)]
    paths = [stored(folder, *cells, name=f"0{number}_test.ipynb") for number in (1, 2)]
    (folder / "shuffling.py").write_text(
        "import random\nimport pytest\n\n@pytest.hookimpl(tryfirst=True)\n"
        "def pytest_collection_modifyitems(items):\n    random.Random(1).shuffle(items)\n"
    )
    shuffling = ["-p", "shuffling"]
    run = pytest_in(folder, *shuffling, "--nbval", *paths, PYTHONPATH=path_with(folder))
    assert run.returncode == 0, run.stdout
    run = pytest_in(folder, "-n", "2", "--nbval", *paths)
    assert run.returncode == 0, run.stdout


def path_with(folder: Path) -> str:
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


@pytest.mark.long
def test_pytest_starts_in_any_folder(notebook_in_the_repository, tmp_path):
    path = stored(notebook_in_the_repository, ("print(1)", "1\n", False))
    for cwd in (path.parent, tmp_path):
        run = pytest_in(cwd, "--nbval", path)
        assert run.returncode == 0, run.stdout + run.stderr
