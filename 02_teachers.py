"""Stage 2: train each source's teachers, weigh the sources, write down what each teacher says.

    python 02_teachers.py                    everything that is missing
    python 02_teachers.py --scaled           also every source's evaluator that learns its scale
    python 02_teachers.py --teacher x=DIR    also tags from elsewhere, DIR/<target>/{train,test}.txt

Reads   artifacts/data
Writes  artifacts/teachers/{recogniser,evaluator,scaled}-<source>-s<seed>
        artifacts/teachers/{recogniser,scaled}-pooled-s<seed>   of all sources' labels together, or
                    pooled-without-<target>, where a target is a source, too
        artifacts/weights/<target>/           of the sources, Eqs. (3) and (4)
        artifacts/logits/<target>/<teacher>/  a recogniser's logits of every word of the target, or
                                              an evaluator's vectors of the target's training words

Equations are numbered as in the README. B sentences, T sub-tokens, C tags, K sources, H hidden
size, M scored words of a batch, P pairs of them. The teachers of seed 0 teach the students of
seed 0: a seed is a whole run, of which only the weights of the sources are shared.
"""

import argparse
import importlib
import itertools
import json
import math
import random
import re
import time
from pathlib import Path

import datasets
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

data = importlib.import_module("01_data")  # a leading digit forbids a plain import

# {least width of the encoder: its recipe}. Training ends after `epochs`, but not before `steps`.
RECIPES = {
    512: {"lr": 5e-5, "epochs": 3, "steps": 100, "batch_size": 32, "freeze": 3},  # TSL, Sec. 4.1
    # chosen by F1 on the dev text of sources
    256: {"lr": 1.5e-4, "epochs": 6, "steps": 750, "batch_size": 16, "freeze": 3},
    0: {"lr": 2e-3, "epochs": 4, "steps": 100, "batch_size": 16, "freeze": 0},
}
NEW_HEAD = ".*(classifier|score|head|pooler)"  # what an encoder has no weights for
SIMILARITY = {"rank": 64, "epochs": 10, "penalty": 0.01}  # TSL, Sec. 3.3


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--sources", nargs="+", metavar="LANG", help="only their teachers, or pooled")
    p.add_argument("--targets", nargs="+", metavar="LANG", help="fill these targets' caches only")
    p.add_argument("--scaled", action="store_true", help="also evaluators that learn a scale")
    what = "NAME=DIR: a folder of tagged files as one more teacher (repeatable)"
    p.add_argument("--teacher", action="append", default=[], help=what)
    add_training_flags(p)
    return p.parse_args(argv)


def add_training_flags(p):
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="each is a whole run")
    p.add_argument("--lr", type=float, help="default by the encoder's size, as the next three")
    p.add_argument("--steps", type=int, help="updates, over as many passes as that takes")
    p.add_argument("--batch-size", type=int, help="sentences in a step")
    p.add_argument("--freeze", type=int, help="bottom layers left as they are")
    data.add_common_flags(p)


def read_config(artifacts):
    """data/config.json, with `encoder` as from_pretrained takes it; refused if text or encoder
    have changed since. For the toy it sets PyTorch to one thread."""
    if not (artifacts / "data/config.json").exists():
        data.stop(f"{artifacts}/data: missing or incomplete: run python 01_data.py first")
    config = json.loads((artifacts / "data/config.json").read_text())
    if config["encoder"] == "scratch":
        config["encoder"] = str((artifacts / "encoder").absolute())
        torch.set_num_threads(1)  # as fast for a tiny model; the same bits on any number of cores
    same_text = data.inputs(artifacts, *config["pieces"]) == config["pieces"]
    if not same_text or data.encoder_fingerprint(config["encoder"]) != config["encoder_files"]:
        what = "text or encoder differs from what stage 1 read"
        data.stop(f"{artifacts}/data: {what}: run python 01_data.py --overwrite")
    return config


def pooled_name(config, target):
    """Which pooled teachers serve a target: of all sources, but for itself if it is one of them."""
    return f"pooled-without-{target}" if target in config["sources"] else "pooled"


def load_table(artifacts, name):
    return datasets.load_from_disk(str(artifacts / name))


def sentences_of(table, column):
    """A column of a table, joined over the windows of each sentence: [[of a word, ...], ...]"""
    sentences = {}
    for number, values in zip(table["sentence"], table[column]):
        sentences.setdefault(number, []).extend(values)
    return list(sentences.values())


def by_sentence(ids, tags, sentences):
    """Tag numbers of all words, (N_words,), as lists of tags, one for each of these sentences."""
    cuts = np.cumsum([len(sentence) for sentence in sentences])[:-1]
    return [part.tolist() for part in np.split(np.array(tags)[np.asarray(ids)], cuts)]


def choose_languages(flag, wanted, known):
    """The languages that a flag names, or all that stage 1 was told of; others are refused."""
    chosen = wanted or known
    for lang in chosen:
        if lang not in known:
            data.stop(f"{flag} {lang}: choose among {' '.join(known)}")
    return chosen


def choose_recipe(recipes, encoder, args):
    """How to train an encoder of this size, where no flag says otherwise."""
    shape = data.load(transformers.AutoConfig, encoder)
    least_width = max(width for width in recipes if width <= shape.hidden_size)
    recipe = dict(recipes[least_width])
    recipe["freeze"] = min(recipe["freeze"], shape.num_hidden_layers // 4)
    for name in ("lr", "steps", "batch_size", "freeze"):
        if getattr(args, name) is not None:
            recipe[name] = getattr(args, name)
    if args.steps is not None:
        recipe.pop("epochs", None)  # --steps is what was asked for, no floor
    if min(recipe["steps"], recipe["batch_size"], recipe["freeze"] + 1) < 1:
        data.stop("--steps and --batch-size: at least 1; --freeze: at least 0")
    return recipe


# ------------------------------------------------------------------------ a tagger and its batches

def load_tagger(encoder, tags, seed, device, new=None):
    """An encoder with a linear head over the tags. The seed draws weights whose names match `new`,
    a pattern."""
    torch.manual_seed(seed)
    options = {"id2label": dict(enumerate(tags))}
    options["label2id"] = {tag: k for k, tag in enumerate(tags)}
    if device == "cpu":
        options["attn_implementation"] = "eager"  # faster there
    auto_class = transformers.AutoModelForTokenClassification
    return data.load_model(auto_class, encoder, new, **options).to(device)


def freeze(model, layers):
    """Freeze the embeddings and the bottom `layers` layers (TSL, Sec. 4.1); 0 freezes nothing."""
    lists = [x for x in model.base_model.modules() if isinstance(x, torch.nn.ModuleList)]
    stack = max(lists, key=len, default=[])  # of the encoder's layers, whatever their names
    if layers and layers >= len(stack):
        data.stop(f"--freeze {layers}: the encoder has {len(stack)} layers: try fewer")
    for name, p in model.named_parameters():
        p.requires_grad = layers == 0 or not re.search("embed|wte|wpe", name)
    for layer in stack[:layers]:
        layer.requires_grad_(False)


def multiplies_bf16():
    """Has this processor units for bf16? Without them bf16 takes three times as long as fp32."""
    if hasattr(torch.cpu, "get_capabilities"):
        units = torch.cpu.get_capabilities()
        return any(units.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def gpu_dtype():
    """bf16, or fp16 on older GPUs such as the T4, which only emulate bf16."""
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float16


def autocast(model):
    """Mixed precision where it pays: on GPUs, and for larger models on CPUs with bf16 units."""
    device = model.device.type
    if device == "cuda":
        return torch.autocast(device, gpu_dtype())
    pays = model.config.hidden_size >= 256 and multiplies_bf16()
    return torch.autocast(device, torch.bfloat16, enabled=pays)


def plan_batches(table, batch_size, rng=None):
    """Row numbers of each batch: rows of like length, so that padding is rare. Those of equal
    length are in the order of the table, or with `rng` in a random one."""
    lengths = np.asarray(table["length"])
    order = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    order = order[np.argsort(lengths[order], kind="stable")]  # equal lengths stay in that order
    return np.split(order, range(batch_size, len(order), batch_size))


def plan_steps(table, batch_size, steps, rng):
    """The batches of so many steps: the text is passed over as often as that takes."""
    batches = []
    while len(batches) < steps:
        one_pass = plan_batches(table, batch_size, rng)
        rng.shuffle(one_pass)
        batches += one_pass
    return batches[:steps]


def collate(rows, device):
    """Pad a batch: input_ids, mask (0 at padding) and f (B, T), f True where one of M words begins;
    words (M,), their numbers in the corpus, on the CPU; tags (M,) if there are any."""
    ids = [torch.tensor(x) for x in rows["input_ids"]]
    ones = [torch.ones_like(x) for x in ids]
    batch = {"input_ids": pad_sequence(ids, batch_first=True)}              # (B, T)
    batch["mask"] = pad_sequence(ones, batch_first=True)                    # (B, T)
    batch["f"] = torch.zeros_like(batch["input_ids"]).bool()                # (B, T)
    words = []
    for row, (first, start) in enumerate(zip(rows["first"], rows["start"])):
        batch["f"][row, first] = True
        words.append(torch.arange(start, start + len(first)))
    if "tags" in rows:
        batch["tags"] = torch.tensor(list(itertools.chain(*rows["tags"])))  # (M,)
    batch = {name: x.to(device) for name, x in batch.items()}
    batch["words"] = torch.cat(words)                                       # (M,)
    return batch


def forward_words(model, batch):
    """Last hidden states h (M, H) and logits (M, C) of the scored words, at first sub-tokens."""
    with autocast(model):
        out = model(batch["input_ids"], attention_mask=batch["mask"], output_hidden_states=True)
    h = out.hidden_states[-1][batch["f"]]                                   # (M, H)
    logits = out.logits[batch["f"]]                                         # (M, C)
    return h.float(), logits.float()


@torch.inference_mode()
def predict_words(model, table, device, vectors=False):
    """Logits (N_words, C), or unit vectors (N_words, H), of every word in corpus order; float16."""
    model.eval()
    n_words = sum(len(first) for first in table["first"])
    size = model.config.hidden_size if vectors else model.config.num_labels
    result = torch.empty(n_words, size).half()
    for rows in plan_batches(table, 64):
        batch = collate(table[rows], device)
        h, logits = forward_words(model, batch)
        values = F.normalize(h, dim=-1) if vectors else logits  # a cosine is then a dot product
        result[batch["words"]] = values.half().cpu()
    if not result.isfinite().all():
        data.stop(f"{model.name_or_path}: it gives numbers that are not finite: train it anew")
    return result


def optimiser(model, lr, steps):
    """AdamW without decay on biases and LayerNorm; a schedule, 10 % linear warm-up and then linear
    decay (TSL); and a scaler of losses for fp16, which underflows."""
    matrices = [p for p in model.parameters() if p.ndim > 1]  # frozen ones get no gradient
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr, weight_decay=0.01, fused=True)
    schedule = transformers.get_linear_schedule_with_warmup(adamw, int(0.1 * steps), steps)
    device = model.device.type
    is_fp16 = device == "cuda" and gpu_dtype() == torch.float16
    return adamw, schedule, torch.amp.GradScaler(device, enabled=is_fp16)


def step(loss, model, adamw, schedule, scaler):
    """One update of what is not frozen, by gradients clipped to norm 1."""
    scaler.scale(loss).backward()
    scaler.unscale_(adamw)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(adamw)
    scaler.update()
    schedule.step()
    adamw.zero_grad()


# ------------------------------------------------------------------------ (1) the recogniser

def recogniser_loss(model, batch, rng):
    """Eq. (1): cross-entropy over the scored words f; rng is for evaluator_loss alone."""
    _, logits = forward_words(model, batch)                                 # (M, C)
    return F.cross_entropy(logits, batch["tags"])


def train(model, table, loss_of, recipe, seed):
    """Fine-tune on a tagged table; the last step's weights stay (TSL). Returns losses (steps,)."""
    torch.manual_seed(seed)                                                 # of dropout
    shuffle = np.random.default_rng(seed)                                   # of batches
    rng = random.Random(seed)                                               # of pairs
    freeze(model, recipe["freeze"])
    table = table.remove_columns("words")  # text is slow to read, and not needed here
    size = recipe["batch_size"]
    steps = max(recipe["steps"], recipe.get("epochs", 0) * math.ceil(len(table) / size))
    adamw, schedule, scaler = optimiser(model, recipe["lr"], steps)
    losses = []
    model.train()
    for rows in tqdm(plan_steps(table, size, steps, shuffle), leave=False, disable=None):
        batch = collate(table[rows], model.device)
        loss = loss_of(model, batch, rng)
        step(loss, model, adamw, schedule, scaler)
        losses.append(loss.detach())
    return torch.stack(losses).cpu()


def tag_score(model, table, tags, device):
    """Micro F1 in percent of a recogniser on a tagged table (seqeval, conlleval reading)."""
    from seqeval.metrics import f1_score  # here, since it takes seconds and stage 3 does without
    best = predict_words(model, table, device).argmax(-1)                   # (N_words,)
    gold = [[tags[k] for k in sentence] for sentence in sentences_of(table, "tags")]
    f1 = f1_score(gold, by_sentence(best, tags, gold), zero_division=0)
    return {"f1": round(100 * float(f1), 2)}


# ------------------------------------------------------------------------ (2) the evaluator

def draw_pairs(classes, rng):
    """Pairs of words (i, j). Draw a class, each as likely as the next, and a word i of it. Pair i
    with another word of its class, and with a word of another class, drawn in the same way. Among
    words drawn as they come nearly all would be O (notebook 2).

    classes (M,)  ->  i, j (P,), P <= 2 M: fewer where a class has one word, or the batch one class
    """
    by_class = {}  # {class: its words}
    for word, label in enumerate(classes.tolist()):
        by_class.setdefault(label, []).append(word)
    labels = list(by_class)
    pairs = []
    for _ in range(len(classes)):
        label = rng.choice(labels)
        i = rng.choice(by_class[label])
        if len(by_class[label]) > 1:
            j = i
            while j == i:
                j = rng.choice(by_class[label])
            pairs.append((i, j))
        if len(labels) > 1:
            other = label
            while other == label:
                other = rng.choice(labels)
            pairs.append((i, rng.choice(by_class[other])))
    pairs = torch.tensor(pairs, dtype=torch.long).view(-1, 2)               # (P, 2)
    return pairs.T.to(classes.device)


def evaluator_loss(model, batch, rng):
    """Eq. (2): s_ij = sigmoid(kappa cos(v_i, v_j)) against [tag_i = tag_j]: B-PER and I-PER differ.
    As published kappa = 1: s is in [0.2689, 0.7311], the loss at least ln(1 + exp(-1)) = 0.3133.
    `scaled` evaluators learn kappa."""
    tags = batch["tags"]                                                    # (M,)
    v, _ = forward_words(model, batch)                                      # (M, H)
    i, j = draw_pairs(tags, rng)                                            # (P,), (P,)
    kappa = model.log_kappa.exp() if hasattr(model, "log_kappa") else 1.0
    score = kappa * F.cosine_similarity(v[i], v[j], dim=-1)                 # (P,)
    same = (tags[i] == tags[j]).float()
    loss = F.binary_cross_entropy_with_logits(score, same, reduction="sum")  # the sigmoid is in it
    return loss / max(1, len(i))  # a batch of one word has no pair


def pair_score(model, table, tags, device):
    """How well cosines tell pairs of one tag from pairs of two, among entity words (O is easy):
    area under the ROC curve in percent; 50 is guessing. tags is for tag_score alone."""
    from sklearn.metrics import roc_auc_score  # here, as seqeval
    vectors = predict_words(model, table, device, vectors=True).float()     # (N_words, H)
    classes = torch.tensor(list(itertools.chain(*table["tags"])))           # (N_words,)
    i, j = draw_pairs(classes, random.Random(0))
    entities = (classes[i] > 0) & (classes[j] > 0)  # tag 0 is O
    same = (classes[i] == classes[j])[entities]
    cos = (vectors[i] * vectors[j]).sum(-1)[entities]
    if len(same.unique()) < 2:  # too few entities
        return {"auc": math.nan}
    return {"auc": round(100 * float(roc_auc_score(same, cos)), 2)}


# ------------------------------------------------------------------------ (3) (4) similarity

@torch.no_grad()
def sentence_features(encoder, table, device):
    """g: the mean last state of the untuned encoder in each window, (N, H). TSL takes the pooled
    output, which many encoders have never trained."""
    model = data.load_model(transformers.AutoModel, encoder, ".*pooler").to(device).eval()
    features = torch.empty(len(table), model.config.hidden_size)
    for rows in plan_batches(table, 64):
        batch = collate(table[rows], device)
        with autocast(model):
            out = model(batch["input_ids"], attention_mask=batch["mask"])
        mask = batch["mask"].unsqueeze(-1)                                  # (B, T, 1)
        g = (out.last_hidden_state.float() * mask).sum(1) / mask.sum(1)     # (B, H)
        features[rows] = g.cpu()
    return features


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
    """Cross-entropy of (3): which source k (B,) is a sentence g (B, H) from? A penalty pushes the
    mu towards length 1 and right angles."""
    mu = model.mu                                                           # (K, H)
    penalty = (mu @ mu.T - torch.eye(len(mu))).square().sum()
    return F.cross_entropy(model(g), k) + SIMILARITY["penalty"] * penalty


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


def teacher_weights(scores):
    """Eq. (4): a = softmax(l / tau_w) for every window of text. tau_w is the variance of all N K
    scores, as in TSL, so scores that are spread more widely give flatter weights (notebook 2).

    scores (N, K)  ->  a (N, K); the sources' weights w are its mean over the windows"""
    tau_w = scores.var(correction=0).clamp_min(1e-12)
    return torch.softmax(scores / tau_w, dim=-1)                            # (N, K)


def weigh_sources(args, config, targets):
    """weights/<target>: a of every window by Eq. (4), and their mean w for people to read."""
    sources = config["sources"]
    pieces = [f"data/sources/{source}" for source in sources]
    model = None
    for target in targets:
        text = f"data/targets/{target}"
        settings = dict(data.inputs(args.artifacts, *pieces, text), **SIMILARITY)
        folder = args.artifacts / f"weights/{target}"
        if data.made(folder, settings, args.overwrite):
            continue
        if model is None:  # one serves all targets
            tables = [load_table(args.artifacts, f"{piece}/train") for piece in pieces]
            features = [sentence_features(config["encoder"], x, args.device) for x in tables]
            model = train_similarity(features)
        table = load_table(args.artifacts, f"{text}/train")
        g = sentence_features(config["encoder"], table, args.device)        # (N, H)
        others = [k for k, source in enumerate(sources) if source != target]
        scores = model(g).detach()[:, others]                               # (N, K), without itself
        a = teacher_weights(scores)                                         # (N, K)
        if not a.isfinite().all():
            data.stop(f"weights for {target} are not finite: is the encoder damaged?")
        by_source = {sources[k]: x.contiguous() for k, x in zip(others, a.T)}
        w = {source: round(float(x.mean()), 4) for source, x in by_source.items()}
        print(f"        weights for {target}: {w}")
        with data.writing(folder, settings) as partial:
            save_file(by_source, partial / "sentences.safetensors")
            (partial / "weights.json").write_text(json.dumps(w))


# ------------------------------------------------------------------------ the stage

def train_teacher(args, config, kind, sources, name, seed):
    """teachers/<name>: a recogniser, or an evaluator (published or scaled), on sources' labels."""
    recipe = choose_recipe(RECIPES, config["encoder"], args)
    settings = data.inputs(args.artifacts, *[f"data/sources/{source}" for source in sources])
    settings.update(recipe, kind=kind, seed=seed)
    folder = args.artifacts / f"teachers/{name}"
    if data.made(folder, settings, args.overwrite):
        return
    begun = time.time()
    tables = [load_table(args.artifacts, f"data/sources/{source}/train") for source in sources]
    table = datasets.concatenate_datasets(tables)
    model = load_tagger(config["encoder"], config["tags"], seed, args.device, NEW_HEAD)
    if kind == "scaled":
        model.log_kappa = torch.nn.Parameter(torch.tensor(math.log(10), device=args.device))
    loss_of = recogniser_loss if kind == "recogniser" else evaluator_loss
    losses = train(model, table, loss_of, recipe, seed)                     # (steps,)
    if not losses.isfinite().all():
        data.stop(f"{name}: its loss is not finite: try a third of --lr")
    facts = {"kappa": 1.0, "dev": {}, "steps": len(losses), "device": args.device}
    if kind == "scaled":
        facts["kappa"] = model.log_kappa.exp().item()
        del model.log_kappa  # a fact, no part of the checkpoint
    score = tag_score if kind == "recogniser" else pair_score
    for source in sources:
        table = load_table(args.artifacts, f"data/sources/{source}/dev")
        facts["dev"][source] = score(model, table, config["tags"], args.device)
    facts["seconds"] = round(time.time() - begun)
    print(f"        {name}: loss {losses[-10:].mean():.4f}, source dev {json.dumps(facts['dev'])}")
    if 0 in [found.get("f1") for found in facts["dev"].values()]:  # on the dev text of a source
        print(f"        {name} finds no entity: try a third of --lr, or more --steps")
    with data.writing(folder, settings, **facts) as partial:
        model.half().save_pretrained(partial)  # half the disk; a student that starts here has fp32
        data.load_tokenizer(config["encoder"]).save_pretrained(partial)


def cache(args, config, kind, target, name):
    """logits/<target>/<name>: what a teacher says of a target's words."""
    teacher = args.artifacts / f"teachers/{name}"
    settings = data.inputs(args.artifacts, f"teachers/{name}", f"data/targets/{target}")
    folder = args.artifacts / f"logits/{target}/{name}"
    if data.made(folder, settings, args.overwrite):
        return
    model = load_tagger(teacher, config["tags"], 0, args.device)
    kappa = data.read_record(teacher)["facts"]["kappa"]
    is_recogniser = kind == "recogniser"
    what = "logits" if is_recogniser else "vectors"
    splits = ["train", "test"] if is_recogniser else ["train"]  # no student is taught on test text
    with data.writing(folder, settings, kappa=kappa) as partial:
        for split in splits:
            table = load_table(args.artifacts, f"data/targets/{target}/{split}")
            values = predict_words(model, table, args.device, vectors=not is_recogniser)
            save_file({what: values}, partial / f"{split}.safetensors")


def cache_files(args, config, target, name, folder):
    """logits/<target>/<name>: tagged files as one more recogniser. Their tags become one-hot rows;
    an entity of a type that is none of ours counts as O."""
    settings = data.inputs(args.artifacts, f"data/targets/{target}")
    settings["files"] = data.file_hashes(Path(folder, target), r"(train|test)\.txt$")
    piece = args.artifacts / f"logits/{target}/{name}"
    if data.made(piece, settings, args.overwrite):
        return
    types = [tag[2:] for tag in config["tags"] if tag[0] == "B"]
    with data.writing(piece, settings) as partial:
        for split in ("train", "test"):
            path = Path(folder, target, f"{split}.txt")
            tagged, _ = data.read_conll(path)
            table = load_table(args.artifacts, f"data/targets/{target}/{split}")
            ours = sentences_of(table, "words")
            both = itertools.zip_longest([words for words, _ in tagged], ours)
            unlike = [n for n, (x, y) in enumerate(both, start=1) if x != y]
            if unlike or not data.is_tagged(tagged):
                where = f"sentence {unlike[0]}" if unlike else "no tags"
                what = f"not the target's words, each with a tag: tag its {split} text as it is"
                data.stop(f"{path}: {where}: {what}")
            tagged, counts = data.harmonise(tagged, types, path)
            dropped = [f"{n} {x.split()[0]}" for x, n in counts.items() if x.endswith(" dropped")]
            if dropped:
                print(f"        {path}: none of our types, so read as O: {', '.join(dropped)}")
            ids = [config["tags"].index(tag) for _, tags in tagged for tag in tags]
            one_hot = F.one_hot(torch.tensor(ids), len(config["tags"]))
            logits = 20 * (one_hot - 1).half()  # a logit of -20: never
            save_file({"logits": logits}, partial / f"{split}.safetensors")


def main(args):
    config = read_config(args.artifacts)
    sources = config["sources"]
    wanted = choose_languages("--sources", args.sources, [*sources, "pooled"])
    targets = choose_languages("--targets", args.targets, config["targets"])
    alone = [source for source in wanted if source != "pooled"]
    for teacher in args.teacher:
        name, _, folder = teacher.partition("=")
        taken = name in sources or name in data.NOT_NAMES
        if taken or not name.isidentifier() or not folder or not Path(folder).is_dir():
            what = "give NAME=DIR, a NAME of letters that is not taken, a DIR that is there"
            data.stop(f"--teacher {teacher}: {what}")
        for target, seed in itertools.product(targets, args.seeds):
            cache_files(args, config, target, f"external-{name}-s{seed}", folder)
    kinds = ["recogniser", "evaluator"]
    if args.scaled:
        kinds.append("scaled")
    for seed in args.seeds:
        for source, kind in itertools.product(alone, kinds):
            name = f"{kind}-{source}-s{seed}"
            train_teacher(args, config, kind, [source], name, seed)
            for target in targets:
                if target != source:
                    cache(args, config, kind, target, name)
        for target, kind in itertools.product(targets, ("recogniser", "scaled")):
            others = [source for source in sources if source != target]
            if "pooled" in wanted and others:
                name = f"{kind}-{pooled_name(config, target)}-s{seed}"
                train_teacher(args, config, kind, others, name, seed)  # "pooled" once, then kept
                cache(args, config, kind, target, name)
    if sources:
        weigh_sources(args, config, targets)
    print(f"stage 2 done: teachers of {' '.join(wanted)}, seeds {args.seeds}")


if __name__ == "__main__":
    main(parse_args())
