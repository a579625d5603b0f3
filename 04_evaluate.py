"""Stage 4: score every system on the targets' gold tags, compare with paired intervals, draw.

    python 04_evaluate.py                                score everything in artifacts/ -> artifacts/results
    python 04_evaluate.py --strict                       strict IOB2 instead of the conlleval reading
    python 04_evaluate.py --oracle                       also the upper bounds that use target labels
    python 04_evaluate.py --score GOLD PREDICTION        two CoNLL files, nothing else is read

Reads   artifacts/gold, artifacts/data/targets, artifacts/logits, artifacts/students, artifacts/weights, and in every
        config.json what a piece was made from
Writes  artifacts/results/results.csv       precision, recall, F1 of every target, method, seed and entity type
        artifacts/results/comparisons.csv   F1 differences with 95 % intervals: paired bootstrap over test sentences
        artifacts/results/lengths.csv       F1 by sentence length
        artifacts/results/results.md        the tables and the answer in words
        artifacts/results/figures/gains.png
"""

import importlib
import itertools
import json
import zlib
from pathlib import Path

import datasets
import numpy as np
import seqeval.metrics
from safetensors.torch import load_file
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, Entities

data = importlib.import_module("01_data")  # how artifacts are read and written; the digit forbids a plain import

RESULTS = ["target", "method", "seed", "type", "precision", "recall", "f1", "support"]
COMPARISONS = ["target", "method", "baseline", "delta_f1", "ci_low", "ci_high", "p"]
LENGTHS = {"1-5": (1, 5), "6-10": (6, 10), "11-20": (11, 20), "21-40": (21, 40), "41+": (41, 10**9)}  # words a sentence
RESAMPLES = 1000
COMBINED = ("ensemble", "vote", "bea")  # what stage 3 makes of the teachers without a student
FAILED = 1.0  # F1 in percent under which a seed is flagged as collapsed
# One colour and marker a method throughout (Okabe and Ito's palette, told apart in grey by the marker).
STYLE = {"direct-pooled": ("#999999", "s"), "ensemble": ("#56B4E9", "D"), "tsl-avg": ("#E69F00", "v"),
         "tsl-sim": ("#D55E00", "^"), "tsl-kl": ("#009E73", "<"), "mtmt": ("#0072B2", "o")}  # fmt: skip


def parse_args(argv=None):
    p = data.Parser(description=__doc__.splitlines()[0])
    p.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="folder that all stages share")
    p.add_argument("--strict", action="store_true", help="seqeval's strict IOB2 mode; default: as conlleval reads tags")
    p.add_argument("--oracle", action="store_true", help="also `supervised` and `oracle-best-source`, set apart")
    p.add_argument("--predictions", action="store_true", help="write every system's tags as CoNLL files, too")
    p.add_argument("--score", nargs=2, type=Path, metavar=("GOLD", "PREDICTION"), help="score two CoNLL files, no more")
    return p.parse_args(argv)


# ------------------------------------------------------------------------ scoring

def entities(sentences, strict):
    """{(type, first word, last word)} of every sentence of tags."""
    if strict:
        return [{(e.tag, e.start, e.end - 1) for e in es} for es in Entities(sentences, IOB2).entities]
    return [set(get_entities(tags)) for tags in sentences]


def count(gold, predicted, types):
    """Correct, predicted and gold entities of every sentence and type: (N, len(types), 3) int."""
    table = np.zeros((len(gold), len(types), 3), dtype=np.int64)
    column = {kind: c for c, kind in enumerate(types)}
    for row, g, p in zip(table, gold, predicted):
        for which, found in enumerate((g & p, p, g)):
            for kind, _, _ in found:
                row[column[kind], which] += 1
    return table


def prf(counts):
    """Precision, recall and F1 in percent from summed counts (..., 3); 0 where nothing was found or is there."""
    correct, predicted, gold = np.moveaxis(np.asarray(counts, dtype=float), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.stack([correct / predicted, correct / gold, 2 * correct / (predicted + gold)], -1)
    return 100 * np.nan_to_num(scores)


def resampled_f1(counts, draws):
    """Micro F1 of each bootstrap resample, mean over seeds: counts (S, N, types, 3), draws (R, N)  ->  (R,)"""
    sums = np.einsum("rn,snc->rsc", draws, counts.sum(2), optimize=True)         # counts are resampled, not strings
    return prf(sums)[..., 2].mean(1)


def bootstrap_draws(n, resamples=RESAMPLES, seed=0):
    """How often each of n sentences is drawn in each resample: (R, n)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def interval(deltas):
    """95 % percentile interval and two-sided p of resampled differences (R,)."""
    low, high = np.percentile(deltas, [2.5, 97.5])
    tail = (1 + min((deltas <= 0).sum(), (deltas >= 0).sum())) / (len(deltas) + 1)  # the smaller one; never 0
    return low, high, min(1.0, 2 * tail)


# ------------------------------------------------------------------------ systems

def pieces(folder):
    """Every folder in a folder that may be missing, less what is hidden or half-written."""
    return sorted(f for f in folder.iterdir() if f.is_dir() and f.name[0] != ".") if folder.is_dir() else []


def find_systems(artifacts, target, config, oracle):
    """{(method, seed): folder with test logits} of a target, baselines first."""
    found = {}
    for folder in pieces(artifacts / "logits" / target):
        name, _, seed = folder.name.rpartition("-s")
        if name.startswith("recogniser-") and seed.isdigit():
            if name.removeprefix("recogniser-") in config["sources"]:  # not one that stage 1 was once told of
                found[name.replace("recogniser", "direct"), int(seed)] = folder
        elif name == "pooled":
            found["direct-pooled", int(seed)] = folder
        elif name == "supervised" and oracle:
            found["supervised", int(seed)] = folder
        elif folder.name.split("-")[0] in COMBINED:
            found[folder.name, 0] = folder
    for folder in pieces(artifacts / "students" / target):
        name, _, seed = folder.name.rpartition("-s")
        if seed.isdigit():
            found[name, int(seed)] = folder
    order = [f"direct-{s}" for s in config["sources"]] + ["direct-pooled", *COMBINED, "tsl-avg", "tsl-sim", "mtmt"]
    place = {name: number for number, name in enumerate(order)}
    return dict(sorted(found.items(), key=lambda item: (place.get(item[0][0], len(place)), item[0])))


def check_fresh(artifacts, target, folder, config):
    """Refuse a system if the data, teachers or weights that it was made from have since changed; returns its made_from."""
    taught = folder.parent.parent.name == "students" or folder.name.split("-")[0] in COMBINED
    stage = "03_distill.py" if taught else "02_teachers.py"
    piece = data.opened(folder, stage)
    weights, now = piece["made_from"].get("weights", {}), read_weights(artifacts, target)  # {} where all count alike
    if (piece["tags"] != config["tags"] or any(round(now.get(s, 0), 6) != w for s, w in weights.items())
            or not data.is_current(artifacts, folder.relative_to(artifacts), config["of"])):  # fmt: skip
        raise data.UserError(f"{folder}: made from other data, teachers or weights than there are: run python {stage} "
                             "--overwrite with the flags that made it, or remove the folder")  # fmt: skip
    return piece["made_from"]


def read_target(artifacts, target, config, oracle=False, recipes=None):
    """Words by sentence, gold tags by sentence (None without gold) and {(method, seed): predicted tags by sentence}.

    recipes: {method: flags} of the targets before this one, since one method's students must be made alike.
    """
    table = datasets.load_from_disk(str(artifacts / "data" / "targets" / target / "test"))
    words = {}
    for sentence, part in zip(table["sentence"], table["words"]):
        words.setdefault(sentence, []).extend(part)
    words = list(words.values())
    cuts = np.cumsum([len(w) for w in words])
    gold_folder = artifacts / "gold" / target / "test"
    gold = list(datasets.load_from_disk(str(gold_folder))["tags"]) if gold_folder.exists() else None
    if gold and [len(g) for g in gold] != [len(w) for w in words]:
        raise data.UserError(f"{gold_folder}: word counts differ from the data's: run python 01_data.py --overwrite")
    predicted, recipes = {}, {} if recipes is None else recipes
    for (method, seed), folder in find_systems(artifacts, target, config, oracle).items():
        made_from = check_fresh(artifacts, target, folder, config)
        recipe = {k: v for k, v in made_from.items() if k not in ("seed", "pieces", "weights")}
        if "method" in made_from and recipes.setdefault(method, recipe) != recipe:
            raise data.UserError(f"{folder}: made with other flags than other students of {method}: make it again with "
                                 "--overwrite and their flags, or remove it")  # fmt: skip
        logits = load_file(folder / "test.safetensors")["logits"]
        if len(logits) != cuts[-1]:
            raise data.UserError(f"{folder}: {len(logits)} predictions for {cuts[-1]} words: run stages 2 and 3 --overwrite")
        tags = np.array(config["tags"])[logits.argmax(-1).numpy()]
        predicted[method, seed] = [part.tolist() for part in np.split(tags, cuts[:-1])]
    return words, gold, predicted


def read_weights(artifacts, target):
    """{source: weight} of a target, empty where stage 2 has not come to it."""
    path = artifacts / "weights" / f"{target}.json"
    try:
        return {source: float(w) for source, w in json.loads(path.read_text()).items()} if path.exists() else {}
    except (ValueError, TypeError, AttributeError):
        raise data.UserError(f"{path}: damaged: remove it and run python 02_teachers.py") from None


def baselines_of(config, target, methods, artifacts):
    """Direct transfer, the best source by similarity weight (chosen without a label), and all baselines of a target."""
    others = [s for s in config["sources"] if s != target]
    direct = f"direct-{'en' if 'en' in others else others[0]}"
    weights = read_weights(artifacts, target)
    best = f"direct-{max(weights, key=weights.get)}" if weights else direct
    wanted = dict.fromkeys([direct, "direct-pooled", best, "ensemble", "tsl-sim", "mtmt"])
    return direct, best, [name for name in wanted if name in methods]


# ------------------------------------------------------------------------ tables and figures

def is_oracle(method):
    return method == "supervised" or method.startswith("oracle")


def markdown(header, rows):
    lines = ["| " + " | ".join(row) + " |" for row in [header, *rows]]
    return [lines[0], "|---" * len(header) + "|", *lines[1:], ""]


def score_cell(scores):
    """Mean and, from two seeds on, standard deviation; collapsed seeds are named."""
    failed = [f"{x:.1f}" for x in scores if x < FAILED]
    spread = f" ± {np.std(scores, ddof=1):.1f}" if len(scores) > 1 else ""
    return f"{np.mean(scores):.1f}{spread}" + (f" (failed: {', '.join(failed)})" if failed else "")


def gain_cell(comparisons, resampled, method, baselines):
    """Mean over targets of F1(method) - F1(baseline) with its interval; baselines: {target: baseline}."""
    rows = [r for r in comparisons if r["method"] == method and baselines.get(r["target"]) == r["baseline"]]
    deltas = [r["delta_f1"] for r in rows]
    if len(deltas) < len(baselines):
        return "-"
    low, high, _ = interval(np.mean([resampled[t, method, b] for t, b in baselines.items()], axis=0))
    return f"{np.mean(deltas):+.1f} [{low:+.1f}, {high:+.1f}]"


def summary(results, comparisons, resampled, config, directs, bests, mode):
    """results.md as text.  directs, bests: {target: direct transfer's name, the best source's by weight}"""
    targets, f1 = list(directs), {}
    for row in results:
        if row["type"] == "micro":
            f1.setdefault(row["method"], {}).setdefault(row["target"], []).append(row["f1"])

    def scores(methods):
        def mean(by_target):
            return f"{np.mean([np.mean(x) for x in by_target.values()]):.1f}" if len(by_target) == len(targets) else "-"

        rows = [[m, *(score_cell(f1[m][t]) if t in f1[m] else "-" for t in targets), mean(f1[m])] for m in methods]
        return markdown(["method", *targets, "mean"], rows)

    def gains(chosen, baselines):
        """A row a method: its gain on every target, as compared in `chosen`, and on average. baselines: {target: name}"""
        by = {}
        for r in chosen:
            cell = f"{r['delta_f1']:+.1f} [{r['ci_low']:+.1f}, {r['ci_high']:+.1f}]"
            by.setdefault(r["method"], {})[r["target"]] = cell
        rows = [[m, *(cells.get(t, "-") for t in targets), gain_cell(comparisons, resampled, m, baselines)]
                for m, cells in by.items()]  # fmt: skip
        return markdown(["method", *targets, "mean over targets"], rows)

    lines = ["# Results", "", f"F1 in percent on the targets' test sets, entity level, seqeval, {mode}; "
             "mean and, from two seeds on, standard deviation over seeds.", ""]  # fmt: skip
    if config["synthetic"]:
        lines += ["**Synthetic languages: these numbers show the machinery and say nothing about human languages.**", ""]
    lines += scores([m for m in f1 if not is_oracle(m)])
    if any(map(is_oracle, f1)):
        lines += ["## Oracles: these use target labels, and are bounds, not methods", ""]
        lines += scores([m for m in f1 if is_oracle(m)])
    direct = [r for r in comparisons if r["baseline"] == directs[r["target"]]]
    lines += [f"## The question: gain over direct transfer ({' and '.join(sorted({*directs.values()}))})", "",
              "Difference in F1 with its 95 % interval (paired bootstrap over test sentences, seeds pooled).", "",
              *gains(direct, directs)]  # fmt: skip
    for method in [m for m in ("tsl-sim", "mtmt") if m in f1]:
        rows = [r for r in direct if r["method"] == method]
        above = sum(r["delta_f1"] > 0 for r in rows)
        sure, worse = sum(r["ci_low"] > 0 for r in rows), sum(r["ci_high"] < 0 for r in rows)  # by the whole interval
        lines += [f"`{method}` is above direct transfer on {above} of {len(rows)} targets, with an interval above zero "
                  f"on {sure} and below zero on {worse}.", ""]  # fmt: skip
    stronger = {name: dict.fromkeys(targets, name) for name in ("direct-pooled", "ensemble", "tsl-sim", "mtmt") if name in f1}
    stronger |= {"best source by weight": bests} if bests else {}
    lines += ["## Gain over stronger baselines, mean over targets", ""]
    rows = [[m, *(gain_cell(comparisons, resampled, m, b) for b in stronger.values())] for m in f1 if not is_oracle(m)]
    lines += markdown(["method", *stronger], rows)
    if bests:
        chosen = ", ".join(f"{best} for {target}" for target, best in bests.items())
        lines += [f"Best source by weight, chosen without a label: {chosen}.", ""]
    ablations = [r for r in comparisons if r["baseline"] == "mtmt" and r["method"].startswith("mtmt-")
                 and r["method"].removeprefix("mtmt-") not in config["sources"]]  # fmt: skip
    if ablations:
        lines += ["## What each term is worth: difference to `mtmt`", ""]
        lines += gains(ablations, dict.fromkeys(targets, "mtmt"))
    return "\n".join(lines)


def draw_gains(results, comparisons, directs, synthetic, path=None):
    """Per target, every method's gain over direct transfer: the interval as a bar, a dot a seed. Returns the figure."""
    import matplotlib
    if path:
        matplotlib.use("Agg")  # no window where only a file is wanted
    import matplotlib.pyplot as plt

    targets = list(directs)
    gain = {(r["target"], r["method"]): r for r in comparisons if r["baseline"] == directs[r["target"]]}
    methods = [m for m in STYLE if any((t, m) in gain for t in targets)]
    f1 = {}
    for row in results:
        if row["type"] == "micro":
            f1.setdefault((row["target"], row["method"]), []).append(row["f1"])
    figure, axes = plt.subplots(figsize=(7.5, 1.2 + 0.22 * len(targets) * (len(methods) + 1)), layout="constrained")
    for row, target in enumerate(targets):
        for k, method in enumerate(m for m in methods if (target, m) in gain):
            colour, marker = STYLE[method]
            y, r = row * (len(methods) + 1) + k, gain[target, method]
            base = np.mean(f1[target, directs[target]])
            axes.plot([r["ci_low"], r["ci_high"]], [y, y], color=colour, linewidth=2)
            seeds = np.array(f1[target, method]) - base
            axes.plot(seeds, [y + 0.35] * len(seeds), ".", color="black", markersize=3)
            axes.plot(r["delta_f1"], y, marker, color=colour, markersize=6, label=method)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks([row * (len(methods) + 1) + (len(methods) - 1) / 2 for row in range(len(targets))],
                    [f"{t}\n({directs[t]} {np.mean(f1[t, directs[t]]):.1f})" for t in targets])  # fmt: skip
    axes.invert_yaxis()
    axes.set_xlabel("gain in F1 over direct transfer (points), with 95 % interval; dots: seeds")
    axes.set_title("Gain over direct transfer" + " (synthetic languages)" * synthetic, fontsize=10)
    axes.grid(axis="x", linewidth=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels())))  # one entry a method
    axes.legend([handles[m] for m in methods], methods, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    if path:
        figure.savefig(path, dpi=150)
        plt.close(figure)
    return figure


# ------------------------------------------------------------------------ the stage

def score_files(gold_path, predicted_path, strict):
    """Score one CoNLL file against another: sentences must agree in length, tags are read as they stand."""
    (gold, _), (predicted, _) = data.read_conll(gold_path), data.read_conll(predicted_path)
    for number, (g, p) in enumerate(itertools.zip_longest(gold, predicted, fillvalue=([], [])), start=1):
        if len(g[0]) != len(p[0]):
            raise data.UserError(f"{predicted_path}: sentence {number} has {len(p[0])} words, {len(g[0])} in {gold_path}: "
                                 "score the same text")  # fmt: skip
    if changed := [(a, b) for g, p in zip(gold, predicted) for a, b in zip(g[0], p[0]) if a != b]:
        print(f"note: {len(changed)} words are spelled differently in the two files, first {changed[0]}")
    gold, predicted = [t for _, t in gold], [t for _, t in predicted]
    if None in gold or None in predicted:
        raise data.UserError(f"{gold_path if None in gold else predicted_path}: it has no tags: give every word one")
    if strict and any(tag[0] not in "OBI" for tags in gold + predicted for tag in tags):
        raise data.UserError("--strict reads IOB2 tags alone: convert the files, or drop --strict")
    options = {"mode": "strict", "scheme": IOB2} if strict else {}
    print(f"seqeval, {'strict IOB2' if strict else 'conlleval reading (seqeval default)'}")
    for name in ("precision", "recall", "f1"):
        print(f"{name} = {getattr(seqeval.metrics, f'{name}_score')(gold, predicted, zero_division=0, **options)}")
    if any(tag != "O" for tags in gold + predicted for tag in tags):  # seqeval cannot tabulate nothing
        print(seqeval.metrics.classification_report(gold, predicted, digits=4, zero_division=0, **options))


def score(target, counts, sizes, types):
    """Rows of results.csv and lengths.csv for the counts {method: {seed: (N, types, 3)}} of one target."""
    results, lengths = [], []
    for method, by_seed in counts.items():
        for seed, table in by_seed.items():
            row = {"target": target, "method": method, "seed": seed}
            for kind, sums in [("micro", table.sum((0, 1))), *zip(types, table.sum(0))]:
                precision, recall, f1 = prf(sums).tolist()
                results.append(row | {"type": kind, "precision": precision, "recall": recall, "f1": f1,
                                      "support": int(sums[2])})  # fmt: skip
            for name, (low, high) in LENGTHS.items():
                sums = table[(sizes >= low) & (sizes <= high)].sum((0, 1))
                if sums[2]:
                    lengths.append(row | {"length": name, "f1": float(prf(sums)[2]), "support": int(sums[2])})
    return results, lengths


def same_teachers(scores, baseline, method):
    """{seed: score} of a baseline, as far as it comes from the teachers that taught `method`: mtmt-t1 is compared with
    direct transfer's seed 1 and with tsl-sim-t1, mtmt with seed 0 and tsl-sim."""
    if method.startswith("direct"):
        return scores[baseline]
    name, _, seed = method.rpartition("-t")
    seed = int(seed) if name and seed.isdigit() else 0
    if baseline.startswith("direct"):
        return {s: score for s, score in scores[baseline].items() if s == seed} or scores[baseline]
    return scores.get(f"{baseline}-t{seed}", scores[baseline])


def compare(target, counts, baselines):
    """Rows of comparisons.csv of one target, and {(target, method, baseline): resampled differences (R,)}."""
    one = next(table for by_seed in counts.values() for table in by_seed.values())
    draws = bootstrap_draws(len(one), seed=zlib.crc32(target.encode()))  # its own: independent of other targets'
    score_of = lambda table: np.array([prf(table.sum((0, 1)))[2], *resampled_f1(table[None], draws)])  # F1, and resampled
    scores = {m: {seed: score_of(table) for seed, table in by_seed.items()} for m, by_seed in counts.items()}
    rows, resampled = [], {}
    for method, baseline in itertools.product([m for m in counts if not is_oracle(m)], baselines):
        base = same_teachers(scores, baseline, method)
        if base is not scores[method]:
            delta, *deltas = np.mean([*scores[method].values()], axis=0) - np.mean([*base.values()], axis=0)
            low, high, p = interval(np.array(deltas))
            resampled[target, method, baseline] = np.array(deltas)
            rows.append({"target": target, "method": method, "baseline": baseline, "delta_f1": float(delta),
                         "ci_low": float(low), "ci_high": float(high), "p": float(p)})  # fmt: skip
    return rows, resampled


def write_predictions(path, words, tags):
    """One system's tags as a CoNLL file: word, tab, tag."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sentences = ("\n".join(f"{word}\t{tag}" for word, tag in zip(*sentence)) for sentence in zip(words, tags))
    path.write_text("\n\n".join(sentences) + "\n", encoding="utf-8")


def main(args):
    if args.score:
        return score_files(*args.score, args.strict)
    config = data.open_data(args.artifacts)
    data.opened(args.artifacts / "gold", "01_data.py")
    types = sorted({tag[2:] for tag in config["tags"]} - {""})
    results, lengths, comparisons, resampled, directs, bests, predictions, recipes = [], [], [], {}, {}, {}, {}, {}
    for target in config["targets"]:
        words, gold, predicted = read_target(args.artifacts, target, config, args.oracle, recipes)
        if not predicted:
            raise data.UserError(f"target {target}: no system to score: run python 02_teachers.py first")
        if args.predictions or not gold:
            predictions |= {(target, *system): (words, tags) for system, tags in predicted.items()}
        if not gold:
            continue
        counts, spans = {}, entities(gold, args.strict)
        for (method, seed), tags in predicted.items():
            counts.setdefault(method, {})[seed] = count(spans, entities(tags, args.strict), types)
        if args.oracle:
            f1 = {m: np.mean([prf(table.sum((0, 1)))[2] for table in by_seed.values()])
                  for m, by_seed in counts.items() if m.removeprefix("direct-") in config["sources"]}  # fmt: skip
            counts["oracle-best-source"] = counts[max(f1, key=f1.get)]
        directs[target], bests[target], baselines = baselines_of(config, target, counts, args.artifacts)
        if directs[target] not in counts:
            raise data.UserError(f"target {target}: {directs[target]} is missing: run python 02_teachers.py first")
        more_results, more_lengths = score(target, counts, np.array([len(w) for w in words]), types)
        more_comparisons, more_resampled = compare(target, counts, baselines)
        results, lengths, comparisons = results + more_results, lengths + more_lengths, comparisons + more_comparisons
        resampled |= more_resampled
    mode = "strict IOB2" if args.strict else "conlleval reading (seqeval's default)"
    with data.publishing(args.artifacts / "results", {"mode": mode, "oracle": args.oracle}) as folder:
        for (target, method, seed), system in predictions.items():
            write_predictions(folder / "predictions" / target / f"{method}-s{seed}.txt", *system)
        if results:
            data.write_csv(folder / "results.csv", RESULTS, results)
            data.write_csv(folder / "comparisons.csv", COMPARISONS, comparisons)
            data.write_csv(folder / "lengths.csv", ["target", "method", "seed", "length", "f1", "support"], lengths)
            text = summary(results, comparisons, resampled, config, directs, bests, mode)
            (folder / "results.md").write_text(text, encoding="utf-8")
            (folder / "figures").mkdir()
            draw_gains(results, comparisons, directs, config["synthetic"], folder / "figures" / "gains.png")
            print(text)
    print(f"stage 4 done: {len(directs)} targets scored -> {args.artifacts / 'results'}")


if __name__ == "__main__":
    data.run(lambda: main(parse_args()))
