"""The maths of the method against plain Python loops, and the facts the README states about it."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F

data = importlib.import_module("01_data")
teachers = importlib.import_module("02_teachers")
distill = importlib.import_module("03_distill")

K, M, C, H = 3, 7, 5, 6


@pytest.fixture
def batch():
    torch.manual_seed(0)
    made = {"logits": torch.randn(K, M, C), "w": torch.softmax(torch.randn(K), 0), "student": torch.randn(M, C) * 2,
            "h": torch.randn(M, H), "v": F.normalize(torch.randn(K, M, H), dim=-1)}  # fmt: skip
    made["p"] = distill.mixture(made["logits"], made["w"])
    made["i"], made["j"] = torch.tensor([0, 1, 2, 6, 3]), torch.tensor([1, 0, 5, 4, 3])
    made["t"] = distill.teacher_similarity(made["v"], made["w"], made["i"], made["j"])
    return made


def softmax(row):
    top = [math.exp(x) for x in row]
    return [x / sum(top) for x in top]


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_mixture_equals_a_plain_loop(batch):
    for m in range(M):
        expected = [sum(batch["w"][k].item() * softmax(batch["logits"][k, m].tolist())[c] for k in range(K)) for c in range(C)]
        assert batch["p"][m].tolist() == pytest.approx(expected, abs=1e-6)


def test_squared_error_equals_a_plain_loop_and_is_zero_where_student_is_teacher(batch):
    for m, found in enumerate(distill.squared_error(batch["student"], batch["p"]).tolist()):
        q = softmax(batch["student"][m].tolist())
        assert found == pytest.approx(sum((a - b) ** 2 for a, b in zip(q, batch["p"][m].tolist())), abs=1e-6)
    assert distill.squared_error(batch["p"].log(), batch["p"]).abs().max() < 1e-12


@pytest.mark.parametrize("tau", [1.0, 2.0, 5.0])
def test_kl_equals_a_plain_loop_and_is_zero_where_student_is_teacher(batch, tau):
    p = distill.mixture(batch["logits"], batch["w"], tau)
    for m, found in enumerate(distill.soft_target_loss(batch["student"], p, tau).tolist()):
        q = softmax([x / tau for x in batch["student"][m].tolist()])
        assert found == pytest.approx(tau**2 * sum(a * math.log(a / b) for a, b in zip(p[m].tolist(), q)), abs=1e-5)
    assert distill.soft_target_loss(tau * p.log(), p, tau).abs().max() < 1e-5


def test_kl_takes_one_hot_targets(batch):
    assert torch.isfinite(distill.soft_target_loss(batch["student"], distill.hard(batch["p"]), 1.0)).all()


def test_kl_gradient_is_tau_times_q_minus_p(batch):
    student, tau = batch["student"].clone().requires_grad_(), 2.0
    p = distill.mixture(batch["logits"], batch["w"], tau)
    distill.soft_target_loss(student, p, tau).sum().backward()
    assert torch.allclose(student.grad, tau * (torch.softmax(batch["student"] / tau, -1) - p), atol=1e-5)


def test_squared_error_gradient_vanishes_where_the_student_is_confidently_wrong_and_kl_does_not():
    p, sure = torch.tensor([[1.0, 0.0]]), torch.tensor([[-15.0, 15.0]])
    gradients = []
    for loss in (distill.squared_error, lambda z, p: distill.soft_target_loss(z, p, 1.0)):
        z = sure.clone().requires_grad_()
        loss(z, p).sum().backward()
        gradients.append(z.grad.abs().max().item())
    assert gradients[0] < 1e-10 and gradients[1] > 0.99


def test_pair_terms_equal_a_plain_loop(batch):
    p, h, t = batch["p"].tolist(), batch["h"].tolist(), batch["t"].tolist()
    found = {"t": batch["t"], "sim": distill.similarity_loss(batch["h"], batch["i"], batch["j"], batch["t"]),
             "a": distill.alpha(batch["p"])[batch["i"]], "b": distill.beta(batch["t"]),
             "g": distill.gamma(batch["p"][batch["i"]], batch["p"][batch["j"]], batch["t"]), "H": distill.entropy(batch["t"])}  # fmt: skip
    for n, (i, j) in enumerate(zip(batch["i"].tolist(), batch["j"].tolist())):
        s = sum(batch["w"][k].item() * sigmoid(cosine(batch["v"][k, i].tolist(), batch["v"][k, j].tolist())) for k in range(K))
        q = sigmoid(cosine(h[i], h[j]))
        expected = {"t": s, "sim": -s * math.log(q) - (1 - s) * math.log(1 - q), "a": max(p[i]) ** 2,
                    "b": min(1, (2 * s - 1) ** 2 + 0.5), "g": 1 - abs(sigmoid(cosine(p[i], p[j])) - s),
                    "H": -s * math.log(s) - (1 - s) * math.log(1 - s)}  # fmt: skip
        for name, value in expected.items():
            assert found[name][n].item() == pytest.approx(value, abs=1e-5), name


def test_similarity_gradient_is_sigmoid_of_the_cosine_minus_t():
    cos, t = torch.tensor([-0.7, 0.1, 0.9], requires_grad=True), torch.tensor([0.3, 0.5, 0.7])
    F.binary_cross_entropy_with_logits(cos, t, reduction="sum").backward()
    assert torch.allclose(cos.grad, torch.sigmoid(cos) - t)
    h = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    loss = distill.similarity_loss(h, torch.tensor([0]), torch.tensor([1]), torch.tensor([0.55]))
    assert loss.item() == pytest.approx(F.binary_cross_entropy_with_logits(torch.tensor(0.6), torch.tensor(0.55)).item())


def test_similarity_loss_rests_on_the_entropy_of_t_when_student_is_teacher(batch):
    loss = distill.similarity_loss(batch["v"][0], batch["i"], batch["j"],
                                   distill.teacher_similarity(batch["v"][:1], torch.ones(1), batch["i"], batch["j"]))  # fmt: skip
    t = distill.teacher_similarity(batch["v"][:1], torch.ones(1), batch["i"], batch["j"])
    assert torch.allclose(loss, distill.entropy(t), atol=1e-6)


def test_the_stated_ranges_and_floors():
    low, high = sigmoid(-1), sigmoid(1)
    assert (round(low, 4), round(high, 4)) == (0.2689, 0.7311)
    assert -math.log(high) == pytest.approx(math.log(1 + math.exp(-1))) == pytest.approx(0.3133, abs=5e-5)
    t = torch.linspace(low, high, 1001)
    assert [round(x, 4) for x in (distill.beta(t).min().item(), distill.beta(t).max().item())] == [0.5, 0.7136]
    assert [round(x, 4) for x in (distill.entropy(t).min().item(), distill.entropy(t).max().item())] == [0.5822, 0.6931]


def test_the_evaluators_loss_cannot_fall_under_its_floor():
    v = torch.tensor([[1.0, 0.0]] * 3 + [[-1.0, 0.0]] * 3)                       # a perfect evaluator
    model = type("Perfect", (), {"base_model": staticmethod(lambda ids, attention_mask: type("Out", (), {"last_hidden_state": v[None]}))})
    batch = {"input_ids": None, "attention_mask": None, "f": torch.ones(1, 6, dtype=torch.bool), "tags": torch.tensor([0, 0, 0, 1, 1, 1])}
    loss = teachers.evaluator_loss(model, batch, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)


@pytest.mark.parametrize("recogniser_same, evaluator_same, expected",
                         [(True, True, 1.000), (False, False, 0.769), (True, False, 0.538), (False, True, 0.769)])  # fmt: skip
def test_gammas_four_corners(recogniser_same, evaluator_same, expected):
    p_i, p_j = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]] if recogniser_same else [[0.0, 1.0]])
    t = torch.sigmoid(torch.tensor([1.0 if evaluator_same else -1.0]))
    assert distill.gamma(p_i, p_j, t).item() == pytest.approx(expected, abs=5e-4)


def test_teacher_order_is_irrelevant_and_one_teacher_of_weight_one_is_that_teacher(batch):
    turn = torch.tensor([2, 0, 1])
    for name in ("mixture", "vote"):
        there = getattr(distill, name)(batch["logits"], batch["w"])
        assert torch.allclose(there, getattr(distill, name)(batch["logits"][turn], batch["w"][turn]), atol=1e-6)
    assert torch.allclose(distill.bea(batch["logits"].argmax(-1), C), distill.bea(batch["logits"][turn].argmax(-1), C), atol=1e-5)
    there = distill.teacher_similarity(batch["v"][turn], batch["w"][turn], batch["i"], batch["j"])
    assert torch.allclose(there, batch["t"], atol=1e-6)
    alone = distill.mixture(batch["logits"][:1], torch.ones(1))
    assert torch.allclose(alone, torch.softmax(batch["logits"][0], -1), atol=1e-6)
    assert torch.allclose(distill.mixture(batch["logits"], torch.tensor([1.0, 0, 0])), alone, atol=1e-6)


def test_weights_by_sentence_equal_language_weights_where_all_sentences_agree(batch):
    assert torch.allclose(distill.mixture(batch["logits"], batch["w"].expand(M, K)), batch["p"], atol=1e-6)
    by_word = distill.teacher_similarity(batch["v"], batch["w"].expand(M, K), batch["i"], batch["j"])
    assert torch.allclose(by_word, batch["t"], atol=1e-6)


def test_vote_takes_the_majority_and_the_mixture_decides_between_equals():
    z = torch.tensor([[[9.0, 0, 0]], [[0, 1.0, 0]], [[0, 1.0, 0]]])              # two weak votes against a strong one
    assert distill.vote(z, torch.ones(3) / 3).argmax().item() == 1
    assert distill.vote(z[:2], torch.ones(2) / 2).argmax().item() == 0           # one against one


def planted(confusions, n=4000, prior=(0.6, 0.2, 0.2), seed=0):
    """True tags and what teachers with these confusion matrices say of them."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.multinomial(torch.tensor(prior), n, True, generator=generator)
    return truth, torch.stack([torch.multinomial(V[truth], 1, generator=generator)[:, 0] for V in confusions])


def test_bea_recovers_planted_confusions_and_beats_the_vote_with_an_adversary():
    good = 0.8 * torch.eye(3) + 0.2 / 3
    adversary = 0.9 * torch.eye(3)[[1, 2, 0]] + 0.1 / 3                          # says the next tag, and means it
    truth, said = planted([good, good, adversary])
    r = distill.bea(said, 3)
    votes = distill.vote(F.one_hot(said, 3).float(), torch.ones(3) / 3).argmax(-1)
    right, by_vote = (r.argmax(-1) == truth).double().mean(), (votes == truth).double().mean()
    assert right > by_vote + 0.05, (right, by_vote)
    counts = torch.einsum("nk,nl->kl", r, F.one_hot(said[2], 3).float())
    assert torch.allclose(counts / counts.sum(-1, keepdim=True), adversary, atol=0.06)


def test_bea_equals_a_plain_loop_of_its_updates():
    from torch import digamma, tensor
    _, said = planted([0.7 * torch.eye(3) + 0.1, 0.6 * torch.eye(3) + 0.4 / 3], n=12)
    r = [[sum(int(said[j, i] == k) for j in range(2)) / 2 for k in range(3)] for i in range(12)]
    log_pi = [digamma(tensor(1 + sum(r[i][k] for i in range(12)))) - digamma(tensor(3.0 + 12)) for k in range(3)]
    log_V = [[[digamma(tensor(1 + sum(r[i][k] for i in range(12) if said[j, i] == l)))
               - digamma(tensor(3 + sum(r[i][k] for i in range(12)))) for l in range(3)] for k in range(3)] for j in range(2)]  # fmt: skip
    scores = torch.tensor([[log_pi[k] + sum(log_V[j][k][said[j, i]] for j in range(2)) for k in range(3)] for i in range(12)])
    assert torch.allclose(distill.bea(said, 3, steps=1), torch.softmax(scores, -1), atol=1e-5)


def test_pairs_are_balanced_and_keep_their_promise():
    classes = torch.tensor([0] * 40 + [1] * 6 + [2] * 3 + [3])
    i, j = data.draw_pairs(classes, torch.Generator().manual_seed(0))
    same = classes[i] == classes[j]
    assert (i != j).all() and len(i) <= 2 * len(classes)
    assert same.sum() == 49 and (~same).sum() == 50                              # the one word of class 3 has no equal
    assert set(i[same].tolist()) == set(range(49)) and set(i[~same].tolist()) == set(range(50))
    seen = {tuple(sorted(x)) for s in range(300) for x in torch.stack(data.draw_pairs(classes, torch.Generator().manual_seed(s)), 1).tolist()}
    assert {(a, b) for a in range(40, 50) for b in range(a + 1, 50)} <= seen     # every pair can be drawn


@pytest.mark.parametrize("classes, expected", [([0, 0, 0], 3), ([5], 0), ([1, 2], 2), ([], 0)])
def test_pairs_of_a_batch_with_one_class_one_word_or_none(classes, expected):
    i, j = data.draw_pairs(torch.tensor(classes, dtype=torch.long), torch.Generator().manual_seed(0))
    assert len(i) == len(j) == expected


def test_pairs_grow_with_the_words_and_not_with_their_square():
    classes = torch.randint(0, 7, (200_000,), generator=torch.Generator().manual_seed(0))
    assert len(data.draw_pairs(classes, torch.Generator().manual_seed(0))[0]) == 400_000  # all pairs: 160 GB of indices


def test_teacher_weights_follow_equation_4():
    scores = torch.tensor([[2.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    flat = scores.flatten().tolist()
    tau = sum((x - sum(flat) / 6) ** 2 for x in flat) / 6
    a, w = teachers.teacher_weights(scores, "variance")
    for row, found in zip(scores.tolist(), a.tolist()):
        assert found == pytest.approx(softmax([x / tau for x in row]), abs=1e-6)
    assert w.tolist() == pytest.approx([(a[0, k] + a[1, k]).item() / 2 for k in range(3)]) and w.sum().item() == pytest.approx(1)
    assert torch.allclose(teachers.teacher_weights(scores, "std")[0], teachers.teacher_weights(10 * scores, "std")[0], atol=1e-6)
    assert teachers.teacher_weights(torch.randn(4, 1), "variance")[1].item() == 1   # a single source has weight 1


def test_the_language_loss_equals_a_plain_loop_and_its_ridge_has_the_gradient_of_the_published_one():
    torch.manual_seed(0)
    model, g, k = teachers.LanguageSimilarity(torch.randn(3, 8)), torch.randn(5, 8), torch.tensor([0, 1, 2, 1, 0])
    E, scores = model.mu, model(g).tolist()
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    entropy = sum(-math.log(softmax(row)[source]) for row, source in zip(scores, k.tolist())) / 5
    ridge = sum((dot(a, b) - (i == j)) ** 2 for i, a in enumerate(E.tolist()) for j, b in enumerate(E.tolist()))
    assert teachers.language_loss(model, g, k).item() == pytest.approx(entropy + 0.01 * ridge, rel=1e-5)
    u, v = model.U(g)[1].tolist(), model.V(E)[2].tolist()
    assert scores[1][2] == pytest.approx(dot(u, v), rel=1e-4)
    small = torch.autograd.grad((E @ E.T - torch.eye(3)).square().sum(), E)[0]
    large = torch.autograd.grad((E.T @ E - torch.eye(8)).square().sum(), E)[0]
    assert torch.allclose(small, large, atol=1e-3)


@pytest.fixture
def model():
    import transformers
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=12, num_attention_heads=2, intermediate_size=16, num_labels=3)
    return transformers.BertForTokenClassification(config).eval()


def rows(*lengths):
    generator = torch.Generator().manual_seed(1)
    table = {"length": list(lengths), "input_ids": [torch.randint(5, 50, (n,), generator=generator).tolist() for n in lengths],
             "first": [list(range(1, n - 1, 2)) for n in lengths], "sentence": list(range(len(lengths))), "start": [0] * len(lengths)}  # fmt: skip
    return table | {"tags": [[k % 3 for k in range(len(f))] for f in table["first"]]}


def test_padding_changes_no_word(model):
    together = data.word_states(model, data.collate(rows(9, 30), torch.device("cpu")))
    alone = data.word_states(model, data.collate(rows(9), torch.device("cpu")))
    assert torch.allclose(together[: len(alone)], alone, atol=1e-5)


def test_positions_outside_the_mask_get_exactly_no_gradient(model):
    batch = data.collate(rows(9, 30), torch.device("cpu"))
    grown = []
    hook = model.bert.encoder.register_forward_hook(lambda m, i, out: (out[0].retain_grad(), grown.append(out[0])) and None)
    teachers.recogniser_loss(model, batch, None).backward()
    hook.remove()
    gradient = grown[0].grad.abs().sum(-1)
    assert (gradient[~batch["f"]] == 0).all() and (gradient[batch["f"]] > 0).all()


@pytest.mark.parametrize("name", ["tsl-sim", "tsl-kl", "tsl-balanced", "mtmt", "mtmt-noalpha", "mtmt-nobeta", "mtmt-nogamma", "mtmt-noweights", "mtmt-nosim"])
def test_the_total_that_a_student_minimises_is_equation_9_in_a_plain_loop(name):
    import transformers
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                                     num_labels=C, hidden_dropout_prob=0, attention_probs_dropout_prob=0)  # fmt: skip
    student, seen, tau = transformers.BertForTokenClassification(config), [], 2.0

    class Crowd:
        def look_up(self, batch, device, tau):
            with torch.no_grad():
                h = data.word_states(student, batch)
                z = student.classifier(h)
            torch.manual_seed(1)
            p, v, w = torch.randn(len(h), C).softmax(-1), F.normalize(torch.randn(K, len(h), H), dim=-1), torch.tensor([0.5, 0.3, 0.2])
            seen.append((h, z, p, v, w))
            return p, v, w

    method = distill.SHARED | distill.METHODS[name]
    args = type("Args", (), {"lam": 0.7, "temperature": tau})
    recipe = {"lr": 1e-3, "epochs": 1, "batch_size": 8, "freeze": 0}             # all three sentences are one batch
    log = distill.train(student, data.datasets.Dataset.from_dict(rows(9, 12, 10)), Crowd(), method, recipe, args, 0)
    (h, z, p, v, w), = seen
    pairs = [x.tolist() for x in data.draw_pairs(p.argmax(-1), torch.Generator().manual_seed(0))]
    z, h, p = z.tolist(), h.tolist(), p.tolist()
    if name == "tsl-kl":
        soft = [softmax([x / tau for x in row]) for row in z]
        ner = [tau**2 * sum(a * math.log(a / b) for a, b in zip(*x)) for x in zip(p, soft)]
    else:
        ner = [sum((a - b) ** 2 for a, b in zip(*x)) for x in zip(p, map(softmax, z))]
    expected = sum(ner) / len(ner)
    if method["pairs"]:
        total = 0.0
        for i, j in zip(*pairs):
            t = sum(w[k].item() * sigmoid(cosine(v[k, i].tolist(), v[k, j].tolist())) for k in range(K))
            q = sigmoid(cosine(h[i], h[j]))
            bce = -t * math.log(q) - (1 - t) * math.log(1 - q)
            a = (lambda n: max(p[n]) ** 2) if method["alpha"] else lambda n: 1
            b = min(1, (2 * t - 1) ** 2 + 0.5) if method["beta"] else 1
            g = 1 - abs(sigmoid(cosine(p[i], p[j])) - t) if method["gamma"] else 1
            total += g * (a(i) * ner[i] + a(j) * ner[j]) / 2 + 0.7 * method["similarity"] * g * b * bce
        expected = total / len(pairs[0])
    assert log[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_freezing_three_layers_leaves_ten_and_eleven_free(model):
    data.freeze(model, 3)
    free = {name.split("layer.")[1].split(".")[0] for name, p in model.named_parameters() if p.requires_grad and "layer." in name}
    assert free == {str(n) for n in range(3, 12)}
    assert not any(p.requires_grad for p in model.bert.embeddings.parameters()) and model.classifier.weight.requires_grad
    optimizer, _ = data.optimizer_for(model, 1.0, 10, head_scale=1e-3)
    inside = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert inside == {id(p) for p in model.parameters() if p.requires_grad}
    head = [g["initial_lr"] for g in optimizer.param_groups if any(p is model.classifier.weight for p in g["params"])]
    assert head == [1e-3]
