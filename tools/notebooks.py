"""Executes the series: `python -m tools.notebooks [run | refresh]`.

`run` executes copies under `build/`, keeps their figures, and prints a summary; `make pages` makes
pages of these copies.
`refresh` executes the notebooks in place, on the cohort, so that their stored outputs are current.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import base64
import io
import os
import re
import shutil
import sys
import time
import warnings
from pathlib import Path

import nbformat
import numpy as np
from nbclient import NotebookClient
from PIL import Image

from oasis_helpers import metrics, own_folder, pretrained
from oasis_helpers.__main__ import ending_with_a_sentence, ignore_other_settings
from oasis_helpers.data import REPOSITORY, SPLITS, SliceDataError, write_bytes
from oasis_helpers.training import file_lock
from tools.lab import KERNEL

NOTEBOOKS = REPOSITORY / "notebooks"
BUILD = own_folder("build")
WIDGET = "application/vnd.jupyter.widget-view+json"  # shows nothing without a running kernel
CELL_TIMEOUT = 3600  # seconds; the full profile trains in one cell


def run() -> None:
    """Executes copies of the notebooks, keeps their figures, prints the summary.

    The last copies stay until all new ones are complete.
    """
    scored = _is_scored_data()
    print(f"Data: {pretrained.data_root()}  profile: {pretrained.profile()}", flush=True)
    paths = series_in(NOTEBOOKS)
    folders = {kind: BUILD / "unfinished" / kind for kind in ("notebooks", "figures")}
    for folder in folders.values():
        _remove(folder)
        folder.mkdir(parents=True)
    for path in paths:
        notebook = execute(path, folders["notebooks"] / path.name, tolerant=not scored)
        _write_figures(notebook, folders["figures"], path.stem)
    for kind, folder in folders.items():
        _remove(BUILD / kind)
        folder.rename(BUILD / kind)
    print(summary())


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def series_in(folder: Path) -> list[Path]:
    """The notebooks of the series, without copies such as `01_x-Copy1.ipynb`; all can be read."""
    paths = sorted(path for path in folder.iterdir() if re.fullmatch(r"\d\d_\w+\.ipynb", path.name))
    for path in paths:  # a damaged one ends the command now, not in ten minutes
        try:
            notebook = nbformat.read(path, as_version=4)
            nbformat.validate(notebook)
            language = notebook.metadata.get("kernelspec", {}).get("language", "python")
        except Exception:  # a damaged file makes nbformat raise almost anything
            language = "none"
        if language != "python":
            advice = "restore it with git, or move it away"
            raise ValueError(f"{path}: not a notebook in Python (language: {language}); {advice}.")
    return paths


def _is_scored_data() -> bool:
    """Whether the shipped scores hold for the active data set.

    Reads all of it: better a fault now than in a notebook.
    """
    root, faults = pretrained.data_root(), []
    models = pretrained.load_pretrained(pretrained.data_name())
    for split in SPLITS:
        try:
            with warnings.catch_warnings(action="ignore"):  # the summary says it at the end
                slices = models.load_slices(root, split)
        except SliceDataError as error:
            faults += error.faults
    if faults:
        raise SliceDataError(list(dict.fromkeys(faults)))
    return models.scored_on(slices)  # the last split is the test split


def refresh() -> None:
    """Executes the notebooks in place on the cohort, so that stored outputs are current."""
    os.environ.pop("OASIS_DATA_DIR", None)  # stored outputs show the cohort only
    os.environ["OASIS_PROFILE"] = "tour"
    for path in [*series_in(NOTEBOOKS), *series_in(NOTEBOOKS / "solutions")]:
        executed = BUILD / "notebooks" / path.relative_to(NOTEBOOKS)
        executed.parent.mkdir(parents=True, exist_ok=True)
        execute(path, executed)
        write_bytes(path, executed.read_bytes())


def execute(path: Path, output: Path, tolerant: bool = False) -> nbformat.NotebookNode:
    """Executes a notebook from top to bottom in a fresh kernel; prints a line with its time.

    Args:
        path: of the notebook.
        output: file for the executed notebook; written also when a cell fails.
        tolerant: goes on after a cell that fails, and reports it. The claims that the notebooks
            check hold for the shipped weights, not necessarily for a user's own slices.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        allow_errors=tolerant,
        record_timing=False,
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    )
    client.create_kernel_manager().kernel_spec_manager.kernel_dirs = []  # this Python, no other
    started, log = time.perf_counter(), BUILD / "kernels.log"
    _remove(BUILD / "my_weights")  # of the last run; a student's own are never touched here
    settings = {"OASIS_MY_WEIGHTS": str(BUILD / "my_weights"), **os.environ}
    print(f"{path.name:32s} ", end="", flush=True)
    try:
        with open(log, "ab") as file:  # what kernels print outside of cells
            client.execute(stderr=file, env=settings)
        for number, cell in enumerate(notebook.cells, start=1):
            if "alt" in cell.metadata and not (tolerant or _pictures(cell)):
                raise RuntimeError(f"Cell {number} shows no figure, although it describes one")
    except (Exception, asyncio.CancelledError) as error:
        atexit.unregister(client._cleanup_kernel)  # it was called already
        if hasattr(client, "_async_cleanup_kernel_future"):  # nbclient has seen Ctrl-C
            raise KeyboardInterrupt from None
        print("failed")
        nbformat.write(notebook, output)
        reason = getattr(error, "evalue", "") or getattr(error, "ename", f"{error}; see {log}.")
        sys.exit(f"{path.name} stopped; {output} shows how far it came.\n{reason}")
    print(f"{time.perf_counter() - started:6.0f} s", flush=True)
    for part in (part for cell in notebook.cells for part in cell.get("outputs", ())):
        if part.output_type == "error":
            print(f"    On these slices a cell stopped: {part.evalue or part.ename}")
    _clean(notebook)
    nbformat.write(notebook, output)
    return notebook


def _pictures(cell: nbformat.NotebookNode) -> list[str]:
    outputs = (output.get("data", {}) for output in cell.get("outputs", []))
    return [data["image/png"] for data in outputs if "image/png" in data]


def _clean(notebook: nbformat.NotebookNode) -> None:
    """Removes what means nothing later, and names the kernel as JupyterLab does."""
    notebook.metadata["kernelspec"] = KERNEL["kernelspec"]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [part for part in cell.outputs if part.get("name") != "stderr"]
            cell.outputs = [part for part in cell.outputs if WIDGET not in part.get("data", {})]
            for part in cell.outputs:
                if "image/png" in part.get("data", {}):
                    part.data["image/png"] = as_grey(part.data["image/png"])
    notebook.metadata.pop("widgets", None)


def as_grey(picture: str) -> str:
    """A PNG picture (base64); one without colour as 8-bit grey, which is half the size."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as full:
        red, green, blue = np.moveaxis(np.asarray(full.convert("RGB")), -1, 0)
    if not (np.array_equal(red, green) and np.array_equal(red, blue)):
        return picture
    file = io.BytesIO()
    Image.fromarray(red).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _write_figures(notebook: nbformat.NotebookNode, folder: Path, stem: str) -> None:
    pictures = [picture for cell in notebook.cells for picture in _pictures(cell)]
    for number, picture in enumerate(pictures, start=1):
        (folder / f"{stem}-{number:02d}.png").write_bytes(base64.b64decode(picture))


def summary() -> str:
    """The table that ends `make run`, measured now on the active data set."""
    root, name = pretrained.data_root(), pretrained.data_name()
    models = pretrained.load_pretrained(name)
    splits = {split: models.load_slices(root, split) for split in SPLITS}
    test = metrics.reconstruction_table(models.vqvae, splits["test"])
    before = pretrained.load_pretrained(f"{name}-faithful").vqvae
    reconstruction_trained = metrics.reconstruction_table(before, splits["test"])
    prior = metrics.prior_table(models.vqvae, models.prior, splits["train"], splits["test"])

    def both_decoders(score: str) -> str:
        values = (metrics.Estimate(*table[score]) for table in (test, reconstruction_trained))
        return "{}; before adversarial fine-tuning {}".format(*values)

    subjects = " / ".join(str(len(set(part.subjects.tolist()))) for part in splits.values())
    rows = {
        "data": f"{root} ({subjects} subjects: train / validate / test)",
        "weights": f"data/weights/{name}, {test['bits_per_slice']:.0f} bits per slice",
        "test SSIM": both_decoders("ssim"),
        "test brain SSIM": both_decoders("brain_ssim"),
        "test PSNR (dB)": both_decoders("psnr_db"),
        "perplexity": f"{test['perplexity']} of {models.vqvae.num_embeddings}, over positions that "
        f"hold brain {test['perplexity_brain']}",
        "bits per code": f"{metrics.Estimate(*prior['bits_per_code'])}",
        "  baseline per position": f"{prior['baselines']['per position']:.3f}",
        "executed notebooks": f"{BUILD / 'notebooks'}; `make pages` makes pages of them",
        "figures": BUILD / "figures",
    }
    table = "\n".join(["", *(f"{key:24s}{value}" for key, value in rows.items())])
    is_scored = models.scored_on(splits["test"])
    return table if is_scored else f"{table}\n\n{pretrained.OTHER_SLICES}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.notebooks", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("run", "refresh"), default="run")
    command = {"run": run, "refresh": refresh}[parser.parse_args().command]
    ignore_other_settings()
    with file_lock(BUILD, "executing the notebooks"):
        command()


if __name__ == "__main__":
    ending_with_a_sentence(main)
