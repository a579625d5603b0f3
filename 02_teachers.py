"""Stage 2: train teachers for every source, weigh the sources for every target, and cache what the
teachers say of every word of its text.

    python 02_teachers.py                       everything that is missing
    python 02_teachers.py --scaled              also every source's evaluator that knows types
    python 02_teachers.py --sources en          one source's teachers and caches: a job of an array
    python 02_teachers.py --oracle              also `supervised`, which reads target labels

Reads   artifacts/data; artifacts/gold under --oracle alone
Writes  artifacts/teachers/{recogniser,evaluator,scaled}-<source>-s<seed>   Eqs. (1) and (2)
        artifacts/teachers/{pooled,scaled-pooled}-s<seed>   on all sources' labels together
        artifacts/weights/<target>/                         of the sources, Eqs. (3) and (4)
        artifacts/logits/<target>/<teacher>/                logits or vectors of every word

Equation numbers are those of the README's section on the method. B sentences, T sub-tokens, C tags,
K sources, H hidden size, M scored words of a batch. A seed is a whole run: the teachers of seed 0
teach the students of seed 0.
"""

import importlib
import itertools
import json
import math
import re

import datasets
import numpy as np
import seqeval.metrics
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

data = importlib.import_module("01_data")  # a leading digit forbids a plain import

RECIPES = {  # by width of the encoder; base is TSL's (Wu et al. 2020, Sec. 4.1)
    "base": {"lr": 5e-5, "epochs": 3, "batch_size": 32, "freeze": 3},
    "small": {"lr": 1.5e-4, "epochs": 6, "batch_size": 8, "freeze": 3},  # these by source dev
    "tiny": {"lr": 2e-3, "epochs": 4, "batch_size": 16, "freeze": 0},
}
SIMILARITY = {"rank": 64, "epochs": 10, "ridge": 0.01}  # TSL, Sec. 3.3


def parse_args(argv=None):
    p = data.Parser(description=__doc__.splitlines()[0])
    # what
    p.add_argument("--sources", nargs="+", metavar="LANG", help="train these teachers only")
    p.add_argument("--targets", nargs="+", metavar="LANG", help="fill these targets' caches only")
    p.add_argument("--scaled", action="store_true", help="also evaluators that learn a scale")
    p.add_argument("--oracle", action="store_true", help="train `supervised` on the targets' gold")
    p.add_argument("--tau", choices=["variance", "std"], default="variance", help="tau_w, Eq. (4)")
    add_training_flags(p)
    return p.parse_args(argv)


def add_training_flags(parser):
    """The flags of both stages that train."""
    seed = data.at_least(0)
    parser.add_argument("--seeds", nargs="+", type=seed, default=[0, 1], help="whole runs")
    parser.add_argument("--lr", type=data.at_least(1e-9, float), help="default by encoder size")
    parser.add_argument("--epochs", type=data.at_least(1), help="passes over the text")
    parser.add_argument("--batch-size", type=data.at_least(1), help="average sentences a step")
    parser.add_argument("--freeze", type=data.at_least(0), help="bottom layers left as they are")
    data.add_common_flags(parser)


# ------------------------------------------------------------------------ what stage 1 left

def open_data(artifacts):
    """data/config.json, with `encoder` as from_pretrained takes it, once it is sure to be there."""
    config = data.read_piece(artifacts, "data")
    encoder = config["encoder"]
    if encoder == "scratch":
        data.read_piece(artifacts, "encoder")
        encoder = artifacts / "encoder"
        torch.set_num_threads(1)  # as fast for a tiny model, and the same bits everywhere
    elif data.encoder_files(encoder) != config["encoder_files"]:
        problem = "has changed" if data.encoder_files(encoder) else "is missing"
        raise data.UserError(f"encoder {encoder} {problem}: run python 01_data.py again")
    return config | {"encoder": encoder}


def load_table(artifacts, name):
    with data.explained(f"{artifacts / name}: damaged", "run python 01_data.py --overwrite"):
        return datasets.load_from_disk(str(artifacts / name))


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
    flags = {name: getattr(args, name) for name in recipe}
    return recipe | {name: value for name, value in flags.items() if value is not None}


# ------------------------------------------------------------------------ a tagger and its batches

def load_tagger(encoder, tags, seed, device):
    """An encoder with a linear head over `tags`; the seed fixes the new head."""
    torch.manual_seed(seed)
    options = {"id2label": dict(enumerate(tags)), "dtype": torch.float32}
    options["label2id"] = {tag: k for k, tag in enumerate(tags)}
    if device == "cpu":
        options["attn_implementation"] = "eager"  # faster there
    with data.explained(f"{encoder}: cannot load it", "make it again, or choose another encoder"):
        tagger = transformers.AutoModelForTokenClassification
        return tagger.from_pretrained(encoder, **options).to(device)


def freeze(model, layers):
    """Freeze the embeddings and the bottom `layers` layers (TSL, Sec. 4.1); 0 freezes nothing."""
    depth, numbers = model.config.num_hidden_layers, {}
    for name, p in model.base_model.named_parameters():
        number = re.search(r"\b(?:layers?|h)\.(\d+)\.", name)  # layer.1. and not layer.11.
        numbers[name] = -1 if re.search("embed|wte|wpe", name) else depth
        if number:
            numbers[name] = int(number[1])
        p.requires_grad = not layers or numbers[name] >= layers
    complete = set(range(-1, depth)) <= set(numbers.values())
    if layers and not (complete and layers < depth):
        what = f"--freeze {layers}: this encoder has {depth} layers, or names them unlike others"
        raise data.UserError(f"{what}: try --freeze 0")


def autocast(model):
    """Mixed precision where it pays: bf16 or fp16 on CUDA, bf16 on CPUs that multiply it."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        return torch.autocast("cuda", torch.float16 if needs_scaler(device) else torch.bfloat16)
    pays = device.type == "cpu" and model.config.hidden_size >= 256
    pays = pays and torch.backends.mkldnn.is_available()
    pays = pays and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast("cpu", torch.bfloat16, enabled=pays)


def needs_scaler(device):
    """fp16 gradients underflow without a scaler; bf16 and fp32 need none."""
    return device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)


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
    batch = {"input_ids": pad_sequence(ids, batch_first=True)}              # (B, T)
    ones = [torch.ones_like(x) for x in ids]
    batch["attention_mask"] = pad_sequence(ones, batch_first=True)          # (B, T)
    batch["f"] = torch.zeros_like(batch["input_ids"]).bool()                # (B, T)
    first = torch.tensor(list(itertools.chain(*rows["first"])))             # (M,)
    batch["f"][row, first] = True
    batch["sentence"] = torch.tensor(rows["sentence"])                      # (B,)
    if "tags" in rows:
        batch["tags"] = torch.tensor(list(itertools.chain(*rows["tags"])))  # (M,)
    if device == "cuda":
        batch = {name: x.pin_memory() for name, x in batch.items()}
    batch = {name: x.to(device, non_blocking=True) for name, x in batch.items()}
    stops = (torch.tensor(rows["start"]) + counts).tolist()
    batch["spans"] = list(zip(rows["start"], stops))
    return batch


def epochs(table, n_epochs, batch_size, rng, device, title):
    """(epoch, batch) through training, under a progress bar that counts words."""
    table = table.remove_columns("words")
    words = n_epochs * sum(map(len, table["first"]))
    with tqdm(total=words, desc=title, unit=" words", leave=False, disable=None) as bar:
        for epoch in range(n_epochs):
            for numbers in plan_batches(table, batch_size, rng):
                rows = table[numbers]
                yield epoch, collate(rows, device)
                bar.update(sum(map(len, rows["first"])))


def read_words(model, batch):
    """Last hidden states h (M, H) and logits (M, C) of the scored words, at first sub-tokens."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    out, f = model(**inputs, output_hidden_states=True), batch["f"]
    return out.hidden_states[-1][f].float(), out.logits[f].float()


def keep_logits(h, logits):
    return logits


def keep_vectors(h, logits):
    return F.normalize(h, dim=-1)  # so that a cosine is a dot product


@torch.inference_mode()
def over_words(model, table, keep, device):
    """`keep(h, logits)` of every word: (N_words, C or H) float16, in corpus order."""
    model.eval()
    result, N_words = None, sum(map(len, table["first"]))
    for _, batch in epochs(table, 1, 64, None, device, "every word once"):
        with autocast(model):
            values = keep(*read_words(model, batch)).half().cpu()
        if result is None:
            result = torch.empty(N_words, values.shape[1]).half()
        done = 0
        for start, stop in batch["spans"]:  # batches are sorted by length: back to corpus order
            result[start:stop] = values[done : done + stop - start]
            done += stop - start
    return result


def optimiser(model, lr, steps, weight_decay=0.01):
    """A function step(loss) that trains what is not frozen: AdamW without decay on biases and
    LayerNorm, gradients clipped to norm 1, 10 % linear warm-up, then linear decay (TSL)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 1]
    vectors = [p for p in trained if p.ndim <= 1]
    decay, none = {"weight_decay": weight_decay}, {"weight_decay": 0.0}
    groups = [{"params": matrices, **decay}, {"params": vectors, **none}]
    adamw = torch.optim.AdamW(groups, lr, fused=True)
    schedule = transformers.get_linear_schedule_with_warmup(adamw, int(0.1 * steps), steps)
    device = trained[0].device
    scaler = torch.amp.GradScaler(device.type, enabled=needs_scaler(device))  # idle but for fp16

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


def train(model, table, loss_of, recipe, seed, title):
    """Fine-tune on a tagged table; the last step's weights stay (TSL). Returns losses by epoch."""
    torch.manual_seed(seed)                                                 # of dropout
    rng = np.random.default_rng(seed)                                       # of batches
    generator = torch.Generator().manual_seed(seed)                         # of pairs
    device = next(model.parameters()).device.type
    freeze(model, recipe["freeze"])
    steps = len(plan_batches(table, recipe["batch_size"]))
    step = optimiser(model, recipe["lr"], recipe["epochs"] * steps)
    losses = torch.zeros(recipe["epochs"], device=device)
    model.train()
    rounds = epochs(table, recipe["epochs"], recipe["batch_size"], rng, device, title)
    for epoch, batch in rounds:
        with autocast(model):
            loss = loss_of(model, batch, generator)
        losses[epoch] += loss.detach() / steps
        step(loss)
    return [round(x, 4) for x in losses.tolist()]


def tag_score(model, table, tags, device):
    """Micro F1 in percent of a recogniser on a tagged table (seqeval, conlleval reading)."""
    best = over_words(model, table, keep_logits, device).argmax(-1)         # (N_words,)
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
    would be O. With class_first the M first words are drawn so, too; else each word is one.
    classes (M,)  ->  i, j (P,), P <= 2 M

    Classes [0, 0, 1, 0, 1], say, give order [0, 1, 3, 2, 4], begin [0, 3], size [3, 2]. A word's
    equal partner stands 1 to size - 1 places further on in its group, round and round.
    """
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
    further = 1 + (dice[0] * (size[own] - 1)).long()
    equal = begin[own] + (place[words] - begin[own] + further) % size[own]
    past = 1 + (dice[1] * (G - 1)).long()
    other = (own + past) % max(G, 1)                                        # never its own
    unequal = begin[other] + (dice[2] * size[other]).long()
    has_equal = size[own] > 1
    has_unequal = torch.full_like(has_equal, G > 1)
    i = torch.cat([words[has_equal], words[has_unequal]])
    return i, order[torch.cat([equal[has_equal], unequal[has_unequal]])]    # places back to words


def evaluator_loss(model, batch, generator):
    """Eq. (2): s_ij = sigmoid(kappa cos(v_i, v_j)) against [tag_i = tag_j], over balanced pairs.

    As published kappa = 1: s is in [0.2689, 0.7311], the loss not under ln(1 + 1/e) = 0.3133. A
    model with `log_kappa` learns it, and both words are drawn class first."""
    (v, _), tags = read_words(model, batch), batch["tags"]                  # (M, H), (M,)
    scaled = hasattr(model, "log_kappa")
    i, j = draw_pairs(tags, generator, class_first=scaled)                  # (P,), (P,)
    kappa = model.log_kappa.exp() if scaled else 1.0
    score = kappa * F.cosine_similarity(v[i], v[j], dim=-1)
    same = (tags[i] == tags[j]).float()
    loss = F.binary_cross_entropy_with_logits(score, same, reduction="sum")  # the sigmoid is in it
    return loss / max(1, len(i))


def pair_score(model, table, tags, device):
    """How well an evaluator tells balanced pairs apart, in percent: accuracy (s >= 0.5) and area
    under the ROC curve; again for two entity words, which "entity or not" does not solve."""
    vectors = over_words(model, table, keep_vectors, device).float()        # (N_words, H)
    classes = torch.tensor(list(itertools.chain(*table["tags"])))
    i, j = draw_pairs(classes, torch.Generator().manual_seed(0))
    cos = (vectors[i] * vectors[j]).sum(-1)
    same = classes[i] == classes[j]
    right = ((cos >= 0) == same).double()
    entities = (classes[i] > 0) & (classes[j] > 0)
    scores = {}
    for name, of in (("pair", entities | True), ("entity_pair", entities)):
        if same[of].unique().numel() == 2:
            scores[f"{name}_accuracy"] = round(100 * right[of].mean().item(), 2)
            scores[f"{name}_auc"] = round(100 * roc_auc_score(same[of], cos[of]), 2)
    return scores


# ------------------------------------------------------------------------ (3) (4) similarity

@torch.no_grad()
def sentence_features(encoder, table, device):
    """g: the pooled output of the untuned encoder for every sentence, (N, H); without a trained
    pooler, the mean of its last hidden states."""
    model, info = transformers.AutoModel.from_pretrained(
        encoder, dtype=torch.float32, output_loading_info=True
    )
    missing = [name for name in info["missing_keys"] if "pooler" in name]
    has_pooler = not missing and any("pooler" in name for name, _ in model.named_parameters())
    model.to(device).eval()
    N = max(table["sentence"]) + 1
    sums = torch.zeros(N, model.config.hidden_size)
    counts = torch.zeros(N, 1)
    for _, batch in epochs(table, 1, 64, None, device, "sentence features"):
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
    return sums / counts.clamp_min(1)


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
    """Cross-entropy of (3) and a ridge that keeps the embeddings apart.  g (B, H), k (B,) sources

    The published ridge is H x H; the K x K form has the same gradients and costs a fraction."""
    names_source = F.cross_entropy(model(g), k)
    E = model.mu                                                            # (K, H)
    ridge = (E @ E.T - torch.eye(len(E))).square().sum()
    return names_source + SIMILARITY["ridge"] * ridge


def train_similarity(features, seed=0):
    """Fit (3) on the sources' sentences: {source: (N_k, H)}."""
    torch.manual_seed(seed)
    by_source = list(features.values())
    sizes = torch.tensor([len(x) for x in by_source])
    g, k = torch.cat(by_source), torch.arange(len(sizes)).repeat_interleave(sizes)
    model = LanguageSimilarity(torch.stack([x.mean(0) for x in by_source]))
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


@torch.no_grad()
def weigh_sources(args, config, targets):
    """Fit the similarity model and write weights/<target>: a (N, K), and w for people to read."""
    pieces = [f"data/sources/{source}" for source in config["sources"]]
    features = {}

    def fit(folder):
        for source, piece in zip(config["sources"], pieces):
            table = load_table(args.artifacts, f"{piece}/train")
            features[source] = sentence_features(config["encoder"], table, args.device)
        with torch.enable_grad():
            save_file(train_similarity(features).state_dict(), folder / "model.safetensors")

    data.make(args, "teachers/similarity", fit, pieces, **SIMILARITY)
    for target in targets:
        others = [source for source in config["sources"] if source != target]

        def build(folder):
            state = load_file(args.artifacts / "teachers/similarity/model.safetensors")
            model = LanguageSimilarity(state["mu"])
            model.load_state_dict(state)
            table = load_table(args.artifacts, f"data/targets/{target}/train")
            scores = model(sentence_features(config["encoder"], table, args.device))
            columns = [config["sources"].index(source) for source in others]
            a = teacher_weights(scores[:, columns], args.tau)
            save_file({"a": a}, folder / "sentences.safetensors")
            weights = json.dumps(dict(zip(others, a.mean(0).tolist())))
            (folder / "weights.json").write_text(weights)
            print(f"        weights for {target}: {weights}")

        uses = ["teachers/similarity", f"data/targets/{target}"]
        data.make(args, f"weights/{target}", build, uses, sources=others, tau=args.tau)


# ------------------------------------------------------------------------ the stage

def train_teacher(args, config, name, seed, uses, read=None):
    """Train teachers/<name> on the train tables of the pieces in `uses` and score it on their dev;
    read: a function that gives its training table instead, without a dev."""
    recipe, device = choose_recipe(RECIPES, config["encoder"], args), args.device
    evaluates, scaled = is_evaluator(name), name.startswith("scaled")
    loss_of, score = (evaluator_loss, pair_score) if evaluates else (recogniser_loss, tag_score)

    def build(folder):
        load = lambda split: [load_table(args.artifacts, f"{piece}/{split}") for piece in uses]
        table = read() if read else datasets.concatenate_datasets(load("train"))
        model = load_tagger(config["encoder"], config["tags"], seed, device)
        if scaled:
            start = torch.tensor(math.log(10), device=device)
            model.log_kappa = torch.nn.Parameter(start)
        losses = train(model, table, loss_of, recipe, seed, name)
        facts = {"loss": losses, "kappa": 1.0, "dev": []}
        if scaled:
            facts["kappa"] = model.log_kappa.exp().item()
            del model.log_kappa  # a fact, no part of the checkpoint
        for table in load("dev") if not read else []:
            facts["dev"].append(score(model, table, config["tags"], device))
        model.half().save_pretrained(folder)  # it only answers from here on: half the disk
        data.load_tokenizer(config["encoder"]).save_pretrained(folder)
        print(f"        {name}: loss {facts['loss'][-1]:.4f}, source dev {facts['dev']}")
        if any(scores.get("f1") == 0 for scores in facts["dev"]):
            print(f"        {name} finds no entity: try a third of --lr, more --epochs")
        return facts

    data.make(args, f"teachers/{name}", build, uses, seed=seed, **recipe)


def is_evaluator(name):
    return name.startswith(("evaluator", "scaled"))


def cache(args, config, target, name, teacher=None):
    """Run a teacher once over every word of a target: logits/<target>/<name>."""
    teacher = f"teachers/{teacher or name}"

    def build(folder):
        model = load_tagger(args.artifacts / teacher, config["tags"], 0, args.device)
        kind, keep, splits = "logits", keep_logits, ["train", "test"]
        if is_evaluator(name):
            kind, keep, splits = "vectors", keep_vectors, ["train"]  # no student pairs test words
        for split in splits:
            table = load_table(args.artifacts, f"data/targets/{target}/{split}")
            rows = over_words(model, table, keep, args.device)
            save_file({kind: rows}, folder / f"{split}.safetensors")
        kappa = data.read_piece(args.artifacts, teacher)["facts"]["kappa"]
        return {"tags": config["tags"], "kappa": kappa}

    data.make(args, f"logits/{target}/{name}", build, [teacher, f"data/targets/{target}"])


def supervised_table(args, config, target):
    """ORACLE: a target's training text with its gold tags. Called under --oracle alone."""
    folder = args.artifacts / "gold" / target / "train"
    if not folder.exists():
        raise data.UserError(f"--oracle: {target} has no gold training tags: drop it")
    gold = itertools.chain(*datasets.load_from_disk(str(folder))["tags"])
    ids = [config["tags"].index(tag) for tag in gold]
    table, tags = load_table(args.artifacts, f"data/targets/{target}/train"), []
    for start, first in zip(table["start"], table["first"]):
        tags.append(ids[start : start + len(first)])
    return table.add_column("tags", tags)


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
    if args.sources:
        return print("stage 2: done with these; without --sources it makes what is left")
    weigh_sources(args, config, targets)
    for seed, target in itertools.product(args.seeds, targets):
        others = [f"data/sources/{s}" for s in config["sources"] if s != target]
        without = f"-without-{target}" if target in config["sources"] else ""
        for kind in ("pooled", "scaled-pooled"):
            train_teacher(args, config, f"{kind}{without}-s{seed}", seed, others)
            cache(args, config, target, f"{kind}-s{seed}", f"{kind}{without}-s{seed}")
        if args.oracle:
            uses = [f"data/targets/{target}", f"gold/{target}"]
            read = lambda: supervised_table(args, config, target)
            train_teacher(args, config, f"supervised-{target}-s{seed}", seed, uses, read)
            cache(args, config, target, f"supervised-s{seed}", f"supervised-{target}-s{seed}")
    print(f"stage 2 done: {len(sources)} pairs of teachers a seed, {len(targets)} targets")


if __name__ == "__main__":
    data.run(main, parse_args)
