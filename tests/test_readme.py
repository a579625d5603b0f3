"""Numbers that the README states are those of the files, and of a run of its commands."""

import importlib
import re

import pandas as pd
import pytest
from safetensors.torch import load_file

from conftest import ROOT

evaluate = importlib.import_module("04_evaluate")

README = (ROOT / "README.md").read_text(encoding="utf-8")
WORDS = " ".join(README.split())


def gain(method, baseline, part=None):
    """Rows of comparisons by target: of the older run, or anew from the counts of a part."""
    table = pd.read_csv(ROOT / "notebooks/african/comparisons.csv")
    if part:
        counts = {}
        for path in (ROOT / "notebooks/measured").glob(f"{part}-s*.safetensors"):
            for name, x in load_file(path).items():
                counts[tuple(name.split("/"))] = x.numpy()
        table = evaluate.compare(counts, [baseline])
    rows = table[(table.method == method) & (table.baseline == baseline)]
    return rows.set_index("target")


def test_the_answer_is_that_of_the_committed_files():
    fed = gain("tsl-sim", "direct-en", "african").loc["mean-fixed"]
    two = gain("mtmt-scaled", "direct-en", "african").loc["mean-fixed"]
    pooled = gain("direct-pooled", "direct-en").loc["mean-fixed"]
    adds = gain("self-pooled", "direct-pooled").loc["mean-fixed"]
    for row, said in ((fed, "scores"), (two, "scores"), (pooled, "scored"), (adds, "adds")):
        assert f"{said} {row.delta_f1:.1f} F1 [{row.ci_low:.1f}, {row.ci_high:.1f}]" in WORDS
    for system, said in (("ensemble", "four teachers has"), ("direct-pooled", "together")):
        row = gain(system, "direct-en", "african").loc["mean-fixed"]
        assert f"{said} {row.delta_f1:.1f} more" in WORDS
    for system in ("tsl-sim", "mtmt-scaled"):
        lost = gain(system, "direct-en", "african").delta_f1["sna"]
        assert f"(Shona) both lose {-lost:.1f}" in WORDS
    lost = gain("tsl-sim", "direct-en", "conll").delta_f1
    assert f"TSL's by {-lost['mean-fixed']:.1f} F1" in WORDS


def toy_table(text):
    """{system: mean F1} of a table that stage 4 prints."""
    found = {}
    for line in text.split("\n"):
        cells = re.fullmatch(r"(\S+) +[\d.]+ ± [\d.]+ +[\d.]+ ± [\d.]+ +([\d.]+).*", line)
        if cells:
            found[cells[1]] = float(cells[2])
    return found


@pytest.mark.long
def test_the_toy_gives_the_readmes_table(trained):
    """Another processor rounds otherwise: some points differ."""
    expected = toy_table(README)
    found = toy_table((trained / "results/results.md").read_text(encoding="utf-8"))
    assert len(expected) == 10 and set(found) == set(expected)
    for system, f1 in expected.items():
        assert found[system] == pytest.approx(f1, abs=10), system
    fidelity = pd.read_csv(trained / "results/fidelity.csv")
    fresh = fidelity[fidelity.method.isin(["tsl-sim", "mtmt"])]
    assert fresh.groupby("method").fidelity_train.mean().min() > 90
