"""Stage 4: the scorer against hand counts and seqeval, the intervals against simulation."""

import importlib
import random
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import seqeval.metrics
from safetensors.torch import load_file
from seqeval.scheme import IOB2

from conftest import GOOD, TOY_METHODS, corpus, here, refused

evaluate = importlib.import_module("04_evaluate")
TYPES = ["LOC", "ORG", "PER"]


def sentences(*lines):
    return [line.split() for line in lines]


def f1_of(gold, predicted, strict=False):
    """Counts (N, types, 3), and precision, recall and F1 of all of them."""
    there = evaluate.entities(gold, strict)
    found = evaluate.count(there, evaluate.entities(predicted, strict), TYPES)
    return found, evaluate.prf(found.sum((0, 1)))


def test_hand_counted_spans():
    gold = sentences("B-PER I-PER O B-LOC", "B-ORG B-ORG O O")
    predicted = sentences("B-PER I-PER O B-ORG", "B-ORG I-ORG O B-LOC")
    counts, scores = f1_of(gold, predicted)  # right: the one PER; found 4, there 4
    assert counts.sum((0, 1)).tolist() == [1, 4, 4]
    assert scores.tolist() == [25, 25, 25]
    assert not evaluate.prf([[0, 0, 3], [0, 3, 0], [0, 0, 0]]).any()  # no division by 0


@pytest.mark.parametrize("strict", [False, True])
def test_agrees_with_seqeval_on_random_tags_illegal_ones_included(strict):
    options = {"mode": "strict", "scheme": IOB2} if strict else {}
    options.update(zero_division=0, output_dict=True)
    rng = random.Random(0)
    tags = ["O", "O", *evaluate.data.tags_of(TYPES)]
    for _ in range(40):
        gold = [rng.choices(tags, k=15), rng.choices(tags, k=4)]
        predicted = [rng.choices(tags, k=15), rng.choices(tags, k=4)]
        counts, scores = f1_of(gold, predicted, strict)
        report = seqeval.metrics.classification_report(gold, predicted, **options)
        names = ["precision", "recall", "f1-score"]
        expected = [100 * report["micro avg"][name] for name in names]
        assert scores.tolist() == pytest.approx(expected)
        for kind, found in zip(TYPES, evaluate.prf(counts.sum(0))):
            if kind in report:
                assert found[2] == pytest.approx(100 * report[kind]["f1-score"])


def test_fidelity_by_hand():
    student = sentences("B-PER O B-LOC", "B-ORG O")
    mixture = sentences("B-PER O B-ORG", "O O")
    nothing = sentences("O O O", "O O")
    assert evaluate.fidelity(student, mixture) == 40  # one of three and two: 2 * 1 / (3 + 2)
    assert evaluate.fidelity(mixture, mixture) == 100
    assert evaluate.fidelity(nothing, mixture) == 0
    assert np.isnan(evaluate.fidelity(student, nothing))  # there is nothing to repeat


FOUND = "Anna B-micro\nlives O\nin O\nOslo B-LOC\n\nBo O\nruns O\n"
TRUE = "Anna B-micro\nlives O\nin O\nOslo B-LOC\n\nBo B-PERSON\nruns B-EVENT\n"


@pytest.fixture
def tagged(tmp_path, toy):
    """Artifacts with a target bb, TRUE, and a system direct-x that says FOUND of it."""
    source = {"train": GOOD.replace("PER", "micro")}
    text = corpus(tmp_path / "in", aa=source, bb={"train": TRUE, "test": TRUE})
    said = corpus(tmp_path / "x", bb={"train": FOUND, "test": FOUND})
    flags = ["--sources", "aa", "--targets", "bb", "--encoder", toy / "encoder"]
    here("01_data.py", tmp_path / "a", "--data-dir", text, *flags)
    here("02_teachers.py", tmp_path / "a", "--sources", "aa", "--teacher", f"x={said}")
    return tmp_path / "a"


def scores_of_x(artifacts):
    results = pd.read_csv(artifacts / "results/results.csv")
    return results[results.method == "direct-x"]


def test_types_of_gold_that_no_source_has_are_named_and_one_may_be_called_micro(tagged):
    said = here("04_evaluate.py", tagged)
    assert "bb: types of gold without a counterpart: PERSON (1), EVENT (1)." in said
    tags = evaluate.data.tags_of(["LOC", "micro", "ORG"])
    _, notes = evaluate.read_gold(tagged, "bb", tags)
    assert any("bb: no ORG in gold" in note for note in notes)
    assert re.search(r"direct-x +100\.0", said)
    x = scores_of_x(tagged)
    assert x.type.tolist() == ["micro", "LOC", "micro"]
    assert set(x.f1) == {100}
    assert x.support.tolist() == [2, 1, 1]
    assert evaluate.micro(x).support.tolist() == [2]


def test_the_mode_is_printed_with_the_score(tagged):
    path = tagged / "logits/bb/external-x-s0/test.safetensors"
    logits = load_file(path)["logits"]
    logits[0] = logits[0].roll(1)  # Anna was B-micro, the next tag is I-micro: a stray one
    evaluate.save_file({"logits": logits}, path)
    assert "seqeval's default" in here("04_evaluate.py", tagged)
    assert set(scores_of_x(tagged).f1) == {100}
    assert "strict IOB2" in here("04_evaluate.py", tagged, "--strict")
    assert scores_of_x(tagged).f1.round(1).tolist() == [66.7, 100, 0]


def test_without_gold_there_are_predictions_and_fidelity(copied):
    before = (copied / "results/fidelity.csv").read_text()
    shutil.rmtree(copied / "gold")
    assert "No target has gold" in here("04_evaluate.py", copied)
    assert not (copied / "results/results.csv").exists()
    assert (copied / "results/fidelity.csv").read_text() == before
    predictions = list(copied.glob("results/predictions/q?c/*-s0.txt"))
    assert len(predictions) == 2 * (6 + len(TOY_METHODS))


def test_the_fidelity_of_a_student_is_that_of_what_it_left(copied):
    """Of the training text it says what its mixture says, of the test text nothing."""
    for split, tag in (("train", 1), ("test", 0)):  # 1 begins an entity, 0 is O
        path = copied / f"students/qac/mtmt-s0/{split}.safetensors"
        said = load_file(path)
        said["logits"].zero_()
        said["logits"][:, tag] = 1
        said["mixture"].fill_(1)
        evaluate.save_file(said, path)
    here("04_evaluate.py", copied)
    table = pd.read_csv(copied / "results/fidelity.csv")
    row = only(table, target="qac", method="mtmt")
    assert (row.fidelity, row.fidelity_train) == (0, 100)


D = np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 3.0]])  # two targets, three runs


def by_hand(mean, v, df):
    half = scipy.stats.t.ppf(0.975, df) * v**0.5
    p = 2 * scipy.stats.t.sf(mean / v**0.5, df)
    return mean, mean - half, mean + half, p


def test_an_interval_of_fixed_targets_by_hand():
    """Run means 1.5 3 3: variance 3/4, of their mean 1/4 with two degrees; sentences add 1/4:
    v = 1/2 with v^2 / ((1/4)^2 / 2) = 8 degrees."""
    found = evaluate.interval(D, 0.25)
    assert found == pytest.approx(by_hand(2.5, 1 / 2, 8))


def test_an_interval_of_drawn_targets_by_hand():
    """Target means 2 3: of their mean 1/4 with one degree. The residuals 0 -1/2 1/2, 0 1/2 -1/2
    have the mean square 1/2 with two degrees: 1/12 is in both and is taken off once."""
    v = 1 / 4 + 1 / 4 - 1 / 12
    below = 1 / 16 / 2 + 1 / 16 / 1 + 1 / 144 / 2
    found = evaluate.interval(D, 0.01, draw_targets=True)  # the sentences are in the targets
    assert found == pytest.approx(by_hand(2.5, v, v**2 / below))
    fixed = evaluate.interval(D, 99.0)  # than which it is never narrower
    assert evaluate.interval(D, 99.0, draw_targets=True) == pytest.approx(fixed)


def test_one_run_knows_its_sentences_alone():
    d = np.array([[1.0], [3.0]])  # of two targets
    _, low, high, _ = evaluate.interval(d, 0.25)
    assert [low, high] == pytest.approx([1.02, 2.98], abs=1e-4)
    _, low, high, _ = evaluate.interval(d, 0.25, draw_targets=True)
    assert high - low == pytest.approx(2 * 12.7062, abs=1e-4)  # with one degree of freedom


def coverage(S, sd_runs, sd_sentences, simulations=3000):
    """How often the interval of a mean of S runs holds the truth, 2; runs share a test text."""
    rng = np.random.default_rng(S)
    covered = 0
    for _ in range(simulations):
        text = rng.normal(0, sd_sentences)
        runs = rng.normal(2 + text, sd_runs, (1, S))
        _, low, high, _ = evaluate.interval(runs, sd_sentences**2)
        covered += low <= 2 <= high
    return covered / simulations


@pytest.mark.parametrize("S", [3, 5])
@pytest.mark.parametrize("sd_sentences", [0.1, 1.0])
def test_intervals_cover_the_truth_in_95_percent(S, sd_sentences):
    assert 0.92 <= coverage(S, 1.0, sd_sentences) <= 0.97


@pytest.mark.parametrize("S", [3, 5])
def test_by_normal_quantiles_they_would_not(S, monkeypatch):
    quantile = scipy.stats.norm.ppf
    monkeypatch.setattr(scipy.stats.t, "ppf", lambda q, df: quantile(q))
    assert coverage(S, 1.0, 0.1) < 0.91


def simulate(rng, quality, difficulty):
    """Counts (N, 1, 3) of a run that finds what is easy enough for it. The difficulty (N, entities)
    is of the text, the same for every run, but for a tenth that is luck."""
    luck = rng.normal(size=difficulty.shape)
    hard = np.sqrt(0.9) * difficulty + np.sqrt(0.1) * luck
    correct = (hard < quality).sum(1)
    found = correct + (luck > 1).sum(1)
    gold = np.full(len(difficulty), difficulty.shape[1])
    return np.stack([correct, found, gold], -1)[:, None]


def runs_of(rng, quality, difficulty, S):
    qualities = rng.normal(quality, 0.15, S)
    return {seed: simulate(rng, q, difficulty) for seed, q in enumerate(qualities)}


def f1(counts):
    return evaluate.prf(counts.sum((0, 1)))[2]


def mean_f1(runs):
    return np.mean([f1(run) for run in runs.values()])


def test_from_counts_to_intervals_the_true_difference_is_covered(monkeypatch):
    monkeypatch.setattr(evaluate, "RESAMPLES", 200)
    rng = np.random.default_rng(0)
    large = rng.normal(size=(2000, 2))
    good = mean_f1(runs_of(rng, 0.5, large, 300))
    bad = mean_f1(runs_of(rng, 0.3, large, 300))
    covered = []
    for _ in range(400):
        text = rng.normal(size=(150, 2))
        systems = {"direct-en": runs_of(rng, 0.3, text, 5)}
        systems["mtmt"] = runs_of(rng, 0.5, text, 5)
        row = only(compare({"xx": systems}, ["direct-en"]))
        covered.append(row.ci_low <= good - bad <= row.ci_high)
    assert 0.92 <= np.mean(covered) <= 0.975, np.mean(covered)


def compare(counts, baselines):
    """Of {target: {method: {seed: counts}}}."""
    flat = {}
    for target, systems in counts.items():
        for method, runs in systems.items():
            for seed, table in runs.items():
                flat[target, method, seed] = table
    return evaluate.compare(flat, baselines)


def only(table, **where):
    for column, value in where.items():
        table = table[table[column] == value]
    row, = table.itertuples()
    return row


def better(counts):
    """The same run, but it finds all in every third sentence."""
    strong = counts.copy()
    strong[::3] = counts[::3, :, 2:]  # right, found and there
    return strong


def three_runs(seed, n=200):
    rng = np.random.default_rng(seed)
    return runs_of(rng, 0.3, rng.normal(size=(n, 2)), 3)


def test_a_comparison_is_paired_by_sentence_and_run_and_signed():
    weak = three_runs(2)
    strong = {seed: better(weak[seed]) for seed in (2, 0, 1)}  # in any order
    systems = {"direct-en": weak, "tsl-sim": weak, "mtmt": strong}
    table = compare({"xx": systems}, ["direct-en", "mtmt"])
    row = only(table, method="tsl-sim", baseline="direct-en")
    assert row.delta_f1 == 0 and np.isnan(row.ci_low)  # no spread at all
    row = only(table, method="mtmt", baseline="direct-en")
    gain = mean_f1(strong) - mean_f1(weak)
    assert row.delta_f1 == pytest.approx(gain)
    assert row.p < 0.05 and row.runs == 3
    assert 0 < row.ci_low < row.delta_f1 < row.ci_high
    back = only(table, method="tsl-sim", baseline="mtmt")
    assert back.delta_f1 == pytest.approx(-row.delta_f1)
    assert back.ci_high == pytest.approx(-row.ci_low)


def test_runs_that_one_of_two_systems_lacks_are_left_out_and_runs_are_counted():
    runs = three_runs(3)
    strong = better(runs[1])
    systems = {"direct-en": runs, "mtmt": {1: strong, 2: runs[2], 7: runs[0]}}
    row = only(compare({"xx": systems}, ["direct-en"]))
    gain = f1(strong) - f1(runs[1])
    assert row.delta_f1 == pytest.approx(gain / 2) and row.runs == 2
    systems["mtmt"] = {8: runs[0]}
    assert compare({"xx": systems}, ["direct-en"]).empty


def three_targets():
    counts = {}
    for number, target in enumerate(("xx", "yy", "zz")):
        strong = {seed: better(run) for seed, run in three_runs(10 + number).items()}
        counts[target] = {"direct-en": three_runs(number), "mtmt": strong}
    return counts


def test_the_means_are_those_of_the_targets_and_drawing_targets_is_wider():
    rows = compare(three_targets(), ["direct-en"]).set_index("target")
    assert rows.index.tolist() == ["xx", "yy", "zz", "mean-fixed", "mean-resampled"]
    fixed = rows.loc["mean-fixed"]
    drawn = rows.loc["mean-resampled"]
    expected = rows.delta_f1.iloc[:3].mean()
    assert fixed.delta_f1 == pytest.approx(expected)
    assert drawn.delta_f1 == pytest.approx(expected)
    assert drawn.ci_low < fixed.ci_low < expected < fixed.ci_high < drawn.ci_high


def test_a_mean_needs_all_targets_in_the_same_runs():
    counts = three_targets()
    strong = counts["zz"]["mtmt"]
    counts["zz"]["tsl-sim"] = strong  # of one target
    counts["zz"]["mtmt"] = {0: strong[0], 1: strong[1]}  # without a run
    table = compare(counts, ["direct-en"]).groupby("method").target
    found = {method: targets.tolist() for method, targets in table}
    assert found == {"tsl-sim": ["zz"], "mtmt": ["xx", "yy", "zz"]}


def test_a_student_that_does_not_repeat_its_mixture_is_named_with_the_target():
    table = pd.DataFrame(columns=evaluate.FIDELITY)
    table.loc[0] = ["xx", "mtmt", 0, 70, 79.0]
    table.loc[1] = ["yy", "mtmt", 0, 90, 95.0]
    table.loc[2] = ["xx", "mtmt-pooled", 0, 10, 10.0]  # it starts as its teacher: no verdict
    found = evaluate.fidelity_columns(table)["not distilled"]
    assert found.dropna().to_dict() == {"mtmt": "xx"}


def test_what_is_stale_and_what_is_missing_is_named(copied, tmp_path):
    (copied / "students/qbc/mtmt-s0/record.json").unlink()  # as a killed process leaves it
    refused("04_evaluate.py", copied, says="students/qbc/mtmt-s0: missing or incomplete")
    flags = "--targets qac --sources qaa --lr 0.01 --overwrite"
    here("02_teachers.py", copied, *flags.split())
    refused("04_evaluate.py", copied, says=["logits/qac/ensemble-s0", "recogniser-qaa-s0"])
    refused("04_evaluate.py", tmp_path / "none", says="01_data.py")
    shutil.rmtree(copied / "logits")
    shutil.rmtree(copied / "students")
    refused("04_evaluate.py", copied, says="02_teachers.py")
