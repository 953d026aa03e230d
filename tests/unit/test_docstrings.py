"""Every public method is described; ruff asks for the rest, but not for what Keras describes."""

import importlib
import inspect
import pkgutil

import oasis_helpers

# Described once, at `sampling.start`: notebook 06 prints the sources of these methods as they are.
DESCRIBED_ELSEWHERE = {"next_logits", "append"}


def own_methods(cls):
    """Public methods and properties that no base class, Keras's above all, has described."""
    inherited = {name for base in cls.__mro__[1:] for name in vars(base)}
    for name, member in vars(cls).items():
        if not name.startswith("_") and name not in inherited | DESCRIBED_ELSEWHERE:
            function = getattr(member, "fget", member)
            if inspect.isroutine(function):
                yield name, function


def test_every_public_method_is_described():
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.walk_packages(oasis_helpers.__path__, "oasis_helpers.")
        if not module.name.endswith("__main__")
    ]
    methods = {
        f"{cls.__name__}.{name}": inspect.getdoc(function)
        for module in modules
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if cls.__module__ == module.__name__ and not cls.__name__.startswith("_")
        for name, function in own_methods(cls)
    }
    assert {"VQVAE.encode", "VQVAE.num_embeddings", "SliceStream.read"} <= set(methods)
    assert [name for name, text in methods.items() if not text] == []
