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


def f1_of(counts):
    """A row for each system, a column for each target: the mean of its runs."""
    scores = evaluate.micro(evaluate.score_rows(counts, ["LOC", "ORG", "PER"]))
    return scores.pivot_table(index="method", columns="target", values="f1")


def differences(counts):
    rows = evaluate.compare(counts, sorted({method for _, method, _ in counts}))
    return rows.set_index(["method", "baseline", "target"])


@pytest.fixture(scope="module")
def seven():
    """Counts of seven languages, with taggers of 4,000 labels and each one's best source."""
    counts = {**counts_of("african-mtmt"), **counts_of("african-pooled")}
    counts.update(counts_of("african-long"))
    transfer = f1_of(counts).loc[[f"direct-{source}" for source in ("en", "swa", "hau", "yor")]]
    for (target, method, seed), x in list(counts.items()):
        if method == transfer[target].idxmax():
            counts[target, "best source", seed] = x
    for source in ("en", "swa"):
        for (target, method, seed), x in counts_of(f"labels-{source}").items():
            counts[target, f"{method} of 4,000", seed] = x
    return counts


def test_the_readmes_table_is_that_of_the_committed_files(seven):
    means = f1_of(seven).mean(axis=1)
    rows = differences(seven)
    lines = re.findall(r"\| (?:`direct|`ensemble|the same).*\]", README)
    systems = ["direct-en", "direct-swa", "direct-swa of 4,000", "direct-pooled", "ensemble"]
    for line, system in zip(lines, systems, strict=True):
        row = rows.loc["tsl-sim", system, "mean-fixed"]
        assert row.runs == 3 and f" | {means[system]:.1f} |" in line
        assert f"| {row.delta_f1:+.1f} [{row.ci_low:+.1f}, {row.ci_high:+.1f}]" in line
    p = [rows.p["tsl-sim", base, "mean-fixed"] for base in ("ensemble", "direct-en")]
    p = sorted([*p, rows.p["self-pooled", "direct-pooled", "mean-fixed"]])
    assert max(3 * p[0], 2 * p[1], p[2]) < 0.05  # Holm's rule


INTERVAL = r"([+-]?\d+\.\d)(?: F1)? \[([+-]?\d+\.\d), ([+-]?\d+\.\d)\]"


def test_every_interval_of_the_readme_is_one_of_the_committed_files(seven):
    parts = [seven, *map(counts_of, ["african", "conll", "conll-long", "conll-text"])]
    rows = pd.concat([differences(part) for part in parts])
    known = {tuple(row) for row in rows[["delta_f1", "ci_low", "ci_high"]].round(1).to_numpy()}
    stated = [tuple(map(float, found)) for found in re.findall(INTERVAL, README.replace("\n", " "))]
    assert len(stated) > 15 and set(stated) <= known


def test_other_numbers_of_the_readme_are_those_of_the_committed_files(seven):
    leads = []
    for seed in "012":
        f1 = f1_of({run: x for run, x in seven.items() if run[2] == seed})
        leads.append(f1.loc["tsl-sim"] - f1.loc["direct-en"])
    assert min(lead.min() for lead in leads) > 0
    assert "by {:.1f}, {:.1f} and {:.1f} F1".format(*[lead.mean() for lead in leads]) in WORDS
    f1 = f1_of(seven)
    lead = f1.loc["tsl-sim"] - f1
    assert lead.columns[lead.loc["ensemble"] < 0.1].tolist() == ["fon"]
    assert lead.columns[lead.loc["direct-pooled"] < 0.1].tolist() == ["lug", "twi"]
    means = f1.mean(axis=1)
    for source in ("en", "swa"):
        few, many = means[f"direct-{source}"], means[f"direct-{source} of 4,000"]
        assert f"has {many:.1f}" in WORDS and f"({few:.1f} with 1,000)" in WORDS


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
    fidelity = pd.read_csv(trained / "results/fidelity.csv").groupby("method").fidelity_train.mean()
    assert min(fidelity["tsl-sim"], fidelity["mtmt"]) > 90
