"""Kill every stage at random moments, go on, and come out with the bits of an undisturbed run. Long: pytest -m long."""

import random
import subprocess
import sys
import time

import pytest

from conftest import ROOT, TINY, must
from test_pipeline import bits

KILLS = {"01_data.py": 12, "02_teachers.py": 20, "03_distill.py": 14, "04_evaluate.py": 6}
FLAGS = {"03_distill.py": ["--methods", "tsl-sim", "mtmt"]}


def finished_pieces(artifacts):
    """{folder: time of its last change} of every piece that is in its place."""
    return {p.parent: p.stat().st_mtime_ns for p in artifacts.rglob("config.json") if ".partial" not in str(p)}


@pytest.mark.long
def test_killed_stages_go_on_to_the_bits_of_an_undisturbed_run(toy, tmp_path):
    artifacts, rng, survived = tmp_path / "artifacts", random.Random(0), 0
    for script, kills in KILLS.items():
        command = [sys.executable, str(ROOT / script), "--artifacts", str(artifacts), *TINY[script], *FLAGS.get(script, [])]
        begun = time.time()
        subprocess.run([sys.executable, "-c", "import importlib; importlib.import_module('04_evaluate')"], cwd=ROOT)
        imports = time.time() - begun
        for _ in range(kills):
            before = finished_pieces(artifacts)
            job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            time.sleep(imports * rng.uniform(0.8, 2.2))
            job.kill()
            said = job.communicate()[0]
            assert "error" not in said and "Traceback" not in said, said          # no half-written piece was read
            after = finished_pieces(artifacts)
            assert script == "04_evaluate.py" or before.items() <= after.items()  # no finished piece was made again
            survived += 1
        must(script, artifacts, *FLAGS.get(script, []))
    expected, found = bits(toy), bits(artifacts)
    assert found and all(found[name] == expected[name] for name in found)
    assert {name for name in expected if "students" not in name and "supervised" not in name} <= set(found)
    assert not list(artifacts.rglob("*.partial")) and survived >= 50
