"""Shared by the tests: ways to run a stage, corpora to run it on, and one tiny run of all four."""

import contextlib
import hashlib
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # one thread: the bits repeat
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "Agg"}
TINY = {  # the toy cut down to seconds
    "01_data.py": ["--limit", "40"],
    "02_teachers.py": ["--epochs", "1", "--seeds", "0"],
    "03_distill.py": ["--epochs", "1", "--seeds", "0"],
    "04_evaluate.py": [],
}
TOY_METHODS = ["tsl-avg", "tsl-sim", "mtmt", "mtmt-nosim", "tsl-qaa", "self-pooled", "mtmt-pooled"]
GOOD = "Anna B-PER\nlives O\nin O\nOslo B-LOC\n\nBo B-PER\nruns O\n"
PAIR = ["--sources", "aa", "--targets", "bb", "--encoder", "scratch"]

data = importlib.import_module("01_data")


# ------------------------------------------------------------------------ running a stage

def command(script, artifacts, *flags):
    return [sys.executable, str(ROOT / script), "--artifacts", str(artifacts), *map(str, flags)]


def stage(script, artifacts, *flags, **environment):
    """Run one stage in a process of its own; returns it with its output."""
    options = {"capture_output": True, "text": True, "cwd": ROOT, "env": os.environ | environment}
    return subprocess.run(command(script, artifacts, *flags), **options)


def must(script, artifacts, *flags):
    """One stage with its tiny settings in a process of its own, as a user runs it; it succeeds."""
    done = stage(script, artifacts, *TINY[script], *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def here(script, artifacts, *flags):
    """The same in this process, which spares the seconds of the imports; what the stage printed."""
    module, said = importlib.import_module(script.removesuffix(".py")), io.StringIO()
    flags = ["--artifacts", str(artifacts), *TINY[script], *map(str, flags)]
    with contextlib.redirect_stdout(said):
        module.main(module.parse_args(flags))
    return said.getvalue()


def refused(script, artifacts, *flags, says):
    """A stage in this process, through the door of the command line: it refuses, writes nothing."""
    module, before = importlib.import_module(script.removesuffix(".py")), files(artifacts)
    flags, printed = ["--artifacts", str(artifacts), *map(str, flags)], io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stderr(printed))
        stack.enter_context(contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())))
        stopped = stack.enter_context(pytest.raises(SystemExit))
        data.run(module.main, lambda: module.parse_args(flags))
    lines = printed.getvalue().strip().split("\n")
    assert stopped.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    for part in [says] if isinstance(says, str) else says:
        assert part in lines[0], lines[0]
    assert files(artifacts) == before
    return lines[0]


def files(folder):
    found = folder.rglob("*") if folder.is_dir() else []
    return sorted(str(path.relative_to(folder)) for path in found if not path.is_dir())


BITS = ["students/**/*.safetensors", "logits/**/*.safetensors", "weights/**/*.safetensors",
        "teachers/**/*.safetensors"]


def bits(folder, *patterns):
    """{file: hash} of the weights, caches and logits under a folder."""
    found = [path for pattern in patterns or BITS for path in sorted(folder.glob(pattern))]
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    return {str(path.relative_to(folder)): digest(path) for path in found}


# ------------------------------------------------------------------------ corpora

def corpus(folder, **languages):
    """DIR/<lang>/{train,dev,test}.txt, GOOD unless told otherwise: {lang: {split: text}}.

    A split of None is not written; other names than those of splits are files, too.
    """
    for lang in ("aa", "bb", *languages):
        (folder / lang).mkdir(parents=True, exist_ok=True)
        texts = dict.fromkeys(("train", "dev", "test"), GOOD) | languages.get(lang, {})
        for split, text in texts.items():
            if text is not None:
                text = text if isinstance(text, bytes) else text.encode()
                (folder / lang / f"{split}.txt").write_bytes(text)
    return folder


def unchanged(lang, split, words, tags):
    return tags


def to_conll(folder, languages, change=unchanged, n=40):
    """The first n sentences of toy languages as CoNLL files, their tags changed on the way."""
    for lang in languages:
        (folder / lang).mkdir(parents=True, exist_ok=True)
        for split, sentences in data.toy_corpus(lang, 0).items():
            lines = []
            for words, tags in sentences[:n]:
                rows = zip(words, change(lang, split, words, tags))
                lines.append("".join(f"{word} {tag}\n" for word, tag in rows))
            (folder / lang / f"{split}.txt").write_text("\n".join(lines))
    return folder


# ------------------------------------------------------------------------ fixtures

@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """Artifacts of the four stages on a tiny toy, by subprocess; copy them before you write."""
    artifacts = tmp_path_factory.mktemp("toy") / "artifacts"
    must("01_data.py", artifacts)
    must("02_teachers.py", artifacts, "--oracle", "--scaled")
    must("03_distill.py", artifacts, "--methods", *TOY_METHODS)
    must("04_evaluate.py", artifacts, "--oracle")
    return artifacts


@pytest.fixture(scope="session")
def corpora():
    """Real CoNLL corpora, DIR/<lang>/{train,dev,test}.txt, where CORPORA names a folder of them."""
    if not os.environ.get("CORPORA"):
        pytest.skip("CORPORA names no folder of real corpora")
    return Path(os.environ["CORPORA"])
