"""Stage 3: the losses against plain Python loops, and what the students of a tiny run leave."""

import importlib
import json
import math
import random
import shutil
from dataclasses import replace
from statistics import mean
from types import SimpleNamespace
from unittest import mock

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from numpy import dot
from safetensors.torch import load_file

from conftest import bits, here, refused, softmax

teachers = importlib.import_module("02_teachers")
distill = importlib.import_module("03_distill")

K, M, C, H = 3, 7, 5, 6
METHODS = dict(distill.METHODS)
METHODS["tsl-<source>"] = distill.TSL
METHODS["mtmt-<source>"] = distill.MTMT
SOURCES = ["qaa", "qab", "qba", "qbb"]
every_method = pytest.mark.parametrize("name", METHODS)


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


def loss_of(batch, method):
    """A method's loss and terms on a batch, always of the same pairs."""
    p = distill.mixture(batch.logits, batch.w, method.tau)
    evaluators = batch.v, batch.w, batch.kappas
    return distill.student_loss(batch.student, batch.h, p, evaluators, method, random.Random(3))


def cosine(a, b):
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def cross_entropy(t, q):
    return -t * math.log(q) - (1 - t) * math.log(1 - q)


@every_method
def test_the_order_of_teachers_is_irrelevant(batch, name):
    there, _ = loss_of(batch, METHODS[name])
    for what in ("logits", "w", "v", "kappas"):
        setattr(batch, what, getattr(batch, what)[[2, 0, 1]])
    back, _ = loss_of(batch, METHODS[name])
    assert back.item() == pytest.approx(there.item(), rel=1e-5)


def test_the_stated_ranges_and_floors():
    low = sigmoid(-1)
    high = sigmoid(1)
    assert [low, high] == pytest.approx([0.2689, 0.7311], abs=5e-5)
    published = torch.linspace(low, high, 1001)
    sure = torch.tensor([0.0, 1.0])
    for values, lowest, highest in [
        (distill.entropy(published), 0.5822, 0.6931),
        (distill.beta(published), 0.5, 0.7136),
        (distill.entropy(sure), 0, 0),
        (distill.beta(sure), 1, 1),
    ]:
        assert values.min().item() == pytest.approx(lowest, abs=5e-5)
        assert values.max().item() == pytest.approx(highest, abs=5e-5)
    same = torch.tensor([[1.0, 0.0]])
    other = torch.tensor([[0.0, 1.0]])
    for p_j, t, corner in [(same, high, 1), (other, low, 0.769), (same, low, 0.538)]:
        found = distill.gamma(same, p_j, torch.tensor(t))
        assert found.item() == pytest.approx(corner, abs=5e-4)


# ------------------------------------------------------------------------ the whole loss, Eq. (9)

def plain_mixture(logits, w, tau):
    """(5), by loops over lists of teachers, words and tags."""
    p = []
    for m in range(M):
        said = [softmax([x / tau for x in logits[k][m]]) for k in range(K)]
        p.append([dot(w, by_teacher) for by_teacher in zip(*said)])
    return p


def plain_recognition(method, student, teacher):
    """(6) of a word."""
    if method.loss == "kl":
        q = softmax([x / method.tau for x in student])
        kl = [a * math.log(a / b) for a, b in zip(teacher, q)]
        return method.tau**2 * sum(kl)
    q = softmax(student)
    return sum((a - b) ** 2 for a, b in zip(q, teacher))


def plain_terms(method, b, pairs):
    """The loss of a student and its terms, by loops over lists."""
    p = plain_mixture(b["logits"], b["w"], method.tau)
    e = [plain_recognition(method, z, said) for z, said in zip(b["student"], p)]
    found = {"loss": mean(e), "recognition": mean(e)}
    if not method.pairs:
        return found
    kappa = dot(b["w"], b["kappas"])
    terms = []
    for i, j in pairs:
        t = 0
        for w_k, v, kappa_k in zip(b["w"], b["v"], b["kappas"]):
            t += w_k * sigmoid(kappa_k * cosine(v[i], v[j]))
        q = sigmoid(kappa * cosine(b["h"][i], b["h"][j]))
        r = sigmoid(cosine(p[i], p[j]))
        if method.scaled:
            r = dot(p[i], p[j])
        beta = min(1, (2 * t - 1) ** 2 + 0.5) if method.beta else 1
        gamma = 1 - abs(r - t) if method.gamma else 1
        bce = cross_entropy(t, q)
        above = bce - cross_entropy(t, t)
        terms.append([above, beta, gamma, gamma * beta * bce])
    alphas = [max(row) ** 2 if method.alpha else 1 for row in p]
    found["alpha"] = mean(alphas)
    found["loss"] = dot(alphas, e) / M
    found["similarity"], found["beta"], found["gamma"], weighted = map(mean, zip(*terms))
    found["loss"] += method.lam * weighted
    return found


@every_method
def test_the_loss_of_every_method_equals_a_plain_loop(batch, name):
    assert METHODS[name].lam in (0, 0.5)  # the README's
    method = replace(METHODS[name], lam=0.6 * METHODS[name].lam)  # and any other is used
    lists = {key: value.tolist() for key, value in vars(batch).items()}
    p = distill.mixture(batch.logits, batch.w, method.tau)
    i, j = teachers.draw_pairs(p.argmax(-1), random.Random(3))
    expected = plain_terms(method, lists, zip(i.tolist(), j.tolist()))
    loss, terms = loss_of(batch, method)
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-4)
    terms = {key: value.item() for key, value in terms.items()}
    assert terms == pytest.approx(expected, rel=1e-3)


@every_method
def test_the_gradient_of_every_method_is_that_of_its_loss(batch, name):
    """By finite differences: no part of it is detached."""
    def loss(student, h):
        batch.student = student
        batch.h = h
        return loss_of(batch, METHODS[name])[0]
    given = batch.student.double().requires_grad_(), batch.h.double().requires_grad_()
    assert torch.autograd.gradcheck(loss, given, eps=1e-3, atol=1e-3)


@every_method
@pytest.mark.parametrize("n", [1, 3])
def test_a_lone_word_and_words_of_one_class_have_a_finite_loss(batch, name, n):
    batch.student = batch.student[:n].requires_grad_()
    batch.h = batch.h[:n]
    batch.v = batch.v[:, :n]
    batch.logits = torch.zeros(K, n, C)
    batch.logits[..., 0] = 9
    method = METHODS[name]
    loss, terms = loss_of(batch, method)
    if n == 1:  # alpha counts without a pair, too
        expected = terms["recognition"]
        if method.alpha:
            p = distill.mixture(batch.logits, batch.w, method.tau)
            expected = distill.alpha(p) * expected
        assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    gradient = batch.student.grad
    assert loss.isfinite() and gradient.isfinite().all()
    assert gradient.abs().max() > 0


def find(artifacts, sources, target, name):
    args = distill.parse_args(["--artifacts", str(artifacts)])
    return distill.find_teachers(args, {"sources": sources}, target, name, 0)


def test_each_foreign_teacher_has_a_share_of_the_mixture_and_the_sources_the_rest(copied):
    a = load_file(copied / "weights/qac/sentences.safetensors")
    shares = [mean(a[source].tolist()) for source in SOURCES]
    _, _, weights, _, w = find(copied, SOURCES, "qac", "tsl-sim")
    assert w.tolist() == pytest.approx(shares)
    assert w.std() > 0 and weights.equal(w)
    shown = json.loads((copied / "weights/qac/weights.json").read_text())
    assert [shown[source] for source in SOURCES] == pytest.approx(shares, abs=1e-4)
    foreign = ["logits/qac/external-x-s0", "logits/qac/external-y-s0"]
    for name in foreign:
        (copied / name).mkdir()
    _, names, weights, _, _ = find(copied, SOURCES, "qac", "tsl-sim")
    assert names[4:] == foreign
    shares = [4 / 6 * x for x in shares]
    assert weights.tolist() == pytest.approx([*shares, 1 / 6, 1 / 6])
    _, _, weights, _, _ = find(copied, SOURCES, "qac", "tsl-avg")
    assert weights.tolist() == pytest.approx([1 / 6] * 6)
    _, names, weights, _, _ = find(copied, SOURCES, "qac", "tsl-x")
    assert names == foreign[:1] and weights.tolist() == [1]


def test_a_method_has_its_own_teachers_and_a_source_that_is_a_target_is_none(tmp_path):
    for name, target, recogniser, evaluator in [
        ("mtmt", "bb", "recogniser-aa-mt", "evaluator-aa-mt"),
        ("mtmt-bb", "cc", "recogniser-bb", "evaluator-bb"),
        ("mtmt-scaled", "bb", "recogniser-aa-mt", "scaled-aa-mt"),
        ("mtmt-pooled", "bb", "recogniser-pooled-without-bb", "scaled-pooled-without-bb"),
        ("mtmt-pooled", "cc", "recogniser-pooled", "scaled-pooled"),
    ]:
        _, names, weights, evaluators, _ = find(tmp_path, ["aa-mt", "bb"], target, name)
        assert names == [f"logits/{target}/{recogniser}-s0"]
        assert evaluators == [f"logits/{target}/{evaluator}-s0"] and weights.tolist() == [1]
    _, names, _, evaluators, _ = find(tmp_path, ["aa-mt", "bb"], "cc", "tsl-bb")
    assert names == ["logits/cc/recogniser-bb-s0"] and not evaluators


# ------------------------------------------------------------------------ students of the tiny run

def distil(artifacts, *methods):
    """Students of qac; flags may follow the methods."""
    here("03_distill.py", artifacts, "--targets", "qac", "--methods", *methods)


def declines(artifacts, says, *methods):
    flags = ["--seeds", "0", "--steps", "4", "--targets", "qac"]
    refused("03_distill.py", artifacts, *flags, "--methods", *methods, says=says)


@pytest.fixture
def taught(toy, tmp_path):
    """The tiny run, its students still to be made."""
    return shutil.copytree(toy, tmp_path / "a", ignore=shutil.ignore_patterns("students"))


@pytest.fixture
def seen(monkeypatch):
    """What every call of student_loss was given and gave, as a list that grows."""
    calls = []
    whole = distill.student_loss

    def spy(*given):
        loss, terms = whole(*given)
        _, _, p, evaluators, method, _ = given
        calls.append(SimpleNamespace(p=p, evaluators=evaluators, method=method, loss=loss))
        return loss, terms

    monkeypatch.setattr(distill, "student_loss", spy)
    return calls


@pytest.mark.parametrize("steps, rows", [(23, 10), (3, 3)])
def test_a_student_takes_as_many_steps_as_it_is_told_and_logs_ten_rows(taught, seen, steps, rows):
    distil(taught, "mtmt", "--steps", steps)
    assert len(seen) == steps
    log = pd.read_csv(taught / "students/qac/mtmt-s0/log.csv")
    terms = ["step", "recognition", "similarity", "alpha", "beta", "gamma", "loss"]
    assert len(log) == rows and list(log) == terms
    assert log.step.is_monotonic_increasing and log.step.iloc[-1] <= steps
    for row in range(rows):
        part = [x.loss.item() for k, x in enumerate(seen) if k * rows // steps == row]
        assert log.loss[row] == pytest.approx(mean(part), abs=1e-4)


def test_what_students_and_their_mixture_say_is_kept_word_by_word(toy):
    folder = toy / "students/qbc/tsl-sim-s0"
    tags = teachers.read_config(toy)["tags"]
    for split in ("train", "test"):
        said = load_file(folder / f"{split}.safetensors")
        table = teachers.load_table(toy, f"data/targets/qbc/{split}")
        n_words = sum(map(len, table["words"]))
        assert said["logits"].shape == (n_words, len(tags))
    ensemble = load_file(toy / "logits/qbc/ensemble-s0/test.safetensors")["logits"]
    assert said["mixture"].equal(ensemble.argmax(-1).byte())  # the last split is test


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
    made = bits(taught, "students/**/*.safetensors")
    assert len(made) == 18 and made.items() <= bits(toy).items()
    assert caches == bits(taught, "logits/**/*.safetensors")
    for call in seen:
        assert call.loss.requires_grad and not call.p.requires_grad
        assert not any(x.requires_grad for x in call.evaluators if x is not None)
    shutil.rmtree(taught / "logits/qac/evaluator-qba-s0")
    declines(taught, ["evaluator-qba-s0", "missing"], "mtmt")


def test_student_loss_is_all_that_a_student_minimises(taught, seen, monkeypatch):
    spy = mock.Mock(wraps=teachers.step)
    monkeypatch.setattr(teachers, "step", spy)
    distil(taught, *distill.METHODS, "tsl-qaa", "mtmt-qaa", "--steps", "1")
    assert len(seen) == len(METHODS) == spy.call_count
    for call, step in zip(seen, spy.call_args_list):
        assert step.args[0] is call.loss


def test_teachers_are_softened_as_the_student_is_and_by_kl_alone(taught, monkeypatch):
    spy = mock.Mock(wraps=distill.mixture)
    monkeypatch.setattr(distill, "mixture", spy)
    for method, tau in (("tsl-kl", 2.0), ("tsl-avg", 1.0)):
        spy.reset_mock()
        distil(taught, method)
        taus = [call.args[2] for call in spy.call_args_list]
        assert taus == [tau] * 6  # four steps, and twice for fidelity


def test_the_scales_of_the_evaluators_reach_the_student_by_their_facts(taught, seen):
    for number, source in enumerate(SOURCES):
        path = taught / f"logits/qac/scaled-{source}-s0/record.json"
        changed = json.loads(path.read_text())
        changed["facts"]["kappa"] = number + 2.5
        path.write_text(json.dumps(changed))
    distil(taught, "mtmt-scaled")
    assert seen[0].evaluators[2].tolist() == [2.5, 3.5, 4.5, 5.5]
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
            terms["loss"] = loss * math.nan
        return loss, terms

    monkeypatch.setattr(distill, "student_loss", breaks)
    says = ["tsl-sim-s0", "qac", "not finite", "--lr"]
    declines(taught, says, "tsl-sim", "--steps", "20")
    assert not (taught / "students").exists()


@pytest.mark.parametrize("name", ["mtmtt", "tsl", "tsl-qac", "mtmt-x", "kd-qaa", "tsl-pooled"])
def test_methods_that_do_not_exist_are_refused_before_any_training(taught, seen, name):
    (taught / "logits/qac/external-x-s0").mkdir()
    says = [f"--methods {name}: ", "mtmt-pooled", "tsl-x"]  # with those that do
    declines(taught, says, "tsl-avg", name)
    assert not seen
