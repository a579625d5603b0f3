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


def gain(rows, method, baseline, target="mean-fixed", sign=""):
    """As the README writes it: a difference and its interval."""
    rows = rows[(rows.method == method) & (rows.baseline == baseline)]
    row = rows.set_index("target").loc[target]
    return f"{row.delta_f1:{sign}.1f} F1 [{row.ci_low:.1f}, {row.ci_high:.1f}]"


def test_the_answer_is_that_of_the_committed_files():
    fed = {**counts_of("african-pooled"), **counts_of("african-long")}
    rows = evaluate.compare(fed, ["direct-en", "direct-swa", "ensemble", "direct-pooled"])
    for baseline, said in [
        ("direct-en", "gains {} over direct transfer from English"),
        ("direct-swa", "and {} over that from Swahili"),
        ("ensemble", "the student gains {},"),
        ("direct-pooled", "4,000 labels (`direct-pooled`) {}."),
    ]:
        assert said.format(gain(rows, "tsl-sim", baseline)) in WORDS
    assert f"it gains {gain(rows, 'self-pooled', 'direct-pooled')}" in WORDS
    above = rows[(rows.method == "tsl-sim") & (rows.delta_f1 > 0) & (rows.target.str.len() == 3)]
    above = above.groupby("baseline").target.count()
    assert f"on {above['ensemble']} and on {above['direct-pooled']} of the seven" in WORDS
    scores = evaluate.micro(evaluate.score_rows(fed, ["LOC", "ORG", "PER"]))
    means = scores.groupby("method").f1.mean()
    systems = ["direct-en", "direct-swa", "direct-pooled", "self-pooled", "ensemble", "tsl-sim"]
    assert f"one run | {' | '.join(f'{means[x]:.1f}' for x in systems)} |" in WORDS


def test_the_control_and_the_older_run_are_those_of_the_committed_files():
    control = evaluate.compare(counts_of("conll-text"), ["direct-en"])
    names = {"es": "Spanish", "de": "German", "nl": "Dutch"}
    for method, target in [*[("tsl-sim", x) for x in names], ("mtmt-en", "de"), ("mtmt-en", "nl")]:
        assert f"{gain(control, method, 'direct-en', target, '+')} on {names[target]}" in WORDS
    small = evaluate.compare(counts_of("conll-long"), ["direct-en"])
    for method in ("tsl-sim", "mtmt-scaled"):
        assert f"Dutch is at {gain(small, method, 'direct-en', 'nl', '+')}" in WORDS
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
