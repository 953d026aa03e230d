"""The commands of the course: `python -m oasis_helpers run | lab | convert | grade | doctor`.

Each starts a module that does the work. `convert` needs no repository.
"""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from oasis_helpers import REPOSITORY, own_folder

COMMANDS = {
    "run": ("tools.notebooks", "execute the series, keep its figures, print a summary"),
    "lab": ("tools.lab", "start JupyterLab on your own copies of the notebooks"),
    "convert": ("oasis_helpers.convert", "convert other forms of OASIS into the course's layout"),
    "grade": ("tools.grade", "check the exercises in a folder of handed-in notebooks"),
    "doctor": ("tools.doctor", "check whether the course can run on this machine"),
}
BACKENDS = ("tensorflow", "jax", "torch")


def main() -> None:
    """Starts the module of the command that the command line names."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        lines = (f"  {name:8s} {purpose}" for name, (_, purpose) in COMMANDS.items())
        sys.exit("\n".join(["Usage: python -m oasis_helpers COMMAND", *lines]))
    module, _ = COMMANDS[sys.argv.pop(1)]
    if module.startswith("tools.") and not (REPOSITORY / "tools").is_dir():
        sys.exit(f"{REPOSITORY} is not a checkout of the course; clone the repository for this.")
    backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if module == "tools.notebooks" and backend not in BACKENDS:
        sys.exit(f"KERAS_BACKEND is {backend!r}; expected {', '.join(BACKENDS)}, or unset it.")
    sys.path.insert(0, str(REPOSITORY))
    # Set here and not in the package: a program may quieten TensorFlow, a library should not.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    ignore_other_settings()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except ImportError as error:
        sys.exit(f"{error}; `python -m oasis_helpers doctor` says what this installation lacks.")


def ignore_other_settings() -> None:
    """Keeps `keras.json`, `matplotlibrc`, start-up files, other checkouts out, of kernels too."""
    for name in ("MPLBACKEND", "PYTHONSTARTUP"):
        os.environ.pop(name, None)
    os.environ["KERAS_HOME"] = os.environ["MATPLOTLIBRC"] = os.devnull
    os.environ["IPYTHONDIR"] = str(own_folder("build/ipython"))
    paths = filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)


def ending_with_a_sentence(command: Callable[[], None]) -> None:
    """Runs a command; what a user can mend ends it with a sentence instead of a traceback.

    Exit codes: 1 after an error, 130 after Ctrl-C, as shells do.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal can show every path
    if named := os.environ.get("OASIS_DATA_DIR"):  # kernels run in another folder
        os.environ["OASIS_DATA_DIR"] = os.path.realpath(os.path.expanduser(named))
    try:
        command()
    except KeyboardInterrupt as interrupt:
        message = str(interrupt) or "Interrupted; give the same command to start it again."
        print(f"\n{message}", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        if sentence := sentence_of(error):
            sys.exit(sentence)
        raise


def sentence_of(error: Exception) -> str | None:
    """The sentence for a user; None for a bug of ours, whose traceback is needed.

    The course's own errors are sentences already; an error of the system about a file becomes one.
    """
    if isinstance(error, OSError) and error.errno:
        return (
            f"{error.filename or 'A file'}: {error.strerror}; files are replaced as a whole, so "
            "nothing is half written: mend that and give the same command again."
        )
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    ours = (REPOSITORY / folder for folder in ("oasis_helpers", "tools", "experiments"))
    return str(error) if any(raised_in.is_relative_to(folder) for folder in ours) else None


if __name__ == "__main__":
    main()
