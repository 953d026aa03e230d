"""Helpers of the course: a VQ-VAE and a PixelCNN that generate brain slices.

Names are imported on first use, so `import oasis_helpers` is fast and starts no TensorFlow.
"""

import importlib
import os
from pathlib import Path

__version__ = "1.0.0.dev0"
__all__ = ["SliceSet", "load_pretrained", "load_slices", "sample_codes", "sample_heads"]
REPOSITORY = Path(__file__).resolve().parents[1]

_MODULES = {
    "SliceSet": "data",
    "load_slices": "data",
    "load_pretrained": "pretrained",
    "sample_codes": "sampling",
    "sample_heads": "sampling",
}


def own_folder(name: str) -> Path:
    """Of this user: in the checkout, or in `~/my_brain_course` if the checkout is read-only."""
    writable = os.access(REPOSITORY, os.W_OK)
    return (REPOSITORY if writable else Path.home() / "my_brain_course") / name


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
