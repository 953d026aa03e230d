"""The commands behind the Makefile: `python -m oasis_helpers run | train | ...`."""

from __future__ import annotations

import argparse
import base64
import importlib.metadata
import io
import json
import os
import re
import shutil
import sys
import time
import traceback
import warnings
from pathlib import Path

import nbformat
import numpy as np
from bs4 import BeautifulSoup
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from PIL import Image

from oasis_helpers import files, ladders, metrics, plotting, recipes, sample_codes, series
from oasis_helpers.convert import convert, describe
from oasis_helpers.data import REPOSITORY, SLICES_PER_SUBJECT, SPLITS, SliceDataError

NOTEBOOKS = REPOSITORY / "notebooks"
BUILD = REPOSITORY / "build"
LADDERS = (
    "ablation",
    "rates",
    "race",
    "decoders",
    "priors",
    "tokenizers",
    "temperature",
    "sampling",
    "sizes",
)
PICTURED = "oasis1"  # the weights whose slices README shows
WIDGET = "application/vnd.jupyter.widget-view+json"  # shows nothing without a running kernel
CELL_TIMEOUT = 3600  # seconds; the full profile trains in one cell


def run() -> None:
    """Executes copies of the notebooks, makes pages and figures of them, prints the summary."""
    scored = _scored_data()
    print(f"Data: {series.data_root()}  profile: {series.profile()}", flush=True)
    folders = {kind: BUILD / kind for kind in ("notebooks", "html", "figures")}
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        notebook = _executed(path, folders["notebooks"] / path.name, tolerant=not scored)
        (folders["html"] / f"{path.stem}.html").write_text(page_of(notebook), encoding="utf-8")
        _write_figures(notebook, folders["figures"], path.stem)
    print(summary())


def _scored_data() -> bool:
    """Whether the data in force are the slices that the shipped scores hold for.

    All of them are read: better a fault now than in a notebook.
    """
    root, faults = series.data_root(), []
    models = series.load_pretrained(series.data_name())
    for split in SPLITS:
        try:
            with warnings.catch_warnings(action="ignore"):  # of other test slices: at the end
                slices = models.load_slices(root, split)
        except SliceDataError as error:
            faults += error.faults
    if faults:
        raise SliceDataError(list(dict.fromkeys(faults)))
    return models.scored_on(slices)  # the last split is the test


def refresh() -> None:
    """Executes the notebooks in place on the cohort, so that stored outputs are current."""
    os.environ.pop("OASIS_DATA_DIR", None)  # stored outputs show the cohort only
    os.environ["OASIS_PROFILE"] = "tour"
    for path in [*sorted(NOTEBOOKS.glob("[0-9]*.ipynb")), *sorted(NOTEBOOKS.glob("solutions/*"))]:
        executed = BUILD / "notebooks" / path.relative_to(NOTEBOOKS)
        executed.parent.mkdir(parents=True, exist_ok=True)
        _executed(path, executed)
        files.write_bytes(path, executed.read_bytes())


def _executed(path: Path, written_to: Path, tolerant: bool = False) -> nbformat.NotebookNode:
    """The notebook run top to bottom in a fresh kernel; prints a line with its time.

    What was executed is written even when a cell fails, so that there is something to look at.
    A tolerant run goes on after a cell that fails and says so: what the notebooks claim and check
    of the shipped weights needn't hold on slices of somebody's own.
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
    started = time.perf_counter()
    print(f"{path.name:32s} ", end="", flush=True)
    try:
        with open(BUILD / "kernels.log", "ab") as log:  # what kernels say outside of cells
            client.execute(stderr=log)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        print("failed")
        nbformat.write(notebook, written_to)
        reason = getattr(error, "evalue", error)  # without the cell and its traceback
        sys.exit(f"{path.name} stopped; {written_to} shows how far it came.\n{reason}")
    print(f"{time.perf_counter() - started:6.0f} s", flush=True)
    errors = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "error"
    ]
    for error in errors:
        print(f"    On these slices a cell stopped: {error.evalue or error.ename}")
    for cell in notebook.cells:
        if cell.cell_type == "code":  # progress bars and start-up chatter say nothing later
            cell.outputs = [part for part in cell.outputs if part.get("name") != "stderr"]
            cell.outputs = [part for part in cell.outputs if WIDGET not in part.get("data", {})]
            for part in cell.outputs:
                if "image/png" in part.get("data", {}):
                    part.data["image/png"] = as_grey(part.data["image/png"])
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, written_to)
    return notebook


def as_grey(picture: str) -> str:
    """A PNG picture (base64); one without colour as 8-bit grey, which is half the size."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as full:
        red, green, blue = np.moveaxis(np.asarray(full.convert("RGB")), -1, 0)
    if not (np.array_equal(red, green) and np.array_equal(red, blue)):
        return picture
    file = io.BytesIO()
    Image.fromarray(red).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def page_of(notebook: nbformat.NotebookNode) -> str:
    """The notebook as an HTML page, its figures described in the words of their cells' "alt"."""
    page = BeautifulSoup(HTMLExporter().from_notebook_node(notebook)[0], "html.parser")
    for cell in notebook.cells:
        if "alt" in cell.metadata:  # nbconvert's template knows of no alternative text
            for picture in page.select(f'[id="cell-id={cell.id}"] img[src^="data:image/png"]'):
                picture["alt"] = cell.metadata["alt"]
    return str(page)


def _write_figures(notebook: nbformat.NotebookNode, folder: Path, stem: str) -> None:
    pictures = [
        output["data"]["image/png"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    for number, picture in enumerate(pictures, start=1):
        (folder / f"{stem}-{number:02d}.png").write_bytes(base64.b64decode(picture))


def summary() -> str:
    """The table that ends `make run`, measured now on the data in force."""
    root, name = series.data_root(), series.data_name()
    models = series.load_pretrained(name)
    splits = {split: models.load_slices(root, split) for split in ("train", "validate", "test")}
    test = metrics.reconstruction_table(models.vqvae, splits["test"])
    faithful = series.load_pretrained(f"{name}-faithful").vqvae
    foggy = metrics.reconstruction_table(faithful, splits["test"])
    prior = metrics.prior_table(models.vqvae, models.prior, splits["train"], splits["test"])
    subjects = " / ".join(str(len(set(part.subjects.tolist()))) for part in splits.values())
    per_position = prior["baselines"]["per position"]
    rows = [
        ("data", f"{root} ({subjects} subjects: train / validate / test)"),
        ("weights", f"data/weights/{name}, {test['bits_per_slice']:.0f} bits a slice"),
        ("test SSIM", _two_decoders(test, foggy, "ssim")),
        ("test brain SSIM", _two_decoders(test, foggy, "brain_ssim")),
        ("test PSNR (dB)", _two_decoders(test, foggy, "psnr_db")),
        (
            "perplexity",
            f"{test['perplexity']} of {models.vqvae.num_embeddings}, over cells that hold brain "
            f"{test['perplexity_brain_cells']}",
        ),
        ("bits per code", f"{metrics.Estimate(*prior['bits_per_code'])}"),
        ("  counted per position", f"{per_position:.3f}"),
        ("pages", BUILD / "html"),
        ("figures", BUILD / "figures"),
    ]
    table = "\n".join(["", *(f"{key:24s}{value}" for key, value in rows)])
    return table if models.scored_on(splits["test"]) else f"{table}\n\n{series.OTHER_SLICES}"


def _two_decoders(sharp: dict, faithful: dict, figure: str) -> str:
    of_both = (metrics.Estimate(*scores[figure]) for scores in (sharp, faithful))
    return "{}; with the faithful decoder {}".format(*of_both)


def ladder(kind: str) -> None:
    """One of the comparisons of `ladders`, on the data in force; prints and keeps the results."""
    root, name = series.data_root(), series.data_name()
    timed = kind in ("sampling", "sizes")  # the same whatever is in the slices
    file = ladders.KEPT / (f"{kind}.json" if timed else f"{name}-{kind}.json")
    at_once = {
        "race": lambda: ladders.race(root),
        "priors": lambda: ladders.priors(root, name),
        "temperature": lambda: ladders.temperature(root, name),
        "sampling": ladders.sampling,
        "sizes": lambda: {
            "machine": ladders.machine_facts(),
            "sizes": list(ladders.sizes(root)),
        },
    }
    if kind in at_once:
        keep(file, at_once[kind]())
        return
    rungs = {
        "ablation": lambda: ladders.ablation(root, file),
        "rates": lambda: ladders.rates(root, file),
        "decoders": lambda: ladders.decoders(root, file, f"{name}-faithful"),
        "tokenizers": lambda: ladders.tokenizers(root, file, f"{name}-10x10"),
    }
    for found in rungs[kind]():
        scores = found.get("scores", found)
        figures = (f"{key} {scores[key]}" for key in ("ssim", "brain_ssim", "psnr_db"))
        print(f"{found['name']:45s}", *figures, flush=True)
        if "prior" in found:
            print(f"{'our prior on its codes':45s}", found["prior"], flush=True)


def keep(file: Path, found: dict) -> None:
    """Writes what was measured as JSON, and prints it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(file, found, indent=1)
    print(json.dumps(found, indent=1))


def bench() -> None:
    """Times both stages against the plain recipes, keeps the result, and prints the ratios."""
    found = ladders.bench()
    keep(ladders.KEPT / "bench.json", found)
    for name, times in found["times"].items():
        shown = ", ".join(f"{value:.3g} times the {what}" for what, value in times.items())
        print(f"ours against {name}: {shown} a second")


def features() -> None:
    """Trains the feature network of the data in force, and prints how well it learnt."""
    print(json.dumps(series.train_features(), indent=1))


def results() -> None:
    """Writes README's results table and its picture of generated slices anew."""
    models = series.load_pretrained(PICTURED)
    levels = np.linspace(0, SLICES_PER_SUBJECT - 1, 8).round().astype(int)
    codes = sample_codes(models.prior, 24, slice_index=np.tile(levels, 3), seed=0)
    top, left, height, width = models.vqvae.field
    slices = models.vqvae.decode(codes)[:, top : top + height, left : left + width]
    titles = [f"slice {level}" for level in levels]
    figure = plotting.image_rows(np.split(slices, 3), [""] * 3, titles)
    picture = series.WEIGHTS / PICTURED / "generated.png"
    with files.written_beside(picture) as beside:
        figure.savefig(beside, dpi=110)
    readme = REPOSITORY / "README.md"
    text = with_results(readme.read_text(encoding="utf-8"))
    files.write_bytes(readme, text.encode())


def with_results(readme: str) -> str:
    """README's text with the tables between the marks made anew from what is kept."""
    tables = {
        "results": results_table(),
        "realism": realism_table(),
        "tokenizers": tokenizers_table(),
        "sizes": sizes_table(),
        "bench": bench_table(),
    }
    for name, table in tables.items():
        before, _, rest = readme.partition(f"<!-- {name} -->\n")
        _, mark, after = rest.partition(f"\n<!-- /{name} -->")
        readme = f"{before}<!-- {name} -->\n{table}{mark}{after}"
    return readme


def results_table() -> str:
    """A Markdown table with a row for each set of weights, from its `scores.json`."""
    head = (
        ("weights", "---"),
        ("frame", "---"),
        ("bits a slice", "--:"),
        ("SSIM", "---"),
        ("brain SSIM", "---"),
        ("PSNR", "--:"),
        ("fine power", "--:"),
        ("perplexity (brain cells)", "--:"),
        ("bits per code", "---"),
        ("counted per position", "--:"),
        ("per slice and position", "--:"),
    )
    rows = [[name for name, _ in head], [dashes for _, dashes in head]]
    for path in sorted(series.WEIGHTS.glob("*/scores.json")):
        scores = files.read_json(path)
        test, prior, frame = scores["test"], scores.get("prior_test"), scores["frame"]
        rows.append(
            [
                f"`{path.parent.name}`",
                f"{frame['size']} px, {'cropped' if frame['crop'] else 'whole'}",
                f"{test['bits_per_slice']:.0f}",
                f"{metrics.Estimate(*test['ssim'])}",
                f"{metrics.Estimate(*test['brain_ssim'])}",
                f"{test['psnr_db'][0]:.1f} dB",
                f"{100 * test['sharpness']['fine_power']:.0f} %",
                f"{test['perplexity']} ({test['perplexity_brain_cells']})",
                f"{metrics.Estimate(*prior['bits_per_code'])}" if prior else "",
                f"{prior['baselines']['per position']:.3f}" if prior else "",
                f"{prior['baselines']['per slice and position']:.3f}" if prior else "",
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def realism_table() -> str:
    """A Markdown table of sets of slices against test slices, from two `scores.json`."""
    ours, plain = (
        files.read_json(series.WEIGHTS / name / "scores.json")
        for name in (PICTURED, f"{PICTURED}-reference")
    )
    sets = {
        "real, other people": ours["realism"]["real"],
        f"reconstructed by `{PICTURED}`": ours["realism"]["reconstructed"],
        f"drawn by `{PICTURED}`": ours["realism"]["drawn"],
        "reconstructed by the plain recipe": plain["realism"]["reconstructed"],
        "drawn by the plain pipeline": plain["realism"]["drawn"],
    }
    measures = {
        "kid": "kernel distance",
        "kid_random": "in random features",
        "precision": "precision",
        "recall": "recall",
        "density": "density",
        "coverage": "coverage",
        "pairwise_ssim": "pairwise SSIM",
    }
    rows = [["set", *measures.values()], ["---"] * (1 + len(measures))]
    for name, row in sets.items():
        figures = ("{:.2f} [{:.2f}, {:.2f}]".format(*row[measure]) for measure in measures)
        rows.append([name, *figures])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def tokenizers_table() -> str:
    """A Markdown table of what our prior needs for the 10 x 10 codes of several tokenizers."""
    kept = files.read_json(ladders.KEPT / "oasis1-tokenizers.json")["tokenizers"]
    head = ["codes of", "cells with brain", "brain SSIM", "counted per position", "our prior"]
    head += ["share", "saved a slice"]
    table = [head, ["---", "--:", "---", "--:", "---", "--:", "--:"]]
    for name, found in kept.items():
        prior = found["prior"]
        counted, bits = prior["baselines"]["per position"], prior["bits_per_code"]
        codes = found["scores"]["bits_per_slice"] / prior["baselines"]["uniform"]
        table.append(
            [
                f"`{name}`" if name in recipes.RECIPES else name,
                f"{100 * found['brain_cells']:.0f} %",
                f"{metrics.Estimate(*found['scores']['brain_ssim'])}",
                f"{counted:.3f}",
                f"{metrics.Estimate(*bits)}",
                f"{prior['share_of_per_position']:.2f}",
                f"{codes * (counted - bits[0]):.0f} bits",
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


def sizes_table() -> str:
    """A Markdown table of what larger slices cost, as multiples of the smallest ones' cost."""
    rows = json.loads((ladders.KEPT / "sizes.json").read_text())["sizes"]

    def costs(row: dict) -> tuple[float, ...]:
        each = (row[step] / batch for step, batch in zip(("fit_step", "prior_step"), row["batch"]))
        return (*each, row["draw"], row["peak_gb"])

    head = ["slices", "codes", "bits", "stage 1", "stage 2", "drawing", "memory"]
    table = [head, ["---", *["--:"] * (len(head) - 1)]]
    for row in rows:
        times = (f"{mine / least:.1f}" for mine, least in zip(costs(row), costs(rows[0])))
        table.append([row["name"], str(row["cells"]), str(row["bits"]), *times])
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


def bench_table() -> str:
    """A Markdown table of how many times as much ours does in a second as the plain recipes."""
    times = json.loads((ladders.KEPT / "bench.json").read_text())["times"]
    table = [["ours against", "images trained on", "maps trained on", "maps drawn"]]
    table.append(["---", "--:", "--:", "--:"])
    for name, row in times.items():
        table.append([name, *(f"{value:.{int(value < 10)}f}" for value in row.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


def licences() -> None:
    """Prints name, version and licence of everything that the lock installs on this system."""
    rows = [("package", "version", "licence"), *locked_licences()]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def locked_licences() -> list[tuple[str, str, str]]:
    """(name, version, licence) of each installed package of `requirements.lock`.

    The licence is as its metadata give it: an SPDX expression, else the classifiers, else the
    "License" field where it is short, else the title of its licence file; "unknown" without any.
    """
    lock = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    found = []
    for name in dict.fromkeys(re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)):
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for other systems
        found.append((name, package.version, licence_of(package)))
    return found


def licence_of(package: importlib.metadata.Distribution) -> str:
    """What a package's metadata call its licence; see `locked_licences`."""
    known = package.metadata
    if expression := known.get("License-Expression"):
        return expression
    classifiers = [text for text in known.get_all("Classifier", []) if text.startswith("License")]
    named = [text.split(" :: ")[-1] for text in classifiers]
    free_text = known.get("License", "UNKNOWN").strip()
    if not named and free_text != "UNKNOWN" and "\n" not in free_text:
        named = [free_text]
    if not named:
        files = [file for file in package.files or () if file.name.startswith("LICEN")]
        titles = [re.search(r"[^\n]*Licen[cs]e[^\n;(]*", file.read_text()) for file in files]
        named = [title[0] for title in titles if title]
    return ", ".join(" ".join(text.split()) for text in named) or "unknown"


COMMANDS = {
    "run": (run, "execute the series, make pages and figures"),
    "refresh": (refresh, "execute the notebooks in place, on the cohort"),
    "results": (results, "write README's results table anew"),
    "bench": (bench, "time both stages against the plain recipes"),
    "features": (features, "train the network that judges drawn slices"),
    "licences": (licences, "list what is installed, and under which licence"),
}
WRITES_PAGES = ("run", "refresh")


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m oasis_helpers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, text) in COMMANDS.items():
        commands.add_parser(name, help=text)
    compare = commands.add_parser("ladder", help="measure what the ideas are worth")
    compare.add_argument("kind", choices=LADDERS)
    train = commands.add_parser("train", help="train a set of weights to the end, and score it")
    score = commands.add_parser("score", help="measure a set of weights anew")
    for command in (train, score):
        command.add_argument("name", choices=sorted(recipes.RECIPES))
    other = commands.add_parser("convert", help="make a folder of slices of your own OASIS")
    other.add_argument("source", help="slices, volumes or pictures: a folder, zip or tar archive")
    other.add_argument("target", help="the folder to make")
    other.add_argument("--seed", type=int, default=0, help="of the split by subject (0)")
    other.add_argument("--splits", help="a CSV with columns case and split, instead of a seed")
    return parser.parse_args()


def _follow(arguments: argparse.Namespace) -> None:
    if arguments.command in ("train", "score"):
        weights = {"train": series.train_weights, "score": series.score_weights}
        scores = weights[arguments.command](arguments.name)
        shown = {part: scores[part] for part in ("test", "prior_test") if part in scores}
        print(json.dumps(shown, indent=2))
    elif arguments.command == "ladder":
        with files.only_one(BUILD / "ladder", "climbing a ladder"):
            ladder(arguments.kind)
    elif arguments.command == "convert":
        made = convert(arguments.source, arguments.target, arguments.seed, arguments.splits)
        print(describe(made))
    elif arguments.command in WRITES_PAGES:
        with files.only_one(BUILD, "executing the notebooks"):
            COMMANDS[arguments.command][0]()
    else:
        COMMANDS[arguments.command][0]()


def sentence_of(error: Exception) -> str | None:
    """What to tell the user of an error; None for a bug of ours, whose traceback is needed.

    Ours are sentences already; what the system says of a file is made one.
    """
    if isinstance(error, OSError) and error.errno:
        place = error.filename or "A file"
        return (
            f"{place}: {error.strerror}; files are replaced whole, so nothing is half written: "
            "mend that and give the same command again."
        )
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return str(error) if raised_in.parent == Path(__file__).parent else None


def main() -> None:
    """Does what the command line asks for; ends with a sentence where that can't be done."""
    arguments = _parsed()
    if named := os.environ.get("OASIS_DATA_DIR"):  # kernels run in another folder
        os.environ["OASIS_DATA_DIR"] = os.path.realpath(os.path.expanduser(named))
    try:
        _follow(arguments)
    except KeyboardInterrupt as interrupt:
        told = str(interrupt) or "Interrupted; give the same command to start it again."
        print(f"\n{told}", file=sys.stderr)
        sys.exit(130)  # as shells do for Ctrl-C
    except (ValueError, OSError) as error:
        if sentence := sentence_of(error):
            sys.exit(sentence)
        raise


if __name__ == "__main__":
    main()
