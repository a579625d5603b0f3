"""The hub presets without the internet: a server on this machine stands in for huggingface.co."""

import hashlib
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import datasets
import pytest
import transformers
from conftest import ROOT
from tokenizers import BertWordPieceTokenizer

P7 = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
LABELS = {"wikiann": P7, "masakhaner": [*P7, "B-DATE", "I-DATE"]}
LABELS["conll"] = [*P7, "B-MISC", "I-MISC"]
LANGUAGES = {  # the first is the source
    "wikiann": ["en", "sw"], "masakhaner": ["hau", "kin"], "conll": ["en", "es", "nl"]
}
SPLITS = {"train": "train", "validation": "dev", "test": "test"}  # the hub's names and ours
EXPORT = "refs/convert/parquet"  # the branch of the hub's own Parquet copies, without a README.md
DEFECTS = ["cut", "html", "empty", "column", "labels", "minus"]  # what ails a damaged wikiann
ODD = ["", "Ma\nja", None, " "]  # words of a language called odd: some are none, one has a line end


# ------------------------------------------------------------------------ what the hub holds

def sentences(preset, lang, split):
    """[(words, tags)] unlike any other language's or split's, each with every entity type."""
    rng, out = random.Random(f"{lang} {split}"), []
    kinds = [label[2:] for label in LABELS[preset][1::2]]
    for number in range(3):
        rng.shuffle(kinds)
        tags = ["O"]
        for kind in kinds:
            tags += [f"B-{kind}", f"I-{kind}", "O"][: rng.choice([1, 2, 3])]
        out.append(([f"{lang}-{split}-{number}-{i}" for i in range(len(tags))], tags))
    if lang == "odd":
        out = [(words + ODD, tags + ["O"] * len(ODD)) for words, tags in out]
    return out


def parquet(preset, lang, split):
    """One file with the real set's columns and the names of its labels, as the hub writes it."""
    if lang == "html":  # what a login page of a network leaves behind
        return b"<html>"
    found = sentences(preset, lang, split) if lang != "empty" else []
    words, tags = map(list, zip(*found, ([], [])))  # one without words, too
    per = "PERSON" if lang == "labels" else "PER"
    labels = [label.replace("PER", per) for label in LABELS[preset]]
    text, ids = datasets.Value("string"), [str(i) for i in range(len(words))]
    numbers = [[LABELS[preset].index(tag) for tag in row] for row in tags]
    if lang == "minus":  # as a tokenised set marks what is no word's first piece
        numbers[0][0] = -1
    texts, names = datasets.List(text), datasets.List(datasets.ClassLabel(names=labels))
    columns = {"tokens": (words, texts), "ner_tags": (numbers, names)}
    if preset == "wikiann":
        columns |= {"langs": (words, texts), "spans": (words, texts)}
    else:
        columns["id"] = ids, text
    if preset == "conll":
        columns["pos_tags"] = numbers, datasets.List(datasets.Value("int64"))
    if lang == "column":
        del columns["ner_tags"]
    rows, features = ({name: column[i] for name, column in columns.items()} for i in (0, 1))
    datasets.Dataset.from_dict(rows, datasets.Features(features)).to_parquet(file := io.BytesIO())
    return file.getvalue()


def data_sets(preset, languages):
    """{(repository, revision): {file: bytes}} of a preset, laid out as on the hub."""
    repos = {}
    for lang in languages:
        path = {"wikiann": "unimelb-nlp/wikiann", "masakhaner": "masakhane/masakhaner2"}
        path, folder = path.get(preset, "eriktks/conll2002"), lang
        if (preset, lang) == ("conll", "en"):
            path, folder = "eriktks/conll2003", "conll2003"
        revision = "main" if preset == "wikiann" else EXPORT
        files = repos.setdefault((f"datasets/{path}", revision), {".gitattributes": b""})
        for split in SPLITS:
            file = "-00000-of-00001.parquet" if preset == "wikiann" else "/0000.parquet"
            name = f"{split}{file}"
            files[f"{folder}/{name}"] = parquet(preset, lang, split)
    if preset == "wikiann":  # its card names the configs (JSON is YAML)
        files_of = lambda lang: [{"split": s, "path": f"{lang}/{s}-*"} for s in SPLITS]
        configs = [{"config_name": lang, "data_files": files_of(lang)} for lang in languages]
        files["README.md"] = f"---\n{json.dumps({'configs': configs})}\n---\n".encode()
    return repos


def encoders(folder):
    """A BERT of a few kilobytes under the presets' default name, and another that lacks a file."""
    wordpiece = BertWordPieceTokenizer(lowercase=False)
    letters = ["abcdefghijklmnopqrstuvwxyz-0123456789 M j"]
    wordpiece.train_from_iterator(letters, min_frequency=1, show_progress=False)
    names = ("unk", "pad", "cls", "sep", "mask")
    special = {f"{name}_token": f"[{name.upper()}]" for name in names}
    kind = transformers.PreTrainedTokenizerFast
    kind(tokenizer_object=wordpiece._tokenizer, **special).save_pretrained(folder)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    size |= {"intermediate_size": 8, "vocab_size": wordpiece.get_vocab_size()}
    transformers.BertModel(transformers.BertConfig(**size)).save_pretrained(folder)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    half = {name: content for name, content in whole.items() if name != "config.json"}
    return {("bert-base-multilingual-cased", "main"): whole, ("half-an-encoder", "main"): half}


# ------------------------------------------------------------------------ the hub's interface

class Hub(BaseHTTPRequestHandler):
    repos, gated = {}, {}  # gated: {repository: status that refuses its files}

    def answer(self, status, body=b"", keep=None, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        # The hub greets everyone without a token with a warning that its library prints.
        greeting = "unauthenticated; Warning: You are sending unauthenticated requests to the Hub."
        said = {"Content-Length": len(body), "X-HF-Warning": greeting, **headers}
        for name, value in said.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:keep])

    def do_GET(self):
        """/REPO/resolve/REVISION/FILE is a file, /api/REPO/tree/REVISION/FOLDER lists a folder,
        other /api/ describe REPO."""
        url = urlsplit(self.path)
        path = url.path.removeprefix("/api").removeprefix("/models").strip("/")
        parts, verbs = [unquote(part) for part in path.split("/")], ("resolve", "tree", "revision")
        at = next((i for i, part in enumerate(parts) if part in verbs), len(parts))
        name, path = "/".join(parts[:at]), "/".join(parts[at + 2 :])
        verb, revision = [*parts[at : at + 2], "", "main"][:2]
        same = [repo for repo in self.repos if repo[0] == name]
        commits = {repo: hashlib.sha1("@".join(repo).encode()).hexdigest() for repo in same}
        is_meant = lambda repo: revision in (repo[1], commits[repo])
        repo = next(filter(is_meant, same), None)
        if repo is None:
            return self.answer(404, X_Error_Code="RevisionNotFound" if commits else "RepoNotFound")
        files, commit = self.repos[repo], commits[repo]
        if verb == "resolve":
            if name in self.gated:  # only reading is refused: everyone may list
                return self.answer(self.gated[name], X_Error_Code="GatedRepo")
            if path not in files:
                return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            keep = 1000 if path.startswith("cut/") else None
            tag = f'"{hashlib.sha1(files[path]).hexdigest()}"'
            return self.answer(200, files[path], keep, X_Repo_Commit=commit, ETag=tag)
        if verb != "tree":
            siblings = [{"rfilename": file} for file in files]
            what = {"id": name.removeprefix("datasets/"), "sha": commit, "siblings": siblings}
            return self.answer(200, what)
        above = [folder for file in files for folder in PurePosixPath(file).parents]
        folders = {str(folder): "directory" for folder in above}
        if (path or ".") not in folders:
            return self.answer(404, X_Error_Code="EntryNotFound")
        depth = None if parse_qs(url.query).get("recursive", [""])[0].lower() == "true" else 1
        listing = []
        for entry in folders | dict.fromkeys(files, "file"):
            if PurePosixPath(path) in list(PurePosixPath(entry).parents)[:depth]:
                size = {"oid": commit, "size": len(files.get(entry, b""))}
                listing.append({"type": folders.get(entry, "file"), "path": entry, **size})
        self.answer(200, listing)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


# ------------------------------------------------------------------------ stage 1 and the hub

SCRIPT = """
import json, runpy, sys, traceback
for flags in json.loads(sys.argv.pop()):
    sys.argv, status = ["01_data.py", *flags], 0
    try:
        runpy.run_path("01_data.py", run_name="__main__")
    except SystemExit as exit:
        status = exit.code
    except Exception:
        status = traceback.print_exc() or 1
    print(f"===== {status}", file=sys.stderr)
"""  # one process runs the script several times, for its imports take longer than all the rest


def stage_1(folder, port, cases):
    """{case: (exit status, standard error, artifacts)} of 01_data.py with each case's flags."""
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    hub |= {"HF_HOME": f"{folder}", "HF_HUB_CACHE": f"{folder}/hub", "NO_PROXY": "127.0.0.1"}
    hub |= {"HF_DATASETS_CACHE": f"{folder}/datasets", "HF_HUB_DISABLE_XET": "1"}
    hub["HF_HUB_DISABLE_TELEMETRY"] = "1"
    flags = [[*cases[case].split(), "--artifacts", str(folder / case)] for case in cases]
    flags = json.dumps(flags)
    command = [sys.executable, "-c", SCRIPT, flags]
    options = {"capture_output": True, "text": True, "env": os.environ | hub, "cwd": ROOT}
    done = subprocess.run(command, **options)
    found = re.findall(r"(.*?)===== (\d+)\n", done.stderr, flags=re.DOTALL)
    told = zip(cases, found, strict=True)
    return {case: (int(status), error, folder / case) for case, (error, status) in told}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every run of stage 1: without a hub, with one in good order, with one where much is wrong."""
    models = encoders(tmp_path_factory.mktemp("encoder"))
    good = dict(models)
    for preset in LABELS:
        odd = ["odd"] * (preset == "wikiann")
        good |= data_sets(preset, LANGUAGES[preset] + odd)
    bad = models | data_sets("wikiann", ["en", "sw", *DEFECTS])
    bad |= data_sets("masakhaner", ["hau", "kin"]) | data_sets("conll", ["en"])
    presets = {}
    for preset, (source, *targets) in LANGUAGES.items():
        presets[preset] = f"--preset {preset} --sources {source} --targets {' '.join(targets)}"
    served = presets | {"odd": "--preset wikiann --sources en --targets odd"}
    wikiann, damaged = "--preset wikiann --sources en --targets", [*DEFECTS, "unknown"]
    refusals = {case: f"{wikiann} {case}" for case in damaged}
    refusals["masakhaner, language hau"] = presets["masakhaner"]
    refusals["conll, language en"] = presets["conll"]
    refusals["gone"] = "--preset conll --sources es --targets nl"
    refusals["half"] = presets["wikiann"] + " --encoder half-an-encoder"
    gated, servers = {"datasets/masakhane/masakhaner2": 403, "datasets/eriktks/conll2003": 401}, []
    for repos, closed in ((good, {}), (bad, gated)):
        hub = type("OneHub", (Hub,), {"repos": repos, "gated": closed})
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), hub))
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    with socket.socket() as closed, ThreadPoolExecutor() as pool:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: it refuses connections
        ports = [closed.getsockname()[1], *(server.server_port for server in servers)]
        folders = [tmp_path_factory.mktemp(name) for name in ("no_hub", "good_hub", "bad_hub")]
        cases = [{"unreachable": presets["wikiann"]}, served, refusals]
        done = pool.map(stage_1, folders, ports, cases)
        results = {case: result for group in done for case, result in group.items()}
    for server in servers:
        server.shutdown()
        server.server_close()
    return results


@pytest.mark.parametrize("preset", LANGUAGES)
def test_a_preset_reads_what_the_hub_serves(runs, preset):
    (status, error, artifacts), (source, *targets) = runs[preset], LANGUAGES[preset]
    assert status == 0, error
    config = json.loads((artifacts / "data/config.json").read_text())
    kinds = sorted(label[2:] for label in LABELS[preset][1::2])
    assert config["tags"] == ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]
    assert config["encoder"] == "bert-base-multilingual-cased"
    for lang in (source, *targets):
        role, split = ("sources", "validation") if lang == source else ("targets", "test")
        words, tags = map(list, zip(*sentences(preset, lang, split)))
        table = datasets.load_from_disk(str(artifacts / f"data/{role}/{lang}/{SPLITS[split]}"))
        assert list(table["words"]) == words
        tagged = table
        if role == "targets":
            assert "tags" not in table.column_names
            tagged = datasets.load_from_disk(str(artifacts / f"gold/{lang}/{split}"))
        assert [[config["tags"][tag] for tag in row] for row in tagged["tags"]] == tags


def test_words_that_are_none_are_dropped_and_line_ends_in_words_are_spaces(runs):
    status, error, artifacts = runs["odd"]
    assert status == 0, error
    table = datasets.load_from_disk(str(artifacts / "data/targets/odd/test"))
    gold = datasets.load_from_disk(str(artifacts / "gold/odd/test"))["tags"]
    for (words, _), found, tags in zip(sentences("wikiann", "odd", "test"), table["words"], gold):
        assert found == [*words[: -len(ODD)], "Ma ja"] and len(tags) == len(found)
    assert "9 no_word" in (artifacts / "report.csv").read_text()


def test_a_word_without_a_tag_is_one_line_and_exit_status_2(runs):
    assert "--preset wikiann, language minus" in complaint(runs["minus"])


def complaint(run):
    """The one line that is all a refused run leaves behind."""
    status, error, artifacts = run
    assert (status, error.count("\n"), error[:7]) == (2, 1, "error: "), error
    assert not artifacts.exists()
    return error


def test_without_a_network_one_line_names_the_ways_to_work_offline(runs):
    line = complaint(runs["unreachable"])
    assert "toy" in line and "--data-dir" in line


def test_a_data_set_that_is_gone_is_one_line_and_exit_status_2(runs):
    assert "--preset conll, language es" in complaint(runs["gone"])


def test_an_unknown_language_is_one_line_and_exit_status_2(runs):
    assert "--preset wikiann, language unknown" in complaint(runs["unknown"])


@pytest.mark.parametrize("gated", ["masakhaner, language hau", "conll, language en"])
def test_a_gated_data_set_is_one_line_and_exit_status_2(runs, gated):
    assert f"--preset {gated}" in complaint(runs[gated])


def test_a_missing_column_is_one_line_and_exit_status_2(runs):
    assert "ner_tags" in complaint(runs["column"])


def test_labels_of_other_names_are_one_line_and_exit_status_2(runs):
    assert "B-PERSON" in complaint(runs["labels"])


@pytest.mark.parametrize("damage", ["cut", "html", "empty"])
def test_a_damaged_download_is_one_line_and_leaves_nothing_half_written(runs, damage):
    preset = "" if damage == "empty" else "--preset wikiann, "  # an empty one is read, and refused
    assert f"{preset}language {damage}" in complaint(runs[damage])


def test_an_encoder_that_lacks_a_file_is_one_line_and_exit_status_2(runs):
    assert "half-an-encoder" in complaint(runs["half"])
