"""Stage 2: train two teachers per source, weigh the sources for every target, and cache what the teachers say.

    python 02_teachers.py                       everything that is missing
    python 02_teachers.py --sources en          one source's teachers and caches: a job of an array
    python 02_teachers.py --oracle              also the supervised upper bound, which reads target labels
    python 02_teachers.py --round 2             teachers of one target, taught by its student: stage 3 calls this

Reads   artifacts/data (artifacts/gold with --oracle alone, artifacts/students with --round alone)
Writes  artifacts/teachers/recogniser-<source>-s<seed>   tags words, Eq. (1)
        artifacts/teachers/evaluator-<source>-s<seed>    tells whether two words have one class, Eq. (2)
        artifacts/teachers/pooled-s<seed>                one recogniser on all sources' labels: a baseline
        artifacts/weights/<target>.json                  source -> weight, Eqs. (3) and (4)
        artifacts/logits/<target>/<teacher>/             logits or vectors of every target word, in corpus order

Equation numbers are those of the README's section on the method.
"""

import functools
import importlib
import json
import os
import shutil

import datasets
import numpy as np
import seqeval.metrics
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

data = importlib.import_module("01_data")  # how artifacts are read and written; the digit forbids a plain import

RECIPES = {  # by size of the encoder; base is TSL's (Wu et al. 2020, Sec. 4.1), the others were tried on source dev
    "base": {"lr": 5e-5, "epochs": 3, "batch_size": 32, "freeze": 3},
    "small": {"lr": 6e-4, "epochs": 4, "batch_size": 32, "freeze": 0},
    "tiny": {"lr": 2e-3, "epochs": 4, "batch_size": 16, "freeze": 0},
}
SIMILARITY = {"rank": 64, "lr": 1e-4, "weight_decay": 1e-5, "batch_size": 32, "epochs": 10, "ridge": 0.01}  # TSL, 3.3
CONFIDENCE = 0.9  # of a pseudo-label, to be trusted in rounds after the first
IGNORED = -100  # the tag of a word that is not trained on


def parse_args(argv=None):
    p = data.Parser(description=__doc__.splitlines()[0])
    # what
    p.add_argument("--sources", nargs="+", metavar="LANG", help="train these sources' teachers only")
    p.add_argument("--targets", nargs="+", metavar="LANG", help="fill the caches of these targets only")
    p.add_argument("--seeds", nargs="+", type=data.seed, default=[0], help="a teacher for each; students learn from one")
    p.add_argument("--oracle", action="store_true", help="train `supervised` on the targets' gold: an upper bound")
    p.add_argument("--round", type=data.positive, default=1, help="2, 3, ...: an epoch from students' labels, Eq. (10)")
    # how
    p.add_argument("--lr", type=data.above_zero, help="peak learning rate; default by encoder size")
    p.add_argument("--epochs", type=data.positive, help="passes over the source")
    p.add_argument("--batch-size", type=data.positive, help="sentences of average length a step")
    p.add_argument("--freeze", type=int, help="bottom layers kept as they are, with the embeddings; 0 trains all")
    p.add_argument("--tau", choices=["variance", "std"], default="variance", help="rule for tau_w of Eq. (4)")
    data.common_flags(p)
    args = p.parse_args(argv)
    if args.round > 1 and (args.sources or args.oracle):
        raise data.UserError("--round is of all sources of a target and of no oracle: drop --sources and --oracle")
    return args


# ------------------------------------------------------------------------ the two teachers

def recogniser_loss(model, batch, generator):
    """Eq. (1): cross-entropy over the scored words f. It draws nothing; evaluator_loss needs the generator."""
    logits = model.classifier(model.dropout(data.word_states(model, batch)))     # (M, C)
    known = (batch["tags"] != IGNORED).sum().clamp_min(1)                        # of pseudo-labels perhaps none
    return F.cross_entropy(logits.float(), batch["tags"], ignore_index=IGNORED, reduction="sum") / known


def evaluator_loss(model, batch, generator):
    """Eq. (2): s_ij = sigmoid(cos(v_i, v_j)) against y_ij = [tag_i = tag_j], over balanced pairs of the batch.

    s lies in [0.2689, 0.7311], so the loss cannot fall under ln(1 + 1/e) = 0.3133.
    """
    known = batch["tags"] != IGNORED
    v, tags = data.word_states(model, batch)[known].float(), batch["tags"][known]
    i, j = data.draw_pairs(tags, generator)                                      # (P,), (P,)
    cos = F.cosine_similarity(v[i], v[j], dim=-1)
    same = (tags[i] == tags[j]).float()
    return F.binary_cross_entropy_with_logits(cos, same, reduction="sum") / max(1, len(i))  # sigmoid is in it


def train(model, table, loss_of, recipe, seed, title):
    """Fine-tune `model` on a tagged table, keep the last step's weights as TSL does, return the mean loss by epoch."""
    torch.manual_seed(seed)                                                      # of dropout
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)  # of batches, of pairs
    device = next(model.parameters()).device
    data.freeze(model, recipe["freeze"])
    steps = len(data.plan_batches(table, recipe["batch_size"]))
    optimizer, schedule = data.optimizer_for(model, recipe["lr"], recipe["epochs"] * steps)
    scaler = torch.amp.GradScaler(device.type, enabled=data.needs_scaler(device))  # for fp16; elsewhere it does nothing
    losses = torch.zeros(recipe["epochs"], device=device)
    model.train()
    for epoch, batch in data.epochs(table, recipe["epochs"], recipe["batch_size"], rng, device, title):
        with data.autocast(model):
            loss = loss_of(model, batch, generator)
        losses[epoch] += loss.detach() / steps
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        optimizer.zero_grad()
    return [round(x, 4) for x in losses.tolist()]


def tag_score(model, table, tags, device):
    """Micro F1 in percent of a recogniser on the windows of a tagged table (seqeval, conlleval reading)."""
    logits = data.over_words(model, table, model.classifier, device)
    found = [logits[row["start"]: row["start"] + len(row["tags"])].argmax(-1) for row in table]
    predicted = [[tags[c] for c in row] for row in found]
    gold = [[tags[c] for c in row["tags"]] for row in table]
    return round(100 * float(seqeval.metrics.f1_score(gold, predicted, zero_division=0)), 2)


def pair_score(model, table, device):
    """How well an evaluator tells pairs of a tagged table apart, in percent: accuracy (s >= 0.5) and area under the ROC
    curve on balanced pairs, and accuracy on those of two entity words, which "entity or not" does not solve."""
    vectors = F.normalize(data.over_words(model, table, lambda h: h, device).float(), dim=-1)   # (N, H)
    classes = torch.tensor([tag for row in table["tags"] for tag in row])
    i, j = data.draw_pairs(classes, torch.Generator().manual_seed(0))
    cos, same = (vectors[i] * vectors[j]).sum(-1), classes[i] == classes[j]
    rank = cos.argsort().argsort().double() + 1                                  # Mann-Whitney: AUC from ranks
    positives, negatives = same.sum(), (~same).sum()
    auc = (rank[same].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    right, entities = ((cos >= 0) == same).double(), (classes[i] > 0) & (classes[j] > 0)
    scores = {"pair_accuracy": right.mean(), "entity_pair_accuracy": right[entities].mean(), "auc": auc}
    return {name: round(100 * score.item(), 2) for name, score in scores.items()}


# ------------------------------------------------------------------------ language similarity

@torch.no_grad()
def sentence_features(encoder, table, device):
    """g: the pooled output of the untuned encoder for every sentence, (N, H).

    An encoder without a trained pooler (pretrained by masked language modelling alone) gives the mean of its states.
    """
    model, info = transformers.AutoModel.from_pretrained(encoder, dtype=torch.float32, output_loading_info=True)
    pooled = any("pooler" in name for name, _ in model.named_parameters()) and not any(
        "pooler" in name for name in info["missing_keys"])
    model.to(device).eval()
    N = max(table["sentence"]) + 1
    sums, counts = torch.zeros(N, model.config.hidden_size), torch.zeros(N, 1)
    for _, batch in data.epochs(table, 1, 64, None, device, "sentence features"):
        with data.autocast(model):
            out = model(batch["input_ids"], attention_mask=batch["attention_mask"])
        mask = batch["attention_mask"].unsqueeze(-1)                             # (B, T, 1)
        g = out.pooler_output if pooled else (out.last_hidden_state * mask).sum(1) / mask.sum(1)  # (B, H)
        sums.index_add_(0, batch["row_sentence"].cpu(), g.float().cpu())
        counts.index_add_(0, batch["row_sentence"].cpu(), torch.ones(len(g), 1))
    return sums / counts.clamp_min(1)


class LanguageSimilarity(torch.nn.Module):
    """Eq. (3): l_k(g) = (U g + b_U) . (V mu_k + b_V), with a learnable embedding mu_k per source (TSL, Sec. 3.3)."""

    def __init__(self, mu):
        super().__init__()
        self.mu = torch.nn.Parameter(mu.clone())                                 # (K, H)
        self.U = torch.nn.Linear(mu.shape[1], SIMILARITY["rank"])
        self.V = torch.nn.Linear(mu.shape[1], SIMILARITY["rank"])

    def forward(self, g):
        return self.U(g) @ self.V(self.mu).T                                     # (N, K)


def language_loss(model, g, k):
    """Cross-entropy of (3) and the ridge that keeps language embeddings apart.  g (B, H), k (B,) the sentences' sources"""
    E = model.mu
    return F.cross_entropy(model(g), k) + SIMILARITY["ridge"] * (E @ E.T - torch.eye(len(E))).square().sum()  # K x K


def train_similarity(features, seed=0):
    """Fit (3) on the sources' sentences. features: {source: (N_k, H)}."""
    torch.manual_seed(seed)
    g = torch.cat(list(features.values()))
    k = torch.cat([torch.full((len(x),), i) for i, x in enumerate(features.values())])
    model = LanguageSimilarity(torch.stack([x.mean(0) for x in features.values()]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=SIMILARITY["lr"], weight_decay=SIMILARITY["weight_decay"])
    for _ in range(SIMILARITY["epochs"]):
        for rows in torch.randperm(len(g)).split(SIMILARITY["batch_size"]):
            optimizer.zero_grad()
            language_loss(model, g[rows], k[rows]).backward()
            optimizer.step()
    return model


def teacher_weights(scores, tau_rule):
    """Eq. (4): a = softmax(l / tau_w) per sentence, tau_w the variance of all N K scores of the target; w = mean of a.

    scores (N, K)  ->  a (N, K), w (K,)
    """
    tau = scores.var(correction=0) if tau_rule == "variance" else scores.std(correction=0)
    a = torch.softmax(scores / tau.clamp_min(1e-12), dim=-1)
    return a, a.mean(0)


# ------------------------------------------------------------------------ the stage

class Stage:
    """What every step needs: flags, data/config.json, the encoder, the device."""

    def __init__(self, args):
        self.args, self.artifacts, self.device = args, args.artifacts, data.pick_device()
        self.config = data.open_data(args.artifacts)
        self.tags, self.of = self.config["tags"], self.config["of"]
        self.encoder = data.encoder_path(args.artifacts, self.config["encoder"])
        self.recipe = dict(RECIPES[data.encoder_size(self.encoder)])
        self.recipe |= {name: getattr(args, name) for name in self.recipe if getattr(args, name) is not None}
        self.sources = data.subset("--sources", args.sources, self.config["sources"])
        self.targets = data.subset("--targets", args.targets, self.config["targets"])

    def table(self, name):
        return datasets.load_from_disk(str(self.artifacts / "data" / name))

    def parts(self, *names):
        """{part of data/: its fingerprint}"""
        return {f"data/{name}": self.of[f"data/{name}"] for name in names}

    def teachers_of(self, target):
        """The sources that may teach a target: all but itself."""
        return [s for s in self.config["sources"] if s != target]

    def teacher(self, name, kind, tables, pieces, dev=None, seed=0, start=None):
        """Train one recogniser or evaluator unless it is there.

        tables: a function that gives its training tables, so that nothing is read for a teacher that is kept; pieces:
        what they and it are made from; start: the folder of a teacher to go on from.
        """
        folder = self.artifacts / "teachers" / name
        made_from = {"pieces": pieces, "seed": seed, "kind": kind, **self.recipe}
        if data.finished(folder, made_from, self.args.overwrite):
            return
        facts = {"tags": self.tags, "dev": {}}
        with data.publishing(folder, made_from, facts) as partial:
            table = datasets.concatenate_datasets(tables())
            model = data.load_tagger(start or self.encoder, self.tags, seed, self.device)
            facts["loss"] = train(model, table, evaluator_loss if kind == "evaluator" else recogniser_loss,
                                  self.recipe, seed, name)  # fmt: skip
            if dev and kind == "evaluator":
                facts["dev"] = pair_score(model, self.table(dev), self.device)
            elif dev:
                facts["dev"] = {"f1": tag_score(model, self.table(dev), self.tags, self.device)}
            model.half().save_pretrained(partial)  # teachers only answer from here on: half the disk
            transformers.AutoTokenizer.from_pretrained(self.encoder).save_pretrained(partial)
        scores = "".join(f", source dev {score} {value}" for score, value in facts["dev"].items())
        print(f"        {name}: loss {facts['loss'][-1]:.4f}{scores}")

    def cache(self, target, name, teacher=None):
        """Run one teacher once over every word of a target's train and test text."""
        teacher = f"teachers/{teacher or name}"
        folder, source = self.artifacts / "logits" / target / name, self.artifacts / teacher
        found = data.fingerprint(data.opened(source, "02_teachers.py")["files"])
        made_from = {"pieces": {teacher: found} | self.parts(f"targets/{target}")}
        if data.finished(folder, made_from, self.args.overwrite):
            return
        with data.publishing(folder, made_from, {"tags": self.tags}) as partial:
            model = data.load_tagger(source, self.tags, 0, self.device)
            if "evaluator" in name:  # unit vectors, so that a cosine is a dot product
                outputs, kind = (lambda h: F.normalize(h.float(), dim=-1)), "vectors"
            else:
                outputs, kind = model.classifier, "logits"
                head = {"weight": model.classifier.weight, "bias": model.classifier.bias}
                save_file({k: v.detach().cpu().contiguous() for k, v in head.items()}, partial / "head.safetensors")
            for split in ("train", "test"):
                rows = data.over_words(model, self.table(f"targets/{target}/{split}"), outputs, self.device)
                save_file({kind: rows}, partial / f"{split}.safetensors")

    def similarity(self):
        """Fit the language-similarity model and write every target's weights."""
        folder = self.artifacts / "teachers" / "similarity"
        made_from = {"pieces": self.parts("sources", *(f"sources/{s}" for s in self.config["sources"])), **SIMILARITY}
        if not data.finished(folder, made_from, self.args.overwrite):
            with data.publishing(folder, made_from) as partial:
                features = {s: sentence_features(self.encoder, self.table(f"sources/{s}/train"), self.device)
                            for s in self.config["sources"]}  # fmt: skip
                save_file(train_similarity(features).state_dict(), partial / "model.safetensors")
        fitted = data.fingerprint(data.opened(folder, "02_teachers.py")["files"])
        for target in self.targets:
            folder, file = self.artifacts / "weights" / target, self.artifacts / "weights" / f"{target}.json"
            pieces = {"teachers/similarity": fitted} | self.parts(f"targets/{target}")
            made_from = {"pieces": pieces, "tau": self.args.tau}
            if not data.finished(folder, made_from, self.args.overwrite):
                file.unlink(missing_ok=True)
                self.weigh(target, folder, made_from)
            if not file.exists():  # a copy outside the folder, so that editing weights by hand breaks no digest
                unfinished = file.with_name(f".{target}.json.{os.getpid()}")
                shutil.copy(folder / "weights.json", unfinished)
                os.replace(unfinished, file)
            weights = json.loads(file.read_text())
            print(f"        {target}: " + ", ".join(f"{source} {w:.3f}" for source, w in weights.items()))

    def weigh(self, target, folder, made_from):
        """Weights of a target's sources by (4), over all its sentences and for each."""
        with data.publishing(folder, made_from) as partial:
            state = load_file(self.artifacts / "teachers" / "similarity" / "model.safetensors")
            model = LanguageSimilarity(state["mu"])
            model.load_state_dict(state)
            others = self.teachers_of(target)
            features = sentence_features(self.encoder, self.table(f"targets/{target}/train"), self.device)
            with torch.no_grad():
                scores = model(features)[:, [self.config["sources"].index(s) for s in others]]
                a, w = teacher_weights(scores, self.args.tau)
            save_file({"sentence": a.half(), "features": features.half()}, partial / "sentences.safetensors")
            (partial / "weights.json").write_text(json.dumps(dict(zip(others, w.tolist())), indent=1))

    def pseudo_labelled(self, target, folder):
        """A target's training text with tags by a student, IGNORED where it is not CONFIDENCE sure (PMTD)."""
        model = data.load_tagger(folder, self.tags, 0, self.device)
        table = self.table(f"targets/{target}/train")
        confidence, tag = data.over_words(model, table, model.classifier, self.device).float().softmax(-1).max(-1)
        tag = tag.where(confidence >= CONFIDENCE, IGNORED).tolist()
        tags = [tag[start: start + len(first)] for start, first in zip(table["start"], table["first"])]
        return table.add_column("tags", tags)


def supervised_table(stage, target):
    """ORACLE: a target's training text with its gold tags. Called under --oracle alone."""
    folder = stage.artifacts / "gold" / target / "train"
    if not folder.exists():
        raise data.UserError(f"--oracle: target {target} has no gold training tags: drop it from --targets")
    gold = [tag for tags in datasets.load_from_disk(str(folder))["tags"] for tag in tags]
    table = stage.table(f"targets/{target}/train")
    ids, spans = [stage.tags.index(tag) for tag in gold], zip(table["start"], table["first"])
    return table.add_column("tags", [ids[start: start + len(first)] for start, first in spans])


def next_round(stage, args):
    """Eq. (10): fine-tune every teacher of a target on source gold plus what the last round's student is sure of.

    For target sw and seed 0, recogniser-en-sw-s0-r2 goes on from recogniser-en-s0 by student mtmt-s0, and -r3 from -r2 by
    student mtmt-r2-s0. Caches leave the target out of the name, since their folder has it.
    """
    given = {name for name in stage.recipe if getattr(args, name) is not None}
    for target in stage.targets:
        for seed in args.seeds:
            before = "" if args.round == 2 else f"-r{args.round - 1}"
            student = f"students/{target}/mtmt{before}-s{seed}"
            found = data.fingerprint(data.opened(stage.artifacts / student, "03_distill.py")["files"])
            pseudo = functools.cache(lambda: stage.pseudo_labelled(target, stage.artifacts / student))
            for source in stage.teachers_of(target):
                for kind in ("recogniser", "evaluator"):
                    old = f"teachers/{kind}-{source}-" + ("s0" if args.round == 2 else f"{target}-s{seed}{before}")
                    name = f"{kind}-{source}-{target}-s{seed}-r{args.round}"
                    start = data.opened(stage.artifacts / old, "02_teachers.py")
                    stage.recipe |= {k: start["made_from"][k] for k in {"lr", "batch_size", "freeze"} - given}
                    stage.recipe |= {"epochs": args.epochs or 1}  # a pass more for teachers already trained
                    pieces = {student: found, old: data.fingerprint(start["files"])} | stage.parts(f"sources/{source}")
                    stage.teacher(name, kind, lambda: [stage.table(f"sources/{source}/train"), pseudo()], pieces,
                                  seed=seed, start=stage.artifacts / old)  # fmt: skip
                    stage.cache(target, f"{kind}-{source}-s{seed}-r{args.round}", name)


def main(args):
    stage = Stage(args)
    if args.round > 1:
        return next_round(stage, args)
    for seed in args.seeds:
        for source in stage.sources:
            for kind in ("recogniser", "evaluator"):
                stage.teacher(f"{kind}-{source}-s{seed}", kind, lambda: [stage.table(f"sources/{source}/train")],
                              stage.parts(f"sources/{source}"), f"sources/{source}/dev", seed)  # fmt: skip
                for target in stage.targets:
                    if target != source:
                        stage.cache(target, f"{kind}-{source}-s{seed}")
    if args.sources:
        return print("stage 2: these sources are done; run it without --sources for pooled, weights and the rest")
    stage.similarity()
    for seed in args.seeds:
        for target in stage.targets:
            without = f"-without-{target}" if target in stage.config["sources"] else ""
            others = stage.teachers_of(target)
            stage.teacher(f"pooled{without}-s{seed}", "recogniser",
                          lambda: [stage.table(f"sources/{s}/train") for s in others],
                          stage.parts("sources", *(f"sources/{s}" for s in others)), seed=seed)  # fmt: skip
            stage.cache(target, f"pooled-s{seed}", f"pooled{without}-s{seed}")
            if args.oracle:
                gold = {"gold": data.fingerprint(data.opened(stage.artifacts / "gold", "01_data.py")["files"])}
                stage.teacher(f"supervised-{target}-s{seed}", "recogniser", lambda: [supervised_table(stage, target)],
                              stage.parts(f"targets/{target}") | gold, seed=seed)  # fmt: skip
                stage.cache(target, f"supervised-s{seed}", f"supervised-{target}-s{seed}")
    print(f"stage 2 done: {len(stage.sources)} pairs of teachers, {len(stage.targets)} targets -> {args.artifacts}")


if __name__ == "__main__":
    data.run(lambda: main(parse_args()))
