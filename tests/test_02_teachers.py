"""Stage 2: losses and weights of sources against plain loops, batches, recipes, tagged files."""

import importlib
import itertools
import random
import re
import shutil
from math import exp, log
from statistics import mean, pvariance

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from numpy import dot
from pytest import approx
from safetensors.torch import load_file, save_file
from torch import allclose, tensor

from conftest import GOOD, corpus, data, here, refused, softmax, to_conll

teachers = importlib.import_module("02_teachers")
QUICK = ["--steps", "4", "--seeds", "0"]


# ------------------------------------------------------------------------ batches

def test_batches_hold_every_row_once_with_little_padding():
    lengths = np.random.default_rng(0).geometric(0.04, size=2000).clip(4, 128)
    batches = teachers.plan_batches({"length": lengths}, 32)
    assert sorted(itertools.chain(*batches)) == list(range(2000))
    computed = [len(rows) * lengths[rows].max() for rows in batches]
    assert sum(computed) < 1.04 * lengths.sum()


def two_passes(lengths):
    rng = np.random.default_rng(0)
    batches = [rows.tolist() for rows in teachers.plan_steps({"length": lengths}, 8, 30, rng)]
    return batches[:15], batches[15:]


def test_passes_over_the_text_are_seeded_and_have_other_batches_in_another_order():
    one, two = two_passes([9] * 120)
    assert (one, two) == two_passes([9] * 120)
    for one_pass in (one, two):
        assert sorted(itertools.chain(*one_pass)) == list(range(120))
    assert {frozenset(rows) for rows in one} != {frozenset(rows) for rows in two}
    one, two = two_passes(range(120))  # here each batch is what it must be
    assert sorted(one) == sorted(two) and one != two


# ------------------------------------------------------------------------ the model's part

@pytest.fixture
def model():
    """A tiny random tagger of three tags."""
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    size.update(num_hidden_layers=12, initializer_range=0.1)  # so that words heed each other
    config = transformers.BertConfig(vocab_size=50, num_labels=3, **size)
    return transformers.BertForTokenClassification(config).eval()


def windows(*lengths):
    """A table of random windows, every second sub-token the first of its word."""
    rng = random.Random(1)
    rows = []
    n_words = 0
    for n in lengths:
        first = list(range(1, n - 1, 2))
        ids = rng.choices(range(5, 50), k=n)
        row = {"length": n, "input_ids": ids, "first": first, "start": n_words}
        row["tags"] = [ids[k] % 3 for k in first]
        row["words"] = ["x"] * len(first)
        rows.append(row)
        n_words += len(first)
    return datasets.Dataset.from_list(rows)


def batch_of(*lengths):
    return teachers.collate(windows(*lengths)[:], "cpu")


def test_what_is_said_of_words_is_in_corpus_order_whatever_batches_and_padding(model):
    table = windows(*random.Random(0).choices(range(4, 40), k=150))
    logits = teachers.predict_words(model, table, "cpu").float()
    vectors = teachers.predict_words(model, table, "cpu", vectors=True).float()
    for row in table.select([0, 7, 99, 149]):
        ids = tensor([row["input_ids"]])
        with torch.no_grad():
            out = model(ids, output_hidden_states=True)
        first = row["first"]
        words = slice(row["start"], row["start"] + len(first))
        assert allclose(logits[words], out.logits[0, first], atol=2e-3)
        h = out.hidden_states[-1][0, first]
        assert allclose(vectors[words], F.normalize(h, dim=-1), atol=2e-3)


def free_layers(model):
    free = [name for name, p in model.named_parameters() if p.requires_grad]
    return {int(number) for number in re.findall(r"\.(\d+)\.", " ".join(free))}


def test_three_frozen_layers_are_the_bottom_ones_and_the_embeddings(model):
    teachers.freeze(model, 3)
    assert free_layers(model) == set(range(3, 12))
    assert not any(p.requires_grad for p in model.bert.embeddings.parameters())
    assert model.classifier.weight.requires_grad
    teachers.freeze(model, 1)
    assert free_layers(model) == set(range(1, 12))  # 1 is neither 10 nor 11
    teachers.freeze(model, 0)
    assert all(p.requires_grad for p in model.parameters())


def test_layers_of_another_name_are_frozen():
    size = {"n_embd": 16, "n_head": 2, "n_layer": 12}
    config = transformers.GPT2Config(vocab_size=50, **size)
    gpt = transformers.GPT2ForTokenClassification(config)
    teachers.freeze(gpt, 3)
    assert free_layers(gpt) == set(range(3, 12))
    assert not gpt.transformer.wte.weight.requires_grad


# ------------------------------------------------------------------------ precision

def dtype_of(width):
    layer = torch.nn.Linear(4, 4)
    layer.device = torch.device("cpu")
    layer.config = transformers.BertConfig(hidden_size=width)
    with teachers.autocast(layer):
        return layer(torch.ones(1, 4)).dtype


@pytest.mark.parametrize("units, pays", [  # what torch says of a processor
    ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
    ({"avx512_f": True, "avx512_bf16": True}, True),
    ({"avx512_f": True, "amx_bf16": True}, True),
    ({"sve": True, "bf16": False}, False),  # ARM
    ({"sve": True, "bf16": True}, True),
])
def test_larger_models_use_bf16_where_the_processor_has_units_for_it(monkeypatch, units, pays):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    assert dtype_of(256) == (torch.bfloat16 if pays else torch.float32)
    assert dtype_of(128) == torch.float32


def test_an_older_torch_is_asked_by_its_own_functions(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    for bf16, amx in itertools.product((True, False), repeat=2):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        assert teachers.multiplies_bf16() == (bf16 or amx)


# ------------------------------------------------------------------------ recipes

@pytest.mark.parametrize("width, layers, lr, frozen", [
    (512, 4, 5e-5, 1),
    (384, 12, 1.5e-4, 3),
    (128, 2, 2e-3, 0),
])
def test_the_recipe_goes_by_the_width_of_the_encoder(tmp_path, width, layers, lr, frozen):
    shape = {"hidden_size": width, "num_hidden_layers": layers}
    transformers.BertConfig(**shape).save_pretrained(tmp_path)
    given = teachers.parse_args([])
    found = teachers.choose_recipe(teachers.RECIPES, tmp_path, given)
    assert (found["lr"], found["freeze"]) == (lr, frozen)
    given = teachers.parse_args("--lr 0.5 --steps 7 --batch-size 2 --freeze 1".split())
    found = teachers.choose_recipe(teachers.RECIPES, tmp_path, given)
    assert found == {"lr": 0.5, "steps": 7, "batch_size": 2, "freeze": 1}


@pytest.mark.parametrize("epochs, steps, updates", [(2, 4, 6), (1, 4, 4)])
def test_steps_are_a_floor_and_train_what_is_not_frozen(model, epochs, steps, updates):
    recipe = {"lr": 1e-2, "batch_size": 2, "freeze": 3, "epochs": epochs, "steps": steps}
    before = {name: p.clone() for name, p in model.named_parameters()}
    table = windows(9, 8, 7, 6, 5)
    losses = teachers.train(model, table, teachers.recogniser_loss, recipe, 0)
    assert losses.shape == (updates,)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (not p.requires_grad), name


# ------------------------------------------------------------------------ Eqs. (1) and (2)

def test_the_recognisers_loss_equals_a_plain_loop(model):
    batch = batch_of(9, 30)
    _, logits = teachers.forward_words(model, batch)
    terms = []
    for row, tag in zip(logits.tolist(), itertools.chain(*windows(9, 30)["tags"])):
        terms.append(-log(softmax(row)[tag]))
    loss = teachers.recogniser_loss(model, batch, None)
    assert loss.item() == approx(mean(terms), rel=1e-5)


@pytest.mark.parametrize("kappa", [None, 1.0, 6.0])
def test_the_evaluators_loss_equals_a_plain_loop(model, kappa):
    batch = batch_of(9, 30)
    if kappa is not None:  # a scaled one
        model.log_kappa = torch.nn.Parameter(tensor(log(kappa)))
    loss = teachers.evaluator_loss(model, batch, random.Random(3))
    h, _ = teachers.forward_words(model, batch)
    v = F.normalize(h, dim=-1).tolist()
    tags = batch["tags"].tolist()
    pairs = teachers.draw_pairs(batch["tags"], random.Random(3))
    terms = []
    for i, j in zip(*pairs.tolist()):
        cosine = dot(v[i], v[j])
        s = 1 / (1 + exp(-(kappa or 1) * cosine))
        likely = s if tags[i] == tags[j] else 1 - s
        terms.append(-log(likely))
    assert len(terms) > 30
    assert loss.item() == approx(mean(terms), rel=1e-4)
    loss.backward()
    assert kappa is None or model.log_kappa.grad != 0
    assert teachers.evaluator_loss(model, batch_of(3), random.Random(0)) == 0  # no pair


def test_pairs_are_drawn_class_first_and_evenly():
    classes = tensor([0] * 9000 + [1] * 900 + [2] * 100)
    i, j = teachers.draw_pairs(classes, random.Random(0))
    assert len(i) == 20_000 and (i != j).all()
    same = classes[i] == classes[j]
    assert same.sum() == 10_000  # one of each for every word drawn
    for words in (i[same], i[~same], j[same], j[~same]):
        shares = torch.bincount(classes[words]) / 10_000
        assert shares.tolist() == approx([1 / 3] * 3, abs=0.02)
    of_the_last = torch.bincount(i)[-100:]  # each word of a class is as likely
    assert of_the_last.min() > 20 and of_the_last.max() < 140


@pytest.mark.parametrize("classes, n_same, n_other", [
    ([0, 0, 0], 3, 0),
    ([5], 0, 0),
    ([1, 2], 0, 2),
])
def test_one_class_or_a_word_of_each_has_the_pairs_that_there_are(classes, n_same, n_other):
    classes = tensor(classes)
    i, j = teachers.draw_pairs(classes, random.Random(0))
    same = classes[i] == classes[j]
    assert same.sum() == n_same and (~same).sum() == n_other
    assert (i != j).all()


# ------------------------------------------------------------------------ Eqs. (3) and (4)

def test_the_language_loss_equals_a_plain_loop():
    torch.manual_seed(0)
    model = teachers.LanguageSimilarity(torch.randn(3, 8))
    g = torch.randn(5, 8)
    sources = tensor([0, 1, 2, 1, 0])
    terms = []
    for row, source in zip(model.U(g).tolist(), sources.tolist()):
        scores = [dot(row, x) for x in model.V(model.mu).tolist()]
        terms.append(-log(softmax(scores)[source]))
    mu = model.mu.tolist()
    penalty = 0.0
    for m, n in itertools.product(range(3), repeat=2):
        penalty += (dot(mu[m], mu[n]) - (m == n)) ** 2
    expected = mean(terms) + teachers.SIMILARITY["penalty"] * penalty
    loss = teachers.language_loss(model, g, sources)
    assert loss.item() == approx(expected, rel=1e-4)


def test_the_weights_of_sources_equal_a_plain_loop():
    scores = [[2.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    flat = scores[0] + scores[1]
    tau = pvariance(flat)
    found = teachers.teacher_weights(tensor(scores))
    for row, a in zip(scores, found.tolist()):
        assert a == approx(softmax([x / tau for x in row]), abs=1e-6)
    assert (teachers.teacher_weights(torch.ones(4, 1)) == 1).all()  # a single source


def test_similarity_tells_languages_apart_after_training():
    torch.manual_seed(0)
    features = [centre + torch.randn(200, 16) for centre in 3 * torch.randn(3, 16)]
    model = teachers.train_similarity(features)
    for k, g in enumerate(features):
        assert (model(g).argmax(-1) == k).float().mean() > 0.9


def test_a_sentences_features_are_its_mean_last_state(toy):
    table = teachers.load_table(toy, "data/targets/qac/test")
    found = teachers.sentence_features(str(toy / "encoder"), table, "cpu")
    model = transformers.AutoModel.from_pretrained(toy / "encoder").eval()
    for number in (0, 7, 39):
        ids = tensor([table[number]["input_ids"]])
        with torch.no_grad():
            h = model(ids).last_hidden_state
        assert allclose(found[number], h[0].mean(0), atol=1e-5)


# ------------------------------------------------------------------------ the stage

def test_a_cache_is_what_its_teacher_says_by_its_own_tokenizer(toy):
    folder = toy / "teachers/recogniser-qaa-s0"
    table = teachers.load_table(toy, "data/targets/qac/test")
    text = [" ".join(words) for words in table["words"]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer(text)["input_ids"] == list(table["input_ids"])
    tags = teachers.read_config(toy)["tags"]
    model = teachers.load_tagger(folder, tags, 0, "cpu")
    assert list(model.config.id2label.values()) == tags
    cached = load_file(toy / "logits/qac/recogniser-qaa-s0/test.safetensors")
    assert torch.equal(cached["logits"], teachers.predict_words(model, table, "cpu"))


def test_an_evaluators_scale_is_a_fact_and_no_weight(toy):
    kappa = data.read_record(toy / "teachers/scaled-qaa-s0")["facts"]["kappa"]
    assert kappa > 0 and kappa not in (1, 10)  # it has learned
    assert data.read_record(toy / "logits/qac/scaled-qaa-s0")["facts"]["kappa"] == kappa
    assert "log_kappa" not in load_file(toy / "teachers/scaled-qaa-s0/model.safetensors")
    assert data.read_record(toy / "teachers/evaluator-qaa-s0")["facts"]["kappa"] == 1


def test_a_teacher_whose_weights_are_not_in_its_file_is_refused(copied):
    path = copied / "teachers/recogniser-qaa-s0/model.safetensors"
    tensors = load_file(path)
    tensors["hidden2tag.bias"] = tensors.pop("classifier.bias")
    save_file(tensors, path, metadata={"format": "pt"})
    shutil.rmtree(copied / "logits/qac/recogniser-qaa-s0")
    says = ["recogniser-qaa-s0", "classifier.bias", "not in its files"]
    refused("02_teachers.py", copied, *QUICK, says=says)


def test_a_recogniser_that_finds_nothing_is_named_with_what_to_try(copied):
    flags = ["--sources", "qaa", "--targets", "qac", "--seeds", "7"]
    printed = here("02_teachers.py", copied, *flags)  # after four steps
    assert "recogniser-qaa-s7 finds no entity: try a third of --lr" in printed
    assert not (copied / "logits/qbc/recogniser-qaa-s7").exists()


def test_text_or_encoder_that_changed_since_are_refused(copied):
    here("01_data.py", copied, "--max-length", "64", "--overwrite")
    says = ["recogniser-qaa-s0: made from other data/sources/qaa", "--overwrite"]
    refused("02_teachers.py", copied, *QUICK, says=says)
    (copied / "encoder/.git").mkdir()
    (copied / "encoder/.git/config").write_text("no file of the encoder")
    teachers.read_config(copied)
    path = copied / "encoder/model.safetensors"
    tensors = {name: 2 * x for name, x in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})  # weights replaced in place
    refused("02_teachers.py", copied, says=["encoder differs", "01_data.py --overwrite"])
    path.parent.rename(copied / "moved")
    refused("02_teachers.py", copied, says=["encoder: no such folder: has the encoder moved?"])


@pytest.mark.parametrize("flags, says", [
    ("--sources zz", "--sources zz: choose among qaa"),
    ("--targets zz", "--targets zz: choose among qac"),
    ("--freeze 2 --seeds 3", "--freeze 2: the encoder has 2 layers"),
    ("--freeze -1 --seeds 3", "--steps and --batch-size: at least 1; --freeze: at least 0"),
    ("--batch-size 0 --seeds 3", "--steps and --batch-size: at least 1"),
    ("--steps 5 --seeds 0", "recogniser-qaa-s0: made from other steps: pass --overwrite"),
    ("--teacher qaa=.", "--teacher qaa=."),
    ("--teacher a-b=.", "--teacher a-b=."),
    ("--teacher pooled=.", "--teacher pooled=."),
    ("--teacher kl=.", "--teacher kl=."),
    ("--teacher x=nowhere", "--teacher x=nowhere"),
])
def test_flags_that_cannot_be_are_refused(toy, flags, says):
    refused("02_teachers.py", toy, *flags.split(), says=says)


# ------------------------------------------------------------------------ tagged files

def retagged(lang, split, words, tags):
    """IOB1, as no two entities touch, and a type that is none of ours."""
    return [tag.replace("B-", "I-").replace("ORG", "FIRM") for tag in tags]


def test_tags_of_files_of_any_scheme_are_read_and_kept_until_they_change(copied, tmp_path):
    folder = to_conll(tmp_path / "x", ["qac"], retagged)
    flags = ["--targets", "qac", "--teacher", f"x={folder}"]
    printed = here("02_teachers.py", copied, *flags)
    assert "wrote qac/external-x-s0" in printed and "read as O" in printed
    logits = load_file(copied / "logits/qac/external-x-s0/test.safetensors")["logits"]
    assert logits.unique().tolist() == [-20, 0]
    known = teachers.read_config(copied)["tags"]
    expected = []
    for _, tags in data.toy_corpus("qac", 0)["test"][:40]:
        expected += ["O" if "ORG" in tag else tag for tag in tags]
    assert [known[k] for k in logits.argmax(-1)] == expected
    assert "wrote" not in here("02_teachers.py", copied, *flags)
    to_conll(folder, ["qac"])
    says = ["external-x-s0: made from other files", "--overwrite"]
    refused("02_teachers.py", copied, *QUICK, *flags, says=says)


BAD = {  # train.txt beside a target of the two sentences of GOOD, and what the line says
    "other words": (GOOD.replace("Oslo", "Rome"), "sentence 1: not the target's words"),
    "no tags": ("Anna\nlives\nin\nOslo\n\nBo\nruns\n", "each with a tag"),
    "other labels": (GOOD.replace("PER", "X").replace("LOC", "Y"), "none of its types is one of"),
}


@pytest.fixture(scope="module")
def without_sources(tmp_path_factory):
    """Artifacts of a target alone."""
    folder = tmp_path_factory.mktemp("alone")
    flags = ["--data-dir", corpus(folder / "in"), "--targets", "bb", "--encoder", "scratch"]
    here("01_data.py", folder / "a", *flags, "--types", "PER", "LOC")
    return folder / "a"


@pytest.mark.parametrize("case", BAD)
def test_tagged_files_that_do_not_fit_are_refused(without_sources, tmp_path, case):
    content, says = BAD[case]
    folder = corpus(tmp_path / "in", bb={"train": content})
    flags = ["--teacher", f"x={folder}"]
    refused("02_teachers.py", without_sources, *flags, says=["bb/train.txt", says])
