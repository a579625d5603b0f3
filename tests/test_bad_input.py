"""A user's mistake is one line on stderr that names the place and the remedy, exit status 2, and nothing half-written."""

import contextlib
import importlib
import io
import json
import os
import shutil
import subprocess

import pytest

from conftest import data, here, stage

GOOD = "Anna B-PER\nlives O\nin O\nOslo B-LOC\n\nBo B-PER\nruns O\n"


def corpus(tmp_path, **languages):
    """DIR/<lang>/{train,dev,test}.txt, GOOD unless told otherwise: {lang: {split: text}}."""
    for lang in ("aa", "bb", *languages):
        (tmp_path / "in" / lang).mkdir(parents=True, exist_ok=True)
        for split in ("train", "dev", "test"):
            content = languages.get(lang, {}).get(split, GOOD)
            (tmp_path / "in" / lang / f"{split}.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path / "in"


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) if folder.is_dir() else []


def refused(script, artifacts, *flags, says):
    """Run a stage in this process, through the door of the command line; it has to refuse and to write nothing."""
    module, before, printed = importlib.import_module(script.removesuffix(".py")), files(artifacts), io.StringIO()
    flags = ["--artifacts", str(artifacts), *map(str, flags)]
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as stopped:
        data.run(lambda: module.main(module.parse_args(flags)))
    lines = printed.getvalue().strip().split("\n")
    assert stopped.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    for part in [says] if isinstance(says, str) else says:
        assert part in lines[0], lines[0]
    assert files(artifacts) == before


PAIR = ["--sources", "aa", "--targets", "bb", "--encoder", "scratch"]
CORPUS_CASES = {  # name: (files, flags, what the line says)
    "empty file": ({"aa": {"train": ""}}, PAIR, ["aa/train.txt", "no sentences"]),
    "a word without a tag": ({"aa": {"train": GOOD + "and\n"}}, PAIR, ["aa/train.txt:8", "no tag", "'and'"]),
    "an unknown tag scheme": ({"aa": {"dev": "Anna PER\n"}}, PAIR, ["aa/dev.txt:1", "'PER'", "IOB"]),
    "a digit for the letter O": ({"bb": {"test": "Anna 0\n"}}, PAIR, ["bb/test.txt:1", "'0'"]),
    "not UTF-8": ({"aa": {"train": "caf\xe9 O\n".encode("latin-1")}}, PAIR, ["aa/train.txt:1", "UTF-8"]),
    "UTF-16": ({"aa": {"train": GOOD.encode("utf-16")}}, PAIR, ["aa/train.txt:1", "UTF-8"]),
    "an untagged source": ({"aa": {"train": "Anna\nruns\n"}}, PAIR, ["source aa", "no tags"]),
    "no entity type in common": ({"bb": {"train": GOOD.replace("PER", "X").replace("LOC", "Y")}},
                                 ["--sources", "aa", "bb", "--targets", "aa", "--encoder", "scratch"], ["no entity type", "aa: LOC PER", "bb: X Y"]),
    "a target of other types": ({"bb": {"test": "Anna B-ANIMAL\n"}}, PAIR, ["target bb", "ANIMAL"]),
    "a type that no source has": ({}, [*PAIR, "--types", "PER", "ORG"], ["--types", "LOC PER"]),
    "unknown language": ({}, ["--sources", "zz", "--targets", "bb"], ["in/zz", "no such folder"]),
    "a target whose only source is itself": ({}, ["--sources", "aa", "--targets", "aa"], ["target aa", "itself"]),
    "no target left": ({}, ["--sources", "aa", "bb"], ["no target languages"]),
    "missing encoder folder": ({}, [*PAIR[:-1], "nowhere/encoder"], ["--encoder nowhere/encoder"]),
    "a window longer than the encoder's": ({}, [*PAIR, "--max-length", "513"], ["--max-length 513", "512"]),
    "a limit of nothing": ({}, [*PAIR, "--limit", "0"], ["--limit", "positive"]),
    "two kinds of data": ({}, [*PAIR, "--preset", "toy"], ["--preset and --data-dir"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CORPUS_CASES)
def test_corpora_and_flags_that_cannot_be_used(tmp_path, case):
    content, flags, says = CORPUS_CASES[case]
    folder = corpus(tmp_path, **content)
    refused("01_data.py", tmp_path / "artifacts", "--data-dir", folder, *flags, says=says)
    assert not (tmp_path / "artifacts" / "data").exists()


def test_missing_folders_files_and_names(tmp_path):
    refused("01_data.py", tmp_path / "a", "--data-dir", tmp_path / "none", says=["--data-dir", "no such folder"])
    refused("01_data.py", tmp_path / "a", "--preset", "wikian", says=["--preset", "wikiann"])
    refused("01_data.py", tmp_path / "a", "--targets", "xx", says=["unknown toy language xx"])
    folder = corpus(tmp_path)
    (folder / "aa" / "dev.txt").unlink()
    refused("01_data.py", tmp_path / "a", "--data-dir", folder, *PAIR, says=["aa/dev.txt", "no such file"])
    refused("04_evaluate.py", tmp_path / "a", "--score", tmp_path / "gold", folder / "aa/test.txt", says="gold")
    (tmp_path / "short").write_text("Anna B-PER\n")
    refused("04_evaluate.py", tmp_path / "a", "--score", folder / "aa/test.txt", tmp_path / "short", says=["sentence 1", "same text"])


def test_a_refusal_is_one_line_for_the_shell_too(tmp_path):
    done = stage("02_teachers.py", tmp_path / "a")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stdout == "" and not (tmp_path / "a").exists()


def test_stages_out_of_order(tmp_path):
    for script in ("02_teachers.py", "03_distill.py", "04_evaluate.py"):
        refused(script, tmp_path / "a", says=["a/data", "missing", "01_data.py first"])


def test_artifacts_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    refused("01_data.py", tmp_path / "file", "--limit", "5", says=["file", "--artifacts"])


def test_an_encoder_without_a_fast_tokenizer(tmp_path):
    import transformers
    transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path / "bare")
    refused("01_data.py", tmp_path / "a", "--data-dir", corpus(tmp_path), *PAIR[:-1], tmp_path / "bare", says=["--encoder", "tokenizer"])


def test_a_hub_preset_without_a_network_names_the_offline_ways(tmp_path):
    refused("01_data.py", tmp_path / "a", "--preset", "wikiann",
            says=["--preset wikiann", "--data-dir DIR --encoder scratch"])  # fmt: skip


def test_names_that_later_stages_were_not_told_of(toy):
    refused("02_teachers.py", toy, "--sources", "zz", says=["--sources zz", "qaa"])
    refused("03_distill.py", toy, "--targets", "qaa", says=["--targets qaa", "qac"])
    for flag in (["--seeds", "-1"], ["--seeds", str(2**64)], ["--temperature", "0"], ["--lr", "nan"], ["--lambda", "nan"], ["--lambda=-1"], ["--rounds", "2", "--teacher-seed", "1"]):
        refused("03_distill.py", toy, *flag, says=flag[0].split("=")[0])
    refused("02_teachers.py", toy, "--round", "2", "--oracle", says=["--round", "--oracle"])
    refused("03_distill.py", toy, "--methods", "mtmt-magic", says=["--methods mtmt-magic", "tsl-<source>"])
    refused("03_distill.py", toy, "--methods", "tsl-sim", "--epochs", "1", "--teacher-seed", "7", says=["recogniser-qaa-s7", "02_teachers.py"])


def test_changed_flags_and_foreign_artifacts_are_named_with_the_remedy(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a")
    refused("01_data.py", artifacts, "--limit", "30", says=["a/encoder", "text", "--overwrite"])
    refused("02_teachers.py", artifacts, "--epochs", "2", says=["teachers/recogniser-qaa-s0", "epochs", "--overwrite"])
    refused("03_distill.py", artifacts, "--epochs", "1", "--lr", "0.5", "--methods", "mtmt", says=["students/qac/mtmt-s", "lr", "--overwrite"])
    refused("02_teachers.py", artifacts, "--epochs", "1", "--tau", "std", says=["weights/qac", "tau", "--overwrite"])
    other = json.loads((artifacts / "logits/qac/evaluator-qaa-s0/config.json").read_text())
    other["made_from"]["pieces"]["data/targets/qac"] = "another tokenizer's"
    (artifacts / "logits/qac/evaluator-qaa-s0/config.json").write_text(json.dumps(other))
    refused("02_teachers.py", artifacts, "--epochs", "1", says=["logits/qac/evaluator-qaa-s0", "data/targets/qac", "--overwrite"])


def test_a_teacher_taught_anew_makes_its_students_stale_on_every_target(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a")
    here("02_teachers.py", artifacts, "--sources", "qaa", "--targets", "qac", "--lr", "0.01", "--overwrite")
    refused("03_distill.py", artifacts, "--epochs", "1", "--seeds", "0", says=["logits/qac/ensemble", "recogniser-qaa-s0", "--overwrite"])
    refused("04_evaluate.py", artifacts, says=["03_distill.py --overwrite"])
    here("03_distill.py", artifacts, "--targets", "qac", "--methods", "tsl-avg", "tsl-sim", "mtmt", "mtmt-nosim", "tsl-qaa", "--overwrite")
    refused("04_evaluate.py", artifacts, says=["logits/qbc/recogniser-qaa-s0", "02_teachers.py --overwrite"])  # qbc's cache is the old one's


def test_students_are_not_distilled_from_caches_of_another_text(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a")
    here("01_data.py", artifacts, "--limit", "41", "--overwrite")
    refused("03_distill.py", artifacts, "--epochs", "1", "--seeds", "0", "--overwrite", says=["logits/qac/recogniser-qaa-s0", "other data", "02_teachers.py"])


def test_seeds_of_one_method_made_with_other_flags_are_not_averaged(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a")
    here("03_distill.py", artifacts, "--methods", "mtmt", "--seeds", "1", "--lambda", "0.5", "--targets", "qac")
    refused("04_evaluate.py", artifacts, says=["students/qac/mtmt-s1", "other flags"])


def test_weights_edited_by_hand_are_used_and_their_order_is_free(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a")
    path = artifacts / "weights/qac.json"
    weights = json.loads(path.read_text())
    path.write_text(json.dumps(dict(sorted(weights.items(), reverse=True))))
    here("04_evaluate.py", artifacts)                                            # the same weights in another order
    path.write_text(json.dumps({"qaa": 1, "qab": 0, "qba": 0, "qbb": 0}))
    refused("04_evaluate.py", artifacts, says=["weights", "03_distill.py --overwrite"])
    path.unlink()
    here("02_teachers.py", artifacts)                                            # comes back from the copy in its piece
    assert json.loads(path.read_text()) == weights


def test_an_encoder_whose_configuration_changed_is_another_encoder(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a")
    path = artifacts / "encoder/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_dropout_prob": 0.0}))
    refused("02_teachers.py", artifacts, "--epochs", "1", says=["encoder", "changed", "01_data.py"])


def test_what_is_no_piece_is_passed_over(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a")
    shutil.copytree(artifacts / "students/qac/mtmt-s0", artifacts / "students/qac/mtmt-s0-old")
    (artifacts / "logits/qac/notes.txt").write_text("")
    here("04_evaluate.py", artifacts)


@pytest.mark.parametrize("name, damage, script, says", [
    ("data/config.json", lambda p: p.write_text('{"made_from": {'), "02_teachers.py", ["data/config.json", "damaged"]),
    ("data/config.json", lambda p: p.unlink(), "03_distill.py", ["artifacts/data", "incomplete"]),
    ("logits/qac/evaluator-qba-s0/train.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-99]), "03_distill.py", ["evaluator-qba-s0/train.safetensors", "damaged"]),
    ("teachers/recogniser-qaa-s0/model.safetensors", lambda p: p.write_bytes(p.read_bytes()[:999]), "02_teachers.py", ["recogniser-qaa-s0", "damaged", "--overwrite"]),
    ("teachers/recogniser-qaa-s0/config.json", lambda p: p.write_text("{"), "03_distill.py", ["recogniser-qaa-s0/config.json", "damaged", "--overwrite"]),
    ("students/qbc/mtmt-s0/test.safetensors", lambda p: p.write_bytes(b""), "04_evaluate.py", ["students/qbc/mtmt-s0", "damaged"]),
    ("weights/qac.json", lambda p: p.write_text('{"qaa": 1'), "03_distill.py", ["weights/qac.json", "damaged"]),
    ("weights/qac.json", lambda p: p.write_text('{"qaa": 1, "qab": 1, "qba": 0, "qbb": 0}'), "03_distill.py", ["weights/qac.json", "sum 1"]),
    ("gold/config.json", lambda p: p.unlink(), "04_evaluate.py", ["gold", "01_data.py"]),
    ("encoder/model.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-4] + b"1234"), "02_teachers.py", ["encoder", "changed", "01_data.py", "--overwrite"]),
])  # fmt: skip
def test_damaged_artifacts_are_named_with_the_remedy(toy, tmp_path, name, damage, script, says):
    artifacts = shutil.copytree(toy, tmp_path / "artifacts")
    damage(artifacts / name)
    flags = {"02_teachers.py": ["--epochs", "1"], "03_distill.py": ["--epochs", "1", "--seeds", "0"], "04_evaluate.py": []}[script]
    refused(script, artifacts, *flags, says=says)


def test_caches_of_another_tag_order_are_refused(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "artifacts")
    path = artifacts / "logits/qac/recogniser-qab-s0/config.json"
    config = json.loads(path.read_text())
    config["tags"][1], config["tags"][3] = config["tags"][3], config["tags"][1]
    path.write_text(json.dumps(config))
    refused("03_distill.py", artifacts, "--epochs", "1", "--seeds", "0", says=["recogniser-qab-s0", "tags"])


@contextlib.contextmanager
def tmpfs(folder, size):
    """A file system of its own on `folder`, where the machine lets us mount one."""
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # this process may still map a table of it


def test_a_read_only_folder(tmp_path, toy):
    """By its mode for a plain user; root writes through modes, but not to a file system mounted read-only."""
    flags = ["--epochs", "1", "--seeds", "0", "--methods", "tsl-hard", "--targets", "qac"]
    if os.geteuid() != 0:
        artifacts = shutil.copytree(toy, tmp_path / "closed")
        for folder in (artifacts, artifacts / "students/qac"):
            folder.chmod(0o500)
        refused("04_evaluate.py", artifacts, says=["--artifacts"])
        refused("03_distill.py", artifacts, *flags, says=["--artifacts"])
        for folder in (artifacts, artifacts / "students/qac"):
            folder.chmod(0o700)
        return
    with tmpfs(tmp_path / "disk", "300m") as disk:
        artifacts = shutil.copytree(toy, disk / "closed")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        refused("04_evaluate.py", artifacts, says=["--artifacts"])
        refused("03_distill.py", artifacts, *flags, says=["--artifacts"])


def test_a_full_disk(tmp_path):
    """A tmpfs too small for the encoder."""
    with tmpfs(tmp_path / "disk", "1m") as disk:
        done = stage("01_data.py", disk / "artifacts", "--limit", "10")
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "free some space" in done.stderr, done.stderr[-2000:]
        assert not list(disk.rglob("*.partial"))


def test_a_hostile_encoder_folder_runs_no_code(tmp_path):
    folder, mark = tmp_path / "hostile", tmp_path / "pwned"
    model, tokenizer = None, data.train_tokenizer([["a", "b"]] * 5, 40)
    tokenizer.save_pretrained(folder)
    code = f"open({str(mark)!r}, 'w')\nclass X: pass\n"
    (folder / "evil.py").write_text(code)
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.X", "AutoModel": "evil.X", "AutoModelForTokenClassification": "evil.X"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR.")
    done = stage("01_data.py", tmp_path / "a", "--data-dir", corpus(tmp_path), *PAIR[:-1], folder)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr[-2000:]
    assert not mark.exists()
