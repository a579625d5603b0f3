"""The maths of the method against plain Python loops, and the facts the README states about it."""

import importlib
import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors import safe_open

from conftest import data, here

teachers = importlib.import_module("02_teachers")
distill = importlib.import_module("03_distill")

K, M, C, H = 3, 7, 5, 6
METHODS = {**distill.METHODS, "tsl-<source>": distill.TSL, "mtmt-<source>": distill.MTMT}


@pytest.fixture
def batch():
    torch.manual_seed(0)
    made = {"logits": torch.randn(K, M, C), "w": torch.softmax(torch.randn(K), 0)}
    made |= {"student": torch.randn(M, C) * 2, "h": torch.randn(M, H)}
    made |= {"v": F.normalize(torch.randn(K, M, H), dim=-1), "ones": torch.ones(K)}
    made["p"] = distill.mixture(made["logits"], made["w"])
    made["i"], made["j"] = torch.tensor([0, 1, 2, 6, 3]), torch.tensor([1, 0, 5, 4, 3])
    made["t"] = similarity_of(made, torch.ones(K))
    return made


def similarity_of(batch, kappas):
    return distill.teacher_similarity(batch["v"], batch["w"], kappas, batch["i"], batch["j"])


def softmax(row):
    top = [math.exp(x) for x in row]
    return [x / sum(top) for x in top]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def cosine(a, b):
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


# ------------------------------------------------------------------------ what the teachers say

def test_mixture_equals_a_plain_loop(batch):
    w, z = batch["w"].tolist(), batch["logits"].tolist()
    for m in range(M):
        expected = [sum(w[k] * softmax(z[k][m])[c] for k in range(K)) for c in range(C)]
        assert batch["p"][m].tolist() == pytest.approx(expected, abs=1e-6)


def test_teacher_order_is_irrelevant(batch):
    turn = torch.tensor([2, 0, 1])
    for combine in (distill.mixture, distill.vote, distill.bea):
        there = combine(batch["logits"], batch["w"])
        assert torch.allclose(there, combine(batch["logits"][turn], batch["w"][turn]), atol=1e-5)
    kappas = torch.tensor([1.0, 4.0, 9.0])
    turned = {**batch, "v": batch["v"][turn], "w": batch["w"][turn]}
    there = similarity_of(turned, kappas[turn])
    assert torch.allclose(there, similarity_of(batch, kappas), atol=1e-6)


def test_one_teacher_of_weight_one_is_that_teacher(batch):
    alone = distill.mixture(batch["logits"][:1], torch.ones(1))
    assert torch.allclose(alone, torch.softmax(batch["logits"][0], -1), atol=1e-6)
    among = distill.mixture(batch["logits"], torch.tensor([1.0, 0, 0]))
    assert torch.allclose(among, alone, atol=1e-6)


def test_vote_takes_the_majority_and_the_mixture_decides_between_equals():
    z = torch.tensor([[[9.0, 0, 0]], [[0, 1.0, 0]], [[0, 1.0, 0]]])  # two weak against one strong
    assert distill.vote(z, torch.ones(3) / 3).argmax().item() == 1
    assert distill.vote(z[:2], torch.ones(2) / 2).argmax().item() == 0  # one against one


def planted(confusions, n=4000, prior=(0.6, 0.2, 0.2), seed=0):
    """True tags and what teachers with these confusion matrices say of them."""
    rng = torch.Generator().manual_seed(seed)
    truth = torch.multinomial(torch.tensor(prior), n, True, generator=rng)
    said = [torch.multinomial(V[truth], 1, generator=rng)[:, 0] for V in confusions]
    return truth, torch.stack(said)


def test_bea_recovers_planted_confusions_and_beats_the_vote_with_an_adversary():
    good = 0.8 * torch.eye(3) + 0.2 / 3
    adversary = 0.9 * torch.eye(3)[[1, 2, 0]] + 0.1 / 3  # says the next tag, and means it
    truth, said = planted([good, good, adversary])
    logits = F.one_hot(said, 3).float()
    r = distill.bea(logits)
    votes = distill.vote(logits, torch.ones(3) / 3).argmax(-1)
    right, by_vote = ((x == truth).double().mean() for x in (r.argmax(-1), votes))
    assert right > by_vote + 0.05, (right, by_vote)
    counts = torch.einsum("nk,nl->kl", r, F.one_hot(said[2], 3).float())
    assert torch.allclose(counts / counts.sum(-1, keepdim=True), adversary, atol=0.06)


def test_bea_of_one_teacher_is_that_teacher():
    said = torch.tensor([0] * 90 + [1, 2] * 5)
    r = distill.bea(F.one_hot(said, 3).float()[None])
    assert (r.argmax(-1) == said).all()


def test_bea_equals_a_plain_loop_of_its_updates():
    N, J, L = 12, 2, 3
    _, said = planted([0.7 * torch.eye(3) + 0.1, 0.6 * torch.eye(3) + 0.4 / 3], n=N)
    y = said.tolist()
    digamma = lambda x: torch.digamma(torch.tensor(float(x), dtype=torch.double)).item()
    r = [[sum(y[j][i] == k for j in range(J)) / J for k in range(L)] for i in range(N)]
    scores = []
    for i in range(N):
        row = []
        for k in range(L):
            total = sum(r[n][k] for n in range(N))
            score = digamma(1 + total) - digamma(L + N)
            for j in range(J):
                alike = sum(r[n][k] for n in range(N) if y[j][n] == y[j][i])
                score += digamma(1 + alike) - digamma(L + total)
            row.append(score)
        scores.append(softmax(row))
    assert torch.allclose(distill.bea(F.one_hot(said, L), steps=1), torch.tensor(scores), atol=1e-5)


def test_the_evaluators_kappas_are_inside_the_sigmoid(batch):
    kappas = torch.tensor([1.0, 6.0, 12.0])
    found = similarity_of(batch, kappas).tolist()
    for t, i, j in zip(found, batch["i"].tolist(), batch["j"].tolist()):
        cos = [cosine(batch["v"][k, i].tolist(), batch["v"][k, j].tolist()) for k in range(K)]
        expected = sum(w * sigmoid(kappa * x) for w, kappa, x in zip(batch["w"], kappas, cos))
        assert t == pytest.approx(float(expected), abs=1e-5)


# ------------------------------------------------------------------------ Eq. (6)

def test_squared_error_equals_a_plain_loop_and_is_zero_where_student_is_teacher(batch):
    for m, found in enumerate(distill.squared_error(batch["student"], batch["p"]).tolist()):
        q, p = softmax(batch["student"][m].tolist()), batch["p"][m].tolist()
        assert found == pytest.approx(sum((a - b) ** 2 for a, b in zip(q, p)), abs=1e-6)
    assert distill.squared_error(batch["p"].log(), batch["p"]).abs().max() < 1e-12


@pytest.mark.parametrize("tau", [1.0, 2.0, 5.0])
def test_kl_equals_a_plain_loop_and_is_zero_where_student_is_teacher(batch, tau):
    p = distill.mixture(batch["logits"], batch["w"], tau)
    for m, found in enumerate(distill.soft_target_loss(batch["student"], p, tau).tolist()):
        q = softmax([x / tau for x in batch["student"][m].tolist()])
        kl = sum(a * math.log(a / b) for a, b in zip(p[m].tolist(), q))
        assert found == pytest.approx(tau**2 * kl, abs=1e-5)
    assert distill.soft_target_loss(tau * p.log(), p, tau).abs().max() < 1e-5


def test_kl_takes_one_hot_targets(batch):
    one_hot = F.one_hot(batch["p"].argmax(-1), C).float()
    assert torch.isfinite(distill.soft_target_loss(batch["student"], one_hot, 1.0)).all()


def test_kl_gradient_is_tau_times_q_minus_p(batch):
    student, tau = batch["student"].clone().requires_grad_(), 2.0
    p = distill.mixture(batch["logits"], batch["w"], tau)
    distill.soft_target_loss(student, p, tau).sum().backward()
    expected = tau * (torch.softmax(batch["student"] / tau, -1) - p)
    assert torch.allclose(student.grad, expected, atol=1e-5)


def test_squared_error_has_no_gradient_where_the_student_is_confidently_wrong_and_kl_has():
    p, sure, gradients = torch.tensor([[1.0, 0.0]]), torch.tensor([[-15.0, 15.0]]), []
    for loss in (distill.squared_error, lambda z, p: distill.soft_target_loss(z, p, 1.0)):
        z = sure.clone().requires_grad_()
        loss(z, p).sum().backward()
        gradients.append(z.grad.abs().max().item())
    assert gradients[0] < 1e-10 and gradients[1] > 0.99


# ------------------------------------------------------------------------ Eqs. (7) and (8)

def test_similarity_gradient_is_sigmoid_of_the_cosine_minus_t():
    h, i, j = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([0]), torch.tensor([1])
    t = torch.tensor([0.55])
    for kappa in (1.0, 7.0):
        loss, q = distill.similarity_loss(h, i, j, t, kappa), sigmoid(kappa * 0.6)
        expected = -0.55 * math.log(q) - 0.45 * math.log(1 - q)
        assert loss.item() == pytest.approx(expected, abs=1e-5)
    angle = torch.tensor(math.acos(0.6), requires_grad=True)
    h = torch.stack([torch.stack([torch.cos(angle), torch.sin(angle)]), torch.tensor([1.0, 0.0])])
    distill.similarity_loss(h, i, j, t).sum().backward()
    by_cosine = angle.grad.item() / -math.sin(math.acos(0.6))
    assert by_cosine == pytest.approx(sigmoid(0.6) - 0.55, abs=1e-5)


def test_similarity_loss_rests_on_the_entropy_of_t_when_student_is_teacher(batch):
    for kappa in (1.0, 9.0):
        alone, one = torch.tensor([kappa]), torch.ones(1)
        t = distill.teacher_similarity(batch["v"][:1], one, alone, batch["i"], batch["j"])
        loss = distill.similarity_loss(batch["v"][0], batch["i"], batch["j"], t, kappa)
        assert torch.allclose(loss, distill.entropy(t), atol=1e-5)


def test_the_stated_ranges_and_floors():
    low, high = sigmoid(-1), sigmoid(1)
    assert (round(low, 4), round(high, 4)) == (0.2689, 0.7311)
    assert -math.log(high) == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-9)
    assert round(-math.log(high), 4) == 0.3133
    t = torch.linspace(low, high, 1001)
    span = lambda values: [round(values.min().item(), 4), round(values.max().item(), 4)]
    assert span(distill.beta(t)) == [0.5, 0.7136]
    assert span(distill.entropy(t)) == [0.5822, 0.6931]


ONE, OTHER = [1.0, 0.0], [0.0, 1.0]


@pytest.mark.parametrize("recognisers, evaluators, published, scaled", [
    ("same", "same", 1.000, 1), ("different", "different", 0.769, 1),
    ("same", "different", 0.538, 0), ("different", "same", 0.769, 0),
])
def test_gammas_four_corners(recognisers, evaluators, published, scaled):
    p_i, p_j = torch.tensor([ONE]), torch.tensor([ONE if recognisers == "same" else OTHER])
    cos = torch.tensor([1.0 if evaluators == "same" else -1.0])
    found = distill.gamma(p_i, p_j, torch.sigmoid(cos)).item()
    assert found == pytest.approx(published, abs=5e-4)
    found = distill.gamma(p_i, p_j, torch.sigmoid(30 * cos), scaled=True).item()
    assert found == pytest.approx(scaled, abs=1e-6)


# ------------------------------------------------------------------------ Eq. (9)

def plain_terms(method, z, h, p, v, w, kappas, pairs):
    """The terms of a student's loss by plain loops over lists."""
    if method.loss == "kl":
        q = [softmax([x / method.tau for x in row]) for row in z]
        kl = [sum(a * math.log(a / b) for a, b in zip(*rows)) for rows in zip(p, q)]
        e = [method.tau**2 * x for x in kl]
    else:
        e = [sum((a - b) ** 2 for a, b in zip(*rows)) for rows in zip(p, map(softmax, z))]
    found = {"loss": mean(e), "recognition": mean(e)}
    if not method.pairs:
        return found
    rows, a = [], [max(row) ** 2 if method.alpha else 1 for row in p]
    for i, j in pairs:
        t = sum(w[k] * sigmoid(kappas[k] * cosine(v[k][i], v[k][j])) for k in range(len(w)))
        q = sigmoid(dot(w, kappas) * cosine(h[i], h[j]))
        s, rest = -t * math.log(q) - (1 - t) * math.log(1 - q), 1 - t
        r = dot(p[i], p[j]) if method.scaled else sigmoid(cosine(p[i], p[j]))
        b = min(1, (2 * t - 1) ** 2 + 0.5) if method.beta else 1
        g = 1 - abs(r - t) if method.gamma else 1
        floor = -t * math.log(t) - rest * math.log(rest)
        rows.append((g * (a[i] * e[i] + a[j] * e[j]) / 2, g * b * s, s - floor, b, g))
    balanced, similar, above, b, g = map(mean, zip(*rows))
    loss = balanced if method.balanced else mean(e)
    found["loss"] = loss + method.lam * similar * method.similarity
    return found | {"similarity": above, "alpha": mean(a), "beta": b, "gamma": g}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("lam", [1.0, 0.3])
def test_the_loss_of_every_method_equals_a_plain_loop(batch, name, lam):
    method, generator = replace(METHODS[name], lam=lam), torch.Generator().manual_seed(3)
    kappas = torch.tensor([4.0, 9.0, 11.0]) if method.scaled else torch.ones(K)
    evaluators = (batch["v"], batch["w"], kappas) if method.pairs else None
    given = batch["student"], batch["h"], batch["p"], evaluators, method
    loss, terms = distill.student_loss(*given, generator)
    classes, generator = batch["p"].argmax(-1), torch.Generator().manual_seed(3)
    pairs = torch.stack(teachers.draw_pairs(classes, generator, method.scaled), 1).tolist()
    lists = [batch[key].tolist() for key in ("student", "h", "p", "v", "w")]
    expected = plain_terms(method, *lists, kappas.tolist(), pairs)
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-4)
    assert {key: value.item() for key, value in terms.items()} == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_moves_the_student_and_its_states_if_there_is_a_similarity_task(batch, name):
    method, generator = METHODS[name], torch.Generator().manual_seed(0)
    student, h = (batch[key].clone().requires_grad_() for key in ("student", "h"))
    said = batch["v"], batch["w"], batch["ones"]
    loss, _ = distill.student_loss(student, h, batch["p"], said, method, generator)
    loss.backward()
    assert student.grad.abs().max() > 0
    assert (h.grad is not None and h.grad.abs().max() > 0) == (method.pairs and method.similarity)


@pytest.mark.parametrize("name", METHODS)
def test_a_lone_word_and_words_of_one_class_have_a_finite_loss(batch, name):
    for words in (slice(0, 1), slice(0, 3)):
        p = torch.tensor([[0.9, 0.1, 0.0, 0.0, 0.0]]).expand(M, C)[words]
        given = batch["student"][words].clone().requires_grad_(), batch["h"][words], p
        said, generator = (batch["v"][:, words], batch["w"], batch["ones"]), torch.Generator()
        loss, _ = distill.student_loss(*given, said, METHODS[name], generator)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(given[0].grad).all()
        assert given[0].grad.abs().max() > 0


def watch_gradients(monkeypatch):
    """Largest gradient of every parameter at every step of a student, as a list that grows."""
    seen, optimiser = [], teachers.optimiser

    def watched(model, *settings):
        for p in model.parameters():
            hook = lambda p: seen.append(p.grad.abs().max().item())
            p.requires_grad and p.register_post_accumulate_grad_hook(hook)
        return optimiser(model, *settings)

    monkeypatch.setattr(teachers, "optimiser", watched)
    return seen


def test_student_loss_is_all_that_a_student_minimises(toy, tmp_path, monkeypatch):
    """With zero times that loss no parameter has a gradient, whatever the method, at any step."""
    artifacts = shutil.copytree(toy, tmp_path / "a", ignore=shutil.ignore_patterns("students"))
    seen, whole = watch_gradients(monkeypatch), distill.student_loss
    here("03_distill.py", artifacts, "--methods", "mtmt", "--targets", "qbc")
    assert max(seen) > 0
    seen.clear()

    def nothing(*given):
        loss, terms = whole(*given)
        return 0 * loss, terms

    monkeypatch.setattr(distill, "student_loss", nothing)
    methods = [*distill.METHODS, "tsl-qaa", "mtmt-qaa"]
    here("03_distill.py", artifacts, "--methods", *methods, "--targets", "qac", "--logits-only")
    assert len(seen) > 50 * len(methods) and max(seen) == 0


# ------------------------------------------------------------------------ pairs

def test_pairs_are_balanced_and_keep_their_promise():
    classes, pairs_seen = torch.tensor([0] * 40 + [1] * 6 + [2] * 3 + [3]), set()
    i, j = teachers.draw_pairs(classes, torch.Generator().manual_seed(0))
    same = classes[i] == classes[j]
    assert (i != j).all() and len(i) <= 2 * len(classes)
    assert same.sum() == 49 and (~same).sum() == 50  # the one word of class 3 has no equal
    assert set(i[same].tolist()) == set(range(49)) and set(i[~same].tolist()) == set(range(50))
    for seed in range(300):
        i, j = teachers.draw_pairs(classes, torch.Generator().manual_seed(seed))
        pairs_seen |= set(zip(torch.minimum(i, j).tolist(), torch.maximum(i, j).tolist()))
    entities = range(40, 50)
    assert {(a, b) for a in entities for b in entities if a < b} <= pairs_seen  # each can be drawn


def test_the_other_class_of_a_pair_is_drawn_evenly():
    classes = torch.tensor([0] * 9000 + [1] * 900 + [2] * 100)
    i, j = teachers.draw_pairs(classes, torch.Generator().manual_seed(0))
    unlike = (classes[i] != classes[j]) & (classes[i] == 0)
    shares = torch.bincount(classes[j[unlike]], minlength=3) / unlike.sum()
    assert shares.tolist() == pytest.approx([0, 0.5, 0.5], abs=0.02)


def test_class_first_draws_the_first_words_evenly_by_class():
    classes = torch.tensor([0] * 9000 + [1] * 900 + [2] * 100)
    generator = torch.Generator().manual_seed(0)
    i, j = teachers.draw_pairs(classes, generator, class_first=True)
    same = classes[i] == classes[j]
    for which in (same, ~same):
        shares = torch.bincount(classes[i[which]], minlength=3) / which.sum()
        assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
    assert (i != j).all() and len(i) == 2 * len(classes)
    i, _ = teachers.draw_pairs(classes, generator)
    assert (torch.bincount(classes[i]) / len(i)).tolist() == pytest.approx([0.9, 0.09, 0.01])


@pytest.mark.parametrize("classes, n", [([0, 0, 0], 3), ([5], 0), ([1, 2], 2), ([], 0)])
@pytest.mark.parametrize("class_first", [False, True])
def test_pairs_of_a_batch_with_one_class_one_word_or_none(classes, n, class_first):
    classes = torch.tensor(classes, dtype=torch.long)
    i, j = teachers.draw_pairs(classes, torch.Generator().manual_seed(0), class_first)
    assert len(i) == len(j) == n and (i != j).all()


def test_pairs_grow_with_the_words_and_not_with_their_square():
    classes = torch.randint(0, 7, (200_000,), generator=torch.Generator().manual_seed(0))
    i, _ = teachers.draw_pairs(classes, torch.Generator().manual_seed(0))
    assert len(i) == 400_000  # all pairs would be 160 GB of indices


# ------------------------------------------------------------------------ evaluators

def perfect(tags):
    """A model whose vectors tell tag 0 from the others, and a batch for it."""
    v = torch.tensor([[1.0, 0.0] if tag == 0 else [-1.0, 0.0] for tag in tags])[None]
    out = SimpleNamespace(hidden_states=[v], logits=torch.zeros(1, len(tags), 2))
    f, ids = torch.ones(1, len(tags), dtype=torch.bool), torch.ones(1, len(tags))
    batch = {"input_ids": ids, "attention_mask": ids, "f": f, "tags": torch.tensor(tags)}

    class Perfect:
        def __call__(self, **inputs):
            return out

    return Perfect(), batch


def test_the_evaluators_loss_cannot_fall_under_its_floor_and_a_scale_takes_it_there():
    model, batch = perfect([0, 0, 0, 1, 1, 1])
    loss = teachers.evaluator_loss(model, batch, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)
    model.log_kappa = torch.tensor(math.log(10))
    loss = teachers.evaluator_loss(model, batch, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-10)), abs=1e-6)


def record(folder):
    return json.loads((folder / "config.json").read_text())


def test_an_evaluators_scale_is_a_fact_beside_its_checkpoint_and_no_part_of_it(toy):
    for name in ("scaled-qaa-s0", "scaled-pooled-s0"):
        kappa = record(toy / "teachers" / name)["facts"]["kappa"]
        assert kappa > 0 and kappa != 1 and kappa != 10  # it has learned
        assert record(toy / "logits/qac" / name)["facts"]["kappa"] == kappa
        with safe_open(toy / "teachers" / name / "model.safetensors", "pt") as checkpoint:
            assert not [key for key in checkpoint.keys() if "kappa" in key]
    assert record(toy / "teachers/evaluator-qaa-s0")["facts"]["kappa"] == 1


def test_the_scale_reaches_the_student_through_the_caches_facts(toy, tmp_path, monkeypatch):
    artifacts = shutil.copytree(toy, tmp_path / "a", ignore=shutil.ignore_patterns("students"))
    cache, whole, seen = artifacts / "logits/qac/scaled-qab-s0", distill.student_loss, []
    config = record(cache)
    config["facts"]["kappa"] = 3.5
    (cache / "config.json").write_text(json.dumps(config))

    def spy(student_logits, h, p, evaluators, method, generator):
        seen.append(evaluators)
        return whole(student_logits, h, p, evaluators, method, generator)

    monkeypatch.setattr(distill, "student_loss", spy)
    here("03_distill.py", artifacts, "--methods", "mtmt-scaled", "--targets", "qac")
    vectors, weights, kappas = seen[0]
    expected = [record(artifacts / f"logits/qac/scaled-{s}-s0")["facts"]["kappa"]
                for s in ("qaa", "qab", "qba", "qbb")]
    assert kappas.tolist() == pytest.approx(expected) and expected[1] == 3.5
    assert weights.sum().item() == pytest.approx(1) and len(vectors) == 4
    seen.clear()
    here("03_distill.py", artifacts, "--methods", "mtmt", "--targets", "qac")
    assert seen[0][2].tolist() == [1, 1, 1, 1]


def test_scaled_evaluators_draw_both_words_class_first_and_published_ones_the_second_alone(
    model, monkeypatch
):
    batch, drawn, draw = teachers.collate(windows(9, 6), "cpu"), [], teachers.draw_pairs

    def spy(*args, class_first):
        drawn.append(class_first)
        return draw(*args, class_first=class_first)

    monkeypatch.setattr(teachers, "draw_pairs", spy)
    teachers.evaluator_loss(model, batch, torch.Generator())
    model.log_kappa = torch.nn.Parameter(torch.tensor(2.3))
    teachers.evaluator_loss(model, batch, torch.Generator())
    assert drawn == [False, True]


def test_teachers_are_softened_as_the_student_is_by_kl_alone(toy, tmp_path, monkeypatch):
    artifacts = shutil.copytree(toy, tmp_path / "a", ignore=shutil.ignore_patterns("students"))
    taus, mixture = [], distill.mixture

    def spy(teacher_logits, weights, tau=1.0):
        taus.append(tau)
        return mixture(teacher_logits, weights, tau)

    monkeypatch.setattr(distill, "mixture", spy)
    for method, tau in (("tsl-kl", METHODS["tsl-kl"].tau), ("tsl-avg", 1.0)):
        taus.clear()
        here("03_distill.py", artifacts, "--methods", method, "--targets", "qac")
        assert set(taus) == {tau}, method


def test_shares_of_the_teachers_by_method(toy):
    args, sources = distill.parse_args(["--artifacts", str(toy)]), ["qaa", "qab", "qba", "qbb"]
    find = lambda name: distill.find_teachers(
        args, "qac", *distill.resolve(name, "qac", sources, []), 0
    )[:2]
    single = [f"logits/qac/recogniser-{source}-s0" for source in sources]
    names, by_similarity = find("tsl-sim")
    assert names == single and by_similarity.sum().item() == pytest.approx(1)
    assert by_similarity.std() > 0
    assert find("tsl-avg")[1].tolist() == [1 / 4] * 4
    names, weights = find("tsl-pooled")
    assert names == [*single, "logits/qac/pooled-s0"] and weights[-1] == 1 / 2
    assert torch.allclose(weights[:4], by_similarity / 2)
    assert find("self-pooled") == (["logits/qac/pooled-s0"], torch.ones(1))


# ------------------------------------------------------------------------ Eqs. (3) and (4)

def test_teacher_weights_follow_equation_4():
    scores = torch.tensor([[2.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    flat = scores.flatten().tolist()
    tau = mean((x - mean(flat)) ** 2 for x in flat)
    a = teachers.teacher_weights(scores, "variance")
    for row, found in zip(scores.tolist(), a.tolist()):
        assert found == pytest.approx(softmax([x / tau for x in row]), abs=1e-6)
    by_std = teachers.teacher_weights(scores, "std")[0].tolist()
    assert by_std == pytest.approx(softmax([x / math.sqrt(tau) for x in scores[0].tolist()]))
    assert (teachers.teacher_weights(torch.randn(4, 1), "variance") == 1).all()  # a single source


def test_the_language_loss_equals_a_plain_loop():
    torch.manual_seed(0)
    model, g = teachers.LanguageSimilarity(torch.randn(3, 8)), torch.randn(5, 8)
    k, scores, mu = torch.tensor([0, 1, 2, 1, 0]), model(g).tolist(), model.mu.tolist()
    entropy = mean(-math.log(softmax(row)[s]) for row, s in zip(scores, k.tolist()))
    ridge = 0.0
    for i, a in enumerate(mu):
        for j, b in enumerate(mu):
            ridge += (dot(a, b) - (i == j)) ** 2
    found = teachers.language_loss(model, g, k).item()
    assert found == pytest.approx(entropy + teachers.SIMILARITY["ridge"] * ridge, rel=1e-5)
    u, v = model.U(g)[1].tolist(), model.V(model.mu)[2].tolist()
    assert scores[1][2] == pytest.approx(dot(u, v), rel=1e-4)


def test_the_small_ridge_has_the_gradients_of_the_published_one():
    model = teachers.LanguageSimilarity(torch.randn(3, 8))
    g, k, mu = torch.randn(5, 8), torch.tensor([0, 1, 2, 0, 1]), model.mu
    small = torch.autograd.grad(teachers.language_loss(model, g, k), mu)[0]
    ridge = (mu.T @ mu - torch.eye(8)).square().sum()  # H x H, as the paper has it
    published = F.cross_entropy(model(g), k) + teachers.SIMILARITY["ridge"] * ridge
    assert torch.allclose(small, torch.autograd.grad(published, mu)[0], atol=1e-4)


# ------------------------------------------------------------------------ the model's part

@pytest.fixture
def model():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=50, num_hidden_layers=12, num_labels=3, **size)
    return transformers.BertForTokenClassification(config).eval()


def windows(*lengths):
    """A table of random windows, every second sub-token the first of its word."""
    rng = torch.Generator().manual_seed(1)
    ids = [torch.randint(5, 50, (n,), generator=rng).tolist() for n in lengths]
    first = [list(range(1, n - 1, 2)) for n in lengths]
    table = {"length": list(lengths), "input_ids": ids, "first": first}
    table |= {"sentence": list(range(len(lengths))), "start": [0] * len(lengths)}
    return table | {"tags": [[k % 3 for k in range(len(f))] for f in first]}


def test_padding_changes_no_word(model):
    together, logits = teachers.read_words(model, teachers.collate(windows(9, 30), "cpu"))
    alone, logits_alone = teachers.read_words(model, teachers.collate(windows(9), "cpu"))
    assert torch.allclose(together[: len(alone)], alone, atol=1e-5)
    assert torch.allclose(logits[: len(alone)], logits_alone, atol=1e-5)


def test_positions_outside_the_mask_get_exactly_no_gradient(model):
    batch, grown = teachers.collate(windows(9, 30), "cpu"), []

    def keep(module, inputs, out):
        out[0].retain_grad()
        grown.append(out[0])

    hook = model.bert.encoder.register_forward_hook(keep)
    teachers.recogniser_loss(model, batch, None).backward()
    hook.remove()
    gradient = grown[0].grad.abs().sum(-1)
    assert (gradient[~batch["f"]] == 0).all() and (gradient[batch["f"]] > 0).all()


def free_layers(model, pattern):
    free = [name for name, p in model.named_parameters() if p.requires_grad and pattern in name]
    return {int(name.split(pattern)[1].split(".")[0]) for name in free}


def test_freezing_three_layers_freezes_the_embeddings_and_leaves_ten_and_eleven_free(model):
    teachers.freeze(model, 3)
    assert free_layers(model, "layer.") == set(range(3, 12))
    assert not any(p.requires_grad for p in model.bert.embeddings.parameters())
    assert model.classifier.weight.requires_grad
    teachers.freeze(model, 1)
    assert free_layers(model, "layer.") == set(range(1, 12))  # 1 is neither 10 nor 11
    teachers.freeze(model, 0)
    assert all(p.requires_grad for p in model.parameters())


def test_an_optimiser_trains_what_is_not_frozen_and_nothing_else(model):
    teachers.freeze(model, 3)
    before = {name: p.clone() for name, p in model.named_parameters()}
    step = teachers.optimiser(model, 1e-2, 4)
    for _ in range(2):
        step(teachers.recogniser_loss(model, teachers.collate(windows(9, 30), "cpu"), None))
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (not p.requires_grad), name


def test_layers_that_are_called_h_are_frozen_too():
    size = {"n_embd": 16, "n_head": 2, "n_layer": 12, "num_labels": 3}
    model = transformers.GPT2ForTokenClassification(transformers.GPT2Config(vocab_size=50, **size))
    teachers.freeze(model, 3)
    assert free_layers(model, ".h.") == set(range(3, 12))
    assert not any(p.requires_grad for n, p in model.named_parameters() if "wte" in n or "wpe" in n)


def test_an_encoder_whose_layers_share_their_weights_cannot_be_frozen_and_is_not_silently():
    size = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.AlbertConfig(vocab_size=50, embedding_size=8, num_hidden_layers=4, **size)
    model = transformers.AlbertForTokenClassification(config)
    with pytest.raises(data.UserError, match="--freeze 1"):
        teachers.freeze(model, 1)
    teachers.freeze(model, 0)
    assert all(p.requires_grad for p in model.parameters())


def test_as_many_layers_as_there_are_cannot_be_frozen(model):
    with pytest.raises(data.UserError, match="--freeze 12.*12 layers"):
        teachers.freeze(model, 12)
