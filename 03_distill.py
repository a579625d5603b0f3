"""Stage 3: distil a student for every target from what the teachers said about its unlabelled text.

    python 03_distill.py                                          the default methods, three seeds each
    python 03_distill.py --methods mtmt mtmt-nogamma --seeds 0    an ablation
    python 03_distill.py --methods mtmt --rounds 3                progressive rounds

Reads   artifacts/data/targets (no tags there), artifacts/logits, artifacts/weights: never a teacher, never gold; of
        teachers no more than the config.json that says what a cache was made from; --rounds calls stage 2 in between
Writes  artifacts/students/<target>/<method>-s<seed>/   the student, its test logits, its losses by term (log.csv)
        artifacts/logits/<target>/{ensemble,vote,bea}   the teachers combined without any student

Equation numbers are those of the README's section on the method.
"""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

data = importlib.import_module("01_data")  # how artifacts are read and written; the digit forbids a plain import

SHARED = {  # what a method does unless METHODS says otherwise
    "weights": "similarity",  # of the sources: similarity, Eq. (4); uniform; sentence, each sentence's own a of Eq. (4)
    "labels": "soft",         # the mixture p, Eq. (5); hard, its best tag; vote, the teachers' majority; bea
    "loss": "mse",            # Eq. (6); kl, its form at a temperature
    "pairs": False,           # True is MTMT: evaluators, pairs of words and Eq. (9); False is Eq. (6) alone
    "similarity": True,       # with pairs: learn from the evaluators, Eq. (7)
    "alpha": True, "beta": True, "gamma": True,  # with pairs: the weights of Eq. (8)
    "head": "fresh",          # teachers: start from the mean of theirs
    "head_scale": 1.0,        # of the head's learning rate
}  # fmt: skip
METHODS = {  # what each changes; tsl-<source> and mtmt-<source> are tsl-sim and mtmt with one source's teachers only
    "tsl-avg": {"weights": "uniform"},
    "tsl-sim": {},
    "tsl-sentence": {"weights": "sentence"},
    "tsl-kl": {"loss": "kl"},
    "tsl-hard": {"labels": "hard"},
    "tsl-vote": {"labels": "vote"},
    "tsl-bea": {"labels": "bea"},
    # a control: Eq. (6) over the words of mtmt's class-balanced pairs, and nothing else of mtmt
    "tsl-balanced": {"pairs": True, "alpha": False, "beta": False, "gamma": False, "similarity": False},
    "mtmt": {"pairs": True},
    "mtmt-avg": {"pairs": True, "weights": "uniform"},
    "mtmt-noalpha": {"pairs": True, "alpha": False},
    "mtmt-nobeta": {"pairs": True, "beta": False},
    "mtmt-nogamma": {"pairs": True, "gamma": False},
    "mtmt-noweights": {"pairs": True, "alpha": False, "beta": False, "gamma": False},
    "mtmt-nosim": {"pairs": True, "similarity": False},
    "mtmt-slowhead": {"pairs": True, "head_scale": 1e-3},  # the released recipe: learning rate / 1000 on a fresh head
    "mtmt-teacherhead": {"pairs": True, "head_scale": 1e-3, "head": "teachers"},
}
RECIPES = {  # by size of the encoder; base is TSL's student (Wu et al. 2020, Sec. 4.1)
    "base": {"lr": 1e-4, "epochs": 3, "batch_size": 32, "freeze": 3},
    "small": {"lr": 6e-4, "epochs": 2, "batch_size": 16, "freeze": 0},
    "tiny": {"lr": 3e-3, "epochs": 5, "batch_size": 32, "freeze": 0},
}
SETTLED = 0.02  # progressive rounds stop when fewer entity words than this change their tag


def parse_args(argv=None):
    p = data.Parser(description=__doc__.splitlines()[0])
    # what
    p.add_argument("--targets", nargs="+", metavar="LANG", help="languages to distil into; their tags are never read")
    p.add_argument("--methods", nargs="+", default=["tsl-avg", "tsl-sim", "mtmt"], metavar="METHOD",
                   help="tsl-<source>, mtmt-<source>, " + ", ".join(METHODS))  # fmt: skip
    p.add_argument("--seeds", nargs="+", type=data.seed, default=[0, 1, 2], help="a student for each")
    p.add_argument("--teacher-seed", type=data.seed, default=0, help="the teachers that every student learns from")
    p.add_argument("--rounds", type=data.positive, default=1, help="of mtmt: teachers learn from the student, and again")
    # how
    p.add_argument("--lambda", dest="lam", type=data.not_negative, default=1.0, help="of the similarity loss in Eq. (9)")
    p.add_argument("--temperature", type=data.above_zero, default=2.0, help="tau of tsl-kl's loss, Eq. (6)")
    p.add_argument("--lr", type=data.above_zero, help="peak learning rate; default by encoder size")
    p.add_argument("--epochs", type=data.positive, help="passes over the target's text")
    p.add_argument("--batch-size", type=data.positive, help="sentences of average length a step")
    p.add_argument("--freeze", type=int, help="bottom layers kept as they are, with the embeddings; 0 trains all")
    data.common_flags(p)
    args = p.parse_args(argv)
    if args.rounds > 1 and args.teacher_seed:
        raise data.UserError("--rounds begins with the teachers of seed 0: drop --teacher-seed")
    return args


# ------------------------------------------------------------------------ what the teachers say
# K teachers, M words, C tags, P pairs of words (i, j).

def mixture(teacher_logits, weights, tau=1.0):
    """Eq. (5): p = sum_k w_k softmax(z_k / tau).  teacher_logits (K, M, C), weights (K,) or (M, K)  ->  (M, C)"""
    probs = torch.softmax(teacher_logits.float() / tau, dim=-1)                 # (K, M, C)
    return torch.einsum("kmc,mk->mc", probs, weights.expand(probs.shape[1], -1))


def vote(teacher_logits, weights):
    """The tag most teachers choose, as one-hot rows (M, C); the mixture (5) decides between equals."""
    tags = F.one_hot(teacher_logits.argmax(-1), teacher_logits.shape[-1])       # (K, M, C)
    return hard(tags.sum(0) + 0.5 * mixture(teacher_logits, weights))           # half a vote at most


def hard(p):
    """One-hot rows (M, C) of the most probable tag."""
    return F.one_hot(p.argmax(-1), p.shape[-1]).float()


def bea(tags, C, a=1.0, b=1.0, steps=50):
    """Bayesian ensemble aggregation, token level (Rahimi et al. 2019): Dawid-Skene with Dirichlet priors, mean field.

    Letters as in the paper: pi are the tags' frequencies, V^j_kl = p(teacher j says l | the tag is k), b and a their
    pseudo-counts; so k is a tag here and j a teacher.
    tags (K, N) int, each teacher's tag of each word  ->  r (N, C), the posterior of the true tag
    """
    said = F.one_hot(tags, C).double()                                          # (K, N, C): [y_ij = l]
    r = said.mean(0)                                                            # (N, C): start from the vote
    for _ in range(steps):
        log_pi = torch.digamma(b + r.sum(0)) - torch.digamma(torch.tensor(C * b + len(r)))           # (C,)
        counts = torch.einsum("nk,jnl->jkl", r, said)                           # (K, C, C): true k, said l
        log_V = torch.digamma(a + counts) - torch.digamma(C * a + counts.sum(-1, keepdim=True))
        new = torch.softmax(log_pi + torch.einsum("jnl,jkl->nk", said, log_V), dim=-1)
        moved, r = (new - r).abs().max(), new
        if moved < 1e-6:
            break
    return r.float()


def teacher_similarity(vectors, weights, i, j):
    """t_ij = sum_k w_k sigmoid(cos(v_i^k, v_j^k)), Eq. (7).  unit vectors (K, M, D), i, j (P,)  ->  (P,)"""
    cos = (vectors[:, i].float() * vectors[:, j].float()).sum(-1)               # (K, P)
    return torch.einsum("kp,pk->p", torch.sigmoid(cos), weights.expand(vectors.shape[1], -1)[i])


# ------------------------------------------------------------------------ the student's loss

def squared_error(student_logits, p):
    """Eq. (6): ||q - p||^2 of every word, summed over the tags (TSL also divides by C).  (M, C), (M, C)  ->  (M,)"""
    return (torch.softmax(student_logits, dim=-1) - p).square().sum(-1)


def soft_target_loss(student_logits, p, tau):
    """KL(p || q) of every word at temperature tau, times tau^2 (Hinton et al. 2015, Sec. 2).  (M, C), (M, C)  ->  (M,)

    Softening shrinks gradients as 1 / tau^2; the factor keeps all terms on one scale.
    """
    log_q = F.log_softmax(student_logits / tau, dim=-1)                         # (M, C)
    return tau**2 * (torch.xlogy(p, p) - p * log_q).sum(-1)


def similarity_loss(h, i, j, t):
    """Eq. (7): BCE(sigmoid(cos(h_i, h_j)), t_ij) of every pair.  h (M, H), i, j (P,), t (P,)  ->  (P,)

    It cannot fall under the entropy of t; its gradient with respect to the cosine is sigmoid(cos) - t.
    """
    cos = F.cosine_similarity(h[i], h[j], dim=-1)                               # (P,)
    return F.binary_cross_entropy_with_logits(cos, t, reduction="none")         # takes the sigmoid of cos itself


def entropy(t):
    """H(t), the floor of the similarity loss; for t in [0.2689, 0.7311] it lies in [0.5822, 0.6931].  (P,)  ->  (P,)"""
    return -torch.xlogy(t, t) - torch.xlogy(1 - t, 1 - t)


def alpha(p):
    """Eq. (8): (max_c p_ic)^2, how sure the recognisers are of a word.  (M, C)  ->  (M,)"""
    return p.max(-1).values.square()


def beta(t):
    """Eq. (8): min(1, (2 t - 1)^2 + 1/2), how sure the evaluators are of a pair, in [0.5, 0.7136].  (P,)  ->  (P,)"""
    return ((2 * t - 1).square() + 0.5).clamp(max=1)


def gamma(p_i, p_j, t):
    """Eq. (8): 1 - |sigmoid(cos(p_i, p_j)) - t|, how well the two teachers agree.  (P, C), (P, C), (P,)  ->  (P,)"""
    return 1 - (torch.sigmoid(F.cosine_similarity(p_i, p_j, dim=-1)) - t).abs()


# ------------------------------------------------------------------------ training

class Teachers:
    """The cached words of one target's teachers, read by slices, and the weights they are mixed with."""

    def __init__(self, artifacts, target, sources, method, seed, suffix, tags):
        logits, weights = artifacts / "logits" / target, artifacts / "weights" / target
        self.recognisers = [logits / f"recogniser-{s}-s{seed}{suffix}" for s in sources]
        self.evaluators = [logits / f"evaluator-{s}-s{seed}{suffix}" for s in sources if method["pairs"]]
        self.method, self.made_from = method, {"pieces": {}}
        for folder in self.recognisers + self.evaluators + [weights] * (method["weights"] == "sentence"):
            config = data.opened(folder, "02_teachers.py")
            if config.get("tags", tags) != tags:
                raise data.UserError(f"{folder}: tags {config['tags']}, not {tags}: run python 02_teachers.py --overwrite")
            self.made_from["pieces"][folder.relative_to(artifacts).as_posix()] = data.fingerprint(config["files"])
        self.weights = torch.full((len(sources),), 1 / len(sources))                                    # (K,)
        if len(sources) > 1 and method["weights"] != "uniform":
            known = read_weights(artifacts, target, sources)
            self.weights = torch.tensor(list(known.values()))
            self.made_from["weights"] = {s: round(w, 6) for s, w in known.items()}
        if method["weights"] == "sentence":
            self.by_sentence = load_file(weights / "sentences.safetensors")["sentence"].float()         # (N, K)
        self.logits = [data.Rows(folder / "train.safetensors", "logits") for folder in self.recognisers]
        self.vectors = [data.Rows(folder / "train.safetensors", "vectors") for folder in self.evaluators]
        if method["labels"] == "bea":
            everything = [rows[[(0, rows.shape[0])]].argmax(-1) for rows in self.logits]
            self.posterior = bea(torch.stack(everything), len(tags))                                    # (N_words, C)

    def look_up(self, batch, device, tau):
        """What the teachers say of a batch: p (M, C), vectors (K, M, D) or None, weights (K,) or (M, K)."""
        weights = self.by_sentence[batch["sentence"].cpu()] if self.method["weights"] == "sentence" else self.weights
        weights, spans = weights.to(device), batch["spans"]
        logits = torch.stack([rows[spans] for rows in self.logits]).to(device)                          # (K, M, C)
        vectors = torch.stack([rows[spans] for rows in self.vectors]).to(device) if self.vectors else None
        labels = self.method["labels"]
        if labels == "bea":
            p = torch.cat([self.posterior[start:stop] for start, stop in spans]).to(device)
        else:
            p = vote(logits, weights) if labels == "vote" else mixture(logits, weights, tau)
        return hard(p) if labels == "hard" else p, vectors, weights


def train(student, table, teachers, method, recipe, args, seed):
    """Distil into `student` from cached teachers alone; returns a row of mean loss terms for every epoch."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)  # of batches, of pairs
    device = next(student.parameters()).device
    data.freeze(student, recipe["freeze"])
    steps = len(data.plan_batches(table, recipe["batch_size"]))
    total = recipe["epochs"] * steps
    optimizer, schedule = data.optimizer_for(student, recipe["lr"], total, head_scale=method["head_scale"])
    scaler = torch.amp.GradScaler(device.type, enabled=data.needs_scaler(device))  # for fp16; elsewhere it does nothing
    names = ["loss", "recognition", *(["similarity", "floor", "alpha", "beta", "gamma"] if method["pairs"] else [])]
    terms = torch.zeros(recipe["epochs"], len(names), device=device)
    tau = args.temperature if method["loss"] == "kl" else 1.0
    student.train()
    for epoch, batch in data.epochs(table, recipe["epochs"], recipe["batch_size"], rng, device, "student"):
        p, vectors, w = teachers.look_up(batch, device, tau)                     # (M, C), (K, M, D)
        with data.autocast(student):
            h = data.word_states(student, batch)                                 # (M, H)
            student_logits = student.classifier(student.dropout(h)).float()      # (M, C)
        h = h.float()                                                            # losses are in fp32
        kl = method["loss"] == "kl"
        ner = soft_target_loss(student_logits, p, tau) if kl else squared_error(student_logits, p)      # (M,)
        loss = ner.mean()
        row = [loss, loss]                                                       # the total and its only term
        if method["pairs"]:
            i, j = data.draw_pairs(p.argmax(-1), generator)                      # (P,) by predictions, never by gold
            t = teacher_similarity(vectors, w, i, j)                             # (P,)
            sim = similarity_loss(h, i, j, t)                                    # (P,)
            a = alpha(p) if method["alpha"] else torch.ones_like(ner)            # (M,)
            b = beta(t) if method["beta"] else torch.ones_like(t)                # (P,)
            g = gamma(p[i], p[j], t) if method["gamma"] else torch.ones_like(t)  # (P,)
            lam = args.lam if method["similarity"] else 0.0
            if len(i):  # a single word makes no pair: the mean above stands
                # Eq. (9)
                loss = 0.5 * (g * a[i] * ner[i]).mean() + 0.5 * (g * a[j] * ner[j]).mean() + lam * (g * b * sim).mean()
                row = [loss, ner.mean(), (sim - entropy(t)).mean(), entropy(t).mean(), a.mean(), b.mean(), g.mean()]
        terms[epoch, : len(row)] += torch.stack(row).detach() / steps
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        optimizer.zero_grad()
    return [{"epoch": epoch + 1, **dict(zip(names, row))} for epoch, row in enumerate(terms.tolist())]


# ------------------------------------------------------------------------ the stage

def read_weights(artifacts, target, sources):
    """{source: weight} of a target for the sources that teach it: Eq. (4) as stage 2 wrote it, or a hand since."""
    path = artifacts / "weights" / f"{target}.json"
    try:
        weights = {s: float(json.loads(path.read_text())[s]) for s in sources}
    except FileNotFoundError:
        raise data.UserError(f"{path}: missing: run python 02_teachers.py first") from None
    except (ValueError, KeyError, TypeError):
        raise data.UserError(f"{path}: damaged: remove it and run python 02_teachers.py") from None
    if min(weights.values()) < 0 or abs(sum(weights.values()) - 1) > 1e-3:
        raise data.UserError(f"{path}: weights must be positive with sum 1: remove it and run python 02_teachers.py")
    return weights


def resolve(name, target, sources):
    """A method's settings and its teachers' languages for a target; None where a source would teach itself."""
    family, _, rest = name.partition("-")
    if name in METHODS:
        return SHARED | METHODS[name], [s for s in sources if s != target]
    if family in ("tsl", "mtmt") and rest in sources:
        return (SHARED | {"pairs": family == "mtmt"}, [rest]) if rest != target else None
    raise data.UserError(f"--methods {name}: not one of {' '.join(METHODS)} nor tsl-<source> or mtmt-<source>")


def of_round(round_, seed):
    """Name of a round's student; the first round is plain mtmt."""
    return f"mtmt-r{round_}-s{seed}" if round_ > 1 else f"mtmt-s{seed}"


class Stage:
    """What every step needs: flags, data/config.json, the encoder, the device."""

    def __init__(self, args):
        self.args, self.artifacts, self.device = args, args.artifacts, data.pick_device()
        self.config = data.open_data(args.artifacts)
        self.encoder = data.encoder_path(args.artifacts, self.config["encoder"])
        self.recipe = dict(RECIPES[data.encoder_size(self.encoder)])
        self.recipe |= {name: getattr(args, name) for name in self.recipe if getattr(args, name) is not None}
        self.targets = data.subset("--targets", args.targets, self.config["targets"])
        self.taught_by = f"-t{args.teacher_seed}" if args.teacher_seed else ""  # other teachers, another name
        for name in args.methods:
            resolve(name, None, self.config["sources"])  # an unknown name is refused before anything is trained

    def table(self, target, split):
        return datasets.load_from_disk(str(self.artifacts / "data" / "targets" / target / split))

    def teachers(self, target, sources, method, seed, suffix=""):
        """A target's teachers, once their caches are sure to be of the text, sources and checkpoints that there are."""
        teachers = Teachers(self.artifacts, target, sources, method, seed, suffix, self.config["tags"])
        for name in teachers.made_from["pieces"]:
            if not data.is_current(self.artifacts, name, self.config["of"]):
                raise data.UserError(f"{self.artifacts / name}: made from other data or teachers than there are: run "
                                     "python 02_teachers.py --overwrite")  # fmt: skip
        if len(sources) > 1:
            teachers.made_from["pieces"]["data/sources"] = self.config["of"]["data/sources"]
        return teachers

    def combine(self, target):
        """Write what the teachers together say of a target's test words: mixture, vote and BEA, as log-probabilities."""
        tags = self.config["tags"]
        method, sources = resolve("tsl-sim", target, self.config["sources"])  # for its teachers and weights
        teachers = self.teachers(target, sources, method, self.args.teacher_seed)
        for name in ("ensemble", "vote", "bea"):
            folder = self.artifacts / "logits" / target / (name + self.taught_by)
            if data.finished(folder, teachers.made_from, self.args.overwrite):
                continue
            with data.publishing(folder, teachers.made_from, {"tags": tags}) as partial:
                logits = torch.stack([load_file(f / "test.safetensors")["logits"] for f in teachers.recognisers])
                if name == "bea":
                    p = bea(logits.argmax(-1), len(tags))
                else:
                    p = (vote if name == "vote" else mixture)(logits, teachers.weights)
                save_file({"logits": p.clamp_min(1e-6).log().half()}, partial / "test.safetensors")  # their softmax is p

    def distil(self, target, name, seed, round_=1):
        """Train one student unless it is there."""
        if (resolved := resolve(name, target, self.config["sources"])) is None:
            return
        (method, sources), suffix = resolved, f"-r{round_}" if round_ > 1 else ""
        name += suffix or self.taught_by
        teacher_seed = seed if round_ > 1 else self.args.teacher_seed  # later teachers learned from this student
        teachers = self.teachers(target, sources, method, teacher_seed, suffix)
        folder, text = self.artifacts / "students" / target / f"{name}-s{seed}", f"data/targets/{target}"
        made_from = teachers.made_from | {"method": method, "seed": seed, **self.recipe}
        made_from["pieces"][text] = self.config["of"][text]
        if round_ > 1:
            before = f"students/{target}/{of_round(round_ - 1, seed)}"
            config = data.opened(self.artifacts / before, "03_distill.py")
            made_from["pieces"][before] = data.fingerprint(config["files"])
        made_from |= {"lambda": self.args.lam} if method["pairs"] else {}
        made_from |= {"temperature": self.args.temperature} if method["loss"] == "kl" else {}
        if data.finished(folder, made_from, self.args.overwrite):
            return
        facts = {"tags": self.config["tags"], "method": name}
        with data.publishing(folder, made_from, facts) as partial:
            student = data.load_tagger(self.encoder, self.config["tags"], seed, self.device)
            if method["head"] == "teachers":
                heads = [load_file(f / "head.safetensors") for f in teachers.recognisers]
                mean = {k: sum(w * h[k] for w, h in zip(teachers.weights, heads)) for k in ("weight", "bias")}
                student.classifier.load_state_dict(mean)
            log = train(student, self.table(target, "train"), teachers, method, self.recipe, self.args, seed)
            data.write_csv(partial / "log.csv", log[0].keys(), log)
            logits = data.over_words(student, self.table(target, "test"), student.classifier, self.device)
            save_file({"logits": logits}, partial / "test.safetensors")
            student.save_pretrained(partial)
            transformers.AutoTokenizer.from_pretrained(self.encoder).save_pretrained(partial)
        terms = ", ".join(f"{term} {value:.4f}" for term, value in log[-1].items() if term != "epoch")
        print(f"        {target} {folder.name}: {terms}")

    def progress(self, target, seed):
        """Eq. (10): stage 2 teaches the teachers what the student found, a new student follows, until little changes."""
        def tags(round_):
            folder = self.artifacts / "students" / target / of_round(round_, seed)
            return load_file(folder / "test.safetensors")["logits"].argmax(-1)

        for round_ in range(2, self.args.rounds + 1):
            command = [sys.executable, str(Path(__file__).with_name("02_teachers.py")), "--round", str(round_),
                       "--targets", target, "--seeds", str(seed), "--artifacts", str(self.artifacts)]  # fmt: skip
            if subprocess.run(command + ["--overwrite"] * self.args.overwrite).returncode:
                raise data.UserError(f"round {round_} of {target} stopped in stage 2: see the line above")
            self.distil(target, "mtmt", seed, round_)
            before, after = tags(round_ - 1), tags(round_)
            entity = (before > 0) | (after > 0)
            changed = ((before != after) & entity).sum().item() / max(1, entity.sum().item())
            print(f"        {target} round {round_}: {changed:.1%} of entity words changed their tag")
            if changed < SETTLED:
                break


def main(args):
    stage = Stage(args)
    for target in stage.targets:
        stage.combine(target)
        for name in args.methods:
            for seed in args.seeds:
                stage.distil(target, name, seed)
        if args.rounds > 1:  # rounds are of mtmt, whatever --methods names
            for seed in args.seeds:
                stage.distil(target, "mtmt", seed)
                stage.progress(target, seed)
    print(f"stage 3 done: {len(stage.targets)} targets, {len(args.methods)} methods, {len(args.seeds)} seeds "
          f"-> {args.artifacts}")  # fmt: skip


if __name__ == "__main__":
    data.run(lambda: main(parse_args()))
