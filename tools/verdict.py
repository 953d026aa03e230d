"""The grader's own check of an exercise; it runs in the student's kernel, after their code.

That code may have changed anything in the kernel. So the check comes from its file, and a wrong
answer is checked as well: where that passes, `passed` means nothing.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

CHECKS = Path(__file__).resolve().parents[1] / "oasis_helpers" / "checks.py"
PASSED = "passed ("  # how a check's line begins


def verdict(check: str, function: Callable) -> tuple[str, str]:
    """Checks a function with a fresh copy of `oasis_helpers.checks`.

    Args:
        check: the check's name, such as "kid".
        function: of the student.

    Returns:
        What the check says of the function, and what was changed in this kernel ("": nothing).
    """
    spec = importlib.util.spec_from_file_location("fresh_checks", CHECKS)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    lines = []
    fresh.print = lines.append  # neither their `print` nor what their function prints

    def wrong(*arguments):
        result = function(*arguments)
        return tuple(part + 1 for part in result) if isinstance(result, tuple) else result + 1

    for attempt in (function, wrong):
        getattr(fresh, check)(attempt)
    says, says_of_wrong = (line.removeprefix(f"{check}: ") for line in lines)
    changed = []
    if says_of_wrong.startswith(PASSED):
        says = "not known, because here a wrong answer passes as well"
        changed.append("something that the checks use was changed")
    used = sys.modules.get("oasis_helpers.checks", fresh)
    for name, original in inspect.getmembers(fresh, inspect.isfunction):
        if getattr(getattr(used, name, None), "__code__", None) != original.__code__:
            changed.append(f"checks.{name} was changed")
    if getattr(sys.modules["__main__"], "checks", used) is not used:
        changed.append("the name `checks` was changed")
    return says, "; ".join(changed)
