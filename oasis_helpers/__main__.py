"""The commands behind the Makefile: `python -m oasis_helpers run | train | ...`."""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import shutil
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
from bs4 import BeautifulSoup
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from PIL import Image

from oasis_helpers import ladders, metrics, plotting, sample_codes, series
from oasis_helpers.data import REPOSITORY, SLICES_PER_SUBJECT

NOTEBOOKS = REPOSITORY / "notebooks"
BUILD = REPOSITORY / "build"
LADDERS = (
    "ablation",
    "rates",
    "race",
    "decoders",
    "priors",
    "temperature",
    "sampling",
    "sizes",
)
PICTURED = "oasis1"  # the weights whose slices README shows
WIDGET = "application/vnd.jupyter.widget-view+json"  # shows nothing without a running kernel
CELL_TIMEOUT = 3600  # seconds; the full profile trains in one cell


def run() -> None:
    """Executes copies of the notebooks, makes pages and figures of them, prints the summary."""
    folders = {kind: BUILD / kind for kind in ("notebooks", "html", "figures")}
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    print(f"Data: {series.data_root()}  profile: {series.profile()}", flush=True)
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        notebook = _executed(path, folders["notebooks"] / path.name)
        (folders["html"] / f"{path.stem}.html").write_text(page_of(notebook), encoding="utf-8")
        _write_figures(notebook, folders["figures"], path.stem)
    print(summary())


def refresh() -> None:
    """Executes the notebooks in place on the cohort, so that stored outputs are current."""
    os.environ.pop("OASIS_DATA_DIR", None)  # stored outputs show the cohort only
    os.environ["OASIS_PROFILE"] = "tour"
    for path in [*sorted(NOTEBOOKS.glob("[0-9]*.ipynb")), *sorted(NOTEBOOKS.glob("solutions/*"))]:
        executed = BUILD / "notebooks" / path.relative_to(NOTEBOOKS)
        executed.parent.mkdir(parents=True, exist_ok=True)
        _executed(path, executed)
        series.write_bytes(path, executed.read_bytes())


def _executed(path: Path, written_to: Path) -> nbformat.NotebookNode:
    """The notebook run top to bottom in a fresh kernel; prints a line with its time.

    What was executed is written even when a cell fails, so that there is something to look at.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
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
        sys.exit(f"{path.name} stopped; {written_to} shows how far it came.\n{error}")
    print(f"{time.perf_counter() - started:6.0f} s", flush=True)
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
    }
    for found in rungs[kind]():
        scores = found.get("scores", found)
        figures = (f"{key} {scores[key]}" for key in ("ssim", "brain_ssim", "psnr_db"))
        print(f"{found['name']:45s}", *figures, flush=True)


def keep(file: Path, found: dict) -> None:
    """Writes what was measured as JSON, and prints it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    series.write_bytes(file, f"{json.dumps(found, indent=1)}\n".encode())
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
    beside = picture.with_suffix(".tmp.png")
    figure.savefig(beside, dpi=110)
    os.replace(beside, picture)
    readme = REPOSITORY / "README.md"
    text = with_results(readme.read_text(encoding="utf-8"))
    series.write_bytes(readme, text.encode())


def with_results(readme: str) -> str:
    """README's text with the tables between the marks made anew from what is kept."""
    tables = {
        "results": results_table(),
        "realism": realism_table(),
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
        scores = json.loads(path.read_text())
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
        json.loads((series.WEIGHTS / name / "scores.json").read_text())
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
    table += [
        [name, *(f"{value:.0f}" if value > 10 else f"{value:.1f}" for value in row.values())]
        for name, row in times.items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m oasis_helpers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="execute the series, make pages and figures")
    commands.add_parser("refresh", help="execute the notebooks in place, on the cohort")
    commands.add_parser("results", help="write README's results table anew")
    compare = commands.add_parser("ladder", help="measure what the ideas are worth")
    compare.add_argument("kind", choices=LADDERS)
    commands.add_parser("bench", help="time both stages against the plain recipes")
    commands.add_parser("features", help="train the network that judges drawn slices")
    train = commands.add_parser("train", help="train a set of weights to the end, and score it")
    score = commands.add_parser("score", help="measure a set of weights anew")
    for command in (train, score):
        command.add_argument("name", choices=sorted(series.RECIPES))
    arguments = parser.parse_args()
    if named := os.environ.get("OASIS_DATA_DIR"):  # kernels run in another folder
        os.environ["OASIS_DATA_DIR"] = str(Path(named).expanduser().resolve())
    if arguments.command in ("train", "score"):
        weights = {"train": series.train_weights, "score": series.score_weights}
        scores = weights[arguments.command](arguments.name)
        shown = {part: scores[part] for part in ("test", "prior_test") if part in scores}
        print(json.dumps(shown, indent=2))
    elif arguments.command == "ladder":
        ladder(arguments.kind)
    else:
        {
            "run": run,
            "refresh": refresh,
            "results": results,
            "features": features,
            "bench": bench,
        }[arguments.command]()


if __name__ == "__main__":
    main()
