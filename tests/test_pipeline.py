"""The four stages on a toy cut down to seconds: what they leave behind, for whom, and whether twice the same."""

import csv
import hashlib
import importlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import ROOT, TINY, data, here, must

distill = importlib.import_module("03_distill")

RESULTS = ["target", "method", "seed", "type", "precision", "recall", "f1", "support"]
COMPARISONS = ["target", "method", "baseline", "delta_f1", "ci_low", "ci_high", "p"]


def bits(folder, *patterns):
    """{file: hash} of the weights, caches and logits under a folder."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for pattern in patterns or ["students/**/*.safetensors", "logits/**/*.safetensors", "weights/*.json", "teachers/**/*.safetensors"]
            for p in sorted(folder.glob(pattern))}  # fmt: skip


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def to_conll(folder, languages, change=lambda lang, split, words, tags: tags):
    """Write toy languages as CoNLL files, their tags changed on the way."""
    for lang in languages:
        (folder / lang).mkdir(parents=True, exist_ok=True)
        for split, sentences in data.toy_corpus(lang, 0).items():
            lines = ("\n".join(f"{w} {t}" for w, t in zip(words, change(lang, split, words, tags))) for words, tags in sentences[:40])
            (folder / lang / f"{split}.txt").write_text("\n\n".join(lines) + "\n")
    return folder


def test_the_results_have_their_columns_and_every_system(toy):
    results, comparisons = rows(toy / "results/results.csv"), rows(toy / "results/comparisons.csv")
    assert list(results[0]) == RESULTS and list(comparisons[0]) == COMPARISONS
    systems = {"direct-qaa", "direct-qab", "direct-qba", "direct-qbb", "direct-pooled", "ensemble", "vote", "bea",
               "tsl-avg", "tsl-sim", "mtmt", "mtmt-nosim", "tsl-qaa", "supervised", "oracle-best-source"}  # fmt: skip
    assert {r["method"] for r in results} == systems and {r["target"] for r in results} == {"qac", "qbc"}
    assert {r["baseline"] for r in comparisons} >= {"direct-qaa", "direct-pooled", "ensemble", "tsl-sim", "mtmt"}
    assert not {r["method"] for r in comparisons} & {"supervised", "oracle-best-source"}
    for r in comparisons:
        assert float(r["ci_low"]) <= float(r["ci_high"]) and 0 < float(r["p"]) <= 1
    assert "ynthetic" in (toy / "results/results.md").read_text()
    assert (toy / "results/figures/gains.png").read_bytes().startswith(b"\x89PNG")


def test_a_difference_is_the_difference_of_the_results(toy):
    f1 = {(r["target"], r["method"]): float(r["f1"]) for r in rows(toy / "results/results.csv") if r["type"] == "micro"}
    for r in rows(toy / "results/comparisons.csv"):
        assert float(r["delta_f1"]) == pytest.approx(f1[r["target"], r["method"]] - f1[r["target"], r["baseline"]], abs=2e-3)


def test_targets_carry_no_tags_outside_gold(toy):
    for target in ("qac", "qbc"):
        for split in ("train", "test"):
            assert "tags" not in datasets.load_from_disk(str(toy / "data/targets" / target / split)).column_names
    assert not [p for p in (toy / "students").rglob("*") if "gold" in p.name]


def test_weights_name_every_source_and_sum_to_one(toy):
    for target in ("qac", "qbc"):
        weights = json.loads((toy / "weights" / f"{target}.json").read_text())
        assert set(weights) == {"qaa", "qab", "qba", "qbb"} and sum(weights.values()) == pytest.approx(1, abs=1e-4)


def test_a_student_tags_a_sentence_through_the_pipeline(toy):
    import transformers
    tagger = transformers.pipeline("token-classification", model=str(toy / "students/qac/mtmt-s0"), ignore_labels=[])
    words = datasets.load_from_disk(str(toy / "data/targets/qac/test"))[0]["words"]
    found = tagger(" ".join(words))
    assert {x["entity"] for x in found} <= {"O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER"} and found


def test_cached_logits_are_the_checkpoints_own_in_corpus_order(toy):
    import transformers
    model = transformers.AutoModelForTokenClassification.from_pretrained(toy / "students/qbc/mtmt-s0")
    cached = load_file(toy / "students/qbc/mtmt-s0/test.safetensors")["logits"].float()
    for row in datasets.load_from_disk(str(toy / "data/targets/qbc/test")).select([0, 7, 39]):
        logits = model(torch.tensor([row["input_ids"]])).logits[0, row["first"]]
        assert torch.allclose(logits, cached[row["start"]: row["start"] + len(row["first"])], atol=1e-2)


def test_a_second_run_keeps_everything(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a")
    before = bits(artifacts)
    said = here("02_teachers.py", artifacts)
    assert "kept" in said and "wrote" not in said
    assert "wrote" not in here("03_distill.py", artifacts, "--methods", "tsl-sim", "mtmt")
    assert bits(artifacts) == before


def test_students_need_no_teacher_but_its_cache(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a", ignore=shutil.ignore_patterns("teachers", "students", "gold"))
    here("03_distill.py", artifacts, "--methods", "tsl-sim", "mtmt")
    made = bits(artifacts, "students/**/*.safetensors")
    assert len(made) == 8 and made.items() <= bits(toy, "students/**/*.safetensors").items()


LEAK_PROOF = [*distill.METHODS, "tsl-qaa", "mtmt-qaa"]  # every method, and both single-source ones
CHANGES = {  # whose tags become what, in training text as in gold
    "plain": ("none", None),
    "blank": ("qac", lambda tags: ["O"] * len(tags)),
    "scrambled": ("qab", lambda tags: random.Random(len(tags)).sample(tags, len(tags))),
}


def test_with_gold_gone_and_target_tags_replaced_every_bit_is_as_it_was(tmp_path):
    """The leak guard, over every method and rounds, with a target that is also a source and windows that cut sentences.

    Once with the targets' own tags and an oracle trained on them; once with qac's replaced by O and gold removed; once
    with those of qab scrambled, which is a source, too: nothing that serves target qab may change.
    """
    found = {}
    for name, (whose, change) in CHANGES.items():
        changed = lambda lang, split, words, tags: change(tags) if lang == whose else tags
        corpus, artifacts = to_conll(tmp_path / f"{name}-corpus", ["qaa", "qab", "qac"], changed), tmp_path / name
        here("01_data.py", artifacts, "--data-dir", corpus, "--encoder", "scratch", "--sources", "qaa", "qab",
             "--targets", "qac", "qab", "--max-length", "32")  # fmt: skip
        if name == "blank":
            shutil.rmtree(artifacts / "gold")
        here("02_teachers.py", artifacts, *["--oracle"] * (name == "plain"))
        here("03_distill.py", artifacts, "--methods", *LEAK_PROOF, "--lambda", "0.5", "--temperature", "3")
        here("03_distill.py", artifacts, "--methods", "mtmt", "--lambda", "0.5", "--rounds", "2")
        found[name] = {file: digest for file, digest in bits(artifacts).items() if "supervised" not in file}
    plain = found["plain"]
    assert plain == found["blank"]
    assert all(len([file for file in plain if f"students/{t}" in file]) >= 2 * len(distill.METHODS) for t in ("qac", "qab"))
    serves_qab = [file for file in plain if re.search("/qab/|weights/qab|pooled-without-qab|-qaa-qab-s0-r2", file)]
    assert all(plain[file] == found["scrambled"][file] for file in serves_qab) and len(serves_qab) > 2 * len(distill.METHODS)
    assert plain["teachers/recogniser-qab-s0/model.safetensors"] != found["scrambled"]["teachers/recogniser-qab-s0/model.safetensors"]
    assert not any("logits/qab" in file and "qab-s" in file for file in plain)    # its own teacher never serves it


def test_pseudo_labels_are_the_students_own_where_it_is_sure(toy, monkeypatch):
    teachers = importlib.import_module("02_teachers")
    stage, student = teachers.Stage(teachers.parse_args(["--artifacts", str(toy)])), toy / "students/qac/mtmt-s0"
    plain = stage.table("targets/qac/train")
    p = data.over_words(data.load_tagger(student, stage.tags, 0, stage.device), plain, lambda h: h, stage.device)
    head = load_file(student / "model.safetensors")
    p = (p.float() @ head["classifier.weight"].T + head["classifier.bias"]).softmax(-1)
    monkeypatch.setattr(teachers, "CONFIDENCE", float(p.max(-1).values.median()))
    sure = [tag for tags in stage.pseudo_labelled("qac", student)["tags"] for tag in tags]
    expected = [row.argmax().item() if row.max() >= teachers.CONFIDENCE else teachers.IGNORED for row in p]
    assert np.mean([a == b for a, b in zip(sure, expected)]) > 0.95              # but for rounding to fp16 on the way
    assert 0.3 < np.mean([tag == teachers.IGNORED for tag in sure]) < 0.7


def test_an_array_of_jobs_gives_the_bits_of_one_run_and_another_seed_gives_others(toy, tmp_path):
    """All four languages' pieces made anew, two processes at a time, in the same folder."""
    artifacts = tmp_path / "a"
    must("01_data.py", artifacts)
    start = lambda script, *flags: subprocess.Popen([sys.executable, script, "--artifacts", artifacts, *TINY[script], *flags],
                                                    cwd=ROOT, stdout=subprocess.DEVNULL)  # fmt: skip
    jobs = [start("02_teachers.py", "--sources", *s) for s in (["qaa", "qab"], ["qba", "qbb"])]
    assert [job.wait() for job in jobs] == [0, 0]
    must("02_teachers.py", artifacts)
    jobs = [start("03_distill.py", "--methods", "tsl-sim", "--targets", t) for t in ("qac", "qbc")]
    assert [job.wait() for job in jobs] == [0, 0]
    one, many = bits(toy), bits(artifacts)
    assert all(one[name] == value for name, value in many.items()) and len(many) > 40
    assert not list(artifacts.rglob("*.partial"))
    must("03_distill.py", artifacts, "--methods", "tsl-sim", "--targets", "qac", "--seeds", "1")
    logits = [load_file(artifacts / f"students/qac/tsl-sim-s{s}/test.safetensors")["logits"] for s in (0, 1)]
    assert not torch.equal(*logits)


def test_of_two_writers_of_one_piece_the_first_wins_and_nothing_is_left_over(tmp_path, monkeypatch):
    with data.publishing(tmp_path / "piece", {}) as mine:
        (mine / "who").write_text("second")
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(data.os, "getpid", lambda: 1)                      # another process's number
            with data.publishing(tmp_path / "piece", {}) as other:
                (other / "who").write_text("first")
    assert (tmp_path / "piece/who").read_text() == "first" and [p.name for p in tmp_path.iterdir()] == ["piece"]


# ------------------------------------------------------------------------ odd data

@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A source with one entity type, a target with a 600-word sentence, a target of raw text without a label."""
    folder = tmp_path_factory.mktemp("odd")
    only_people = lambda lang, split, words, tags: [t if t.endswith("PER") else "O" for t in tags] if lang == "qaa" else tags
    corpus = to_conll(folder / "corpus", ["qaa", "qab", "qac"], only_people)
    (corpus / "qac" / "test.txt").write_text("\n".join(f"{w} {t}" for w, t in LONG) + "\n")
    (corpus / "new").mkdir()
    (corpus / "new" / "text.txt").write_text("Anna ditu le pona.\n\nKala, ne Oslo!\n" * 20)
    here("01_data.py", folder / "a", "--data-dir", corpus, "--sources", "qaa", "qab", "--targets", "qac", "new", "--encoder", "scratch")
    here("02_teachers.py", folder / "a")
    here("03_distill.py", folder / "a", "--methods", "tsl-sim", "mtmt")
    here("04_evaluate.py", folder / "a", "--predictions")
    return folder / "a"


LONG = [pair for words, tags in data.toy_corpus("qac", 0)["train"] for pair in zip(words, tags)][:600]


def test_a_600_word_sentence_gets_600_tags(odd):
    lines = (odd / "results/predictions/qac/tsl-sim-s0.txt").read_text().split()
    assert lines[::2] == [word for word, _ in LONG] and len(lines[1::2]) == 600


def test_raw_text_without_a_label_comes_out_tagged(odd):
    lines = (odd / "results/predictions/new/mtmt-s0.txt").read_text().split("\n")
    assert [line.split("\t")[0] for line in lines[:6]] == ["Anna", "ditu", "le", "pona", ".", ""]
    assert all(line.split("\t")[1] in ("O", "B-PER", "I-PER") for line in lines if line)


def test_types_that_one_source_lacks_are_dropped_and_named(odd):
    assert json.loads((odd / "data/config.json").read_text())["tags"] == ["O", "B-PER", "I-PER"]
    assert any("LOC" in row["dropped"] for row in rows(odd / "report.csv") if row["language"] == "qab")


def test_a_target_without_a_predicted_entity_is_scored_and_flagged(odd):
    logits = load_file(odd / "logits/qac/ensemble/test.safetensors")["logits"]
    assert (logits.argmax(-1) == 0).all()                                        # barely trained: it says O everywhere
    assert "failed" in (odd / "results/results.md").read_text()


def test_the_leak_guard_sees_a_planted_leak(odd, tmp_path):
    """A copy of stage 3 that peeks at gold must come out different when gold does."""
    code = (ROOT / "03_distill.py").read_text()
    peek = code.replace("        p, vectors, w = teachers.look_up(batch, device, tau)", "        gold = sum(datasets.load_from_disk("
                        "str(args.artifacts / 'gold/qac/train'))['tags'][:], [])\n        p, vectors, w = teachers.look_up(batch, device, tau)\n"
                        "        p = p * (1 + gold.count('O') / len(gold))", 1)  # fmt: skip
    assert peek != code
    shutil.copy(ROOT / "01_data.py", tmp_path)
    (tmp_path / "03_distill.py").write_text(peek)
    found = []
    for blank in (False, True):
        artifacts = shutil.copytree(odd, tmp_path / f"blank-{blank}")
        shutil.rmtree(artifacts / "students")
        if blank:
            tags = [["O"] * len(t) for t in datasets.load_from_disk(str(artifacts / "gold/qac/train"))["tags"]]
            shutil.rmtree(artifacts / "gold/qac/train")
            datasets.Dataset.from_dict({"tags": tags}).save_to_disk(artifacts / "gold/qac/train")
        command = [sys.executable, "03_distill.py", "--artifacts", artifacts, *TINY["03_distill.py"], "--methods", "tsl-sim", "--targets", "qac"]
        subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        found.append(bits(artifacts, "students/**/*.safetensors"))
    assert found[0] and found[0] != found[1]


def test_control_c_leaves_no_half_written_piece(tmp_path):
    job = subprocess.Popen([sys.executable, "01_data.py", "--artifacts", tmp_path / "a"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for _ in range(300):
        if list((tmp_path / "a").glob(".encoder*")):
            break
        time.sleep(0.1)
    time.sleep(0.5)
    job.send_signal(signal.SIGINT)
    assert job.wait() == 130 and "interrupted" in job.stderr.read()
    assert not list((tmp_path / "a").glob("**/*"))
