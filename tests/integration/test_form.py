"""The form of what git tracks: rules, layout, docstrings, spelling, sizes."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import oasis_helpers
from oasis_helpers.data import REPOSITORY

# Said once, at `sampling.start_drawing`: notebook 06 prints these methods' sources as they are.
SAID_ELSEWHERE = {"next_logits", "append"}


def test_what_git_tracks_is_in_form():
    if not (REPOSITORY / ".git").exists():
        pytest.skip("this copy is no git checkout, so nothing says which files belong to it")
    command = [sys.executable, "-m", "pre_commit", "run", "--all-files"]
    checked = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert checked.returncode == 0, f"`make check` fails:\n{checked.stdout}{checked.stderr}"


def own_methods(cls):
    """Public methods and properties that no base class, Keras's above all, has described."""
    inherited = {name for base in cls.__mro__[1:] for name in vars(base)}
    for name, member in vars(cls).items():
        if not name.startswith("_") and name not in inherited | SAID_ELSEWHERE:
            function = getattr(member, "fget", member)
            if inspect.isroutine(function):
                yield name, function


def test_every_public_method_is_described():
    modules = [
        importlib.import_module(f"oasis_helpers.{module.name}")
        for module in pkgutil.iter_modules(oasis_helpers.__path__)
    ]
    methods = {
        f"{cls.__name__}.{name}": inspect.getdoc(function)
        for module in modules
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if cls.__module__ == module.__name__ and not cls.__name__.startswith("_")
        for name, function in own_methods(cls)
    }
    assert {"VQVAE.encode", "VQVAE.num_embeddings", "Rung.optimizer"} <= set(methods)
    assert [name for name, said in methods.items() if not said] == []
