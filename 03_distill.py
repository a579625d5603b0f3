"""Stage 3: distil a student for every target from what the teachers said of its unlabelled text.

    python 03_distill.py                                          the default methods, two seeds
    python 03_distill.py --methods mtmt mtmt-nogamma --seeds 0    an ablation

Reads   artifacts/data/targets (no tags there), artifacts/logits, artifacts/weights: of the teachers
        what they said, and the pooled recogniser where a student starts from it; never gold
Writes  artifacts/students/<target>/<method>-s<seed>/        the student, its test logits, log.csv
        artifacts/logits/<target>/{ensemble,vote,bea}-s<seed>  the teachers without a student

Equation numbers are those of the README's section on the method. B sentences, T sub-tokens, C tags,
K sources, H hidden size, M scored words of a batch, P pairs (i, j) of them.
"""

import importlib
import itertools
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

data = importlib.import_module("01_data")  # a leading digit forbids a plain import
teachers = importlib.import_module("02_teachers")  # batches, pairs and the optimiser are as there


# ------------------------------------------------------------------------ the methods

@dataclass(frozen=True)
class Method:
    """What a student learns from, and by which terms of Eq. (9). The defaults are TSL."""

    weights: str = "similarity"  # of the sources: by similarity, Eq. (4), or uniform
    teachers: str = "sources"    # or pooled, or both; then the student starts from the pooled one
    loss: str = "squared"        # Eq. (6): squared error, or kl at temperature tau
    tau: float = 2.0             # temperature of kl; alpha and gamma (8) are meant for tau = 1
    pairs: bool = False          # pairs of words: Eq. (9); without them Eq. (6) alone
    scaled: bool = False         # with pairs: kappa, both words drawn class first, r = p_i . p_j
    balanced: bool = True        # with pairs: (6) over their words, as in (9), or over all words
    similarity: bool = True      # with pairs: the second teachers' task, Eq. (7)
    lam: float = 1.0             # its weight lambda in Eq. (9)
    alpha: bool = True           # with pairs: the weights of Eq. (8)
    beta: bool = True
    gamma: bool = True


TSL, MTMT = Method(), Method(pairs=True)
UNWEIGHTED = replace(MTMT, alpha=False, beta=False, gamma=False)
SELF = Method(teachers="pooled", loss="kl")
METHODS = {  # and tsl-<source>, mtmt-<source>: with one source's teachers alone
    "tsl-avg": replace(TSL, weights="uniform"),
    "tsl-sim": TSL,
    "tsl-kl": replace(TSL, loss="kl"),
    "tsl-balanced": replace(UNWEIGHTED, similarity=False),  # a control: no more than mtmt's words
    "mtmt": MTMT,
    "mtmt-scaled": replace(MTMT, scaled=True),
    "mtmt-scaled-nosim": replace(MTMT, scaled=True, similarity=False),
    "mtmt-avg": replace(MTMT, weights="uniform"),
    "mtmt-noalpha": replace(MTMT, alpha=False),
    "mtmt-nobeta": replace(MTMT, beta=False),
    "mtmt-nogamma": replace(MTMT, gamma=False),
    "mtmt-noweights": UNWEIGHTED,
    "mtmt-nosim": replace(MTMT, similarity=False),
    "self-pooled": SELF,
    "tsl-pooled": replace(SELF, teachers="both"),
    "mtmt-pooled": replace(UNWEIGHTED, teachers="pooled", loss="kl", scaled=True, balanced=False),
}
DEFAULTS = ["tsl-avg", "tsl-sim", "mtmt", "self-pooled", "mtmt-pooled"]
RECIPES = {  # by width of the encoder; base is TSL's student (Wu et al. 2020, Sec. 4.1)
    "base": {"lr": 1e-4, "epochs": 3, "batch_size": 32, "freeze": 3},
    "small": {"lr": 1.5e-4, "epochs": 6, "batch_size": 8, "freeze": 3},
    "tiny": {"lr": 3e-3, "epochs": 5, "batch_size": 32, "freeze": 0},
}
STARTED = {  # of students that start from the pooled recogniser, which has been trained already
    "base": {"lr": 5e-5, "epochs": 3, "batch_size": 32, "freeze": 3},
    "small": {"lr": 1e-4, "epochs": 3, "batch_size": 8, "freeze": 3},
    "tiny": {"lr": 1e-3, "epochs": 3, "batch_size": 32, "freeze": 0},
}


def resolve(name, target, sources, external=()):
    """A method and the sources and external teachers that it has; no source teaches itself."""
    family, _, one = name.partition("-")
    if name in METHODS:
        method, others = METHODS[name], [source for source in sources if source != target]
        if not others and (method.pairs or method.teachers != "sources"):
            raise data.UserError(f"--methods {name} has no evaluator or pooled teacher: try tsl-kl")
        return method, others, external
    if family == "tsl" and one in external:
        return TSL, [], [one]
    if family in ("tsl", "mtmt") and one in sources:
        return MTMT if family == "mtmt" else TSL, [one] * (one != target), []
    known = f"{' '.join(METHODS)} nor tsl-<source or teacher>, mtmt-<source>"
    raise data.UserError(f"--methods {name}: not one of {known}; sources: {' '.join(sources)}")


def parse_args(argv=None):
    p = data.Parser(description=__doc__.splitlines()[0])
    names = "tsl-<source>, mtmt-<source>, " + ", ".join(METHODS)
    p.add_argument("--targets", nargs="+", metavar="LANG", help="languages to distil into")
    p.add_argument("--methods", nargs="+", default=DEFAULTS, help=names)
    p.add_argument("--lambda", dest="lam", type=data.at_least(0, float), help="in Eq. (9); 1")
    p.add_argument("--logits-only", action="store_true", help="keep a student's logits, no model")
    teachers.add_training_flags(p)
    return p.parse_args(argv)


# ------------------------------------------------------------------------ what the teachers say

def mixture(teacher_logits, weights, tau=1.0):
    """Eq. (5): p = sum_k w_k softmax(z_k / tau).

    teacher_logits (K, M, C), weights (K,)  ->  (M, C)
    """
    probs = torch.softmax(teacher_logits.float() / tau, dim=-1)             # (K, M, C)
    return torch.einsum("kmc,k->mc", probs, weights)


def vote(teacher_logits, weights):
    """The tag most teachers choose, as one-hot rows; the mixture (5) decides between equals.

    teacher_logits (K, M, C), weights (K,)  ->  (M, C)
    """
    C = teacher_logits.shape[-1]
    votes = F.one_hot(teacher_logits.argmax(-1), C).sum(0)                  # (M, C)
    best = (votes + 0.5 * mixture(teacher_logits, weights)).argmax(-1)      # half a vote at most
    return F.one_hot(best, C).float()


def bea(teacher_logits, weights=None, a=1.0, b=1.0, steps=50):
    """Bayesian ensemble aggregation, token level (Rahimi et al. 2019): Dawid-Skene, mean field.

    Letters as in the paper, so k is a tag here and j a teacher: pi are the tags' frequencies,
    V^j_kl = p(teacher j says l | the tag is k), b and a their Dirichlet pseudo-counts. What a
    teacher says is its best tag; how far to trust it is learnt here, so weights are not used.
    teacher_logits (K, N, C)  ->  r (N, C), the posterior of the true tag
    """
    C = teacher_logits.shape[-1]
    y = F.one_hot(teacher_logits.argmax(-1), C).double()                    # (K, N, C)
    r = y.mean(0)                                                           # start from the vote
    for _ in range(steps if len(y) > 1 else 0):  # one teacher is taken at its word
        total = torch.tensor(C * b + len(r))
        log_pi = torch.digamma(b + r.sum(0)) - torch.digamma(total)         # (C,)
        counts = torch.einsum("nk,jnl->jkl", r, y)                          # true k, said l
        totals = counts.sum(-1, keepdim=True)
        log_V = torch.digamma(a + counts) - torch.digamma(C * a + totals)   # (K, C, C)
        evidence = torch.einsum("jnl,jkl->nk", y, log_V)
        new = torch.softmax(log_pi + evidence, dim=-1)                      # (N, C)
        moved, r = (new - r).abs().max(), new
        if moved < 1e-6:
            break
    return r.float()


def teacher_similarity(vectors, weights, kappas, i, j):
    """t_ij = sum_k w_k sigmoid(kappa_k cos(v_i^k, v_j^k)), Eq. (7); as published kappa = 1.

    unit vectors (K, M, H), weights and kappas (K,), i, j (P,)  ->  (P,)
    """
    v_i = vectors[:, i].float()                                             # (K, P, H)
    v_j = vectors[:, j].float()
    cos = (v_i * v_j).sum(-1)                                               # (K, P)
    s = torch.sigmoid(kappas[:, None] * cos)
    return torch.einsum("kp,k->p", s, weights)


def external_teachers(artifacts, target):
    """Names of a target's teachers that were not trained here: 02_teachers.py --teacher NAME=..."""
    found = (artifacts / "logits" / target).glob("external-*-s*")  # of any seed: all need them
    return sorted({x.name.removeprefix("external-").rpartition("-s")[0] for x in found})


def find_teachers(args, target, method, sources, external, seed):
    """Names of the caches that a method learns from, and the weights of their mixture: 1 / (K + E)
    for each of E external teachers, the rest for K sources by Eq. (4).

      ->  recognisers, weights (K + E,), evaluators, weights (K,), [the piece that holds weights]
    """
    of = lambda kind, names: [f"logits/{target}/{kind}-{name}-s{seed}" for name in names]
    pooled, one = [f"logits/{target}/pooled-s{seed}"], torch.ones(1)
    if method.teachers == "pooled":
        return pooled, one, [f"logits/{target}/scaled-pooled-s{seed}"], one, []
    K, E, uses = len(sources), len(external), []
    w = torch.ones(K) / K
    if method.weights == "similarity" and K > 1:
        uses = [f"weights/{target}"]
        had = data.read_piece(args.artifacts, uses[0])["settings"]["sources"]
        if had != sources:
            what = f"{uses[0]}: of sources {' '.join(had)}"
            raise data.UserError(f"{what}: run python 02_teachers.py --overwrite")
        a = open_rows(args.artifacts / uses[0] / "sentences.safetensors", "a")[:]
        w = a.mean(0)                                                       # w of Eq. (4)
    weights = torch.cat([K * w, torch.ones(E)]) / (K + E)
    recognisers = of("recogniser", sources) + of("external", external)
    evaluators = of("scaled" if method.scaled else "evaluator", sources)
    if method.teachers == "both":
        recognisers, weights = recognisers + pooled, torch.cat([weights, one]) / 2
    return recognisers, weights, evaluators, w, uses


# ------------------------------------------------------------------------ the student's loss

def squared_error(student_logits, p):
    """Eq. (6): ||q - p||^2 of every word, summed over the tags; TSL also divides by C.

    (M, C), (M, C)  ->  (M,)"""
    q = torch.softmax(student_logits, dim=-1)                               # (M, C)
    return (q - p).square().sum(-1)


def soft_target_loss(student_logits, p, tau):
    """KL(p || q) of every word at temperature tau, times tau^2 (Hinton et al. 2015, Sec. 2).

    Softening shrinks gradients as 1 / tau^2; the factor undoes it.  (M, C), (M, C)  ->  (M,)
    """
    log_q = F.log_softmax(student_logits / tau, dim=-1)                     # (M, C)
    return tau**2 * (torch.xlogy(p, p) - p * log_q).sum(-1)


def similarity_loss(h, i, j, t, kappa=1.0):
    """Eq. (7): BCE(sigmoid(kappa cos(h_i, h_j)), t_ij) of every pair.

    h (M, H), i, j, t (P,)  ->  (P,). It cannot fall under the entropy of t; with kappa = 1 its
    gradient by the cosine is sigmoid(cos) - t."""
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

    r = sigmoid(cos(p_i, p_j)) as published; where t is a probability, so is r = p_i . p_j, that of
    one tag for both.  (P, C), (P, C), (P,)  ->  (P,)
    """
    if scaled:
        r = (p_i * p_j).sum(-1)                                             # (P,)
    else:
        r = torch.sigmoid(F.cosine_similarity(p_i, p_j, dim=-1))
    return 1 - (r - t).abs()


def student_loss(student_logits, h, p, evaluators, method, generator):
    """Eq. (9); without pairs the mean of (6), which is also the first part of (9) if not balanced.

    student_logits (M, C) and states h (M, H) of the student; p (M, C) of the recognisers; of the
    evaluators vectors (K, M, H), weights (K,), kappas (K,)  ->  scalar, {term: scalar} for the log
    """
    if method.loss == "kl":
        e = soft_target_loss(student_logits, p, method.tau)                 # (M,)
    else:
        e = squared_error(student_logits, p)                                # (M,)
    loss, terms = e.mean(), {"recognition": e.mean()}
    if method.pairs and len(e) > 1:  # a lone word has no partner
        vectors, w, kappas = evaluators
        i, j = teachers.draw_pairs(p.argmax(-1), generator, method.scaled)  # (P,) by predictions
        t = teacher_similarity(vectors, w, kappas, i, j)                    # (P,)
        bce = similarity_loss(h, i, j, t, kappa=w @ kappas)                 # (P,)
        a = alpha(p) if method.alpha else torch.ones_like(e)                # (M,)
        b = beta(t) if method.beta else torch.ones_like(t)                  # (P,)
        g = gamma(p[i], p[j], t, method.scaled) if method.gamma else torch.ones_like(t)
        if method.balanced:
            loss = 0.5 * (g * a[i] * e[i]).mean() + 0.5 * (g * a[j] * e[j]).mean()
        if method.similarity:
            loss = loss + method.lam * (g * b * bce).mean()                 # Eq. (9)
        terms["similarity"] = (bce - entropy(t)).mean()                     # above its floor
        terms |= {"alpha": a.mean(), "beta": b.mean(), "gamma": g.mean()}
    return loss, {"loss": loss, **terms}


# ------------------------------------------------------------------------ training

def open_rows(file, name):
    """A tensor of a safetensors file, of which only the rows asked for are read."""
    with data.explained(f"{file}: damaged", "remove its folder, run python 02_teachers.py"):
        return safe_open(file, "pt").get_slice(name)


def read_rows(files, name, batch):
    """What K caches have of a batch's words: (K, M, C or H). Each file is opened anew, since what
    was read of an open one stays in memory."""
    said = []
    for file in files:
        rows = open_rows(file, name)
        said.append(torch.cat([rows[start:stop] for start, stop in batch["spans"]]))
    return torch.stack(said).to(batch["f"].device)


def train(student, table, recognisers, evaluators, method, recipe, seed):
    """Distil into `student` from cached teachers alone; returns a row of mean terms an epoch.

    recognisers: files of their caches, weights (K,); evaluators: files, weights (K,), kappas (K,)
    """
    rng = np.random.default_rng(seed)                                       # of batches
    generator = torch.Generator().manual_seed(seed)                         # of pairs
    device, size = next(student.parameters()).device.type, recipe["batch_size"]
    teachers.freeze(student, recipe["freeze"])
    steps = len(teachers.plan_batches(table, size))
    step = teachers.optimiser(student, recipe["lr"], recipe["epochs"] * steps)
    log = [{"epoch": number + 1} for number in range(recipe["epochs"])]
    tau = method.tau if method.loss == "kl" else 1.0  # teachers are softened as the student is
    logit_files, weights = recognisers
    vector_files, shares, kappas = evaluators
    weights, shares = weights.to(device), shares.to(device)
    kappas = kappas.to(device)
    student.train()
    for epoch, batch in teachers.epochs(table, recipe["epochs"], size, rng, device):
        p = mixture(read_rows(logit_files, "logits", batch), weights, tau)  # (M, C)
        said = None
        if method.pairs:
            vectors = read_rows(vector_files, "vectors", batch)             # (K, M, H)
            said = vectors, shares, kappas
        with teachers.autocast(student):
            h, student_logits = teachers.read_words(student, batch)         # (M, H), (M, C)
        loss, terms = student_loss(student_logits, h, p, said, method, generator)
        step(loss)
        row = log[epoch]
        for name, value in terms.items():
            row[name] = row.get(name, 0) + value.detach() / steps
    return [{name: float(value) for name, value in row.items()} for row in log]


# ------------------------------------------------------------------------ the stage

def read_facts(args, config, caches):
    """The facts of caches; tags in another order than ours would make their average nonsense."""
    facts = [data.read_piece(args.artifacts, name)["facts"] for name in caches]
    for name, said in zip(caches, facts):
        if said["tags"] != config["tags"]:
            raise data.UserError(f"{name}: tags {said['tags']}: run 02_teachers.py --overwrite")
    return facts


def combine(args, config, target, seed):
    """What the teachers together say of the test words: mixture, vote and BEA, as log p."""
    external = external_teachers(args.artifacts, target)
    taught_by = resolve("tsl-sim", target, config["sources"], external)
    recognisers, weights, _, _, uses = find_teachers(args, target, *taught_by, seed)
    if not recognisers:
        raise data.UserError(f"{target} has no teachers: run 02_teachers.py --teacher NAME=PATH")
    read_facts(args, config, recognisers)
    for name, way in {"ensemble": mixture, "vote": vote, "bea": bea}.items():

        def build(folder):
            files = [args.artifacts / cache / "test.safetensors" for cache in recognisers]
            logits = torch.stack([open_rows(file, "logits")[:] for file in files])
            log_p = way(logits, weights).clamp_min(1e-6).log()              # (N_words, C)
            save_file({"logits": log_p.half()}, folder / "test.safetensors")

        data.make(args, f"logits/{target}/{name}-s{seed}", build, recognisers + uses)


def distil(args, config, target, name, seed):
    """Train one student, students/<target>/<method>-s<seed>, unless it is there."""
    external = external_teachers(args.artifacts, target)
    method, sources, external = resolve(name, target, config["sources"], external)
    if not sources + external:
        return
    if args.lam is not None and method.pairs:
        method = replace(method, lam=args.lam)
    found = find_teachers(args, target, method, sources, external, seed)
    recognisers, weights, evaluators, shares, uses = found
    evaluators = evaluators if method.pairs else []
    read_facts(args, config, recognisers)
    facts = read_facts(args, config, evaluators)
    kappas = torch.tensor([said["kappa"] for said in facts])
    text, start, recipes = f"data/targets/{target}", config["encoder"], RECIPES
    if method.teachers != "sources":
        below = data.read_piece(args.artifacts, recognisers[-1])["pieces"]  # of the pooled cache
        pooled = next(name for name in below if name.startswith("teachers/"))
        start, uses, recipes = args.artifacts / pooled, [*uses, pooled], STARTED
    recipe = teachers.choose_recipe(recipes, config["encoder"], args)

    def build(folder):
        student = teachers.load_tagger(start, config["tags"], seed, args.device)
        of = lambda cache: args.artifacts / cache / "train.safetensors"
        said = [of(cache) for cache in recognisers], weights
        pairs_said = [of(cache) for cache in evaluators], shares, kappas
        table = teachers.load_table(args.artifacts, f"{text}/train")
        log = train(student, table, said, pairs_said, method, recipe, seed)
        pd.DataFrame(log).to_csv(folder / "log.csv", index=False)
        table = teachers.load_table(args.artifacts, f"{text}/test")
        logits = teachers.over_words(student, table, args.device)
        save_file({"logits": logits}, folder / "test.safetensors")
        if not args.logits_only:
            student.save_pretrained(folder)
            data.load_tokenizer(config["encoder"]).save_pretrained(folder)
        print(f"        {name}-s{seed}: loss {log[0]['loss']:.4f} to {log[-1]['loss']:.4f}")

    # A record keeps what differs from the defaults: a new field leaves old students valid.
    differs = {key: x for key, x in asdict(method).items() if x != getattr(Method, key)}
    uses = [text, *recognisers, *evaluators, *uses]
    piece = f"students/{target}/{name}-s{seed}"
    whole = args.logits_only or (args.artifacts / piece / "model.safetensors").exists()
    anew = args.overwrite and not whole  # where --logits-only kept no model
    data.make(args, piece, build, uses, replace=anew, seed=seed, method=differs, **recipe)


def main(args):
    config = teachers.open_data(args.artifacts)
    targets = teachers.subset("--targets", args.targets, config["targets"])
    for name, target in itertools.product(args.methods, targets):
        external = external_teachers(args.artifacts, target)
        resolve(name, None, config["sources"], external)  # refused before any training
    for target, seed in itertools.product(targets, args.seeds):
        combine(args, config, target, seed)
        for name in args.methods:
            distil(args, config, target, name, seed)
    print(f"stage 3 done: {len(targets)} targets, {len(args.methods)} methods, seeds {args.seeds}")


if __name__ == "__main__":
    data.run(main, parse_args)
