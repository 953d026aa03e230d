"""Makes `.venv` for a lock: `python tools/install.py [--named] LOCK`; nothing to do where it fits.

It is made in `.venv.unfinished` and renamed when complete. Its file `ready` has a line per lock,
with folder, Python and hash; where one of them differs, the environment is made again. `--named`:
the user chose this Python, which may be an old Python 3, to be refused with a sentence.
"""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where two of these commands at once are not kept apart
    fcntl = None

ROOT = Path(__file__).resolve().parents[1]
VENV, UNFINISHED = ROOT / ".venv", ROOT / ".venv.unfinished"
BIN = "Scripts" if os.name == "nt" else "bin"
LOCKS = ("requirements.lock", "requirements-dev.lock")  # the second holds the first
VERSION = sys.version[:4]  # such as 3.11


def line(python, lock):
    """What `ready` says of a lock."""
    return f"{str(ROOT)!a} {python} {hashlib.sha256((ROOT / lock).read_bytes()).hexdigest()} {lock}"


def fits(lock, named):
    """Whether `.venv` is complete, starts, and was made for this folder, lock and named Python."""
    start = [str(VENV / BIN / "python"), "-Ic", "import sys; print(sys.version[:4])"]
    try:
        python = subprocess.check_output(start, stderr=subprocess.DEVNULL).decode().strip()
        made_for = (VENV / "ready").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError, subprocess.CalledProcessError):
        return False
    return line(python, lock) in made_for and python == (VERSION if named else python)


def make(locks):
    """Makes the environment; pip holds the lock of `main` too, as it may outlive this process."""
    run = functools.partial(subprocess.check_call, cwd=ROOT, close_fds=False)
    if VENV.exists():
        shutil.rmtree(UNFINISHED, ignore_errors=True)  # if that fails, so does the next line
        VENV.rename(UNFINISHED)
    run([sys.executable, "-m", "venv", "--clear", "--prompt=.venv", UNFINISHED])
    for options in (f"--require-hashes -r {locks[-1]}", "--no-deps --no-build-isolation -e ."):
        pip = [UNFINISHED / BIN / "python", "-I", "-m", "pip", "install", "--quiet"]
        run([*pip, *options.split()])
    for script in (UNFINISHED / BIN).iterdir():
        content = script.read_bytes()
        if bytes(UNFINISHED) in content:  # its first line names the folder of its Python
            script.write_bytes(content.replace(bytes(UNFINISHED), bytes(VENV)))
    (UNFINISHED / "ready").write_bytes("\n".join(line(VERSION, lock) for lock in locks).encode())
    UNFINISHED.rename(VENV)


def main():
    """The command line."""
    named, lock = "--named" in sys.argv, sys.argv[-1]
    if fits(lock, named):
        return
    if not "3.11" <= VERSION <= "3.13":
        advice = "expected 3.11 to 3.13: try `make run PYTHON=python3.12`"
        sys.exit(f"{sys.executable} is Python {sys.version.split()[0]}; {advice}.")
    if sys.platform == "darwin" and os.uname().machine == "x86_64":
        sys.exit("TensorFlow 2.21 has no wheel for Intel Macs; use a Linux container there.")
    if not os.access(ROOT, os.W_OK):
        advice = "its owner makes it, with `make lab` in this folder and the same Python"
        sys.exit(f"{ROOT} is read-only, and {VENV} does not fit it or its lock: {advice}.")
    print(f"Making {VENV} with Python {VERSION}; this takes a few minutes.", flush=True)
    with open(f"{VENV}.lock", "wb") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        os.set_inheritable(file.fileno(), True)
        if not fits(lock, named):  # another process may have made it meanwhile
            make(LOCKS[: LOCKS.index(lock) + 1])


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"{VENV} is not complete ({str(error) or 'interrupted'}); give the command again.")
