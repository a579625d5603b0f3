"""No target label reaches what serves that target: not a teacher, not a weight, not a student."""

import importlib
import random
import re
import shutil
import sys

import datasets
import pandas as pd
import pytest

from conftest import ROOT, bits, files, here, to_conll

distill = importlib.import_module("03_distill")
METHODS = [*distill.METHODS, "tsl-qaa", "mtmt-qaa", "tsl-qab", "mtmt-qab"]  # and of one source


def blank(lang, split, words, tags):
    return ["O"] * len(tags) if lang == "qac" else tags


def scrambled(lang, split, words, tags):
    return random.Random(len(tags)).sample(tags, len(tags)) if lang == "qab" else tags


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """{change of the tags: artifacts} of stages 1 to 3, every method; blank has no gold, too."""
    found = {}
    how = "--encoder scratch --max-length 32 --sources qaa qab --targets qac qab".split()
    # qab is a source and a target
    for name, change in {"plain": None, "blank": blank, "scrambled": scrambled}.items():
        folder = tmp_path_factory.mktemp(name)
        text = to_conll(folder / "text", ["qaa", "qab", "qac"], change, n=25)
        artifacts = folder / "a"
        here("01_data.py", artifacts, "--data-dir", text, *how)
        if change is blank:
            shutil.rmtree(artifacts / "gold")
        here("02_teachers.py", artifacts, "--scaled", "--steps", "2")
        here("03_distill.py", artifacts, "--steps", "2", "--methods", *METHODS)
        found[name] = artifacts
    return found


def different(guarded, one, other):
    """Names of the tensors that are not the same bits in both; both have the same names."""
    there = bits(guarded[one])
    here_ = bits(guarded[other])
    assert set(there) == set(here_) and len(there) > 100
    return {name for name in there if there[name] != here_[name]}


def test_with_gold_gone_and_target_tags_replaced_every_bit_is_as_it_was(guarded):
    assert different(guarded, "plain", "blank") == set()
    made = files(guarded["plain"] / "students")
    for target, missing in (("qac", 0), ("qab", 2)):  # no tsl-qab and no mtmt-qab for qab
        students = [name for name in made if re.match(f"{target}/.*/model", name)]
        assert len(students) == len(METHODS) - missing


def test_a_language_that_is_source_and_target_is_served_by_the_other_sources_alone(guarded):
    changed = different(guarded, "plain", "scrambled")
    assert not [name for name in changed if re.search("/qab/|-without-qab", name)]
    for name in ("recogniser-qab", "evaluator-qab", "recogniser-pooled", "scaled-pooled"):
        assert f"teachers/{name}-s0/model.safetensors" in changed  # the tags did reach these
    served = files(guarded["plain"] / "logits/qab")
    assert served and not [name for name in served if re.match(r"\w+-qab-s", name)]
    assert "qab" not in distill.load_file(guarded["plain"] / "weights/qab/sentences.safetensors")


def test_the_guard_sees_a_planted_leak(guarded, monkeypatch):
    mixture = distill.mixture
    found = []
    for name in ("plain", "scrambled"):
        artifacts = shutil.copytree(guarded[name], guarded[name].with_name("planted"))
        shutil.rmtree(artifacts / "students")

        def peeks(logits, weights, tau=1.0):
            gold = datasets.load_from_disk(str(artifacts / "gold/qab/train"))["tags"]
            first = [tags[0] for tags in gold].count(0) / len(gold)  # of O
            return mixture(logits, weights, tau) ** (1 + first)

        monkeypatch.setattr(distill, "mixture", peeks)
        here("03_distill.py", artifacts, "--methods", "tsl-sim", "--targets", "qab")
        found.append(bits(artifacts, "students/**/model.safetensors"))
    assert found[0] and found[0] != found[1]


def test_targets_carry_no_tags_outside_gold(guarded):
    for target in ("qac", "qab"):
        for split in ("train", "test"):
            folder = guarded["plain"] / f"data/targets/{target}/{split}"
            assert "tags" not in datasets.load_from_disk(str(folder)).column_names
    tagged = [name for name in files(guarded["plain"]) if "gold" in name]
    assert tagged and all(name.startswith("gold/") for name in tagged)


@pytest.fixture
def opened():
    """Every file that this process opens from now on, by the interpreter's own account."""
    names = []
    listening = [True]

    def hook(event, args):
        if listening and event in ("open", "os.listdir", "os.scandir"):
            names.append(str(args[0]))

    sys.addaudithook(hook)  # it cannot be taken off, so it is put to sleep
    yield names
    listening.clear()


def test_gold_is_opened_by_stage_4_and_not_by_stages_2_and_3(copied, opened):
    for folder in ("students", "teachers", "logits", "weights"):
        shutil.rmtree(copied / folder)
    opened.clear()
    here("02_teachers.py", copied, "--targets", "qac")
    here("03_distill.py", copied, "--targets", "qac")
    assert [name for name in opened if "data/targets/qac" in name]
    assert not [name for name in opened if str(copied / "gold") in name]
    here("04_evaluate.py", copied)
    assert [name for name in opened if str(copied / "gold/qac/test") in name]
    for script in ("02_teachers.py", "03_distill.py"):  # no string names it where no test goes
        assert not re.search("[\"']gold[/\"']", (ROOT / script).read_text())


def test_the_report_counts_the_entities_of_sources_and_none_of_targets(guarded):
    report = pd.read_csv(guarded["plain"] / "report.csv", keep_default_na=False)
    assert len(report) == 8
    of_targets = report.index >= 4  # sources stand first
    for row, is_target in zip(report.itertuples(), of_targets):
        assert bool(re.search("PER|LOC|ORG|converted", row.notes)) != is_target, row
    reports = [(guarded[x] / "report.csv").read_text() for x in ("plain", "blank")]
    assert reports[0] == reports[1]


def test_a_targets_own_labels_are_used_as_a_source_of_artifacts_of_their_own(tmp_path, toy):
    """The supervised reference, direct-qac-gold, is asked for and lies apart."""
    text = to_conll(tmp_path / "text", ["qac"], n=25)
    shutil.copytree(text / "qac", text / "qac-gold")
    flags = ["--data-dir", text, "--sources", "qac-gold", "--targets", "qac"]
    here("01_data.py", tmp_path / "a", *flags, "--encoder", toy / "encoder")
    here("02_teachers.py", tmp_path / "a", "--sources", "qac-gold", "--steps", "40")
    here("04_evaluate.py", tmp_path / "a")
    results = pd.read_csv(tmp_path / "a/results/results.csv")
    assert set(results.method) == {"direct-qac-gold"}
    assert results.f1.iloc[0] > 20  # it has learned from them
