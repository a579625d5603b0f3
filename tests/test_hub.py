"""The hub presets, without the internet: a loopback server stands in for huggingface.co.

Every case is one run of 01_data.py with a server of its own. All runs start together, for most of their time goes into
imports and into waiting between retries.
"""

import contextlib
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import datasets
import pytest
import transformers
from tokenizers import BertWordPieceTokenizer

ROOT = Path(__file__).parent.parent
EXPORT = "refs/convert/parquet"  # the branch on which the hub keeps its Parquet copy of a data set; it has no README.md
P7 = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
LABELS = {"wikiann": P7, "masakhaner": [*P7, "B-DATE", "I-DATE"], "conll": [*P7, "B-MISC", "I-MISC"]}
LANGUAGES = {"wikiann": ["en", "sw"], "masakhaner": ["hau", "kin"], "conll": ["en", "es", "nl"]}


# ------------------------------------------------------------------------------------------------ what the hub holds

def sentences(lang, split, labels):
    """Words and tags of a few sentences; they differ by language and split, and every label occurs in each."""
    pairs = [(f"{lang}{split}", "O")] + [(f"{label[:1]}{label[-3:].lower()}{lang}", label) for label in labels[1:]]
    return [([w for w, _ in cut], [t for _, t in cut]) for cut in (pairs, pairs[:3], pairs[3:5] + [(".", "O")])]


def parquet(preset, lang, split, labels=None, without=()):
    """One file with the columns of the real one; the names of the labels travel in its metadata."""
    names = datasets.ClassLabel(names=labels or LABELS[preset])
    words, tags = zip(*sentences(lang, split, names.names))
    n = len(words)
    columns = {"tokens": words, "ner_tags": [[names.str2int(t) for t in row] for row in tags]}
    columns |= {"langs": [[lang] * len(w) for w in words], "spans": [["PER: x"]] * n} if preset == "wikiann" else {"id": [str(i) for i in range(n)]}
    features = {c: datasets.Value("string") if c == "id" else datasets.List(datasets.Value("string")) for c in columns}
    features["ner_tags"] = datasets.List(names)
    kept = [c for c in columns if c not in without]
    file = io.BytesIO()
    datasets.Dataset.from_dict({c: columns[c] for c in kept}, datasets.Features({c: features[c] for c in kept})).to_parquet(file)
    return file.getvalue()


def repositories(preset, **changes):
    """{(path, revision): {file: bytes}} of one preset's data sets, laid out as on the hub."""
    repos = {}
    for lang in LANGUAGES[preset]:
        for split in ("train", "validation", "test"):
            repo, file = {
                "wikiann": (("datasets/unimelb-nlp/wikiann", "main"), f"{lang}/{split}-00000-of-00001.parquet"),
                "masakhaner": (("datasets/masakhane/masakhaner2", EXPORT), f"{lang}/{split}/0000.parquet"),
                "conll": (("datasets/eriktks/conll2003", EXPORT), f"conll2003/{split}/0000.parquet") if lang == "en"
                else (("datasets/eriktks/conll2002", EXPORT), f"{lang}/{split}/0000.parquet"),
            }[preset]
            repos.setdefault(repo, {".gitattributes": b""})[file] = parquet(preset, lang, split, **changes)
    if preset == "wikiann":
        configs = [{"config_name": x, "data_files": [{"split": s, "path": f"{x}/{s}-*"} for s in ("train", "validation", "test")]}
                   for x in LANGUAGES[preset]]
        repos["datasets/unimelb-nlp/wikiann", "main"]["README.md"] = f"---\n{json.dumps({'configs': configs})}\n---\n".encode()
    return repos


def tiny_mbert(folder):
    """{file: bytes} of a BERT of a few kilobytes with a WordPiece vocabulary of single letters."""
    words = BertWordPieceTokenizer(lowercase=False)
    words.train_from_iterator(["abcdefghijklmnopqrstuvwxyz."], vocab_size=100, min_frequency=1, show_progress=False)
    transformers.BertTokenizerFast(tokenizer_object=words._tokenizer).save_pretrained(folder)
    transformers.BertModel(transformers.BertConfig(vocab_size=100, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                                   intermediate_size=8)).save_pretrained(folder)
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# ------------------------------------------------------------------------------------------------ the hub's interface

class Hub(BaseHTTPRequestHandler):
    repos, gated, cut = {}, False, False

    def answer(self, status, body=b"", error=None, **headers):
        self.send_response(status)
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        lacks = {"Content-Length": len(body), "X-Error-Code": error, **headers}
        for name, value in lacks.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if self.cut and body.startswith(b"PAR1") else body)

    def do_GET(self):
        print(self.command, self.path, file=open("/tmp/hub.log", "a"))
        url = urlsplit(self.path)
        parts = url.path.strip("/").split("/")
        api = parts[0] == "api"
        if api:
            parts = parts[1:]
            parts = parts[1:] if parts[0] == "models" else parts
        action = next((i for i, x in enumerate(parts) if x in ("resolve", "tree", "revision", "paths-info")), len(parts))
        name, verb, revision = "/".join(parts[:action]), *(unquote(x) for x in (parts[action: action + 2] + ["", "main"])[:2])
        path = unquote("/".join(parts[action + 2:]))
        shas = {repo: hashlib.sha1("@".join(repo).encode()).hexdigest() for repo in self.repos}
        repo = next((r for r in self.repos if r[0] == name and revision in (r[1], shas[r])), None)
        if self.gated and name.startswith("datasets/"):
            return self.answer(self.gated, error="GatedRepo")
        if repo is None:
            known = any(r[0] == name for r in self.repos)
            return self.answer(404, error="RevisionNotFound" if known else "RepoNotFound")
        files, sha = self.repos[repo], shas[repo]
        if verb == "resolve":
            if path not in files:
                return self.answer(404, error="EntryNotFound", X_Repo_Commit=sha)
            etag = hashlib.sha1(files[path]).hexdigest()
            return self.answer(200, files[path], X_Repo_Commit=sha, ETag=f'"{etag}"')
        entries = [{"type": "file", "path": f, "size": len(b), "oid": hashlib.sha1(b).hexdigest()} for f, b in files.items()]
        folders = {str(p) for f in files for p in Path(f).parents if str(p) != "."}
        entries += [{"type": "directory", "path": f, "oid": sha} for f in sorted(folders)]
        if verb == "paths-info":
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            return self.answer(200, [e for e in entries if e["path"] in form["paths"]])
        if verb == "tree":
            inside = [e for e in entries if not path or e["path"].startswith(path + "/")]
            deep = parse_qs(url.query).get("recursive", ["false"])[0].lower() == "true"
            if path and not inside:
                return self.answer(404, error="EntryNotFound")
            return self.answer(200, [e for e in inside if deep or str(Path(e["path"]).parent) == (path or ".")])
        self.answer(200, {"id": name.removeprefix("datasets/"), "sha": sha, "siblings": [{"rfilename": f} for f in files]})

    do_HEAD = do_POST = do_GET

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def hub(repos, **manners):
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("ThisHub", (Hub,), {"repos": repos, **manners}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
