"""Safe defaults: JupyterLab listens to this machine only, no file can carry code, text is UTF-8."""

import ast
import re

import pytest

from oasis_helpers.data import REPOSITORY

PAGES = ["Makefile", "README.md", "CONTRIBUTING.md", "docs/install.md", "docs/teaching.md"]
CODE = [
    path
    for folder in ("oasis_helpers", "experiments", "tools")
    for path in (REPOSITORY / folder).rglob("*.py")
]


@pytest.mark.parametrize("page", PAGES)
def test_no_command_opens_jupyter_to_the_network(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    assert not re.search(r"--(?:\w+\.)?ip\b|0\.0\.0\.0|allow[_-]root|token=|password=", text)


def test_jupyter_listens_to_this_machine_only():
    serverapp = pytest.importorskip("jupyter_server.serverapp", reason="JupyterLab brings it")
    assert serverapp.ServerApp().ip == "localhost"


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_text_is_the_same_on_every_system(path):
    """Read as UTF-8; written as bytes, which keep their line ends. Ruff checks `open` alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            assert node.attr != "write_text", f"line {node.lineno}: use data.write_bytes"
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "read_text":
            assert "utf-8" in ast.unparse(node), ast.unparse(node)


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_nothing_is_loaded_that_could_carry_code(path):
    """Arrays without pickle, models in Keras's safe mode."""
    text = path.read_text(encoding="utf-8")
    unsafe = r"\bpickle\.|joblib|unsafe_deserialization|safe_mode=False|(?<!literal_)eval\("
    assert not re.search(unsafe, text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            options = {word.arg: ast.unparse(word.value) for word in node.keywords}
            called = ast.unparse(node.func)
            if called == "np.load":
                assert options.get("allow_pickle") == "False", ast.unparse(node)
            if called.startswith("keras.") and called.endswith(".load_model"):
                assert options.get("safe_mode") == "True", ast.unparse(node)
