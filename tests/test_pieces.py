"""Pieces of artifacts/: whole or absent, kept or refused, and refused by name where stale."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from conftest import ROOT, TOY_METHODS, bits, data, files, here, refused, stage, to_conll

evaluate = importlib.import_module("04_evaluate")
QUICK = ["--epochs", "1", "--seeds", "0"]


def arguments(folder, overwrite=False):
    return SimpleNamespace(artifacts=folder, overwrite=overwrite)


def says(word):
    """A build that writes one file."""
    return lambda folder: (folder / "word").write_text(word) and None


def record(folder):
    return json.loads((folder / "config.json").read_text())


# ------------------------------------------------------------------------ made whole

def test_a_piece_records_its_settings_the_ids_below_it_and_facts(tmp_path):
    args = arguments(tmp_path)
    data.make(args, "below", says("a"), size=1)
    data.make(args, "above/one", lambda folder: {"score": 3}, ["below"], size=2)
    below, above = record(tmp_path / "below"), record(tmp_path / "above/one")
    assert above["pieces"] == {"below": below["id"]} and above["settings"] == {"size": 2}
    assert above["facts"]["score"] == 3 and above["facts"]["seconds"] >= 0
    assert above["id"] != below["id"] and data.read_piece(tmp_path, "above/one") == above


def test_a_piece_of_a_model_keeps_the_models_own_configuration(tmp_path):
    data.make(arguments(tmp_path), "x", lambda f: (f / "config.json").write_text('{"a": 1}') and {})
    assert record(tmp_path / "x")["a"] == 1 and record(tmp_path / "x")["id"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, OSError, SystemExit])
def test_a_build_that_fails_leaves_nothing(tmp_path, failure):
    def build(folder):
        (folder / "half").write_text("x")
        raise failure

    with pytest.raises(failure):
        data.make(arguments(tmp_path), "logits/x", build)
    assert not files(tmp_path)


def test_a_build_that_fails_leaves_the_piece_that_it_was_to_replace(tmp_path):
    data.make(arguments(tmp_path), "x", says("old"), size=1)
    with pytest.raises(ZeroDivisionError):
        data.make(arguments(tmp_path, overwrite=True), "x", lambda folder: 1 / 0, size=2)
    assert (tmp_path / "x/word").read_text() == "old" and record(tmp_path / "x")["settings"]
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_piece_that_cannot_be_removed_is_replaced_all_the_same(tmp_path, monkeypatch):
    data.make(arguments(tmp_path), "x", says("old"), size=1)
    with monkeypatch.context() as stuck:  # as files that others hold open on a network's disk
        stuck.setattr(data.shutil, "rmtree", lambda path, ignore_errors=False: ignore_errors or 1 / 0)
        data.make(arguments(tmp_path, overwrite=True), "x", says("new"), size=2)
    assert (tmp_path / "x/word").read_text() == "new"
    data.make(arguments(tmp_path, overwrite=True), "x", says("newer"), size=3)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]  # what was left is swept


def test_a_folder_that_is_no_piece_is_not_replaced_unasked(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/thesis.txt").write_text("mine")
    with pytest.raises(data.UserError, match="results: .*another --artifacts"):
        data.make(SimpleNamespace(artifacts=tmp_path), "results", says("new"), replace=True)
    assert files(tmp_path) == ["results/thesis.txt"]


def test_a_killed_build_leaves_no_piece_and_the_next_one_sweeps_up(tmp_path):
    code = """
import importlib, os, sys, types
from pathlib import Path
data = importlib.import_module("01_data")
args = types.SimpleNamespace(artifacts=Path(sys.argv[1]), overwrite=False)
def build(folder):
    (folder / "half").write_text("x")
    os.kill(os.getpid(), 9)
data.make(args, "x", build)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT)
    assert done.returncode == -9 and not (tmp_path / "x").exists() and files(tmp_path)
    data.make(arguments(tmp_path), "x", says("whole"))
    assert files(tmp_path) == ["x/config.json", "x/word"]


def test_of_two_writers_of_one_piece_the_first_wins_and_nothing_is_left_over(
    tmp_path, monkeypatch, capsys
):
    def slow(folder):
        (folder / "word").write_text("second")
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(data.os, "getpid", lambda: 1)  # another process's number
            data.make(arguments(tmp_path), "piece", says("first"))

    data.make(arguments(tmp_path), "piece", slow)
    assert (tmp_path / "piece/word").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["piece"]
    assert "kept  piece" in capsys.readouterr().out


def test_a_writer_who_comes_second_with_other_settings_is_told(tmp_path, monkeypatch):
    def slow(folder):
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(data.os, "getpid", lambda: 1)  # another process's number
            data.make(arguments(tmp_path), "piece", says("first"), lr=1)

    with pytest.raises(data.UserError, match="made from other lr"):
        data.make(arguments(tmp_path), "piece", slow, lr=2)
    assert (tmp_path / "piece/word").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["piece"]


def test_leftovers_of_dead_processes_are_swept_and_those_of_living_ones_are_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host, names = data.socket.gethostname(), {}
    for what, pid in {"dead": dead.pid, "mine": os.getpid(), "living": os.getppid()}.items():
        names[what] = f".x.{host}-{pid}.partial"
        (tmp_path / names[what]).mkdir()
    old = f".x.{host}-{dead.pid}.old.partial"  # it was killed while it replaced a piece
    elsewhere, other = f".x.elsewhere-{dead.pid}.partial", f".xy.{host}-{dead.pid}.partial"
    for name in (old, elsewhere, other):
        (tmp_path / name).mkdir()
    data.make(arguments(tmp_path), "x", says("new"))
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"x", names["living"], elsewhere, other}  # of other machines nothing is known


def test_the_same_is_kept_and_another_is_refused_or_replaced(tmp_path, capsys):
    args = arguments(tmp_path)
    data.make(args, "x", says("one"), size=1, words=("a", "b"))
    before = record(tmp_path / "x")
    data.make(args, "x", says("two"), size=1, words=["a", "b"])
    assert "kept  x" in capsys.readouterr().out and record(tmp_path / "x") == before
    others = {"size": 2, "words": ["a", "b"]}, {"size": 1}, {"size": 1, "words": [], "n": 0}
    for settings in others:
        with pytest.raises(data.UserError, match="made from other .*--overwrite"):
            data.make(args, "x", says("two"), **settings)
    assert record(tmp_path / "x") == before and (tmp_path / "x/word").read_text() == "one"
    data.make(arguments(tmp_path, overwrite=True), "x", says("two"), size=1, words=["a", "b"])
    assert record(tmp_path / "x") == before  # --overwrite replaces what differs alone
    data.make(arguments(tmp_path, overwrite=True), "x", says("two"), size=2)
    assert (tmp_path / "x/word").read_text() == "two"
    assert record(tmp_path / "x")["id"] != before["id"]


def test_a_piece_whose_record_is_damaged_is_refused_or_replaced(tmp_path):
    data.make(arguments(tmp_path), "x", says("one"))
    for content in ("", "{", "[]", "{}", "null"):
        (tmp_path / "x/config.json").write_text(content)
        with pytest.raises(data.UserError, match="damaged"):
            data.make(arguments(tmp_path), "x", says("two"))
        with pytest.raises(data.UserError, match="01_data.py"):
            data.read_piece(tmp_path, "x")
    data.make(arguments(tmp_path, overwrite=True), "x", says("two"))
    assert (tmp_path / "x/word").read_text() == "two"


@pytest.mark.parametrize("name", ["piece", "outer/piece"])
def test_a_symlinked_piece_is_replaced_behind_its_link(tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a").mkdir()
    link = tmp_path / "a" / name.split("/")[0]
    if name == "piece":  # the piece itself is a link
        data.make(arguments(tmp_path / "elsewhere"), "piece", says("old"), size=1)
        link.symlink_to(tmp_path / "elsewhere/piece")
    else:  # a folder above it is
        link.symlink_to(tmp_path / "elsewhere")
        data.make(arguments(tmp_path / "a"), name, says("old"), size=1)
    data.make(arguments(tmp_path / "a", overwrite=True), name, says("new"), size=2)
    assert link.is_symlink() and (tmp_path / "a" / name / "word").read_text() == "new"
    assert (tmp_path / "elsewhere/piece/word").read_text() == "new"
    assert not [p for p in files(tmp_path) if "partial" in p]


# ------------------------------------------------------------------------ stale

def test_a_piece_is_stale_where_one_below_it_is_another_at_any_depth(tmp_path):
    args, again = arguments(tmp_path), arguments(tmp_path, overwrite=True)
    data.make(args, "one", says("a"), size=1)
    data.make(args, "two", says("a"), ["one"])
    data.make(args, "three", says("a"), ["two"])
    assert data.read_piece(tmp_path, "three")
    data.make(again, "one", says("a"), size=2)
    for name in ("two", "three"):  # the lowest stale one is to be made first
        with pytest.raises(data.UserError, match="two: made from another one.*--overwrite"):
            data.read_piece(tmp_path, name)
    with pytest.raises(data.UserError, match="two"):
        data.make(args, "three", says("b"), ["two"])  # nothing is made from what is stale
    data.make(again, "two", says("b"), ["one"])
    data.make(again, "three", says("b"), ["two"])
    assert data.read_piece(tmp_path, "three")


def test_what_is_gone_from_below_makes_nothing_stale(tmp_path):
    data.make(arguments(tmp_path), "one", says("a"))
    data.make(arguments(tmp_path), "two", says("a"), ["one"])
    shutil.rmtree(tmp_path / "one")
    assert data.read_piece(tmp_path, "two")
    with pytest.raises(data.UserError, match="one: missing"):
        data.read_piece(tmp_path, "one")


@pytest.mark.parametrize("name, script", [
    ("data", "01_data.py"), ("gold/xx", "01_data.py"), ("encoder", "01_data.py"),
    ("teachers/pooled-s0", "02_teachers.py"), ("weights/xx", "02_teachers.py"),
    ("logits/xx/recogniser-aa-s0", "02_teachers.py"), ("logits/xx/ensemble-s0", "03_distill.py"),
    ("logits/xx/bea-s12", "03_distill.py"), ("students/xx/mtmt-s0", "03_distill.py"),
])
def test_what_is_missing_is_named_with_the_stage_that_makes_it(tmp_path, name, script):
    with pytest.raises(data.UserError, match=f"{name}: missing.* {script} first"):
        data.read_piece(tmp_path, name)


# ------------------------------------------------------------------------ of the stages

def test_a_second_run_keeps_everything(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a")
    before = bits(artifacts)
    for script, flags in [
        ("01_data.py", []), ("02_teachers.py", ["--scaled", "--oracle"]),
        ("03_distill.py", ["--methods", "tsl-sim", "mtmt", "mtmt-pooled"]),
    ]:
        said = here(script, artifacts, *flags)
        assert "kept" in said and "wrote" not in said, said
    assert bits(artifacts) == before


def test_a_teacher_taught_anew_makes_its_students_and_ensembles_stale(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a")
    anew = ["--lr", "0.01", "--overwrite"]
    here("02_teachers.py", artifacts, "--sources", "qaa", "--targets", "qac", *anew)
    cause = "recogniser-qaa-s0"
    says = ["logits/qac/ensemble-s0", cause, "--overwrite"]
    refused("03_distill.py", artifacts, *QUICK, says=says)
    refused("04_evaluate.py", artifacts, says=["logits/qac/bea-s0", *says[1:], "03_distill.py"])
    methods = ["tsl-avg", "tsl-sim", "mtmt", "mtmt-nosim", "tsl-qaa"]
    here("03_distill.py", artifacts, "--targets", "qac", "--methods", *methods, "--overwrite")
    late = ["logits/qbc/recogniser-qaa-s0", "02_teachers.py", "--overwrite"]
    refused("04_evaluate.py", artifacts, says=late)  # qbc's cache is the old teacher's
    refused("03_distill.py", artifacts, *QUICK, "--targets", "qbc", says=late)


def test_students_alone_are_refused_where_their_evaluator_is_another(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a")
    for path in ("teachers/evaluator-qba-s0", "logits/qac/evaluator-qba-s0"):
        shutil.rmtree(artifacts / path)  # made again by the same flags, but not the same
    here("02_teachers.py", artifacts, "--sources", "qba", "--targets", "qac", "--overwrite")
    says = ["students/qac/mtmt-s0", "evaluator-qba-s0", "--overwrite"]
    refused("03_distill.py", artifacts, *QUICK, "--methods", "mtmt", "--targets", "qac", says=says)
    refused("04_evaluate.py", artifacts, says=["students/qac/mtmt", says[1]])


def test_of_another_text_nothing_made_from_the_old_one_is_used(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a")
    here("01_data.py", artifacts, "--limit", "41", "--overwrite")
    again = ["--overwrite", *QUICK]
    refused("03_distill.py", artifacts, *again, says=["made from another", "02_teachers.py"])
    refused("02_teachers.py", artifacts, *QUICK, says=["teachers/recogniser-qaa-s0", "--overwrite"])
    says = ["recogniser-qaa-s0", "made from another", "02_teachers.py"]
    refused("04_evaluate.py", artifacts, says=says)


def test_a_first_stage_that_was_stopped_halfway_is_to_be_run_again(toy, tmp_path, monkeypatch):
    artifacts, make = shutil.copytree(toy, tmp_path / "a"), data.make

    def stop(args, name, *rest, **settings):
        if name == "data/sources/qab":
            raise KeyboardInterrupt
        make(args, name, *rest, **settings)

    with monkeypatch.context() as user, pytest.raises(KeyboardInterrupt):
        user.setattr(data, "make", stop)
        here("01_data.py", artifacts, "--types", "PER", "--overwrite")
    refused("02_teachers.py", artifacts, *QUICK, says=["a/data:", "data/sources/qaa", "01_data.py"])


@pytest.mark.parametrize("script, flags, says", [
    ("01_data.py", ["--limit", "30"], ["encoder", "text"]),
    ("01_data.py", ["--limit", "40", "--max-length", "64"], ["data/sources/qaa", "max_length"]),
    ("02_teachers.py", ["--epochs", "2"], ["teachers/recogniser-qaa-s0", "epochs"]),
    ("02_teachers.py", ["--epochs", "1", "--tau", "std"], ["weights/qac", "tau"]),
    ("03_distill.py", ["--epochs", "1", "--lr", "0.5"], ["students/qac/mtmt-s0", "lr"]),
    ("03_distill.py", ["--epochs", "1", "--lambda", "0.5"], ["students/qac/mtmt-s0", "method"]),
    ("03_distill.py", ["--epochs", "1", "--freeze", "1"], ["students/qac/mtmt-s0", "freeze"]),
])
def test_changed_settings_are_named_with_the_remedy(toy, tmp_path, script, flags, says):
    artifacts = shutil.copytree(toy, tmp_path / "a")
    if script != "01_data.py":
        flags = ["--seeds", "0", *flags]
    if script == "03_distill.py":
        flags = ["--methods", "mtmt", *flags]
    refused(script, artifacts, *flags, says=[*says, "--overwrite", "--artifacts"])


def test_a_student_records_what_differs_from_the_defaults(toy):
    method = lambda name: record(toy / f"students/qac/{name}-s0")["settings"]["method"]
    assert method("tsl-sim") == {} and method("mtmt") == {"pairs": True}
    assert method("mtmt-nosim") == {"pairs": True, "similarity": False}


@pytest.fixture(scope="module")
def grown(toy, tmp_path_factory):
    """Artifacts of two sources and one target, through stage 3, on an encoder of the user's."""
    folder = tmp_path_factory.mktemp("grown")
    to_conll(folder / "corpus", ["qaa", "qab", "qba", "qac", "qbc"], n=20)
    shutil.copytree(toy / "encoder", folder / "encoder")
    flags = ["--data-dir", folder / "corpus", "--encoder", folder / "encoder"]
    here("01_data.py", folder / "a", *flags, "--sources", "qaa", "qab", "--targets", "qac")
    here("02_teachers.py", folder / "a")
    here("03_distill.py", folder / "a", "--methods", "tsl-sim", "mtmt-pooled")
    return folder / "a", flags


def test_a_target_added_later_keeps_every_teacher_and_every_student(grown, tmp_path):
    artifacts, flags = grown
    artifacts, before = shutil.copytree(artifacts, tmp_path / "a"), bits(artifacts)
    languages = ["--sources", "qaa", "qab", "--targets", "qac", "qbc"]
    said = here("01_data.py", artifacts, *flags, *languages)
    assert "kept  data/sources/qaa" in said and "kept  data/targets/qac" in said
    said = here("02_teachers.py", artifacts)
    wrote = [line.split()[1] for line in said.split("\n") if line.startswith("  wrote")]
    assert wrote and all("qbc" in name for name in wrote)
    assert "kept  teachers/recogniser-qaa-s0" in said and "kept  weights/qac" in said
    said = here("03_distill.py", artifacts, "--methods", "tsl-sim", "mtmt-pooled")
    assert "kept  students/qac/tsl-sim-s0" in said and "wrote students/qbc/tsl-sim-s0" in said
    assert before.items() <= bits(artifacts).items()
    here("04_evaluate.py", artifacts)


def test_a_source_added_later_keeps_the_teachers_of_the_others(grown, tmp_path):
    artifacts, flags = grown
    before = bits(artifacts, "teachers/*qa*/*.safetensors")
    artifacts = shutil.copytree(artifacts, tmp_path / "a")
    here("01_data.py", artifacts, *flags, "--sources", "qaa", "qab", "qba", "--targets", "qac")
    remedy = ["weights/qac", "data/sources/qba", "--overwrite"]
    with pytest.raises(data.UserError) as told:
        here("02_teachers.py", artifacts)
    assert all(part in str(told.value) for part in remedy)
    here("02_teachers.py", artifacts, "--overwrite")
    assert before and before.items() <= bits(artifacts, "teachers/*qa*/*.safetensors").items()


def test_an_encoder_of_the_users_may_not_change_or_vanish_and_strange_files_are_none_of_it(
    grown, tmp_path
):
    artifacts = shutil.copytree(grown[0], tmp_path / "a")
    encoder = shutil.copytree(grown[0].parent / "encoder", tmp_path / "encoder")
    config = record(artifacts / "data") | {"encoder": str(encoder)}
    (artifacts / "data/config.json").write_text(json.dumps(config))
    (encoder / ".DS_Store").write_text("x")
    (encoder / "README.md").write_text("x")
    here("02_teachers.py", artifacts)
    (encoder / "model.safetensors").write_bytes(b"another")
    refused("02_teachers.py", artifacts, says=[str(encoder), "changed", "01_data.py"])
    shutil.rmtree(encoder)
    refused("02_teachers.py", artifacts, says=[str(encoder), "missing", "01_data.py"])


def test_removed_teachers_make_no_student_stale(toy, tmp_path):
    away = shutil.ignore_patterns("teachers")
    artifacts = shutil.copytree(toy, tmp_path / "a", ignore=away)
    before = bits(artifacts)
    assert "wrote" not in here("03_distill.py", artifacts, "--methods", "tsl-sim", "mtmt")
    here("04_evaluate.py", artifacts)
    assert bits(artifacts) == before


def test_weights_edited_by_hand_change_nothing(toy, tmp_path):
    away = shutil.ignore_patterns("students", "ensemble*", "vote*", "bea*")
    artifacts = shutil.copytree(toy, tmp_path / "a", ignore=away)
    for target in ("qac", "qbc"):
        path = artifacts / "weights" / target / "weights.json"
        assert list(json.loads(path.read_text())) == ["qaa", "qab", "qba", "qbb"]
        path.write_text(json.dumps({"qaa": 0.0, "qab": 0.0, "qba": 0.0, "qbb": 1.0}))
    here("03_distill.py", artifacts, "--methods", "tsl-sim", "tsl-avg", "mtmt")
    made = bits(artifacts, "students/**/*.safetensors", "logits/*/[ebv]*-s0/*.safetensors")
    assert len(made) > 12 and made.items() <= bits(toy).items()
    here("03_distill.py", artifacts, "--methods", *TOY_METHODS)
    here("04_evaluate.py", artifacts, "--oracle")
    tables = [(x / "results/comparisons.csv").read_text() for x in (toy, artifacts)]
    assert tables[0] == tables[1]


def test_students_follow_the_weights_of_sentences(toy, tmp_path):
    away = shutil.ignore_patterns("students", "ensemble*", "vote*", "bea*")
    artifacts = shutil.copytree(toy, tmp_path / "a", ignore=away)
    path = artifacts / "weights/qac/sentences.safetensors"
    a = load_file(path)["a"]
    assert a.shape == (40, 4) and a.sum(1).tolist() == pytest.approx([1.0] * 40)
    weights = json.loads((path.parent / "weights.json").read_text())
    assert list(weights.values()) == pytest.approx(a.mean(0).tolist())
    a[:] = 0
    a[:, 0] = 1
    save_file({"a": a}, path)
    here("03_distill.py", artifacts, "--methods", "tsl-sim", "tsl-qaa", "--targets", "qac")
    one, other = (load_file(artifacts / f"students/qac/{m}-s0/model.safetensors")
                  for m in ("tsl-sim", "tsl-qaa"))
    assert all(one[key].equal(other[key]) for key in one)


def test_what_is_no_piece_is_passed_over(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a")
    shutil.copytree(artifacts / "students/qac/mtmt-s0", artifacts / "students/qac/mtmt-s0-old")
    (artifacts / "logits/qac/notes.txt").write_text("")
    here("04_evaluate.py", artifacts, "--oracle")
    tables = [folder / "results/results.csv" for folder in (toy, artifacts)]
    assert tables[0].read_text() == tables[1].read_text()


@pytest.mark.parametrize("name", ["data/sources/qaa", "data/targets/qac", "results"])
def test_a_linked_piece_of_a_stage_is_replaced_behind_its_link(toy, tmp_path, name):
    artifacts = shutil.copytree(toy, tmp_path / "a")
    behind = shutil.move(artifacts / name, tmp_path / "behind")
    (artifacts / name).symlink_to(behind)
    before = record(tmp_path / "behind")["id"]
    if name == "results":
        here("04_evaluate.py", artifacts)
    else:
        here("01_data.py", artifacts, "--limit", "39", "--overwrite")
    assert (artifacts / name).is_symlink() and record(tmp_path / "behind")["id"] != before


# ------------------------------------------------------------------------ damaged

def cut(path):
    path.write_bytes(path.read_bytes()[:-99])


def damaged_cache(artifacts):
    cut(artifacts / "logits/qac/evaluator-qba-s0/train.safetensors")


def damaged_test_cache(artifacts):
    cut(artifacts / "logits/qac/recogniser-qba-s0/test.safetensors")
    shutil.rmtree(artifacts / "logits/qac/ensemble-s0")


def damaged_teacher(artifacts):
    cut(artifacts / "teachers/recogniser-qaa-s0/model.safetensors")
    shutil.rmtree(artifacts / "logits/qac/recogniser-qaa-s0")


def damaged_encoder(artifacts):
    cut(artifacts / "encoder/model.safetensors")
    shutil.rmtree(artifacts / "teachers/recogniser-qaa-s0")


def missing_encoder(artifacts):
    shutil.rmtree(artifacts / "encoder")
    shutil.rmtree(artifacts / "teachers/recogniser-qaa-s0")


DAMAGES = {  # what is wrong: (how it comes about, the stage that meets it, what the line says)
    "the record of the data": (
        lambda a: (a / "data/config.json").write_text('{"id": {'), "02", ["a/data", "damaged"]),
    "no record of the data": (
        lambda a: (a / "data/config.json").unlink(), "03", ["a/data", "missing", "01_data.py"]),
    "a teacher's record": (
        lambda a: (a / "teachers/recogniser-qaa-s0/config.json").write_text("{"), "03",
        ["recogniser-qaa-s0", "damaged", "--overwrite"]),
    "no record of gold": (
        lambda a: (a / "gold/qac/config.json").unlink(), "04", ["gold/qac", "01_data.py"]),
    "a student's logits": (
        lambda a: (a / "students/qbc/mtmt-s0/test.safetensors").write_bytes(b""), "04",
        ["students/qbc/mtmt-s0", "damaged"]),
    "a cache of training text": (
        damaged_cache, "03", ["evaluator-qba-s0/train.safetensors", "damaged", "remove"]),
    "a cache of test text": (
        damaged_test_cache, "03",
        ["recogniser-qba-s0/test.safetensors", "damaged", "remove its folder"]),
    "the weights of the sources": (
        lambda a: cut(a / "weights/qac/sentences.safetensors"), "03",
        ["weights/qac", "damaged", "remove its folder"]),
    "a teacher's checkpoint": (damaged_teacher, "02", ["teachers/recogniser-qaa-s0"]),
    "the encoder": (damaged_encoder, "02", ["a/encoder"]),
    "no encoder": (missing_encoder, "02", ["a/encoder", "01_data.py"]),
    "a table": (
        lambda a: cut(next((a / "data/targets/qac/test").glob("*.arrow"))), "04",
        ["data/targets/qac", "01_data.py"]),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_artifacts_are_named_with_the_remedy(toy, tmp_path, what):
    damage, number, says = DAMAGES[what]
    artifacts = shutil.copytree(toy, tmp_path / "a")
    damage(artifacts)
    flags = {"02": QUICK, "03": [*QUICK, "--methods", "mtmt-nobeta"], "04": []}[number]
    script = {"02": "02_teachers.py", "03": "03_distill.py", "04": "04_evaluate.py"}[number]
    line = refused(script, artifacts, *flags, says=says)
    assert "free some space" not in line


def test_caches_of_another_tag_order_are_refused(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a")
    path = artifacts / "logits/qac/recogniser-qab-s0/config.json"
    config = json.loads(path.read_text())
    tags = config["facts"]["tags"]
    tags[1], tags[3] = tags[3], tags[1]
    path.write_text(json.dumps(config))
    refused("03_distill.py", artifacts, *QUICK, says=["recogniser-qab-s0", "tags"])


# ------------------------------------------------------------------------ places that refuse

def tmpfs(folder, size):
    """A file system of its own on `folder`, where the machine lets us mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    return folder


@pytest.fixture
def disk(tmp_path):
    mounted = []
    yield lambda size: mounted.append(tmpfs(tmp_path / "disk", size)) or mounted[0]
    for folder in mounted:  # this process may still map a table of it
        subprocess.run(["umount", "--lazy", folder], check=True)


def write_nothing(artifacts):
    refused("04_evaluate.py", artifacts, says="--artifacts")
    flags = [*QUICK, "--methods", "tsl-kl", "--targets", "qac"]
    refused("03_distill.py", artifacts, *flags, says="--artifacts")


def test_a_read_only_folder_is_one_line(tmp_path, toy):
    """By its mode, as a plain user meets it; root writes through modes."""
    artifacts = shutil.copytree(toy, tmp_path / "a")
    closed = [artifacts, artifacts / "students/qac"]
    for folder in closed:
        folder.chmod(0o500)
    try:
        if os.access(artifacts, os.W_OK):
            pytest.skip("modes do not bind this user")
        write_nothing(artifacts)
    finally:
        for folder in closed:
            folder.chmod(0o700)


def test_a_disk_mounted_read_only_is_one_line(toy, disk):
    folder = disk("400m")
    artifacts = shutil.copytree(toy, folder / "a")
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    write_nothing(artifacts)


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(disk):
    folder = disk("1m")  # too small for the encoder
    done = stage("01_data.py", folder / "a", "--limit", "10")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr[-2000:]
    assert "free some space" in done.stderr and not list(folder.rglob("*.partial"))


class FullDisk:
    """A build on a disk that is full, for machines where no small one can be mounted."""

    def __call__(self, folder):
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")


def test_a_disk_that_fills_up_is_told_with_the_remedy(tmp_path, capsys):
    make = lambda args: data.make(args, "x", FullDisk())
    with pytest.raises(SystemExit) as stopped:
        data.run(make, lambda: arguments(tmp_path))
    line = capsys.readouterr().err
    assert stopped.value.code == 2 and line.count("\n") == 1 and "free some space" in line
    assert not files(tmp_path)


def test_artifacts_that_are_a_file_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    refused("01_data.py", tmp_path / "file", "--limit", "5", says=["file", "--artifacts"])


def test_stages_out_of_order_name_the_first(tmp_path):
    for script in ("02_teachers.py", "03_distill.py", "04_evaluate.py"):
        refused(script, tmp_path / "a", says=["a/data", "missing", "01_data.py first"])


def test_seeds_of_one_method_made_with_other_flags_are_not_averaged(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a")
    shutil.rmtree(artifacts / "students/qbc/mtmt-s0")
    here("03_distill.py", artifacts, "--methods", "mtmt", "--lambda", "0.5", "--targets", "qbc")
    refused("04_evaluate.py", artifacts, says=["students/qbc/mtmt-s0", "other flags"])


def test_teachers_made_with_other_flags_are_not_averaged(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a")
    flags = ["--sources", "qaa", "--targets", "qac", "--seeds", "1", "--epochs", "2"]
    here("02_teachers.py", artifacts, *flags)
    refused("04_evaluate.py", artifacts, says=["recogniser-qaa-s1", "other flags", "direct-qaa"])


def test_weights_of_sources_in_another_order_are_refused_and_the_best_goes_by_name(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a")
    path, weights = artifacts / "data/config.json", artifacts / "weights/qac/weights.json"
    config = json.loads(path.read_text())
    args = evaluate.parse_args(["--artifacts", str(artifacts)])
    config["sources"].reverse()
    path.write_text(json.dumps(config))
    weights = json.loads(weights.read_text())
    found = evaluate.baselines_of(args, config, "qac", [f"direct-{s}" for s in config["sources"]])
    assert found["best-by-weight"] == f"direct-{max(weights, key=weights.get)}"
    refused("03_distill.py", artifacts, "--methods", "tsl-sim", "--seeds", "0", "--targets", "qac",
            says=["weights/qac", "qaa qab qba qbb", "02_teachers.py"])


def test_students_of_which_only_the_logits_are_kept_are_scored(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a", ignore=shutil.ignore_patterns("mtmt-s0"))
    here("03_distill.py", artifacts, "--methods", "mtmt", "--logits-only")
    kept = files(artifacts / "students/qac/mtmt-s0")
    assert kept == ["config.json", "log.csv", "test.safetensors"]
    here("04_evaluate.py", artifacts, "--oracle")
    tables = [folder / "results/results.csv" for folder in (toy, artifacts)]
    assert tables[0].read_text() == tables[1].read_text()


def test_a_student_of_which_only_the_logits_were_kept_is_made_whole_when_asked_for(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a", ignore=shutil.ignore_patterns("mtmt-s0"))
    flags = ["--methods", "mtmt", "--targets", "qac"]
    here("03_distill.py", artifacts, *flags, "--logits-only")
    model = artifacts / "students/qac/mtmt-s0/model.safetensors"
    for again in ([], ["--logits-only", "--overwrite"]):
        assert "kept  students/qac/mtmt-s0" in here("03_distill.py", artifacts, *flags, *again)
    assert not model.exists()
    here("03_distill.py", artifacts, *flags, "--overwrite")
    assert model.exists()
    assert "kept  students/qac/mtmt-s0" in here("03_distill.py", artifacts, *flags, "--logits-only")


def test_a_target_without_gold_has_no_oracle_and_one_without_caches_is_refused(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a")
    shutil.rmtree(artifacts / "gold/qbc")
    said = here("02_teachers.py", artifacts, "--oracle")
    assert "supervised-qac-s0" in said and "supervised-qbc-s0" not in said
    for where in ("logits", "students"):
        shutil.rmtree(artifacts / where / "qbc")
    refused("04_evaluate.py", artifacts, says=["logits/qbc", "02_teachers.py"])
