"""The command line: what it prints, and how errors end it."""

import sys

import numpy as np
import pytest

from oasis_helpers.__main__ import ending_with_a_sentence
from oasis_helpers.convert import __main__ as command
from tests.unit.convert.examples import layout_of, write_zip


@pytest.fixture
def run(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
        ending_with_a_sentence(command.main)

    return run


def test_the_command_describes_what_it_wrote(run, cohort_root, tmp_path, capsys):
    path = write_zip(tmp_path / "slices.zip", layout_of(cohort_root, 1))
    run(path, tmp_path / "slices", "--seed", "3")
    printed = capsys.readouterr().out
    assert "96 slices of 1 / 1 / 1 subjects (train / validate / test)." in printed
    assert "To use these slices, set OASIS_DATA_DIR to this folder: " in printed


def test_the_full_path_of_the_target_is_printed(run, cohort_root, tmp_path, capsys, monkeypatch):
    path = write_zip(tmp_path / "slices.zip", layout_of(cohort_root, 1))
    monkeypatch.chdir(tmp_path)
    run(path, "my slices; ls")
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'my slices; ls'}\n")


def test_very_long_names_end_it_with_a_sentence(run, cohort_root, tmp_path):
    path = write_zip(tmp_path / "slices.zip", layout_of(cohort_root, 1))
    for length in (250, 300):
        with pytest.raises(SystemExit, match="File name too long"):
            run(path, tmp_path / ("x" * length))


def test_faults_of_a_source_end_it_with_their_sentences(run, tmp_path):
    with pytest.raises(SystemExit, match="nowhere: no file and no folder; give one"):
        run("nowhere", tmp_path / "slices")


def failing_with(error):
    def convert(*_):
        raise error

    return convert


def test_errors_of_the_system_end_it_with_a_sentence(run, monkeypatch):
    full = OSError(28, "No space left on device", "slices/case_001_slice_0.nii.png")
    monkeypatch.setattr(command, "convert", failing_with(full))
    with pytest.raises(SystemExit, match=r"case_001_slice_0.nii.png: No space left on device; "):
        run("source", "target")


def test_an_interrupt_ends_it_with_exit_code_130(run, monkeypatch, capsys):
    monkeypatch.setattr(command, "convert", failing_with(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as ended:
        run("source", "target")
    assert ended.value.code == 130
    assert "the same command" in capsys.readouterr().err


def test_a_bug_ends_it_with_a_traceback(run, monkeypatch):
    monkeypatch.setattr(command, "convert", lambda *_: np.zeros(2).reshape(3))
    with pytest.raises(ValueError, match="cannot reshape"):
        run("source", "target")
