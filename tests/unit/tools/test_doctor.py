"""What stops the course is found, said in a sentence, and ends the doctor with 1."""

import subprocess
import sys
from collections import namedtuple

import pytest

from tools import doctor

REPOSITORY = doctor.REPOSITORY
LOCK = "numpy==0.1 \\\n    --hash=sha256:0\nappnope==1 ; sys_platform == 'darwin' \\\n"


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    """An empty repository, default settings."""
    for name in ("OASIS_DATA_DIR", "OASIS_PROFILE", "OASIS_CACHE_DIR", "KERAS_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "requirements.lock").touch()
    monkeypatch.setattr(doctor, "REPOSITORY", tmp_path)
    monkeypatch.setattr(doctor, "own_folder", tmp_path.joinpath)
    return tmp_path


def exit_status(capsys) -> int:
    with pytest.raises(SystemExit) as ended:
        doctor.main()
    lines = capsys.readouterr().out.splitlines()
    assert all(line[:6] in ("ok    ", "warn  ", "FAIL  ") for line in lines)
    return int(ended.value.code)


def test_a_sound_machine_passes(capsys):
    assert exit_status(capsys) == 0


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("KERAS_BACKEND", "theano", "is 'theano'; expected tensorflow, jax or torch"),
        ("KERAS_BACKEND", "os", "is 'os'; expected tensorflow, jax or torch"),
        ("OASIS_PROFILE", "long", 'expected "tour" or "full"'),
        ("OASIS_DATA_DIR", "/nowhere/at/all", "/nowhere/at/all is not a folder"),
    ],
)
def test_wrong_settings_fail(name, value, says, monkeypatch, capsys):
    monkeypatch.setenv(name, value)
    assert says in " ".join(text for status, text in doctor.diagnose() if status == "FAIL")
    assert exit_status(capsys) == 1


def test_a_folder_of_something_else_fails_and_both_forms_of_ours_pass(tmp_path, monkeypatch):
    monkeypatch.setenv("OASIS_DATA_DIR", str(tmp_path))
    assert doctor.check_data()[0] == "FAIL"
    assert "holds no keras_png_slices_data/" in doctor.check_data()[1]
    (tmp_path / "keras_png_slices_data" / "keras_png_slices_train").mkdir(parents=True)
    assert doctor.check_data()[0] == "ok"
    monkeypatch.setenv("OASIS_DATA_DIR", str(tmp_path / "keras_png_slices_data"))
    assert doctor.check_data()[0] == "ok"


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 14, 0)])
def test_another_python_fails_and_nothing_else_is_asked(version, monkeypatch, capsys):
    wrong = doctor.check_python(version)
    assert wrong[0] == "FAIL" and "expected 3.11 to 3.13" in wrong[1]
    monkeypatch.setattr(doctor, "check_python", lambda: wrong)
    assert doctor.diagnose() == [wrong]
    assert exit_status(capsys) == 1


def test_a_full_disk_fails(monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(2**40, 2**40, 10**8))
    assert doctor.check_disk()[0] == "FAIL"
    assert exit_status(capsys) == 1


@pytest.mark.parametrize("name", ["build", "data"])
def test_a_folder_that_cannot_be_written_fails(name, repository, monkeypatch, capsys):
    (repository / name).write_text("a file, as root may write to any folder")
    monkeypatch.setenv("OASIS_CACHE_DIR", str(repository))
    assert "not writable" in doctor.check_writable(repository / name)[1]
    assert exit_status(capsys) == 1


def test_a_cache_that_cannot_be_written_is_a_warning(repository, monkeypatch, capsys):
    (repository / "file").touch()
    monkeypatch.setenv("OASIS_CACHE_DIR", str(repository / "file" / "cache"))
    assert doctor.diagnose()[-1][0] == "warn"
    assert exit_status(capsys) == 0


def test_a_missing_package_fails_and_is_named(repository, capsys):
    lock = LOCK.replace("numpy", "no-such-package")
    (repository / "requirements.lock").write_text(lock)
    status, text = doctor.check_packages()
    assert status == "FAIL" and "no-such-package is missing" in text
    assert "appnope" not in text, "it belongs to another system"
    assert exit_status(capsys) == 1


def test_names_that_the_terminal_cannot_show_end_no_check():
    settings = {"PYTHONIOENCODING": "ascii", "OASIS_DATA_DIR": "/tmp/Größe"}
    command = [sys.executable, "-m", "tools.doctor"]
    run = subprocess.run(command, cwd=REPOSITORY, env=settings, capture_output=True, text=True)
    assert "/tmp/Gr\\xf6\\xdfe is not a folder" in run.stdout and not run.stderr


def test_a_backend_that_is_not_installed_fails_and_intel_macs_are_named(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.check_backend() == (
        "FAIL",
        "Keras backend: 'tensorflow' is not installed; TensorFlow 2.21 has no wheel for Intel "
        "Macs: use a Linux container there",
    )
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert doctor.check_backend() == ("FAIL", "Keras backend: 'jax' is not installed")


def test_missing_and_cut_files_of_a_package_fail(repository, monkeypatch):
    """As an installation leaves them that was killed: `pip check` finds nothing."""
    packages = repository / "packages"
    info = packages / "broken-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (info / "RECORD").write_text("whole.py,,3\nunchecked.py,,\n../../bin/script,,9\n")
    (packages / "whole.py").write_text("a=1")
    (repository / "requirements.lock").write_text("broken==1 \\\n")
    monkeypatch.setattr(sys, "path", [str(packages)])
    assert doctor.check_packages() == ("ok", "packages: 1 as locked")
    for damage in (
        lambda: (packages / "whole.py").write_text("a="),
        (packages / "whole.py").unlink,
    ):
        damage()
        status, text = doctor.check_packages()
        assert status == "FAIL" and "broken is damaged" in text and "--force-reinstall" in text


def test_another_version_is_a_warning_and_is_named(repository, capsys):
    (repository / "requirements.lock").write_text(LOCK)
    status, text = doctor.check_packages()
    assert status == "warn" and "numpy" in text and "(locked: 0.1)" in text
    assert exit_status(capsys) == 0


def test_it_imports_the_standard_library_only():
    code = "import sys, tools.doctor; print(*{name.split('.')[0] for name in sys.modules}); "
    code += "print(*(name for name in sys.modules if name.startswith('oasis_helpers.')))"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    packages, ours = run.stdout.splitlines()
    assert not set(packages.split()) & {"numpy", "keras", "tensorflow"} and not ours
