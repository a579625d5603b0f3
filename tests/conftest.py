"""Shared by the tests: ways to run a stage, corpora to run it on, and one tiny run of all four."""

import contextlib
import importlib
import io
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")  # one thread: the bits repeat
os.environ.update(CUDA_VISIBLE_DEVICES="", MPLBACKEND="Agg")
data = importlib.import_module("01_data")

TINY = {  # the toy cut down to seconds
    "01_data.py": ["--limit", "40", "--limit-text", "40", "--limit-test", "40"],
    "02_teachers.py": ["--steps", "4", "--seeds", "0"],
    "03_distill.py": ["--steps", "4", "--seeds", "0"],
    "04_evaluate.py": [],
}
TOY_METHODS = ["tsl-avg", "tsl-sim", "mtmt", "mtmt-nosim", "tsl-qaa", "self-pooled", "mtmt-pooled"]
GOOD = "Anna B-PER\nlives O\nin O\nOslo B-LOC\n\nBo B-PER\nruns O\n"
PAIR = ["--sources", "aa", "--targets", "bb", "--encoder", "scratch"]


# ------------------------------------------------------------------------ running a stage

def command(script, artifacts, *flags):
    return [sys.executable, str(ROOT / script), "--artifacts", str(artifacts), *map(str, flags)]


def must(script, artifacts, *flags):
    """One stage in a process of its own, as a user runs it; it succeeds. No tiny settings."""
    options = {"capture_output": True, "text": True, "cwd": ROOT}
    options["env"] = dict(os.environ, PYTHONIOENCODING="ascii")  # a terminal may know no more
    done = subprocess.run(command(script, artifacts, *flags), **options)
    assert done.returncode == 0, done.stderr[-3000:]


def here(script, artifacts, *flags):
    """One with its tiny settings in this process, which spares the imports; what it printed."""
    module = importlib.import_module(script.removesuffix(".py"))
    printed = io.StringIO()
    flags = ["--artifacts", str(artifacts), *TINY[script], *map(str, flags)]
    with contextlib.redirect_stdout(printed):
        module.main(module.parse_args(flags))
    return printed.getvalue()


def stopped(function, *given):
    """The last line of what a function says when it refuses, which is exit status 2."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        with pytest.raises(SystemExit) as end:
            function(*given)
    lines = errors.getvalue().strip().split("\n")
    by_argparse = ": error: " in lines[-1]  # whose usage stands above
    assert by_argparse or (lines[-1].startswith("error: ") and len(lines) == 1), lines
    assert end.value.code == 2, lines
    return lines[-1]


def refused(script, artifacts, *flags, says=()):
    """A stage refuses, in a last line that holds `says`, and writes nothing. No tiny settings."""
    module = importlib.import_module(script.removesuffix(".py"))
    before = files(artifacts)
    flags = ["--artifacts", str(artifacts), *map(str, flags)]
    line = stopped(lambda: module.main(module.parse_args(flags)))
    for part in [says] if isinstance(says, str) else says:
        assert part in line, line
    assert files(artifacts) == before


def files(folder):
    return sorted(str(x.relative_to(folder)) for x in folder.rglob("*") if not x.is_dir())


def bits(folder, pattern="[tlws]*s/**/*.safetensors"):
    """{file: hash} of what matches: the tensors of teachers, logits, weights and students."""
    paths = folder.glob(pattern)
    return {str(path.relative_to(folder)): hash(path.read_bytes()) for path in paths}


# ------------------------------------------------------------------------ corpora

def corpus(folder, **languages):
    """DIR/<lang>/{train,dev,test}.txt, GOOD unless told otherwise, not written where it is None."""
    for lang in ("aa", "bb", *languages):
        (folder / lang).mkdir(parents=True, exist_ok=True)
        texts = dict.fromkeys(("train", "dev", "test"), GOOD)
        texts.update(languages.get(lang, {}))
        for split, text in texts.items():
            if text is not None:
                (folder / lang / f"{split}.txt").write_text(text)
    return folder


def to_conll(folder, languages, change=None, n=40):
    """The first n sentences of toy languages as CoNLL files, their tags given by `change`."""
    for lang in languages:
        (folder / lang).mkdir(parents=True, exist_ok=True)
        for split, sentences in data.toy_corpus(lang, 0).items():
            blocks = []
            for words, tags in sentences[:n]:
                if change:
                    tags = change(lang, split, words, tags)
                blocks.append("".join(f"{word} {tag}\n" for word, tag in zip(words, tags)))
            (folder / lang / f"{split}.txt").write_text("\n".join(blocks))
    return folder


def softmax(row):
    top = [math.exp(x) for x in row]
    return [x / sum(top) for x in top]


# ------------------------------------------------------------------------ fixtures

@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """Artifacts of the four stages, by subprocess; to read only: see `copied`."""
    artifacts = tmp_path_factory.mktemp("toy") / "artifacts"
    more = {"02_teachers.py": ["--scaled"], "03_distill.py": ["--methods", *TOY_METHODS]}
    for script in TINY:
        must(script, artifacts, *TINY[script], *more.get(script, []))
    return artifacts


@pytest.fixture
def copied(toy, tmp_path):
    """The tiny run, to write into."""
    return shutil.copytree(toy, tmp_path / "a", symlinks=True)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Artifacts of the README's four commands, with nothing cut down; for long tests."""
    artifacts = tmp_path_factory.mktemp("trained") / "artifacts"
    for script in TINY:
        must(script, artifacts)
    return artifacts
