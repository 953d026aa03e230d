"""Checks a folder or a zip archive in the course's own layout, before it is copied."""

from __future__ import annotations

import zipfile
from pathlib import Path

from oasis_helpers import data


def check_layout(folder: Path | zipfile.Path) -> dict[str, dict[tuple[int, int], Path]]:
    """Opens every file of every split; reports all faults at once.

    Args:
        folder: the folder that holds `keras_png_slices_train/` and the other splits; may be
            inside a zip archive.

    Returns:
        {split: {(subject, slice index): path}}, each sorted naturally.

    Raises:
        SliceDataError: with one sentence for every fault in any split.
    """
    layout, faults = {}, []
    for split in data.SPLITS:
        try:
            files, wrong = data.list_split(folder, split)
        except data.SliceDataError as error:
            faults += error.faults
            continue
        layout[split] = dict(sorted(files.items()))
        faults += wrong
        for _ in data.open_images(list(layout[split].values()), faults):
            pass
    faults += data.compare_splits(folder, layout)
    if faults:
        raise data.SliceDataError(faults)
    return layout
