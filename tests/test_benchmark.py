"""That what the benchmark compares us with minimises what we minimise."""

import importlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

import benchmark

teachers, distill = map(importlib.import_module, ("02_teachers", "03_distill"))
TINY = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY |= {"intermediate_size": 16}


@pytest.fixture(scope="module")
def taggers(tmp_path_factory):
    """A student and four teachers, all different, none with dropout."""
    folder, found = tmp_path_factory.mktemp("encoder"), []
    for seed in range(5):
        torch.manual_seed(seed)
        transformers.BertForMaskedLM(transformers.BertConfig(**TINY)).save_pretrained(folder)
        found.append(teachers.load_tagger(folder, benchmark.TAGS, seed, "cpu"))
    return found


@pytest.fixture(scope="module")
def table():
    return benchmark.random_table([5, 12, 14, 30], TINY["vocab_size"], np.random.default_rng(0))


def test_the_released_tsl_loss_over_padded_sentences_is_ours_over_the_number_of_tags(
    taggers, table
):
    student, *recognisers = taggers
    batch, weights = teachers.collate(table[:], "cpu"), torch.tensor([0.1, 0.2, 0.3, 0.4])
    wide = benchmark.padded(batch)
    assert wide["input_ids"].shape == (4, 128)
    theirs = benchmark.tsl_loss(student, benchmark.tsl_teachers(recognisers, weights, wide), wide)
    with torch.no_grad():
        logits = torch.stack([teachers.read_words(model, batch)[1] for model in recognisers])
        p = distill.mixture(logits, weights)
        h, student_logits = teachers.read_words(student, batch)
    ours, _ = distill.student_loss(student_logits, h, p, None, distill.METHODS["tsl-sim"], None)
    assert len(benchmark.TAGS) * theirs.item() == pytest.approx(ours.item(), rel=1e-5)


@pytest.mark.parametrize("K", [1, 2])
def test_the_released_mtmt_loss_is_ours_on_the_same_pairs(taggers, table, K, monkeypatch):
    student, *others = taggers
    recognisers, evaluators = others[:K], others[2 : 2 + K]
    batch = teachers.collate(table[:], "cpu")
    words = [0, 2, 1, 3]  # one of every sentence; sentences 0 and 2 make a pair, 1 and 3 another
    starts = [start for start, _ in batch["spans"]]
    scored = [start + word for start, word in zip(starts, words)]
    sides = []
    for rows in ([0, 1], [2, 3]):
        place = [table[row]["first"][words[row]] for row in rows]
        sides.append((teachers.collate(table[rows], "cpu"), torch.tensor(place)))
    weights = torch.full((K,), 1 / K)
    p, t = benchmark.mtmt_teachers(recognisers, evaluators, weights, sides)
    theirs = benchmark.mtmt_loss(student, p, t, sides)
    with torch.no_grad():
        said = [teachers.read_words(model, batch) for model in (*recognisers, *evaluators, student)]
    p = distill.mixture(torch.stack([logits for _, logits in said[:K]]), weights)
    vectors = torch.stack([F.normalize(h, dim=-1) for h, _ in said[K : 2 * K]])
    pairs = torch.tensor(scored[:2]), torch.tensor(scored[2:])
    monkeypatch.setattr(distill.teachers, "draw_pairs", lambda *_: pairs)
    (h, student_logits), evaluated = said[-1], (vectors, weights, torch.ones(K))
    method = distill.METHODS["mtmt"]
    ours, _ = distill.student_loss(student_logits, h, p, evaluated, method, None)
    assert theirs.item() == pytest.approx(ours.item(), rel=1e-5)
