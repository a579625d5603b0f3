"""The four stages on a toy cut down to seconds: what they leave, and whether twice the same."""

import csv
import importlib
import itertools
import json
import shutil
import signal
import subprocess
import time

import datasets
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from conftest import ROOT, TINY, TOY_METHODS, bits, command, data, files, here, must, to_conll

teachers = importlib.import_module("02_teachers")
RESULTS = ["target", "method", "seed", "type", "precision", "recall", "f1", "support"]
COMPARISONS = ["target", "method", "baseline", "delta_f1", "ci_low", "ci_high", "p"]


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_the_results_have_their_columns_and_every_system(toy):
    results, comparisons = (rows(toy / f"results/{x}.csv") for x in ("results", "comparisons"))
    assert list(results[0]) == RESULTS and list(comparisons[0]) == COMPARISONS
    systems = {f"direct-{name}" for name in ("qaa", "qab", "qba", "qbb", "pooled")}
    systems |= {"ensemble", "vote", "bea", "supervised", "oracle-best-source", *TOY_METHODS}
    assert {r["method"] for r in results} == systems
    assert {r["target"] for r in results} == {"qac", "qbc"}
    baselines = {"direct-qaa", "direct-pooled", "ensemble", "tsl-sim", "mtmt", "self-pooled"}
    assert {r["baseline"] for r in comparisons} == baselines | {"best-by-weight"}
    assert not {r["method"] for r in comparisons} & {"supervised", "oracle-best-source"}
    targets = {"qac", "qbc", "mean-fixed", "mean-resampled"}
    assert {r["target"] for r in comparisons} == targets
    assert "ynthetic" in (toy / "results/results.md").read_text()
    assert (toy / "results/figures/gains.png").read_bytes().startswith(b"\x89PNG")


def test_a_difference_is_the_difference_of_the_results(toy):
    f1, seen = {}, 0
    for r in rows(toy / "results/results.csv"):
        f1.setdefault((r["target"], r["method"]), float(r["f1"]))
    for r in rows(toy / "results/comparisons.csv"):
        if (r["target"], r["baseline"]) in f1:
            expected = f1[r["target"], r["method"]] - f1[r["target"], r["baseline"]]
            assert float(r["delta_f1"]) == pytest.approx(expected, abs=2e-3)
            seen += 1
    assert seen > 50


def test_one_seed_has_no_interval_and_no_p(toy):
    for r in rows(toy / "results/comparisons.csv"):
        assert r["ci_low"] == r["ci_high"] == r["p"] == "" and r["delta_f1"] != ""


def test_every_system_says_something_of_every_word(toy):
    for target in ("qac", "qbc"):
        for split in ("train", "test"):
            table = datasets.load_from_disk(str(toy / "data/targets" / target / split))
            words = sum(map(len, table["words"]))
            for path in toy.glob(f"*/{target}/*/{split}.safetensors"):
                (tensor,) = load_file(path).values()
                assert len(tensor) == words and torch.isfinite(tensor).all(), path
                assert tensor.dtype == torch.float16


def test_a_student_tags_a_sentence_through_the_pipeline(toy):
    folder = str(toy / "students/qac/mtmt-s0")
    tagger = transformers.pipeline("token-classification", model=folder, ignore_labels=[])
    words = datasets.load_from_disk(str(toy / "data/targets/qac/test"))[0]["words"]
    found = tagger(" ".join(words))
    tags = json.loads((toy / "data/config.json").read_text())["tags"]
    assert found and {x["entity"] for x in found} <= set(tags)


def test_cached_logits_are_the_checkpoints_own_in_corpus_order(toy):
    folder = toy / "students/qbc/mtmt-s0"
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder)
    cached = load_file(folder / "test.safetensors")["logits"].float()
    for row in datasets.load_from_disk(str(toy / "data/targets/qbc/test")).select([0, 7, 39]):
        logits = model(torch.tensor([row["input_ids"]])).logits[0, row["first"]]
        there = cached[row["start"] : row["start"] + len(row["first"])]
        assert torch.allclose(logits, there, atol=1e-2)


def test_students_need_no_teacher_but_its_cache(toy, tmp_path):
    away = shutil.ignore_patterns("teachers", "students", "gold")
    artifacts = shutil.copytree(toy, tmp_path / "a", ignore=away)
    here("03_distill.py", artifacts, "--methods", "tsl-sim", "mtmt")
    made = bits(artifacts, "students/**/*.safetensors")
    assert len(made) == 8 and made.items() <= bits(toy).items()


def test_a_pooled_student_starts_from_the_pooled_recogniser(toy, tmp_path):
    away = shutil.ignore_patterns("students")
    artifacts = shutil.copytree(toy, tmp_path / "a", ignore=away)
    here("03_distill.py", artifacts, "--methods", "self-pooled", "--targets", "qac", "--lr", "1e-9")
    start = load_file(artifacts / "teachers/pooled-s0/model.safetensors")
    student = load_file(artifacts / "students/qac/self-pooled-s0/model.safetensors")
    assert all(torch.allclose(start[key].float(), student[key], atol=1e-6) for key in start)


def test_a_seed_is_a_whole_run(toy, tmp_path):
    """Teachers of seed 1 teach the students of seed 1; those of seed 0 stay as they are."""
    artifacts = shutil.copytree(toy, tmp_path / "a")
    here("02_teachers.py", artifacts, "--seeds", "1")
    here("03_distill.py", artifacts, "--methods", "tsl-sim", "mtmt", "--seeds", "1")
    assert bits(toy).items() <= bits(artifacts).items()
    record = json.loads((artifacts / "students/qac/mtmt-s1/config.json").read_text())
    caches = [name for name in record["pieces"] if name.startswith("logits")]
    assert len(caches) == 8 and all(name.endswith("-s1") for name in caches)
    for name in ("logits/qac/recogniser-qaa", "logits/qac/ensemble", "students/qac/tsl-sim"):
        one, other = (load_file(artifacts / f"{name}-s{s}/test.safetensors") for s in (0, 1))
        assert not torch.equal(one["logits"], other["logits"]), name
    here("04_evaluate.py", artifacts)
    seeds = {}
    for r in rows(artifacts / "results/results.csv"):
        seeds.setdefault(r["method"], set()).add(r["seed"])
    assert seeds["direct-qaa"] == seeds["ensemble"] == seeds["mtmt"] == {"0", "1"}
    both = [r for r in rows(artifacts / "results/comparisons.csv") if r["method"] == "mtmt"]
    for r in both:  # self-pooled has seed 0 alone
        assert (r["p"] == "") == (r["baseline"] == "self-pooled"), r
        if r["p"]:
            assert float(r["ci_low"]) <= float(r["ci_high"]) and 0 < float(r["p"]) <= 1


def start(script, artifacts, *flags):
    run = command(script, artifacts, *TINY[script], *flags)
    return subprocess.Popen(run, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def succeed(jobs):
    for job in jobs:
        error = job.communicate()[1]
        assert job.returncode == 0, error.decode()[-3000:]


def test_an_array_of_jobs_gives_the_bits_of_one_run(toy, tmp_path):
    """The pieces made anew, two processes at a time, in the same folder."""
    artifacts = tmp_path / "a"
    here("01_data.py", artifacts)
    pairs = ["qaa", "qab"], ["qba", "qbb"]
    succeed([start("02_teachers.py", artifacts, "--sources", *pair) for pair in pairs])
    here("02_teachers.py", artifacts)
    flags = ["--methods", "tsl-sim", "--targets"]
    succeed([start("03_distill.py", artifacts, *flags, target) for target in ("qac", "qbc")])
    one, many = bits(toy), bits(artifacts)
    assert many.items() <= one.items() and len(many) > 40
    assert not list(artifacts.rglob("*.partial"))


def test_two_of_the_same_command_at_once_end_as_one_does(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a", ignore=shutil.ignore_patterns("students"))
    flags = ["--methods", "tsl-sim", "tsl-avg", "--targets", "qac"]
    succeed([start("03_distill.py", artifacts, *flags) for _ in range(2)])
    made = bits(artifacts, "students/**/*.safetensors")
    assert len(made) == 4 and made.items() <= bits(toy).items()
    assert not list(artifacts.rglob("*.partial"))


# ------------------------------------------------------------------------ odd data

LONG = [pair for sentence in data.toy_corpus("qac", 0)["train"] for pair in zip(*sentence)][:600]


def only_people(lang, split, words, tags):
    return [tag if tag.endswith("PER") else "O" for tag in tags] if lang == "qaa" else tags


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A source with one entity type, a target of one 600-word sentence, one of raw text alone."""
    folder = tmp_path_factory.mktemp("odd")
    corpus = to_conll(folder / "corpus", ["qaa", "qab", "qac"], only_people)
    (corpus / "qac/test.txt").write_text("".join(f"{word} {tag}\n" for word, tag in LONG))
    (corpus / "new").mkdir()
    (corpus / "new/text.txt").write_text("Anna ditu le pona.\n\nKala, ne Oslo!\n" * 20)
    how = ["--data-dir", corpus, "--encoder", "scratch"]
    here("01_data.py", folder / "a", *how, "--sources", "qaa", "qab", "--targets", "qac", "new")
    here("02_teachers.py", folder / "a")
    here("03_distill.py", folder / "a", "--methods", "tsl-sim", "mtmt")
    here("04_evaluate.py", folder / "a")
    return folder / "a"


def test_a_600_word_sentence_gets_600_tags(odd):
    lines = (odd / "results/predictions/qac/tsl-sim-s0.txt").read_text().split()
    assert lines[::2] == [word for word, _ in LONG] and len(lines[1::2]) == 600
    assert {path.name for path in (odd / "results/predictions/qac").iterdir()} >= {"mtmt-s0.txt"}


def test_raw_text_without_a_label_comes_out_tagged(odd):
    lines = (odd / "results/predictions/new/mtmt-s0.txt").read_text().split("\n")
    assert [line.split("\t")[0] for line in lines[:6]] == ["Anna", "ditu", "le", "pona", ".", ""]
    assert {line.split("\t")[1] for line in lines if line} <= {"O", "B-PER", "I-PER"}


def test_types_that_one_source_lacks_are_dropped_and_named(odd):
    assert json.loads((odd / "data/config.json").read_text())["tags"] == ["O", "B-PER", "I-PER"]
    of_train = lambda row: (row["language"], row["split"]) == ("qab", "train")
    (row,) = filter(of_train, rows(odd / "report.csv"))
    assert "LOC dropped" in row["notes"] and "ORG dropped" in row["notes"]


def test_a_target_without_a_predicted_entity_is_scored_and_flagged(odd):
    logits = load_file(odd / "logits/qac/ensemble-s0/test.safetensors")["logits"]
    assert (logits.argmax(-1) == 0).all()  # barely trained: it says O everywhere
    assert "failed" in (odd / "results/results.md").read_text()


def test_predictions_are_files_that_score_reads(odd):
    folder = odd / "results/predictions/qac"
    for path in folder.iterdir():
        said = here("04_evaluate.py", odd, "--score", path, path)
        assert "f1 = " in said


# ------------------------------------------------------------------------ Ctrl-C

def default_signals():
    """In a child: a suite in the background (&) ignores SIGINT, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupt(job, seen):
    """Send Ctrl-C to a stage once a half-written piece is there; its exit status and last words."""
    for _ in range(600):
        if seen() or job.poll() is not None:
            break
        time.sleep(0.1)
    time.sleep(0.3)
    job.send_signal(signal.SIGINT)
    error = job.communicate()[1]
    return job.returncode, error


def test_control_c_leaves_no_half_written_piece(tmp_path):
    options = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    job = subprocess.Popen(
        command("01_data.py", tmp_path / "a"), preexec_fn=default_signals, **options
    )
    status, error = interrupt(job, lambda: list((tmp_path / "a").glob(".encoder*")))
    assert status == 130 and error.strip().split("\n")[-1].startswith("interrupted"), error
    assert "Traceback" not in error and not files(tmp_path / "a")


def test_seeds_and_jobs_are_independent_of_the_order_of_pieces(toy, tmp_path):
    """Every student has its own generators: alone or after others, it is the same."""
    artifacts = shutil.copytree(toy, tmp_path / "a", ignore=shutil.ignore_patterns("students"))
    here("03_distill.py", artifacts, "--methods", *reversed(TOY_METHODS), "--targets", "qbc")
    made = bits(artifacts, "students/**/*.safetensors")
    assert made and made.items() <= bits(toy).items()


def test_a_students_log_has_a_row_an_epoch_and_every_term_by_name(toy):
    (row,) = rows(toy / "students/qac/mtmt-s0/log.csv")
    terms = ["epoch", "loss", "recognition", "similarity", "alpha", "beta", "gamma"]
    assert list(row) == terms and float(row["similarity"]) >= 0
    (row,) = rows(toy / "students/qac/tsl-sim-s0/log.csv")
    assert list(row) == terms[:3] and row["loss"] == row["recognition"]


def test_the_words_of_every_window_are_scored_once_whatever_the_window(toy, tmp_path):
    corpus = to_conll(tmp_path / "corpus", ["qaa", "qab", "qac"], n=6)
    how = ["--data-dir", corpus, "--encoder", toy / "encoder", "--max-length", "10"]
    here("01_data.py", tmp_path / "a", *how, "--sources", "qaa", "qab", "--targets", "qac")
    table = datasets.load_from_disk(str(tmp_path / "a/data/targets/qac/test"))
    expected = [words for words, _ in data.toy_corpus("qac", 0)["test"][:6]]
    assert len(table) > 6 and max(table["length"]) <= 10
    assert list(itertools.chain(*table["words"])) == list(itertools.chain(*expected))
    assert np.all(np.diff(table["sentence"]) >= 0)


def test_a_refusal_is_one_line_for_the_shell_too(tmp_path):
    done = subprocess.run(command("02_teachers.py", tmp_path / "a"), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stdout == ""
    assert not (tmp_path / "a").exists()




def test_a_system_that_one_target_lacks_is_scored_and_drawn_where_it_is(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a")
    shutil.rmtree(artifacts / "students/qbc/mtmt-s0")
    here("04_evaluate.py", artifacts)
    found = {r["target"] for r in rows(artifacts / "results/results.csv") if r["method"] == "mtmt"}
    assert found == {"qac"}
