"""A user's mistake is one line on stderr that names the place and the remedy, exit status 2, and
nothing half-written. What is wrong in a file's lines is in test_cases.py, what is wrong with an
encoder in test_encoders.py, with artifacts in test_pieces.py."""

import pytest

from conftest import GOOD, PAIR, corpus, refused

BOTH = ["--sources", "aa", "bb", "--targets", "aa", "--encoder", "scratch"]
OTHER_TYPES = GOOD.replace("PER", "X").replace("LOC", "Y")
CASES = {  # name: (files, flags, what the line says)
    "empty file": ({"aa": {"train": ""}}, PAIR, ["aa/train.txt", "no sentences"]),
    "blank lines alone": ({"aa": {"train": "\n \n\t\n"}}, PAIR, ["aa/train.txt", "no sentences"]),
    "a word without a tag": ({"aa": {"train": GOOD + "and\n"}}, PAIR, ["aa/train.txt:8", "column"]),
    "an unknown scheme": ({"aa": {"dev": "Anna PER\n"}}, PAIR, ["aa/dev.txt:1", "'PER'", "IOB"]),
    "a digit for the letter O": ({"bb": {"test": "Anna 0\n"}}, PAIR, ["bb/test.txt:1", "'0'"]),
    "not UTF-8": (
        {"aa": {"train": "caf\xe9 O\n".encode("latin-1")}}, PAIR, ["aa/train.txt:1", "UTF-8"]),
    "UTF-16": ({"aa": {"train": GOOD.encode("utf-16")}}, PAIR, ["aa/train.txt:1", "UTF-8"]),
    "an untagged source": ({"aa": {"train": "Anna\nruns\n"}}, PAIR, ["source aa", "no tags"]),
    "a missing dev": ({"aa": {"dev": None}}, PAIR, ["aa/dev.txt", "no such file"]),
    "a title before columns": (
        {"bb": {"train": "corpus-v1\n\n" + GOOD.replace(" ", "\t")}}, PAIR,
        ["bb/train.txt:3", "2 columns where other lines have 1"]),
    "no entity type in common": (
        {"bb": {"train": OTHER_TYPES}}, BOTH, ["no entity type", "aa: LOC PER", "bb: X Y"]),
    "a target of other types": (
        {"bb": {"test": "Anna B-ANIMAL\n"}}, PAIR, ["bb, test", "ANIMAL", "--types"]),
    "a type that no source has": ({}, [*PAIR, "--types", "PER", "ORG"], ["--types", "LOC PER"]),
    "unknown language": ({}, ["--sources", "zz", "--targets", "bb"], ["in/zz", "no such folder"]),
    "a slash behind a source that is the target": (
        {}, ["--sources", "aa/", "bb", "--targets", "aa"], ["in/aa/: no such folder"]),
    "its only source is itself": (
        {}, ["--sources", "aa", "--targets", "aa"], ["target aa", "itself"]),
    "no target left": ({}, ["--sources", "aa", "bb"], ["no target languages"]),
    "no source": ({}, ["--targets", "aa", "bb"], ["no source languages"]),
    "missing encoder folder": ({}, [*PAIR[:-1], "nowhere/encoder"], ["--encoder nowhere/encoder"]),
    "a limit of nothing": ({}, [*PAIR, "--limit", "0"], ["--limit", "0"]),
    "windows of nothing": ({}, [*PAIR, "--max-length", "2"], ["--max-length", "8"]),
    "two kinds of data": ({}, [*PAIR, "--preset", "toy"], ["--preset", "--data-dir"]),
}


@pytest.mark.parametrize("case", CASES)
def test_corpora_and_flags_that_cannot_be_used(tmp_path, case):
    content, flags, says = CASES[case]
    folder = corpus(tmp_path / "in", **content)
    refused("01_data.py", tmp_path / "a", "--data-dir", folder, *flags, says=says)
    assert not (tmp_path / "a/data/config.json").exists()


def test_folders_and_names_that_are_not_there(tmp_path):
    says = ["--data-dir", "no such folder"]
    refused("01_data.py", tmp_path / "a", "--data-dir", tmp_path / "none", *PAIR, says=says)
    refused("01_data.py", tmp_path / "a", "--preset", "wikian", says=["--preset", "wikiann"])
    refused("01_data.py", tmp_path / "a", "--targets", "xx", says=["unknown toy language xx"])


def test_files_that_cannot_be_scored(tmp_path):
    folder = corpus(tmp_path / "in")
    score = lambda gold, found, says: refused(
        "04_evaluate.py", tmp_path / "a", "--score", gold, found, says=says
    )
    good, short, bare = folder / "aa/test.txt", tmp_path / "short", tmp_path / "bare"
    short.write_text("Anna B-PER\n")
    bare.write_text("Anna\nlives\nin\nOslo\n\nBo\nruns\n")
    score(tmp_path / "none", good, ["none", "no such file"])
    score(good, short, ["short", "sentence 1", "same text"])
    score(short, good, ["sentence 1", "same text"])
    score(good, bare, ["bare", "no tags"])


def test_a_hub_preset_without_a_network_names_the_offline_ways(tmp_path):
    says = ["--preset wikiann", "--data-dir DIR --encoder scratch"]
    refused("01_data.py", tmp_path / "a", "--preset", "wikiann", says=says)


@pytest.mark.parametrize("script, flags, says", [
    ("02_teachers.py", ["--sources", "zz"], ["--sources zz", "qaa"]),
    ("02_teachers.py", ["--targets", "zz"], ["--targets zz", "qac"]),
    ("02_teachers.py", ["--tau", "mean"], ["--tau", "variance"]),
    ("03_distill.py", ["--targets", "qaa"], ["--targets qaa", "qac"]),
    ("03_distill.py", ["--methods", "mtmt-magic"], ["--methods mtmt-magic", "mtmt-<source>"]),
    ("03_distill.py", ["--methods", "tsl-zz"], ["--methods tsl-zz"]),
    ("03_distill.py", ["--seeds", "7"], ["recogniser-qaa-s7", "02_teachers.py"]),
    ("03_distill.py", ["--seeds", "-1"], ["--seeds"]),
    ("03_distill.py", ["--seeds", str(2**64)], ["--seeds"]),
    ("03_distill.py", ["--lr", "nan"], ["--lr"]),
    ("03_distill.py", ["--lr", "inf"], ["--lr"]),
    ("03_distill.py", ["--lambda", "nan"], ["--lambda"]),
    ("03_distill.py", ["--lambda=-1"], ["--lambda"]),
    ("03_distill.py", ["--batch-size", "0"], ["--batch-size"]),
    ("03_distill.py", ["--epochs", "1.5"], ["--epochs"]),
    ("03_distill.py", ["--rounds", "2"], ["--rounds"]),
    ("02_teachers.py", ["--freeze", "2", "--seeds", "3"], ["--freeze 2", "2 layers"]),
    ("04_evaluate.py", ["--score", "one"], ["--score"]),
])
def test_flags_that_cannot_be(toy, script, flags, says):
    refused(script, toy, *flags, says=says)


def test_evaluators_with_a_scale_are_asked_for_by_the_flag_that_makes_them(toy, tmp_path):
    says = ["scaled-qaa-s0", "02_teachers.py"]
    cache = toy / "logits/qac/scaled-qaa-s0"
    hidden = cache.rename(tmp_path / "hidden")
    try:
        refused("03_distill.py", toy, "--methods", "mtmt-scaled", "--seeds", "0", says=says)
    finally:
        hidden.rename(cache)


def test_students_without_a_direct_transfer_to_compare_with(toy, tmp_path):
    cache = toy / "logits/qac/recogniser-qaa-s0"
    hidden = cache.rename(tmp_path / "hidden")
    try:
        refused("04_evaluate.py", toy, says=["logits/qac", "direct-qaa", "02_teachers.py"])
    finally:
        hidden.rename(cache)
