"""Stage 4: score every system on the targets' gold tags, and compare each with some baselines.

    python 04_evaluate.py             score all of artifacts/
    python 04_evaluate.py --strict    strict IOB2 instead of the conlleval reading

Reads   artifacts/{gold,data/targets,logits,students}
Writes  artifacts/results/results.csv         precision, recall, F1 by target, method, seed and type
        artifacts/results/fidelity.csv        how well each student repeats what taught it
        artifacts/results/comparisons.csv     differences in F1, their 95 % intervals and p
        artifacts/results/counts.safetensors  correct, found and gold entities of every sentence
        artifacts/results/{results.md,figures/gains.png,predictions/}

T targets, S seeds (whole runs), N sentences, R bootstrap resamples.
"""

import argparse
import functools
import importlib
import itertools
import math
import re
import signal
import sys
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats
import torch
from safetensors.torch import load_file, save_file
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, Entities

data = importlib.import_module("01_data")
teachers = importlib.import_module("02_teachers")  # tables, tags by sentence

RESAMPLES = 1000
DISTILLED = 80.0  # fidelity on training text under which a student has not learned its mixture
BASELINES = ["direct-pooled", "ensemble", "tsl-en", "tsl-sim", "mtmt", "self-pooled"]
RESULTS = ["target", "method", "seed", "type", "precision", "recall", "f1", "support"]
FIDELITY = ["target", "method", "seed", "fidelity", "fidelity_train"]
COMPARISONS = ["target", "method", "baseline", "delta_f1", "ci_low", "ci_high", "p", "runs"]


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="the shared folder")
    p.add_argument("--strict", action="store_true", help="strict IOB2; default: as conlleval reads")
    return p.parse_args(argv)


# ------------------------------------------------------------------------ scoring

def entities(sentences, strict=False):
    """{(type, first word, last word)} of every sentence of tags."""
    if strict:
        found = Entities(sentences, IOB2).entities
        return [{(e.tag, e.start, e.end - 1) for e in sentence} for sentence in found]
    return [set(get_entities(tags)) for tags in sentences]


def count(gold, predicted, types):
    """Correct, predicted and gold entities of every sentence and type: (N, len(types), 3) int."""
    table = np.zeros((len(gold), len(types), 3), dtype=int)
    for row, g, p in zip(table, gold, predicted):
        for which, spans in enumerate((g & p, p, g)):
            for kind, _, _ in spans:
                row[types.index(kind), which] += 1
    return table


def prf(counts):
    """Precision, recall and F1 in percent from counts (..., 3); 0 where there is nothing."""
    correct, predicted, gold = np.moveaxis(np.asarray(counts, dtype=float), -1, 0)
    denominators = np.stack([predicted, gold, (predicted + gold) / 2], -1)
    return 100 * correct[..., None] / np.maximum(denominators, 0.5)  # all but 0 are 0.5 or more


def fidelity(student, mixture):
    """Entity F1 in percent of a student's tags against those of the mixture that taught it, both by
    sentence, as conlleval reads them; no gold. NaN where the mixture names nothing."""
    of_student = set(get_entities(student))
    of_mixture = set(get_entities(mixture))
    both = len(of_student & of_mixture)
    return 200 * both / (len(of_student) + len(of_mixture)) if of_mixture else math.nan


# ------------------------------------------------------------------------ systems

def find_systems(artifacts, config, target):
    """{(method, seed): the piece with its test logits} of a target."""
    pooled = f"recogniser-{teachers.pooled_name(config, target)}"
    systems = {}
    folders = [*artifacts.glob(f"logits/{target}/[!.]*-s*")]  # one with a dot is half written
    folders += artifacts.glob(f"students/{target}/[!.]*-s*")
    for folder in sorted(folders):
        name, _, seed = folder.name.rpartition("-s")
        method = re.sub("^(recogniser|external)-", "direct-", name)
        if name == pooled:
            method = "direct-pooled"
        if not name.startswith(("evaluator-", "scaled-")):  # these two do not tag
            systems[method, int(seed)] = str(folder.relative_to(artifacts))
    return systems


def read_words(artifacts, target, split):
    """The words of a target's text by sentence."""
    table = teachers.load_table(artifacts, f"data/targets/{target}/{split}")
    return teachers.sentences_of(table, "words")


def read_gold(artifacts, target, tags):
    """Gold tags by sentence, None where there are none, and what is to be said of them."""
    if not (artifacts / f"gold/{target}/test").exists():
        return None, []
    data.inputs(artifacts, f"gold/{target}")  # stops if it is stale
    table = teachers.load_table(artifacts, f"gold/{target}/test")
    gold = [[tags[k] for k in sentence] for sentence in teachers.sentences_of(table, "tags")]
    notes = []
    if len(gold) < 30:
        notes.append(f"{target}: under 30 test sentences, too few for any claim.")
    found = data.read_record(artifacts / f"gold/{target}")["facts"]["entities"]["test"]
    absent = [tag[2:] for tag in tags if tag[0] == "B" and tag[2:] not in found]
    if absent:
        notes.append(f"{target}: no {' '.join(absent)} in gold: whatever is found of it is wrong.")
    unknown = [f"{x.split()[0]} ({n})" for x, n in found.items() if x.endswith(" dropped")]
    if unknown:
        notes.append(f"{target}: types of gold without a counterpart: {', '.join(unknown)}.")
    return gold, notes


# ------------------------------------------------------------------------ intervals

@functools.cache
def draw_sentences(target, n):
    """How often each of n sentences is in each resample, alike for all systems: (1 + R, n). The
    first is the text itself."""
    rng = np.random.default_rng(zlib.crc32(target.encode()))
    draws = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES)
    return np.vstack([np.ones(n), draws])


def interval(d, v_sentences, draw_targets=False):
    """A mean difference, its 95 % interval and two-sided p, by Student's t (Satterthwaite 1946).

    d (T, S) by target and run, v_sentences the variance of d.mean() over resampled sentences  ->
    mean, low, high, p. The variance of the mean is that over runs, whose teachers serve all targets
    (0 where there is one run), plus v_sentences. With draw_targets it is that over runs plus that
    over the T > 1 targets, which stand for others like them; it is then never the narrower one."""
    T, S = d.shape
    mean = d.mean()
    v_runs = d.mean(0).var(ddof=1) / S if S > 1 else 0.0
    parts = [(v_runs, max(1, S - 1))]  # variances of the mean, with their degrees of freedom
    if draw_targets:
        parts.append((d.mean(1).var(ddof=1) / T, T - 1))
        # the variances over runs and over targets both hold that of the residuals: once is enough
        residual = d - d.mean(0) - d.mean(1, keepdims=True) + mean
        df = max(1, (T - 1) * (S - 1))
        v_residual = (residual**2).sum() / df / (T * S)
        parts.append((-v_residual, df))
    else:
        parts.append((v_sentences, np.inf))
    v = max(v_runs, sum(part for part, _ in parts))  # not less than that of the runs alone
    if min(v, v_sentences) < 1e-9:  # systems that never differ, or a single sentence
        return mean, np.nan, np.nan, np.nan
    spread = sum(part**2 / df for part, df in parts)
    df_sum = v**2 / spread if spread > 0 else np.inf
    df_sum = max(df_sum, min(df for _, df in parts))  # taking a part off can bring it near 0
    half = scipy.stats.t.ppf(0.975, df_sum) * math.sqrt(v)
    p = 2 * scipy.stats.t.sf(abs(mean) / math.sqrt(v), df_sum)
    if draw_targets:  # by its degrees of freedom it might be surer than for these targets alone
        _, _, fixed_high, fixed_p = interval(d, v_sentences)
        half = max(half, fixed_high - mean)
        p = max(p, fixed_p)
    return mean, mean - half, mean + half, p


def compare(counts, baselines):
    """comparisons.csv: every method less every baseline, on each target and on their mean.

    counts: {(target, method, seed): (N, types, 3)}"""
    f1 = {}  # {(method, target, seed): (1 + R,)}, the first as observed
    for (target, method, seed), table in counts.items():
        draws = draw_sentences(target, len(table))                          # (1 + R, N)
        f1[method, target, seed] = prf(draws @ table.sum(1))[:, 2]
    f1 = pd.DataFrame(f1)
    n_targets = f1.columns.unique(1).size
    rows = []
    for method, base in itertools.product(f1.columns.unique(0), baselines):
        if method == base or base not in f1:
            continue
        d = f1[method] - f1[base]  # a column for each target and run, NaN where one has none
        d = d.dropna(axis=1).sort_index(axis=1)
        parts = {target: d[[target]] for target in d.columns.unique(0)}
        T = len(parts)
        is_complete = T == n_targets and d.shape[1] == T * d.columns.unique(1).size
        if is_complete and T > 1:  # all targets, in the same runs
            parts["mean-fixed"] = d
        if is_complete and T > 2:  # two targets say nothing of others
            parts["mean-resampled"] = d
        for name, part in parts.items():
            n = part.columns.unique(0).size
            x = part.to_numpy().reshape(len(part), n, -1)                   # (1 + R, n, S)
            v = x[1:].mean((1, 2)).var()
            found = interval(x[0], v, draw_targets=name == "mean-resampled")
            rows.append([name, method, base, *found, x.shape[2]])
    return pd.DataFrame(rows, columns=COMPARISONS)


# ------------------------------------------------------------------------ tables and the figure

def score_rows(counts, types):
    """Rows of results.csv: of every run the micro average first, then every type."""
    rows = []
    for run, table in counts.items():
        by_type = table.sum(0)                                              # (types, 3)
        for kind, n in [("micro", by_type.sum(0)), *zip(types, by_type)]:
            rows.append([*run, kind, *prf(n), n[2]])
    return pd.DataFrame(rows, columns=RESULTS)


def micro(results):
    """The rows of micro averages: the first of every run, since a type may be called micro."""
    return results.drop_duplicates(["target", "method", "seed"])


def fidelity_columns(table):
    """By method its mean fidelity on test and training text, and the targets where a run was not
    distilled; students that start as their own teacher begin near 100 and get no verdict."""
    columns = table.groupby("method")[["fidelity", "fidelity_train"]].mean().round(1)
    fresh = table[~table.method.str.endswith("-pooled")]
    low = fresh[fresh.fidelity_train < DISTILLED].groupby("method").target.unique()
    columns["not distilled"] = low.map(" ".join)  # by method; empty for the others
    return columns


def score_cell(scores):
    """Mean and, from two runs on, standard deviation."""
    spread = f" ± {scores.std():.1f}" if len(scores) > 1 else ""
    return f"{scores.mean():.1f}{spread}"


def summary(results, fidelities, comparisons, direct):
    """results.md as text: the scores, and the gains over direct transfer."""
    of_runs = micro(results).groupby(["method", "target"], sort=False).f1
    table = of_runs.apply(score_cell).unstack()
    table["mean"] = of_runs.mean().unstack().mean(axis=1, skipna=False).round(1)
    table = table.join(fidelity_columns(fidelities)).sort_values("mean", ascending=False)
    gains = comparisons[comparisons.baseline == direct]
    cells = []
    for x in gains.itertuples():
        bounds = f" [{x.ci_low:+.1f}, {x.ci_high:+.1f}]" if x.ci_low < x.ci_high else ""
        cells.append(f"{x.delta_f1:+.1f}{bounds}")
    targets = gains.target.unique()  # the means last
    gains = gains.assign(cell=cells).pivot(index="method", columns="target", values="cell")
    table = table.to_string(na_rep="")
    gains = gains[targets].to_string(na_rep="")
    return (
        f"```\n{table}\n```\n\n"
        f"## The question: gain in F1 over direct transfer ({direct})\n\n"
        "In brackets 95 % intervals, by Student's t over whole runs and test sentences. Those of "
        "two runs are somewhat too narrow; with one run they know its sentences alone, not what "
        "another run would give. A gain is over the runs that both systems have, a mean where all "
        "targets have the same. mean-fixed: these targets; mean-resampled: others like them.\n\n"
        f"```\n{gains}\n```"
    )


def draw_gains(comparisons, direct):
    """Every method's gain over direct transfer: a small dot for each target, a large one for their
    mean, with its interval. Returns the figure."""
    from matplotlib.figure import Figure  # late: imports cost a second
    gains = comparisons[comparisons.baseline == direct].sort_values("delta_f1")
    means = gains[gains.target == "mean-fixed"]
    each = gains[~gains.target.str.startswith("mean-")]
    is_one = gains.target.nunique() == 1  # and has no mean
    large = each if is_one else means
    figure = Figure((7.0, 1.2 + 0.3 * gains.method.nunique()), 120, layout="constrained")
    axis = figure.subplots()
    bounds = [large.delta_f1 - large.ci_low, large.ci_high - large.delta_f1]
    axis.errorbar(large.delta_f1, large.method, xerr=bounds, fmt="o", elinewidth=3, label="mean")
    if not is_one:
        axis.plot(each.delta_f1, each.method, "k.", alpha=0.6, label="each language")
        figure.legend(loc="outside upper right", ncols=2)
    axis.margins(y=0.1)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_xlabel(f"gain in F1 over {direct}")
    return figure


# ------------------------------------------------------------------------ the stage

def write_predictions(path, words, tags):
    """One system's tags as a CoNLL file: word, tab, tag."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = []
    for sentence in zip(words, tags):
        blocks.append("".join(f"{word}\t{tag}\n" for word, tag in zip(*sentence)))
    path.write_text("\n".join(blocks), encoding="utf-8")


def score_target(args, tags, types, target, systems, folder):
    """Every system of a target: its tags as CoNLL files under `folder`, and what was counted.

      ->  {(target, method, seed): (N, types, 3)}, empty without gold; rows of fidelity.csv; notes
    """
    words = {split: read_words(args.artifacts, target, split) for split in ("train", "test")}
    gold, notes = read_gold(args.artifacts, target, tags)
    gold_entities = entities(gold, args.strict) if gold else []
    counts = {}
    fidelities = []
    for (method, seed), piece in systems.items():
        logits = load_file(args.artifacts / piece / "test.safetensors")["logits"]
        predicted = teachers.by_sentence(logits.argmax(-1), tags, words["test"])
        write_predictions(folder / f"{target}/{method}-s{seed}.txt", words["test"], predicted)
        if gold:
            found = entities(predicted, args.strict)
            counts[target, method, seed] = count(gold_entities, found, types)
        if piece.startswith("students"):
            row = [target, method, seed]
            for split in ("test", "train"):
                said = load_file(args.artifacts / piece / f"{split}.safetensors")
                student = teachers.by_sentence(said["logits"].argmax(-1), tags, words[split])
                mixture = teachers.by_sentence(said["mixture"], tags, words[split])
                row.append(fidelity(student, mixture))
            fidelities.append(row)
    return counts, fidelities, notes


def write_tables(folder, counts, fidelities, types, sources):
    """The files of scores, comparisons and counts, and the figure; returns results.md's tables."""
    results = score_rows(counts, types)
    # gains are over direct transfer from the source that was run on most targets, English before
    # others; without sources over the system that was run on most, such as direct-NAME
    n_targets = results.groupby("method").target.nunique()
    known = [f"direct-{x}" for x in ["en", *sources] if f"direct-{x}" in n_targets]
    direct = max(known or n_targets.index, key=n_targets.get)  # of equals the first
    comparisons = compare(counts, dict.fromkeys([direct, *BASELINES]))
    results.round(5).to_csv(folder / "results.csv", index=False)
    comparisons.round(5).to_csv(folder / "comparisons.csv", index=False)
    tensors = {}
    for (target, method, seed), table in counts.items():
        tensors[f"{target}/{method}/{seed}"] = torch.tensor(table, dtype=torch.int16)
    save_file(tensors, folder / "counts.safetensors")
    (folder / "figures").mkdir()
    draw_gains(comparisons, direct).savefig(folder / "figures/gains.png")
    return summary(results, fidelities, comparisons, direct)


def main(args):
    config = teachers.read_config(args.artifacts)
    mode = "strict IOB2" if args.strict else "conlleval reading (seqeval's default)"
    notes = [f"F1 in percent, entity level, seqeval, {mode}; mean ± s.d. over runs (seeds)."]
    if config["preset"] == "toy":
        notes.append("**Invented languages: they show the machinery, nothing of human languages.**")
    types = [tag[2:] for tag in config["tags"] if tag[0] == "B"]
    systems = {target: find_systems(args.artifacts, config, target) for target in config["targets"]}
    if not any(systems.values()):
        data.stop(f"{args.artifacts}: no system to score: run 02_teachers.py first")
    settings = {"mode": mode}
    for pieces in systems.values():
        settings.update(data.inputs(args.artifacts, *pieces.values()))
    counts = {}
    fidelities = []
    (args.artifacts / "results/record.json").unlink(missing_ok=True)  # else `writing` keeps the old
    with data.writing(args.artifacts / "results", settings) as partial:
        for target, pieces in systems.items():
            folder = partial / "predictions"
            found, rows, remarks = score_target(args, config["tags"], types, target, pieces, folder)
            counts.update(found)
            fidelities += rows
            notes += remarks
        fidelities = pd.DataFrame(fidelities, columns=FIDELITY)
        fidelities.round(2).to_csv(partial / "fidelity.csv", index=False)
        if counts:
            notes.append(write_tables(partial, counts, fidelities, types, config["sources"]))
        else:
            notes.append("No target has gold tags: there are predictions and fidelity alone.")
        text = "\n\n".join(["# Results", *notes])
        (partial / "results.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"stage 4 done: {len(systems)} targets -> {args.artifacts / 'results'}")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a terminal may know ASCII alone
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # who read the output may have gone
    main(parse_args())
