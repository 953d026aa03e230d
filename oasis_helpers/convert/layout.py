"""Checks a source in the course's own layout, before it is copied."""

from __future__ import annotations

import io
from pathlib import PurePosixPath

from oasis_helpers import data
from oasis_helpers.convert.archives import SourceFile


def path_class(files: dict[str, SourceFile]) -> type[PurePosixPath]:
    """A class of paths to files of a source, with the methods that `check_layout` needs."""

    class SourcePath(PurePosixPath):
        def is_file(self) -> bool:
            return str(self) in files

        def read_bytes(self) -> bytes:
            return files[str(self)].read()

        def open(self, mode: str) -> io.BytesIO:
            return io.BytesIO(self.read_bytes())

        def is_dir(self) -> bool:
            return bool(self.iterdir())

        def iterdir(self) -> set[PurePosixPath]:
            names = (name.removeprefix(f"{self}/") for name in files if name.startswith(f"{self}/"))
            return {self / name.partition("/")[0] for name in names}

    return SourcePath


def check_layout(folder: PurePosixPath) -> dict[str, dict[tuple[int, int], PurePosixPath]]:
    """Opens every file of every split; reports all faults at once.

    Args:
        folder: the folder that holds `keras_png_slices_train/` and the other splits, as one of
            the paths of `path_class`.

    Returns:
        {split: {(subject, slice index): path}}, each sorted naturally.

    Raises:
        SliceDataError: with one sentence for every fault in any split.
    """
    layout, faults = {}, []
    for split in data.SPLITS:
        try:
            files, wrong = data.list_split(folder, split)
        except data.SliceDataError:  # in an archive, an empty folder is as good as a missing one
            expected = f"keras_png_slices_{split}/case_NNN_slice_K.nii.png"
            faults.append(f"{folder}: without slices of the {split} split; expected {expected}.")
            continue
        layout[split] = dict(sorted(files.items()))
        faults += wrong
        for _ in data.open_images(list(layout[split].values()), faults):
            pass
    faults += data.compare_splits(folder, layout)
    if faults:
        raise data.SliceDataError(faults)
    return layout
