"""Converts a copy of OASIS-1 into the course's folder of slices."""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path

from oasis_helpers.convert import convert, describe

PACKAGE = Path(__file__).parents[1]


def main() -> None:
    """Runs the command line; errors that a user can solve end it with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m oasis_helpers convert", description=__doc__)
    parser.add_argument("source", help="slices, volumes or pictures: a folder, zip or tar archive")
    parser.add_argument("target", help="the folder to make")
    parser.add_argument("--seed", type=int, default=0, help="of the split by subject (0)")
    parser.add_argument("--splits", help="a CSV with columns case and split, instead of a seed")
    arguments = parser.parse_args()
    try:
        target = convert(arguments.source, arguments.target, arguments.seed, arguments.splits)
        print(describe(target))
    except KeyboardInterrupt:
        print("\nInterrupted; run the same command again to resume.", file=sys.stderr)
        sys.exit(130)  # as shells do for Ctrl-C
    except (ValueError, OSError) as error:
        sys.exit(_sentence_of(error))


def _sentence_of(error: Exception) -> str:
    """What to print for an error; a bug is raised again, because it needs its traceback.

    The package's own messages are sentences already; an error of the system is made one.
    """
    if isinstance(error, OSError) and error.errno:
        return (
            f"{error.filename or 'A file'}: {error.strerror}; solve this problem, then run the "
            "same command again: it resumes, and no file is half written."
        )
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    if raised_in.is_relative_to(PACKAGE):
        return str(error)
    raise error


if __name__ == "__main__":
    main()
