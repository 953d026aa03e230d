"""Writes the tables of measured results into pages: `python -m tools.tables`.

A page has marks around each table, `<!-- results -->` ... `<!-- /results -->`. The tables come from
`scores.json` files and kept results, so no figure is written by hand. The two pictures of generated
slices are made again as well.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image
from skimage.transform import resize

from oasis_helpers import plotting, pretrained, sample_codes, sample_heads
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
from tools.score import SEED_SCORES

PAGES = ("README.md", "docs/results.md", "docs/negative-results.md")
PICTURED = "oasis1"  # weights in README
REFERENCES = {"20 epochs": "oasis1-reference", "100 epochs": "oasis1-reference-100"}
BASELINES = ("per position", "smoothed over indices")


def main() -> None:
    """Writes every table of every page, and the pictures."""
    write_pictures()
    for name in PAGES:
        page = REPOSITORY / name
        if page.is_file():
            write_bytes(page, with_tables(page.read_text(encoding="utf-8")).encode())


def with_tables(page: str) -> str:
    """A page's text with the tables between its marks replaced by current ones."""
    for name, table in TABLES.items():
        before, mark, rest = page.partition(f"<!-- {name} -->\n")
        if mark:
            _, end, after = rest.partition(f"<!-- /{name} -->")
            page = f"{before}{mark}{table()}\n{end}{after}"
    return page


def markdown(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is aligned to the left, the others to the right."""
    lines = [headings, ["---", *["--:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _with_interval(values: list[float]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*values)


def headline_table() -> str:
    """The reference at both lengths, our weights, and real slices, in five lines."""
    names = (*REFERENCES.values(), PICTURED)
    scores = [read_json(WEIGHTS / name / "scores.json") for name in names]
    tests, priors = [one["test"] for one in scores], [one["prior_test"] for one in scores]
    sets = [one["set_metrics"]["samples"] for one in scores]
    sets.append(scores[-1]["set_metrics"]["real"])
    power = [100 * test["sharpness"]["high_frequency_power"] for test in tests]
    rows = [
        ["brain SSIM of reconstructions", *(_with_interval(t["brain_ssim"]) for t in tests), "1"],
        ["high-frequency power of reconstructions", *(f"{x:.0f} %" for x in power), "100 %"],
        [
            "bits per code (baselines: per position; smoothed over indices)",
            *(
                "{:.2f} ({:.2f}; {:.2f})".format(
                    prior["bits_per_code"][0], *(prior["baselines"][table] for table in BASELINES)
                )
                for prior in priors
            ),
            "",
        ],
        ["KID of samples", *(_with_interval(row["kid"]) for row in sets)],
        ["the same in random features", *(_with_interval(row["kid_random"]) for row in sets)],
        [
            "precision, recall of samples",
            *(f"{row['precision'][0]:.2f}, {row['recall'][0]:.2f}" for row in sets),
        ],
    ]
    references = [f"reference, {length}" for length in REFERENCES]
    return markdown(["score", *references, "ours", "real slices"], rows)


def results_table() -> str:
    """A row for each set of weights, from its `scores.json`."""
    headings = "weights|frame|bits per slice|SSIM|brain SSIM|PSNR|high-frequency power"
    headings += "|perplexity (on brain)|bits per code|baseline per position"
    headings += "|smoothed over indices"
    rows = []
    for path in sorted(WEIGHTS.glob("*/scores.json")):
        scores = read_json(path)
        test, frame, prior = scores["test"], scores["frame"], scores.get("prior_test")
        row = [
            f"`{path.parent.name}`",
            f"{frame['size']} px, {'cropped' if frame['crop'] else 'whole'}",
            f"{test['bits_per_slice']:.0f}",
            f"{Estimate(*test['ssim'])}",
            f"{Estimate(*test['brain_ssim'])}",
            f"{test['psnr_db'][0]:.1f} dB",
            f"{100 * test['sharpness']['high_frequency_power']:.0f} %",
            f"{test['perplexity']} ({test['perplexity_brain']})",
        ]
        if prior:
            row += [f"{Estimate(*prior['bits_per_code'])}"]
            row += [f"{prior['baselines'][table]:.3f}" for table in BASELINES]
        rows.append(row if prior else [*row, "", "", ""])
    return markdown(headings.split("|"), rows)


def set_metrics_table() -> str:
    """Sets of slices against the real ones of test subjects."""
    sets = {}
    for name in (PICTURED, *REFERENCES.values()):
        scores = read_json(WEIGHTS / name / "scores.json")["set_metrics"]
        sets.setdefault("real, other subjects", scores["real"])
        sets[f"reconstructed by `{name}`"] = scores["reconstructed"]
        if name != PICTURED:  # the prior of the reference does not get the slice index
            del scores["samples"]["pairwise_ssim"]
        sets[f"samples of `{name}`"] = scores["samples"]
    return _sets_table(sets)


def cohort_set_metrics_table() -> str:
    """The same for the synthetic cohort."""
    cohort = read_json(WEIGHTS / "cohort" / "scores.json")["set_metrics"]
    sets = {
        "cohort, other subjects": cohort["real"],
        "reconstructed by `cohort`": cohort["reconstructed"],
        "samples of `cohort`": cohort["samples"],
    }
    return _sets_table(sets)


def _sets_table(sets: dict[str, dict]) -> str:
    scores = ("kid", "kid_random", "precision", "recall", "density", "coverage", "pairwise_ssim")
    rows = [
        [name, *(_with_interval(row[score]) if score in row else "" for score in scores)]
        for name, row in sets.items()
    ]
    headings = ["set", "KID", "KID in random features", *scores[2:-1], "pairwise SSIM"]
    return markdown(headings, rows)


def heads_table() -> str:
    """Stacks of slices: real, reconstructed, generated heads, and independent slices."""
    rows = []
    for name in (PICTURED, "cohort"):
        scores = read_json(WEIGHTS / name / "scores.json")["heads"]
        for kind, sets in scores["sets"].items():
            agreement, reformats = scores["agreement"][kind], scores["reformats"][kind]
            thirds = (" / ".join(f"{x:.3f}" for x in values) for values in agreement.values())
            scores_of_set = ("precision", "recall", "coverage")
            parts = (f"{sets['all'][score][0]:.2f}" for score in scores_of_set)
            planes = (
                f"{_with_interval(reformats[f'{p} trained'])} ({reformats[f'{p} random'][0]:.2f})"
                for p in ("coronal", "sagittal")
            )
            row = [f"`{name}`, {kind}", *thirds, _with_interval(sets["all"]["kid"])]
            rows.append([*row, ", ".join(parts), *planes])
    headings = "stacks|difference of neighbours|their brain SSIM|KID of slices"
    headings += "|precision, recall, coverage"
    headings += "|KID of coronal reformats (random features)|of sagittal ones"
    return markdown(headings.split("|"), rows)


def seeds_table() -> str:
    """Headline scores of three trainings of both weights, one for each seed."""
    names = (PICTURED, "cohort")
    tables = [read_json(WEIGHTS / name / SEED_SCORES) for name in names]
    rows = [
        [score, *(", ".join(f"{x:.3f}" for x in table["scores"][score]) for table in tables)]
        for score in tables[0]["scores"]
    ]
    seeds = (", ".join(map(str, table["seeds"])) for table in tables)
    headings = (f"`{name}`, seeds {numbers}" for name, numbers in zip(names, seeds))
    return markdown(["score", *headings], rows)


def memorisation_table() -> str:
    """How many samples are nearer to a training slice than every unseen slice, and p-values."""
    rows = []
    for path in sorted(WEIGHTS.glob("*/scores.json")):
        if tests := read_json(path).get("memorisation"):
            columns = (f"{one['count']} (p = {one['p_value']:.2f})" for one in tests.values())
            rows.append([f"`{path.parent.name}`", *columns])
    return markdown(["samples of", "in pixels", "in codes"], rows)


def planted_copies_table() -> str:
    """Copies found, and alarms in 20 sets of which 1, 5 and 10 % are copies, or none."""
    result = pretrained.results("memorisation")
    rows = []
    for kind, tests in result["copies"].items():
        alarms = [one["alarms"].values() for one in tests.values()]
        detected = [f"{100 * one['found']:.0f} %" for one in tests.values()]
        rows.append(
            [kind, *(cell for pair in zip(detected, map(_listed, alarms)) for cell in pair)]
        )
    for kind, tests in result["without copies"].items():
        rows.append([f"none: {kind}", *(cell for one in tests.values() for cell in ("", str(one)))])
    headings = [
        f"in {test}: {what}" for test in ("pixels", "codes") for what in ("found", "alarms")
    ]
    return markdown(["planted", *headings], rows)


def _listed(alarms: Iterable[int]) -> str:
    return " / ".join(map(str, alarms))


def membership_table() -> str:
    """How well bits per code separate training from test subjects."""
    result = pretrained.results("memorisation")
    row = [f"`{result['weights']}`", _with_interval(result["membership"])]
    return markdown(["bits per code of", "AUC, training against test subjects"], [row])


def realism_table() -> str:
    """How well a classifier separates two sets of slices."""
    rows = [
        [name, _with_interval(area)] for name, area in pretrained.results("realism")["auc"].items()
    ]
    return markdown(["sets", "AUC"], rows)


def halves_table() -> str:
    """Mean scores of slices and of halves that were joined from two, and how well they separate."""
    rows = [
        [kind, *(f"{one[key][0]:.2f}" for key in ("one", "two")), _with_interval(one["auc"])]
        for kind, one in pretrained.results("realism")["one head"].items()
    ]
    return markdown(["slices", "score", "score of two halves", "AUC"], rows)


def tokenizers_table() -> str:
    """What our prior needs for the 10 x 10 codes of several tokenizers."""
    headings = ["codes of", "positions with brain", "brain SSIM", "baseline"]
    headings += ["our prior", "ratio", "saved per slice"]
    rows = []
    for one in pretrained.results("tokenizers")["tokenizers"].values():
        scores, prior = one["scores"], one["prior"]
        baseline = prior["baselines"]["smoothed over indices"]
        bits = prior["bits_per_code"]
        codes = scores["bits_per_slice"] / prior["baselines"]["uniform"]
        rows.append(
            [
                f"`{one['name']}`" if one["name"] in RECIPES else one["name"],
                f"{100 * one['brain_positions']:.0f} %",
                f"{Estimate(*scores['brain_ssim'])}",
                f"{baseline:.3f}",
                f"{Estimate(*bits)}",
                f"{bits[0] / baseline:.2f}",
                f"{codes * (baseline - bits[0]):.0f} bits",
            ]
        )
    return markdown(headings, rows)


def image_sizes_table() -> str:
    """What larger slices cost, as multiples of the cost of the smallest ones."""
    sizes = pretrained.results("image_sizes")["sizes"]

    def costs(size: dict) -> np.ndarray:
        steps = (
            size[step] / batch
            for step, batch in zip(("fit_step", "prior_step"), size["batch_size"])
        )
        return np.array([*steps, size["sample"], size["peak_gb"]])

    headings = ["slices", "codes", "bits", "stage 1", "stage 2", "sampling", "memory"]
    rows = [
        [size["name"], str(size["positions"]), str(size["bits"])]
        + [f"{multiple:.1f}" for multiple in costs(size) / costs(sizes[0])]
        for size in sizes
    ]
    return markdown(headings, rows)


def speed_table() -> str:
    """How many times as much our recipe does in a second as the simpler ones."""
    headings = ["our recipe against", "images trained on", "maps trained on", "maps sampled"]
    ratios = pretrained.results("speed")["ratios"]
    rows = [[name, *(f"{x:.{int(x < 10)}f}" for x in row.values())] for name, row in ratios.items()]
    return markdown(headings, rows)


def small_data_table() -> str:
    """Bits per code of priors trained on few subjects: each seed, and their ensemble."""
    rows = []
    for one in pretrained.results("small_data")["variants"].values():
        rows.append([one["name"], *_seeds(one["bits_per_code"])])
        if "distilled" in one:
            rows.append(["distilled from the ensemble above", *_seeds(one["distilled"])])
    columns = ("mean (three seeds)", "ensemble")
    headings = [f"{kind}: {column}" for kind in ("given", "single") for column in columns]
    return markdown(["prior", *headings], rows)


def _seeds(bits: dict[str, list[float]]) -> list[str]:
    cells = []
    for *seeds, mean in bits.values():
        listed = ", ".join(f"{one:.3f}" for one in seeds)
        cells += [f"{np.mean(seeds):.3f} ({listed})", f"{mean:.3f}"]
    return cells


def alternatives_table() -> str:
    """Brain SSIM of other choices for the first stage, beside ours."""
    variants = pretrained.results("ablation")["variants"]
    ours = variants["weight of 1 - SSIM: 0"]["base"]
    rows = [
        [
            "ours" if name == ours else name,
            f"{np.mean(one['seeds']):.3f}",
            ", ".join(f"{score:.3f}" for score in one["seeds"]),
        ]
        for name, one in variants.items()
        if ours in (name, one["base"])
    ]
    return markdown(["first stage", "brain SSIM", "three seeds"], rows)


TABLES = {
    "headline": headline_table,
    "results": results_table,
    "set metrics": set_metrics_table,
    "set metrics of the cohort": cohort_set_metrics_table,
    "heads": heads_table,
    "seeds": seeds_table,
    "memorisation": memorisation_table,
    "planted copies": planted_copies_table,
    "membership": membership_table,
    "realism": realism_table,
    "two halves": halves_table,
    "small data": small_data_table,
    "alternatives": alternatives_table,
    "tokenizers": tokenizers_table,
    "image sizes": image_sizes_table,
    "speed": speed_table,
}


def write_pictures() -> None:
    """Writes `generated.png`, three rows of samples at eight slice indices, and `head.gif`."""
    models = pretrained.load_pretrained(PICTURED)
    indices = np.linspace(0, SLICES_PER_SUBJECT - 1, 8).round().astype(int)
    codes = sample_codes(models.prior, 24, slice_index=np.tile(indices, 3), seed=0)
    top, left, height, width = models.vqvae.region
    slices = models.vqvae.decode(codes)[:, top : top + height, left : left + width]
    titles = [f"slice {index}" for index in indices]
    figure = plotting.images(slices, titles, columns=len(indices))
    with atomic_write(WEIGHTS / PICTURED / "generated.png") as temporary:
        figure.savefig(temporary, dpi=110)
    write_head(models)


def write_head(models: pretrained.Pretrained) -> None:
    """Writes `head.gif`: the first head of seed 0, slice by slice, and two cuts that grow with it.

    On the left the axial slice; on the right the coronal cut above the sagittal one.
    """
    top, left, height, width = models.vqvae.region
    head = models.decode_heads(sample_heads(models.prior, 1, seed=0))[0, ..., 0]
    head = head[:, top : top + height, left : left + width]
    millimetres = models.scores["frame"]["crop"][2] / models.vqvae.size  # of a pixel; slices: 1
    tall = round(SLICES_PER_SUBJECT / millimetres)
    frames = []
    for index in range(SLICES_PER_SUBJECT):
        sampled = np.where(np.arange(SLICES_PER_SUBJECT)[:, None, None] <= index, head, 0)[::-1]
        page = np.zeros((height, width + height + 4), "float32")
        page[:, :width] = head[index]
        middle, gap = height // 2, 2
        for row, cut in (
            (middle - gap - tall, sampled[:, middle]),
            (middle + gap, sampled[:, :, width // 2 + 3]),
        ):
            page[row : row + tall, width + 4 : width + 4 + cut.shape[1]] = resize(
                cut, (tall, cut.shape[1]), order=1
            )
        frame = Image.fromarray(np.uint8(255 * page))
        frame = frame.resize((3 * frame.width, 3 * frame.height), Image.Resampling.BICUBIC)
        frames.append(frame.quantize(48, dither=Image.Dither.NONE))  # a third of the size
    first, *rest = frames
    with atomic_write(WEIGHTS / PICTURED / "head.gif") as temporary:
        durations = [120] * len(rest) + [2500]  # milliseconds
        first.save(temporary, "GIF", duration=durations, save_all=True, append_images=rest, loop=0)


if __name__ == "__main__":
    ending_with_a_sentence(main)
