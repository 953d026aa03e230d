"""The comparisons of the first stage run with one call each, and go on where they were."""

import dataclasses
import json

import pytest

from oasis_helpers import ladders
from oasis_helpers.data import SPLITS
from oasis_helpers.recipes import Schedule


@pytest.fixture
def few(monkeypatch, cohort_root, load_few):
    """Two subjects of every split, in place of all."""

    def load(root, split):
        return load_few(root, split, subjects=2)

    monkeypatch.setattr(ladders, "load_slices", load)
    return {split: load(cohort_root, split) for split in SPLITS}


def test_every_rung_but_the_first_changes_an_earlier_one():
    names = [rung.name for rung in ladders.ABLATION]
    assert len(set(names)) == len(names)
    for place, rung in enumerate(ladders.ABLATION[1:], start=1):
        assert names.index(rung.after) < place
    models = [rung.build(0.1) for rung in ladders.ABLATION]
    assert {model.bits_per_slice for model in models} == {700.0}, "a rung has another rate"


def test_ablation_resumes(few, cohort_root, tmp_path, monkeypatch):
    file = tmp_path / "kept.json"
    monkeypatch.setattr(ladders, "ABLATION", [ladders.ABLATION[0], ladders.ABLATION[-1]])
    found = list(ladders.ablation(cohort_root, file, steps=2))
    assert [result["steps"] for result in found] == [2] * 2
    assert found == list(json.loads(file.read_text())["variants"].values())
    assert found[0]["scores"]["slices"] == 64, "scored on other slices than the validation split"
    monkeypatch.setattr(ladders, "train_rung", None)  # nothing may be trained again
    assert list(ladders.ablation(cohort_root, file, steps=2)) == found


def test_seconds_become_steps(few, tmp_path):
    rung = dataclasses.replace(ladders.ABLATION[0], batch=16)
    for seconds, least, most in ((1e-6, 1, 1), (10, 20, 10_000)):
        ledger = ladders.Ledger(tmp_path / f"{seconds}.json")
        planned = ledger.plan([rung], few["train"], seconds, None)[rung.name]
        assert least <= planned["steps"] <= most


def test_rates_beside_codecs(few, cohort_root, tmp_path, monkeypatch):
    monkeypatch.setattr(ladders, "RATES", [ladders.RATES[0], ladders.RATES[-1]])
    found = list(ladders.rates(cohort_root, tmp_path / "kept.json", steps=2))
    by_family = {}
    for result in found:
        by_family.setdefault(result["family"], []).append(result)
    assert set(by_family) == {"ours, 10 x 10", "ours, 20 x 20", *ladders.CODECS}
    assert [by_family[f"ours, {grid}"][0]["bits"] for grid in ("10 x 10", "20 x 20")] == [500, 3600]
    for family in ladders.CODECS:
        bits, scores = zip(*((r["bits"], r["ssim"]) for r in by_family[family]))
        assert list(bits) == sorted(bits) and list(scores) == sorted(scores)


def test_race(few, cohort_root):
    found = ladders.race(cohort_root, epochs=1)
    assert len(found["reference"]) == 1 and len(found["ours"]) >= 1
    assert found["speed_up"] is None or found["speed_up"] > 0


def test_decoders_are_trained_on_from_one_start(cohort_root, load_few, tmp_path, monkeypatch):
    monkeypatch.setattr(ladders.pretrained, "load_slices", load_few)
    file = tmp_path / "kept.json"
    found = list(ladders.decoders(cohort_root, file, "cohort-faithful", steps=2))
    assert [result["name"] for result in found] == list(ladders.DECODERS)
    assert {result["scores"]["bits_per_slice"] for result in found} == {1001.0}
    scores = {tuple(result["scores"]["ssim"]) for result in found}
    assert len(scores) == 3, "two ways of training gave the same decoder"
    assert min(result["scores"]["ssim"][0] for result in found) > 0.8, "not trained *on*"


def test_temperatures(cohort_root, load_few, monkeypatch):
    monkeypatch.setattr(ladders.pretrained, "load_slices", load_few)
    monkeypatch.setattr(ladders, "TEMPERATURES", (0.3, 1.0))
    found = ladders.temperature(cohort_root, "cohort", people=6)
    cold, usual = found["temperatures"]["0.3"], found["temperatures"]["1.0"]
    assert cold["slices"] == usual["slices"] == 192 and len(usual["high_frequency_power"]) == 3
    assert cold["pairwise_ssim"][0] > usual["pairwise_ssim"][0]


def test_the_plain_prior_gets_the_same_codes(cohort_root, load_few, monkeypatch):
    monkeypatch.setattr(ladders.pretrained, "load_slices", load_few)
    found = ladders.priors(cohort_root, "cohort", seconds=1)
    assert found["seconds"] == 1 and found["epochs"] == 1
    assert found["reference"]["baselines"] == found["ours"]["baselines"]
    shipped = ladders.pretrained.load_pretrained("cohort").scores["prior_test"]["bits_per_code"]
    assert found["ours"]["bits_per_code"][0] == pytest.approx(shipped[0], abs=0.3)
    assert 0 < found["bits_saved"] < 1


def test_our_prior_gets_the_codes_of_other_tokenizers(
    few, cohort_root, load_few, tmp_path, monkeypatch
):
    monkeypatch.setattr(ladders, "TOKENIZERS", ladders.TOKENIZERS[:1])
    monkeypatch.setattr(ladders.pretrained, "load_slices", load_few)
    taught, train_prior = [], ladders.training.train_prior
    monkeypatch.setattr(
        ladders.training,
        "train_prior",
        lambda recipe, vqvae, *rest, **how: (
            taught.append(vqvae) or train_prior(recipe, vqvae, *rest, **how)
        ),
    )
    quick = dataclasses.replace(
        ladders.recipes.RECIPES["oasis1-10x10"],
        prior={"filters": 8, "blocks": 1},
        prior_schedule=Schedule(2, 32, 1e-3),
        views=1,
    )
    how = {"file": tmp_path / "kept.json", "name": "cohort", "slices": 256, "recipe": quick}
    found = list(ladders.tokenizers(cohort_root, **how))
    assert [result["name"] for result in found] == ["reference recipe", "cohort"]
    (vqvae,) = taught
    rung, test = found[0], few["test"]
    assert rung["scores"] == ladders.metrics.reconstruction_table(vqvae, test)
    assert rung["brain_positions"] < found[1]["brain_positions"]  # of a whole frame, and of a cropped one
    shipped = ladders.pretrained.load_pretrained("cohort").scores["prior_test"]["bits_per_code"]
    assert found[1]["prior"]["bits_per_code"][0] == pytest.approx(shipped[0], abs=0.3)
    monkeypatch.setattr(ladders, "train_rung", None)  # nothing may be trained again
    assert list(ladders.tokenizers(cohort_root, **how)) == found


def test_kept_tokenizers_draw_brains():
    kept = pretrained.results("tokenizers")["tokenizers"]
    assert list(kept) == [*ladders.TOKENIZERS, "oasis1-10x10"]
    for found in kept.values():
        assert found["scores"]["brain_ssim"][0] > 0.5 and found["scores"]["bits_per_slice"] == 700
        assert found["prior"]["bits_per_code"][0] < min(found["prior"]["baselines"].values())
    shares = [found["prior"]["ratio_to_per_position"] for found in kept.values()]
    assert max(shares[:2]) <= 0.72 and shares == sorted(shares)  # as notebook 05 says


def test_the_samplers_take_turns():
    found = ladders.sampling(maps=3, sides=(3,))
    (grid,) = found["grids"]
    assert found["maps"] == 3 and grid["positions"] == 9 and grid["compiling"] > 0
    assert grid["cached"] > 0 and grid["compiled"] > 0 and grid["compiled_same_codes"] > 0.8
    kept = pretrained.results("sampling")
    assert {grid["side"] for grid in kept["grids"] if "loop" in grid} == {10, 20}
    for paces in (*kept["grids"], kept["compiled_batch_of_64"]):
        assert paces["compiled_same_codes"] > 0.99 and paces["compiled_times_faster"] > 1
