"""Shared by the tests: ways to run a stage, in a process of its own or in this one, and one tiny run of all four."""

import contextlib
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # small models are fastest, and repeatable, on one thread
TINY = {  # the toy cut down to seconds
    "01_data.py": ["--limit", "40"],
    "02_teachers.py": ["--epochs", "1"],
    "03_distill.py": ["--epochs", "1", "--seeds", "0"],
    "04_evaluate.py": [],
}


def stage(script, artifacts, *flags, **environment):
    """Run one stage in a process of its own; returns it with its output."""
    command = [sys.executable, str(ROOT / script), "--artifacts", str(artifacts), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, cwd=ROOT)


def must(script, artifacts, *flags):
    """Run one stage with its tiny settings in a process of its own, as a user does; it has to succeed."""
    done = stage(script, artifacts, *TINY[script], *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def here(script, artifacts, *flags):
    """The same in this process, which spares the seconds of the imports; returns what the stage printed."""
    module, said = importlib.import_module(script.removesuffix(".py")), io.StringIO()
    with contextlib.redirect_stdout(said):
        module.main(module.parse_args(["--artifacts", str(artifacts), *TINY[script], *map(str, flags)]))
    return said.getvalue()


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """Artifacts of the four stages on a tiny toy, by subprocess; tests read them, and copy before they write."""
    artifacts = tmp_path_factory.mktemp("toy") / "artifacts"
    must("01_data.py", artifacts)
    must("02_teachers.py", artifacts, "--oracle")
    must("03_distill.py", artifacts, "--methods", "tsl-avg", "tsl-sim", "mtmt", "mtmt-nosim", "tsl-qaa")
    must("04_evaluate.py", artifacts, "--oracle")
    return artifacts


@pytest.fixture(scope="session")
def corpora():
    """A folder of real CoNLL corpora, DIR/<lang>/{train,dev,test}.txt, where the environment names one."""
    if not os.environ.get("CORPORA"):
        pytest.skip("CORPORA names no folder of real corpora")
    return Path(os.environ["CORPORA"])


data = importlib.import_module("01_data")
