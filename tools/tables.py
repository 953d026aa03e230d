"""Writes the tables of measured results into pages: `python -m tools.tables`.

A page has marks around each table, `<!-- results -->` ... `<!-- /results -->`. The tables come from
`scores.json` files and kept results, so no figure is written by hand. The picture of generated
slices is made again as well.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from oasis_helpers import plotting, pretrained, sample_codes
from oasis_helpers.__main__ import ending_with_a_sentence
from oasis_helpers.data import (
    REPOSITORY,
    SLICES_PER_SUBJECT,
    atomic_write,
    read_json,
    write_bytes,
)
from oasis_helpers.metrics import Estimate
from oasis_helpers.pretrained import WEIGHTS
from oasis_helpers.recipes import RECIPES

PAGES = ("README.md", "docs/results.md")
PICTURED, REFERENCE = "oasis1", "oasis1-reference"  # weights in README, and their baseline


def main() -> None:
    """Writes every table of every page, and the picture."""
    write_picture()
    for name in PAGES:
        page = REPOSITORY / name
        if page.is_file():
            write_bytes(page, with_tables(page.read_text(encoding="utf-8")).encode())


def with_tables(page: str) -> str:
    """A page's text with the tables between its marks replaced by current ones."""
    for name, table in TABLES.items():
        before, mark, rest = page.partition(f"<!-- {name} -->\n")
        if mark:
            _, end, after = rest.partition(f"\n<!-- /{name} -->")
            page = f"{before}{mark}{table()}{end}{after}"
    return page


def markdown(columns: dict[str, Callable], rows: list) -> str:
    """A Markdown table: {heading: function of a row that gives the cell's text}.

    The first column is aligned to the left, the others to the right.
    """
    lines = [list(columns), ["---", *["--:"] * (len(columns) - 1)]]
    lines += [[cell(row) for cell in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _with_interval(values: list[float]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*values)


def results_table() -> str:
    """A row for each set of weights, from its `scores.json`."""
    rows = [
        {"name": path.parent.name, **read_json(path)}
        for path in sorted(WEIGHTS.glob("*/scores.json"))
    ]

    def of_prior(cell: Callable) -> Callable:
        return lambda row: cell(row["prior_test"]) if "prior_test" in row else ""

    columns = {
        "weights": lambda row: f"`{row['name']}`",
        "frame": lambda row: "{} px, {}".format(
            row["frame"]["size"], "cropped" if row["frame"]["crop"] else "whole"
        ),
        "bits per slice": lambda row: f"{row['test']['bits_per_slice']:.0f}",
        "SSIM": lambda row: f"{Estimate(*row['test']['ssim'])}",
        "brain SSIM": lambda row: f"{Estimate(*row['test']['brain_ssim'])}",
        "PSNR": lambda row: f"{row['test']['psnr_db'][0]:.1f} dB",
        "high-frequency power": lambda row: (
            f"{100 * row['test']['sharpness']['high_frequency_power']:.0f} %"
        ),
        "perplexity (on brain)": lambda row: (
            f"{row['test']['perplexity']} ({row['test']['perplexity_brain']})"
        ),
        "bits per code": of_prior(lambda prior: f"{Estimate(*prior['bits_per_code'])}"),
        "baseline per position": of_prior(
            lambda prior: f"{prior['baselines']['per position']:.3f}"
        ),
        "per slice index and position": of_prior(
            lambda prior: f"{prior['baselines']['per slice index and position']:.3f}"
        ),
    }
    return markdown(columns, rows)


def headline_table() -> str:
    """Our weights beside the reference and beside real slices, in five lines."""
    ours, reference = (read_json(WEIGHTS / name / "scores.json") for name in (PICTURED, REFERENCE))
    real = ours["set_metrics"]["real"]

    def both(measure: Callable) -> tuple[str, str]:
        return measure(ours), measure(reference)

    def bits(scores: dict) -> str:
        prior = scores["prior_test"]
        return f"{prior['bits_per_code'][0]:.2f} ({prior['baselines']['per position']:.2f})"

    def precision_recall(row: dict) -> str:
        return f"{row['precision'][0]:.2f}, {row['recall'][0]:.2f}"

    rows = [
        (
            "brain SSIM of reconstructions",
            *both(lambda scores: _with_interval(scores["test"]["brain_ssim"])),
            "1",
        ),
        (
            "high-frequency power of reconstructions",
            *both(lambda s: f"{100 * s['test']['sharpness']['high_frequency_power']:.0f} %"),
            "100 %",
        ),
        ("bits per code (baseline per position)", *both(bits), ""),
        (
            "KID of samples",
            *both(lambda scores: _with_interval(scores["set_metrics"]["samples"]["kid"])),
            _with_interval(real["kid"]),
        ),
        (
            "precision, recall of samples",
            *both(lambda scores: precision_recall(scores["set_metrics"]["samples"])),
            precision_recall(real),
        ),
    ]
    headings = ("score", f"`{PICTURED}`", f"`{REFERENCE}`", "real slices")
    return markdown(
        {heading: lambda row, at=at: row[at] for at, heading in enumerate(headings)}, rows
    )


def set_metrics_table() -> str:
    """Sets of slices against the real ones of test subjects, from two `scores.json`."""
    ours, reference = (
        read_json(WEIGHTS / name / "scores.json")["set_metrics"] for name in (PICTURED, REFERENCE)
    )
    rows = [
        ("real, other subjects", ours["real"]),
        (f"reconstructed by `{PICTURED}`", ours["reconstructed"]),
        (f"samples of `{PICTURED}`", ours["samples"]),
        ("reconstructed by the reference", reference["reconstructed"]),
        ("samples of the reference", reference["samples"]),
    ]
    scores = {
        "KID": "kid",
        "KID in random features": "kid_random",
        "precision": "precision",
        "recall": "recall",
        "density": "density",
        "coverage": "coverage",
        "pairwise SSIM": "pairwise_ssim",
    }
    columns = {"set": lambda row: row[0]} | {
        heading: lambda row, score=score: _with_interval(row[1][score])
        for heading, score in scores.items()
    }
    return markdown(columns, rows)


def tokenizers_table() -> str:
    """What our prior needs for the 10 x 10 codes of several tokenizers."""

    def saved(row: dict) -> str:
        prior = row["prior"]
        codes = row["scores"]["bits_per_slice"] / prior["baselines"]["uniform"]
        bits = prior["baselines"]["per position"] - prior["bits_per_code"][0]
        return f"{codes * bits:.0f} bits"

    columns = {
        "codes of": lambda row: f"`{row['name']}`" if row["name"] in RECIPES else row["name"],
        "positions with brain": lambda row: f"{100 * row['brain_positions']:.0f} %",
        "brain SSIM": lambda row: f"{Estimate(*row['scores']['brain_ssim'])}",
        "baseline per position": lambda row: f"{row['prior']['baselines']['per position']:.3f}",
        "our prior": lambda row: f"{Estimate(*row['prior']['bits_per_code'])}",
        "ratio": lambda row: f"{row['prior']['ratio_to_per_position']:.2f}",
        "saved per slice": saved,
    }
    return markdown(columns, list(pretrained.results("tokenizers")["tokenizers"].values()))


def image_sizes_table() -> str:
    """What larger slices cost, as multiples of the cost of the smallest ones."""
    rows = pretrained.results("image_sizes")["sizes"]

    def multiple(cost: Callable) -> Callable:
        return lambda row: f"{cost(row) / cost(rows[0]):.1f}"

    columns = {
        "slices": lambda row: row["name"],
        "codes": lambda row: str(row["positions"]),
        "bits": lambda row: str(row["bits"]),
        "stage 1": multiple(lambda row: row["fit_step"] / row["batch_size"][0]),
        "stage 2": multiple(lambda row: row["prior_step"] / row["batch_size"][1]),
        "sampling": multiple(lambda row: row["sample"]),
        "memory": multiple(lambda row: row["peak_gb"]),
    }
    return markdown(columns, rows)


def speed_table() -> str:
    """How many times as much our recipe does in a second as the plain ones."""
    ratios = pretrained.results("speed")["ratios"]
    columns = {"our recipe against": lambda row: row[0]} | {
        heading: lambda row, key=key: f"{row[1][key]:.{int(row[1][key] < 10)}f}"
        for heading, key in (
            ("images trained on", "images"),
            ("maps trained on", "maps"),
            ("maps sampled", "samples"),
        )
    }
    return markdown(columns, list(ratios.items()))


TABLES = {
    "headline": headline_table,
    "results": results_table,
    "set metrics": set_metrics_table,
    "tokenizers": tokenizers_table,
    "image sizes": image_sizes_table,
    "speed": speed_table,
}


def write_picture() -> None:
    """Writes `generated.png`: three rows of samples at eight slice indices."""
    models = pretrained.load_pretrained(PICTURED)
    indices = np.linspace(0, SLICES_PER_SUBJECT - 1, 8).round().astype(int)
    codes = sample_codes(models.prior, 24, slice_index=np.tile(indices, 3), seed=0)
    top, left, height, width = models.vqvae.region
    slices = models.vqvae.decode(codes)[:, top : top + height, left : left + width]
    titles = [f"slice {index}" for index in indices]
    figure = plotting.images(slices, titles, columns=len(indices))
    with atomic_write(WEIGHTS / PICTURED / "generated.png") as temporary:
        figure.savefig(temporary, dpi=110)


if __name__ == "__main__":
    ending_with_a_sentence(main)
