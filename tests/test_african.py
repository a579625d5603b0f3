"""The African run's committed numbers follow from its counts, and the plan named its contrasts."""

import importlib
import re

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from safetensors.numpy import load_file

evaluate = importlib.import_module("04_evaluate")

AFRICAN = ROOT / "notebooks/african"
if not (AFRICAN / "results.csv").exists():
    pytest.skip("notebooks/african has no results", allow_module_level=True)


@pytest.fixture(scope="module")
def results():
    return pd.read_csv(AFRICAN / "results.csv")


@pytest.fixture(scope="module")
def counts(results):
    """{target: {method: {seed: (N, 1, 3)}}}, targets as in the results: resampling follows them."""
    found = {target: {} for target in dict.fromkeys(results.target)}
    for key, table in load_file(AFRICAN / "counts.safetensors").items():
        assert table.dtype == np.uint8 and table.ndim == 2 and table.shape[1] == 3, key
        target, method, seed = key.split("/")
        found[target].setdefault(method, {})[int(seed)] = table[:, None].astype(int)
    return found


def test_every_f1_of_the_results_follows_from_the_counts(results, counts):
    shown = evaluate.micro(results).set_index(["target", "method", "seed"])
    keys = {(t, m, s) for t, methods in counts.items() for m in methods for s in methods[m]}
    assert set(shown.index) == keys
    for target, method, seed in keys:
        sums, row = counts[target][method][seed].sum((0, 1)), shown.loc[(target, method, seed)]
        in_file = row[["precision", "recall", "f1"]].tolist()
        assert np.allclose(evaluate.prf(sums), in_file, atol=1e-4), (target, method, seed)
        assert row.support == sums[2]


def test_the_types_of_a_run_add_up_to_its_micro_average(results):
    total = results.type == "micro"
    found = results.assign(correct=results.recall * results.support / 100)
    by_run = ["target", "method", "seed"]
    types = found[~total].groupby(by_run)[["support", "correct"]].sum()
    micro = found[total].set_index(by_run)[["support", "correct"]]
    assert np.allclose(types.loc[micro.index], micro, atol=0.01)


def test_the_systems_of_a_target_were_scored_on_the_same_sentences(counts):
    for target, methods in counts.items():
        tables = [table[:, 0] for runs in methods.values() for table in runs.values()]
        assert len({table[:, 2].tobytes() for table in tables}) == 1, target
        assert all((table[:, 0] <= table[:, 1:].min(1)).all() for table in tables), target


def test_comparisons_follow_from_the_counts(counts):
    ranking = pd.read_csv(AFRICAN / "ranking.csv", index_col="target")
    same = {"direct": "direct-en"} | {name: name for name in evaluate.BASELINES}
    chosen = ranking.iloc[:, 0]  # the source of the largest similarity weight
    baselines = {t: same | {"best-by-weight": f"direct-{chosen[t]}"} for t in counts}
    shown = pd.read_csv(AFRICAN / "comparisons.csv").set_index(evaluate.COMPARISONS[:3])
    again = evaluate.compare(counts, baselines).set_index(evaluate.COMPARISONS[:3])
    assert set(again.index) == set(shown.index) and len(again) == len(shown)
    numbers = evaluate.COMPARISONS[3:]
    assert np.allclose(again.loc[shown.index, numbers], shown[numbers], atol=1e-4, equal_nan=True)


def test_the_plan_names_every_primary_contrast():
    plan = " ".join((AFRICAN / "PLAN.md").read_text(encoding="utf-8").split())
    listed = plan.split("**Primary contrasts**")[1].split(". A difference")[0].split("): ")[1]
    found = set()
    for part in listed.split(";"):  # "mtmt-pooled less direct-en, less direct-pooled"
        method = part.split()[0]
        found |= {(method, baseline) for baseline in re.findall(r"less ([\w-]+)", part)}
    named = {(m, "direct-en" if role == "direct" else role) for m, role in evaluate.PRIMARY}
    assert found == named
    assert f"within {evaluate.MARGIN} F1" in plan


def test_the_files_are_small():
    assert all(path.stat().st_size < 1_000_000 for path in AFRICAN.iterdir())
