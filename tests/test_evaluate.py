"""The scorer against seqeval and against hand counts; the intervals against simulation."""

import importlib
import random

import numpy as np
import pytest
import seqeval.metrics
from seqeval.scheme import IOB2

from conftest import here

data = importlib.import_module("01_data")
evaluate = importlib.import_module("04_evaluate")
TYPES = ["LOC", "ORG", "PER"]


def f1_of(gold, predicted, strict=False):
    found = evaluate.count(evaluate.entities(gold, strict), evaluate.entities(predicted, strict), TYPES)
    return found, evaluate.prf(found.sum((0, 1)))


def test_hand_counted_spans():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "B-ORG", "O", "O"]]
    predicted = [["B-PER", "I-PER", "O", "B-ORG"], ["B-ORG", "I-ORG", "O", "B-LOC"]]
    counts, scores = f1_of(gold, predicted)                                      # right: the one PER; found 4, there 4
    assert counts.sum((0, 1)).tolist() == [1, 4, 4] and scores.tolist() == [25, 25, 25]
    assert counts[0].tolist() == [[0, 0, 1], [0, 1, 0], [1, 1, 1]]


def test_a_stray_i_counts_in_the_conlleval_reading_and_not_in_strict_iob2():
    gold, predicted = [["B-PER", "O", "B-LOC"]], [["I-PER", "O", "B-LOC"]]
    assert f1_of(gold, predicted)[1][2] == 100
    assert f1_of(gold, predicted, strict=True)[1].tolist() == pytest.approx([100, 50, 200 / 3])


def test_nothing_found_or_nothing_there_is_zero():
    assert f1_of([["O", "O"]], [["O", "O"]])[1].tolist() == [0, 0, 0]
    assert f1_of([["B-PER"]], [["O"]])[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("strict", [False, True])
def test_agrees_with_seqeval_on_random_tags_illegal_ones_included(strict):
    tags = ["O", "O"] + [f"{p}-{t}" for p in "BI" for t in TYPES]
    options = {"mode": "strict", "scheme": IOB2} if strict else {}
    for seed in range(40):
        rng = random.Random(seed)
        draw = lambda: [[rng.choice(tags) for _ in range(n)] for n in (1, 4, 9, 15)]
        gold, predicted = draw(), draw()
        counts, scores = f1_of(gold, predicted, strict)
        expected = [getattr(seqeval.metrics, f"{m}_score")(gold, predicted, zero_division=0, **options) for m in ("precision", "recall", "f1")]
        assert scores.tolist() == pytest.approx([100 * x for x in expected])
        report = seqeval.metrics.classification_report(gold, predicted, output_dict=True, zero_division=0, **options)
        for kind, sums in zip(TYPES, counts.sum(0)):
            if kind in report:
                assert evaluate.prf(sums)[2] == pytest.approx(100 * report[kind]["f1-score"])


def simulate(rng, n, quality):
    """Counts of one system on n sentences, (n, 1, 3): gold entities, some found, some invented."""
    gold = rng.poisson(1.5, n)
    correct = rng.binomial(gold, quality)
    return np.stack([correct, correct + rng.binomial(gold - correct + 1, 0.3), gold], -1)[:, None, :]


def simulated_intervals(qualities, simulations, n=200):
    rng = np.random.default_rng(0)
    truth = [evaluate.prf(simulate(rng, 400_000, q).sum((0, 1)))[2] for q in qualities]
    pool = [evaluate.bootstrap_draws(n, 400, seed=number) for number in range(50)]
    for number in range(simulations):
        draws = pool[number % len(pool)]                                         # the systems are new each time
        a, b = (evaluate.resampled_f1(simulate(rng, n, q)[None], draws) for q in qualities)
        yield truth[0] - truth[1], *evaluate.interval(a - b)


def test_95_percent_intervals_cover_the_true_difference_in_93_to_97_percent_of_simulations():
    covered = [low <= truth <= high for truth, low, high, _ in simulated_intervals((0.70, 0.60), 1500)]
    assert 0.93 <= np.mean(covered) <= 0.97, np.mean(covered)


def test_p_under_5_percent_comes_in_about_5_percent_of_simulations_without_a_difference():
    small = [p < 0.05 for *_, p in simulated_intervals((0.65, 0.65), 1500)]
    assert 0.03 <= np.mean(small) <= 0.07, np.mean(small)


def test_resampling_counts_equals_rescoring_the_drawn_sentences():
    rng = np.random.default_rng(1)
    counts = np.stack([simulate(rng, 30, 0.6), simulate(rng, 30, 0.5)])          # two seeds
    draws = evaluate.bootstrap_draws(30, 5)
    for draw, found in zip(draws.astype(int), evaluate.resampled_f1(counts, draws)):
        rows = np.repeat(np.arange(30), draw)
        assert found == pytest.approx(np.mean([evaluate.prf(c[rows].sum((0, 1)))[2] for c in counts]))


def test_a_comparison_is_paired_and_signed_and_averages_over_seeds():
    rng = np.random.default_rng(2)
    weak = simulate(rng, 300, 0.5)
    strong = weak.copy()
    strong[::3, :, 0] = np.minimum(weak[::3, :, 1], weak[::3, :, 2])             # finds more in every third sentence
    counts = {"direct-en": {0: weak}, "direct-de": {0: weak.copy()}, "mtmt": {0: strong, 1: weak}}
    rows, resampled = evaluate.compare("xx", counts, ["direct-en"])
    same, better = sorted(rows, key=lambda row: row["method"])
    assert (same["delta_f1"], same["ci_low"], same["ci_high"], same["p"]) == (0, 0, 0, 1)  # paired: no spread at all
    gain = evaluate.prf(strong.sum((0, 1)))[2] - evaluate.prf(weak.sum((0, 1)))[2]
    assert better["delta_f1"] == pytest.approx(gain / 2) and better["p"] < 0.01
    assert 0 < better["ci_low"] < better["delta_f1"] < better["ci_high"]
    assert resampled["xx", "mtmt", "direct-en"].mean() == pytest.approx(gain / 2, rel=0.2)


def test_students_are_compared_with_the_baselines_of_their_own_teachers():
    rng = np.random.default_rng(3)
    low, high = simulate(rng, 300, 0.3), simulate(rng, 300, 0.8)
    counts = {"direct-en": {0: high, 1: low}, "ensemble": {0: high}, "ensemble-t1": {0: low}, "mtmt": {0: high}, "mtmt-t1": {0: low}}
    rows, _ = evaluate.compare("xx", counts, ["direct-en", "ensemble", "mtmt"])
    assert {(r["method"], r["baseline"]): r["delta_f1"] for r in rows if r["method"].startswith("mtmt")} == {
        (m, b): 0 for m in ("mtmt", "mtmt-t1") for b in ("direct-en", "ensemble")}  # fmt: skip


def test_a_collapsed_seed_is_flagged_and_its_scores_stay_in_sight():
    rows = [{"target": "xx", "method": m, "seed": s, "type": "micro", "f1": f} for m, s, f in
            [("direct-en", 0, 40.0), ("mtmt", 0, 50.0), ("mtmt", 1, 0.0)]]  # fmt: skip
    text = evaluate.summary(rows, [], {}, {"synthetic": True, "sources": ["en"]}, {"xx": "direct-en"}, {}, "some mode")
    assert "(failed: 0.0)" in text and "Synthetic" in text and "some mode" in text


def test_scores_one_file_against_another_and_names_the_mode(tmp_path):
    (tmp_path / "gold").write_text("Anna B-PER\nin O\nOslo B-LOC\n")
    (tmp_path / "found").write_text("Anna I-PER\nin O\nOslo B-ORG\n")
    said = here("04_evaluate.py", tmp_path, "--score", tmp_path / "gold", tmp_path / "found")
    assert "conlleval" in said and "f1 = 0.5\n" in said
    (tmp_path / "none").write_text("Anna O\nin O\nOslo O\n")
    assert "f1 = 0" in here("04_evaluate.py", tmp_path, "--score", tmp_path / "none", tmp_path / "none")
    said = here("04_evaluate.py", tmp_path, "--strict", "--score", tmp_path / "gold", tmp_path / "found")
    assert "strict IOB2" in said and "f1 = 0.0\n" in said


def test_recorded_predictions_are_scored_to_the_last_digit(corpora, tmp_path):
    recorded = corpora.parent / "recorded-predictions"
    for lang in sorted(x.name for x in recorded.iterdir()):
        folder = recorded / lang
        said = here("04_evaluate.py", tmp_path, "--score", folder / "gold.txt", folder / "test_predictions1.txt")
        for line in (folder / "test_result1.txt").read_text().splitlines():
            if line.split(" ")[0] in ("precision", "recall", "f1"):
                assert line in said.splitlines(), (lang, line)


def test_the_figure_shows_every_target_and_its_zero_line(toy):
    import csv
    rows = [list(csv.DictReader(open(toy / "results" / f"{name}.csv"))) for name in ("results", "comparisons")]
    number = lambda row: {k: float(v) if k in ("f1", "delta_f1", "ci_low", "ci_high") else v for k, v in row.items()}
    results, comparisons = ([number(row) for row in table] for table in rows)
    figure = evaluate.draw_gains(results, comparisons, {"qac": "direct-qaa", "qbc": "direct-qaa"}, True)
    axes = figure.axes[0]
    assert [label.get_text().split("\n")[0] for label in axes.get_yticklabels()] == ["qac", "qbc"]
    assert any(set(line.get_xdata()) == {0} for line in axes.lines) and "F1" in axes.get_xlabel()
