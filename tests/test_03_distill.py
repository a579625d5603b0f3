"""Stage 3: the losses against plain Python loops, and what the students of a tiny run leave."""

import importlib
import json
import math
import random
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file

from conftest import bits, here, refused, to_conll

teachers = importlib.import_module("02_teachers")
distill = importlib.import_module("03_distill")

K, M, C, H = 3, 7, 5, 6
METHODS = dict(distill.METHODS)
METHODS["tsl-<source>"] = distill.TSL
METHODS["mtmt-<source>"] = distill.MTMT
SOURCES = ["qaa", "qab", "qba", "qbb"]


@pytest.fixture
def batch():
    """K teachers, a student, M words and some pairs of them."""
    torch.manual_seed(0)
    made = SimpleNamespace()
    made.logits = torch.randn(K, M, C)
    made.w = torch.softmax(torch.randn(K), 0)
    made.student = torch.randn(M, C) * 2
    made.h = torch.randn(M, H)
    made.v = F.normalize(torch.randn(K, M, H), dim=-1)
    made.kappas = torch.tensor([4.0, 9.0, 11.0])
    made.p = distill.mixture(made.logits, made.w)
    return made


def tau_of(method):
    return method.tau if method.loss == "kl" else 1.0


def loss_of(batch, method, **changes):
    """A method's loss and terms on a batch, some of it changed; always the same pairs."""
    b = SimpleNamespace(**dict(vars(batch), **changes))
    tau = tau_of(method)
    p = distill.mixture(b.logits, b.w, tau)
    said = b.v, b.w, b.kappas
    return distill.student_loss(b.student, b.h, p, said, method, random.Random(3))


def softmax(row):
    top = [math.exp(x) for x in row]
    return [x / sum(top) for x in top]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def cosine(a, b):
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def cross_entropy(t, q):
    return -t * math.log(q) - (1 - t) * math.log(1 - q)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


# ------------------------------------------------------------------------ what the teachers say

@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_the_teachers_is_irrelevant(batch, name):
    turn = torch.tensor([2, 0, 1])
    turned = {x: getattr(batch, x)[turn] for x in ("logits", "w", "v", "kappas")}
    there, _ = loss_of(batch, METHODS[name])
    back, _ = loss_of(batch, METHODS[name], **turned)
    assert back.item() == pytest.approx(there.item(), rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_one_teacher_of_weight_one_among_others_is_that_teacher_alone(batch, name):
    alone = {x: getattr(batch, x)[:1] for x in ("logits", "v", "kappas")}
    single, _ = loss_of(batch, METHODS[name], w=torch.ones(1), **alone)
    among, _ = loss_of(batch, METHODS[name], w=torch.tensor([1.0, 0, 0]))
    assert among.item() == pytest.approx(single.item(), rel=1e-5)


# ------------------------------------------------------------------------ Eq. (6)

def test_the_squared_errors_gradient_is_that_of_the_formula(batch):
    """dL / dz_c = 2 q_c ((q_c - p_c) - sum_b q_b (q_b - p_b))"""
    z = batch.student.clone().requires_grad_()
    distill.squared_error(z, batch.p).sum().backward()
    q = torch.softmax(batch.student, -1)
    gap = q - batch.p
    mean_gap = (q * gap).sum(-1, keepdim=True)
    assert torch.allclose(z.grad, 2 * q * (gap - mean_gap), atol=1e-6)


@pytest.mark.parametrize("tau", [1.0, 2.0, 5.0])
def test_the_gradient_of_kl_is_tau_times_q_minus_p(batch, tau):
    z = batch.student.clone().requires_grad_()
    p = distill.mixture(batch.logits, batch.w, tau)
    distill.soft_target_loss(z, p, tau).sum().backward()
    q = torch.softmax(batch.student / tau, -1)
    assert torch.allclose(z.grad, tau * (q - p), atol=1e-5)


def test_kl_takes_one_hot_targets(batch):
    one_hot = F.one_hot(batch.p.argmax(-1), C).float()
    losses = distill.soft_target_loss(batch.student, one_hot, 1.0)
    expected = F.cross_entropy(batch.student, batch.p.argmax(-1))
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-5)


def test_only_kl_has_a_gradient_where_the_student_is_confidently_wrong():
    p = torch.tensor([[1.0, 0.0]])
    z = torch.tensor([[-15.0, 15.0]], requires_grad=True)
    squared = distill.squared_error(z, p)
    kl = distill.soft_target_loss(z, p, 1.0)
    assert torch.autograd.grad(squared, z)[0].abs().max() < 1e-10
    assert torch.autograd.grad(kl, z)[0].abs().max() > 0.99


# ------------------------------------------------------------------------ Eqs. (7) and (8)

def test_the_similarity_gradient_is_sigmoid_of_the_cosine_minus_t():
    angle = torch.tensor(math.acos(0.6), requires_grad=True)
    turned = torch.stack([torch.cos(angle), torch.sin(angle)])
    h = torch.stack([turned, torch.tensor([1.0, 0.0])])
    i = torch.tensor([0])
    j = torch.tensor([1])
    distill.similarity_loss(h, i, j, torch.tensor([0.55])).sum().backward()
    by_cosine = angle.grad.item() / -math.sin(math.acos(0.6))
    assert by_cosine == pytest.approx(sigmoid(0.6) - 0.55, abs=1e-5)


def test_the_stated_ranges_and_floors():
    low = sigmoid(-1)
    high = sigmoid(1)
    assert (round(low, 4), round(high, 4)) == (0.2689, 0.7311)
    assert round(math.log(1 + math.exp(-1)), 4) == 0.3133
    t = torch.linspace(low, high, 1001)
    for values, expected in [
        (distill.entropy(t), (0.5822, 0.6931)),
        (distill.beta(t), (0.5, 0.7136)),
        (distill.entropy(torch.tensor([0.0, 1.0])), (0, 0)),
        (distill.beta(torch.tensor([0.0, 1.0])), (1, 1)),
    ]:
        found = values.min().item(), values.max().item()
        assert found == pytest.approx(expected, abs=5e-5)


def test_alphas_corners_are_the_sure_word_and_the_even_one():
    p = torch.tensor([[0, 1.0], [0.5, 0.5]])
    assert distill.alpha(p).tolist() == [1, 0.25]


@pytest.mark.parametrize("recognisers, evaluators, published, scaled", [
    ("same", "same", 1.000, 1),
    ("different", "different", 0.769, 1),
    ("same", "different", 0.538, 0),
    ("different", "same", 0.769, 0),
])
def test_gammas_four_corners(recognisers, evaluators, published, scaled):
    p_i = torch.tensor([[1.0, 0.0]])
    p_j = p_i if recognisers == "same" else torch.tensor([[0.0, 1.0]])
    cos = torch.tensor([1.0 if evaluators == "same" else -1.0])
    found = distill.gamma(p_i, p_j, torch.sigmoid(cos)).item()
    assert found == pytest.approx(published, abs=5e-4)
    found = distill.gamma(p_i, p_j, torch.sigmoid(30 * cos), scaled=True).item()
    assert found == pytest.approx(scaled, abs=1e-6)


# ------------------------------------------------------------------------ Eq. (9)

def plain_mixture(logits, w, tau):
    """(5), by loops over lists of teachers, words and tags."""
    p = []
    for m in range(M):
        said = [softmax([x / tau for x in logits[k][m]]) for k in range(K)]
        p.append([dot(w, by_teacher) for by_teacher in zip(*said)])
    return p


def plain_recognition(method, z, p):
    """(6) of every word."""
    losses = []
    for student, teacher in zip(z, p):
        if method.loss == "kl":
            q = softmax([x / method.tau for x in student])
            kl = sum(a * math.log(a / b) for a, b in zip(teacher, q))
            losses.append(method.tau**2 * kl)
        else:
            q = softmax(student)
            losses.append(sum((a - b) ** 2 for a, b in zip(q, teacher)))
    return losses


def plain_terms(method, b, pairs):
    """The loss of a student and its terms, by loops over lists."""
    tau = tau_of(method)
    p = plain_mixture(b["logits"], b["w"], tau)
    e = plain_recognition(method, b["student"], p)
    found = {"loss": mean(e), "recognition": mean(e)}
    if not method.pairs:
        return found
    weighted = []
    terms = []
    for i, j in pairs:
        s = []
        for v, kappa in zip(b["v"], b["kappas"]):
            s.append(sigmoid(kappa * cosine(v[i], v[j])))
        t = dot(b["w"], s)
        kappa = dot(b["w"], b["kappas"])
        q = sigmoid(kappa * cosine(b["h"][i], b["h"][j]))
        r = sigmoid(cosine(p[i], p[j]))
        if method.scaled:
            r = dot(p[i], p[j])
        beta = min(1, (2 * t - 1) ** 2 + 0.5) if method.beta else 1
        gamma = 1 - abs(r - t) if method.gamma else 1
        weighted.append(gamma * beta * cross_entropy(t, q))
        above = cross_entropy(t, q) - cross_entropy(t, t)
        terms.append((above, beta, gamma))
    alphas = [max(row) ** 2 if method.alpha else 1 for row in p]
    found["alpha"] = mean(alphas)
    found["similarity"], found["beta"], found["gamma"] = map(mean, zip(*terms))
    found["loss"] = dot(alphas, e) / M
    if method.similarity:
        found["loss"] += method.lam * mean(weighted)
    return found


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("lam", [0.5, 0.3])
def test_the_loss_of_every_method_equals_a_plain_loop(batch, name, lam):
    assert METHODS[name].lam == 0.5  # the default
    method = replace(METHODS[name], lam=lam)
    loss, terms = loss_of(batch, method)
    lists = {key: value.tolist() for key, value in vars(batch).items()}
    tau = tau_of(method)
    p = distill.mixture(batch.logits, batch.w, tau)
    i, j = teachers.draw_pairs(p.argmax(-1), random.Random(3))
    expected = plain_terms(method, lists, zip(i.tolist(), j.tolist()))
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-4)
    terms = {key: value.item() for key, value in terms.items()}
    assert terms == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_a_student_that_is_its_one_teacher_has_no_loss_and_no_gradient(batch, name):
    method = METHODS[name]
    tau = tau_of(method)
    one = {"logits": batch.logits[:1], "v": batch.v[:1], "kappas": batch.kappas[:1]}
    p = distill.mixture(one["logits"], torch.ones(1), tau)
    one["student"] = (tau * p.log()).requires_grad_()
    one["h"] = batch.v[0].clone().requires_grad_()
    loss, terms = loss_of(batch, method, w=torch.ones(1), **one)
    loss.backward()
    assert abs(terms["recognition"]) < 1e-5
    assert abs(terms.get("similarity", 0)) < 1e-5
    for given in (one["student"], one["h"]):
        assert given.grad is None or given.grad.abs().max() < 1e-5


@pytest.mark.parametrize("name", METHODS)
def test_every_method_moves_the_student_and_by_the_second_task_its_states(batch, name):
    method = METHODS[name]
    student = batch.student.clone().requires_grad_()
    h = batch.h.clone().requires_grad_()
    loss, _ = loss_of(batch, method, student=student, h=h)
    loss.backward()
    assert student.grad.abs().max() > 1e-3
    moved = h.grad is not None and h.grad.abs().max() > 1e-4
    assert moved == (method.pairs and method.similarity)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("n", [1, 3])
def test_a_lone_word_and_words_of_one_class_have_a_finite_loss(batch, name, n):
    student = batch.student[:n].clone().requires_grad_()
    says_o = torch.zeros(K, n, C)
    says_o[..., 0] = 9
    changed = {"logits": says_o, "h": batch.h[:n], "v": batch.v[:, :n]}
    loss, _ = loss_of(batch, METHODS[name], student=student, **changed)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()
    assert student.grad.abs().max() > 0


# ------------------------------------------------------------------------ the model's part

@pytest.fixture
def model():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=50, num_hidden_layers=2, num_labels=C, **size)
    return transformers.BertForTokenClassification(config).eval()


def windows(*lengths):
    """Rows of random sub-tokens, every second of them the first of its word."""
    rows = {"input_ids": [], "first": [], "start": []}
    for length in lengths:
        ids = torch.randint(5, 50, (length,))
        rows["input_ids"].append(ids.tolist())
        rows["first"].append(list(range(1, length - 1, 2)))
        rows["start"].append(0)
    return rows


@pytest.mark.parametrize("name", METHODS)
def test_padding_does_not_change_the_loss(model, name):
    plain = teachers.collate(windows(9, 14), "cpu")
    padded = dict(plain)
    for key in ("input_ids", "attention_mask", "f"):
        padded[key] = F.pad(plain[key], (0, 11))
    padded["input_ids"][:, 14:] = 7  # any id will do
    torch.manual_seed(1)
    n = len(plain["words"])
    p = torch.softmax(torch.randn(n, C), -1)
    said = F.normalize(torch.randn(K, n, 16), dim=-1), torch.ones(K) / K, torch.ones(K)
    losses = []
    for given in (plain, padded):
        h, logits = teachers.forward_words(model, given)
        loss, _ = distill.student_loss(logits, h, p, said, METHODS[name], random.Random(0))
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


# ------------------------------------------------------------------------ who teaches whom

def find(artifacts, sources, target, name):
    args = distill.parse_args(["--artifacts", str(artifacts)])
    return distill.find_teachers(args, {"sources": sources}, target, name, 0)


def test_each_foreign_teacher_has_a_share_of_the_mixture_and_the_sources_the_rest(copied):
    a = load_file(copied / "weights/qac/sentences.safetensors")
    expected = [mean(a[source].tolist()) for source in SOURCES]
    _, _, weights, _, w = find(copied, SOURCES, "qac", "tsl-sim")
    assert w.tolist() == pytest.approx(expected)
    assert w.std() > 0 and weights.equal(w)
    for name in ("external-x-s0", "external-y-s0"):
        (copied / "logits/qac" / name).mkdir()
    _, names, weights, _, _ = find(copied, SOURCES, "qac", "tsl-sim")
    assert names[4:] == ["logits/qac/external-x-s0", "logits/qac/external-y-s0"]
    expected = [4 / 6 * x for x in expected] + [1 / 6, 1 / 6]
    assert weights.tolist() == pytest.approx(expected)
    _, names, weights, _, _ = find(copied, SOURCES, "qac", "tsl-avg")
    assert weights.tolist() == pytest.approx([1 / 6] * 6)
    _, names, weights, _, _ = find(copied, SOURCES, "qac", "tsl-x")
    assert names == ["logits/qac/external-x-s0"] and weights.tolist() == [1]


def test_a_source_that_is_a_target_is_left_out_of_its_own_teachers(tmp_path):
    for name, target, teacher, evaluator in [
        ("mtmt", "bb", "recogniser-aa", "evaluator-aa"),
        ("mtmt-scaled", "bb", "recogniser-aa", "scaled-aa"),
        ("mtmt-pooled", "bb", "recogniser-pooled-without-bb", "scaled-pooled-without-bb"),
        ("mtmt-pooled", "cc", "recogniser-pooled", "scaled-pooled"),
    ]:
        (tmp_path / f"logits/{target}/{evaluator}-s0").mkdir(parents=True, exist_ok=True)
        _, recognisers, weights, evaluators, _ = find(tmp_path, ["aa", "bb"], target, name)
        assert recognisers == [f"logits/{target}/{teacher}-s0"] and weights.tolist() == [1]
        assert evaluators == [f"logits/{target}/{evaluator}-s0"]


def test_methods_by_name():
    assert distill.choose_method("tsl-aa", ["aa", "bb"], ["x"]) == (distill.TSL, ["aa"], [])
    assert distill.choose_method("mtmt-bb", ["aa", "bb"], []) == (distill.MTMT, ["bb"], [])
    assert distill.choose_method("tsl-x", ["aa"], ["x"]) == (distill.TSL, [], ["x"])


@pytest.mark.parametrize("name", ["tsl", "tsl-cc", "mtmt-x", "kd-aa", "mtmt-", "tsl-pooled"])
def test_methods_that_do_not_exist_are_refused_with_those_that_do(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        distill.choose_method(name, ["aa", "bb"], ["x"])
    line = capsys.readouterr().err
    assert stopped.value.code == 2 and line.count("\n") == 1
    assert f"--methods {name}: " in line and "mtmt-pooled" in line and "tsl-x" in line


# ------------------------------------------------------------------------ students of the tiny run

QAC = ["--targets", "qac"]
TRAINED = "students/**/*.safetensors"


def distil(artifacts, *methods):
    """Students of qac; flags may follow the methods."""
    here("03_distill.py", artifacts, *QAC, "--methods", *methods)


def declines(artifacts, says, *methods):
    flags = ["--seeds", "0", "--steps", "4", *QAC, "--methods", *methods]
    refused("03_distill.py", artifacts, *flags, says=says)


@pytest.fixture
def taught(toy, tmp_path):
    """The tiny run, its students still to be made."""
    return shutil.copytree(toy, tmp_path / "a", ignore=shutil.ignore_patterns("students"))


@pytest.fixture
def seen(monkeypatch):
    """What every call of student_loss was given and gave, as a list that grows."""
    calls = []
    whole = distill.student_loss

    def spy(student_logits, h, p, evaluators, method, rng):
        loss, terms = whole(student_logits, h, p, evaluators, method, rng)
        call = {"p": p, "evaluators": evaluators, "method": method, "loss": loss}
        calls.append(SimpleNamespace(**call))
        return loss, terms

    monkeypatch.setattr(distill, "student_loss", spy)
    return calls


@pytest.mark.parametrize("steps, rows", [(23, 10), (10, 10), (3, 3)])
def test_a_student_takes_as_many_steps_as_it_is_told_and_logs_ten_rows(taught, seen, steps, rows):
    distil(taught, "mtmt", "--steps", steps)
    assert len(seen) == steps
    log = pd.read_csv(taught / "students/qac/mtmt-s0/log.csv")
    terms = ["step", "recognition", "similarity", "alpha", "beta", "gamma", "loss"]
    assert len(log) == rows and list(log) == terms
    assert log.step.is_monotonic_increasing and log.step.iloc[-1] <= steps
    parts = [[] for _ in range(rows)]
    for number, call in enumerate(seen):
        parts[number * rows // steps].append(call.loss.item())
    assert log.loss.tolist() == pytest.approx([mean(part) for part in parts], abs=1e-4)


def test_the_log_of_a_student_without_pairs_has_no_terms_of_pairs(toy):
    log = pd.read_csv(toy / "students/qac/tsl-sim-s0/log.csv")
    assert list(log) == ["step", "recognition", "loss"]


def test_what_students_and_their_mixture_say_is_kept_word_by_word(toy):
    folder = toy / "students/qbc/tsl-sim-s0"
    tags = load_file(folder / "tags.safetensors")
    assert set(tags) == {"student_train", "mixture_train", "student_test", "mixture_test"}
    for name, said in tags.items():
        split = name.partition("_")[2]
        table = teachers.load_table(toy, f"data/targets/qbc/{split}")
        n_words = sum(len(words) for words in table["words"])
        assert said.dtype == torch.uint8 and said.shape == (n_words,)
    logits = load_file(folder / "test.safetensors")["logits"]
    assert tags["student_test"].equal(logits.argmax(-1).byte())


def test_the_ensemble_is_the_weighted_mixture_of_the_recognisers(toy):
    _, names, weights, _, _ = find(toy, SOURCES, "qac", "tsl-sim")
    p = 0
    for name, weight in zip(names, weights):
        logits = load_file(toy / name / "test.safetensors")["logits"].float()
        p = p + weight * torch.softmax(logits, -1)
    ensemble = load_file(toy / "logits/qac/ensemble-s0/test.safetensors")["logits"]
    assert torch.allclose(ensemble.float().exp(), p, atol=2e-3)


def test_students_in_any_order_need_caches_alone_and_give_no_teacher_a_gradient(taught, toy, seen):
    for folder in taught.glob("teachers/*-q*"):
        shutil.rmtree(folder)
    caches = bits(taught, "logits/**/*.safetensors")
    here("03_distill.py", taught, "--methods", "mtmt-pooled", "mtmt", "tsl-sim")
    made = bits(taught, TRAINED)
    assert len(made) == 18 and made.items() <= bits(toy).items()
    assert caches == bits(taught, "logits/**/*.safetensors")
    for call in seen:
        said = [call.p, *(call.evaluators or [])]
        assert call.loss.requires_grad and not any(x.requires_grad for x in said)


def test_student_loss_is_all_that_a_student_minimises(taught, monkeypatch):
    """With zero times that loss no weight has a gradient, whatever the method."""
    whole = distill.student_loss
    step = teachers.step
    largest = []
    factor = [1.0]

    def scaled(*given):
        loss, terms = whole(*given)
        return factor[0] * loss, terms

    def watch(loss, model, *training):
        loss.backward(retain_graph=True)
        grown = [x.grad.abs().max() for x in model.parameters() if x.grad is not None]
        largest.append(max(grown).item())
        model.zero_grad()
        step(loss, model, *training)

    monkeypatch.setattr(teachers, "step", watch)
    monkeypatch.setattr(distill, "student_loss", scaled)
    distil(taught, "mtmt-qab", "--steps", "1")
    assert largest.pop() > 0
    factor[0] = 0.0
    distil(taught, *distill.METHODS, "tsl-qaa", "mtmt-qaa", "--steps", "1")
    assert largest == [0.0] * len(METHODS)


def test_teachers_are_softened_as_the_student_is_and_by_kl_alone(taught, monkeypatch):
    taus = []
    mixture = distill.mixture

    def spy(teacher_logits, weights, tau=1.0):
        taus.append(tau)
        return mixture(teacher_logits, weights, tau)

    monkeypatch.setattr(distill, "mixture", spy)
    distil(taught, "tsl-kl")
    assert taus == [2.0] * 6  # four steps, and twice for fidelity
    taus.clear()
    distil(taught, "tsl-avg")
    assert taus == [1.0] * 6


def test_the_scales_of_the_evaluators_reach_the_student_by_their_facts(taught, seen):
    kappas = []
    for source in SOURCES:
        path = taught / f"logits/qac/scaled-{source}-s0/record.json"
        changed = json.loads(path.read_text())
        kappas.append(len(kappas) + 2.5)
        changed["facts"]["kappa"] = kappas[-1]
        path.write_text(json.dumps(changed))
    distil(taught, "mtmt-scaled")
    assert seen[0].evaluators[2].tolist() == kappas
    seen.clear()
    distil(taught, "mtmt")
    assert seen[0].evaluators[2].tolist() == [1, 1, 1, 1]


def test_lambda_is_the_weight_of_the_second_task(taught, seen):
    distil(taught, "mtmt", "--lambda", "0.1")
    assert {call.method.lam for call in seen} == {0.1}
    declines(taught, ["students/qac/mtmt-s0", "lam", "--overwrite"], "mtmt")


def test_a_pooled_student_starts_from_the_pooled_recogniser(taught):
    distil(taught, "self-pooled", "--lr", "1e-9")
    start = load_file(taught / "teachers/recogniser-pooled-s0/model.safetensors")
    student = load_file(taught / "students/qac/self-pooled-s0/model.safetensors")
    for name, weights in start.items():
        assert torch.allclose(weights.float(), student[name], atol=1e-6), name


@pytest.mark.parametrize("step", [1, 15, 20])  # the first, one in the middle, the last
def test_a_loss_that_is_no_number_stops_with_the_students_name(taught, seen, monkeypatch, step):
    spy = distill.student_loss

    def breaks(*given):
        loss, terms = spy(*given)
        if len(seen) >= step:
            loss = loss * math.nan
            terms["loss"] = loss
        return loss, terms

    monkeypatch.setattr(distill, "student_loss", breaks)
    says = ["tsl-sim-s0", "qac", "not finite", "--lr"]
    declines(taught, says, "tsl-sim", "--steps", "20")
    assert not (taught / "students").exists()


def test_a_typing_mistake_is_refused_before_any_training(taught, seen):
    declines(taught, "--methods mtmtt", "tsl-avg", "mtmtt")
    assert not seen


def test_a_run_whose_teachers_are_missing_is_refused(taught):
    shutil.rmtree(taught / "logits/qac/evaluator-qba-s0")
    declines(taught, ["evaluator-qba-s0", "missing"], "mtmt")


def test_no_language_teaches_itself_and_a_method_may_end_as_a_target_is_called(toy, tmp_path):
    """kl is Kalaallisut: tsl-kl is a student there as everywhere."""
    text = to_conll(tmp_path / "in", ["qaa", "qab"], n=8)
    shutil.copytree(text / "qab", text / "kl")
    flags = ["--data-dir", text, "--sources", "qaa", "qab", "--encoder", toy / "encoder"]
    here("01_data.py", tmp_path / "a", *flags, "--targets", "qab", "kl")
    here("02_teachers.py", tmp_path / "a")
    here("03_distill.py", tmp_path / "a", "--methods", "tsl-kl", "tsl-qab", "--logits-only")
    made = {str(x.relative_to(tmp_path / "a")) for x in tmp_path.glob("a/students/*/*-s0")}
    assert made == {"students/qab/tsl-kl-s0", "students/kl/tsl-kl-s0", "students/kl/tsl-qab-s0"}