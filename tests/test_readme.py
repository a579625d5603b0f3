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


def counts_of(part):
    counts = {}
    for path in (ROOT / "notebooks/measured").glob(f"{part}-s*.safetensors"):
        for name, x in load_file(path).items():
            counts[tuple(name.split("/"))] = x.numpy()
    return counts


def gain(rows, method, baseline, target="mean-fixed"):
    """As the README writes it: a difference and its interval."""
    rows = rows[(rows.method == method) & (rows.baseline == baseline)]
    row = rows.set_index("target").loc[target]
    return f"{row.delta_f1:.1f} F1 [{row.ci_low:.1f}, {row.ci_high:.1f}]"


def test_the_answer_is_that_of_the_committed_files():
    fed = counts_of("african-long")
    rows = evaluate.compare(fed, ["direct-en", "ensemble", "direct-pooled"])
    assert f"student gains {gain(rows, 'tsl-sim', 'direct-en')} over" in WORDS
    assert f"gains {gain(rows, 'tsl-sim', 'ensemble')} over the mixture" in WORDS
    assert f"and {gain(rows, 'tsl-sim', 'direct-pooled')} over one tagger" in WORDS
    above = rows[(rows.method == "tsl-sim") & (rows.delta_f1 > 0)]
    above = above[~above.target.str.startswith("mean")].groupby("baseline").target.count()
    said = f"on {above['ensemble']} and {above['direct-pooled']} of the seven languages"
    assert said in WORDS and above["direct-en"] == 7
    control = evaluate.compare(counts_of("conll-text"), ["direct-en"])
    assert f"three sources gains {gain(control, 'tsl-sim', 'direct-en')} over" in WORDS
    assert f"on Spanish, {gain(control, 'tsl-sim', 'direct-en', 'es')}." in WORDS
    starved = evaluate.compare(counts_of("conll"), ["direct-en"])
    lost = gain(starved, "tsl-sim", "direct-en").split()[0].removeprefix("-")
    assert f"was {lost} F1 *below* direct transfer" in WORDS
    older = pd.read_csv(ROOT / "notebooks/african/comparisons.csv")
    assert f"scored {gain(older, 'direct-pooled', 'direct-en')} more" in WORDS
    assert f"adds {gain(older, 'self-pooled', 'direct-pooled')}" in WORDS


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
