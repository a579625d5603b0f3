"""The four stages as a user runs them, by subprocess, on a toy cut down to seconds."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import datasets
import pytest
import torch
from safetensors.torch import load_file

from conftest import ROOT, must, stage

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
    from conftest import data
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
    assert "kept" in must("02_teachers.py", artifacts) and "wrote" not in must("02_teachers.py", artifacts)
    assert "wrote" not in must("03_distill.py", artifacts, "--methods", "tsl-sim", "mtmt")
    assert bits(artifacts) == before


def test_gold_gone_or_scrambled_and_target_tags_replaced_leave_every_bit_as_it_was(tmp_path):
    """The leak guard, with a target that is also a source, for both kinds of method and every use of teachers."""
    languages, flags = ["qaa", "qab", "qac"], ["--sources", "qaa", "qab", "--targets", "qac", "qab", "--max-length", "32"]
    methods = ["--methods", "tsl-sim", "tsl-sentence", "tsl-vote", "tsl-bea", "tsl-hard", "tsl-kl", "mtmt", "mtmt-nogamma", "mtmt-teacherhead", "--rounds", "2"]
    plain = lambda lang, split, words, tags: tags
    blank = lambda lang, split, words, tags: ["O"] * len(tags) if lang == "qac" else tags
    noise = lambda lang, split, words, tags: tags[1:] + tags[:1] if lang == "qac" else tags
    found = []
    for name, change in (("plain", plain), ("blank", blank), ("noise", noise)):
        corpus, artifacts = to_conll(tmp_path / f"{name}-corpus", languages, change), tmp_path / name
        must("01_data.py", artifacts, "--data-dir", corpus, "--encoder", "scratch", *flags)
        if name == "blank":
            shutil.rmtree(artifacts / "gold")
        must("02_teachers.py", artifacts)
        must("03_distill.py", artifacts, *methods)
        found.append(bits(artifacts))
    assert found[0] == found[1] == found[2] and len(found[0]) > 40
    assert not any("logits/qab" in name and "qab-s" in name for name in found[0])   # its own teacher never serves it


def test_the_leak_guard_sees_a_planted_leak(tmp_path):
    """A copy of stage 3 that peeks at gold must come out different when gold does."""
    corpus = to_conll(tmp_path / "corpus", ["qaa", "qab", "qac"])
    code = (ROOT / "03_distill.py").read_text().replace(
        "        p, vectors, w = teachers.look_up(batch, device, tau)",
        "        p, vectors, w = teachers.look_up(batch, device, tau)\n"
        "        gold = sum(datasets.load_from_disk(str(args.artifacts / 'gold/qac/train'))['tags'][:], [])\n"
        "        p = p * (1.0 + gold.count('O') / len(gold))", 1)  # fmt: skip
    assert "gold.count" in code
    for name in ("01_data.py", "02_teachers.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "03_distill.py").write_text(code)
    found = []
    for name, change in (("a", lambda *x: x[3]), ("b", lambda lang, s, w, tags: ["O"] * len(tags) if lang == "qac" else tags)):
        artifacts = tmp_path / name
        must("01_data.py", artifacts, "--data-dir", to_conll(corpus, ["qac"], change), "--encoder", "scratch", "--sources", "qaa", "qab", "--targets", "qac")
        must("02_teachers.py", artifacts)
        command = [sys.executable, "03_distill.py", "--artifacts", str(artifacts), "--epochs", "1", "--seeds", "0", "--methods", "tsl-sim"]
        subprocess.run(command, cwd=tmp_path, check=True)
        found.append(bits(artifacts, "students/**/*.safetensors"))
    assert found[0] != found[1]


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path, toy):
    again = tmp_path / "again"
    must("01_data.py", again)
    must("02_teachers.py", again, "--sources", "qaa", "qba")
    first = bits(toy)
    assert all(first[name] == value for name, value in bits(again).items() if name in first) and bits(again)
    must("02_teachers.py", again, "--sources", "qaa", "--seeds", "1", "--targets", "qac")
    logits = [load_file(again / f"logits/qac/recogniser-qaa-s{s}/test.safetensors")["logits"] for s in (0, 1)]
    assert not torch.equal(*logits)


def test_pieces_made_by_an_array_of_jobs_equal_those_of_one_run(toy, tmp_path):
    artifacts = tmp_path / "a"
    must("01_data.py", artifacts)
    jobs = [subprocess.Popen([sys.executable, "02_teachers.py", "--epochs", "1", "--artifacts", artifacts, "--sources", *s],
                             cwd=ROOT, stdout=subprocess.DEVNULL) for s in (["qaa", "qab"], ["qba", "qbb"])]  # fmt: skip
    assert [job.wait() for job in jobs] == [0, 0]
    must("02_teachers.py", artifacts)
    jobs = [subprocess.Popen([sys.executable, "03_distill.py", "--epochs", "1", "--seeds", "0", "--methods", "tsl-sim", "--artifacts", artifacts, "--targets", t],
                             cwd=ROOT, stdout=subprocess.DEVNULL) for t in ("qac", "qbc")]  # fmt: skip
    assert [job.wait() for job in jobs] == [0, 0]
    one = bits(toy)
    assert all(one[name] == value for name, value in bits(artifacts).items())
    assert not list(artifacts.rglob("*.partial"))


def test_raw_text_without_a_label_comes_out_tagged(tmp_path):
    corpus = to_conll(tmp_path / "corpus", ["qaa", "qab"])
    (corpus / "new").mkdir()
    (corpus / "new" / "text.txt").write_text("Anna ditu le pona.\n\nKala, ne Oslo!\n" * 20)
    artifacts = tmp_path / "a"
    must("01_data.py", artifacts, "--data-dir", corpus, "--sources", "qaa", "qab", "--targets", "new", "--encoder", "scratch")
    must("02_teachers.py", artifacts)
    must("03_distill.py", artifacts, "--methods", "mtmt")
    must("04_evaluate.py", artifacts)
    lines = (artifacts / "results/predictions/new/mtmt-s0.txt").read_text().split("\n")
    assert [line.split("\t")[0] for line in lines[:6]] == ["Anna", "ditu", "le", "pona", ".", ""]
    assert all(line.split("\t")[1] in ("O",) or line.split("\t")[1][:2] in ("B-", "I-") for line in lines if line)


def test_a_600_word_sentence_gets_600_tags(tmp_path):
    corpus = to_conll(tmp_path / "corpus", ["qaa", "qab", "qac"])
    words = sum((s[0] for s in __import__("conftest").data.toy_corpus("qac", 0)["train"]), [])[:600]
    (corpus / "qac" / "test.txt").write_text("\n".join(f"{w} O" for w in words) + "\n")
    artifacts = tmp_path / "a"
    must("01_data.py", artifacts, "--data-dir", corpus, "--sources", "qaa", "qab", "--targets", "qac", "--encoder", "scratch")
    must("02_teachers.py", artifacts)
    must("03_distill.py", artifacts, "--methods", "tsl-sim")
    must("04_evaluate.py", artifacts, "--predictions")
    lines = (artifacts / "results/predictions/qac/tsl-sim-s0.txt").read_text().split()
    assert lines[::2] == words and len(lines[1::2]) == 600


def test_a_target_without_a_predicted_entity_and_a_source_of_one_type_run_through(tmp_path):
    only = lambda lang, split, words, tags: [t if t.endswith("PER") else "O" for t in tags] if lang == "qaa" else tags
    corpus = to_conll(tmp_path / "corpus", ["qaa", "qac"], only)
    artifacts = tmp_path / "a"
    must("01_data.py", artifacts, "--data-dir", corpus, "--sources", "qaa", "--targets", "qac", "--encoder", "scratch", "--limit", "8")
    assert json.loads((artifacts / "data/config.json").read_text())["tags"] == ["O", "B-PER", "I-PER"]
    must("02_teachers.py", artifacts)
    must("03_distill.py", artifacts, "--methods", "mtmt", "tsl-sim")
    logits = load_file(artifacts / "logits/qac/ensemble/test.safetensors")["logits"]
    assert (logits.argmax(-1) == 0).all()                                        # barely trained: it says O everywhere
    must("04_evaluate.py", artifacts)
    assert "failed" in (artifacts / "results/results.md").read_text()


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
