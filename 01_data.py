"""Stage 1: read the corpora and cut their sentences into windows of sub-tokens.

    python 01_data.py                                                        the toy, offline
    python 01_data.py --preset wikiann --sources en de nl --targets sw yo    from the hub
    python 01_data.py --data-dir DIR --sources en --targets sw --encoder xlm-roberta-base

Reads   the toy's generator, data sets of the hub, or CoNLL files DIR/<lang>/{train,dev,test}.txt
        (a target may have raw text instead, DIR/<lang>/text.txt)
Writes  artifacts/data/config.json                  sources, targets, tags and encoder
        artifacts/data/sources/<lang>/{train,dev}   windows with tags
        artifacts/data/targets/<lang>/{train,test}  windows WITHOUT tags
        artifacts/gold/<lang>/{train,test}          the targets' tags: only stage 4 opens them
        artifacts/encoder/, artifacts/report.csv    the toy's encoder; what was odd in the text
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import socket
import sys
from collections import Counter
from pathlib import Path

import datasets
import huggingface_hub
import pandas as pd
import torch
import transformers
from tokenizers import SentencePieceBPETokenizer, Tokenizer, pre_tokenizers, processors

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
datasets.disable_progress_bars()
for library in (datasets, huggingface_hub):  # no word of retries; what fails for good is raised
    library.utils.logging.set_verbosity(50)

MBERT = "bert-base-multilingual-cased"
PRESETS = {  # sources and targets where no flag names them
    "toy": ("qaa qab qba qbb", "qac qbc"),
    "wikiann": ("en de nl ar", "sw yo tl cy"),
    "masakhaner": ("hau swa yor", "kin pcm ibo xho"),
    "conll": ("en", "es nl"),
}
HUB_FILES = {  # those with @ are the hub's own Parquet copies
    "wikiann": "unimelb-nlp/wikiann/{lang}/{split}-00000-of-00001.parquet",
    "masakhaner": "masakhane/masakhaner2@refs%2Fconvert%2Fparquet/{lang}/{split}/0000.parquet",
    "conll": "eriktks/conll2002@refs%2Fconvert%2Fparquet/{lang}/{split}/0000.parquet",
    "conll en": "eriktks/conll2003@refs%2Fconvert%2Fparquet/conll2003/{split}/0000.parquet",
}
HUB_TYPES = {"masakhaner": "DATE", "conll": "MISC"}  # beside PER, ORG and LOC
# what no source may be called: tsl-avg and mtmt-nosim are methods
NOT_NAMES = ["pooled", "avg", "sim", "kl", "scaled", "noalpha", "nobeta", "nogamma", "nosim"]


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--preset", choices=PRESETS, default="toy", help="all but the toy download")
    p.add_argument("--data-dir", type=Path, help="your own: DIR/<lang>/{train,dev,test}.txt")
    p.add_argument("--sources", nargs="+", metavar="LANG", help="languages with labels")
    p.add_argument("--targets", nargs="+", metavar="LANG", help="languages to tag, sources or not")
    p.add_argument("--types", nargs="+", metavar="TYPE", help="default: those that sources share")
    p.add_argument("--limit", type=int, metavar="N", help="first N of the sources' train and dev")
    p.add_argument("--limit-text", type=int, metavar="N", help="first N of the targets' train text")
    p.add_argument("--limit-test", type=int, metavar="N", help="first N of the targets' test text")
    p.add_argument("--encoder", help=f"folder or hub name; default {MBERT}, for the toy 'scratch'")
    p.add_argument("--max-length", type=int, default=128, help="sub-tokens in a window (TSL)")
    p.add_argument("--seed", type=int, default=0, help="of the toy's text and encoder")
    add_common_flags(p)
    args = p.parse_args(argv)
    if args.data_dir:
        args.preset = "own"
    sources, targets = PRESETS.get(args.preset, ("", ""))
    # each once, and "sw/", as a shell completes it, is sw
    args.sources = list(dict.fromkeys(x.rstrip("/") for x in args.sources or sources.split()))
    args.targets = list(dict.fromkeys(x.rstrip("/") for x in args.targets or targets.split()))
    args.encoder = args.encoder or ("scratch" if args.preset == "toy" else MBERT)
    if not args.targets or not args.sources + (args.types or []):
        p.error("no languages: name --targets and --sources (or --types, if you have no source)")
    if len(args.sources) == 1 and args.sources[0] in args.targets:
        p.error("the only source is a target itself: add another to --sources")
    limits = [args.limit, args.limit_text, args.limit_test]
    if args.max_length < 8 or any(limit is not None and limit < 1 for limit in limits):
        p.error("--limit, --limit-text and --limit-test: at least 1; --max-length: at least 8")
    for lang in args.sources:
        if lang in NOT_NAMES or list(args.artifacts.glob(f"logits/*/external-{lang}-s*")):
            p.error(f"--sources {lang}: direct-{lang} would be two systems: rename the folder")
    return args


def add_common_flags(p):
    """The flags of stages 1 to 3."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    p.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="the shared folder")
    p.add_argument("--overwrite", action="store_true", help="make anew what other settings made")
    p.add_argument("--device", choices=["cuda", "cpu"], default=device)


# ------------------------------------------------------------------------ serves all stages
# What a stage makes are *pieces*: folders of artifacts/ that are whole or absent. The record.json
# of a piece is written last. It holds the settings that the piece was made from (with fingerprints
# of other pieces, by name), a fingerprint of settings and files, and facts, which nobody compares.

def stop(message):
    """A mistake that users make: one line that says where it is and what helps, exit status 2."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(2)


def read_record(folder):
    if not (folder / "record.json").exists():
        stop(f"{folder}: missing or incomplete: run the earlier stages first")
    return json.loads((folder / "record.json").read_text())


def inputs(artifacts, *names):
    """{piece: fingerprint} of these pieces, for the settings of what is made from them. It stops
    where a piece is missing, or stale: one of those that it was made from has changed since."""
    found = {}
    for name in names:
        record = read_record(artifacts / name)
        for below, recorded in record["settings"].items():
            is_piece = (artifacts / below / "record.json").exists()  # else it is a plain setting
            if is_piece and inputs(artifacts, below)[below] != recorded:
                what = f"{artifacts / name}: made from another {below} than there is now"
                stop(f"{what}: run its stage again with --overwrite, or remove it")
        found[name] = record["fingerprint"]
    return found


def made(folder, settings, overwrite=False):
    """Is the piece there, made from these settings? If it was made from others, the answer is no
    where it may be overwritten; else this stops."""
    if not (folder / "record.json").exists():
        return False
    before = read_record(folder)["settings"]
    names = dict(before, **settings)  # of the settings of either
    other = [name for name in names if settings.get(name) != before.get(name)]
    if not other:
        print(f"  kept  {folder}")
    elif not overwrite:
        remedy = "pass --overwrite to replace it, or another --artifacts"
        stop(f"{folder}: made from other {', '.join(other)}: {remedy}")
    return not other


@contextlib.contextmanager
def writing(folder, settings, **facts):
    """Fill a piece beside its place, and move it there when it is whole."""
    folder = folder.resolve()  # a link stays: what it points to is replaced
    prefix = f".{folder.name}.{socket.gethostname()}"
    partial = folder.with_name(f"{prefix}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # a killed process may have had our number
    for leftover in folder.parent.glob(f"{prefix}.*.partial"):
        try:
            os.getpgid(int(leftover.name.split(".")[-2]))  # is its process still at work?
        except ProcessLookupError:
            shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        record = {"settings": settings, "facts": facts}
        record["fingerprint"] = fingerprint([settings, file_hashes(partial)])
        (partial / "record.json").write_text(json.dumps(record, indent=1))
        if not made(folder, settings, overwrite=True):  # by another process, meanwhile
            (folder / "record.json").unlink(missing_ok=True)  # killed from here on, it is absent
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
            print(f"  wrote {folder.parent.name}/{folder.name}")
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def fingerprint(thing):
    """A short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(thing).encode()).hexdigest()[:16]


def file_hashes(folder, pattern="."):
    """{name: sha256} of the files in a folder whose names match."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and re.match(pattern, name):
            hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def encoder_fingerprint(encoder):
    """Of an encoder folder its files of weights and vocabulary, of a hub name its commit."""
    if Path(encoder).is_dir():
        files = "(config|tokeniz|vocab|merges|sentencepiece|spiece|model|pytorch)[^/]*$"
        return fingerprint(file_hashes(Path(encoder), files))
    if Path(encoder).is_absolute():
        stop(f"{encoder}: no such folder: has the encoder moved?")
    load(transformers.AutoConfig, encoder)  # or one line on why not
    return Path(transformers.utils.cached_file(encoder, "config.json")).parent.name


def load(auto_class, folder, **options):
    """What from_pretrained gives, or one line on why it gives nothing."""
    try:
        return auto_class.from_pretrained(folder, trust_remote_code=False, **options)
    except Exception as error:  # foreign folders fail in too many ways to list
        remedy = "name a folder, or a model of the hub within reach"
        stop(f"{folder}: cannot load it ({type(error).__name__}: {str(error)[:300]}): {remedy}")


def load_model(auto_class, folder, new=None, **options):
    """A model in fp32. It refuses weights that are not in its files (the library would draw them
    and only warn) unless their names match `new`; weights that are not finite; and, where `new` is
    given, a trained head."""
    model, info = load(auto_class, folder, dtype=torch.float32, output_loading_info=True, **options)
    lacking = sorted(x for x in info["missing_keys"] if new is None or not re.match(new, x))
    if lacking:
        what = f"{len(lacking)} weights are not in its files ({', '.join(lacking[:3])})"
        stop(f"{folder}: {what}: give them the names of {type(model).__name__}")
    if new and any(re.match(r"(classifier|score)\.", x) for x in info["unexpected_keys"]):
        remedy = "save it by AutoModel, without the head, and its tokenizer beside it"
        stop(f"{folder}: it has a trained head: {remedy}")
    if not all(weights.isfinite().all() for weights in model.parameters()):
        stop(f"{folder}: some of its weights are not finite (NaN): it is damaged, choose another")
    return model


# ------------------------------------------------------------------------ the toy's languages
# Two families of three languages. A proto-lexicon splits by regular sound changes. Family qa is
# head first (verb before object, case word before name); qb mirrors that and capitalises nouns.

SOUND_CHANGES = {  # pkw>fxv: p becomes f, k becomes x, w becomes v
    "qa": "pkw>fxv", "qaa": "e>i", "qab": "dz>tc", "qac": "x>h",
    "qb": "bgsu>vhzo", "qba": "r>l", "qbb": "m>n", "qbc": "zo>ca",
}
LEXICON = {  # how many words each class has
    "noun": 60, "verb": 20, "adjective": 20, "title": 4, "in": 2, "from": 2, "company": 5,
    "meet": 4, "the": 2, "first": 60, "last": 60, "town": 60, "brand": 50,
}
# Capitals are rules, lower case is a word of that class, TYPE:class+class a name; twice is twice as
# likely. A last name may be a town or a firm, too: only the words around it tell its type.
GRAMMAR = {
    "SENTENCE": "WHO ACT",
    "WHO": "THING | PERSON | PERSON | FIRM",
    "ACT": "DEED | DEED PLACE",
    "DEED": "verb THING | verb FIRM | meet PERSON",
    "THING": "the noun | the noun | the adjective noun",
    "PERSON": "title NAME | title NAME | NAME",
    "NAME": "PER:first+last | PER:first+last | PER:first | PER:last",
    "PLACE": "in LOC:town | in LOC:town | in LOC:town | in LOC:last",
    "FIRM": "company ORG:brand | company ORG:town | from ORG:brand | from ORG:last",
}
TOY_SENTENCES = {"train": 600, "dev": 100, "test": 300}


def toy_word(rng):
    """Two or three syllables of a consonant and a vowel."""
    syllables = range(rng.choice([2, 2, 3]))
    return "".join(rng.choice("ptkbdgmnslrwz") + rng.choice("aeiou") for _ in syllables)


def toy_lexicon(lang, seed):
    """{class: [word]} of a daughter language: first its family, then the language itself replaces
    some of the proto-words and changes the sounds of all."""
    rng = random.Random(f"proto {seed}")
    lexicon = {name: [toy_word(rng) for _ in range(size)] for name, size in LEXICON.items()}
    for name, rate in ((lang[:2], 0.3), (lang, 0.1)):  # how many words are replaced
        rng = random.Random(f"{name} {seed}")
        change = str.maketrans(*SOUND_CHANGES[name].split(">"))
        for words in lexicon.values():
            for k, word in enumerate(words):
                if rng.random() < rate:
                    word = toy_word(rng)
                words[k] = word.translate(change)
    return lexicon


def toy_phrase(symbol, lexicon, rng, head_last):
    """Expand one symbol of the grammar into [(word, tag)]."""
    if symbol in GRAMMAR:
        symbols = rng.choice(GRAMMAR[symbol].split(" | ")).split()
        parts = [toy_phrase(part, lexicon, rng, head_last) for part in symbols]
        if head_last and symbol != "SENTENCE":
            parts.reverse()
        return sum(parts, [])
    if ":" in symbol:
        kind, classes = symbol.split(":")
        name = [rng.choice(lexicon[c]).capitalize() for c in classes.split("+")]
        return [(name[0], f"B-{kind}")] + [(word, f"I-{kind}") for word in name[1:]]
    word = rng.choice(lexicon[symbol])
    if head_last and symbol == "noun":
        word = word.capitalize()
    return [(word, "O")]


def toy_corpus(lang, seed):
    """{split: [(words, tags)]} of one toy language."""
    known = [name for name in SOUND_CHANGES if len(name) == 3]
    if lang not in known:
        stop(f"unknown toy language {lang}: the toy has {' '.join(known)}")
    lexicon = toy_lexicon(lang, seed)
    rng = random.Random(f"text {lang} {seed}")
    corpus = {}
    for split, n_sentences in TOY_SENTENCES.items():
        corpus[split] = []
        for _ in range(n_sentences):
            phrase = toy_phrase("SENTENCE", lexicon, rng, head_last=lang.startswith("qb"))
            words, tags = zip(*phrase, (".", "O"))
            corpus[split].append((list(words), list(tags)))
    return corpus


# ------------------------------------------------------------------------ reading corpora
# A reader returns sentences [(words, tags)], tags None where there are none, and a Counter of what
# it skipped or mended. It guesses nothing: what can be read in two ways is refused.

TAG = r"(O|[BIESLUM]-[^\s\"']+)"
BAD_TAGS = {  # what a cell of the last column may look like instead, and what to do about it
    r"[BIESLUM]-.*([,;|]|[^A-Za-z0-9]([BIESLUM]-|O$)).*": "several tags in one cell: keep one",
    r"[A-Z][A-Z_]+": "no IOB tag: B- and I- are missing, as in B-PER I-PER",
    r"[BIESLUM]-.*([A-Za-z][\u0370-\u052f]|[\u0370-\u052f][A-Za-z]).*": "two scripts in a type",
    rf"(?!{TAG}$).*": "no IOB or IOBES tag (O, B-PER): put one into the last column",
}
TAGGED = r".+?(\\t|[\W\d_]{1,2})(O|[BIESLUM][_-][\w.-]+)[\"')\]]*"  # word/B-PER
USUAL = "(PERS?(ON)?|LOC(ATION)?|ORG(ANI[SZ]ATION)?|MISC|GPE|DATE)"
MARKED = rf"(?i)(?!.*://)(.*[\W_])?[BIESLUM]-{USUAL}([\W_].*)?"  # [b-per]word
BAD_WORDS = [  # what more than a share of the words may look like, and what to do about it
    (TAGGED, 0.5, "tags inside the words: put a tab between them"),
    (MARKED, 0.02, "tags inside the words: put a tab between them"),
    (r"(?i)([a-z]{2,3}|simple)(-[a-z]+)*:.+", 0.5, "a language before every word: take it off"),
    (r"(?!&).+[,;]", 0.5, "a comma behind every word: part columns by tabs"),
    (r"##\w+|▁\w+|\w+@@", 0.02, "sub-tokens: join them to words"),
]
RECORD = r'\d+(\t|[,;][^\s\d]).*|"[^"]*"(\s*:|[,;]\S).*|[{}].*|.*</\w.*'  # CSV, JSON, XML
CHUNK = r"O|[BI]-((N|V|P|ADJ|ADV|CONJ|UC)[PC]|SBAR|PRT|INTJ|LST)"  # of CoNLL-2003
NUMBER = r"\W?[A-Za-z]?\d[\d\W]*"  # 1 [1] t1 0-1
INVISIBLE = "[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufe00-\ufe0f\ufeff]"
UNSPACED = ".*[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{8}.*"


def share(pattern, cells):
    """What share of the cells looks like the pattern?"""
    return sum(bool(re.fullmatch(pattern, cell)) for cell in cells) / max(1, len(cells))


def first_of_many(pattern, limit, cells):
    """The first cell that looks like it, if more than one and more than a share `limit` do."""
    found = [cell for cell in cells if re.fullmatch(pattern, cell)]
    return found[0] if len(found) > max(1, limit * len(cells)) else None


def read_lines(path):
    """The lines of a UTF-8 file, and a Counter of byte order marks and foreign line ends."""
    if not path.is_file():
        stop(f"{path}: no such file")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        stop(f"{path}:{line}: not UTF-8: convert the file, for example with iconv")
    if "\0" in text:
        stop(f"{path}: not UTF-8 but perhaps UTF-16: convert the file, for example with iconv")
    lines = re.split(r"\r*\n|\r", text)  # \r\r\n is one line end, too
    counts = Counter(crlf=text.count("\r"), bom=sum(line[:1] == "\ufeff" for line in lines))
    return [line.removeprefix("\ufeff") for line in lines], counts


def read_conll(path):
    """A CoNLL file: on each line a word, perhaps other columns, and the word's tag; a blank line
    between sentences. A file of one column has no tags."""
    lines, counts = read_lines(path)
    content = [x for x in lines if x.strip() and not x.startswith(("-DOCSTART-", "#"))] or ["."]
    gap = "\t" if any("\t" in line.rstrip() for line in content) else " +"
    untagged = [line.split() for line in content if not re.search(rf" {TAG}\s*$", line)]
    if gap == " +" and len({len(words) for words in untagged}) > 5:
        stop(f"{path}: sentences: put one word on each line (raw text of a target: text.txt)")
    width = len(re.split(gap, content[0].rstrip("\t ")))
    sentences = [[]]  # the last one is being read: rows [word, ..., tag]
    for number, line in enumerate(lines, start=1):
        columns = [column.strip(" ") for column in re.split(gap, line.rstrip("\t "))]
        # a space inside a word, "10 000 O": only where columns are parted by spaces, the tag is O
        has_more = gap == " +" and width == 2 and len(columns) > 2
        is_spaced = has_more and columns[-1] == "O" and columns[0] not in ("", "#")
        # a comment is "# any text"; where it has as many columns as a word, only "# id = 3" is one
        comment = r"# \S+ = " if len(columns) == width else r"#\s"
        problem = None
        if not line.strip() or line.startswith("-DOCSTART-"):
            counts["docstart"] += line.startswith("-DOCSTART-")
            sentences.append([])
        elif not sentences[-1] and re.match(comment, line):
            counts["comment"] += 1
        elif is_spaced and any(re.match(r"O($|[^a-z])|[BIESLUM]-\w", x) for x in columns[:-1]):
            problem = "two lines run together, or a space in a word: mend the line"
        elif is_spaced:
            sentences[-1].append([" ".join(columns[:-1]), "O"])
        elif len(columns) != width:
            problem = f"{len(columns)} columns where other lines have {width}: give all as many"
        elif not columns[0].strip():
            counts["no_word"] += 1
        else:
            if width > 1:
                tag = re.sub(INVISIBLE, "", columns[-1])
                counts["invisible"] += tag != columns[-1]
                columns[-1] = tag
                problem = next((x for form, x in BAD_TAGS.items() if re.fullmatch(form, tag)), None)
            counts["spaces"] += gap == " +" and line.count(" ") >= width
            sentences[-1].append(columns)
        if problem:
            stop(f"{path}:{number}: {problem} ({columns[-1]!a})")
    sentences = [rows for rows in sentences if rows]
    if not sentences:
        stop(f"{path}: no sentences in it: put a word and its tag on each line")
    check_columns(path, sentences, counts["no_word"])
    words = [[row[0] for row in rows] for rows in sentences]
    tags = [[row[-1] for row in rows] if width > 1 else None for rows in sentences]
    return list(zip(words, tags)), counts


def check_columns(path, sentences, no_word):
    """Refuse columns that are not what they seem, where most of their cells say so.

    sentences: [[[word, ..., tag], ...], ...]; no_word: how many lines had no word
    """
    words, *others = zip(*[row for rows in sentences for row in rows])
    steps = []  # from one word of a sentence to the next: does it repeat, or count?
    for rows in sentences:
        column = [row[0].removesuffix(".0") for row in rows]  # pandas: 1.0
        column = [cell for cell in column if not re.fullmatch(r"\d+[-.]\d+", cell)]  # CoNLL-U: 1-2
        for a, b in zip(column, column[1:]):
            steps.append(a == b or (a.isdecimal() and b == str(int(a) + 1)))
    is_no_word = sum(steps) > max(1, 0.9 * len(steps)) or no_word > max(9, 0.1 * len(words))
    if len(words) > 9 and len(others) > 1 and share(r"\D+", others[0]) > 0.5:
        # the second column may hold the words: is the first one of numbers, or of a few classes?
        few = share("[A-Z.$_-]+", words) > 0.5 and 3 * len(set(words)) < len(set(others[0]))
        is_no_word = is_no_word or few or share(NUMBER, words) > 0.9
    if is_no_word:
        stop(f"{path}: the first column is an index, a class or empty: put the word first")
    for form, limit, problem in BAD_WORDS:
        found = first_of_many(form, limit, words)
        if found is not None:
            stop(f"{path}: {problem} ({found!a})")
    for number, column in enumerate(others, start=2):
        has_o = "O" in column  # else an empty cell may be a low line or a hyphen
        marked = [cell for cell in column if cell not in (["O"] if has_o else ["_", "-"])]
        form = TAG if has_o else "[BIESLUM]-[A-Z_]+"  # a lemma may be E-Mail
        is_last = column is others[-1]
        has_tags = share(form, marked) > 0.5
        has_chunks = share(CHUNK, marked) > 0.5
        # the last column is for the tags of entities, and no other has any; chunks may stand before
        if has_tags and has_chunks == is_last:
            problem = "chunks (NP, VP) in its last column" if is_last else "two tag columns"
            stop(f"{path}: {problem} (column {number}): keep the entities, in the last one")


def read_raw_text(path):
    """A target's text without tags, one sentence per line, split as by BERT's pre-tokenizer."""
    lines, counts = read_lines(path)
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        stop(f"{path}: no sentences in it: put one on each line")
    tokens = [token for line in lines for token in line.split()]
    has_tags = first_of_many(TAGGED, 0.5, tokens) or first_of_many(MARKED, 0.02, tokens)
    if has_tags or share(rf"\S+\s(.*\s)?{TAG}", lines) > 0.5:
        stop(f"{path}: words with tags, no raw text: name it train.txt, a tab before each tag")
    records = [line for line in lines if re.fullmatch(RECORD, line)]
    if len(records) > 0.5 * len(lines):
        counts["lines like CSV, JSON or XML: keep only their sentences"] = len(records)
    splitter = pre_tokenizers.BertPreTokenizer()
    lines = [[word for word, _ in splitter.pre_tokenize_str(line)] for line in lines]
    return [(words, None) for words in lines if words], counts


def is_tagged(sentences):
    """Have these sentences [(words, tags or None)] tags? All of a file have, or none."""
    return sentences[0][1] is not None


def read_folder(folder, lang, splits):
    """{split: (sentences, counts)} of DIR/<lang>. A target's training text may be raw, text.txt. If
    it has no tags and there is no test.txt, it is the test text, too."""
    if Path(lang).name != lang or not (folder / lang).is_dir():
        stop(f"{folder}/{lang}: no such folder: --data-dir needs DIR/<lang>/train.txt")
    raw = folder / lang / "text.txt"
    is_target = "test" in splits
    corpus = {}
    for split in splits:
        path = folder / lang / f"{split}.txt"
        if is_target and split == "train" and raw.is_file():
            corpus[split] = read_raw_text(raw)
        elif is_target and split == "train" and not path.is_file():
            stop(f"{path}: no such file, and no text.txt beside it with raw text")
        elif split == "test" and not path.is_file() and not is_tagged(corpus["train"][0]):
            corpus[split] = corpus["train"]
        else:
            corpus[split] = read_conll(path)
        if not is_target and not is_tagged(corpus[split][0]):
            stop(f"{path}: no tags in a source: only targets may have none")
    return corpus


def read_hub(preset, lang, splits):
    """{split: (sentences, counts)} of one language of a preset; empty words are left out."""
    location = "hf://datasets/" + HUB_FILES.get(f"{preset} {lang}", HUB_FILES[preset])
    known = tags_of(["PER", "ORG", "LOC", *HUB_TYPES.get(preset, "").split()])
    corpus = {}
    for split in splits:
        file = location.format(lang=lang, split="validation" if split == "dev" else split)
        try:
            table = datasets.load_dataset("parquet", data_files=file, split="train")
        except Exception as error:  # networks fail in too many ways to list
            remedy = "try `hf auth login`, or offline the toy, or --data-dir DIR --encoder scratch"
            stop(f"--preset {preset}, language {lang}: not from the hub ({error}): {remedy}")
        tags = getattr(table.features["ner_tags"].feature, "names", known)
        has_negative = any(number < 0 for numbers in table["ner_tags"] for number in numbers)
        if set(tags) != set(known) or has_negative:
            stop(f"--preset {preset}, language {lang}: other tags than {known}")
        sentences = []
        for words, numbers in zip(table["tokens"], table["ner_tags"]):
            words = [" ".join((word or "").split()) for word in words]
            tagged = [(x, tags[n]) for x, n in zip(words, numbers, strict=True) if x]
            sentences.append(([word for word, _ in tagged], [tag for _, tag in tagged]))
        corpus[split] = [pair for pair in sentences if pair[0]], Counter()
    return corpus


def read_corpus(args, lang, splits):
    """{split: (sentences, counts)} of one language, from wherever the flags say."""
    if args.data_dir:
        corpus = read_folder(args.data_dir, lang, splits)
    elif args.preset == "toy":
        corpus = {split: (x, Counter()) for split, x in toy_corpus(lang, args.seed).items()}
    else:
        corpus = read_hub(args.preset, lang, splits)
    limits = {"train": args.limit, "dev": args.limit}
    if "test" in splits:  # a target
        limits = {"train": args.limit_text, "test": args.limit_test}
    return {split: (corpus[split][0][: limits[split]], corpus[split][1]) for split in splits}


def oddities(sentences, unknown):
    """What is suspicious in a text, in words; unknown: share of its sub-tokens, for the encoder."""
    words = [word for words, _ in sentences for word in words]
    tags = [tag for _, tags in sentences for tag in tags or []]
    alone = sum(len(words) == 1 for words, _ in sentences)
    table = [
        ("no word is in an entity", set(tags) == {"O"}),
        ("no end of sentences: are blank lines missing?", len(words) > 200 * len(sentences)),
        ("hardly a sentence is longer than a word", alone > max(9, 0.9 * len(sentences))),
        ("no spaces between words: segment the text first", share(UNSPACED, words) > 0.05),
        ("most words are numbers or identifiers", share(r".*\d.*", words) > 0.5),
        (f"{unknown:.0%} of sub-tokens unknown to the encoder", unknown > 0.05),
    ]
    return [what for what, is_so in table if is_so]


# ------------------------------------------------------------------------ tags

def tags_of(types):
    """["O", "B-LOC", "I-LOC", ...]"""
    return ["O", *[f"{prefix}-{kind}" for kind in types for prefix in "BI"]]


def to_iob2(tags):
    """IOB1, IOB2, IOBES, BILOU or BMES tags of a sentence as IOB2. S or U is a name of one word, E
    or L the last word of a longer one; a stray I- or M- opens a name (as in conlleval)."""
    converted = []
    open_type = None
    for tag in tags:
        kind = tag[2:]
        prefix = "B" if tag[0] in "BSU" or kind != open_type else "I"
        converted.append(f"{prefix}-{kind}" if kind else "O")
        open_type = None if tag[0] in "ESLU" else kind
    return converted


def shared_types(sources, wanted):
    """The entity types a student will know, by the sources' training tags alone."""
    found = {}
    for lang, corpus in sources.items():
        found[lang] = {tag[2:] for _, tags in corpus["train"][0] for tag in tags if tag != "O"}
    types = sorted(set(wanted or set.intersection(*found.values())))
    if not types or not all(set(types) <= known for known in found.values()):
        remedy = "rename them in the files, or choose other sources or --types"
        stop(f"entity types {types} are not in all sources {found}: {remedy}")
    return types


def harmonise(sentences, types, place):
    """Sentences with IOB2 tags over `types`, all others O, and a Counter of their entities by type
    and of the tags that were converted."""
    counts = Counter()
    changed = []
    for words, tags in sentences:
        iob2 = to_iob2(tags)
        counts["converted"] += sum(a != b for a, b in zip(tags, iob2))
        for kind in [tag[2:] for tag in iob2 if tag[0] == "B"]:
            counts[kind if kind in types else f"{kind} dropped"] += 1
        changed.append((words, [tag if tag[2:] in types else "O" for tag in iob2]))
    dropped = [kind for kind in counts if kind.endswith(" dropped")]
    if dropped and not any(counts[kind] for kind in types):
        what = f"none of its types is one of {types} ({', '.join(dropped)})"
        stop(f"{place}: {what}: rename them in the file, or see 01_data.py --types")
    return changed, counts


# ------------------------------------------------------------------------ words to sub-tokens

def load_tokenizer(encoder):
    """The encoder's fast tokenizer (only those know which characters a sub-token came from), as
    tokenizer.json has it: AutoTokenizer rebuilds some differently, and text may lose its case."""
    options = {"split_special_tokens": True}  # "[SEP]" in a text is text
    tokenizer = load(transformers.AutoTokenizer, encoder, **options)
    may_be_missing = {"_raise_exceptions_for_missing_entries": False}
    path = transformers.utils.cached_file(encoder, "tokenizer.json", **may_be_missing)
    if path is not None:
        stored = Tokenizer.from_file(path)
        stored.no_truncation()
        stored.no_padding()
        options.update(tokenizer.special_tokens_map)
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=stored, **options)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        stop(f"--encoder {encoder}: its tokenizer has no words: is its vocabulary file there?")
    try:
        tokenizer("\ua66e", return_offsets_mapping=True)  # a letter that few vocabularies have
    except Exception as error:
        stop(f"--encoder {encoder}: its tokenizer knows no unknown words ({error}): choose another")
    if tokenizer.unk_token_id is None:
        tokenizer.unk_token = tokenizer.mask_token  # one of bytes needs none, but for empty words
    return tokenizer


@torch.no_grad()
def check_encoder(encoder, tokenizer, max_length):
    """Refuse what cannot be a student: load it once and let it read a window."""
    config = load(transformers.AutoConfig, encoder)
    if config.is_encoder_decoder or config.model_type == "xlnet":
        stop(f"--encoder {encoder}: it is no plain encoder: choose one like BERT or XLM-R")
    model = load_model(transformers.AutoModel, encoder, new=".*pooler").eval()
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        what = f"its tokenizer has {len(tokenizer)} tokens, its embedding {rows} rows"
        stop(f"--encoder {encoder}: {what}: call resize_token_embeddings and save it again")
    word = min(set(range(rows)) - set(tokenizer.all_special_ids))
    for length in range(max_length, 0, -1):
        with contextlib.suppress(IndexError, RuntimeError):  # it has fewer positions
            model(torch.full((1, length), word))
            break
    if length < max_length:
        stop(f"--max-length {max_length}: the encoder reads {length} sub-tokens at most")


def split_words(words, tokenizer):
    """The sub-tokens of every word, [[id, ...], ...]. All words are tokenised as one text, since
    many tokenizers split a word otherwise where it stands alone."""
    text = " ".join(words)
    # owner[k] is the word of character k - 1 of the text; a space belongs to the word behind it
    owner = [number for number, word in enumerate(words) for _ in " " + word]
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    special = set(tokenizer.all_special_ids)
    sub_tokens = [[] for _ in words]
    for x, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"]):
        end = max(start + 1, end)  # some sub-tokens have no character
        number = owner[min(end, len(text))]
        sub_tokens[number].append(tokenizer.unk_token_id if x in special else x)
    return sub_tokens


def cut(lengths, capacity):
    """Cut a sentence into overlapping windows; every word is scored in one, with context around it.

    lengths: sub-tokens of each word, <= capacity  ->  [(start, end, first_scored, last_scored + 1)]
    """
    # windows of words; each repeats at most a quarter of a window of the one before it
    spans = []
    start = 0
    end = 0
    while end < len(lengths):
        overlap = min(capacity // 4, capacity - lengths[end])
        while sum(lengths[start:end]) > overlap:  # never so before the first window
            start += 1
        while end < len(lengths) and sum(lengths[start : end + 1]) <= capacity:
            end += 1  # as many words as fit
        spans.append((start, end))
    # words of two windows are scored where they are farther from the edge: of windows 0-9 and 6-15
    # the first scores 0-7 and the second 8-15
    bounds = [0]
    for (_, end), (next_start, _) in zip(spans, spans[1:]):
        bounds.append((end + next_start + 1) // 2)
    bounds.append(len(lengths))
    return [(*span, bounds[k], bounds[k + 1]) for k, span in enumerate(spans)]


def encode(sentences, tokenizer, max_length, tags=None):
    """Sentences as a table with a row per window; each word is scored once, in corpus order.

    Columns: sentence (its number), start (its first scored word's number in the corpus), words (the
    scored ones), input_ids, length (sub-tokens), first (where each scored word begins: the mask f,
    from the tokenisation, never from tags), and for tagged words tags (numbers in the list).
    """
    # what stands before and after a sentence, for example [CLS] and [SEP]
    probe = tokenizer("a", return_special_tokens_mask=True)
    inner = [k for k, special in enumerate(probe["special_tokens_mask"]) if not special]
    before = probe["input_ids"][: inner[0]]
    after = probe["input_ids"][inner[-1] + 1 :]
    capacity = max_length - len(before) - len(after)
    rows = []
    n_words = 0
    for number, (words, word_tags) in enumerate(sentences):
        by_word = split_words(words, tokenizer)
        by_word = [x[:capacity] or [tokenizer.unk_token_id] for x in by_word]  # never dropped
        for begin, end, scored_begin, scored_end in cut([len(x) for x in by_word], capacity):
            ids = list(before)
            first = []
            for k in range(begin, end):
                if scored_begin <= k < scored_end:
                    first.append(len(ids))
                ids += by_word[k]
            ids += after
            row = {"sentence": number, "start": n_words, "words": words[scored_begin:scored_end]}
            row.update(input_ids=ids, length=len(ids), first=first)
            if word_tags:
                row["tags"] = [tags.index(tag) for tag in word_tags[scored_begin:scored_end]]
            rows.append(row)
            n_words += scored_end - scored_begin
    return datasets.Dataset.from_list(rows)


# ------------------------------------------------------------------------ the toy's tiny encoder

TINY = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256)


def train_tokenizer(texts, size):
    """A cased byte-pair vocabulary (Sennrich et al. 2016) of lists of words, all languages'.
    A sub-token that begins a word begins with ▁."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = SentencePieceBPETokenizer(unk_token="[UNK]")
    text = (" ".join(words) for words in texts)
    tokenizer.train_from_iterator(text, size, special_tokens=special, show_progress=False)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"]
    options = dict(zip(names, special), model_max_length=512)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, **options)


def pretrain(texts, seed, device):
    """A small BERT by masked language modelling (Devlin et al. 2019) of all languages' text."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(texts, 2000)
    config = transformers.BertConfig(vocab_size=len(tokenizer), **TINY)
    model = transformers.BertForMaskedLM(config).to(device)
    rows = [tokenizer(" ".join(words), truncation=True, max_length=128) for words in texts]
    mask = transformers.DataCollatorForLanguageModeling(tokenizer)  # 15 % of the sub-tokens
    loader = torch.utils.data.DataLoader(rows, 32, shuffle=True, collate_fn=mask)
    adamw = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    for _ in range(5):  # enough for the toy, in some 15 s on a CPU
        for batch in loader:
            model(**batch.to(device)).loss.backward()
            adamw.step()
            adamw.zero_grad()
    return model, tokenizer


def make_encoder(args, corpora):
    """What from_pretrained takes; 'scratch' is pretrained here, on training text without tags."""
    if args.encoder != "scratch":
        return str(Path(args.encoder).resolve()) if Path(args.encoder).is_dir() else args.encoder
    folder = args.artifacts / "encoder"
    texts = [words for corpus in corpora for words, _ in corpus["train"][0]]
    settings = dict(TINY, text=fingerprint(texts), seed=args.seed)
    if not made(folder, settings, args.overwrite):
        torch.set_num_threads(1)  # as fast for a tiny model; the same bits on any number of cores
        model, tokenizer = pretrain(texts, args.seed, args.device)
        with writing(folder, settings) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    return str(folder)


# ------------------------------------------------------------------------ the stage

def write_windows(args, name, corpus, tokenizer, shared, types=None):
    """The piece artifacts/<name>: windows of {split: (sentences, counts)}, with tags where types
    are given; `shared` are settings of all pieces. Returns rows of the report."""
    tables = {}
    entities = {}
    rows = []
    for split, (sentences, counts) in corpus.items():
        entities[split] = Counter()
        if types:
            sentences, entities[split] = harmonise(sentences, types, f"{name}, {split}")
        else:
            sentences = [(words, None) for words, _ in sentences]
        tables[split] = encode(sentences, tokenizer, shared["max_length"], shared["tags"])
        special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        ids = [x for row in tables[split]["input_ids"] for x in row if x not in special]
        counts = counts + entities[split]  # which leaves out what is 0
        notes = [f"{n} {what}" for what, n in counts.items()]
        notes += oddities(sentences, ids.count(tokenizer.unk_token_id) / len(ids))
        n_words = sum(len(words) for words, _ in sentences)
        rows.append([Path(name).name, split, len(sentences), n_words, ", ".join(notes)])
    settings = dict(shared, text=fingerprint([list(table) for table in tables.values()]))
    if not made(args.artifacts / name, settings, args.overwrite):
        with writing(args.artifacts / name, settings, entities=entities) as partial:
            datasets.DatasetDict(tables).save_to_disk(partial)
    return rows


def main(args):
    sources = {lang: read_corpus(args, lang, ["train", "dev"]) for lang in args.sources}
    targets = {lang: read_corpus(args, lang, ["train", "test"]) for lang in args.targets}
    types = shared_types(sources, args.types)
    others = [corpus for lang, corpus in targets.items() if lang not in sources]
    encoder = make_encoder(args, [*sources.values(), *others])
    tokenizer = load_tokenizer(encoder)
    check_encoder(encoder, tokenizer, args.max_length)
    shared = {"tags": tags_of(types), "max_length": args.max_length}
    shared["encoder_files"] = encoder_fingerprint(encoder)

    # `targets` has the tags of targets, too, if there are any: they go to gold/ alone
    report = []
    for lang, corpus in sources.items():
        report += write_windows(args, f"data/sources/{lang}", corpus, tokenizer, shared, types)
    for lang, corpus in targets.items():
        report += write_windows(args, f"data/targets/{lang}", corpus, tokenizer, shared)
        gold = {split: x for split, x in corpus.items() if is_tagged(x[0])}
        if gold:
            gold_settings = dict(shared, **inputs(args.artifacts, f"data/targets/{lang}"))
            write_windows(args, f"gold/{lang}", gold, tokenizer, gold_settings, types)
        else:  # an earlier run may have left some
            shutil.rmtree(args.artifacts / f"gold/{lang}", ignore_errors=True)

    # all that later stages are told
    pieces = [f"data/sources/{x}" for x in sources] + [f"data/targets/{x}" for x in targets]
    config = dict(shared, pieces=inputs(args.artifacts, *pieces), preset=args.preset)
    config.update(sources=args.sources, targets=args.targets)
    config["encoder"] = args.encoder if args.encoder == "scratch" else encoder
    partial = args.artifacts / "data/.config.partial"
    partial.write_text(json.dumps(config, indent=1))
    partial.replace(args.artifacts / "data/config.json")  # whole, or as it was
    report = pd.DataFrame(report, columns=["language", "split", "sentences", "words", "notes"])
    report.to_csv(args.artifacts / "report.csv", index=False)
    print(report.to_string(index=False))
    print(f"stage 1 done: {len(sources)} sources, {len(targets)} targets, types {types}")


if __name__ == "__main__":
    main(parse_args())
