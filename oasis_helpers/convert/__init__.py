"""Converts the common distributions of OASIS-1 into the course's folder of slices.

A source is a folder or an archive that holds one of

- the course's own layout (`oasis_helpers.data`), which is checked and copied;
- official OASIS-1, disc folders or the disc archives as downloaded:
  `OAS1_NNNN_MRk/PROCESSED/MPRAGE/T88_111/*_t88_masked_gfc.{hdr,img}`;
- neurite-oasis: `OASIS_OAS1_NNNN_MRk/aligned_norm.nii.gz`;
- pictures with the subject in their names: `OAS1_NNNN_MRk_mpr-1_100.jpg`.

`archives` lists and reads the files, `sources` finds the subjects, `volumes` makes 32 axial slices
of a volume, `subjects` assigns the splits, and `output` writes the folder.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tqdm.auto import tqdm

from oasis_helpers.convert import output
from oasis_helpers.convert.archives import list_files, printable
from oasis_helpers.convert.subjects import assign_splits
from oasis_helpers.data import SPLITS, SliceDataError, read_json


def convert(
    source: str | Path, target: str | Path, seed: int = 0, splits: str | Path | None = None
) -> Path:
    """Converts a source into the course's layout. An interrupted conversion can be resumed.

    Writes `<target>/keras_png_slices_data/...`, which `load_slices` reads, `manifest.csv` (for
    every slice: SHA-256, subject, session, source file and position there), `conversion.json`
    (settings and remarks) and `montage.png` (an overview). The folder is called
    `<target>.unfinished` until it is complete. A subject keeps its OASIS number: OAS1_0028 becomes
    case_028. Only a subject's first session is used. Subjects are assigned to the splits at random,
    a tenth each to validate and test; the course's own layout keeps its splits.

    Args:
        source: folder, zip or tar archive. A folder may hold archives (OASIS's discs).
        target: folder to make; may exist if it is empty.
        seed: of the random assignment, 0 or more.
        splits: CSV file with the columns `case` and `split` that replaces the random assignment,
            such as the manifest of another conversion.

    Returns:
        target, as a path.

    Raises:
        SliceDataError: with one sentence for every fault of the source. Slices of good volumes
            stay in `<target>.unfinished`, so a conversion of the repaired source is short.
        FileExistsError: the target holds anything but this conversion of the source as it is.
        BlockingIOError: another process is converting into the target.
        ValueError: seed below 0, target without a name or inside of the source, or splits for a
            source that has splits already.
    """
    from oasis_helpers.convert import sources  # imports nilearn, which takes more than a second

    if seed < 0:
        raise ValueError(f"seed must be 0 or more, not {seed}.")
    try:
        source, target = Path(source).expanduser(), Path(target).expanduser()
    except RuntimeError:  # ~nobody
        raise ValueError(f"{source} or {target}: no such home folder; give full paths.") from None
    if target.name in ("", ".."):
        raise ValueError(f"{str(target)!r} names no folder to make; give one such as slices.")
    if target.is_symlink():
        target = Path(os.path.realpath(target))
    if Path(os.path.realpath(target)).is_relative_to(os.path.realpath(source)):
        raise ValueError(f"{target} is inside of {source}; give a target outside of the source.")
    with contextlib.ExitStack() as stack:
        files = list_files(source, stack)
        kind, (subjects, remarks, faults) = sources.find_subjects(source, files)
        folder = None  # after a fault nothing is written, and the other files are only checked
        if not faults:
            if kind != "layout":
                subjects = assign_splits(subjects, seed, splits)
            elif splits is not None:
                raise ValueError(f"{source} has splits already; leave {splits} out.")
            stack.enter_context(output.lock(target))
            folder = output.open_folder(target, output.make_plan(source, kind, subjects, remarks))
            rows = output.read_manifest(folder)
        for subject in tqdm(subjects, f"converting {source.name}", unit="subject"):
            try:
                if folder:
                    output.write_subject(folder, target, subject, rows)
                else:
                    subject.make_slices([file.content() for file in subject.files])
            except SliceDataError as error:
                faults += error.faults
        if faults:
            raise SliceDataError(faults)
        if folder != target:
            output.finish(folder, target)
    return target


def describe(target: Path) -> str:
    """A summary of a finished conversion, as text of a few lines."""
    plan, rows = read_json(target / output.PLAN), output.read_manifest(target)
    turned = len({row["case"] for row in rows if row["remark"].startswith("turned")})
    subjects = " / ".join(str(len(plan["subjects"][split])) for split in SPLITS)
    lines = [
        f"{target}: {len(rows)} slices of {subjects} subjects ({' / '.join(SPLITS)}).",
        *plan["remarks"],
        *([f"{turned} volumes were turned; see {output.MANIFEST}."] if turned else []),
        f"Look at {target / output.MONTAGE}; {output.MANIFEST} lists the source of each slice.",
        f"To use these slices, set OASIS_DATA_DIR to this folder: {os.path.abspath(target)}",
    ]
    return "\n".join(map(printable, lines))
