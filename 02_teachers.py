"""Stage 2: train each source's teachers, weigh the sources, cache what is said of the targets.

    python 02_teachers.py                       everything that is missing
    python 02_teachers.py --scaled              also every source's evaluator that knows types
    python 02_teachers.py --teacher x=PATH      also what a tagger or tagged files of others say

Reads   artifacts/data; artifacts/gold under --oracle alone, for `supervised`
Writes  artifacts/teachers/{recogniser,evaluator,scaled}-<source>-s<seed>, {,scaled-}pooled-s<seed>
        artifacts/weights/<target>/           of the sources, Eqs. (3) and (4)
        artifacts/logits/<target>/<teacher>/  logits or vectors of every word

Equations are numbered as in the README. B sentences, T sub-tokens, C tags, K sources, H hidden
size, M scored words of a batch. The teachers of seed 0 teach the students of seed 0.
"""

import functools
import importlib
import itertools
import json
import math
import re
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

data = importlib.import_module("01_data")  # a leading digit forbids a plain import

RECIPES = {  # by width of the encoder; base is TSL's (Wu et al. 2020, Sec. 4.1)
    "base": {"lr": 5e-5, "epochs": 3, "batch_size": 32, "freeze": 3},
    "small": {"lr": 1.5e-4, "epochs": 6, "batch_size": 8, "freeze": 3},  # these by source dev
    "tiny": {"lr": 2e-3, "epochs": 4, "batch_size": 16, "freeze": 0},
}
OLD_GPU = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
EVALUATORS = ("evaluator", "scaled")  # so their names begin
TAGGER = transformers.AutoModelForTokenClassification
SIMILARITY = {"rank": 64, "epochs": 10, "ridge": 0.01}  # TSL, Sec. 3.3


def parse_args(argv=None):
    p = data.Parser(description=__doc__.splitlines()[0])
    p.add_argument("--sources", nargs="+", metavar="LANG", help="only theirs: no weights or pooled")
    p.add_argument("--targets", nargs="+", metavar="LANG", help="fill these targets' caches only")
    p.add_argument("--scaled", action="store_true", help="also evaluators that learn a scale")
    p.add_argument("--oracle", action="store_true", help="train `supervised` on the targets' gold")
    what = "NAME=PATH: a tagger, or a folder of tagged files, as one more teacher (repeatable)"
    p.add_argument("--teacher", action="append", default=[], help=what)
    p.add_argument("--tau", choices=["variance", "std"], default="variance", help="tau_w, Eq. (4)")
    add_training_flags(p)
    return p.parse_args(argv)


def add_training_flags(parser):
    parser.add_argument("--seeds", nargs="+", type=data.at_least(0), default=[0, 1])
    parser.add_argument("--lr", type=data.at_least(1e-9, float), help="default by encoder size")
    parser.add_argument("--epochs", type=data.at_least(1), help="passes over the text")
    parser.add_argument("--batch-size", type=data.at_least(1), help="average sentences a step")
    parser.add_argument("--freeze", type=data.at_least(0), help="bottom layers left as they are")
    data.add_common_flags(parser)


def open_data(artifacts):
    """data/config.json, with `encoder` as from_pretrained takes it, once it is sure to be there."""
    config = data.read_piece(artifacts, "data")
    encoder = config["encoder"]
    if encoder == "scratch":
        data.read_piece(artifacts, "encoder")
        encoder = artifacts / "encoder"
        torch.set_num_threads(1)  # as fast for a tiny model, and the same bits everywhere
    elif data.encoder_files(encoder) != config["encoder_files"]:
        raise data.UserError(f"encoder {encoder} has changed or is missing: run python 01_data.py")
    return config | {"encoder": encoder}


def load_table(artifacts, name):
    remedy = f"remove {(artifacts / name).parent} and run python 01_data.py"
    with data.explained(f"{artifacts / name}: damaged", remedy):
        return datasets.load_from_disk(str(artifacts / name))


def sentences_of(table, column):
    """A column of a table of windows by sentence: [[one of each word, ...], ...]"""
    windows = pd.Series(list(table[column]), index=list(table["sentence"]))
    return windows.groupby(level=0).sum().tolist()


def subset(flag, wanted, known):
    """The languages that a flag picks, all without it."""
    if unknown := [lang for lang in wanted or [] if lang not in known]:
        raise data.UserError(f"{flag} {unknown[0]}: stage 1 was told of {' '.join(known)} only")
    return wanted or known


def choose_recipe(recipes, encoder, args):
    """How to train an encoder of this size, where no flag says otherwise."""
    shape = transformers.AutoConfig.from_pretrained(encoder)
    size = "base" if shape.hidden_size >= 512 else "small" if shape.hidden_size >= 256 else "tiny"
    recipe = dict(recipes[size])
    recipe["freeze"] = min(recipe["freeze"], shape.num_hidden_layers // 4)
    for name in recipe:
        if getattr(args, name) is not None:
            recipe[name] = getattr(args, name)
    return recipe


# ------------------------------------------------------------------------ a tagger and its batches

def load_tagger(encoder, tags, seed, device):
    """An encoder with a linear head over `tags`; the seed fixes the new head."""
    torch.manual_seed(seed)
    options = {"id2label": dict(enumerate(tags))}
    options["label2id"] = {tag: k for k, tag in enumerate(tags)}
    if device == "cpu":
        options["attn_implementation"] = "eager"  # faster there
    with data.explained(f"{encoder}: cannot load it", "make it anew, or choose another encoder"):
        return TAGGER.from_pretrained(encoder, dtype=torch.float32, **options).to(device)


def freeze(model, layers):
    """Freeze the embeddings and the bottom `layers` layers (TSL, Sec. 4.1); 0 freezes nothing."""
    lists = [x for x in model.base_model.modules() if isinstance(x, torch.nn.ModuleList)]
    stack = max(lists, key=len, default=[])  # of the encoder's layers, whatever their names
    if layers and layers >= len(stack):
        raise data.UserError(f"--freeze {layers}: the encoder has {len(stack)} layers: try fewer")
    for name, p in model.named_parameters():
        p.requires_grad = not (layers and re.search("embed|wte|wpe", name))
    for layer in stack[:layers]:
        layer.requires_grad_(False)


def autocast(model):
    """Mixed precision where it pays: bf16 on GPUs and CPUs that multiply it, fp16 on old GPUs."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        return torch.autocast("cuda", torch.float16 if OLD_GPU else torch.bfloat16)
    large = device.type == "cpu" and model.config.hidden_size >= 256
    pays = large and torch.backends.mkldnn.is_available()
    pays = pays and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast("cpu", torch.bfloat16, enabled=pays)


def plan_batches(table, batch_size, rng=None):
    """Row numbers of each batch: as many sub-tokens as `batch_size` average rows have, rows of like
    length, so padding is rare and memory bounded. `rng` shuffles equal rows, and the batches."""
    lengths = np.asarray(table["length"])
    order = np.arange(len(lengths))
    if rng is not None:
        order = rng.permutation(order)
    batches, budget = [[]], batch_size * lengths.mean()
    for row in order[np.argsort(lengths[order], kind="stable")]:
        size = len(batches[-1]) + 1
        if size > 1 and size * lengths[row] > budget:
            batches.append([])
        batches[-1].append(int(row))
    if rng is not None:
        rng.shuffle(batches)
    return batches


def collate(rows, device):
    """Pad a batch: input_ids, attention_mask and f (B, T), f True where one of M words begins;
    sentence (B,), its number; tags (M,) if there are any; spans: where each row's words stand in
    the corpus, (start, stop). Padding is masked: any id will do."""
    ids = [torch.tensor(x) for x in rows["input_ids"]]
    counts = torch.tensor([len(first) for first in rows["first"]])
    row = torch.arange(len(ids)).repeat_interleave(counts)                  # (M,)
    first = torch.tensor(list(itertools.chain(*rows["first"])))             # (M,)
    batch = {"input_ids": pad_sequence(ids, batch_first=True)}              # (B, T)
    ones = [torch.ones_like(x) for x in ids]
    batch["attention_mask"] = pad_sequence(ones, batch_first=True)          # (B, T)
    batch["f"] = torch.zeros_like(batch["input_ids"]).bool()                # (B, T)
    batch["f"][row, first] = True
    batch["sentence"] = torch.tensor(rows["sentence"])                      # (B,)
    if "tags" in rows:
        tags = list(itertools.chain(*rows["tags"]))
        batch["tags"] = torch.tensor(tags)                                  # (M,)
    batch = {name: x.to(device) for name, x in batch.items()}
    stops = torch.tensor(rows["start"]) + counts
    batch["spans"] = list(zip(rows["start"], stops.tolist()))
    return batch


def epochs(table, n_epochs, batch_size, rng, device):
    """(epoch, batch) through training, each epoch under a progress bar."""
    table = table.remove_columns("words")
    for epoch in range(n_epochs):
        for numbers in tqdm(plan_batches(table, batch_size, rng), leave=False, disable=None):
            yield epoch, collate(table[numbers], device)


def read_words(model, batch):
    """Last hidden states h (M, H) and logits (M, C) of the scored words, at first sub-tokens."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    out = model(**inputs, output_hidden_states=True)
    h, logits = out.hidden_states[-1][batch["f"]], out.logits[batch["f"]]
    return h.float(), logits.float()


@torch.inference_mode()
def over_words(model, table, device, vectors=False):
    """Logits (N_words, C), or unit vectors (N_words, H), of every word in corpus order; float16."""
    model.eval()
    N_words = sum(map(len, table["first"]))
    size = model.config.hidden_size if vectors else model.config.num_labels
    result = torch.empty(N_words, size).half()
    for _, batch in epochs(table, 1, 64, None, device):
        with autocast(model):
            h, logits = read_words(model, batch)
        values = logits
        if vectors:
            values = F.normalize(h, dim=-1)  # so that a cosine is a dot product
        words = torch.cat([torch.arange(*span) for span in batch["spans"]])
        result[words] = values.half().cpu()
    return result


def optimiser(model, lr, steps):
    """A function step(loss) that trains what is not frozen: AdamW without decay on biases and
    LayerNorm, gradients clipped to norm 1, 10 % linear warm-up, then linear decay (TSL)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 1]
    vectors = [p for p in trained if p.ndim <= 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr, weight_decay=0.01, fused=True)
    schedule = transformers.get_linear_schedule_with_warmup(adamw, int(0.1 * steps), steps)
    scaler = torch.amp.GradScaler(trained[0].device.type, enabled=OLD_GPU)  # fp16 underflows

    def step(loss):
        scaler.scale(loss).backward()
        scaler.unscale_(adamw)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        scaler.step(adamw)
        scaler.update()
        schedule.step()
        adamw.zero_grad()

    return step


# ------------------------------------------------------------------------ (1) the recogniser

def recogniser_loss(model, batch, generator):
    """Eq. (1): cross-entropy over the scored words f. It draws nothing from the generator."""
    _, logits = read_words(model, batch)                                    # (M, C)
    return F.cross_entropy(logits, batch["tags"])


def train(model, table, loss_of, recipe, seed):
    """Fine-tune on a tagged table; the last step's weights stay (TSL). Returns losses by epoch."""
    torch.manual_seed(seed)                                                 # of dropout
    rng = np.random.default_rng(seed)                                       # of batches
    generator = torch.Generator().manual_seed(seed)                         # of pairs
    device, size = next(model.parameters()).device.type, recipe["batch_size"]
    freeze(model, recipe["freeze"])
    steps = len(plan_batches(table, size))
    step = optimiser(model, recipe["lr"], recipe["epochs"] * steps)
    losses = torch.zeros(recipe["epochs"], device=device)
    model.train()
    for epoch, batch in epochs(table, recipe["epochs"], size, rng, device):
        with autocast(model):
            loss = loss_of(model, batch, generator)
        losses[epoch] += loss.detach() / steps
        step(loss)
    return [round(x, 4) for x in losses.tolist()]


def tag_score(model, table, tags, device):
    """Micro F1 in percent of a recogniser on a tagged table (seqeval, conlleval reading)."""
    import seqeval.metrics  # late: it takes seconds, and stage 3 does without
    best = over_words(model, table, device).argmax(-1)                      # (N_words,)
    gold, predicted = [], []
    for start, classes in zip(table["start"], table["tags"]):
        found = best[start : start + len(classes)]
        gold.append([tags[k] for k in classes])
        predicted.append([tags[k] for k in found])
    f1 = seqeval.metrics.f1_score(gold, predicted, zero_division=0)
    return {"f1": round(100 * float(f1), 2)}


# ------------------------------------------------------------------------ (2) the evaluator

def draw_pairs(classes, generator, class_first=False):
    """Pairs of words: each word with one of its own class and one of another class, if there is.
    The other class is drawn first, each as likely as the next: among words drawn alike nearly all
    would be O. With class_first the M words i are drawn this way, too; else each word is i.
    classes (M,)  ->  i, j (P,), P <= 2 M"""
    M, device = len(classes), classes.device
    order = torch.argsort(classes, stable=True)                             # grouped by class
    place = torch.argsort(order)                                            # of each word in order
    words = torch.arange(M, device=device)
    _, group, size = torch.unique(classes, return_inverse=True, return_counts=True)
    begin, G = size.cumsum(0) - size, len(size)
    dice = torch.rand(5 if class_first else 3, M, generator=generator).to(device)
    if class_first:
        drawn = (dice[3] * G).long()                                        # (M,) classes
        words = order[begin[drawn] + (dice[4] * size[drawn]).long()]
    own = group[words]
    further = 1 + (dice[0] * (size[own] - 1)).long()                        # 1 to size - 1 on
    equal = begin[own] + (place[words] - begin[own] + further) % size[own]
    past = 1 + (dice[1] * (G - 1)).long()
    other = (own + past) % max(G, 1)                                        # never its own
    unequal = begin[other] + (dice[2] * size[other]).long()
    has_equal = size[own] > 1
    has_unequal = torch.full_like(has_equal, G > 1)
    i = torch.cat([words[has_equal], words[has_unequal]])
    return i, order[torch.cat([equal[has_equal], unequal[has_unequal]])]    # places back to words


def evaluator_loss(model, batch, generator):
    """Eq. (2): s_ij = sigmoid(kappa cos(v_i, v_j)) against [tag_i = tag_j], over balanced pairs. As
    published kappa = 1: s is in [0.2689, 0.7311], the loss not under ln(1 + 1/e) = 0.3133."""
    (v, _), tags = read_words(model, batch), batch["tags"]                  # (M, H), (M,)
    scaled = hasattr(model, "log_kappa")  # evaluators that learn kappa draw both class first
    i, j = draw_pairs(tags, generator, class_first=scaled)                  # (P,), (P,)
    kappa = model.log_kappa.exp() if scaled else 1.0
    score = kappa * F.cosine_similarity(v[i], v[j], dim=-1)
    same = (tags[i] == tags[j]).float()
    loss = F.binary_cross_entropy_with_logits(score, same, reduction="sum")  # the sigmoid is in it
    return loss / max(1, len(i))


def pair_score(model, table, tags, device):
    """How well an evaluator tells balanced pairs apart: area under the ROC curve in percent (50 is
    guessing); again for pairs of two entity words, which "entity or not" does not solve."""
    from sklearn.metrics import roc_auc_score  # late, as seqeval
    vectors = over_words(model, table, device, vectors=True).float()        # (N_words, H)
    classes = torch.tensor(list(itertools.chain(*table["tags"])))
    i, j = draw_pairs(classes, torch.Generator().manual_seed(0))
    same = classes[i] == classes[j]
    cos = (vectors[i] * vectors[j]).sum(-1)
    entities = (classes[i] > 0) & (classes[j] > 0)
    scores = {}
    for name, of in (("pair", entities | True), ("entity_pair", entities)):
        if same[of].unique().numel() == 2:
            scores[f"{name}_auc"] = round(100 * roc_auc_score(same[of], cos[of]), 2)
    return scores


# ------------------------------------------------------------------------ (3) (4) similarity

@torch.no_grad()
def sentence_features(encoder, table, device):
    """g: the untuned encoder's pooled output by sentence, (N, H); if untrained, its mean state."""
    options = {"dtype": torch.float32, "output_loading_info": True}
    model, info = transformers.AutoModel.from_pretrained(encoder, **options)
    poolers = {name for name, _ in model.named_parameters() if "pooler" in name}
    has_pooler = poolers and poolers.isdisjoint(info["missing_keys"])
    model.to(device).eval()
    N = max(table["sentence"]) + 1
    sums, counts = torch.zeros(N, model.config.hidden_size), torch.zeros(N, 1)
    for _, batch in epochs(table, 1, 64, None, device):
        with autocast(model):
            out = model(batch["input_ids"], attention_mask=batch["attention_mask"])
        if has_pooler:
            g = out.pooler_output                                           # (B, H)
        else:
            mask = batch["attention_mask"].unsqueeze(-1)                    # (B, T, 1)
            g = (out.last_hidden_state * mask).sum(1) / mask.sum(1)         # (B, H)
        row = batch["sentence"].cpu()  # a long sentence has several rows
        sums.index_add_(0, row, g.float().cpu())
        counts.index_add_(0, row, torch.ones(len(g), 1))
    return sums / counts


class LanguageSimilarity(torch.nn.Module):
    """Eq. (3): l_k(g) = (U g + b_U) . (V mu_k + b_V), mu_k a learnable embedding of source k."""

    def __init__(self, mu):
        super().__init__()
        self.mu = torch.nn.Parameter(mu.clone())                            # (K, H)
        self.U = torch.nn.Linear(mu.shape[1], SIMILARITY["rank"])
        self.V = torch.nn.Linear(mu.shape[1], SIMILARITY["rank"])

    def forward(self, g):
        return self.U(g) @ self.V(self.mu).T                                # (N, K)


def language_loss(model, g, k):
    """Cross-entropy of (3), and a ridge that keeps embeddings apart.  g (B, H), k (B,) sources"""
    E = model.mu                                                            # (K, H)
    ridge = (E @ E.T - torch.eye(len(E))).square().sum()
    return F.cross_entropy(model(g), k) + SIMILARITY["ridge"] * ridge


def train_similarity(features):
    """Fit (3) on the sentences of K sources, K x (N_k, H)."""
    torch.manual_seed(0)
    sizes = torch.tensor([len(x) for x in features])
    g = torch.cat(features)                                                 # (N, H)
    k = torch.arange(len(sizes)).repeat_interleave(sizes)                   # (N,)
    model = LanguageSimilarity(torch.stack([x.mean(0) for x in features]))
    adamw = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=1e-5)
    for _ in range(SIMILARITY["epochs"]):
        for rows in torch.randperm(len(g)).split(32):
            adamw.zero_grad()
            language_loss(model, g[rows], k[rows]).backward()
            adamw.step()
    return model


def teacher_weights(scores, tau_rule):
    """Eq. (4): a = softmax(l / tau_w) for every sentence, tau_w the variance of all N K scores.
    scores (N, K)  ->  a (N, K); the sources' weights w are its mean over the sentences"""
    spread = scores.var if tau_rule == "variance" else scores.std
    tau = spread(correction=0).clamp_min(1e-12)
    return torch.softmax(scores / tau, dim=-1)                              # (N, K)


def weigh_sources(args, config, targets):
    """Write weights/<target>: a (N, K) by Eq. (4), and their mean w for people to read."""
    sources = [f"data/sources/{source}" for source in config["sources"]]

    def features(piece):
        table = load_table(args.artifacts, f"{piece}/train")
        return sentence_features(config["encoder"], table, args.device)

    @functools.cache
    def fitted():
        return train_similarity([features(source) for source in sources])

    for target in targets:
        others = [source for source in config["sources"] if source != target]

        def build(folder):
            l = fitted()(features(f"data/targets/{target}")).detach()       # (N, all sources)
            columns = [config["sources"].index(source) for source in others]
            a = teacher_weights(l[:, columns], args.tau)
            save_file({"a": a}, folder / "sentences.safetensors")
            w = a.mean(0).tolist()
            weights = json.dumps(dict(zip(others, w)))
            (folder / "weights.json").write_text(weights)
            print(f"        weights for {target}: {weights}")

        uses, how = [*sources, f"data/targets/{target}"], {"sources": others, "tau": args.tau}
        data.make(args, f"weights/{target}", build, uses, **how, **SIMILARITY)


# ------------------------------------------------------------------------ the stage

def train_teacher(args, config, name, seed, uses):
    """Train teachers/<name> on the train tables of the pieces in `uses`; score it on their dev."""
    recipe, device = choose_recipe(RECIPES, config["encoder"], args), args.device
    scaled, loss_of, score = name.startswith("scaled"), recogniser_loss, tag_score
    if name.startswith(EVALUATORS):
        loss_of, score = evaluator_loss, pair_score

    def build(folder):
        tables = [load_table(args.artifacts, f"{piece}/train") for piece in uses]
        table = datasets.concatenate_datasets(tables)
        model = load_tagger(config["encoder"], config["tags"], seed, device)
        if scaled:
            start = torch.tensor(math.log(10), device=device)
            model.log_kappa = torch.nn.Parameter(start)
        losses = train(model, table, loss_of, recipe, seed)
        facts = {"loss": losses, "kappa": 1.0, "dev": []}
        if scaled:
            facts["kappa"] = model.log_kappa.exp().item()
            del model.log_kappa  # a fact, no part of the checkpoint
        for piece in uses if not name.startswith("supervised") else []:  # gold has no dev
            table = load_table(args.artifacts, f"{piece}/dev")
            facts["dev"].append(score(model, table, config["tags"], device))
        model.half().save_pretrained(folder)  # it only answers from here on: half the disk
        data.load_tokenizer(config["encoder"]).save_pretrained(folder)
        print(f"        {name}: loss {losses[-1]:.4f}, source dev {facts['dev']}")
        if any(scores.get("f1") == 0 for scores in facts["dev"]):
            print(f"        {name} finds no entity: try a third of --lr, more --epochs")
        return facts

    data.make(args, f"teachers/{name}", build, uses, seed=seed, **recipe)


def cache(args, config, target, name, teacher=None):
    """Run a teacher once over every word of a target: logits/<target>/<name>."""
    teacher = f"teachers/{teacher or name}"
    taught = data.read_piece(args.artifacts, teacher)

    def build(folder):
        model = load_tagger(args.artifacts / teacher, config["tags"], 0, args.device)
        evaluates = name.startswith(EVALUATORS)
        kind = "vectors" if evaluates else "logits"
        for split in ["train"] if evaluates else ["train", "test"]:  # no pairs of test words
            table = load_table(args.artifacts, f"data/targets/{target}/{split}")
            rows = over_words(model, table, args.device, vectors=evaluates)
            save_file({kind: rows}, folder / f"{split}.safetensors")
        return {"tags": config["tags"], "kappa": taught["facts"]["kappa"]}

    uses = [teacher, f"data/targets/{target}"]
    data.make(args, f"logits/{target}/{name}", build, uses, **taught["settings"])


def external_says(path, target, split, sentences, device):
    """A foreign teacher's labels, and its probability of each for every word, (N_words, labels)."""
    file = Path(path, target, f"{split}.txt")
    if file.parent.is_dir():
        tagged, _ = data.read_conll(file)
        rows = itertools.zip_longest(sentences, tagged, fillvalue=("", ""))
        for number, (words, (theirs, tags)) in enumerate(rows, start=1):
            if words != theirs or not tags:
                what = f"sentence {number} is not the target's, word by word, or has no tags"
                raise data.UserError(f"{file}: {what}: tag {target}'s {split} text as it is")
        said = [tag for _, tags in tagged for tag in data.to_iob2(tags)]
        says = pd.get_dummies(said, dtype="float32")                        # (N_words, labels)
        return says.columns, torch.tensor(says.values)
    with data.explained(f"--teacher {path}: no folder {target}, no tagger", "give either of them"):
        model = TAGGER.from_pretrained(path, dtype=torch.float32).to(device)
        rows = [(words, None) for words in sentences]
        table = data.encode(rows, data.load_tokenizer(path), 128)
        logits = over_words(model, table, device).float()
    labels = [label for _, label in sorted(model.config.id2label.items())]
    return labels, logits.softmax(-1)


def cache_external(args, config, target, name, path):
    """One more recogniser, the same for every seed; a label that is no tag of ours counts as O."""
    tags = config["tags"]

    def build(folder):
        for split in ("train", "test"):
            table = load_table(args.artifacts, f"data/targets/{target}/{split}")
            sentences = sentences_of(table, "words")
            labels, theirs = external_says(path, target, split, sentences, args.device)
            ours = torch.tensor([tags.index(x) if x in tags else 0 for x in labels])
            if others := [label for label in labels if label not in tags]:
                print(f"        {name}, {target} {split}: O for {' '.join(others)}")
                if not ours.any():
                    raise data.UserError(f"--teacher {path}: no label is one of {' '.join(tags)}")
            p = torch.zeros(len(theirs), len(tags)).index_add_(1, ours, theirs)
            rows = p.log().clamp(min=-20).half()  # a probability of 0 is a logit of -20
            save_file({"logits": rows}, folder / f"{split}.safetensors")
        return {"tags": tags, "kappa": 1.0}

    texts = [data.read_text(file)[0] for file in sorted(Path(path, target).glob("*.txt"))]
    made_from = {"path": path, "files": data.encoder_files(path), "text": data.fingerprint(texts)}
    for seed in args.seeds:
        piece = f"logits/{target}/external-{name}-s{seed}"
        data.make(args, piece, build, [f"data/targets/{target}"], **made_from)


def main(args):
    config = open_data(args.artifacts)
    sources = subset("--sources", args.sources, config["sources"])
    targets = subset("--targets", args.targets, config["targets"])
    kinds = ["recogniser", "evaluator"] + ["scaled"] * args.scaled
    for seed, source, kind in itertools.product(args.seeds, sources, kinds):
        name = f"{kind}-{source}-s{seed}"
        train_teacher(args, config, name, seed, [f"data/sources/{source}"])
        for target in targets:
            if target != source:
                cache(args, config, target, name)
    taken = [*config["sources"], "pooled", "avg", "sim", "kl", "balanced"]  # direct-, tsl-...
    for teacher, target in itertools.product(args.teacher, targets):
        name, _, path = teacher.partition("=")
        if not path or not name.isidentifier() or name in taken:
            raise data.UserError(f"--teacher {teacher}: give NAME=PATH, NAME of letters, not taken")
        cache_external(args, config, target, name, path)
    if args.sources or not sources:
        return print("stage 2: done with these; without --sources it makes what is left")
    weigh_sources(args, config, targets)
    for seed, target in itertools.product(args.seeds, targets):
        others = [f"data/sources/{s}" for s in config["sources"] if s != target]
        without = f"-without-{target}" if target in config["sources"] else ""
        for kind in ("pooled", "scaled-pooled"):
            train_teacher(args, config, f"{kind}{without}-s{seed}", seed, others)
            cache(args, config, target, f"{kind}-s{seed}", f"{kind}{without}-s{seed}")
        gold = args.artifacts / f"gold/{target}/train"
        if args.oracle and gold.exists():
            train_teacher(args, config, f"supervised-{target}-s{seed}", seed, [f"gold/{target}"])
            cache(args, config, target, f"supervised-s{seed}", f"supervised-{target}-s{seed}")
    print(f"stage 2 done: {len(sources)} pairs of teachers a seed, {len(targets)} targets")


if __name__ == "__main__":
    data.run(main, parse_args)
