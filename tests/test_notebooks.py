"""The notebooks: they run, they were run, and what the scripts own they call instead of copying."""

import ast
import importlib
import inspect
import json
import re
import shutil

import nbclient
import nbformat
import pytest

from conftest import ROOT

SCRIPTS = ["01_data", "02_teachers", "03_distill", "04_evaluate"]
MODULES = {name[3:]: importlib.import_module(name) for name in SCRIPTS}  # data, teachers, ...
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def code_of(path):
    """The lines of Python of a notebook, without what belongs to IPython alone."""
    lines = []
    for cell in code_cells(path):
        lines += "".join(cell["source"]).split("\n")
    return [line for line in lines if not line.lstrip().startswith(("%", "!"))]


@every_notebook
def test_a_notebook_is_small_and_was_run_from_top_to_bottom_without_an_error(path):
    assert path.stat().st_size < 1_000_000
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs and not [x for x in outputs if x["output_type"] == "error"]
    for output in outputs:
        shown = output.get("data", {})
        if "<Figure" in str(shown.get("text/plain")):
            assert "image/png" in shown, "a figure is not shown"
    assert "colab.research.google.com" in path.read_text(encoding="utf-8")


@every_notebook
def test_a_notebook_defines_no_name_that_the_scripts_own(path):
    names = set()
    for module in MODULES.values():
        names |= {name for name, thing in vars(module).items() if callable(thing)}
    kinds = ast.FunctionDef, ast.ClassDef
    there = ast.parse("\n".join(code_of(path))).body
    assert len(NOTEBOOKS) > 5 and {"student_loss", "encode", "interval"} <= names
    assert not {x.name for x in there if isinstance(x, kinds)} & names


NO_METHOD = ("#", "import", "from", "data =", "teachers =", "figure", "axis", "assert")
THEIRS = re.compile(r"\b(data|teachers|distill|evaluate)\.")  # a call of a script's is no copy


@every_notebook
def test_a_notebook_copies_no_line_of_the_method(path):
    """But for the solutions of what a reader writes."""
    if path.stem == "solutions":
        pytest.skip("solutions are written out")
    method = set()
    for name in SCRIPTS[:3]:
        method |= {line.strip() for line in (ROOT / f"{name}.py").read_text().split("\n")}
    method = {x for x in method if len(x) > 30 and not x.startswith(NO_METHOD)}
    own = {line.strip() for line in code_of(path) if not THEIRS.search(line)}
    assert len(method) > 500 and not own & method


@every_notebook
def test_source_that_a_notebook_shows_is_todays(path):
    text = ""
    for cell in code_cells(path):
        for output in cell["outputs"]:
            text += "".join(output.get("text", []))
    code = "\n".join(code_of(path))
    for stage, name in re.findall(r"inspect\.getsource\((\w+)\.([\w.]+)\)", code):
        if stage in MODULES:
            thing = MODULES[stage]
            for part in name.split("."):
                thing = getattr(thing, part)
            assert inspect.getsource(thing).strip() in text, name


SLIDERS = """import ipywidgets
ipywidgets.interact = lambda draw, **at: draw(**{name: x.value for name, x in at.items()})
"""  # a cell with a slider may hang nbclient (its issue 312)


@pytest.mark.long
@every_notebook
def test_a_notebook_executes_on_the_toy(path, trained, tmp_path, monkeypatch):
    """A copy of it, beside copies of the scripts and of what lies beside the notebooks."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    for name in [*[f"{script}.py" for script in SCRIPTS], "requirements.txt", "README.md"]:
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setenv("ARTIFACTS", str(trained))
    monkeypatch.delenv("MPLBACKEND")  # the kernel's own shows figures
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SLIDERS))
    where = {"metadata": {"path": str(tmp_path / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=900, resources=where).execute()
