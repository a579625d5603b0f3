"""Stage 1: read corpora, check and convert them, cut them into windows of sub-tokens.

    python 01_data.py                                                        synthetic languages, offline
    python 01_data.py --preset wikiann --sources en de nl --targets sw yo    from the Hugging Face hub
    python 01_data.py --data-dir DIR --encoder bert-base-multilingual-cased  DIR/<lang>/{train,dev,test}.txt

Reads   the toy generator, hub data sets, or CoNLL files (first column the word, last the tag).
Writes  artifacts/data/sources/<lang>/{train,dev}   windows with tags
        artifacts/data/targets/<lang>/{train,test}  windows WITHOUT tags
        artifacts/gold/<lang>                       the targets' tags: for stage 4, and stage 2 under --oracle
        artifacts/encoder/                          with --encoder scratch: a small BERT pretrained on the text
        artifacts/report.csv                        what the data doctor counted and repaired

Below the double line stand the helpers of all four stages: how mistakes are told (UserError, explained, Parser), how a
piece of artifacts/ is published, opened and read in batches, how an encoder is loaded. At a first reading take such a
name for what it says, and look there later.
"""

import argparse
import bisect
import contextlib
import csv
import errno
import hashlib
import importlib.metadata
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

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")  # or a CPU keeps compiled code for every shape of batch

import datasets
import huggingface_hub
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
datasets.disable_progress_bars()
for library in (datasets, huggingface_hub):  # silences retries and greetings; what fails for good is raised
    library.utils.logging.set_verbosity(50)

MBERT = "bert-base-multilingual-cased"
PRESETS = {  # hub data: languages used when no flag names them
    "toy": {"sources": ["qaa", "qab", "qba", "qbb"], "targets": ["qac", "qbc"]},
    "wikiann": {"sources": ["en", "de", "nl", "ar"], "targets": ["sw", "yo", "am", "tl", "cy"]},
    "masakhaner": {"sources": ["hau", "swa", "yor"], "targets": ["kin", "pcm", "ibo", "xho"]},
    "conll": {"sources": ["en"], "targets": ["es", "nl"]},
}
PER_ORG_LOC = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
EXPORT = "hf://datasets/{}@refs%2Fconvert%2Fparquet/{}/{}/0000.parquet"  # the hub's Parquet copy of a data set
HUB_TAGS = {"wikiann": PER_ORG_LOC, "masakhaner": [*PER_ORG_LOC, "B-DATE", "I-DATE"],
            "conll": [*PER_ORG_LOC, "B-MISC", "I-MISC"]}  # fmt: skip
REPAIRS = ("docstart", "crlf", "bom", "spaces", "empty", "zero_width")  # what the data doctor counts beside tags
TOY_SENTENCES = {"train": 800, "dev": 100, "test": 300}
SCRATCH = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256)
SCRATCH_VOCABULARY, SCRATCH_EPOCHS, SCRATCH_LR = 2000, 6, 2e-3  # enough for the toy in half a minute on a CPU


def parse_args(argv=None):
    p = Parser(description=__doc__.splitlines()[0])
    # what to read
    p.add_argument("--preset", choices=PRESETS, help="toy (the default) needs no network, the others load from the hub")
    p.add_argument("--data-dir", type=Path, help="your own CoNLL files instead: DIR/<lang>/{train,dev,test}.txt")
    p.add_argument("--sources", nargs="+", metavar="LANG", help="languages with labels")
    p.add_argument("--targets", nargs="+", metavar="LANG", help="languages to transfer to; may repeat a source")
    p.add_argument("--types", nargs="+", metavar="TYPE", help="entity types to keep; default: those all sources share")
    p.add_argument("--limit", type=positive, help="first N sentences of every split")
    # how to encode it
    p.add_argument("--encoder", help=f"folder, hub name, or 'scratch'; default: scratch for the toy, else {MBERT}")
    p.add_argument("--max-length", type=positive, default=128, help="sub-tokens a window, as in TSL; no word is lost")
    p.add_argument("--seed", type=seed, default=0, help="of the toy's languages and of the scratch encoder")
    common_flags(p)
    args = p.parse_args(argv)
    if args.preset and args.data_dir:
        raise UserError("--preset and --data-dir exclude each other: drop one")
    args.preset = args.preset or ("own" if args.data_dir else "toy")
    args.encoder = args.encoder or ("scratch" if args.preset == "toy" else MBERT)
    return args


# ------------------------------------------------------------------------ toy languages
# Six languages in two families with known truth. A proto-lexicon splits by regular sound changes. Family qa is head
# first (verb before object, case word before its name); family qb mirrors those rules and capitalises every noun.

SOUND_CHANGES = {  # ("pkw", "fxv"): p becomes f, k becomes x, w becomes v
    "qa": ("pkw", "fxv"), "qaa": ("e", "i"), "qab": ("dz", "tc"), "qac": ("x", "h"),
    "qb": ("bgsu", "vhzo"), "qba": ("r", "l"), "qbb": ("m", "n"), "qbc": ("zo", "ca"),
}  # fmt: skip
NEW_WORDS = {2: 0.3, 3: 0.1}  # share of its lexicon that a family (two letters), then a daughter (three), replaced
LEXICON = {"noun": 60, "verb": 20, "adjective": 20, "title": 4, "in": 2, "from": 2, "company": 5, "meet": 4, "the": 2,
           "first": 60, "last": 60, "town": 60, "brand": 50}  # fmt: skip
# GRAMMAR: capitals are rules, lower case is a word of that class, TYPE:class+class a name; twice is twice as likely.
# Which type a name has, only its neighbours tell: towns and firms are named after people now and then.
GRAMMAR = {
    "SENTENCE": ["WHO ACT"],
    "WHO": ["THING", "PERSON", "PERSON", "FIRM"],
    "ACT": ["verb THING", "verb FIRM", "meet PERSON", "verb THING PLACE", "verb FIRM PLACE", "meet PERSON PLACE"],
    "THING": ["the noun", "the noun", "the adjective noun"],
    "PERSON": ["title NAME", "title NAME", "NAME"],
    "NAME": ["PER:first+last", "PER:first+last", "PER:first", "PER:last"],
    "PLACE": ["in LOC:town", "in LOC:town", "in LOC:town", "in LOC:last"],
    "FIRM": ["company ORG:brand", "company ORG:town", "from ORG:brand", "from ORG:last"],
}


def toy_lexicon(lang, seed):
    """{class: [word]} of one daughter language: proto-words, replaced in part, through the sound changes."""
    def invent(rng):
        return "".join(rng.choice("ptkbdgmnslrwz") + rng.choice("aeiou") for _ in range(rng.choice([2, 2, 3])))

    rng = random.Random(f"proto {seed}")
    lexicon = {name: [invent(rng) for _ in range(size)] for name, size in LEXICON.items()}
    for length, share in NEW_WORDS.items():
        rng, change = random.Random(f"{lang[:length]} {seed}"), str.maketrans(*SOUND_CHANGES[lang[:length]])
        for words in lexicon.values():
            words[:] = [(invent(rng) if rng.random() < share else word).translate(change) for word in words]
    return lexicon


def toy_phrase(symbol, lexicon, rng, head_last):
    """Expand one grammar symbol into [(word, tag)]."""
    if symbol in GRAMMAR:
        parts = [toy_phrase(s, lexicon, rng, head_last) for s in rng.choice(GRAMMAR[symbol]).split()]
        return sum(reversed(parts) if head_last and symbol != "SENTENCE" else parts, [])
    if ":" in symbol:
        kind, classes = symbol.split(":")
        name = [rng.choice(lexicon[c]).capitalize() for c in classes.split("+")]
        return [(word, ("I-" if i else "B-") + kind) for i, word in enumerate(name)]
    word = rng.choice(lexicon[symbol])
    return [(word.capitalize() if head_last and symbol == "noun" else word, "O")]


def toy_corpus(lang, seed):
    """{split: [(words, tags)]} of one synthetic language."""
    if lang not in (known := [name for name in SOUND_CHANGES if len(name) == 3]):
        raise UserError(f"unknown toy language {lang}: the toy has {' '.join(known)}")
    lexicon, rng = toy_lexicon(lang, seed), random.Random(f"text {lang} {seed}")

    def sentence():
        words, tags = zip(*toy_phrase("SENTENCE", lexicon, rng, head_last=lang.startswith("qb")), (".", "O"))
        return list(words), list(tags)

    return {split: [sentence() for _ in range(n)] for split, n in TOY_SENTENCES.items()}


# ------------------------------------------------------------------------ the data doctor
# Every reader returns sentences [(words, tags)], tags None where a file has no tag column, and a Counter of repairs.

def read_conll(path):
    """Read one CoNLL file: a word a line, tag in the last column, a blank line between sentences."""
    if not path.is_file():
        raise UserError(f"{path}: no such file: a source needs train.txt and dev.txt, a target train.txt and test.txt")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8: convert the file, e.g. with iconv") from None
    repairs = Counter(bom=raw.startswith(b"\xef\xbb\xbf"), crlf=text.count("\r"))
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    sentences, words, tags, tagged = [], [], [], None
    for number, line in enumerate([*lines, ""], start=1):
        columns = [c.strip(" ") for c in (line.split("\t") if "\t" in line else line.split(" "))]
        repairs["spaces"] += "" in columns and line.strip() != ""
        columns = [c for c in columns if c]
        if not line.strip() or columns[0] == "-DOCSTART-":
            repairs["docstart"] += bool(line.strip())
            repairs["empty"] += not line.strip() and not words and number < len(lines)
            if words:
                sentences.append((words, tags if tagged else None))
            words, tags = [], []
            continue
        tagged = len(columns) > 1 if tagged is None else tagged
        if tagged and len(columns) < 2:
            raise UserError(f"{path}:{number}: no tag behind the word {columns[0]!r}: give every word one, or no word")
        if tagged and not re.fullmatch(r"O|[BIESLUM]-\S+", columns[-1]):
            raise UserError(f"{path}:{number}: {columns[-1]!r} is no IOB or IOBES tag (O, B-PER, I-PER, ...)")
        words.append(columns[0])
        tags.append(columns[-1])
        repairs["zero_width"] += not re.sub(r"[\s\u200b-\u200f\u2060\ufeff\u00ad\ufe00-\ufe0f]", "", columns[0])
    if not sentences:
        raise UserError(f"{path}: no sentences in it: put a word and its tag on each line")
    return sentences, repairs


def tag_scheme(tag_lists):
    """Name the scheme: IOBES (or BILOU), IOB1 (I- opens entities, B- only splits neighbours of one type), or IOB2."""
    prefixes = {tag[0] for tags in tag_lists for tag in tags}
    # those of tags whose type differs from the tag before, which must open an entity
    opening = {tag[0] for tags in tag_lists for before, tag in zip(["O", *tags], tags) if tag[2:] not in ("", before[2:])}
    return "IOBES" if prefixes & set("ESLUM") else "IOB1" if "I" in opening and "B" not in opening else "IOB2"


def to_iob2(tags):
    """IOB1, IOB2, IOBES or BILOU tags of one sentence as IOB2; a stray I- opens an entity, as conlleval reads it."""
    out, open_type = [], None
    for tag in tags:
        kind = tag[2:] or None
        opens = kind and (tag[0] in "BSU" or kind != open_type)
        out.append("O" if kind is None else ("B-" if opens else "I-") + kind)
        open_type = None if tag[0] in "ESLU" else kind
    return out


def examine(lang, split, sentences, repairs):
    """Convert one split to IOB2; return its sentences and its row of the doctor's report."""
    row = {"language": lang, "split": split, "sentences": len(sentences), "words": sum(len(w) for w, _ in sentences)}
    row |= {"scheme": "untagged", "entities": {}, "stray_i": 0}
    if sentences[0][1] is not None:
        row["scheme"] = tag_scheme([tags for _, tags in sentences])
        converted = [(words, to_iob2(tags)) for words, tags in sentences]
        if row["scheme"] != "IOB1":
            pairs = zip(itertools.chain(*(t for _, t in sentences)), itertools.chain(*(t for _, t in converted)))
            row["stray_i"] = sum(old[0] in "IE" and new[0] == "B" for old, new in pairs)
        row["entities"] = dict(sorted(Counter(t[2:] for _, tags in converted for t in tags if t[0] == "B").items()))
        sentences = converted
    return sentences, row | {name: int(repairs[name]) for name in REPAIRS}


# ------------------------------------------------------------------------ reading corpora

def read_folder(folder, lang, splits):
    """{split: (sentences, repairs)} of DIR/<lang>. A target may come as raw text.txt, a sentence a line."""
    if not (folder / lang).is_dir():
        raise UserError(f"{folder / lang}: no such folder for language {lang}: --data-dir needs DIR/<lang>/train.txt")
    raw = folder / lang / "text.txt"
    if splits == {"train", "test"} and raw.is_file() and not raw.with_name("test.txt").is_file():
        split_words = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
        with explained(f"{raw}: not UTF-8", "convert the file, e.g. with iconv"):
            lines = [[w for w, _ in split_words(line)] for line in raw.read_text("utf-8-sig").split("\n") if line.strip()]
        if not lines:
            raise UserError(f"{raw}: no sentences in it: put one on each line")
        return {split: ([(words, None) for words in lines if words], Counter()) for split in splits}
    return {split: read_conll(folder / lang / f"{split}.txt") for split in splits}


def read_hub(preset, lang, splits):
    """{split: (sentences, repairs)} of one language of a hub preset."""
    repo, folder = {
        "wikiann": ("unimelb-nlp/wikiann", lang),
        "masakhaner": ("masakhane/masakhaner2", lang),
        "conll": ("eriktks/conll2003", "conll2003") if lang == "en" else ("eriktks/conll2002", lang),
    }[preset]  # fmt: skip
    remedy = ("check the language, log in with `hf auth login` if the set asks for it, or work offline: "
              "the toy (no flags) or --data-dir DIR --encoder scratch")  # fmt: skip
    with explained(f"--preset {preset}, language {lang}: cannot load it from the hub", remedy):
        if preset == "wikiann":
            corpus = datasets.load_dataset(repo, folder)
        else:
            files = {HUB_SPLITS[split]: EXPORT.format(repo, folder, HUB_SPLITS[split]) for split in splits}
            corpus = datasets.load_dataset("parquet", data_files=files)
        out = {}
        for split in splits:
            table = corpus[HUB_SPLITS[split]]
            names = getattr(table.features["ner_tags"].feature, "names", HUB_TAGS[preset])
            if changed := {*names} ^ {*HUB_TAGS[preset]}:
                raise ValueError(f"tags have changed: {sorted(changed)}")
            pairs = zip(table["tokens"], table["ner_tags"])
            out[split] = ([(words, [names[t] for t in tags]) for words, tags in pairs if words], Counter())
            if not out[split][0]:
                raise ValueError(f"no sentences in its {split} split")
        return out


def choose_languages(args):
    """Fill in --sources and --targets; every target needs a source other than itself."""
    defaults = PRESETS.get(args.preset)
    if args.data_dir:
        if not args.data_dir.is_dir():
            raise UserError(f"--data-dir {args.data_dir}: no such folder")
        everything = sorted(d.name for d in args.data_dir.iterdir() if d.is_dir() and d.name[0] != ".")
        defaults = {"sources": [x for x in everything if x not in (args.targets or [])],
                    "targets": [x for x in everything if x not in (args.sources or [])]}  # fmt: skip
    sources = list(dict.fromkeys(args.sources or defaults["sources"]))
    targets = list(dict.fromkeys(args.targets or defaults["targets"]))
    if not sources or not targets:
        raise UserError(f"no {'target' if sources else 'source'} languages: name them with --sources and --targets")
    for target in targets:
        if sources == [target]:
            raise UserError(f"target {target}: its only source is itself: add another language to --sources")
    return sources, targets


def read_corpora(args, sources, targets):
    """{lang: {split: sentences}} and the doctor's report rows."""
    corpora, report = {}, []
    for lang in dict.fromkeys(sources + targets):
        splits = {"train"} | ({"dev"} if lang in sources else set()) | ({"test"} if lang in targets else set())
        if args.preset == "toy":
            read = {split: (x, Counter()) for split, x in toy_corpus(lang, args.seed).items() if split in splits}
        else:
            read = read_folder(args.data_dir, lang, splits) if args.data_dir else read_hub(args.preset, lang, splits)
        corpora[lang] = {}
        for split in sorted(splits):
            sentences, repairs = read[split]
            corpora[lang][split], row = examine(lang, split, sentences[: args.limit], repairs)
            report.append(row)
            if lang in sources and split != "test" and row["scheme"] == "untagged":
                raise UserError(f"source {lang}: its {split} split has no tags: only targets may go without")
    return corpora, report


def shared_types(corpora, sources, wanted):
    """Entity types the student will know, by the sources' training tags: a language that is no source has no say."""
    found = {s: {t[2:] for _, tags in corpora[s]["train"] for t in tags} - {""} for s in sources}
    shared = set.intersection(*found.values())
    if wanted and not set(wanted) <= shared:
        raise UserError(f"--types {' '.join(wanted)}: the sources share only {' '.join(sorted(shared)) or 'none'}")
    if not shared:
        detail = "; ".join(f"{s}: {' '.join(sorted(types)) or 'none'}" for s, types in found.items())
        raise UserError(f"no entity type is shared by all sources ({detail}): choose other --sources")
    return sorted(set(wanted or shared))


def harmonise(corpora, report, types):
    """Turn tags of all other types into O, in place, and note in the report what was dropped."""
    for row in report:
        sentences = corpora[row["language"]][row["split"]]
        row["dropped"] = {kind: n for kind, n in row["entities"].items() if kind not in types}
        row["entities"] = {kind: n for kind, n in row["entities"].items() if kind in types}
        if row["split"] == "test" and row["dropped"] and not row["entities"]:
            raise UserError(f"target {row['language']}: its types {' '.join(row['dropped'])} are none of the sources' "
                            f"{' '.join(types)}: choose other --sources or --targets")  # fmt: skip
        if row["dropped"]:
            sentences[:] = [(words, [t if t[2:] in types else "O" for t in tags]) for words, tags in sentences]


# ------------------------------------------------------------------------ words to sub-tokens

ENCODER_REMEDY = "name a folder, a hub model that can be reached, or 'scratch'"


def load_tokenizer(encoder):
    """The encoder's fast tokenizer: only those know which word a sub-token came from."""
    with explained(f"--encoder {encoder}: cannot load its tokenizer", ENCODER_REMEDY):
        tokenizer = transformers.AutoTokenizer.from_pretrained(encoder, add_prefix_space=True)
    empty = len(tokenizer) <= len(set(tokenizer.all_special_ids))  # what a folder without tokenizer files loads as
    if not tokenizer.is_fast or empty:
        raise UserError(f"--encoder {encoder}: it has no fast tokenizer: choose an encoder with a tokenizer.json")
    return tokenizer


def cut(lengths, capacity):
    """Cut a sentence into overlapping windows; every word is scored in one of them, with context on both sides.

    lengths: sub-tokens of each word, none above capacity  ->  [(start, stop, first_scored, last_scored + 1)] in words
    """
    ahead = [0, *itertools.accumulate(lengths)]  # sub-tokens before each word
    spans, start, stop = [], 0, 0
    while stop < len(lengths):
        stop = bisect.bisect_right(ahead, ahead[start] + capacity) - 1  # as many words as fit
        spans.append((start, stop))
        room = min(capacity // 4, capacity - lengths[stop]) if stop < len(lengths) else 0
        start = max(start + 1, bisect.bisect_left(ahead, ahead[stop] - room))  # back a quarter, the next word must fit
    borders = [0, *((a[1] + b[0] + 1) // 2 for a, b in itertools.pairwise(spans)), len(lengths)]
    return [(*span, *scored) for span, scored in zip(spans, itertools.pairwise(borders))]


def encode(sentences, tokenizer, max_length, tag_ids=None):
    """Sentences as a table with a row per window, scored words in corpus order.

    Columns: sentence (its number), start (number of the first scored word in the corpus), words (the scored ones),
    input_ids, length (sub-tokens), first (position of the first sub-token of each scored word: the mask f),
    and tags where tag_ids is given. The mask comes from the tokenisation, never from tags.
    """
    probe = tokenizer("a", return_special_tokens_mask=True)  # what surrounds a sentence, e.g. [CLS] and [SEP]
    inner = probe["special_tokens_mask"].index(0)
    before = probe["input_ids"][:inner]
    after = probe["input_ids"][len(probe["input_ids"]) - probe["special_tokens_mask"][::-1].index(0):]
    capacity = max_length - len(before) - len(after)
    rows, seen = [], 0
    for number, (words, tags) in enumerate(sentences):
        encoding = tokenizer(words, is_split_into_words=True, add_special_tokens=False)
        pieces = [[] for _ in words]
        for word, piece in zip(encoding.word_ids(), encoding["input_ids"]):
            pieces[word].append(piece)
        pieces = [p[:capacity] or [tokenizer.unk_token_id] for p in pieces]  # a word may be cut, none is dropped
        for start, stop, lo, hi in cut([len(p) for p in pieces], capacity):
            at = list(itertools.accumulate((len(p) for p in pieces[start:stop]), initial=len(before)))  # first pieces
            row = {"sentence": number, "start": seen, "words": words[lo:hi]}
            row["input_ids"] = before + sum(pieces[start:stop], []) + after
            row |= {"length": len(row["input_ids"]), "first": at[lo - start: hi - start]}
            rows.append(row | ({"tags": [tag_ids[t] for t in tags[lo:hi]]} if tag_ids else {}))
            seen += hi - lo
    return datasets.Dataset.from_list(rows)


# ------------------------------------------------------------------------ an encoder from scratch

def train_tokenizer(texts, size):
    """A cased WordPiece vocabulary for several languages, trained on lists of words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    counts = Counter(c for words in texts for c in normalizers.NFC().normalize_str(" ".join(words)) if not c.isspace())
    alphabet = sorted(sorted(counts, key=lambda c: (-counts[c], c))[:1000])
    # The trainer numbers characters inside words in an order that differs from run to run, unless they are named first.
    options = {"vocab_size": size, "special_tokens": special + [f"##{c}" for c in alphabet], "show_progress": False,
               "initial_alphabet": alphabet, "limit_alphabet": len(alphabet)}  # fmt: skip

    def assemble(vocabulary=None):
        model = models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=1000)
        tokenizer = Tokenizer(model)
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFC(), pre_tokenizers.BertPreTokenizer()
        return tokenizer

    trained = assemble()
    trained.train_from_iterator((" ".join(words) for words in texts), trainers.WordPieceTrainer(**options))
    tokenizer = assemble(trained.get_vocab())
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    names = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], special))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names)


def pretrain(texts, seed, device):
    """Masked language modelling (Devlin et al. 2019) of a small BERT on all languages' text together, as mBERT was."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = train_tokenizer(texts, SCRATCH_VOCABULARY)
    table = encode([(words, None) for words in texts], tokenizer, 128)
    config = transformers.BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SCRATCH)
    model = transformers.BertForMaskedLM(config).to(device).train()
    steps = SCRATCH_EPOCHS * len(plan_batches(table, 32))
    optimizer, schedule = optimizer_for(model, SCRATCH_LR, steps)
    for _, batch in epochs(table, SCRATCH_EPOCHS, 32, rng, device, "masked language model"):
        ids = batch["input_ids"]                                                # (B, T)
        special = len(tokenizer.all_special_ids)                                # they come first and are not masked
        chosen = (ids >= special) & (torch.rand(ids.shape, device=device) < 0.15)
        dice, noise = torch.rand(ids.shape, device=device), torch.randint_like(ids, special, len(tokenizer))
        masked = ids.masked_fill(chosen & (dice < 0.8), tokenizer.mask_token_id)     # 80 % of the chosen: [MASK]
        masked = torch.where(chosen & (dice >= 0.8) & (dice < 0.9), noise, masked)   # 10 %: any sub-token; 10 % stay
        h = model.bert(masked, batch["attention_mask"]).last_hidden_state       # (B, T, H)
        loss = torch.nn.functional.cross_entropy(model.cls(h[chosen]), ids[chosen])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model, tokenizer


# ------------------------------------------------------------------------ the stage

def main(args):
    sources, targets = choose_languages(args)
    corpora, report = read_corpora(args, sources, targets)
    types = shared_types(corpora, sources, args.types)
    harmonise(corpora, report, types)
    check_length(args.encoder, args.max_length)
    encoder = make_encoder(args, corpora)
    write_data(args, encoder, corpora, sources, targets, types)
    write_gold(args, corpora, targets)
    write_report(args.artifacts, report)
    print(f"stage 1 done: {len(sources)} sources, {len(targets)} targets, types {' '.join(types)} -> {args.artifacts}")


def make_encoder(args, corpora):
    """Where the encoder is; with --encoder scratch it is pretrained first, on training text without tags."""
    if args.encoder == "scratch":
        text = [words for lang in corpora for words, _ in corpora[lang]["train"]]
        made_from = {"text": fingerprint(text), "seed": args.seed, **SCRATCH}
        if not finished(args.artifacts / "encoder", made_from, args.overwrite):
            with publishing(args.artifacts / "encoder", made_from) as folder:
                model, tokenizer = pretrain(text, args.seed, pick_device())
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
    return encoder_path(args.artifacts, args.encoder)


def write_data(args, encoder, corpora, sources, targets, types):
    """data/: the sources' windows with tags, the targets' without."""
    tagged = {f"sources/{s}/{split}": corpora[s][split] for s in sources for split in ("train", "dev")}
    blind = {f"targets/{t}/{split}": [(words, None) for words, _ in corpora[t][split]]
             for t in targets for split in ("train", "test")}  # fmt: skip
    tags = ["O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]
    facts = {"preset": args.preset, "synthetic": args.preset == "toy", "sources": sources, "targets": targets,
             "tags": tags, "encoder": args.encoder if args.encoder == "scratch" else str(encoder),
             "encoder_fingerprint": encoder_fingerprint(encoder)}  # fmt: skip
    made_from = facts | {"corpora": fingerprint(tagged | blind), "max_length": args.max_length, "limit": args.limit}
    if not finished(args.artifacts / "data", made_from, args.overwrite):
        with publishing(args.artifacts / "data", made_from, facts) as folder:
            tokenizer = load_tokenizer(encoder)
            tag_ids = {tag: i for i, tag in enumerate(tags)}
            for name, sentences in (tagged | blind).items():
                table = encode(sentences, tokenizer, args.max_length, tag_ids if name in tagged else None)
                table.save_to_disk(folder / name)


def write_gold(args, corpora, targets):
    """gold/: the tags of the targets' train and test sentences, where they have any."""
    gold = {f"{t}/{split}": [tags for _, tags in corpora[t][split]] for t in targets for split in ("train", "test")
            if corpora[t][split][0][1] is not None}  # fmt: skip
    made_from = {"gold": fingerprint(gold), "limit": args.limit}
    if not finished(args.artifacts / "gold", made_from, args.overwrite):
        with publishing(args.artifacts / "gold", made_from) as folder:
            for name, tags in gold.items():
                datasets.Dataset.from_dict({"tags": tags}).save_to_disk(folder / name)


def write_report(artifacts, report):
    """Print the doctor's table and store it as report.csv, with sub-tokens and windows counted from the data."""
    for row in report:
        lang, split = row["language"], row["split"]
        paths = [artifacts / "data" / role / lang / split for role in ("sources", "targets")]
        table = datasets.load_from_disk(str(next(p for p in paths if p.exists())))
        row["windows"], row["sub_tokens"] = len(table), sum(table["length"])
        for column in ("entities", "dropped"):
            row[column] = " ".join(f"{kind}:{n}" for kind, n in row[column].items())
    write_csv(artifacts / "report.csv", report[0].keys(), report)
    print(f"{'language':9}{'split':6}{'sentences':>10}{'words':>8}{'windows':>8}  entities")
    for row in report:
        odd = [row["scheme"]] if row["scheme"] != "IOB2" else []
        odd += [f"{row[k]} {k}" for k in ("stray_i", *REPAIRS) if row[k]]
        odd += [f"dropped {row['dropped']}"] if row["dropped"] else []
        print(f"{row['language']:9}{row['split']:6}{row['sentences']:10}{row['words']:8}{row['windows']:8}  "
              + row["entities"] + (f"  [{', '.join(odd)}]" if odd else ""))  # fmt: skip


# ======================================================================== borrowed by stages 2-4
# ------------------------------------------------------------------------ commands and mistakes

class UserError(Exception):
    """A mistake of the user's: one line on stderr that names the place and the remedy, exit status 2."""


@contextlib.contextmanager
def explained(what, remedy):
    """Turn whatever goes wrong inside into one line: hubs, networks and foreign files fail in too many ways to list."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{what} ({why}): {remedy}") from None


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message} (see python {self.prog} --help)")


def common_flags(parser):
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="folder that all stages share")
    parser.add_argument("--overwrite", action="store_true", help="replace pieces damaged or made from other inputs")


def positive(text):
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def not_negative(text):
    try:
        if 0 <= float(text) < float("inf"):
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")


def above_zero(text):
    if not_negative(text) == 0:
        raise argparse.ArgumentTypeError("0 is not above zero")
    return float(text)


def seed(text):
    if not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 4294967295")
    return int(text)


def subset(flag, wanted, known):
    """The languages that a flag picks, all without it."""
    if unknown := [x for x in wanted or [] if x not in known]:
        raise UserError(f"{flag} {unknown[0]}: stage 1 was told of {' '.join(known)} only")
    return wanted or known


def write_csv(path, columns, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def run(stage):
    """Run `stage()`, turning a user's mistake, a full disk or Ctrl-C into one line and an exit status."""
    try:
        stage()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted: finished pieces are kept, the same command goes on from them", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        closed = getattr(error, "errno", None) in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
        if not (full or closed):
            raise
        remedy = "free some space" if full else "choose a writable folder with --artifacts"
        print(f"error: {' '.join(str(error).split())}: {remedy} and run again", file=sys.stderr)
        sys.exit(2)


# ------------------------------------------------------------------------ pieces of artifacts/
# A piece is a folder with a config.json that holds the digest of every file in it and, under made_from, the flags that
# mattered and the fingerprints of the pieces that it was made from: made_from["pieces"] = {"teachers/...": fingerprint}.

def fingerprint(thing):
    """Short hash of anything JSON can hold."""
    return hashlib.sha256(json.dumps(thing, sort_keys=True).encode()).hexdigest()[:16]


def digests(folder):
    """{file: hash of its bytes}; config.json holds these and is left out, as are the random ids of `datasets`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in ("config.json", "state.json"))
    found = {}
    for path in files:
        with open(path, "rb") as file:
            found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return found


def opened(folder, stage):
    """config.json of a finished piece, every file checked; `stage` is the script that makes it."""
    remedy = f"run python {stage} " + ("again, with its flags and --overwrite" if folder.is_dir() else "first")
    try:
        config = json.loads((folder / "config.json").read_text())
        found = digests(folder)
        wrong = [name for name, digest in config["files"].items() if digest != found.get(name)]
    except FileNotFoundError:
        raise UserError(f"{folder}: {'incomplete' if folder.is_dir() else 'missing'}: {remedy}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder}/config.json: damaged: {remedy}") from None
    if wrong:
        raise UserError(f"{folder / wrong[0]}: damaged: {remedy}")
    return config


def finished(folder, made_from, overwrite=False):
    """Is the piece complete and made from the same inputs? Damage or other inputs are an error, with overwrite a no."""
    if not folder.exists():
        return False
    try:
        had, wants = opened(folder, "the same script")["made_from"], json.loads(json.dumps(made_from))
        had, wants = (x | x.get("pieces", {}) | {"pieces": None} for x in (had, wants))  # so that each is named
        changed = [k for k in sorted({*had, *wants}) if had.get(k) != wants.get(k)]
        if not changed:
            print(f"  kept  {folder}")
            return True
        problem = f"made from other inputs ({', '.join(changed)})"
    except UserError as error:
        problem = str(error).removeprefix(f"{folder}").split(": run")[0].strip("/: ")
    if not overwrite:
        raise UserError(f"{folder}: {problem}: pass --overwrite to replace it, or --artifacts for another folder")
    return False


def is_current(artifacts, name, of):
    """Is a piece made from the pieces that are there now, and they from theirs? One that was removed is not asked.

    of: fingerprints of the parts of data/, from open_data
    """
    def read(name):
        path = artifacts / name / "config.json"
        with explained(f"{path}: damaged", "make that piece again, with --overwrite"):
            config = json.loads(path.read_text())
            return fingerprint(config["files"]), config["made_from"].get("pieces", {})

    for other, found in read(name)[1].items():
        if other.startswith("data/"):
            if of.get(other) != found:
                return False
        elif (artifacts / other).exists() and (read(other)[0] != found or not is_current(artifacts, other, of)):
            return False
    return True


def is_alive(pid):
    """Is another process of this machine running under this number?"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()  # our own number on a leftover: it was an earlier process's


@contextlib.contextmanager
def publishing(folder, made_from, facts=None):
    """Give a folder beside `folder` to write to; when the block ends it is described and renamed: whole or not at all.

    `facts` go into config.json as they are when the block ends, so that the block may add to them.
    """
    mine = f".{folder.name}.{socket.gethostname()}-"
    partial, begun = folder.with_name(f"{mine}{os.getpid()}.partial"), time.time()
    replaces = folder.exists()
    for old in folder.parent.glob(f"{mine}*.partial"):  # left by a killed process of this machine
        if not is_alive(int(old.name.split("-")[-1].split(".")[0])):
            shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        path = partial / "config.json"  # a model's own config.json keeps its keys and gains ours
        config = json.loads(path.read_text()) if path.exists() else {}
        versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "datasets")}
        config |= {**(facts or {}), "made_from": made_from, "files": digests(partial), "versions": versions}
        path.write_text(json.dumps(config | {"seconds": round(time.time() - begun, 1)}, indent=1))
        try:
            if replaces and folder.exists():
                shutil.rmtree(folder.rename(partial.with_suffix(".old.partial")))
            partial.rename(folder)
            print(f"  wrote {folder}  ({time.time() - begun:.0f} s)")
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) or not folder.exists():
                raise
            print(f"  kept  {folder}  (another process was first)")
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def open_data(artifacts):
    """config.json of data/, with fingerprints of its parts under "of": data/sources, data/sources/en, data/targets/sw"""
    config = opened(artifacts / "data", "01_data.py")
    found = encoder_fingerprint(encoder_path(artifacts, config["encoder"]))
    if found != config["encoder_fingerprint"]:
        raise UserError(f"encoder {config['encoder']} has changed since stage 1: run python 01_data.py again, with its "
                        "flags and --overwrite")  # fmt: skip
    names = {"/".join(name.split("/")[:2]) for name in config["files"]}
    config["of"] = {"data/sources": fingerprint(config["sources"])}  # which there are
    for name in names:
        files = {file: digest for file, digest in config["files"].items() if file.startswith(name + "/")}
        config["of"][f"data/{name}"] = fingerprint(files | {"tags": config["tags"], "encoder": found})
    return config


class Rows:
    """Rows of an (N, D) float16 tensor in a safetensors file, read as asked for: memory does not grow with the corpus."""

    def __init__(self, path, name):
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))[name]
        self.file, self.begin = open(path, "rb", buffering=0), 8 + size + header["data_offsets"][0]
        self.shape = header["shape"]

    def __getitem__(self, spans):
        """The rows of every (start, stop), one behind the other  ->  (M, D) float16"""
        parts = []
        for start, stop in spans:
            self.file.seek(self.begin + 2 * start * self.shape[1])
            parts.append(self.file.read(2 * (stop - start) * self.shape[1]))
        return torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.float16).view(-1, self.shape[1])


# ------------------------------------------------------------------------ batches

def plan_batches(table, batch_size, rng=None):
    """Row numbers of each batch. Rows are sorted by length, so padding is rare, and a batch holds as many sub-tokens as
    `batch_size` average rows; `rng` shuffles rows of equal length and the order of the batches."""
    lengths = np.asarray(table["length"])
    order = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    batches, budget = [[]], batch_size * lengths.mean()
    for row in order[np.argsort(lengths[order], kind="stable")]:
        if batches[-1] and lengths[row] * (len(batches[-1]) + 1) > budget:
            batches.append([])
        batches[-1].append(int(row))
    if rng is not None:
        rng.shuffle(batches)
    return batches


def collate(rows, device):
    """Pad a batch: input_ids, attention_mask and f (B, T), f True at the first sub-token of each of the M scored words.

    row_sentence (B,), sentence (M,) and tags (M,) if there are any; spans: for every row, where its words stand in the
    corpus, (start, stop), by which caches are looked up. Padding is masked, so any id will do for it.
    """
    ids = [torch.tensor(x) for x in rows["input_ids"]]
    counts = torch.tensor([len(first) for first in rows["first"]])
    row = torch.arange(len(ids)).repeat_interleave(counts)                       # (M,)
    batch = {"input_ids": pad_sequence(ids, batch_first=True), "row_sentence": torch.tensor(rows["sentence"]),
             "attention_mask": pad_sequence([torch.ones_like(x) for x in ids], batch_first=True)}  # fmt: skip
    batch["f"] = torch.zeros(batch["input_ids"].shape, dtype=torch.bool)
    batch["f"][row, torch.tensor(list(itertools.chain(*rows["first"])), dtype=torch.long)] = True
    batch["sentence"] = batch["row_sentence"][row]
    if "tags" in rows:
        batch["tags"] = torch.tensor(list(itertools.chain(*rows["tags"])))
    if device.type == "cuda":
        batch = {name: x.pin_memory() for name, x in batch.items()}
    batch = {name: x.to(device, non_blocking=True) for name, x in batch.items()}
    return batch | {"spans": [(start, start + int(n)) for start, n in zip(rows["start"], counts)]}


def epochs(table, n_epochs, batch_size, rng, device, title):
    """(epoch, batch) through training, under a progress bar that counts words."""
    table = table.select_columns([c for c in table.column_names if c != "words"])
    words = n_epochs * sum(map(len, table["first"]))
    with tqdm(total=words, desc=title, unit=" words", leave=False, disable=None) as bar:
        for epoch in range(n_epochs):
            for rows in plan_batches(table, batch_size, rng):
                batch = collate(table[rows], device)
                yield epoch, batch
                bar.update(sum(stop - start for start, stop in batch["spans"]))


def word_states(model, batch):
    """The last hidden state at the first sub-token of every scored word: (M, H)."""
    out = model.base_model(batch["input_ids"], attention_mask=batch["attention_mask"])
    return out.last_hidden_state[batch["f"]]


@torch.inference_mode()
def over_words(model, table, outputs, device):
    """`outputs(h)` of every word, h (M, H): (N_words, D) float16 in corpus order, whatever the batching."""
    model.eval()
    result = None
    for _, batch in epochs(table, 1, 64, None, device, "every word once"):  # one pass, unshuffled, no training
        with autocast(model):
            values = outputs(word_states(model, batch)).half().cpu()
        if result is None:
            result = torch.empty(sum(map(len, table["first"])), values.shape[1], dtype=torch.float16)
        at = 0
        for start, stop in batch["spans"]:  # batches are sorted by length: back to corpus order
            result[start:stop] = values[at: at + stop - start]
            at += stop - start
    return result


def draw_pairs(classes, generator):
    """Pairs of words of a batch, balanced: each word with one of its own class and one of another class.

    The other class is drawn first, each as likely as the next: among words drawn alike nearly all would be O, and
    nobody would learn to tell a person from a place. A word without such a partner is left out.
    classes (M,)  ->  i, j (P,), P <= 2 M, so memory is linear in M

    Classes [0, 0, 1, 0, 1], say, give order [0, 1, 3, 2, 4], begin [0, 3] and size [3, 2]. A word's equal partner stands
    1 to size - 1 steps further on in its group, round and round, so it is never the word itself.
    """
    M, words = len(classes), torch.arange(len(classes), device=classes.device)
    order = torch.argsort(classes, stable=True)                                  # words grouped by class
    place = torch.empty_like(order).index_copy_(0, order, words)                 # and where each word stands there
    _, group, size = torch.unique(classes, return_inverse=True, return_counts=True)
    begin, G = size.cumsum(0) - size, len(size)                                  # where each group begins; groups
    dice = torch.rand(3, M, generator=generator).to(classes.device)
    step = 1 + (dice[0] * (size[group] - 1)).long()
    equal = begin[group] + (place - begin[group] + step) % size[group]
    other = (group + 1 + (dice[1] * (G - 1)).long()) % max(G, 1)                 # never its own; an empty batch has G = 0
    unequal = begin[other] + (dice[2] * size[other]).long()
    has_equal, has_unequal = size[group] > 1, torch.full_like(words, G > 1, dtype=torch.bool)
    i = torch.cat([words[has_equal], words[has_unequal]])
    return i, torch.cat([order[equal[has_equal]], order[unequal[has_unequal]]])  # places back to words


# ------------------------------------------------------------------------ encoders and optimisers

def encoder_size(encoder):
    """base (mBERT and up), small, or tiny: the stages' recipes differ by it."""
    width = transformers.AutoConfig.from_pretrained(encoder).hidden_size
    return "base" if width >= 512 else "small" if width >= 256 else "tiny"


def pick_device():
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def encoder_path(artifacts, name):
    """What from_pretrained takes: artifacts/encoder, a folder of the user's, or a hub name."""
    if name == "scratch":
        return artifacts / "encoder"
    return Path(name).resolve() if Path(name).is_dir() else name


def encoder_fingerprint(encoder):
    """Hash of a folder's files; a hub name stands for itself, and its cache is checked by the hub's own library."""
    if not isinstance(encoder, Path):
        return fingerprint(encoder)
    with explained(f"encoder {encoder}: cannot read its config.json", "run python 01_data.py again, with --overwrite"):
        path = encoder / "config.json"  # less what differs between two runs
        config = json.loads(path.read_text()) if path.exists() else {}
        return fingerprint([digests(encoder), {k: v for k, v in config.items() if k not in ("versions", "seconds")}])


def check_length(encoder, max_length):
    """Refuse a window longer than the encoder reads."""
    limit = 512
    if encoder != "scratch":
        with explained(f"--encoder {encoder}: cannot load its configuration", ENCODER_REMEDY):
            config = transformers.AutoConfig.from_pretrained(encoder)
        limit = min(getattr(config, "max_position_embeddings", 512), load_tokenizer(encoder).model_max_length)
        limit -= config.pad_token_id + 1 if "roberta" in config.model_type and limit > 512 else 0  # positions start late
    if not 8 <= max_length <= limit:
        raise UserError(f"--max-length {max_length}: the encoder takes 8 to {limit} sub-tokens")


def load_tagger(encoder, tags, seed, device):
    """An encoder with a linear head over `tags`; the seed fixes the new head."""
    torch.manual_seed(seed)
    labels = {"id2label": dict(enumerate(tags)), "label2id": {tag: i for i, tag in enumerate(tags)}}
    attention = "eager" if device.type == "cpu" else None  # on a CPU plain attention is faster, else the model's choice
    with explained(f"encoder {encoder}: cannot load it", "choose another in stage 1"):
        model = transformers.AutoModelForTokenClassification.from_pretrained(
            encoder, dtype=torch.float32, attn_implementation=attention, **labels)
        if not (hasattr(model, "dropout") and hasattr(model, "classifier")) or hasattr(model, "head"):
            raise ValueError("its token classifier is not a dropout and a linear layer, as BERT's and XLM-R's are")
    return model.to(device)


def freeze(model, layers):
    """Freeze the embeddings and the bottom `layers` layers (TSL, Sec. 4.1); 0 freezes nothing."""
    depth = model.config.num_hidden_layers
    if not 0 <= layers < depth:
        raise UserError(f"--freeze {layers}: the encoder has {depth} layers, give 0 to {depth - 1}")
    frozen = [f"layer.{i}." for i in range(layers)] + ["embeddings."]  # the dot, or layer.1 is layer.10 too
    for name, p in model.base_model.named_parameters():
        p.requires_grad = not (layers and any(part in name for part in frozen))


def autocast(model):
    """Mixed precision where it pays: bf16 or fp16 on CUDA, bf16 on CPUs that multiply it, for encoders not tiny."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        return torch.autocast("cuda", torch.float16 if needs_scaler(device) else torch.bfloat16)
    pays = device.type == "cpu" and model.config.hidden_size >= 256 and torch.backends.mkldnn.is_available()
    return torch.autocast("cpu", torch.bfloat16, enabled=pays and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def needs_scaler(device):
    """fp16 gradients underflow without a scaler; bf16 and fp32 need none."""
    return device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)


def optimizer_for(model, lr, steps, weight_decay=0.01, head_scale=1.0):
    """AdamW, no decay on biases and LayerNorm, linear warm-up over 10 % of the steps, then linear decay (TSL).

    Frozen parameters stay out; `head_scale` multiplies the classifier's learning rate.
    """
    groups = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            key = (lr * head_scale if name.startswith("classifier") else lr, weight_decay if p.ndim > 1 else 0.0)
            groups.setdefault(key, []).append(p)
    groups = [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]
    optimizer = torch.optim.AdamW(groups, fused=True)
    return optimizer, transformers.get_linear_schedule_with_warmup(optimizer, int(0.1 * steps), steps)


if __name__ == "__main__":
    run(lambda: main(parse_args()))
