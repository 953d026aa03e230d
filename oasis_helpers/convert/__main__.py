"""Converts a copy of OASIS-1 into the course's folder of slices."""

from __future__ import annotations

import argparse

from oasis_helpers.__main__ import ending_with_a_sentence
from oasis_helpers.convert import convert, describe


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m oasis_helpers convert", description=__doc__)
    parser.add_argument("source", help="slices, volumes or pictures: a folder, zip or tar archive")
    parser.add_argument("target", help="the folder to make")
    parser.add_argument("--seed", type=int, default=0, help="of the split by subject (0)")
    parser.add_argument("--splits", help="a CSV with columns case and split, instead of a seed")
    arguments = parser.parse_args()
    target = convert(arguments.source, arguments.target, arguments.seed, arguments.splits)
    print(describe(target))


if __name__ == "__main__":
    ending_with_a_sentence(main)
