"""What the repository promises about itself: its top level, imports, README and notebooks."""

import ast
import importlib
import inspect
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
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    return listed.stdout.split()


def test_the_top_level_is_the_agreed_one():
    allowed = {f"{name}.py" for name in SCRIPTS} | {"requirements.txt", "README.md"}
    allowed |= {"notebooks", "tests"}
    assert {name.split("/")[0] for name in tracked() if not name.startswith(".")} <= allowed


def test_stages_import_from_earlier_stages_alone():
    for number, name in enumerate(SCRIPTS):
        text = (ROOT / f"{name}.py").read_text()
        borrowed = re.findall(r'import_module\("(\w+)"\)', text)
        assert set(borrowed) <= set(SCRIPTS[:number]), name
        assert len(borrowed) == text.count("import_module(") == len(set(borrowed)), name
        assert number == 0 or "01_data" in borrowed


def test_source_that_notebooks_show_is_todays():
    """Their outputs are stored: what `inspect.getsource` printed must not have moved on."""
    modules, shown = {name[3:]: importlib.import_module(name) for name in SCRIPTS}, 0
    for path in (ROOT / "notebooks").glob("0*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        printed = "".join("".join(output.get("text", [])) for output in outputs)
        code = "".join("".join(cell["source"]) for cell in cells)
        for stage, name in re.findall(r"inspect\.getsource\((\w+)\.([\w.]+)\)", code):
            thing = modules[stage]
            for part in name.split("."):
                thing = getattr(thing, part)
            assert inspect.getsource(thing) in printed, (path.name, name)
            shown += 1
    assert shown > 5


def strings_of(function):
    """String constants in a function, but for its docstring."""
    found = [x.value for x in ast.walk(function) if isinstance(x, ast.Constant)]
    docstring = ast.get_docstring(function, clean=False)
    return [x for x in found if isinstance(x, str) and x != docstring]


def test_gold_is_opened_by_stage_4_and_by_the_oracle_alone():
    for name, allowed in (("02_teachers", {"main"}), ("03_distill", set())):
        tree = ast.parse((ROOT / f"{name}.py").read_text())
        functions = [x for x in ast.walk(tree) if isinstance(x, ast.FunctionDef)]
        opens = lambda function: any(re.match("gold(/|$)", x) for x in strings_of(function))
        users = {function.name for function in functions if opens(function)}
        assert users <= allowed | {"parse_args"}, name


def test_nothing_unpickles_or_runs_remote_code():
    for name in SCRIPTS:
        code = (ROOT / f"{name}.py").read_text()
        risky = r"torch\.load\b|pickle|trust_remote_code|np\.load\b|\beval\(\"|\bexec\("
        assert not re.search(risky, code), name


def readme_commands():
    """[(script, flags)] of every command in the README that runs a stage."""
    text, found = (ROOT / "README.md").read_text().replace("\\\n", " "), []
    for script, flags in re.findall(r"python (0\d_\w+)\.py([^\n`&|#\"]*)", text):
        words = shlex.split(flags.replace("…", "").replace("...", ""))
        found.append((script, [word for word in words if word != ")"]))
    return found


def test_the_readme_names_every_stages_command():
    assert {script for script, _ in readme_commands()} == set(SCRIPTS)


def test_every_command_in_the_readme_parses():
    for script, flags in readme_commands():
        importlib.import_module(script).parse_args(flags)


def test_every_command_in_a_docstring_parses():
    for name in SCRIPTS:
        module = importlib.import_module(name)
        commands = re.findall(rf"python {name}\.py([^\n]*?)(?:   |\n)", module.__doc__)
        assert len(commands) > 1, name
        for flags in commands:
            module.parse_args(shlex.split(flags))


def test_importing_a_stage_has_no_effect(tmp_path):
    code = "import sys, importlib; sys.path.insert(0, sys.argv[1])\n"
    code += "for name in sys.argv[2:]: importlib.import_module(name)"
    run = [sys.executable, "-B", "-c", code, str(ROOT), *SCRIPTS]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "" and not list(tmp_path.iterdir())


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_of(path):
    cells = json.loads(path.read_text())["cells"]
    return [("".join(c["source"]), c) for c in cells if c["cell_type"] == "code"]


def lines_of_the_method():
    found = set()
    for name in SCRIPTS[:3]:
        lines = map(str.strip, (ROOT / f"{name}.py").read_text().split("\n"))
        found |= {line for line in lines if len(line) > 30 and not line.startswith(NO_METHOD)}
    return found


NO_METHOD = ("#", "import", "from", "data =", "teachers =")
THEIRS = re.compile(r"\b(data|teachers|distill|evaluate)\.")  # a call of a script's is no copy


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_define_nothing_of_the_method_and_copy_none_of_its_lines(path):
    """But for what a reader writes, your_..., and for the solutions of that."""
    if path.stem == "solutions":
        pytest.skip("solutions are written out")
    for source, _ in code_of(path):
        lines = [line for line in source.split("\n") if not line.startswith(("%", "!"))]
        kinds = ast.FunctionDef, ast.ClassDef
        defined = [x.name for x in ast.walk(ast.parse("\n".join(lines))) if isinstance(x, kinds)]
        assert all(name.startswith(("plot_", "draw_", "your_")) for name in defined), defined
        own = {line.strip() for line in lines if not THEIRS.search(line)}
        assert not own & lines_of_the_method()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_small_and_were_run_from_top_to_bottom_without_an_error(path):
    assert path.stat().st_size < 1_000_000
    cells = [c for _, c in code_of(path)]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    outputs = [output for c in cells for output in c["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    figures = [o["data"] for o in outputs if "<Figure" in str(o.get("data", {}).get("text/plain"))]
    assert all("image/png" in data for data in figures), "a figure is not shown"
    assert "colab.research.google.com" in path.read_text()


@pytest.fixture(scope="module")
def executing(toy, tmp_path_factory):
    """{notebook: (process that executes it, where its errors go)}, all started at once."""
    out, jobs = tmp_path_factory.mktemp("notebooks"), {}
    jupyter = Path(sys.executable).with_name("jupyter-execute")
    options = {"cwd": ROOT / "notebooks", "env": os.environ | {"ARTIFACTS": str(toy)}}
    for path in NOTEBOOKS:
        with open(out / f"{path.stem}.txt", "w") as errors:
            run = [jupyter, path, f"--output={out / path.name}", "--timeout=600"]
            jobs[path] = subprocess.Popen(run, stderr=errors, **options), out / f"{path.stem}.txt"
    return jobs


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_execute_on_toy_artifacts(path, executing):
    job, errors = executing[path]
    assert job.wait() == 0, errors.read_text()[-3000:]
