"""The scorer against seqeval and against hand counts; the intervals against simulation."""

import importlib
import random
import re

import numpy as np
import pandas as pd
import pytest
import seqeval.metrics
from seqeval.scheme import IOB2

from conftest import here

evaluate = importlib.import_module("04_evaluate")
TYPES = ["LOC", "ORG", "PER"]


def f1_of(gold, predicted, strict=False):
    sides = [evaluate.entities(side, strict) for side in (gold, predicted)]
    found = evaluate.count(*sides, TYPES)
    return found, evaluate.prf(found.sum((0, 1)))


# ------------------------------------------------------------------------ scoring

def test_hand_counted_spans():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "B-ORG", "O", "O"]]
    predicted = [["B-PER", "I-PER", "O", "B-ORG"], ["B-ORG", "I-ORG", "O", "B-LOC"]]
    counts, scores = f1_of(gold, predicted)  # right: the one PER; found 4, there 4
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
    options["zero_division"] = 0
    for seed in range(40):
        rng = random.Random(seed)
        draw = lambda: [[rng.choice(tags) for _ in range(n)] for n in (1, 4, 9, 15)]
        gold, predicted = draw(), draw()
        counts, scores = f1_of(gold, predicted, strict)
        for name, found in zip(("precision", "recall", "f1"), scores):
            expected = getattr(seqeval.metrics, f"{name}_score")(gold, predicted, **options)
            assert found == pytest.approx(100 * expected)
        report = seqeval.metrics.classification_report
        report = report(gold, predicted, output_dict=True, **options)
        for kind, sums in zip(TYPES, counts.sum(0)):
            if kind in report:
                assert evaluate.prf(sums)[2] == pytest.approx(100 * report[kind]["f1-score"])


def test_scores_one_file_against_another_and_names_the_mode(tmp_path):
    (tmp_path / "gold").write_text("Anna B-PER\nin O\nOslo B-LOC\n")
    (tmp_path / "found").write_text("Anna I-PER\nin O\nOslo B-ORG\n")
    files = tmp_path / "gold", tmp_path / "found"
    said = here("04_evaluate.py", tmp_path, "--score", *files)
    assert "conlleval" in said and "f1 = 0.5\n" in said
    said = here("04_evaluate.py", tmp_path, "--strict", "--score", *files)
    assert "strict IOB2" in said and "f1 = 0.0\n" in said
    (tmp_path / "none").write_text("Anna O\nin O\nOslo O\n")
    none = tmp_path / "none"
    assert "f1 = 0" in here("04_evaluate.py", tmp_path, "--score", none, none)


def test_words_that_are_spelled_differently_are_counted_and_scored(tmp_path):
    (tmp_path / "gold").write_text("Anna B-PER\nin O\n")
    (tmp_path / "found").write_text("anna B-PER\nin O\n")
    said = here("04_evaluate.py", tmp_path, "--score", tmp_path / "gold", tmp_path / "found")
    assert "note: 1 words" in said and "f1 = 1.0" in said


def test_recorded_predictions_are_scored_to_the_last_digit(corpora, tmp_path):
    for folder in sorted((corpora.parent / "recorded-predictions").iterdir()):
        pair = folder / "gold.txt", folder / "test_predictions1.txt"
        said = here("04_evaluate.py", tmp_path, "--score", *pair).splitlines()
        for line in (folder / "test_result1.txt").read_text().splitlines():
            if line.split(" ")[0] in ("precision", "recall", "f1"):
                assert line in said, (folder.name, line)


# ------------------------------------------------------------------------ intervals

def simulate(rng, n, quality):
    """Counts of one run on n sentences, (n, 1, 3): gold entities, some found, some invented."""
    gold = rng.poisson(1.5, n)
    correct = rng.binomial(gold, quality)
    found = correct + rng.binomial(gold - correct + 1, 0.3)
    return np.stack([correct, found, gold], -1)[:, None, :]


def true_f1(quality, n=400_000):
    counts = simulate(np.random.default_rng(7), n, quality)
    return evaluate.prf(counts.sum((0, 1)))[2]


def simulated_intervals(qualities, simulations, n=200):
    """Over sentences alone: two runs, new in every simulation."""
    rng, truth = np.random.default_rng(0), [true_f1(q) for q in qualities]
    pool = [evaluate.draw(n, seed, 400) for seed in range(50)]
    for number in range(simulations):
        draws, runs = pool[number % len(pool)], [simulate(rng, n, q) for q in qualities]
        a, b = (evaluate.resampled_f1(run.sum(1)[None], draws)[:, 0] for run in runs)
        yield truth[0] - truth[1], *evaluate.interval(a - b)


def test_intervals_over_sentences_cover_the_true_difference_in_93_to_97_percent():
    found = simulated_intervals((0.70, 0.60), 1500)
    covered = np.mean([low <= truth <= high for truth, low, high, _ in found])
    assert 0.93 <= covered <= 0.97, covered


def test_p_under_5_percent_comes_in_about_5_percent_of_simulations_without_a_difference():
    small = np.mean([p < 0.05 for *_, p in simulated_intervals((0.65, 0.65), 1500)])
    assert 0.03 <= small <= 0.07, small


@pytest.mark.parametrize("S, share", [(2, 0.6), (3, 0.8), (5, 0.86)])
def test_where_runs_alone_differ_few_of_them_are_covered_as_seldom_as_the_report_says(S, share):
    """What a run is worth is drawn with a known spread; the test text is as good as endless."""
    rng, covered = np.random.default_rng(S), []
    for number in range(2000):
        values = np.tile(rng.normal(2, 1, S), (1000, 1))                    # (R, S)
        low, high, _ = evaluate.interval(evaluate.resample(values, number))
        covered.append(low <= 2 <= high)
    assert share - 0.03 <= np.mean(covered) <= share + 0.03, np.mean(covered)


def normal_runs(rng, quality, difficulty, own=0.1):
    """Counts (N, 3) of a run that finds what is easy enough for it; difficulty: (N, entities)."""
    luck = rng.normal(size=difficulty.shape)
    z = np.sqrt(1 - own) * difficulty + np.sqrt(own) * luck
    correct = (z < quality).sum(1)
    return np.stack([correct, correct + (luck > 1).sum(1), np.full(len(z), z.shape[1])], -1)


def test_intervals_over_runs_and_sentences_cover_the_true_difference_in_93_percent_or_more():
    """Runs of one text share its easy and hard entities, and differ by a known spread."""
    rng, S, n, covered = np.random.default_rng(0), 4, 150, []
    draw_runs = lambda mean, z, k: [normal_runs(rng, q, z) for q in rng.normal(mean, 0.05, k)]
    f1_of_runs = lambda runs: evaluate.prf(np.stack(runs).sum(1))[:, 2]
    large = rng.normal(size=(2000, 2))
    truth = np.subtract(*(f1_of_runs(draw_runs(mean, large, 400)).mean() for mean in (0.5, 0.3)))
    pool = [np.vstack([np.ones(n), evaluate.draw(n, seed, 400)]) for seed in range(20)]
    for number in range(400):
        difficulty = rng.normal(size=(n, 2))
        sides = [np.stack(draw_runs(mean, difficulty, S)) for mean in (0.5, 0.3)]
        a, b = (evaluate.resampled_f1(side, pool[number % 20]) for side in sides)
        low, high, _ = evaluate.interval(evaluate.resample((a - b)[1:], 0))
        covered.append(low <= truth <= high)
    assert np.mean(covered) >= 0.93, np.mean(covered)


def test_a_bootstrap_of_few_values_has_the_spread_of_their_mean():
    values = np.array([3.0, 5.0, 10.0])
    drawn = evaluate.resample(np.tile(values, (20_000, 1)), 0)
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.05)
    assert drawn.std() == pytest.approx(values.std(ddof=1) / np.sqrt(3), rel=0.02)


def test_resampling_counts_equals_rescoring_the_drawn_sentences():
    rng = np.random.default_rng(1)
    counts = np.stack([simulate(rng, 30, 0.6), simulate(rng, 30, 0.5)])  # two seeds
    draws = evaluate.draw(30, 0, 5)
    assert (draws.sum(1) == 30).all()
    for draw, found in zip(draws.astype(int), evaluate.resampled_f1(counts.sum(2), draws)):
        rows = np.repeat(np.arange(30), draw)
        expected = [evaluate.prf(c[rows].sum((0, 1)))[2] for c in counts]
        assert found.tolist() == pytest.approx(expected)


def test_holm_equals_a_plain_loop():
    def plain(p):
        adjusted, ranked = {}, sorted(range(len(p)), key=lambda k: p[k])
        for rank, k in enumerate(ranked):
            adjusted[k] = max(min(1, (len(p) - i) * p[ranked[i]]) for i in range(rank + 1))
        return [adjusted[k] for k in range(len(p))]

    assert evaluate.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    rng = np.random.default_rng(0)
    for size in (0, 1, 2, 6, 20):
        p = rng.random(size) ** 3
        assert evaluate.holm(p).tolist() == pytest.approx(plain(p.tolist()))


# ------------------------------------------------------------------------ comparisons

BASELINES = {"direct": "direct-en", **{name: name for name in evaluate.BASELINES}}


def compare(counts, baselines=BASELINES):
    """comparisons.csv of {target: {method: {seed: counts}}}, with the same baselines everywhere."""
    table = evaluate.compare(counts, dict.fromkeys(counts, baselines))
    return table[evaluate.COMPARISONS]


def only(table, **where):
    for column, value in where.items():
        table = table[table[column] == value]
    (row,) = table.itertuples()
    return row


def f1(counts):
    return evaluate.prf(counts.sum((0, 1)))[2]


def better(counts):
    """The same run, but it finds all in every third sentence."""
    strong = counts.copy()
    strong[::3, :, 0] = strong[::3, :, 1] = counts[::3, :, 2]
    return strong


def test_a_comparison_is_paired_by_sentence_and_seed_and_signed():
    rng = np.random.default_rng(2)
    weak = {seed: simulate(rng, 300, quality) for seed, quality in enumerate((0.3, 0.5, 0.8))}
    strong = {seed: better(weak[seed]) for seed in (2, 0, 1)}  # in any order
    same = {seed: run.copy() for seed, run in weak.items()}
    table = compare({"xx": {"direct-en": weak, "tsl-sim": same, "mtmt": strong}})
    row = only(table, method="tsl-sim", baseline="direct-en")
    assert (row.delta_f1, row.ci_low, row.ci_high, row.p) == (0, 0, 0, 1)  # no spread at all
    row = only(table, method="mtmt", baseline="direct-en")
    gains = [f1(strong[seed]) - f1(weak[seed]) for seed in range(3)]
    assert row.delta_f1 == pytest.approx(np.mean(gains)) and row.p < 0.05
    assert 0 < row.ci_low < row.delta_f1 < row.ci_high
    back = only(table, method="tsl-sim", baseline="mtmt")
    assert (back.delta_f1, back.ci_high) == pytest.approx((-row.delta_f1, -row.ci_low))


def test_seeds_that_one_of_two_systems_lacks_are_left_out():
    rng = np.random.default_rng(3)
    runs = {seed: simulate(rng, 100, 0.5) for seed in range(3)}
    strong = {1: better(runs[1]), 2: better(runs[2]), 7: runs[0]}
    row = only(compare({"xx": {"direct-en": runs, "mtmt": strong}}), method="mtmt")
    gains = [f1(strong[seed]) - f1(runs[seed]) for seed in (1, 2)]
    assert row.delta_f1 == pytest.approx(np.mean(gains))


@pytest.mark.parametrize("seeds, sentences", [(1, 100), (2, 1), (1, 1)])
def test_one_seed_or_one_sentence_has_a_difference_and_no_interval(seeds, sentences):
    rng = np.random.default_rng(3)
    runs = {seed: simulate(rng, sentences, 0.5) + 1 for seed in range(seeds)}
    table = compare(dict.fromkeys(["xx", "yy"], {"direct-en": runs, "mtmt": runs}))
    assert set(table.target) == {"xx", "yy", "mean-fixed", "mean-resampled"}
    assert (table.delta_f1 == 0).all()
    assert table[["ci_low", "ci_high", "p"]].isna().all(axis=None)
    assert table.to_csv(index=False).split("\n")[1].endswith("0.0,,,")


def three_targets(rng, qualities=(0.55, 0.6, 0.7), seeds=2):
    counts = {}
    for target, quality in zip(("xx", "yy", "zz"), qualities):
        runs = {seed: simulate(rng, 120, 0.5) for seed in range(seeds)}
        others = {seed: simulate(rng, 120, quality) for seed in range(seeds)}
        counts[target] = {"direct-en": runs, "mtmt": others}
    return counts


def test_the_means_are_those_of_the_targets_and_resampling_targets_is_wider():
    table = compare(three_targets(np.random.default_rng(4)))
    rows = table[(table.method == "mtmt") & (table.baseline == "direct-en")].set_index("target")
    expected = rows.loc[["xx", "yy", "zz"]].delta_f1.mean()
    width = lambda name: rows.loc[name].ci_high - rows.loc[name].ci_low
    for name in ("mean-fixed", "mean-resampled"):
        assert rows.loc[name].delta_f1 == pytest.approx(expected)
        assert rows.loc[name].ci_low < expected < rows.loc[name].ci_high
    assert width("mean-fixed") < width("mean-resampled")


def test_pretend_targets_are_left_out_of_means_unless_there_are_no_others():
    counts = three_targets(np.random.default_rng(4))
    baselines = dict.fromkeys(counts, BASELINES)
    for pretend, of in ((["xx"], ["yy", "zz"]), (["xx", "yy", "zz"], ["xx", "yy", "zz"])):
        rows = evaluate.compare(counts, baselines, pretend)
        rows = rows[(rows.method == "mtmt") & (rows.role == "direct")].set_index("target").delta_f1
        assert rows["mean-fixed"] == pytest.approx(rows[of].mean())


def test_a_system_that_one_target_lacks_has_no_mean():
    counts = three_targets(np.random.default_rng(4))
    counts["zz"]["tsl-sim"] = counts["zz"]["mtmt"]
    table = compare(counts)
    assert set(table[table.method == "tsl-sim"].target) == {"zz"}
    assert not set(table[table.baseline == "tsl-sim"].target) & {"mean-fixed", "mean-resampled"}


def test_targets_of_different_direct_sources_have_a_mean_over_direct_transfer():
    counts = three_targets(np.random.default_rng(5))
    counts["yy"]["direct-de"] = counts["yy"].pop("direct-en")
    baselines = {target: BASELINES for target in counts}
    baselines["yy"] = BASELINES | {"direct": "direct-de"}
    table = evaluate.compare(counts, baselines)
    row = only(table, target="mean-fixed", method="mtmt", baseline="direct")
    gains = table[(table.method == "mtmt") & table.baseline.isin(["direct-en", "direct-de"])]
    assert row.delta_f1 == pytest.approx(gains.delta_f1.mean())


def test_holm_adjusts_the_primary_contrasts_of_a_target_and_no_others(monkeypatch):
    rng, methods = np.random.default_rng(6), ["mtmt", "tsl-sim", "mtmt-scaled", "self-pooled"]
    runs = lambda quality: {seed: simulate(rng, 80, quality) for seed in range(3)}
    counts = {"xx": {name: runs(0.5) for name in ["direct-en", *methods, "mtmt-pooled"]}}
    adjusted = compare(counts)
    with monkeypatch.context() as plain:
        plain.setattr(evaluate, "PRIMARY", [])
        raw = compare(counts)
    wanted = {(m, "direct-en" if b == "direct" else b) for m, b in evaluate.PRIMARY}
    primary = [(r.method, r.baseline) in wanted for r in raw.itertuples()]
    assert sum(primary) == 4  # direct-pooled and tsl-pooled were not run
    assert adjusted[primary].p.tolist() == pytest.approx(evaluate.holm(raw[primary].p.tolist()))
    others = [not x for x in primary]
    assert adjusted[others].p.tolist() == raw[others].p.tolist()


def test_oracles_are_no_methods_and_no_baselines():
    runs = {0: simulate(np.random.default_rng(0), 50, 0.5)}
    names = ("direct-en", "mtmt", "supervised", "oracle-best-source")
    table = compare({"xx": dict.fromkeys(names, runs)})
    assert set(table.method) | set(table.baseline) == {"direct-en", "mtmt"}


# ------------------------------------------------------------------------ tables

def a_run(correct, total=10):
    """Counts of a run of two types, the second called micro, over one sentence."""
    table = np.zeros((1, 2, 3), dtype=int)
    table[0, 0] = correct, total, total
    return table


def test_the_micro_average_is_a_runs_first_row_even_where_a_type_is_called_micro():
    rows = evaluate.score("xx", "mtmt", 0, a_run(4), ["PER", "micro"])
    rows += evaluate.score("xx", "direct-en", 0, a_run(2), ["PER", "micro"])
    results = pd.DataFrame(rows, columns=evaluate.RESULTS)
    assert results.type.tolist() == ["micro", "PER", "micro"] * 2
    assert results.f1.tolist()[:3] == [40, 40, 0] and results.support.tolist()[:3] == [10, 10, 0]
    assert evaluate.micro(results).f1.tolist() == [40, 20]
    table = summary(results).split("## The question")[0]
    assert re.search(r"mtmt +40\.0", table) and "28.3" not in table


def summary(results, synthetic=False, n=100):
    """results.md of some results on one target, xx, with direct transfer from en."""
    some = [["xx", "mtmt", "direct-en", 1.0, np.nan, np.nan, np.nan, "direct"]]
    comparisons = pd.DataFrame(some, columns=[*evaluate.COMPARISONS, "role"])
    given = comparisons, [], {"synthetic": synthetic}
    return evaluate.summary(results, *given, "some mode", {"xx": n})


def a_result(method, seed, f1):
    return {"target": "xx", "method": method, "seed": seed, "type": "micro", "f1": f1}


def test_a_collapsed_seed_is_flagged_and_stays_in_the_mean():
    runs = ("direct-en", 0, 40.0), ("mtmt", 0, 50.0), ("mtmt", 1, 0.0)
    results = pd.DataFrame([a_result(*run) for run in runs])
    text = summary(results, synthetic=True)
    assert "25.0 ± 35.4 (failed: 0.0)" in text and "ynthetic" in text and "some mode" in text
    assert "ynthetic" not in summary(results)


def test_few_sentences_are_named_and_enough_are_not():
    results = pd.DataFrame([a_result("direct-en", 0, 40.0), a_result("mtmt", 0, 50.0)])
    assert "too few for any claim: xx" in summary(results, n=29)
    assert "too few" not in summary(results, n=30)


@pytest.mark.parametrize("low, high, p, says", [
    (-1.4, 1.4, 0.9, "no difference beyond 1.5"), (0.2, 1.4, 0.01, "no difference beyond 1.5"),
    (0.2, 3.0, 0.01, "above"), (-3.0, -0.2, 0.01, "below"), (-3.0, 2.0, 0.6, "undecided"),
    (0.2, 3.0, 0.07, "undecided"),
])
def test_no_difference_is_said_only_where_the_interval_lies_within_the_margin(low, high, p, says):
    row = pd.Series({"target": "xx", "method": "mtmt", "baseline": "tsl-sim", "p": p})
    row["delta_f1"], row["ci_low"], row["ci_high"] = (low + high) / 2, low, high
    assert evaluate.verdict(row).replace("*", "").endswith(f": {says}")


def test_a_contrast_without_an_interval_has_no_verdict():
    row = pd.Series({"target": "xx", "method": "mtmt", "baseline": "tsl-sim", "p": np.nan})
    row["delta_f1"], row["ci_low"], row["ci_high"] = 3.0, np.nan, np.nan
    assert evaluate.verdict(row).endswith("+3.0")


def test_the_figure_shows_every_target_and_the_mean_with_its_zero_line(toy):
    tables = [pd.read_csv(toy / f"results/{name}.csv") for name in ("results", "comparisons")]
    figure = evaluate.draw_gains(*tables, dict.fromkeys(["qac", "qbc"], {"direct": "direct-qaa"}))
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert [re.split(" [(]|:", title)[0] for title in titles] == ["qac", "qbc", "mean over targets"]
    for axis in figure.axes[:3]:
        assert any(set(line.get_xdata()) == {0} for line in axis.lines)
    assert "F1" in figure.get_supxlabel()


def test_direct_transfer_alone_has_a_table_and_an_empty_figure(tmp_path):
    results = pd.DataFrame([a_result("direct-en", 0, 40.0)])
    table = evaluate.compare({"xx": {"direct-en": {0: a_run(4)}}}, {"xx": BASELINES})
    assert table.empty
    text = evaluate.summary(results, table, [], {"synthetic": False}, "m", {"xx": 50})
    assert "40.0" in text
    evaluate.draw_gains(results, table, {"xx": BASELINES}).savefig(tmp_path / "gains.png")
    assert (tmp_path / "gains.png").stat().st_size > 0
