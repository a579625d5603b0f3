"""The README's numbers are those of the notebooks and of whoever runs the toy."""

import json
import re

import pandas as pd
import pytest
from conftest import ROOT, stage

ROW = re.compile(r"\| `([\w-]+)` \| ([\d.]+) ± [\d.]+ \| ([\d.]+) ± [\d.]+ \| ([\d.]+) \|")


def readme_table():
    """{system: (F1 on qac, F1 on qbc, mean)} as the README prints them."""
    found = ROW.findall((ROOT / "README.md").read_text())
    return {name: tuple(map(float, numbers)) for name, *numbers in found}


def test_the_readme_prints_a_toy_table():
    systems = {"direct-qaa", "direct-pooled", "tsl-sim", "mtmt", "mtmt-pooled"}
    assert systems <= readme_table().keys()


def test_notebook_4_shows_the_readmes_numbers():
    cells = json.loads((ROOT / "notebooks/04_results.ipynb").read_text())["cells"]
    shown = json.dumps([cell.get("outputs") for cell in cells], ensure_ascii=False)
    for name, f1s in readme_table().items():
        assert all(str(f1) in shown for f1 in f1s[:2]), name


@pytest.mark.long
def test_the_toy_gives_the_readmes_numbers_within_ten_points(tmp_path):
    for script in ("01_data.py", "02_teachers.py", "03_distill.py", "04_evaluate.py"):
        assert stage(script, tmp_path).returncode == 0
    results = pd.read_csv(tmp_path / "results/results.csv")
    runs = results.drop_duplicates(["target", "method", "seed"])  # the first row is the average
    means = runs.groupby(["method", "target"])["f1"].mean().unstack()
    for name, (qac, qbc, _) in readme_table().items():
        assert abs(means.qac[name] - qac) <= 10 and abs(means.qbc[name] - qbc) <= 10, name
    assert means.loc["mtmt"].mean() > means.loc["direct-qaa"].mean()


# ------------------------------------------------------------------------ twelve African languages

AFRICAN = ROOT / "notebooks/african"
AFRICAN_ROW = re.compile(r"\| `([\w-]+)` \| ([\d.]+) \| ([\d.]+) \| ([^|]*) \| ([^|]*) \|")
SEEN = {"ibo", "kin", "pcm", "sna", "xho"}  # looked at before the run


def test_the_readmes_african_table_is_that_of_the_files_beside_notebook_5():
    found = AFRICAN_ROW.findall((ROOT / "README.md").read_text())
    assert {"direct-en", "direct-pooled", "self-pooled", "mtmt-pooled"} <= {row[0] for row in found}
    means = mean_f1("results.csv").unstack("target")
    for system, twelve, seven, *over in found:
        assert f"{means.loc[system].mean():.1f}" == twelve, system
        new = means.columns.difference(SEEN)
        assert len(new) == 7 and f"{means.loc[system, new].mean():.1f}" == seven, system
        for baseline, cell in zip(("direct-en", "direct-pooled"), over):
            if cell.strip():
                assert cell.strip() == gain(system, baseline), (system, baseline)


def gain(system, baseline):
    """The mean gain over the twelve targets with its interval, as the README prints it."""
    table = pd.read_csv(AFRICAN / "comparisons.csv").set_index(["target", "method", "baseline"])
    row = table.loc["mean-fixed", system, baseline]
    return f"{row.delta_f1:+.1f} [{row.ci_low:+.1f}, {row.ci_high:+.1f}]"


def in_one_line():
    return " ".join((ROOT / "README.md").read_text().split())


def mean_f1(file):
    """Micro F1 over the runs of a file beside notebook 5, by target and method."""
    runs = pd.read_csv(AFRICAN / file)
    runs = runs.drop_duplicates(["target", "method", "seed"])  # the first row is the average
    return runs.groupby(["target", "method"])["f1"].mean()


def test_the_readmes_answer_is_that_of_the_files():
    text = in_one_line()
    table = pd.read_csv(AFRICAN / "comparisons.csv").set_index(["method", "baseline"])
    targets = table.loc[("mtmt-pooled", "direct-en")].query("not target.str.startswith('mean')")
    assert f"`mtmt-pooled` is {gain('mtmt-pooled', 'direct-en')} F1 above direct transfer" in text
    assert f"better on {(targets.delta_f1 > 0).sum()} of {len(targets)}." in text
    assert f"But {gain('direct-pooled', 'direct-en').split()[0][1:]} of that is had" in text
    assert f"adds to it, {gain('mtmt-pooled', 'direct-pooled')}" in text
    assert f"adds {gain('mtmt-pooled', 'self-pooled')} to self-training" in text


def test_the_readme_says_what_choosing_a_source_by_weight_gives():
    text = in_one_line()
    f1 = mean_f1("results.csv").unstack()
    single = f1[[f"direct-{source}" for source in ("en", "swa", "hau", "yor")]]
    chosen = "direct-" + pd.read_csv(AFRICAN / "ranking.csv", index_col="target").top_source
    by_weight = sum(single.loc[target, name] for target, name in chosen.items()) / len(single)
    hits = (single.idxmax(axis=1)[chosen.index] == chosen).sum()
    assert f"best source for {hits} of {len(single)}" in text
    assert f"following it gives {by_weight:.1f}, a random source {single.stack().mean():.1f}" in text
    assert f"always Swahili {single['direct-swa'].mean():.1f}" in text


def test_the_readme_says_what_translated_data_adds():
    text = in_one_line()
    f1 = mean_f1("translated.csv").map("{:.1f}".format)
    own = []
    for target, name in {"sna": "Shona", "xho": "Xhosa", "ibo": "Igbo", "nya": "Chichewa"}.items():
        with_it = f1[target, "direct-pooled+mt"]
        assert f"{f1[target, 'direct-pooled']} to {with_it} on {name}" in text
        own.append(f1[target, f"direct-{target}-mt"])
    assert f"alone the target's own has {', '.join(own)}." in text
    assert f"(pooling {f1['hau', 'direct-pooled']} to {f1['hau', 'direct-pooled+mt']})" in text


def test_the_readme_says_how_often_the_advised_system_won():
    f1 = mean_f1("results.csv").unstack()
    direct, pooled = ((f1["mtmt-pooled"] > f1[x]).sum() for x in ("direct-en", "direct-pooled"))
    found = f"advised `mtmt-pooled`: of the twelve, above direct transfer on {direct}, above pooling"
    assert f"{found} on {pooled};" in in_one_line()


def test_the_readme_says_what_students_from_the_encoder_reach():
    text, f1 = in_one_line(), mean_f1("results.csv").unstack("target").mean(axis=1)
    over = {name: gain(name, "direct-en").split()[0] for name in ("mtmt", "mtmt-scaled")}
    assert f"(one run, lambda 0.1: `mtmt` {over['mtmt']}, `mtmt-scaled` {over['mtmt-scaled']})" in text
    shown = [f"`{name}` {f1[name]:.1f}" for name in ("tsl-sim", "tsl-kl", "mtmt", "mtmt-scaled")]
    runs = pd.read_csv(AFRICAN / "results.csv").query("method == 'ensemble' and seed == 2")
    taught_by = runs.drop_duplicates("target").f1.mean()
    assert f"{', '.join(shown)}; the `ensemble` that taught them {taught_by:.1f}." in text
    assert f"Without its second task `mtmt-scaled` has {f1['mtmt-scaled-nosim']:.1f}." in text
