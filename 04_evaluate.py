"""Stage 4: score every system on the targets' gold tags, and compare each with direct transfer.

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
import importlib
import itertools
import json
import math
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

data = importlib.import_module("01_data")  # a leading digit forbids a plain import
teachers = importlib.import_module("02_teachers")  # opens what stage 1 left

RESAMPLES = 1000
FAILED = 1.0  # F1 in percent under which a run is named as collapsed
DISTILLED = 80.0  # fidelity on training text under which a student has not learned its mixture
BASELINES = ["direct-pooled", "ensemble", "tsl-en", "tsl-sim", "mtmt", "self-pooled"]
RESULTS = ["target", "method", "seed", "type", "precision", "recall", "f1", "support"]
WHO = ("student", "mixture")
FIDELITY = ["target", "method", "seed", "fidelity", "fidelity_train"]
COMPARISONS = ["target", "method", "baseline", "delta_f1", "ci_low", "ci_high", "p", "runs"]
COLOURS = {  # one colour for each method throughout; others are grey
    "direct-pooled": "#999999",
    "ensemble": "#56B4E9",
    "tsl-avg": "#E69F00",
    "tsl-sim": "#D55E00",
    "tsl-kl": "#009E73",
    "mtmt": "#0072B2",
    "mtmt-scaled": "#003D66",
    "self-pooled": "#B8A800",
    "mtmt-pooled": "#CC79A7",
}


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
    with np.errstate(divide="ignore", invalid="ignore"):
        f1 = 2 * correct / (predicted + gold)
        scores = np.stack([correct / predicted, correct / gold, f1], -1)
    return 100 * np.nan_to_num(scores)


# ------------------------------------------------------------------------ systems

def find_systems(artifacts, config, target):
    """{(method, seed): the piece with its test logits} of a target."""
    names = {"ensemble": "ensemble"}  # {its cache: the system}
    names[f"recogniser-{teachers.pooled_name(config, target)}"] = "direct-pooled"
    for source in config["sources"]:
        names[f"recogniser-{source}"] = f"direct-{source}"
    systems = {}
    for where in ("logits", "students"):
        for folder in sorted(artifacts.glob(f"{where}/{target}/[!.]*-s*")):
            name, _, seed = folder.name.rpartition("-s")
            method = name if where == "students" else names.get(name)
            if name.startswith("external-"):
                method = name.replace("external-", "direct-")
            if method and seed.isdecimal():
                systems[method, int(seed)] = f"{where}/{target}/{folder.name}"
    return systems


def by_sentence(ids, tags, words):
    """Tag numbers of all words as tags by sentence, as long as the sentences of words."""
    cuts = np.cumsum([len(sentence) for sentence in words])[:-1]
    return [part.tolist() for part in np.split(np.array(tags)[np.asarray(ids)], cuts)]


def read_words(artifacts, target, split):
    """The words of a target's text by sentence."""
    table = teachers.load_table(artifacts, f"data/targets/{target}/{split}")
    return teachers.sentences_of(table, "words")


def read_gold(artifacts, target, tags, words):
    """Gold tags by sentence, None where there are none; {type that no source has: how many}."""
    if not (artifacts / f"gold/{target}/test").exists():
        return None, {}
    data.inputs(artifacts, f"gold/{target}")
    table = teachers.load_table(artifacts, f"gold/{target}/test")
    counts = data.read_record(artifacts / f"gold/{target}")["facts"]["entities"]["test"]
    unknown = {name.split()[0]: n for name, n in counts.items() if name.endswith(" dropped")}
    return by_sentence(list(itertools.chain(*table["tags"])), tags, words), unknown


def recipes_of(artifacts, piece):
    """All settings behind a piece, without texts and seeds: {JSON of one piece's settings, ...}.
    Runs of one method must have the same."""
    plain = {}
    found = set()
    for name, x in data.read_record(artifacts / piece)["settings"].items():
        if name.startswith(("logits/", "teachers/")):
            found.update(recipes_of(artifacts, name))
        elif "/" not in name and name not in ("seed", "mixture", "weights", "files"):
            plain[name] = x
    return found | {json.dumps(plain, sort_keys=True)}


def fidelity(student, mixture):
    """Entity F1 in percent of a student's tags against those of the mixture that taught it, both by
    sentence; it needs no gold. NaN where the mixture names nothing."""
    pairs = list(zip(entities(student), entities(mixture)))
    correct = sum(len(s & m) for s, m in pairs)
    named = sum(len(m) for _, m in pairs)
    return 200 * correct / (named + sum(len(s) for s, _ in pairs)) if named else math.nan


# ------------------------------------------------------------------------ intervals

def resampled_f1(counts, draws):
    """Micro F1 of every run in every resample: counts (S, N, 3), draws (R, N)  ->  (R, S)"""
    sums = np.einsum("rn,snc->rsc", draws, counts, optimize=True)
    return prf(sums)[..., 2]


def draw_sentences(target, n):
    """How often each of n sentences is drawn in each resample, (1 + R, n); first, each once."""
    rng = np.random.default_rng(zlib.crc32(target.encode()))
    draws = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES)
    return np.vstack([np.ones(n, dtype=int), draws]).astype(float)


def interval(d, v_sentences, draw_targets=False):
    """95 % interval and two-sided p of a mean difference, by Student's t (Satterthwaite 1946).

    d (T, S) by target and run, v_sentences the variance of its mean over resampled sentences. Runs
    are crossed with targets: a run's teachers serve all of them. One run: its sentences alone.
    With draw_targets the T > 1 targets, too, are a sample, of languages like them.
    """
    T, S = d.shape
    mean = d.mean()
    parts = []  # (variance of the mean, its degrees of freedom)
    v_runs = d.mean(0).var(ddof=1) / S if S > 1 else 0.0
    if S > 1:
        parts.append((v_runs, S - 1))
    if draw_targets:
        residual = d - d.mean(0) - d.mean(1, keepdims=True) + mean
        parts.append((d.mean(1).var(ddof=1) / T, T - 1))
        if S > 1:
            n = (T - 1) * (S - 1)
            parts.append((-(residual**2).sum() / n / (T * S), n))  # it is in both of the others
    else:
        parts.append((v_sentences, np.inf))
    v = max(v_runs, sum(x for x, _ in parts))
    if v == 0 or v_sentences == 0:  # systems that never differ, or a single sentence
        return mean, np.nan, np.nan, np.nan
    spread = sum(x**2 / n for x, n in parts)
    df = v**2 / spread if spread > 0 else np.inf
    df = max(df, min(n for _, n in parts))  # the negative part would have it near 0
    half = scipy.stats.t.ppf(0.975, df) * math.sqrt(v)
    p = 2 * scipy.stats.t.sf(abs(mean) / math.sqrt(v), df)
    return mean, mean - half, mean + half, p


def choose_direct(sources, counts):
    """The direct transfer to compare with: from English, else from a source that serves all."""
    names = [f"direct-{source}" for source in ["en", *sources]]
    methods = sorted({method for systems in counts.values() for method in systems})
    serving_all = [x for x in names if all(x in systems for systems in counts.values())]
    return [*serving_all, *[x for x in names if x in methods], *methods][0]


def compare(counts, baselines):
    """comparisons.csv: every method less every baseline, on each target and on their mean.

    counts: {target: {method: {seed: (N, types, 3)}}}
    """
    f1 = {}  # {(target, method): (1 + R, S) by seed}
    for target, systems in counts.items():
        for method, runs in systems.items():
            stacked = np.stack([table.sum(1) for table in runs.values()])   # (S, N, 3)
            draws = draw_sentences(target, stacked.shape[1])                # (1 + R, N)
            f1[target, method] = pd.DataFrame(resampled_f1(stacked, draws), columns=list(runs))
    rows = []
    methods = dict.fromkeys(method for _, method in f1)
    for method, base in itertools.product(methods, baselines):
        if method == base:
            continue
        deltas = {}  # {target: (1 + R, S of both)}
        for target in counts:
            if (target, method) in f1 and (target, base) in f1:
                both = (f1[target, method] - f1[target, base]).dropna(axis=1)
                if len(both.columns):
                    deltas[target] = both
        if deltas:
            rows += contrast_rows(method, base, deltas, len(counts))
    return pd.DataFrame(rows, columns=COMPARISONS)


def contrast_rows(method, base, deltas, n_targets):
    """Rows of one contrast from {target: differences (1 + R, S)}, the first of them as observed; a
    mean only where all targets have it in the same runs."""
    rows = []
    for target, d in deltas.items():
        found = interval(d.loc[[0]].to_numpy(), d.loc[1:].mean(axis=1).var())
        rows.append([target, method, base, *found, len(d.columns)])
    seeds = {tuple(d.columns) for d in deltas.values()}
    if len(deltas) == n_targets > 1 and len(seeds) == 1:
        S = len(seeds.pop())
        d = np.stack([x.to_numpy() for x in deltas.values()])               # (T, 1 + R, S)
        v_sentences = d[:, 1:].mean((0, 2)).var()
        rows.append(["mean-fixed", method, base, *interval(d[:, 0], v_sentences), S])
        if len(deltas) > 2:  # two targets say nothing of others
            found = interval(d[:, 0], v_sentences, draw_targets=True)
            rows.append(["mean-resampled", method, base, *found, S])
    return rows


# ------------------------------------------------------------------------ tables and the figure

def score_rows(target, method, seed, table, types):
    """Rows of results.csv of one run: the micro average first, then every type."""
    rows = []
    for kind, counts in zip(["micro", *types], [table.sum((0, 1)), *table.sum(0)]):
        rows.append([target, method, seed, kind, *prf(counts), counts[2]])
    return rows


def micro(results):
    """The rows of micro averages: the first of every run, since a type may be called micro."""
    return results.drop_duplicates(["target", "method", "seed"])


def score_cell(scores):
    """Mean and, from two runs on, standard deviation; collapsed runs are named."""
    failed = [f"{x:.1f}" for x in scores if x < FAILED]
    spread = f" ± {scores.std():.1f}" if len(scores) > 1 else ""
    return f"{scores.mean():.1f}{spread}" + (f" (failed: {', '.join(failed)})" if failed else "")


def gain_cell(row):
    bounds = f" [{row.ci_low:+.1f}, {row.ci_high:+.1f}]" if pd.notna(row.ci_low) else ""
    return f"{row.delta_f1:+.1f}{bounds}"


def fenced(table):
    """A DataFrame as text, in Markdown that keeps its columns."""
    return "```\n" + table.to_string(na_rep="") + "\n```"


def fidelity_columns(table):
    """By method its mean fidelity on test and training text, and on which targets it was not
    distilled; students that start as their own teacher begin near 100 and get no verdict."""
    columns = table.groupby("method")[["fidelity", "fidelity_train"]].mean().round(1)
    by_target = table.groupby(["method", "target"])["fidelity_train"].mean()
    low = {}
    for method, target in by_target[by_target < DISTILLED].index:
        if not method.endswith("-pooled"):
            low[method] = f"{low.get(method, '')} {target}".strip()
    columns["not distilled"] = [low.get(method, "") for method in columns.index]
    return columns


def summary(results, fidelities, comparisons, direct, notes):
    """results.md as text."""
    targets = list(dict.fromkeys(results.target))
    f1 = micro(results).groupby(["method", "target"], sort=False)["f1"]
    table = f1.apply(score_cell).unstack()[targets]
    table["mean"] = f1.mean().unstack()[targets].mean(axis=1, skipna=False).round(1)
    table = table.join(fidelity_columns(fidelities)).sort_values("mean", ascending=False)
    text = ["# Results", *notes, fenced(table)]
    gains = comparisons[comparisons.baseline == direct]
    if len(gains):
        cells = gains.assign(cell=[gain_cell(row) for row in gains.itertuples()])
        cells = cells.set_index(["method", "target"])["cell"].unstack(sort=False)
        text += [
            f"## The question: gain in F1 over direct transfer ({direct})",
            "In brackets 95 % intervals, by Student's t over whole runs and test sentences. Those "
            "of two runs cover some 87 %; with one run they know its sentences alone, not what "
            "another run would give. mean-fixed: these targets; mean-resampled: others like them.",
            fenced(cells),
        ]
    return "\n\n".join(text)


def draw_gains(comparisons, direct):
    """Every method's gain over direct transfer: a small dot for each target, a large one for their
    mean, its interval as a band. Returns the figure."""
    from matplotlib.figure import Figure  # late: imports cost a second

    gains = comparisons[(comparisons.baseline == direct) & (comparisons.target != "mean-resampled")]
    methods = gains.groupby("method")["delta_f1"].mean().sort_values().index.tolist()
    figure = Figure((7.0, 1.2 + 0.3 * len(methods)), 120, layout="constrained")
    axis = figure.subplots()
    for row in gains.itertuples():
        y = methods.index(row.method)
        colour = COLOURS.get(row.method, "0.3")
        is_mean = row.target == "mean-fixed" or gains.target.nunique() == 1
        if is_mean:
            ends = [row.ci_low, row.ci_high]
            width = 8 if row.runs > 1 else 2  # a thin line: of one run, which knows sentences alone
            axis.plot(ends, [y, y], color=colour, alpha=0.4, linewidth=width)
        axis.plot(row.delta_f1, y, "o", color=colour, markersize=8 if is_mean else 3)
    axis.set_yticks(range(len(methods)), methods)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.spines[["top", "right", "left"]].set_visible(False)
    what = " (small: each language; large: their mean)" if gains.target.nunique() > 1 else ""
    axis.set_xlabel(f"gain in F1 over {direct}{what}")
    return figure


def write_counts(path, counts):
    """{target: {method: {seed: (N, types, 3)}}} as tensors "target/method/seed"."""
    flat = {}
    for target, systems in counts.items():
        for method, runs in systems.items():
            for seed, table in runs.items():
                flat[f"{target}/{method}/{seed}"] = torch.tensor(table, dtype=torch.int16)
    save_file(flat, path)


def read_counts(paths):
    """What write_counts wrote, of all files together; notebook 5 does."""
    counts = {}
    for path in paths:
        for name, table in load_file(path).items():
            target, method, seed = name.split("/")
            counts.setdefault(target, {}).setdefault(method, {})[int(seed)] = table.long().numpy()
    return counts


# ------------------------------------------------------------------------ the stage

def write_predictions(path, words, tags):
    """One system's tags as a CoNLL file: word, tab, tag."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = []
    for sentence, sentence_tags in zip(words, tags):
        lines = [f"{word}\t{tag}\n" for word, tag in zip(sentence, sentence_tags)]
        blocks.append("".join(lines))
    path.write_text("\n".join(blocks), encoding="utf-8")


def score_target(args, config, target, pieces, folder):
    """Every system of a target: its tags as CoNLL files under `folder`, and what was counted.

      ->  {method: {seed: (N, types, 3)}}, empty without gold; rows of fidelity.csv; notes
    """
    tags = config["tags"]
    types = [tag[2:] for tag in tags if tag.startswith("B")]
    words = {split: read_words(args.artifacts, target, split) for split in ("train", "test")}
    gold, unknown = read_gold(args.artifacts, target, tags, words["test"])
    counts = {}
    fidelities = []
    for (method, seed), piece in pieces.items():
        logits = load_file(args.artifacts / piece / "test.safetensors")["logits"]
        predicted = by_sentence(logits.argmax(-1), tags, words["test"])
        path = folder / f"{target}/{method}-s{seed}.txt"
        write_predictions(path, words["test"], predicted)
        if gold:
            spans = entities(predicted, args.strict)
            found = count(entities(gold, args.strict), spans, types)
            counts.setdefault(method, {})[seed] = found
        if piece.startswith("students"):
            said = load_file(args.artifacts / piece / "tags.safetensors")
            row = [target, method, seed]
            for split in ("test", "train"):
                both = [by_sentence(said[f"{x}_{split}"], tags, words[split]) for x in WHO]
                row.append(fidelity(*both))
            fidelities.append(row)
    notes = []
    if gold and len(gold) < 30:
        notes.append(f"{target}: under 30 test sentences, too few for any claim.")
    if unknown:
        kinds = ", ".join(f"{kind} ({n})" for kind, n in unknown.items())
        named = {tag[2:] for sentence in gold for tag in sentence}
        absent = [kind for kind in types if kind not in named]
        ours = f"no {' '.join(absent)} in gold; " if absent else ""
        notes.append(f"{target}: {ours}types of gold without a counterpart: {kinds}.")
    return counts, fidelities, notes


def write_tables(folder, counts, fidelities, types, direct, notes):
    """results.csv, comparisons.csv, figures/gains.png and results.md, whose text is returned."""
    results = []
    for target, systems in counts.items():
        for method, runs in systems.items():
            for seed, table in runs.items():
                results += score_rows(target, method, seed, table, types)
    results = pd.DataFrame(results, columns=RESULTS)
    comparisons = compare(counts, dict.fromkeys([direct, *BASELINES]))
    results.round(5).to_csv(folder / "results.csv", index=False)
    comparisons.round(5).to_csv(folder / "comparisons.csv", index=False)
    write_counts(folder / "counts.safetensors", counts)
    (folder / "figures").mkdir(exist_ok=True)
    draw_gains(comparisons, direct).savefig(folder / "figures/gains.png")
    return summary(results, fidelities, comparisons, direct, notes)


def main(args):
    config = teachers.read_config(args.artifacts)
    types = [tag[2:] for tag in config["tags"] if tag.startswith("B")]
    mode = "strict IOB2" if args.strict else "conlleval reading (seqeval's default)"
    notes = [f"F1 in percent, entity level, seqeval, {mode}; mean ± s.d. over runs (seeds)."]
    if config["synthetic"]:
        notes.append("**Invented languages: they show the machinery, nothing of human languages.**")
    counts = {}
    fidelities = []
    pieces = {target: find_systems(args.artifacts, config, target) for target in config["targets"]}
    recipes = {}  # {method: how its first run was made}
    settings = {"mode": mode}
    for (method, _), piece in itertools.chain(*[systems.items() for systems in pieces.values()]):
        settings.update(data.inputs(args.artifacts, piece))
        recipe = recipes_of(args.artifacts, piece)
        if recipes.setdefault(method, recipe) != recipe:
            what = f"made with other flags than other runs of {method}, or by such teachers"
            data.stop(f"{args.artifacts / piece}: {what}: remove it, or pass --overwrite there")
    (args.artifacts / "results/record.json").unlink(missing_ok=True)  # results are always new
    with data.writing(args.artifacts / "results", settings) as partial:
        for target, systems in pieces.items():
            folder = partial / "predictions"
            found, rows, odd = score_target(args, config, target, systems, folder)
            fidelities += rows
            notes += odd
            if found:
                counts[target] = found
        fidelities = pd.DataFrame(fidelities, columns=FIDELITY)
        fidelities.round(2).to_csv(partial / "fidelity.csv", index=False)
        text = "No target has gold tags: there are predictions and fidelity alone."
        if counts:
            direct = choose_direct(config["sources"], counts)
            text = write_tables(partial, counts, fidelities, types, direct, notes)
        (partial / "results.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"stage 4 done: {len(counts)} targets scored -> {args.artifacts / 'results'}")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a terminal may know ASCII alone
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # who read the output may have gone
    main(parse_args())
