"""The commands of the course, and how a command ends that cannot go on."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from oasis_helpers import __main__ as commands
from oasis_helpers import load_slices


@pytest.mark.parametrize("words", [[], ["train"]])
def test_without_a_command_the_commands_are_listed(monkeypatch, words):
    monkeypatch.setattr(sys, "argv", ["oasis_helpers", *words])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert all(f"  {name}" in ended.value.code for name in ("run", "convert", "doctor"))


def ended(command, capsys):
    """The exit code of a command, and what it printed as its reason."""
    with pytest.raises(SystemExit) as caught:
        commands.ending_with_a_sentence(command)
    code = caught.value.code
    return (1, code) if isinstance(code, str) else (code, capsys.readouterr().err.strip())


def test_a_mistake_of_the_user_ends_with_its_sentence(capsys):
    code, reason = ended(lambda: load_slices(".", "exam"), capsys)
    assert code == 1 and reason == ("Unknown split 'exam': choose one of train, validate, test.")


def test_an_error_of_the_system_becomes_a_sentence(capsys):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device", "/data/scores.json")

    code, reason = ended(full, capsys)
    assert code == 1 and reason == (
        "/data/scores.json: No space left on device; files are replaced as a whole, so nothing is "
        "half written: mend that and give the same command again."
    )


@pytest.mark.parametrize("reason", ["", "The same command resumes."])
def test_an_interruption_says_how_to_go_on(capsys, reason):
    def interrupted():
        raise KeyboardInterrupt(*([reason] if reason else []))

    assert ended(interrupted, capsys) == (
        130,
        reason or "Interrupted; give the same command to start it again.",
    )


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ValueError, match="mismatch"):
        commands.ending_with_a_sentence(lambda: np.zeros(3) @ np.zeros(4))


def test_the_data_folder_is_made_absolute_for_the_kernels(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OASIS_DATA_DIR", "slices")
    commands.ending_with_a_sentence(lambda: None)
    assert commands.os.environ["OASIS_DATA_DIR"] == str(tmp_path / "slices")


def test_an_import_that_fails_is_a_sentence(monkeypatch):
    def fail(*words, **options):
        raise ModuleNotFoundError("No module named 'jax'")

    monkeypatch.setattr(sys, "argv", ["oasis_helpers", "run"])
    monkeypatch.setattr(commands.runpy, "run_module", fail)
    monkeypatch.setattr(commands, "ignore_other_settings", lambda: None)
    with pytest.raises(SystemExit, match="No module named 'jax'; `python -m oasis_helpers doctor`"):
        commands.main()


def test_names_that_the_terminal_cannot_show_end_no_command():
    code = (
        "from oasis_helpers.__main__ import ending_with_a_sentence as end; end(lambda: print('ö'))"
    )
    settings = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "\\xf6", "")
