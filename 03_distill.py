"""Stage 3: distil a student for every target from what the teachers said of its unlabelled text.

    python 03_distill.py                                          the default methods, two runs
    python 03_distill.py --methods mtmt mtmt-nogamma --seeds 0    an ablation

Reads   artifacts/data/targets (no tags there), artifacts/logits, artifacts/weights, and the pooled
        recogniser where a student starts from it; never gold
Writes  artifacts/students/<target>/<method>-s<seed>/  the student, log.csv, its logits of every
                                                       word, and the mixture's tags (fidelity)
        artifacts/logits/<target>/ensemble-s<seed>     the teachers' mixture without a student

Equations are numbered as in the README. B sentences, T sub-tokens, C tags, K sources, H hidden
size, M scored words of a batch, P pairs (i, j) of them.
"""

import argparse
import importlib
import itertools
import random
import time
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tqdm import tqdm

data = importlib.import_module("01_data")
teachers = importlib.import_module("02_teachers")  # batches, pairs and the optimiser are as there


# ------------------------------------------------------------------------ the methods

@dataclass(frozen=True)
class Method:
    """What a student learns from, and by which terms of Eq. (9). The defaults are TSL."""

    weights: str = "similarity"  # of the sources: by similarity, Eq. (4), or uniform
    pooled: bool = False         # one teacher, of all sources' labels; the student starts from it
    loss: str = "squared"        # Eq. (6): squared error, or kl at temperature tau
    tau: float = 1.0             # temperature of kl and of the mixture that it learns
    pairs: bool = False          # MTMT: the second task (7), on pairs of words
    scaled: bool = False         # with pairs: evaluators that learned kappa, and r = p_i . p_j
    lam: float = 0.0             # with pairs: weight lambda of the second task (7) in Eq. (9)
    alpha: bool = False          # the weights of Eq. (8)
    beta: bool = False           # with pairs
    gamma: bool = False          # with pairs


TSL = Method()
MTMT = Method(pairs=True, lam=0.5, alpha=True, beta=True, gamma=True)  # lambda as released
METHODS = {  # and tsl-<source>, mtmt-<source>: with one source's teachers alone
    "tsl-avg": replace(TSL, weights="uniform"),
    "tsl-sim": TSL,
    "tsl-kl": replace(TSL, loss="kl", tau=2.0),
    "mtmt": MTMT,
    "mtmt-noalpha": replace(MTMT, alpha=False),
    "mtmt-nobeta": replace(MTMT, beta=False),
    "mtmt-nogamma": replace(MTMT, gamma=False),
    "mtmt-nosim": replace(MTMT, lam=0.0),
    "mtmt-scaled": replace(MTMT, scaled=True),
    "mtmt-scaled-nosim": replace(MTMT, scaled=True, lam=0.0),  # the bits of mtmt-nosim
    "self-pooled": replace(TSL, pooled=True, loss="kl", tau=2.0),
    "mtmt-pooled": Method(pooled=True, loss="kl", tau=2.0, pairs=True, scaled=True, lam=0.5),
}
DEFAULTS = ["tsl-sim", "mtmt", "self-pooled", "mtmt-pooled"]
RECIPES = {  # {least width of the encoder: its recipe}
    512: {"lr": 1e-4, "steps": 783, "batch_size": 32, "freeze": 3},  # TSL's student, Sec. 4.1
    256: {"lr": 1.5e-4, "steps": 1566, "batch_size": 16, "freeze": 3},  # chosen by fidelity
    0: {"lr": 3e-3, "steps": 400, "batch_size": 32, "freeze": 0},
}
RECIPES_FROM_POOLED = {  # of students that start from the pooled recogniser
    512: dict(RECIPES[512], lr=5e-5),
    256: dict(RECIPES[256], lr=1e-4, steps=625),
    0: dict(RECIPES[0], lr=1e-3, steps=60),
}


def choose_method(name, sources, external):
    """The method of that name, and the sources and teachers from elsewhere that teach by it."""
    if name in METHODS:
        return METHODS[name], sources, external
    family, _, teacher = name.partition("-")
    if family == "tsl" and teacher in external:
        return TSL, [], [teacher]
    if family in ("tsl", "mtmt") and teacher in sources:
        return MTMT if family == "mtmt" else TSL, [teacher], []
    known = " ".join([*METHODS, *[f"tsl-{x}" for x in sources + external]])
    data.stop(f"--methods {name}: not one of {known}, or mtmt-<source>")


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = "tsl-<source>, mtmt-<source>, " + ", ".join(METHODS)
    p.add_argument("--targets", nargs="+", metavar="LANG", help="languages to distil into")
    p.add_argument("--methods", nargs="+", default=DEFAULTS, help=names)
    p.add_argument("--lambda", dest="lam", type=float, help="weight of (7) in Eq. (9); default 0.5")
    p.add_argument("--logits-only", action="store_true", help="keep a student's logits, no model")
    teachers.add_training_flags(p)
    return p.parse_args(argv)


# ------------------------------------------------------------------------ what the teachers say

def mixture(teacher_logits, weights, tau=1.0):
    """Eq. (5): p = sum_k w_k softmax(z_k / tau).  (K, M, C), (K,)  ->  (M, C)"""
    probs = torch.softmax(teacher_logits.float() / tau, dim=-1)             # (K, M, C)
    return torch.einsum("kmc,k->mc", probs, weights)


def teacher_similarity(vectors, weights, kappas, i, j):
    """t_ij = sum_k w_k sigmoid(kappa_k cos(v_i^k, v_j^k)), Eq. (7); as published kappa = 1.
    Unit vectors (K, M, H), weights and kappas (K,), i, j (P,)  ->  (P,)"""
    v_i = vectors[:, i].float()                                             # (K, P, H)
    v_j = vectors[:, j].float()
    cos = (v_i * v_j).sum(-1)                                               # (K, P)
    s = torch.sigmoid(kappas[:, None] * cos)
    return torch.einsum("kp,k->p", s, weights)


def external_teachers(artifacts, target):
    """Names of a target's teachers from elsewhere: 02_teachers.py --teacher NAME=..."""
    found = artifacts.glob(f"logits/{target}/external-*-s*")
    return sorted({x.name.removeprefix("external-").rpartition("-s")[0] for x in found})


def find_teachers(args, config, target, name, seed):
    """A method, and the names of the caches that a student learns from.

      ->  method, recognisers, their shares of the mixture (K + E,), evaluators, their weights (K,)

    Each of E teachers from elsewhere has the share 1 / (K + E); the K sources divide the rest by
    w, Eq. (4)."""
    sources = [source for source in config["sources"] if source != target]
    external = external_teachers(args.artifacts, target)
    method, sources, external = choose_method(name, sources, external)
    if not sources and not external:
        data.stop(f"{target} has no teachers: run 02_teachers.py --teacher NAME=DIR")
    if not sources and (method.pairs or method.pooled):
        data.stop(f"--methods {name}: it needs labelled sources: try tsl-sim, or tsl-<teacher>")
    if method.pooled:
        sources = [teachers.pooled_name(config, target)]
        external = []
    K = len(sources)
    E = len(external)
    w = torch.ones(K) / max(1, K)  # K = 0: teachers from elsewhere alone
    if method.weights == "similarity" and K > 1:
        data.inputs(args.artifacts, f"weights/{target}")  # stops if they are stale
        by_source = load_file(args.artifacts / f"weights/{target}/sentences.safetensors")
        if set(by_source) != set(sources):
            data.stop(f"weights/{target}: of other sources: run 02_teachers.py --overwrite")
        w = torch.stack([by_source[source] for source in sources]).mean(1)  # w of Eq. (4)
    shares = torch.cat([K * w, torch.ones(E)]) / (K + E)                    # (K + E,), sum 1
    recognisers = [f"logits/{target}/recogniser-{source}-s{seed}" for source in sources]
    recognisers += [f"logits/{target}/external-{teacher}-s{seed}" for teacher in external]
    evaluators = []
    if method.pairs:
        kind = "scaled" if method.scaled else "evaluator"
        evaluators = [f"logits/{target}/{kind}-{source}-s{seed}" for source in sources]
    return method, recognisers, shares, evaluators, w


# ------------------------------------------------------------------------ the student's loss

def squared_error(student_logits, p):
    """Eq. (6): ||q - p||^2 of every word; TSL also divides by C.  (M, C), (M, C)  ->  (M,)"""
    q = torch.softmax(student_logits, dim=-1)                               # (M, C)
    return (q - p).square().sum(-1)


def soft_target_loss(student_logits, p, tau):
    """tau^2 KL(p || q) of every word, both at temperature tau: `mixture` has softened p. Softening
    shrinks gradients by tau^2 (Hinton et al. 2015, Sec. 2).  (M, C), (M, C)  ->  (M,)"""
    log_q = F.log_softmax(student_logits / tau, dim=-1)                     # (M, C)
    return tau**2 * F.kl_div(log_q, p, reduction="none").sum(-1)


def similarity_loss(h, i, j, t, kappa=1.0):
    """Eq. (7): BCE(sigmoid(kappa cos(h_i, h_j)), t_ij) of every pair. It cannot fall under the
    entropy of t; its derivative by kappa cos is sigmoid(kappa cos) - t.
    h (M, H), i, j, t (P,)  ->  (P,)"""
    cos = F.cosine_similarity(h[i], h[j], dim=-1)                           # (P,)
    return F.binary_cross_entropy_with_logits(kappa * cos, t, reduction="none")


def entropy(t):
    """H(t), the floor of (7); for t in [0.2689, 0.7311] in [0.5822, 0.6931].  (P,)  ->  (P,)"""
    return -torch.xlogy(t, t) - torch.xlogy(1 - t, 1 - t)


def alpha(p):
    """Eq. (8): (max_c p_ic)^2, how sure the recognisers are of a word.  (M, C)  ->  (M,)"""
    return p.max(-1).values.square()


def beta(t):
    """Eq. (8): min(1, (2 t - 1)^2 + 1/2), how sure the evaluators are of a pair.  (P,)  ->  (P,)"""
    return torch.clamp((2 * t - 1).square() + 0.5, max=1)


def gamma(p_i, p_j, t, scaled=False):
    """Eq. (8): 1 - |r - t|, do the recognisers (r) and the evaluators (t) agree on a pair?
    As published r = sigmoid(cos(p_i, p_j)), in [0.5, 0.7311]. With scaled evaluators t goes from 0
    to 1, and so does r = p_i . p_j, the probability that both words have the same tag.
    (P, C), (P, C), (P,)  ->  (P,)"""
    if scaled:
        r = (p_i * p_j).sum(-1)                                             # (P,)
    else:
        r = torch.sigmoid(F.cosine_similarity(p_i, p_j, dim=-1))
    return 1 - (r - t).abs()


def student_loss(student_logits, h, p, by_evaluators, method, rng):
    """Eq. (9): (6) over the words, and with pairs (7) over pairs of them, weighted by (8).

    student_logits (M, C) and states h (M, H) of the student; the mixture p (M, C); by_evaluators:
    vectors (K, M, H), weights (K,), kappas (K,)  ->  scalar, and {term: scalar} to log: the loss,
    and unweighted means of (6), of (7) less its floor, and of each weight of (8)"""
    if method.loss == "kl":
        e = soft_target_loss(student_logits, p, method.tau)                 # (M,)
    else:
        e = squared_error(student_logits, p)                                # (M,)
    alpha_i = alpha(p) if method.alpha else torch.ones_like(e)              # (M,)
    loss = (alpha_i * e).mean()
    terms = {"recognition": e.mean()}
    if method.pairs and len(e) > 1:  # a lone word has no partner
        vectors, w, kappas = by_evaluators
        i, j = teachers.draw_pairs(p.argmax(-1), rng)                       # (P,) by predictions
        t = teacher_similarity(vectors, w, kappas, i, j)                    # (P,)
        bce = similarity_loss(h, i, j, t, kappa=w @ kappas)                 # (P,)
        beta_ij = beta(t) if method.beta else torch.ones_like(t)            # (P,)
        gamma_ij = gamma(p[i], p[j], t, method.scaled) if method.gamma else torch.ones_like(t)
        loss = loss + method.lam * (gamma_ij * beta_ij * bce).mean()
        terms["similarity"] = (bce - entropy(t)).mean()                     # above its floor
        terms.update(alpha=alpha_i.mean(), beta=beta_ij.mean(), gamma=gamma_ij.mean())
    terms["loss"] = loss
    return loss, terms


# ------------------------------------------------------------------------ training

def load_caches(artifacts, names, split, what):
    """What each teacher said: [(N_words, C or H)], mapped: rows are read when asked for."""
    return [load_file(artifacts / name / f"{split}.safetensors")[what] for name in names]


def train(student, table, by_recognisers, by_evaluators, method, recipe, seed):
    """Distil into `student` from cached teachers alone; returns the terms of every step.

    by_recognisers: logits (K + E) x (N_words, C), shares (K + E,); by_evaluators: unit vectors
    K x (N_words, H), weights (K,), kappas (K,)"""
    shuffle = np.random.default_rng(seed)                                   # of batches
    rng = random.Random(seed)                                               # of pairs
    device = student.device
    teachers.freeze(student, recipe["freeze"])
    adamw, schedule, scaler = teachers.optimiser(student, recipe["lr"], recipe["steps"])
    table = table.remove_columns("words")  # text is slow to read, and not needed here
    logits, shares = by_recognisers
    vectors, w, kappas = by_evaluators
    batches = teachers.plan_steps(table, recipe["batch_size"], recipe["steps"], shuffle)
    log = []
    student.train()
    for rows in tqdm(batches, leave=False, disable=None):
        batch = teachers.collate(table[rows], device)
        words = batch["words"]                                              # (M,) in the corpus
        z = torch.stack([x[words] for x in logits]).to(device)              # (K + E, M, C)
        p = mixture(z, shares, method.tau)                                  # (M, C)
        v = None
        if method.pairs:
            v = torch.stack([x[words] for x in vectors]).to(device)         # (K, M, H)
        h, student_logits = teachers.forward_words(student, batch)          # (M, H), (M, C)
        loss, terms = student_loss(student_logits, h, p, (v, w, kappas), method, rng)
        teachers.step(loss, student, adamw, schedule, scaler)
        log.append({name: x.detach() for name, x in terms.items()})
    return pd.DataFrame(log).astype(float)


# ------------------------------------------------------------------------ the stage

def write_ensemble(args, config, target, seed):
    """logits/<target>/ensemble-s<seed>: the mixture (5) that teaches tsl-sim, of the test words, as
    log p."""
    _, recognisers, shares, _, _ = find_teachers(args, config, target, "tsl-sim", seed)
    if not all((args.artifacts / name).exists() for name in recognisers):
        return  # stage 2 has not made all of them
    settings = dict(data.inputs(args.artifacts, *recognisers), weights=shares.tolist())
    folder = args.artifacts / f"logits/{target}/ensemble-s{seed}"
    if not data.made(folder, settings, args.overwrite):
        logits = torch.stack(load_caches(args.artifacts, recognisers, "test", "logits"))
        log_p = mixture(logits, shares).clamp_min(1e-6).log()               # (N_words, C)
        with data.writing(folder, settings) as partial:
            save_file({"logits": log_p}, partial / "test.safetensors")


def distil(args, config, target, name, seed):
    """Train one student, students/<target>/<method>-s<seed>, unless it is there."""
    if target in config["sources"] and name in (f"tsl-{target}", f"mtmt-{target}"):
        return  # no target teaches itself
    method, recognisers, shares, evaluators, w = find_teachers(args, config, target, name, seed)
    if args.lam is not None and method.lam > 0:
        method = replace(method, lam=args.lam)
    start = config["encoder"]
    recipes = RECIPES
    if method.pooled:  # the student starts from its teacher
        start = args.artifacts / "teachers" / recognisers[0].split("/")[-1]
        recipes = RECIPES_FROM_POOLED
    recipe = teachers.choose_recipe(recipes, config["encoder"], args)
    text = f"data/targets/{target}"
    settings = data.inputs(args.artifacts, text, *recognisers, *evaluators)
    settings.update(recipe, **asdict(method), seed=seed, logits_only=args.logits_only)
    settings["mixture"] = shares.tolist()
    folder = args.artifacts / f"students/{target}/{name}-s{seed}"
    if data.made(folder, settings, args.overwrite):
        return

    begun = time.time()
    new = None if method.pooled else teachers.NEW_HEAD
    student = teachers.load_tagger(start, config["tags"], seed, args.device, new)
    kappas = [data.read_record(args.artifacts / x)["facts"]["kappa"] for x in evaluators]
    logits = load_caches(args.artifacts, recognisers, "train", "logits")
    vectors = load_caches(args.artifacts, evaluators, "train", "vectors")
    by_recognisers = logits, shares.to(args.device)
    by_evaluators = vectors, w.to(args.device), torch.tensor(kappas).to(args.device)
    table = teachers.load_table(args.artifacts, f"{text}/train")
    log = train(student, table, by_recognisers, by_evaluators, method, recipe, seed)
    wrong = log.index[~np.isfinite(log.loss)]
    if len(wrong):
        what = f"its loss is not finite at step {wrong[0] + 1}"
        data.stop(f"{name}-s{seed}, {target}: {what}: try a third of --lr")
    log.insert(0, "step", log.index + 1)
    log = log.groupby(log.index * 10 // len(log)).mean()  # means of ten parts
    print(f"        {name}-s{seed}: loss {log.loss.iloc[0]:.4f} to {log.loss.iloc[-1]:.4f}")
    facts = {"seconds": round(time.time() - begun), "device": args.device}
    with data.writing(folder, settings, **facts) as partial:
        log.round(5).to_csv(partial / "log.csv", index=False)
        for split in ("train", "test"):
            table = teachers.load_table(args.artifacts, f"{text}/{split}")
            said = {"logits": teachers.predict_words(student, table, args.device)}
            z = torch.stack(load_caches(args.artifacts, recognisers, split, "logits"))
            said["mixture"] = mixture(z, shares, method.tau).argmax(-1).byte()  # (N_words,) tags
            save_file(said, partial / f"{split}.safetensors")
        if not args.logits_only:
            student.save_pretrained(partial)
            data.load_tokenizer(config["encoder"]).save_pretrained(partial)


def main(args):
    config = teachers.read_config(args.artifacts)
    targets = teachers.choose_languages("--targets", args.targets, config["targets"])
    for name, target in itertools.product(args.methods, targets):  # to refuse it before training
        choose_method(name, config["sources"], external_teachers(args.artifacts, target))
    for target, seed in itertools.product(targets, args.seeds):
        write_ensemble(args, config, target, seed)
        for name in args.methods:
            distil(args, config, target, name, seed)
    print(f"stage 3 done: {len(targets)} targets, {len(args.methods)} methods, seeds {args.seeds}")


if __name__ == "__main__":
    main(parse_args())
