"""The four stages as people run them: twice, stopped halfway, in a pipe, on odd text."""

import importlib
import itertools
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import time

import pandas as pd
import pytest
import transformers

from conftest import GOOD, ROOT, TINY, TOY_METHODS, bits, command, corpus, files, here, must
from conftest import refused, to_conll

teachers = importlib.import_module("02_teachers")
SCRIPTS = ["01_data", "02_teachers", "03_distill", "04_evaluate"]


# ------------------------------------------------------------------------ what is written, is so

def commands(text):
    """[(script, flags)] of every command in a text that runs a stage."""
    found = []
    for script, flags in re.findall(r"python (0\d_\w+)\.py([^\n`&|#\"]*)", text):
        words = shlex.split(re.sub("   .*|…|\\.\\.\\.", "", flags), comments=True)
        found.append((script, [word for word in words if word != ")"]))
    return found


def test_every_command_of_the_readme_and_docstrings_parses_and_the_four_stand_in_order():
    found = commands((ROOT / "README.md").read_text().replace("\\\n", " "))
    shown = [commands(importlib.import_module(name).__doc__) for name in SCRIPTS]
    for script, flags in found + sum(shown, []):
        importlib.import_module(script).parse_args(flags)
    assert [script for script, flags in found if not flags][:4] == SCRIPTS


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_borrows_from_no_later_stage(name):
    source = (ROOT / f"{name}.py").read_text()
    borrowed = re.findall(r'import_module\("(\w+)"\)', source)
    assert len(borrowed) == source.count("import_module(")
    assert set(borrowed) <= set(SCRIPTS[: SCRIPTS.index(name)])


def test_a_second_run_of_all_stages_keeps_everything(copied):
    before = bits(copied)
    results = bits(copied, "results/**/*.*")
    said = here("01_data.py", copied) + here("02_teachers.py", copied, "--scaled")
    said += here("03_distill.py", copied, "--methods", *TOY_METHODS)
    assert said.count("  kept  ") > 50 and "  wrote " not in said
    shutil.copytree(copied / "students", copied / "students.old")  # is none of the systems
    here("04_evaluate.py", copied)
    assert bits(copied) == before
    assert len(results) > 30 and bits(copied, "results/**/*.*") == results


def test_a_students_logits_may_be_all_that_is_kept(copied, toy):
    shutil.rmtree(copied / "students")
    here("03_distill.py", copied, "--methods", *TOY_METHODS, "--logits-only")
    kept = ["log.csv", "record.json", "test.safetensors", "train.safetensors"]
    assert files(copied / "students/qac/mtmt-s0") == kept
    here("04_evaluate.py", copied)
    assert bits(copied, "results/*.csv") == bits(toy, "results/*.csv")


def test_a_student_tags_a_sentence_through_the_librarys_pipeline(toy):
    folder = str(toy / "students/qac/mtmt-pooled-s0")
    tagger = transformers.pipeline("token-classification", model=folder, ignore_labels=[])
    found = {x["entity"] for x in tagger("Anna ditu le pona .")}
    assert found and found <= set(teachers.read_config(toy)["tags"])


# ------------------------------------------------------------------------ stopped halfway

def test_output_that_is_closed_early_leaves_results_whole(copied, toy):
    shutil.rmtree(copied / "results")
    reads, writes = os.pipe()
    os.close(reads)
    run = command("04_evaluate.py", copied)
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    subprocess.run(run, cwd=ROOT, env=environment, stdout=writes, stderr=subprocess.DEVNULL)
    os.close(writes)
    assert files(copied / "results") == files(toy / "results")
    assert not list(copied.rglob("*.partial"))


@pytest.mark.long
def test_stages_that_were_killed_fifty_times_go_on_to_the_same_bits(toy, tmp_path):
    artifacts = tmp_path / "a"
    rng = random.Random(0)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    for script, kills in zip(TINY, (12, 18, 14, 6)):
        flags = {"02_teachers.py": ["--scaled"], "03_distill.py": ["--methods", "mtmt"]}
        flags = flags.get(script, [])
        run = command(script, artifacts, *TINY[script], *flags)
        for _ in range(kills):
            job = subprocess.Popen(run, cwd=ROOT, **pipes)
            time.sleep(rng.uniform(2, 7.5))
            job.kill()
            said = job.communicate()[0]
            assert "error" not in said, said  # nothing half was read
        must(script, artifacts, *TINY[script], *flags)
    made = bits(artifacts)
    assert len(made) > 60 and made.items() <= bits(toy).items()


@pytest.mark.long
def test_the_benchmark_prints_its_ratios(toy):
    run = [sys.executable, ROOT / "tests/benchmark.py", "--encoder", str(toy / "encoder")]
    run += ["--device", "cpu", "--sentences", "64", "--repeats", "1"]
    said = subprocess.check_output(run, text=True)
    assert "torch.float32" in said
    for row in ("student / bare model", "teachers in every step", "memory, 8 x the text"):
        ratio = re.search(f"{row} +([0-9.]+)", said).group(1)
        assert 0.5 < float(ratio) < 20


def test_raw_text_without_a_label_comes_out_tagged_word_for_word(toy, tmp_path):
    text = to_conll(tmp_path / "in", ["qaa"], n=12)
    (text / "new").mkdir()
    (text / "new/text.txt").write_text("Anna ditu le pona.\n\nKala, ne Oslo!\n")
    how = ["--data-dir", text, "--encoder", toy / "encoder", "--sources", "qaa"]
    here("01_data.py", tmp_path / "a", *how, "--targets", "new")
    here("02_teachers.py", tmp_path / "a")
    here("03_distill.py", tmp_path / "a", "--methods", "tsl-qaa")
    here("04_evaluate.py", tmp_path / "a")
    found = (tmp_path / "a/results/predictions/new/tsl-qaa-s0.txt").read_text().split()
    assert found[::2] == "Anna ditu le pona . Kala , ne Oslo !".split()


def test_without_labelled_sources_foreign_teachers_suffice_but_not_for_pairs(toy, tmp_path):
    """And a method may end as a target is called (kl is Kalaallisut), and a teacher, too."""
    text = corpus(tmp_path / "in", kl={"train": GOOD, "test": GOOD})
    artifacts = tmp_path / "a"
    flags = ["--data-dir", text, "--targets", "kl", "bb", "--types", "PER", "LOC"]
    here("01_data.py", artifacts, *flags, "--encoder", toy / "encoder")
    refused("03_distill.py", artifacts, "--methods", "tsl-kl", says=["kl", "--teacher"])
    here("02_teachers.py", artifacts, "--teacher", f"bb={text}")
    here("03_distill.py", artifacts, "--methods", "tsl-bb", "tsl-kl")
    here("04_evaluate.py", artifacts)
    results = pd.read_csv(artifacts / "results/results.csv")
    systems = itertools.product(["bb", "kl"], ["direct-bb", "ensemble", "tsl-bb", "tsl-kl"])
    assert set(zip(results.target, results.method)) == set(systems)
    assert set(results[results.method == "direct-bb"].f1) == {100}
    refused("03_distill.py", artifacts, "--methods", "mtmt", says="mtmt")


def test_the_tables_have_the_columns_that_others_rely_on(toy):
    columns = {
        "results": "target,method,seed,type,precision,recall,f1,support",
        "comparisons": "target,method,baseline,delta_f1,ci_low,ci_high,p,runs",
        "fidelity": "target,method,seed,fidelity,fidelity_train",
    }
    for name, header in columns.items():
        assert (toy / f"results/{name}.csv").read_text().split("\n")[0] == header
