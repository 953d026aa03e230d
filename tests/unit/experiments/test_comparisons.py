"""Variants, stored results and the command of the measured comparisons; nothing is trained."""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import experiments.__main__ as command
from experiments import ablation, decoders, rates, speed, time_to_target, tokenizers, variants
from experiments.variants import ResultsCache, Variant, plan_steps
from oasis_helpers import pretrained
from oasis_helpers.data import SliceSet

ROOT = Path(__file__).resolve().parents[3]


def test_every_variant_but_the_first_changes_an_earlier_one():
    names = [variant.name for variant in ablation.VARIANTS]
    assert len(set(names)) == len(names)
    for place, variant in enumerate(ablation.VARIANTS[1:], start=1):
        assert names.index(variant.base) < place


@pytest.mark.parametrize("variant", ablation.VARIANTS, ids=lambda variant: variant.name)
def test_every_variant_has_the_same_rate(variant):
    assert variant.build(0.1).bits_per_slice == 700


def stored_names(name: str, group: str) -> list[str]:
    return list(pretrained.results(name)[group])


def test_stored_results_are_those_of_todays_variants():
    stored = pretrained.results("ablation")["variants"]
    assert set(stored) == {variant.name for variant in ablation.VARIANTS}
    for variant in ablation.VARIANTS:
        result = stored[variant.name]
        assert (result["base"], result["batch_size"]) == (variant.base, variant.batch_size)
    codecs = [f"{name} {o}" for name, (_, options) in rates.CODECS.items() for o in options]
    assert stored_names("rates", "rates") == [*(v.name for v in rates.VARIANTS), *codecs]
    assert stored_names("decoders", "decoders") == list(decoders.VARIANTS)
    assert stored_names("tokenizers", "tokenizers") == [
        *(variant.name for variant in tokenizers.VARIANTS),
        "oasis1-10x10",
    ]
    assert stored_names("speed", "recipes") == list(speed.VARIANTS)
    assert set(time_to_target.VARIANTS) < set(pretrained.results("time_to_target"))


def test_stored_tokenizers_show_what_notebook_05_says():
    stored = pretrained.results("tokenizers")["tokenizers"]
    for result in stored.values():
        assert result["scores"]["brain_ssim"][0] > 0.5
        assert result["scores"]["bits_per_slice"] == 700
        assert result["prior"]["bits_per_code"][0] < min(result["prior"]["baselines"].values())
    priors = [result["prior"] for result in stored.values()]
    bits = [prior["bits_per_code"][0] for prior in priors]
    baseline = [prior["baselines"]["smoothed over indices"] for prior in priors]
    ratios = np.divide(bits, baseline)
    assert bits == sorted(bits) and ratios.argmax() == 3 and max(ratios) < 1.1 * min(ratios)


def test_stored_samplers_agree():
    stored = pretrained.results("sampling")
    assert {grid["side"] for grid in stored["grids"] if "loop" in grid} == {10, 20}
    for times in (*stored["grids"], stored["compiled_batch_of_64"]):
        assert times["compiled_same_codes"] > 0.99 and times["compiled_speed_up"] > 1


# ------------------------------------------------------------------------------ results' cache


def test_results_are_computed_once_and_stored_at_once(tmp_path):
    file = tmp_path / "new" / "results.json"
    assert ResultsCache(file).get_or_compute("group", "a", dict, [("x", 1)]) == {"x": 1}
    assert json.loads(file.read_text())["group"] == {"a": {"x": 1}}
    again = ResultsCache(file)
    assert again.get_or_compute("group", "a", pytest.fail) == {"x": 1}
    again.get_or_compute("group", "b", dict)
    assert set(json.loads(file.read_text())) == {"machine", "group"}


def test_a_damaged_file_of_results_is_refused(tmp_path):
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results.json: cannot be read .* make it again"):
        ResultsCache(tmp_path / "results.json")


@pytest.mark.parametrize(
    ("seconds", "steps", "planned"), [(10, None, 40), (0.01, None, 1), (10, 7, 7)]
)
def test_seconds_become_steps(tmp_path, monkeypatch, seconds, steps, planned):
    slices = SliceSet(np.zeros((2, 8, 8, 1)), np.arange(2), np.arange(2), "train", tmp_path)
    monkeypatch.setattr(variants, "step_seconds", lambda model, x, y, batch_size: 0.25)
    monkeypatch.setattr(Variant, "compiled", lambda *arguments: None)
    cache = ResultsCache(tmp_path / "results.json")
    for again in (False, True):
        plan = plan_steps(cache, [Variant("one", None)], slices, seconds, steps)
        assert plan == {"one": {"steps": planned, "seconds": round(planned / 4, 1)}}, again


# ------------------------------------------------------------------------------------- command


def test_command_makefile_and_results_name_the_same_experiments():
    names = list(command.EXPERIMENTS)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", "")
    assert re.search(r"EXPERIMENTS := (.*)", makefile)[1].split() == names
    assert sorted(path.stem for path in pretrained.RESULTS.glob("*.json")) == sorted(names)
    for name in names:
        assert callable(importlib.import_module(f"experiments.{name}").measure)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Folders of the test's own, and experiments that return what they get."""
    monkeypatch.setattr(pretrained, "RESULTS", tmp_path / "kept")
    monkeypatch.setattr(command, "BUILD", tmp_path / "build")
    monkeypatch.setattr(pretrained, "data_root", lambda: tmp_path)
    monkeypatch.setattr("experiments.priors.measure", lambda root, weights: {"weights": weights})
    monkeypatch.setattr("experiments.sampling.measure", lambda: {"maps": 1})
    monkeypatch.setattr(
        "experiments.tokenizers.measure",
        lambda root, file, weights: iter([{"name": weights, "ssim": 0.5}]),
    )
    return tmp_path


def test_results_on_the_cohort_never_replace_those_on_real_slices(fake, monkeypatch, capsys):
    monkeypatch.delenv("OASIS_DATA_DIR", raising=False)
    command.measure("priors")
    assert json.loads((fake / "build/results/priors.json").read_text()) == {"weights": "cohort"}
    assert "data/results/ is for real slices" in capsys.readouterr().out
    command.measure("sampling")
    monkeypatch.setenv("OASIS_DATA_DIR", str(fake))
    command.measure("priors")
    assert json.loads((fake / "kept/priors.json").read_text()) == {"weights": "oasis1"}
    assert {path.name for path in (fake / "kept").iterdir()} == {"priors.json", "sampling.json"}


def test_one_line_is_printed_for_each_variant(fake, monkeypatch, capsys):
    monkeypatch.setenv("OASIS_DATA_DIR", str(fake))
    command.measure("tokenizers")
    first, second = capsys.readouterr().out.splitlines()
    assert "what it holds is not measured again" in first
    assert second.split() == ["oasis1-10x10", "ssim", "0.5"]


def test_an_unknown_experiment_is_refused_with_the_list(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["experiments", "jacob"])
    with pytest.raises(SystemExit):
        command.main()
    assert "invalid choice: 'jacob' (choose from" in capsys.readouterr().err


def test_two_experiments_do_not_run_at_once(fake, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments", "sampling"])
    with command.file_lock(command.BUILD / "experiments", "measuring 'speed'"):
        with pytest.raises(BlockingIOError, match="Another process is measuring 'sampling'"):
            command.main()


def test_time_to_target_is_a_first_passage():
    reference = [[10.0, 0.4], [20.0, 0.6], [30.0, 0.5], [40.0, 0.6]]
    assert time_to_target.speed_up(reference, [[2.0, 0.5], [4.0, 0.7], [5.0, 0.8]]) == 5.0
    assert time_to_target.speed_up(reference, [[2.0, 0.59]]) is None
