"""Stage 4: score every system on the targets' gold tags, compare with paired intervals, draw.

    python 04_evaluate.py                                score all of artifacts/
    python 04_evaluate.py --strict                       strict IOB2, not the conlleval reading
    python 04_evaluate.py --oracle                       also systems that use target labels
    python 04_evaluate.py --score GOLD PREDICTION        two CoNLL files, nothing else is read

Reads   artifacts/{gold,data/targets,logits,students,weights}
Writes  artifacts/results/results.csv      precision, recall, F1 by target, method, seed and type
        artifacts/results/comparisons.csv  F1 differences, their 95 % intervals and p
        artifacts/results/results.md       tables, the answer in words, what to trust without labels
        artifacts/results/{figures/gains.png,predictions/}  every system's tags as CoNLL files

N sentences, S seeds (whole runs), R bootstrap resamples.
"""

import importlib
import itertools
import re
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import seqeval.metrics
from safetensors.torch import load_file
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, Entities

data = importlib.import_module("01_data")  # a leading digit forbids a plain import
teachers = importlib.import_module("02_teachers")  # opens what stage 1 left

RESAMPLES = 1000
MARGIN = 1.5  # F1: a difference counts as none if its whole interval lies within it
FAILED = 1.0  # F1 in percent under which a seed is flagged as collapsed
IS_TEACHER = "direct-(?!pooled)"
COMBINED = ("ensemble", "vote", "bea")  # the teachers without a student
BASELINES = ("direct-pooled", "ensemble", "tsl-sim", "mtmt", "self-pooled")
PRIMARY = [  # contrasts named beforehand, whose p is adjusted for their number
    ("mtmt-pooled", "direct"),
    ("mtmt-pooled", "direct-pooled"),
    ("mtmt-pooled", "self-pooled"),
    ("tsl-pooled", "self-pooled"),
    ("mtmt", "tsl-sim"),
    ("mtmt-scaled", "mtmt"),
]
RESULTS = ["target", "method", "seed", "type", "precision", "recall", "f1", "support"]
COMPARISONS = ["target", "method", "baseline", "delta_f1", "ci_low", "ci_high", "p"]
COLOURS = {  # one colour a method throughout (Okabe and Ito's palette); others are black
    "direct-pooled": "#999999",
    "ensemble": "#56B4E9",
    "tsl-avg": "#E69F00",
    "tsl-sim": "#D55E00",
    "tsl-kl": "#009E73",
    "mtmt": "#0072B2",
    "self-pooled": "#F0E442",
    "mtmt-pooled": "#CC79A7",
}


def parse_args(argv=None):
    p = data.Parser(description=__doc__.splitlines()[0])
    p.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="shared folder")
    p.add_argument("--strict", action="store_true", help="strict IOB2; default: as conlleval reads")
    p.add_argument("--oracle", action="store_true", help="`supervised`, `oracle-best-source`, too")
    p.add_argument("--score", nargs=2, type=Path, metavar=("GOLD", "PREDICTION"))
    return p.parse_args(argv)


# ------------------------------------------------------------------------ scoring

def entities(sentences, strict):
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


def score_files(gold_path, predicted_path, strict):
    """Print seqeval's scores of one CoNLL file against another of the same text."""
    gold, predicted = (data.read_conll(path)[0] for path in (gold_path, predicted_path))
    sides, differ = [], 0
    pairs = itertools.zip_longest(gold, predicted, fillvalue=([], []))
    for number, ((g, _), (p, _)) in enumerate(pairs, start=1):
        differ += sum(a != b for a, b in zip(g, p))
        if len(g) != len(p):
            what = f"sentence {number} has {len(p)} words, {len(g)} in {gold_path}"
            raise data.UserError(f"{predicted_path}: {what}: score the same text")
    if differ:
        print(f"note: {differ} words are spelled differently in the two files")
    for path, sentences in ((gold_path, gold), (predicted_path, predicted)):
        tags = [tags for _, tags in sentences]
        if None in tags:
            raise data.UserError(f"{path}: it has no tags: give every word one")
        converted = [data.to_iob2(x) for x in tags]
        if strict and path == gold_path and converted != tags:
            raise data.UserError(f"--strict reads IOB2 alone, {path} is not: drop --strict")
        sides.append(tags if strict else converted)
    options = {"mode": "strict", "scheme": IOB2} if strict else {}
    print(f"seqeval, {'strict IOB2' if strict else 'conlleval reading (seqeval default)'}")
    for name in ("precision", "recall", "f1"):
        score = getattr(seqeval.metrics, f"{name}_score")
        print(f"{name} = {score(*sides, zero_division=0, **options)}")


# ------------------------------------------------------------------------ systems

def find_systems(artifacts, target, config, oracle):
    """{(method, seed): name of the piece with its test logits} of a target."""
    known = {f"recogniser-{source}": f"direct-{source}" for source in config["sources"]}
    known |= {"pooled": "direct-pooled"} | {name: name for name in COMBINED}
    if oracle:
        known["supervised"] = "supervised"
    systems = {}
    for where in ("logits", "students"):
        for folder in sorted((artifacts / where / target).glob("[!.]*-s*")):
            name, _, seed = folder.name.rpartition("-s")
            method = name if where == "students" else known.get(name)
            if name.startswith("external-"):
                method = name.replace("external", "direct", 1)
            if method and seed.isdigit():
                systems[method, int(seed)] = f"{where}/{target}/{folder.name}"
    return systems


def read_target(args, target, config, recipes):
    """Words and gold tags by sentence (None without gold), {(method, seed): tags by sentence}.

    recipes: {method: settings} of the targets before, since one method's runs must be alike.
    """
    table, tags = teachers.load_table(args.artifacts, f"data/targets/{target}/test"), config["tags"]
    words, gold = teachers.sentences_of(table, "words"), None
    cuts = np.cumsum([len(sentence) for sentence in words])
    by_sentence = lambda ids: [x.tolist() for x in np.split(np.array(tags)[ids], cuts[:-1])]
    if (args.artifacts / f"gold/{target}/test").exists():
        data.read_piece(args.artifacts, f"gold/{target}")
        table = teachers.load_table(args.artifacts, f"gold/{target}/test")
        gold = by_sentence([*itertools.chain(*table["tags"])])
    predicted = {}
    systems = find_systems(args.artifacts, target, config, args.oracle)
    if not systems:
        raise data.UserError(f"logits/{target}: nothing there: run python 02_teachers.py first")
    for (method, seed), name in systems.items():
        settings = data.read_piece(args.artifacts, name)["settings"] | {"seed": ""}
        if recipes.setdefault(method, settings) != settings and "/external-" not in name:
            what = f"{args.artifacts / name}: made with other flags than other runs of {method}"
            raise data.UserError(f"{what}: make it again with --overwrite, or remove it")
        path = args.artifacts / name / "test.safetensors"
        with data.explained(f"{path}: damaged", "remove its folder and run stages 2 and 3"):
            predicted[method, seed] = by_sentence(load_file(path)["logits"].argmax(-1).numpy())
    return words, gold, predicted


def baselines_of(args, config, target, methods):
    """{name: method} to compare with: direct transfer, the best source by weight, and others."""
    direct = [f"direct-{source}" for source in config["sources"] if source != target]
    direct = direct or [x for x in methods if re.match(IS_TEACHER, x)] or ["direct-NAME"]
    baselines = {"direct": "direct-en" if "direct-en" in direct else direct[0]}
    if baselines["direct"] not in methods:
        missing = f"{args.artifacts}/logits/{target}: no {baselines['direct']}"
        raise data.UserError(f"{missing}: run python 02_teachers.py first")
    weights = f"weights/{target}"
    if (args.artifacts / weights).exists():
        known = data.read_piece(args.artifacts, weights)["settings"]["sources"]
        a = load_file(args.artifacts / weights / "sentences.safetensors")["a"]
        baselines["best-by-weight"] = f"direct-{known[a.mean(0).argmax()]}"
    return baselines | {name: name for name in BASELINES}


# ------------------------------------------------------------------------ intervals

def resampled_f1(counts, draws):
    """Micro F1 of every run in every resample: counts (S, N, 3), draws (R, N)  ->  (R, S)"""
    sums = np.einsum("rn,snc->rsc", draws, counts, optimize=True)
    return prf(sums)[..., 2]


def draw(n, seed, resamples=RESAMPLES):
    """How often each of n things is drawn in each resample: (R, n)"""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, [1 / n] * n, resamples).astype(float)


def resample(values, seed):
    """Bootstrap means of a few values in every resample: (R, n)  ->  (R,), NaN for n < 2. A plain
    one is too narrow: here deviations from the mean are stretched by sqrt(n / (n - 1)).
    """
    n, mean = values.shape[1], values.mean(1)
    if n < 2:
        return np.full(len(values), np.nan)
    times = draw(n, seed, len(values))                                      # (R, n)
    deviations = (values * times).mean(1) - mean
    return mean + np.sqrt(n / (n - 1)) * deviations


def interval(deltas):
    """95 % percentile interval and two-sided p of resampled differences (R,)."""
    if np.isnan(deltas).any():
        return np.nan, np.nan, np.nan
    low, high = np.percentile(deltas, [2.5, 97.5])
    below, above = (deltas <= 0).sum(), (deltas >= 0).sum()
    tail = (1 + min(below, above)) / (1 + len(deltas))                      # never 0
    return low, high, min(1.0, 2 * tail)


def holm(p):
    """Holm's step-down adjustment of p values for how many there are."""
    adjusted, largest = np.array(p, dtype=float), 0.0
    for rank, number in enumerate(np.argsort(p)):
        largest = max(largest, (len(p) - rank) * p[number])
        adjusted[number] = min(1.0, largest)
    return adjusted


def compare(counts, baselines, pretend=()):
    """Rows of comparisons.csv: a bootstrap over whole runs, paired by seed, and over sentences.

    counts: {target: {method: {seed: (N, types, 3)}}}, baselines: {target: {role: method}}. Where
    all targets but pretend ones have a contrast in the same runs, its mean has two rows: for these
    targets (mean-fixed) and targets drawn (mean-resampled). A column more: the baseline's role."""
    rows, contrasts, real = [], {}, counts.keys() - pretend or counts
    for target, systems in counts.items():
        f1 = {}
        for method, runs in systems.items():
            stacked = np.stack([table.sum(1) for table in runs.values()])   # (S, N, 3)
            N = stacked.shape[1]
            drawn = draw(N, zlib.crc32(target.encode()))                    # (R, N)
            draws = np.vstack([np.ones(N), drawn])                          # as they are, too
            f1[method] = pd.DataFrame(resampled_f1(stacked, draws), columns=[*runs])
        for method, (role, base) in itertools.product(f1, baselines[target].items()):
            if base not in f1 or method == base or is_oracle(method):
                continue
            d = (f1[method] - f1[base]).dropna(axis=1)                      # (1 + R, S of both)
            if d.empty:
                continue
            delta = d.loc[0].mean()
            deltas = resample(d[1:].to_numpy(), 0)
            if N == 1:  # one sentence has no interval
                deltas *= np.nan
            shown = base if role == "direct" else role
            rows.append([target, method, shown, delta, *interval(deltas), role])
            if target in real:
                contrasts.setdefault((method, role), []).append((delta, deltas, tuple(d), shown))
    for (method, role), found in contrasts.items():
        delta, deltas, seeds, shown = zip(*found)
        if len({*seeds}) == 1 and len(found) == len(real) > 1:
            base = shown[0] if len({*shown}) == 1 else role
            by_target = np.stack(deltas, axis=1)                            # (R, targets)
            means = {"mean-fixed": by_target.mean(1), "mean-resampled": resample(by_target, 1)}
            for target, mean in means.items():
                rows.append([target, method, base, np.mean(delta), *interval(mean), role])
    table = pd.DataFrame(rows, columns=[*COMPARISONS, "role"])
    for _, group in table[is_primary(table) & table.p.notna()].groupby("target"):
        table.loc[group.index, "p"] = holm(group.p.tolist())
    return table


def is_primary(table):
    """Which rows are of the contrasts named beforehand?"""
    return np.array([pair in PRIMARY for pair in zip(table.method, table.role)], dtype=bool)


# ------------------------------------------------------------------------ tables and the figure

def is_oracle(method):
    return method == "supervised" or method.startswith("oracle")


def score(target, method, seed, table, types):
    """Rows of results.csv of one run: the micro average first, then every type."""
    rows, sums = [], [table.sum((0, 1)), *table.sum(0)]
    for kind, counts in zip(["micro", *types], sums):
        rows.append([target, method, seed, kind, *prf(counts), counts[2]])
    return rows


def micro(results):
    """The rows of micro averages: the first of every run, since a type may be called micro."""
    return results.drop_duplicates(["target", "method", "seed"])


def fenced(table):
    """A DataFrame as text, in Markdown that keeps its columns."""
    return "```\n" + table.to_string(na_rep="") + "\n```"


def score_cell(scores):
    """Mean and, from two seeds on, standard deviation; collapsed seeds are named."""
    failed = [f"{x:.1f}" for x in scores if x < FAILED]
    spread = f" ± {scores.std():.1f}" if len(scores) > 1 else ""
    return f"{scores.mean():.1f}{spread}" + (f" (failed: {', '.join(failed)})" if failed else "")


def gain_cell(row):
    bounds = f" [{row.ci_low:+.1f}, {row.ci_high:+.1f}]" if row.ci_low == row.ci_low else ""
    return f"{row.delta_f1:+.1f}{bounds}"


def verdict(row):
    """One sentence on a contrast; "no difference" only where its interval lies in the margin."""
    found = "undecided"
    if max(-row.ci_low, row.ci_high) <= MARGIN:
        found = f"no difference beyond {MARGIN}"
    elif row.p < 0.05:
        found = "above" if row.delta_f1 > 0 else "below"
    contrast = f"- `{row.method}` less `{row.baseline}`, {row.target}: {gain_cell(row)}"
    return contrast + (f", p {row.p:.3f} after Holm: {found}" if row.p == row.p else "")


def summary(results, comparisons, pretend, config, mode, n_sentences):
    """results.md as text.  n_sentences: {target: N}"""
    targets = list(n_sentences)
    real = [target for target in targets if target not in pretend] or targets
    f1 = micro(results).groupby(["method", "target"], sort=False)["f1"]
    table = f1.apply(score_cell).unstack()[targets]
    table["mean"] = f1.mean().unstack()[real].mean(axis=1, skipna=False).round(1)
    table = table.sort_values("mean", ascending=False)
    oracle = table.index.map(is_oracle)
    text = ["# Results", f"F1 in percent, entity level, seqeval, {mode}; mean ± s.d. over seeds."]
    if config["synthetic"]:
        text += ["**Synthetic languages: they show the machinery, nothing of human languages.**"]
    if few := [target for target, n in n_sentences.items() if n < 30]:
        text += [f"Under 30 test sentences, too few for any claim: {', '.join(few)}."]
    text += [fenced(table[~oracle])]
    if oracle.any():
        text += ["## Oracles: these use target labels, for reference alone", fenced(table[oracle])]
    cells = comparisons.assign(cell=[gain_cell(row) for row in comparisons.itertuples()])
    gains = cells[cells.role == "direct"]
    if gains.empty:
        return "\n\n".join(text)
    text += [
        f"## The question: gain over direct transfer ({', '.join(gains.baseline.unique())})",
        "With 95 % intervals: bootstrap over sentences and the whole runs (seeds) that both have. "
        "Where runs differ much, those of two runs are too narrow, and p too small: they cover "
        "some 60 %, of five 86 %. Means leave out pretend targets; mean-resampled draws targets.",
        fenced(gains.set_index(["method", "target"])["cell"].unstack(sort=False)),
    ]
    final = cells[cells.target == ("mean-fixed" if len(real) > 1 else real[0])]
    primary = map(verdict, final[is_primary(final)].itertuples())
    text += ["## Contrasts named beforehand", "\n".join(primary)]
    return "\n\n".join(text)


def advice(comparisons, counts, baselines, pretend):
    """What to trust without labels, in words: how often and by how much each system won on the
    pretend targets (sources, too), and how the best of them does where gold can tell."""
    own = lambda method, target: method.replace(f"-{target}-", "-own-")  # as direct-ibo-mt on ibo
    known = {t: {own(m, t): runs for m, runs in counts[t].items()} for t in pretend}
    table = compare(known, baselines)
    table = table[table.role.isin(["direct", "direct-pooled"])]
    each = table[table.target.isin(pretend)]
    final = table[table.target == "mean-fixed"] if len(pretend) > 1 else each
    deltas = final[final.role == "direct"].set_index("method").delta_f1
    if deltas.empty:
        return "No pretend target: name a source among --targets, too, to see what to trust."
    wins = lambda deltas: f"above on {(deltas > 0).sum()} of {len(deltas)}"
    won = each.groupby(["method", "role"]).delta_f1.agg(wins)
    cells = [f"{gain_cell(row)}, {won[row.method, row.role]}" for row in final.itertuples()]
    shown = final.assign(cell=cells).set_index(["method", "role"]).cell.unstack(sort=False)
    best = deltas.idxmax() if deltas.max() > 0 else "direct transfer"
    text = [fenced(shown), f"Best over the pretend targets {', '.join(pretend)}: `{best}`."]
    real = comparisons[comparisons.target.isin(counts.keys() - pretend)]
    real = real.assign(method=[*map(own, real.method, real.target)])
    for role, deltas in real[real.method == best].groupby("role").delta_f1:
        text.append(f"- on other targets, where gold can tell: {wins(deltas)} ({role})")
    return "\n\n".join(text)


def signs(target, predicted):
    """What a target's tags warn of without gold: teachers that disagree, systems without names."""
    said = pd.DataFrame({system: [*itertools.chain(*x)] for system, x in predicted.items()})
    of_one_run = said.xs(said.columns[0][1], axis=1, level=1)               # (N_words, methods)
    named = of_one_run.filter(regex=IS_TEACHER)
    named = named[(named != "O").any(axis=1)]
    agree = (named.nunique(axis=1) == 1).sum()
    names = (said != "O").mean()                                            # (systems,)
    few = ["-s".join(map(str, x)) for x in names.index[names <= names.median() / 4]]
    line = f"- {target}: teachers agree on {agree} of the {len(named)} words that any of them names"
    return line + f"; {1 - names.median():.0%} are O; hardly a name by: {', '.join(few) or 'none'}"


def draw_gains(results, comparisons, baselines):
    """A panel a target and one of means: every method's gain over direct transfer; the interval as
    a band. Returns the figure."""
    from matplotlib.figure import Figure  # late: imports cost a second

    directs = {"direct"} | {roles["direct"] for roles in baselines.values()}
    gains = comparisons[comparisons.baseline.isin(directs)]
    gains = gains[gains.target != "mean-resampled"]
    panels = list(dict.fromkeys(gains.target))
    methods = gains.groupby("method")["delta_f1"].mean().sort_values().index.tolist()
    f1 = micro(results).groupby(["target", "method"])["f1"].mean()
    columns = min(3, len(panels)) or 1  # direct transfer alone has no gains
    rows = -(-len(panels) // columns) or 1
    size = 1.3 + 1.8 * columns, rows * (0.8 + 0.27 * len(methods))
    figure = Figure(size, 120, layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axis, panel in zip(axes.flat, panels):
        rows, title = gains[gains.target == panel], "mean over targets"
        if panel in baselines:
            title = f"{panel} ({f1[panel, baselines[panel]['direct']]:.1f})"
        for row in rows.itertuples():
            y, colour = methods.index(row.method), COLOURS.get(row.method, "0.3")
            axis.plot([row.ci_low, row.ci_high], [y, y], color=colour, alpha=0.3, linewidth=7)
            axis.plot(row.delta_f1, y, "o", color=colour, markersize=6)
        axis.set_title(title)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[0, 0].set_yticks(range(len(methods)), methods)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    figure.supxlabel("gain in F1 over direct transfer (whose F1 is in brackets)")
    return figure


# ------------------------------------------------------------------------ the stage

def write_predictions(path, words, tags):
    """One system's tags as a CoNLL file: word, tab, tag."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sentences = [map("\t".join, zip(*sentence)) for sentence in zip(words, tags)]
    path.write_text("\n\n".join(map("\n".join, sentences)) + "\n", encoding="utf-8")


def main(args):
    if args.score:
        return score_files(*args.score, args.strict)
    config = teachers.open_data(args.artifacts)
    types = [tag[2:] for tag in config["tags"] if tag.startswith("B")]
    results, predictions, recipes, warnings = [], {}, {}, []
    counts, baselines, n_sentences = {}, {}, {}
    for target in config["targets"]:
        words, gold, predicted = read_target(args, target, config, recipes)
        warnings.append(signs(target, predicted))
        for system, tags in predicted.items():
            predictions[target, *system] = words, tags
        if not gold:
            continue
        counts[target], n_sentences[target] = {}, len(gold)
        spans = entities(gold, args.strict)
        for (method, seed), tags in predicted.items():
            table = count(spans, entities(tags, args.strict), types)
            counts[target].setdefault(method, {})[seed] = table
        baselines[target] = baselines_of(args, config, target, counts[target])
        if args.oracle:
            f1 = lambda method: prf(sum(counts[target][method].values()).sum((0, 1)))[2]
            singles = [method for method in counts[target] if re.match(IS_TEACHER, method)]
            counts[target]["oracle-best-source"] = counts[target][max(singles, key=f1)]
        for method, runs in counts[target].items():
            for seed, table in runs.items():
                results += score(target, method, seed, table, types)
    mode = "strict IOB2" if args.strict else "conlleval reading (seqeval's default)"
    text = ["no target has gold tags: predictions alone"]

    def build(folder):
        for (target, method, seed), system in predictions.items():
            write_predictions(folder / f"predictions/{target}/{method}-s{seed}.txt", *system)
        if results:
            table = pd.DataFrame(results, columns=RESULTS)
            pretend = [target for target in counts if target in config["sources"]]  # for advice
            comparisons = compare(counts, baselines, pretend)
            table.round(5).to_csv(folder / "results.csv", index=False)
            comparisons[COMPARISONS].round(5).to_csv(folder / "comparisons.csv", index=False)
            text[0] = summary(table, comparisons, pretend, config, mode, n_sentences)
            advised = advice(comparisons, counts, baselines, pretend)
            text.append(f"## What to trust without labels\n\n{advised}")
            (folder / "figures").mkdir()
            figure = draw_gains(table, comparisons, baselines)
            figure.savefig(folder / "figures/gains.png")
        text.append("\n".join(warnings))
        (folder / "results.md").write_text("\n\n".join(text), encoding="utf-8")

    data.make(args, "results", build, replace=True, mode=mode, oracle=args.oracle)
    print("\n\n".join(text))
    print(f"stage 4 done: {len(counts)} targets scored -> {args.artifacts / 'results'}")


if __name__ == "__main__":
    data.run(main, parse_args)
