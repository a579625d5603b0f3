"""Teachers from elsewhere (02_teachers.py --teacher), and advice from pretend targets (stage 4)."""

import importlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import load_file

from conftest import GOOD, corpus, here, refused

data, teachers, distill, evaluate = map(
    importlib.import_module, ("01_data", "02_teachers", "03_distill", "04_evaluate")
)


def tags_of(artifacts, name, split):
    tags = np.array(data.read_piece(artifacts, "data")["tags"])
    return tags[load_file(artifacts / name / f"{split}.safetensors")["logits"].argmax(-1)]


def sentences(artifacts, target, split):
    table = teachers.load_table(artifacts, f"data/targets/{target}/{split}")
    return teachers.sentences_of(table, "words")


def write_tagged(path, texts, tags):
    """A CoNLL file of sentences and as many tags as they have words."""
    tags, blocks = iter(tags), []
    for words in texts:
        blocks.append("".join(f"{word}\t{tag}\n" for word, tag in zip(words, tags)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(blocks), encoding="utf-8")


@pytest.fixture
def copied(toy, tmp_path):
    """The tiny run, to add to."""
    return shutil.copytree(toy, tmp_path / "a", symlinks=True)


def test_a_recognisers_tags_fed_back_from_files_give_its_argmax_word_for_word(copied, tmp_path):
    for split in ("train", "test"):
        said = tags_of(copied, "logits/qac/recogniser-qaa-s0", split)
        write_tagged(tmp_path / f"back/qac/{split}.txt", sentences(copied, "qac", split), said)
    here("02_teachers.py", copied, "--targets", "qac", "--teacher", f"back={tmp_path / 'back'}")
    rows = load_file(copied / "logits/qac/external-back-s0/test.safetensors")["logits"]
    assert rows.max() == 0 and rows.min() == -20 and ((rows == 0).sum(-1) == 1).all()
    for split in ("train", "test"):
        ours, back = (f"logits/qac/{x}-s0" for x in ("recogniser-qaa", "external-back"))
        assert (tags_of(copied, ours, split) == tags_of(copied, back, split)).all()
    shutil.rmtree(copied / "students/qac")
    here("03_distill.py", copied, "--targets", "qac", "--methods", "tsl-back", "--overwrite")
    shutil.rmtree(copied / "students/qbc")
    here("04_evaluate.py", copied)
    results = pd.read_csv(copied / "results/results.csv")
    scores = results[results.target == "qac"].set_index(["method", "type"])["f1"]
    assert (scores["direct-back"] == scores["direct-qaa"]).all() and "tsl-back" in scores


def test_a_checkpoint_speaks_by_its_own_tokenizer_and_its_other_labels_count_as_o(copied, tmp_path):
    student = copied / "students/qac/tsl-avg-s0"
    path = shutil.copytree(student, tmp_path / "tagger")
    here("02_teachers.py", copied, "--targets", "qac", "--teacher", f"same={path}")
    assert (tags_of(copied, "logits/qac/external-same-s0", "test")
            == tags_of(copied, "students/qac/tsl-avg-s0", "test")).all()
    model = transformers.AutoModelForTokenClassification.from_pretrained(path)
    tags = data.read_piece(copied, "data")["tags"]
    model.config.id2label = {k: tag.replace("LOC", "CITY") for k, tag in enumerate(tags)}
    model.save_pretrained(path)
    told = here("02_teachers.py", copied, "--targets", "qac", "--teacher", f"other={path}")
    assert "O for B-CITY I-CITY" in told
    same, other = (
        load_file(copied / f"logits/qac/external-{x}-s0/test.safetensors")["logits"].float().exp()
        for x in ("same", "other")
    )
    place = [k for k, tag in enumerate(tags) if tag.endswith("LOC")]
    assert torch.allclose(other[:, 0], same[:, [0, *place]].sum(-1), atol=2e-3)
    assert other[:, place].max() < 1e-8


def test_a_checkpoint_whose_labels_are_written_in_another_order_says_the_same(copied, tmp_path):
    """As transformers writes eleven labels and more: "0", "1", "10", "2"."""
    path = shutil.copytree(copied / "students/qac/tsl-avg-s0", tmp_path / "tagger")
    config = json.loads((path / "config.json").read_text())
    config["id2label"] = dict(reversed(config["id2label"].items()))
    (path / "config.json").write_text(json.dumps(config))
    here("02_teachers.py", copied, "--targets", "qac", "--teacher", f"same={path}")
    assert (tags_of(copied, "logits/qac/external-same-s0", "test")
            == tags_of(copied, "students/qac/tsl-avg-s0", "test")).all()


def test_a_seed_without_the_external_teacher_of_another_is_refused(copied, tmp_path):
    """Else runs of three teachers and of two would be averaged as one method."""
    path = shutil.copytree(copied / "students/qac/tsl-avg-s0", tmp_path / "tagger")
    here("02_teachers.py", copied, "--targets", "qac", "--teacher", f"x={path}")
    for source in ("qaa", "qab", "qba", "qbb"):
        shutil.copytree(copied / f"logits/qac/recogniser-{source}-s0",
                        copied / f"logits/qac/recogniser-{source}-s1")
    refused("03_distill.py", copied, "--targets", "qac", "--methods", "tsl-sim", "--seeds", "1",
            says=["external-x-s1", "missing", "02_teachers.py"])


def test_external_teachers_weigh_alike_and_the_rest_goes_by_similarity(copied):
    args = distill.parse_args(["--artifacts", str(copied)])
    taught_by = distill.resolve("tsl-sim", "qac", ["qaa", "qab", "qba", "qbb"], ["x", "y"])
    names, weights, _, w, _ = distill.find_teachers(args, "qac", *taught_by, 0)
    assert [name.split("/")[2] for name in names[-2:]] == ["external-x-s0", "external-y-s0"]
    assert weights[-2:].tolist() == pytest.approx([1 / 6, 1 / 6])
    assert weights[:4].tolist() == pytest.approx((w * 4 / 6).tolist())
    assert weights.sum().item() == pytest.approx(1)


def test_without_any_labelled_source_external_teachers_suffice(tmp_path):
    text = GOOD + "\nAnna B-PER\nsees O\nBo B-PER\n"
    folder = corpus(tmp_path / "in", bb={"train": text, "test": text})
    flags = ["--data-dir", folder, "--targets", "bb", "--encoder", "scratch"]
    a = tmp_path / "a"
    refused("01_data.py", a, *flags, says=["no source languages", "--types"])
    here("01_data.py", a, *flags, "--types", "PER", "LOC")
    refused("03_distill.py", a, "--methods", "tsl-kl", says=["bb", "--teacher"])
    here("02_teachers.py", a, "--teacher", f"x={folder}")
    refused("03_distill.py", a, says=["mtmt", "no evaluator"])  # of the default methods
    says = ["mtmt", "no evaluator", "tsl-kl"]
    refuse_mtmt = ["--methods", "mtmt", "--seeds", "0"]
    here("03_distill.py", a, "--methods", "tsl-x", "tsl-kl")
    refused("03_distill.py", a, *refuse_mtmt, says=says)
    refused("03_distill.py", a, "--methods", "mtmt-x", says=["mtmt-x", "not one of"])
    here("04_evaluate.py", a)
    other_types = ["--types", "PER", "ORG"]  # the caches speak of PER and LOC
    refused("01_data.py", a, *flags, *other_types, says=["targets/bb", "tags"])
    results = pd.read_csv(a / "results/results.csv")
    found = results[results.type == "micro"].set_index("method")["f1"]
    assert found["direct-x"] == 100 and {"tsl-x", "tsl-kl", "ensemble"} <= set(found.index)


BAD = {  # name: (train.txt beside a target of two sentences, what the line says)
    "other words": (GOOD.replace("Oslo", "Rome"), ["train.txt", "sentence 1", "bb's train text"]),
    "a sentence missing": (GOOD.split("\n\n")[0] + "\n", ["train.txt", "sentence 2"]),
    "a sentence more": (GOOD + "\nBo B-PER\n", ["train.txt", "sentence 3"]),
    "no tags": ("Anna\nlives\nin\nOslo\n\nBo\nruns\n", ["train.txt", "sentence 1", "no tags"]),
    "unknown labels": (
        GOOD.replace("PER", "X").replace("LOC", "Y"), ["--teacher", "B-PER", "no label"]),
}


@pytest.mark.parametrize("case", BAD)
def test_tagged_files_that_do_not_fit_are_refused_by_sentence(tmp_path, case):
    content, says = BAD[case]
    folder = corpus(tmp_path / "in", bb={"train": GOOD, "test": GOOD})
    flags = ["--data-dir", folder, "--targets", "bb", "--encoder", "scratch"]
    here("01_data.py", tmp_path / "a", *flags, "--types", "PER", "LOC")
    other = corpus(tmp_path / "other", bb={"train": content, "test": GOOD})
    refused("02_teachers.py", tmp_path / "a", "--teacher", f"x={other}", says=says)


@pytest.mark.parametrize("given, says", [
    ("nothing", "NAME=PATH"), ("a b=x", "NAME=PATH"), ("qaa=x", "taken"), ("pooled=x", "taken"),
    ("kl=x", "taken"), ("x=nowhere", "nowhere"),
])
def test_teachers_that_are_none_are_refused(copied, given, says):
    refused("02_teachers.py", copied, "--seeds", "0", "--epochs", "1", "--teacher", given,
            says=["--teacher", says])


def test_tagged_files_that_changed_are_not_what_was_kept(copied, tmp_path):
    for split in ("train", "test"):
        texts = sentences(copied, "qac", split)
        tags = ["B-PER"] * sum(map(len, texts))
        write_tagged(tmp_path / f"x/qac/{split}.txt", texts, tags)
    flags = "--targets", "qac", "--teacher", f"x={tmp_path / 'x'}"
    here("02_teachers.py", copied, *flags)
    assert "kept  logits/qac/external-x-s0" in here("02_teachers.py", copied, *flags)
    path = tmp_path / "x/qac/test.txt"
    path.write_text(path.read_text().replace("B-PER", "B-LOC", 1))
    refused("02_teachers.py", copied, *flags, "--seeds", "0", "--epochs", "1",
            says=["external-x-s0", "--overwrite"])


# ------------------------------------------------------------------------ advice

def runs(found, n=60):
    """Two runs of n sentences with two gold entities each, of which a share is found."""
    rng = np.random.default_rng(int(100 * found))
    table = np.zeros((n, 1, 3), dtype=int)
    table[:, 0, 2] = 2
    both = {}
    for seed in (0, 1):
        table[:, 0, 0] = rng.binomial(2, found, n)
        table[:, 0, 1] = 2
        both[seed] = table.copy()
    return both


def test_advice_counts_wins_on_pretend_targets_and_checks_them_on_the_others():
    good, fair, bad = runs(0.9), runs(0.6), runs(0.3)
    source = {"direct-en": bad, "direct-pooled": fair, "self-pooled": good, "mtmt": bad}
    other = {"direct-en": fair, "direct-pooled": good, "self-pooled": fair, "mtmt": bad}
    counts = {"hau": source, "swa": source, "xho": other, "ibo": source}
    roles = {"direct": "direct-en", "direct-pooled": "direct-pooled"}
    baselines = dict.fromkeys(counts, roles)
    comparisons = evaluate.compare(counts, baselines)
    text = evaluate.advice(comparisons, counts, baselines, ["hau", "swa"])
    assert "pretend targets hau, swa: `self-pooled`" in text
    lines = [line for line in text.split("\n") if "gold can tell" in line]
    assert any("above on 1 of 2 (direct-pooled)" in line for line in lines)
    row = next(line for line in text.split("\n") if line.startswith("self-pooled"))
    assert row.count("above on 2 of 2") == 2 and "[" in row
    assert "No pretend target" in evaluate.advice(comparisons, counts, baselines, [])


def test_advice_is_direct_transfer_where_nothing_beats_it_and_none_where_nothing_else_was_run():
    counts = {"hau": {"direct-en": runs(0.9), "mtmt": runs(0.3)}, "xho": {"direct-en": runs(0.6)}}
    baselines = dict.fromkeys(counts, {"direct": "direct-en", "direct-pooled": "direct-pooled"})
    comparisons = evaluate.compare(counts, baselines)
    text = evaluate.advice(comparisons, counts, baselines, ["hau"])
    assert "pretend targets hau: `direct transfer`" in text
    del counts["hau"]["mtmt"]
    comparisons = evaluate.compare(counts, baselines)
    assert "No pretend target" in evaluate.advice(comparisons, counts, baselines, ["hau"])


def test_translated_data_of_a_target_is_one_system_under_any_language():
    counts = {}
    for lang in ("hau", "swa"):
        counts[lang] = {"direct-en": runs(0.6), f"direct-{lang}-mt": runs(0.9)}
    counts["ibo"] = {"direct-en": runs(0.3), "direct-ibo-mt": runs(0.6), "direct-hau-mt": runs(0.1)}
    baselines = dict.fromkeys(counts, {"direct": "direct-en", "direct-pooled": "direct-pooled"})
    comparisons = evaluate.compare(counts, baselines)
    text = evaluate.advice(comparisons, counts, baselines, ["hau", "swa"])
    assert "`direct-own-mt`" in text and "direct-hau-mt" not in text
    assert "gold can tell: above on 1 of 1 (direct)" in text


def test_means_are_over_targets_that_are_not_pretended_and_of_the_same_runs():
    counts = {lang: {"direct-en": runs(0.6), "mtmt": runs(0.9)} for lang in ("hau", "ibo", "xho")}
    baselines = dict.fromkeys(counts, {"direct": "direct-en"})
    rows = lambda *given: evaluate.compare(*given).set_index("target").delta_f1
    found, without = rows(counts, baselines, ["hau"]), rows(counts, baselines)
    assert found["mean-fixed"] == pytest.approx((found["ibo"] + found["xho"]) / 2)
    assert without["mean-fixed"] == pytest.approx(without[["hau", "ibo", "xho"]].mean())
    counts["ibo"]["mtmt"] = {0: counts["ibo"]["mtmt"][0]}  # another run is missing there
    assert "mean-fixed" not in rows(counts, baselines).index


def test_signs_tell_of_teachers_that_disagree_and_of_systems_without_names():
    agree = [["B-PER", "O", "O", "O"]] * 3
    differ = [["O", "B-LOC", "O", "O"]] * 3
    nothing = [["O"] * 4] * 3
    predicted = {("direct-en", 0): agree, ("direct-sw", 0): agree, ("mtmt", 0): nothing}
    assert "agree on 3 of the 3 words" in evaluate.signs("xx", predicted)
    assert "; 75% are O; hardly a name by: mtmt-s0" in evaluate.signs("xx", predicted)
    predicted = {("direct-en", 0): agree, ("direct-sw", 0): differ, ("direct-pooled", 0): agree}
    assert "agree on 0 of the 6 words" in evaluate.signs("xx", predicted)
    assert "; 75% are O; hardly a name by: none" in evaluate.signs("xx", predicted)
    more = predicted | {("direct-en", 1): differ, ("direct-sw", 1): nothing}  # another run
    assert "agree on 0 of the 6 words" in evaluate.signs("xx", more)
    assert "agree on 0 of the 0 words" in evaluate.signs("xx", {("direct-en", 0): nothing})
