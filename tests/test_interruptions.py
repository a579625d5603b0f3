"""Kill every stage at random moments, go on, and come out with the bits of an undisturbed run.

Long: pytest -m long."""

import random
import subprocess
import sys
import time

import pytest

from conftest import ROOT, TINY, bits, command, must

KILLS = {"01_data.py": 12, "02_teachers.py": 20, "03_distill.py": 14, "04_evaluate.py": 6}
FLAGS = {"03_distill.py": ["--methods", "tsl-sim", "mtmt", "mtmt-pooled"]}


def finished_pieces(artifacts):
    """{folder: time of its last change} of every piece that is in its place."""
    records = [path for path in artifacts.rglob("config.json") if ".partial" not in str(path)]
    return {path.parent: path.stat().st_mtime_ns for path in records if path.parent.name != "data"}


def seconds_of_imports():
    begun = time.time()
    code = "import importlib; importlib.import_module('04_evaluate')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    return time.time() - begun


@pytest.mark.long
def test_killed_stages_go_on_to_the_bits_of_an_undisturbed_run(toy, tmp_path):
    artifacts, rng, survived = tmp_path / "a", random.Random(0), 0
    for script, kills in KILLS.items():
        imports = seconds_of_imports()
        run = command(script, artifacts, *TINY[script], *FLAGS.get(script, []))
        for _ in range(kills):
            before = finished_pieces(artifacts)
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            job = subprocess.Popen(run, cwd=ROOT, **pipes)
            time.sleep(imports * rng.uniform(0.8, 2.2))
            job.kill()
            said = job.communicate()[0]
            assert "error" not in said and "Traceback" not in said, said  # nothing half was read
            after = finished_pieces(artifacts)
            assert script == "04_evaluate.py" or before.items() <= after.items()  # nor made again
            survived += 1
        must(script, artifacts, *FLAGS.get(script, []))
    expected, found = bits(toy), bits(artifacts)
    assert found and all(found[name] == expected[name] for name in found)
    optional = ("students", "supervised", "scaled-q")
    needed = {name for name in expected if not any(part in name for part in optional)}
    assert needed <= set(found) and survived >= 50
    assert not list(artifacts.rglob("*.partial"))
