"""Stage 1: read corpora, check and convert them, cut them into windows of sub-tokens.

    python 01_data.py                                                        synthetic languages
    python 01_data.py --preset wikiann --sources en de nl --targets sw yo    from the hub
    python 01_data.py --data-dir DIR --sources en --targets sw --encoder xlm-roberta-base

Reads   the toy generator, hub data sets, or CoNLL files DIR/<lang>/{train,dev,test}.txt
Writes  artifacts/data/config.json                  what later stages need to know of the flags
        artifacts/data/sources/<lang>/{train,dev}   windows with tags
        artifacts/data/targets/<lang>/{train,test}  windows WITHOUT tags
        artifacts/gold/<lang>/{train,test}          the targets' tags, for stage 4
        artifacts/encoder/, artifacts/report.csv    the toy's encoder; what was odd in the text

The last two sections serve all stages: error messages, and how a piece of artifacts/ is made and
read. Names used above their definition (make, explained, UserError) are from there.
"""

import argparse
import bisect
import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import socket
import sys
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")  # or it keeps every shape it met

import datasets
import huggingface_hub
import pandas as pd
import psutil
import torch
import transformers
from safetensors import SafetensorError
from tokenizers import SentencePieceBPETokenizer, pre_tokenizers, processors

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
datasets.disable_progress_bars()
for library in (datasets, huggingface_hub):  # silences retries; what fails for good is raised
    library.utils.logging.set_verbosity(50)

MBERT = "bert-base-multilingual-cased"
PRESETS = {  # sources and targets where no flag names them
    "toy": (["qaa", "qab", "qba", "qbb"], ["qac", "qbc"]),
    "wikiann": (["en", "de", "nl", "ar"], ["sw", "yo", "am", "tl", "cy"]),
    "masakhaner": (["hau", "swa", "yor"], ["kin", "pcm", "ibo", "xho"]),
    "conll": (["en"], ["es", "nl"]),
}
HUB_FILES = {  # those with @ are the hub's own Parquet copies
    "wikiann": "unimelb-nlp/wikiann/{}/{}-00000-of-00001.parquet",
    "masakhaner": "masakhane/masakhaner2@refs%2Fconvert%2Fparquet/{}/{}/0000.parquet",
    "conll": "eriktks/conll2002@refs%2Fconvert%2Fparquet/{}/{}/0000.parquet",
    "conll en": "eriktks/conll2003@refs%2Fconvert%2Fparquet/conll2003/{1}/0000.parquet",
}
HUB_TYPES = {"masakhaner": ["DATE"], "conll": ["MISC"]}  # beside PER, ORG and LOC
ENCODER_REMEDY = "name a folder or a hub model within reach; remove artifacts/encoder if damaged"
TOY_SENTENCES = {"train": 600, "dev": 100, "test": 300}
TINY = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256)
TINY_VOCABULARY, TINY_EPOCHS, TINY_LR = 2000, 5, 1e-3  # enough for the toy, in some 15 s on a CPU


def parse_args(argv=None):
    p = Parser(description=__doc__.splitlines()[0])
    where = p.add_mutually_exclusive_group()
    where.add_argument("--preset", choices=PRESETS, help="default: toy (offline); others download")
    where.add_argument("--data-dir", type=Path, help="DIR/<lang>/{train,dev,test}.txt")
    p.add_argument("--sources", nargs="+", metavar="LANG", help="languages with labels")
    p.add_argument("--targets", nargs="+", metavar="LANG", help="languages to tag; sources may be")
    p.add_argument("--types", nargs="+", metavar="TYPE", help="default: those that sources share")
    p.add_argument("--limit", type=at_least(1), help="first N sentences, or lines of text.txt")
    p.add_argument("--encoder", help=f"folder or hub name; default {MBERT}, for the toy 'scratch'")
    p.add_argument("--max-length", type=at_least(8), default=128, help="sub-tokens a window (TSL)")
    p.add_argument("--seed", type=at_least(0), default=0, help="of the toy and its encoder")
    add_common_flags(p)
    args = p.parse_args(argv)
    args.preset = args.preset or ("own" if args.data_dir else "toy")
    args.encoder = args.encoder or ("scratch" if args.preset == "toy" else MBERT)
    return args


# ------------------------------------------------------------------------ toy languages
# Two families of three languages. A proto-lexicon splits by regular sound changes. Family qa is
# head first (verb before object, case word before name); qb mirrors that and capitalises nouns.

SOUND_CHANGES = {  # ("pkw", "fxv"): p becomes f, k becomes x, w becomes v
    "qa": ("pkw", "fxv"), "qaa": ("e", "i"), "qab": ("dz", "tc"), "qac": ("x", "h"),
    "qb": ("bgsu", "vhzo"), "qba": ("r", "l"), "qbb": ("m", "n"), "qbc": ("zo", "ca"),
}
LEXICON = {
    "noun": 60, "verb": 20, "adjective": 20, "title": 4, "in": 2, "from": 2, "company": 5,
    "meet": 4, "the": 2, "first": 60, "last": 60, "town": 60, "brand": 50,
}
# Capitals are rules, lower case is a word of that class, TYPE:class+class a name; twice is twice as
# likely. Only its neighbours tell a name's type: towns and firms are named after people at times.
GRAMMAR = {
    "SENTENCE": ["WHO ACT"], "WHO": ["THING", "PERSON", "PERSON", "FIRM"],
    "ACT": ["DEED", "DEED PLACE"], "DEED": ["verb THING", "verb FIRM", "meet PERSON"],
    "THING": ["the noun"] * 2 + ["the adjective noun"], "PERSON": ["title NAME"] * 2 + ["NAME"],
    "NAME": ["PER:first+last", "PER:first+last", "PER:first", "PER:last"],
    "PLACE": ["in LOC:town", "in LOC:town", "in LOC:town", "in LOC:last"],
    "FIRM": ["company ORG:brand", "company ORG:town", "from ORG:brand", "from ORG:last"],
}


def toy_lexicon(lang, seed):
    """{class: [word]} of a daughter language: proto-words, replaced in part, then sound changes."""

    def invent(rng):
        syllables = range(rng.choice([2, 2, 3]))
        return "".join(rng.choice("ptkbdgmnslrwz") + rng.choice("aeiou") for _ in syllables)

    rng = random.Random(f"proto {seed}")
    lexicon = {name: [invent(rng) for _ in range(size)] for name, size in LEXICON.items()}
    for name, share in ((lang[:2], 0.3), (lang, 0.1)):  # of words new in a family, then in itself
        rng, change = random.Random(f"{name} {seed}"), SOUND_CHANGES[name]
        for words in lexicon.values():
            for k, word in enumerate(words):
                word = invent(rng) if rng.random() < share else word
                words[k] = word.translate(str.maketrans(*change))
    return lexicon


def toy_phrase(symbol, lexicon, rng, head_last):
    """Expand one grammar symbol into [(word, tag)]."""
    if symbol in GRAMMAR:
        parts = rng.choice(GRAMMAR[symbol]).split()
        parts = [toy_phrase(part, lexicon, rng, head_last) for part in parts]
        return sum(parts[::-1] if head_last and symbol != "SENTENCE" else parts, [])
    if ":" in symbol:
        kind, classes = symbol.split(":")
        name = [rng.choice(lexicon[c]).capitalize() for c in classes.split("+")]
        return [(word, ("I-" if k else "B-") + kind) for k, word in enumerate(name)]
    word = rng.choice(lexicon[symbol])
    return [(word.capitalize() if head_last and symbol == "noun" else word, "O")]


def toy_corpus(lang, seed):
    """{split: [(words, tags)]} of one synthetic language."""
    if lang not in (known := [name for name in SOUND_CHANGES if len(name) == 3]):
        raise UserError(f"unknown toy language {lang}: the toy has {' '.join(known)}")
    lexicon, rng = toy_lexicon(lang, seed), random.Random(f"text {lang} {seed}")

    def sentence():
        phrase = toy_phrase("SENTENCE", lexicon, rng, head_last=lang.startswith("qb"))
        return tuple(map(list, zip(*phrase, (".", "O"))))

    return {split: [sentence() for _ in range(n)] for split, n in TOY_SENTENCES.items()}


# ------------------------------------------------------------------------ reading corpora
# Every reader returns sentences [(words, tags)], tags None where there are none, and a Counter of
# what it skipped. It guesses nothing: what is not plain is refused, with its line.

TAG = re.compile(r"O|[BIESLUM]-\S+")
CHUNK = re.compile(r"O|[BI]-(NP|VP|PP|ADJP|ADVP|SBAR|PRT|CONJP|INTJ|LST|UCP)")  # of CoNLL-2003
GLUED = re.compile(r".+([,;|\u00a0])(O|[BIESLUM]-\w+)")  # a tag that no column parts from its word
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufe00-\ufe0f\ufeff]")
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{8}")


def read_text(path):
    """The lines of a UTF-8 file, and a Counter of byte order marks and foreign line ends."""
    if not path.is_file():
        raise UserError(f"{path}: no such file (text.txt serves only a target that is no source)")
    try:
        text = (raw := path.read_bytes()).decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8: convert the file, e.g. with iconv") from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    counts = Counter(crlf=text.count("\r"), bom=sum(line[:1] == "\ufeff" for line in lines))
    return [line.removeprefix("\ufeff") for line in lines], counts


def read_conll(path):
    """Read a CoNLL file: a word in the first column, its tag in the last or none at all, as many
    columns on every line, a blank line between sentences."""
    lines, counts = read_text(path)
    content = [x for x in lines if x.strip() and not x.startswith("-DOCSTART-")] or [""]
    text = [line for line in content if line[:1] != "#"] or content
    gap = "\t" if any("\t" in line.rstrip() for line in text) else " +"
    width, sentences = len(re.split(gap, text[0].rstrip("\t "))), [[]]
    for number, line in enumerate(lines, start=1):
        columns = [column.strip(" ") for column in re.split(gap, line.rstrip("\t "))]
        comment = r"# \S+ = " if len(columns) == width else r"#\s"
        if gap == " +" and len(columns) > width == 2 and columns[-1] == "O" and columns[0] != "#":
            columns = [" ".join(columns[:-1]), "O"]  # a space inside a word that is no name
        tag, problem = INVISIBLE.sub("", columns[-1]) if width > 1 else "O", ""
        if not line.strip() or line.startswith("-DOCSTART-"):
            counts["docstart"] += bool(line.strip())
            sentences.append([])
        elif not sentences[-1] and re.match(comment, line):
            counts["comment"] += 1
        elif len(columns) != width:
            problem = f"{len(columns)} columns where other lines have {width}: give all as many"
        elif not columns[0].strip():
            counts["no_word"] += 1
        elif not TAG.fullmatch(tag):
            problem = f"{tag!a} is no IOB or IOBES tag (O, B-PER): put one into the last column"
        else:
            counts["invisible"] += width > 1 and tag != columns[-1]
            counts["spaces"] += gap == " +" and line.count(" ") >= width
            sentences[-1].append((columns[0], tag, columns[1:-1]))
        if problem:
            raise UserError(f"{path}:{number}: {problem}")
    sentences = [list(zip(*rows)) for rows in sentences if rows]
    if not sentences:
        raise UserError(f"{path}: no sentences in it: put a word and its tag on each line")
    check_columns(path, sentences, width > 1)
    return [(list(w), list(tags) if width > 1 else None) for w, tags, _ in sentences], counts


def check_columns(path, sentences, tagged):
    """Refuse an index before the words, other tags between word and tag, tags inside the words."""

    def is_index(words):
        numbers = [word for word in words if not re.fullmatch(r"\d+[-.]\d+", word)]  # not "1-2"
        return numbers in [[str(n + first) for n in range(len(numbers))] for first in (0, 1)]

    def is_all(form, column):
        return set(column) != {"O"} and all(map(form.fullmatch, column))

    words, tags, between = (list(itertools.chain(*column)) for column in zip(*sentences))
    problem, glued = "", list(filter(None, map(GLUED.fullmatch, words)))
    prefix = re.match(r"([a-z]{2,3}(-[a-z]+)*:)?", words[0])[0]
    if prefix and all(word.startswith(prefix) for word in words):
        problem = f"{prefix!r} before every word: take it off (sed 's/^{prefix}//')"
    if tagged and len(words) > len(sentences) and all(is_index(w) for w, _, _ in sentences):
        problem = "the first column is an index: put the word first"
    for number, column in enumerate(zip(*between), start=2):
        if is_all(TAG, column) and not is_all(CHUNK, column):
            problem = f"two tag columns, column {number} and the last: keep one, the last"
    if is_all(CHUNK, tags):
        problem = "its last column has chunks (NP, VP): put entities there"
    if not tagged and len(glued) > len(words) / 2:
        problem = f"tags behind {glued[0][1]!a} inside the words ({glued[0][0]!r}): use a tab"
    if problem:
        raise UserError(f"{path}: {problem}")


def read_folder(folder, lang, splits):
    """{split: (sentences, counts)} of DIR/<lang>; text.txt is a target's raw text, a sentence a
    line, its words as BERT's pre-tokenizer splits them."""
    if Path(lang).name != lang or not (folder / lang).is_dir():
        raise UserError(f"{folder}/{lang}: no such folder: --data-dir needs DIR/<lang>/train.txt")
    raw, read, words_of = folder / lang / "text.txt", {}, pre_tokenizers.BertPreTokenizer()
    for split in splits:
        path = raw.with_name(f"{split}.txt")
        if "dev" in splits or not raw.is_file() or (split == "test" and path.is_file()):
            read[split] = read_conll(path)
        else:
            lines, counts = read_text(raw)
            lines = [[word for word, _ in words_of.pre_tokenize_str(line)] for line in lines]
            read[split] = [(words, None) for words in lines if words], counts
    return read


def read_hub(preset, lang, splits):
    """{split: (sentences, counts)} of one language of a hub preset; empty words are left out."""
    files = "hf://datasets/" + HUB_FILES.get(f"{preset} {lang}", HUB_FILES[preset])
    files = {x: files.format(lang, {"dev": "validation"}.get(x, x)) for x in splits}
    tags = tags_of(["PER", "ORG", "LOC", *HUB_TYPES.get(preset, [])])
    remedy = "try `hf auth login`, or offline the toy, or --data-dir DIR --encoder scratch"
    with explained(f"--preset {preset}, language {lang}: cannot load it from the hub", remedy):
        read = {split: ([], Counter()) for split in splits}
        for split, table in datasets.load_dataset("parquet", data_files=files).items():
            names = getattr(table.features["ner_tags"].feature, "names", tags)
            if changed := {*names} ^ {*tags}:
                raise ValueError(f"tags have changed: {sorted(changed)}")
            for words, numbers in zip(table["tokens"], table["ner_tags"]):
                if min(numbers, default=0) < 0:
                    raise ValueError(f"a word without a tag in {words}")
                words = [" ".join((word or "").split()) for word in words]
                read[split][1]["no_word"] += words.count("")
                if kept := [(word, names[n]) for word, n in zip(words, numbers) if word]:
                    read[split][0].append(tuple(map(list, zip(*kept))))
    return read


def tags_of(types):
    return ["O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]


def read_corpora(args):
    """Sources, targets and {(lang, split): (sentences, counts)}, by flags or preset."""
    defaults, corpora = PRESETS.get(args.preset, ([], [])), {}
    sources = list(dict.fromkeys(args.sources or defaults[0]))
    targets = list(dict.fromkeys(args.targets or defaults[1]))
    if not targets:
        raise UserError("no target languages: name them with --targets")
    if not sources and not args.types:
        raise UserError("no source languages: name them with --sources, or entity types by --types")
    if len(sources) == 1 and sources[0] in targets:
        raise UserError(f"target {sources[0]}: its only source is itself: add another to --sources")
    for lang in dict.fromkeys(sources + targets):
        splits = ["train"] + ["dev"] * (lang in sources) + ["test"] * (lang in targets)
        if args.preset == "toy":
            read = {split: (text, Counter()) for split, text in toy_corpus(lang, args.seed).items()}
        elif args.data_dir:
            read = read_folder(args.data_dir, lang, splits)
        else:
            read = read_hub(args.preset, lang, splits)
        for split in splits:
            sentences, counts = read[split]
            if not sentences:
                raise UserError(f"language {lang}: no sentences in its {split} split")
            corpora[lang, split] = sentences[: args.limit], counts
            if lang in sources and split != "test" and sentences[0][1] is None:
                raise UserError(f"source {lang}: no tags in its {split} split: only targets may")
    return sources, targets, corpora


def shared_types(corpora, sources, wanted):
    """The entity types a student will know, by the sources' training tags alone."""
    found = {}
    for source in sources:
        tags = itertools.chain(*(tags for _, tags in corpora[source, "train"][0]))
        found[source] = {tag[2:] for tag in tags} - {""}
    shared = set.intersection(*found.values()) if found else set(wanted)  # others' teachers alone
    if not shared or not set(wanted or shared) <= shared:
        each = "; ".join(f"{s}: {' '.join(sorted(x)) or 'none'}" for s, x in found.items())
        what = f"--types {' '.join(wanted)}" if wanted else "no entity type is in all sources"
        raise UserError(f"{what} ({each}): choose other --sources or --types")
    return sorted(set(wanted or shared))


def to_iob2(tags):
    """IOB1, IOB2, IOBES or BILOU tags of a sentence as IOB2; as conlleval, a stray I- opens."""
    converted, open_type = [], None
    for tag in tags:
        kind = tag[2:] or None
        opens = kind and (tag[0] in "BSU" or kind != open_type)
        converted.append("O" if kind is None else ("B-" if opens else "I-") + kind)
        open_type = None if tag[0] in "ESLU" else kind
    return converted


def convert(sentences, types, place):
    """Tags as IOB2 over `types`, in place, others as O; returns how many of what, a Counter."""
    counts, kinds = Counter(), set()
    for _, tags in sentences:
        for k, tag in enumerate(to_iob2(tags or [])):
            kind, known = tag[2:], tag[2:] in types
            counts["converted"] += tag != tags[k]
            counts[kind if known else f"{kind} dropped"] += tag[0] == "B"
            tags[k] = tag if known else "O"
            kinds.add(kind)
    if (found := sorted(kinds - {""})) and not kinds & set(types):
        raise UserError(f"{place}: types {found} are none of {types}: see --types")
    return counts


# ------------------------------------------------------------------------ words to sub-tokens

def load_tokenizer(encoder):
    """The encoder's fast tokenizer: only those know which character a sub-token came from."""
    with explained(f"--encoder {encoder}: cannot load its tokenizer", ENCODER_REMEDY):
        options = {"add_prefix_space": True, "split_special_tokens": True}  # "[SEP]" is text
        tokenizer = transformers.AutoTokenizer.from_pretrained(encoder, **options)
    if not tokenizer.is_fast or len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise UserError(f"--encoder {encoder}: no fast tokenizer: choose one with tokenizer.json")
    return tokenizer


def check_encoder(encoder, tokenizer, max_length, num_labels):
    """Refuse what cannot be a student: load it once and let it read a window."""
    with explained(f"--encoder {encoder}: it cannot serve", ENCODER_REMEDY), torch.no_grad():
        tagger, reads = transformers.AutoModelForTokenClassification, max_length
        model = tagger.from_pretrained(encoder, dtype=torch.float32, num_labels=num_labels).eval()
        if model.config.is_encoder_decoder or model.config.model_type in ("t5", "xlnet"):
            raise ValueError("it is no plain encoder")
        word = min({*range(len(tokenizer))} - {*tokenizer.all_special_ids})
        while reads > 7:
            try:
                model(torch.full((1, reads), word))
                break
            except (IndexError, RuntimeError):  # it has fewer positions
                reads -= 1
    if reads < max_length:
        raise UserError(f"--max-length {max_length}: the encoder reads {reads} sub-tokens at most")


def split_words(words, tokenizer):
    """The sub-tokens of every word, [[id, ...], ...], as they are in running text, where many
    tokenizers split a word unlike one alone. A space belongs to the word behind it."""
    begins = list(itertools.accumulate((len(word) + 1 for word in words[:-1]), initial=0))
    encoding = tokenizer(" ".join(words), add_special_tokens=False, return_offsets_mapping=True)
    pieces, special = [[] for _ in words], set(tokenizer.all_special_ids)
    for piece, (start, stop) in zip(encoding["input_ids"], encoding["offset_mapping"]):
        number = bisect.bisect_right(begins, max(start + 1, stop)) - 1
        pieces[number].append(tokenizer.unk_token_id if piece in special else piece)
    return pieces


def cut(lengths, capacity):
    """Cut a sentence into overlapping windows; every word is scored in one, with context around it.
    lengths: sub-tokens of each word, <= capacity -> [(start, stop, first_scored, last_scored + 1)]
    """
    ahead = [0, *itertools.accumulate(lengths)]  # sub-tokens before each word
    spans, start, stop = [], 0, 0
    while stop < len(lengths):
        stop = bisect.bisect_right(ahead, ahead[start] + capacity) - 1  # as many words as fit
        spans.append((start, stop))
        room = min(capacity // 4, capacity - lengths[stop]) if stop < len(lengths) else 0
        start = max(start + 1, bisect.bisect_left(ahead, ahead[stop] - room))  # back by a quarter
    middles = [(a[1] + b[0] + 1) // 2 for a, b in itertools.pairwise(spans)]
    scored = itertools.pairwise([0, *middles, len(lengths)])
    return [(*span, *words) for span, words in zip(spans, scored)]


def encode(sentences, tokenizer, max_length, tag_ids=None):
    """Sentences as a table with a row per window, scored words in corpus order.

    Columns: sentence (its number), start (number of its first scored word), words (scored ones),
    input_ids, length (sub-tokens), tags (with tag_ids alone), and first (where each scored word
    begins: the mask f, which comes from the tokenisation, never from tags).
    """
    probe = tokenizer("a", return_special_tokens_mask=True)  # what surrounds a sentence, e.g. [CLS]
    inner = [k for k, special in enumerate(probe["special_tokens_mask"]) if not special]
    before, after = probe["input_ids"][: inner[0]], probe["input_ids"][inner[-1] + 1 :]
    capacity, rows, seen = max_length - len(before) - len(after), [], 0
    for number, (words, tags) in enumerate(sentences):
        pieces = split_words(words, tokenizer)
        pieces = [p[:capacity] or [tokenizer.unk_token_id] for p in pieces]  # cut, never dropped
        for start, stop, lo, hi in cut(list(map(len, pieces)), capacity):
            ids = before + sum(pieces[start:stop], []) + after
            row = {"sentence": number, "start": seen, "words": words[lo:hi], "input_ids": ids}
            first = list(itertools.accumulate(map(len, pieces[start:stop]), initial=len(before)))
            row |= {"length": len(ids), "first": first[lo - start : hi - start]}
            if tag_ids:
                row["tags"] = [tag_ids[tag] for tag in tags[lo:hi]]
            rows.append(row)
            seen += hi - lo
    return datasets.Dataset.from_list(rows)


# ------------------------------------------------------------------------ a tiny encoder

def train_tokenizer(texts, size):
    """A cased byte-pair vocabulary (Sennrich et al. 2016); texts: lists of words, all languages'.
    A piece that begins a word begins with a low line."""
    special = {f"{x}_token": f"[{x.upper()}]" for x in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer, options = SentencePieceBPETokenizer(unk_token="[UNK]"), {"show_progress": False}
    options |= {"special_tokens": [*special.values()], "limit_alphabet": 1000}
    tokenizer.train_from_iterator(map(" ".join, texts), size, **options)
    ends = {"special_tokens": [("[CLS]", 2), ("[SEP]", 3)]}
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", **ends)
    special["tokenizer_object"] = tokenizer._tokenizer
    return transformers.PreTrainedTokenizerFast(**special, model_max_length=512)


def pretrain(texts, seed, device):
    """A small BERT by masked language modelling (Devlin et al. 2019) of all languages' text."""
    torch.manual_seed(seed)
    tokenizer, bert = train_tokenizer(texts, TINY_VOCABULARY), transformers.BertForMaskedLM
    model = bert(transformers.BertConfig(vocab_size=len(tokenizer), **TINY)).to(device)
    rows = [tokenizer(" ".join(words), truncation=True, max_length=128) for words in texts]
    mask = transformers.DataCollatorForLanguageModeling(tokenizer)  # 15 % of the sub-tokens
    loader = torch.utils.data.DataLoader(rows, 32, shuffle=True, collate_fn=mask)
    adamw = torch.optim.AdamW(model.parameters(), TINY_LR, fused=True)
    for _ in range(TINY_EPOCHS):
        for batch in loader:
            model(**batch.to(device)).loss.backward()
            adamw.step()
            adamw.zero_grad()
    return model, tokenizer


# ------------------------------------------------------------------------ the stage

def main(args):
    sources, targets, corpora = read_corpora(args)
    types, report = shared_types(corpora, sources, args.types), []
    for (lang, split), (sentences, counts) in corpora.items():
        words = [word for words, _ in sentences for word in words]
        found = convert(sentences, types, f"{lang}, {split}")
        if lang in sources and split != "test":  # of a target's tags the report is silent
            counts += found
        notes = [f"{n} {what}" for what, n in counts.items() if n]
        if len(sentences) == 1 and len(words) > 200:
            notes.append("one sentence: are its blank lines missing?")
        if sum(bool(UNSPACED.search(word)) for word in words) > 0.05 * len(words):
            notes.append("no spaces between words: segment the text first")
        report.append([lang, split, len(sentences), len(words), ", ".join(notes)])
    write_tables(args, make_encoder(args, corpora), corpora, sources, targets, tags_of(types))
    report = pd.DataFrame(report, columns=["language", "split", "sentences", "words", "notes"])
    report.to_csv(args.artifacts / "report.csv", index=False)
    print(report.to_string(index=False))
    print(f"stage 1 done: {len(sources)} sources, {len(targets)} targets, types {types}")


def make_encoder(args, corpora):
    """What from_pretrained takes; 'scratch' is pretrained here, on training text without tags."""
    if args.encoder != "scratch":
        return str(Path(args.encoder).resolve()) if Path(args.encoder).is_dir() else args.encoder
    train = [sentences for (_, split), (sentences, _) in corpora.items() if split == "train"]
    texts = [words for words, _ in itertools.chain(*train)]

    def build(folder):
        torch.set_num_threads(1)  # as fast for a tiny model, and the same bits everywhere
        for part in pretrain(texts, args.seed, args.device):
            part.save_pretrained(folder)

    make(args, "encoder", build, text=fingerprint(texts), seed=args.seed, **TINY)
    return args.artifacts / "encoder"


def write_tables(args, encoder, corpora, sources, targets, tags):
    """Every language a piece, then data/config.json, what later stages need to know of flags."""
    tokenizer, tag_ids = load_tokenizer(encoder), {tag: k for k, tag in enumerate(tags)}
    check_encoder(encoder, tokenizer, args.max_length, len(tags))
    uses, files = ["encoder"] * (args.encoder == "scratch"), encoder_files(encoder)
    how = {"tags": tags, "max_length": args.max_length, "encoder": uses or [encoder, files]}

    def write(name, splits, tag_ids=None, below=()):
        def build(folder):
            with explained(f"--encoder {encoder}: it cannot tokenise {name}", ENCODER_REMEDY):
                tables = [encode(x, tokenizer, args.max_length, tag_ids) for x in splits.values()]
            datasets.DatasetDict(zip(splits, tables)).save_to_disk(folder)

        text = fingerprint(splits)
        make(args, name, build, [*uses, *below], text=text, **how)

    for lang in sources:
        splits = {split: corpora[lang, split][0] for split in ("train", "dev")}
        write(f"data/sources/{lang}", splits, tag_ids)
    for lang in targets:
        tagged = {split: corpora[lang, split][0] for split in ("train", "test")}
        blind = {split: [(words, None) for words, _ in x] for split, x in tagged.items()}
        write(f"data/targets/{lang}", blind)
        if gold := {split: x for split, x in tagged.items() if x[0][1] is not None}:
            write(f"gold/{lang}", gold, tag_ids, [f"data/targets/{lang}"])  # of this very text
    made = [f"data/sources/{x}" for x in sources] + [f"data/targets/{x}" for x in targets]
    pieces = {name: read_piece(args.artifacts, name)["id"] for name in made}
    config = {"id": "", "pieces": pieces, "sources": sources, "targets": targets, "tags": tags}
    config |= {"preset": args.preset, "synthetic": args.preset == "toy"}
    config["types_from"] = "--types" if args.types else [f"train tags of {s}" for s in sources]
    config |= {"encoder": "scratch" if uses else encoder, "encoder_files": files}
    path = args.artifacts / f"data/.config.{os.getpid()}"
    path.write_text(json.dumps(config, indent=1))
    path.replace(path.with_name("config.json"))


# ======================================================== serves all stages: commands and mistakes

class UserError(Exception):
    """A mistake of the user's: one line on stderr that names the place and the remedy, exit 2."""


@contextlib.contextmanager
def explained(what, remedy):
    """Turn what goes wrong inside into one line: foreign files fail in too many ways to list."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{what} ({type(error).__name__}: {str(error)[:300]}): {remedy}") from None


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message} (see python {self.prog} --help)")


def add_common_flags(parser):
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="shared folder")
    parser.add_argument("--overwrite", action="store_true", help="remake what other inputs made")
    mps = torch.backends.mps.is_available()
    there = ["cuda"] * torch.cuda.is_available() + ["cpu"] + ["mps"] * mps
    parser.add_argument("--device", choices=there, default=there[0], help="mps: other losses")


def at_least(low, kind=int):
    """A type for argparse: finite numbers from `low` on."""

    def number(text):
        if not low <= (value := kind(text)) < 2**32:
            raise argparse.ArgumentTypeError(f"{text} is no number from {low} on")
        return value

    return number


def run(main, parse_args):
    """Run a stage; a user's mistake, a full disk or Ctrl-C is one line and an exit status."""
    sys.stdout.reconfigure(errors="replace")
    try:
        return main(parse_args())
    except BrokenPipeError:  # whoever read our output has gone: the work is done all the same
        return os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from the finished pieces", file=sys.stderr)
        sys.exit(130)
    except torch.OutOfMemoryError:
        message = "out of GPU memory: lower --batch-size and run again"
    except (UserError, OSError, SafetensorError) as error:
        ours = isinstance(error, UserError)
        message = error if ours else f"{error}: free some space, change --artifacts, or go online"
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(2)


# ======================================================== serves all stages: pieces of artifacts/
# A piece is a folder with a config.json: id, drawn when made; settings; pieces, the ids of those it
# was made from; facts, which nothing depends on.

def make(args, name, build, uses=(), replace=False, **settings):
    """Make the piece artifacts/<name> unless it is there, made from the same: whole or not at all.

    build(folder) writes its files and may return facts about them; uses: names of the pieces it is
    made from. What was made from other settings or pieces is refused without --overwrite."""
    folder, begun = Path(os.path.realpath(args.artifacts / name)), time.time()  # so links stay
    pieces = {used: read_piece(args.artifacts, used)["id"] for used in uses}
    wanted, there = json.loads(json.dumps(settings)) | pieces, folder.exists()
    if there and not (replace and (folder / "config.json").exists()):
        try:
            record = json.loads((folder / "config.json").read_text())
            had = record["settings"] | record["pieces"]
            changed = [key for key in had | wanted if had.get(key) != wanted.get(key)]
        except (OSError, ValueError, KeyError, TypeError):
            changed = ["config.json, damaged"]
        if not changed:
            return print(f"  kept  {name}")
        if not vars(args).get("overwrite"):
            what = f"{args.artifacts / name}: made from other {', '.join(changed)}"
            raise UserError(f"{what}: pass --overwrite to replace it, or another --artifacts")
    mine = f".{folder.name}.{socket.gethostname()}-"
    partial, old = (folder.with_name(f"{mine}{os.getpid()}.{x}partial") for x in ("", "old."))
    for leftover in folder.parent.glob(f"{mine}*.partial"):
        pid = int(leftover.name.removeprefix(mine).split(".")[0])
        if pid == os.getpid() or not psutil.pid_exists(pid):  # killed; its number may come again
            shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        facts, path = build(partial) or {}, partial / "config.json"
        facts |= {"torch": torch.__version__, "transformers": transformers.__version__}
        facts |= {"seconds": round(time.time() - begun, 1), "device": str(vars(args).get("device"))}
        record = json.loads(path.read_text()) if path.exists() else {}  # a model has one already
        record |= {"id": os.urandom(6).hex(), "settings": settings, "pieces": pieces}
        path.write_text(json.dumps(record | {"facts": facts}, indent=1))
        if there and folder.exists():
            folder.rename(old)  # removed when the new one is in its place
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            return make(args, name, build, uses, replace, **settings)  # another was first: alike?
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    print(f"  wrote {name}  ({time.time() - begun:.0f} s)")


def read_piece(artifacts, name):
    """config.json of a piece that is whole and not stale: each piece it was made from has the id it
    had then, if it is there still. Else an error that names the lowest that is not."""
    stage = "02_teachers" if re.match("teachers|weights|logits", name) else "01_data"
    if re.match(r"students|logits/[^/]+/(ensemble|vote|bea)-", name):
        stage = "03_distill"
    try:
        record, problem = json.loads((artifacts / name / "config.json").read_text()), ""
        for below, known in record["pieces"].items():
            is_there = (artifacts / below / "config.json").exists()
            if is_there and read_piece(artifacts, below)["id"] != known:
                problem = f"made from another {below} than there is now"
    except FileNotFoundError:
        problem = "missing or incomplete"
    except (ValueError, KeyError, TypeError):
        problem = "config.json damaged"
    if problem:
        remedy = f"run python {stage}.py first, with its flags; --overwrite or remove what is there"
        raise UserError(f"{artifacts / name}: {problem}: {remedy}")
    return record


def encoder_files(encoder):
    """{file: bytes} of a folder's model and tokenizer; none of a hub name or an absent folder."""
    ours = re.compile(r"config\.json|tokenizer.*|vocab.*|merges.*|.*\.(safetensors|bin|model)")
    files = sorted(Path(encoder).glob("*"))
    return {path.name: path.stat().st_size for path in files if ours.fullmatch(path.name)}


def fingerprint(thing):
    """Short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(thing, sort_keys=True).encode()).hexdigest()[:16]


if __name__ == "__main__":
    run(main, parse_args)
