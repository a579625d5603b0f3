"""No target label reaches what serves that target: not a teacher, not a weight, not a student."""

import importlib
import json
import random
import re
import shutil
import sys

import datasets
import pandas as pd
import pytest

from conftest import bits, files, here, refused, to_conll

distill = importlib.import_module("03_distill")
METHODS = [*distill.METHODS, "tsl-qaa", "mtmt-qaa", "tsl-qab", "mtmt-qab"]  # and of one source
SOURCES = ["--sources", "qaa", "qab"]
TARGETS = ["--targets", "qac", "qab"]  # qab is a source, too


def blank(lang, split, words, tags):
    return ["O"] * len(tags) if lang == "qac" else tags


def scrambled(lang, split, words, tags):
    return random.Random(len(tags)).sample(tags, len(tags)) if lang == "qab" else tags


def plain(lang, split, words, tags):
    return tags


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """{what became of the tags: artifacts} of stages 1 to 3, over every method.

    Once with the targets' own tags and an oracle trained on them; once with those of qac replaced
    by O and all gold removed; once with those of qab scrambled wherever they are.
    """
    found = {}
    for change in (plain, blank, scrambled):
        folder = tmp_path_factory.mktemp(change.__name__)
        found[change.__name__] = artifacts = folder / "a"
        corpus = to_conll(folder / "corpus", ["qaa", "qab", "qac"], change, n=25)
        how = ["--data-dir", corpus, "--encoder", "scratch", "--max-length", "32"]
        here("01_data.py", artifacts, *how, *SOURCES, *TARGETS)
        if change is blank:
            shutil.rmtree(artifacts / "gold")
        here("02_teachers.py", artifacts, "--scaled", *["--oracle"] * (change is plain))
        flags = ["--lambda", "0.5", "--methods", *METHODS]
        here("03_distill.py", artifacts, *flags)
    return found


def without_oracles(artifacts):
    return {name: digest for name, digest in bits(artifacts).items() if "supervised" not in name}


def test_with_gold_gone_and_target_tags_replaced_every_bit_is_as_it_was(guarded):
    there, blanked = (without_oracles(guarded[name]) for name in ("plain", "blank"))
    assert there == blanked
    for target, missing in (("qac", 0), ("qab", 2)):  # no tsl-qab and no mtmt-qab for qab
        students = [name for name in there if re.match(f"students/{target}/.*/model", name)]
        assert len(students) == len(METHODS) - missing


def test_a_language_that_is_source_and_target_is_served_by_the_other_sources_alone(guarded):
    there, other = (without_oracles(guarded[name]) for name in ("plain", "scrambled"))
    serves = [name for name in there if re.search("/qab/|-without-qab", name)]
    assert len([name for name in serves if name.startswith("students")]) > 2 * len(distill.METHODS)
    assert {name for name in serves if there[name] != other[name]} == set()
    for name in ("recogniser-qab", "evaluator-qab", "scaled-qab", "pooled", "scaled-pooled"):
        taught = f"teachers/{name}-s0/model.safetensors"
        assert there[taught] != other[taught], name  # the scrambled tags did reach them
    assert not [name for name in there if "logits/qab/" in name and "-qab-" in name]


def test_a_student_of_pooled_teachers_never_starts_from_one_that_saw_its_targets_tags(guarded):
    for method in ("self-pooled", "tsl-pooled", "mtmt-pooled"):
        for target, teacher in (("qab", "pooled-without-qab-s0"), ("qac", "pooled-s0")):
            path = guarded["plain"] / f"students/{target}/{method}-s0/config.json"
            teachers = [x for x in json.loads(path.read_text())["pieces"] if "teachers/" in x]
            assert teachers == [f"teachers/{teacher}"], (method, target)


def test_a_student_starts_from_the_recogniser_that_its_cache_was_made_of(guarded, tmp_path):
    artifacts = shutil.copytree(guarded["plain"], tmp_path / "a")
    path = artifacts / "data/config.json"  # as stage 1 writes it with `--sources qaa`
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sources": ["qaa"]}))
    shutil.rmtree(artifacts / "students")
    here("03_distill.py", artifacts, "--methods", "self-pooled", "--targets", "qab")
    record = json.loads((artifacts / "students/qab/self-pooled-s0/config.json").read_text())
    assert "teachers/pooled-without-qab-s0" in record["pieces"]  # the other saw the tags of qab
    assert "teachers/pooled-s0" not in record["pieces"]


def test_targets_carry_no_tags_outside_gold(guarded):
    for target in ("qac", "qab"):
        for split in ("train", "test"):
            folder = guarded["plain"] / f"data/targets/{target}/{split}"
            table = datasets.load_from_disk(str(folder))
            assert "tags" not in table.column_names
    tagged = [name for name in files(guarded["plain"]) if "gold" in name]
    assert tagged and all(name.split("/")[0] == "gold" for name in tagged)


@pytest.fixture
def opened(monkeypatch):
    """Every file that this process opens from now on, by the interpreter's own account."""
    names, active = [], [True]

    def hook(event, args):
        if active[0] and event in ("open", "os.listdir", "os.scandir"):
            names.append(str(args[0]))

    sys.addaudithook(hook)  # it cannot be taken off, so it is put to sleep
    yield names
    active[0] = False


def test_stage_3_never_opens_gold_and_stage_2_does_so_under_oracle_alone(toy, tmp_path, opened):
    away = shutil.ignore_patterns("students", "teachers", "logits", "weights")
    artifacts = shutil.copytree(toy, tmp_path / "a", ignore=away)
    opened.clear()
    here("02_teachers.py", artifacts, "--targets", "qac")
    here("03_distill.py", artifacts, "--targets", "qac")
    assert [name for name in opened if "data/targets/qac" in name]
    assert not [name for name in opened if str(artifacts / "gold") in name]
    here("02_teachers.py", artifacts, "--targets", "qac", "--oracle")
    assert [name for name in opened if str(artifacts / "gold/qac/train") in name]


def test_the_guard_sees_a_planted_leak(guarded, monkeypatch):
    """A stage 3 that peeks at gold comes out different when gold does."""
    found, whole = [], distill.mixture
    for name in ("plain", "scrambled"):
        gold = datasets.load_from_disk(str(guarded[name] / "gold/qab/train"))["tags"]
        first = [tags[0] for tags in gold].count(0) / len(gold)  # of O
        peeks = lambda logits, weights, tau=1.0: whole(logits, weights, tau) ** (1 + first)
        monkeypatch.setattr(distill, "mixture", peeks)
        artifacts = shutil.copytree(guarded[name], guarded[name].with_name("planted"))
        shutil.rmtree(artifacts / "students")
        here("03_distill.py", artifacts, "--methods", "tsl-sim", "--targets", "qab")
        found.append(bits(artifacts, "students/**/*.safetensors"))
    assert found[0] and found[0] != found[1]


# ------------------------------------------------------------------------ smaller leaks

def config_of(artifacts):
    return json.loads((artifacts / "data/config.json").read_text())


def test_the_record_names_the_sources_whose_tags_chose_the_types(tmp_path):
    corpus = to_conll(tmp_path / "corpus", ["qaa", "qab", "qac"], n=6)
    how = ["--data-dir", corpus, "--encoder", "scratch", *SOURCES, *TARGETS]
    here("01_data.py", tmp_path / "a", *how)
    chosen = config_of(tmp_path / "a")["types_from"]
    assert len(chosen) == 2 and "qaa" in chosen[0] and "qab" in chosen[1]  # qab is a target, too
    here("01_data.py", tmp_path / "b", *how, "--types", "PER", "LOC")
    assert config_of(tmp_path / "b")["types_from"] == "--types"
    assert config_of(tmp_path / "b")["tags"] == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def test_the_report_counts_the_entities_of_sources_and_none_of_targets(guarded):
    report = pd.read_csv(guarded["plain"] / "report.csv", keep_default_na=False)
    assert len(report) == 7  # three splits of qab
    for row in report.itertuples():
        of_source = row.language != "qac" and row.split != "test"
        assert bool(re.search(r"\d+ PER", row.notes)) == of_source, row
        assert of_source or not re.search("PER|LOC|ORG|converted", row.notes), row
    reports = [(x / "report.csv").read_text() for x in (guarded["plain"], guarded["blank"])]
    assert reports[0] == reports[1]


def test_a_target_never_learns_from_its_only_source_itself(tmp_path):
    corpus = to_conll(tmp_path / "corpus", ["qaa"], n=6)
    flags = ["--data-dir", corpus, "--encoder", "scratch", "--sources", "qaa", "--targets", "qaa"]
    refused("01_data.py", tmp_path / "a", *flags, says=["target qaa", "itself", "--sources"])
