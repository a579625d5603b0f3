"""What the repository promises about itself: its top level, its imports, its README, its notebooks."""

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

SCRIPTS = ["01_data", "02_teachers", "03_distill", "04_evaluate"]


def tracked():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    return [name for name in listed if name]


def test_the_top_level_is_the_agreed_one():
    allowed = {f"{name}.py" for name in SCRIPTS} | {"notebooks", "tests", "requirements.txt", "README.md"}
    assert {name.split("/")[0] for name in tracked() if not name.startswith(".")} <= allowed


def test_stages_import_downwards_only_and_only_the_first():
    for name in SCRIPTS:
        borrowed = re.findall(r'import_module\("(\w+)"\)', (ROOT / f"{name}.py").read_text())
        assert borrowed == ([] if name == "01_data" else ["01_data"]), name


def test_gold_is_opened_by_stage_4_and_by_the_oracle_alone():
    assert "gold" not in "".join(line for line in (ROOT / "03_distill.py").read_text().split('"""', 2)[2].split("\n") if "never" not in line)
    tree = ast.parse((ROOT / "02_teachers.py").read_text())
    users = {f.name for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and '"gold"' in ast.unparse(f).replace("'", '"')}
    assert users <= {"supervised_table", "main"}


def test_nothing_unpickles_or_runs_remote_code():
    for name in SCRIPTS:
        code = (ROOT / f"{name}.py").read_text()
        assert not re.search(r"torch\.load|pickle|trust_remote_code|np\.load|eval\(\"|exec\(", code), name


def test_every_command_in_the_readme_parses():
    commands = re.findall(r"python (0\d_\w+)\.py([^\n`&|#]*)", (ROOT / "README.md").read_text())
    assert len(commands) > 8
    for script, flags in commands:
        flags = [f for f in shlex.split(flags.replace("…", "")) if f != ")"]
        importlib.import_module(script).parse_args(flags)


def test_importing_a_stage_has_no_effect(tmp_path):
    code = "import sys, importlib; sys.path.insert(0, sys.argv[1]); [importlib.import_module(n) for n in sys.argv[2:]]"
    done = subprocess.run([sys.executable, "-B", "-c", code, str(ROOT), *SCRIPTS], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "" and not list(tmp_path.iterdir())


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_of(path):
    cells = json.loads(path.read_text())["cells"]
    return [("".join(c["source"]), c) for c in cells if c["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_define_nothing_of_the_method_and_copy_none_of_its_lines(path):
    method = {line.strip() for name in SCRIPTS[:3] for line in (ROOT / f"{name}.py").read_text().split("\n")
              if len(line.strip()) > 30 and not line.strip().startswith(("#", "import", "from", "data ="))}  # fmt: skip
    for source, _ in code_of(path):
        tree = ast.parse("\n".join(line for line in source.split("\n") if not line.startswith(("%", "!"))))
        defined = [n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        assert all(name.startswith(("plot_", "draw_")) for name in defined), defined
        lines = {line.strip() for line in source.split("\n") if not re.search(r"\b(data|teachers|distill|evaluate)\.", line)}
        assert not lines & method                                                # a call of theirs is no copy


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_small_and_were_run_from_top_to_bottom_without_an_error(path):
    assert path.stat().st_size < 1_000_000
    cells = [c for _, c in code_of(path)]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    assert not [o for c in cells for o in c["outputs"] if o["output_type"] == "error"]
    assert "colab.research.google.com" in path.read_text()


@pytest.fixture(scope="module")
def executing(toy, tmp_path_factory):
    """{notebook: (process that executes it, where its errors go)}, all started at once."""
    out, jupyter, jobs = tmp_path_factory.mktemp("notebooks"), Path(sys.executable).with_name("jupyter-execute"), {}
    for path in NOTEBOOKS:
        with open(out / f"{path.stem}.txt", "w") as errors:
            command = [jupyter, path, f"--output={out / path.name}", "--timeout=600"]
            job = subprocess.Popen(command, cwd=ROOT / "notebooks", env=os.environ | {"ARTIFACTS": str(toy)}, stderr=errors)
        jobs[path] = job, out / f"{path.stem}.txt"
    return jobs


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_execute_on_toy_artifacts(path, executing):
    job, errors = executing[path]
    assert job.wait() == 0, errors.read_text()[-3000:]
