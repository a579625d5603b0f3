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


SEVEN = {**counts_of("african-long"), **counts_of("african-mtmt"), **counts_of("african-pooled")}
BASELINES = ["direct-en", "direct-swa", "direct-pooled", "ensemble", "tsl-sim"]


def test_the_answer_is_that_of_the_committed_files():
    rows = evaluate.compare(SEVEN, BASELINES)
    for method, baseline, said in [
        ("tsl-sim", "direct-en", "Student's t gives {}"),
        ("tsl-sim", "direct-swa", "and gains {} over direct transfer from Swahili"),
        ("tsl-sim", "ensemble", "the mixture of its own teachers it gains {}"),
        ("tsl-sim", "direct-pooled", "It gains {} over `direct-pooled`"),
    ]:
        assert said.format(gain(rows, method, baseline)) in WORDS
    drawn = gain(rows, "tsl-sim", "direct-swa", "mean-resampled")
    assert f"like these the gain over Swahili is {drawn}" in WORDS
    second = gain(rows, "mtmt-scaled", "tsl-sim", sign="+")
    assert f"is at {second} to `tsl-sim` in one run" in WORDS
    runs = rows[rows.target == "mean-fixed"].set_index(["method", "baseline"]).runs
    assert runs["tsl-sim", "direct-en"] == 2 and runs["mtmt-scaled", "tsl-sim"] == 1
    scores = evaluate.micro(evaluate.score_rows(SEVEN, ["LOC", "ORG", "PER"]))
    f1 = scores.pivot_table(index=["seed", "target"], columns="method", values="f1")
    lead = f1["tsl-sim"] - f1["direct-en"]
    assert len(lead) == 14 and lead.min() > 0
    assert "by {:.1f} and {:.1f} F1 in the mean".format(*lead.groupby("seed").mean()) in WORDS
    above = f1.groupby("target").mean()
    assert sum(above["tsl-sim"] > above["ensemble"]) == 5
    assert sum(above["tsl-sim"] > above["direct-pooled"]) == 6
    assert "above `ensemble` on five and above `direct-pooled` on six" in WORDS
    means = scores.groupby("method").f1.mean()
    assert f"two runs | {' | '.join(f'{means[x]:.1f}' for x in BASELINES)} |" in WORDS


def test_what_rests_on_one_run_is_that_of_the_committed_files():
    first = {run: x for run, x in SEVEN.items() if run[2] == "0"}
    for source in ("en", "swa"):
        for (target, method, seed), x in counts_of(f"labels-{source}").items():
            first[target, f"{method}-4000", seed] = x
    rows = evaluate.compare(first, ["direct-pooled", "direct-en-4000", "direct-swa-4000"])
    assert f"gains {gain(rows, 'self-pooled', 'direct-pooled')} by that" in WORDS
    f1 = evaluate.micro(evaluate.score_rows(first, ["LOC", "ORG", "PER"]))
    f1 = f1.groupby("method").f1.mean()
    for source in ("en", "swa"):
        assert gain(rows, "tsl-sim", f"direct-{source}-4000") in WORDS
        name = f"direct-{source}"
        assert f"has {f1[f'{name}-4000']:.1f}" in WORDS and f"({f1[name]:.1f} with 1,000" in WORDS
    shona = evaluate.compare(counts_of("african"), ["direct-en"])
    shona = shona[(shona.target == "sna") & (shona.method == "tsl-sim")]
    assert f"is {-shona.delta_f1.item():.1f} F1 below direct transfer" in WORDS
    nosim = evaluate.micro(evaluate.score_rows(counts_of("nosim"), ["LOC", "ORG", "PER"]))
    nosim = nosim.set_index("method").f1
    repeated = pd.read_csv(ROOT / "notebooks/measured/nosim-s0-twi.csv").set_index("method")
    for method in ("mtmt-scaled", "mtmt-scaled-nosim"):
        fidelity = f"{repeated.fidelity_train[method]:.0f}"
        assert f"it is {fidelity} (F1 {nosim[method]:.1f})" in WORDS
    control = evaluate.compare(counts_of("conll-text"), ["direct-en"])
    names = {"es": "Spanish", "de": "German", "nl": "Dutch"}
    for method, target in [*[("tsl-sim", x) for x in names], ("mtmt-en", "de"), ("mtmt-en", "nl")]:
        assert f"{gain(control, method, 'direct-en', target, '+')} on {names[target]}" in WORDS
    small = evaluate.compare(counts_of("conll-long"), ["direct-en"])
    assert f"Dutch is at {gain(small, 'tsl-sim', 'direct-en', 'nl', '+')}" in WORDS


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
