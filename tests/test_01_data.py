"""Stage 1: every word in is a word out, doubt is refused, pieces are whole or absent."""

import itertools
import json
import os
import random
import shutil
import time
from collections import Counter

import datasets
import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

from conftest import GOOD, PAIR, corpus, data, files, here, refused, stopped


def write(tmp_path, content):
    path = tmp_path / "aa.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(tmp_path, content):
    return data.read_conll(write(tmp_path, content))


# ------------------------------------------------------------------------ files that are read

@pytest.mark.parametrize("content", [
    "Anna B-PER\nruns O\n\nin O\nOslo B-LOC",
    "Anna B-PER\t\nruns O\n\nin O\nOslo B-LOC\n",  # a tab that ends a line parts nothing
    "Anna NNP B-NP B-PER\nruns VBZ B-VP O\n\nin IN B-PP O\nOslo NNP B-NP B-LOC\n",
    "Anna\tAnna\tB-PER\nruns\trun\tO\n\nin\tO\tO\nOslo\tOslo\tB-LOC\n",  # of lemmas one is O
    "Anna O B-PER\nruns O O\n\nin O O\nOslo O B-LOC\n",  # O alone is no column of tags
    "Anna NE I-NC B-PER\nruns V I-VC O\n\nin P I-PC O\nOslo NE I-NC B-LOC\n",  # German chunks
])
def test_a_word_and_its_tag_are_read_whatever_stands_between(tmp_path, content):
    sentences, _ = read(tmp_path, content)
    assert sentences == [(["Anna", "runs"], ["B-PER", "O"]), (["in", "Oslo"], ["O", "B-LOC"])]


WORDS = {  # what looks like something else and is words all the same
    "no tags": ("Anna\nruns\n", "Anna·runs"),
    "numbers in one sentence": ("1 O\n2 O\n3 O\n\nBo O\nist O\nda O\n", "1·2·3 / Bo·ist·da"),
    "a word repeated": ("no O\nno O\nno O\n\nBo B-PER\nist O\nda O\n", "no·no·no / Bo·ist·da"),
    "commas and bars": ("1,000\nand/or\na|b\nTitle|O\nx,y\n", "1,000·and/or·a|b·Title|O·x,y"),
    "colons": ("de:Anna B-PER\nHinweis: O\n", "de:Anna·Hinweis:"),
    "a hash before a word": ("#Wien B-LOC\nist O\n", "#Wien·ist"),
    "a hash that begins a sentence": ("# O\n1 O\n\nBo B-PER\n# O\n", "#·1 / Bo·#"),
    "comments": ("# text = Bo\n# id 3\nBo B-PER\nist O\n\n# id = 7\nda O\n", "Bo·ist / da"),
    "wide comments": ("# id = 1\nBo NN x B-X\n\n# id = 2\nist V x O\n", "Bo / ist"),
    "separators inside": ("a\u2028b O\nc\x85d\u200ce O\n", "a\u2028b·c\x85d\u200ce"),
    "two byte order marks": ("\ufeffBo O\n\n\ufeffist O\n", "Bo / ist"),
    "a space inside a word of a tabbed file": ("New York\tB-LOC\nist\tO\n", "New York·ist"),
    "a space inside a word that is no name": ("ist O\n10 Oktober O\n", "ist·10 Oktober"),
    "padded": ("".join(f"{n * 'x':<9}O\n" for n in range(1, 7)), "x·xx·xxx·xxxx·xxxxx·xxxxxx"),
    "a lemma like a tag": ("Bo _ B-PER\nemail E-Mail O\nRom _ B-LOC\n", "Bo·email·Rom"),
    "addresses": ("http://e-date.de\nda\nhttp://b-loc\n", "http://e-date.de·da·http://b-loc"),
    "characters of words": ("上 上海 O\n海 上海 O\n" * 6, "上·海·上·海·上·海·上·海·上·海·上·海"),
    "types of two scripts": ("β B-β_blocker\nBo B-PER_имя\n", "β·Bo"),
}


@pytest.mark.parametrize("case", WORDS)
def test_words_that_look_like_something_else_are_words(tmp_path, case):
    content, expected = WORDS[case]
    sentences, _ = read(tmp_path, content)
    assert " / ".join("·".join(words) for words, _ in sentences) == expected


def test_what_is_repaired_is_counted(tmp_path):
    raw = "\ufeff-DOCSTART- -X- O O\r\n\r\n# a comment\r\nAnna  B-\u200bPER\r\n O\r\n"
    raw += "\u3000 O\r\n\r\nis O \r\n"
    raw += "so O\u00ad\u200b\u200e\u202c\u2060\u061c\ufe0f\ufeff\r\n"
    sentences, counts = read(tmp_path, raw)
    assert sentences == [(["Anna"], ["B-PER"]), (["is", "so"], ["O", "O"])]
    expected = {"bom": 1, "docstart": 1, "crlf": 9, "spaces": 2, "comment": 1}
    expected.update(invisible=2, no_word=2)
    assert +counts == expected


CHARACTERS = "abfiloruZé\u0301ßאשلمن字化ひ한กำमनी\u200d👩🏽\u200b\u00ad'-.–\ufeff0９"


def random_word(rng):
    return "".join(rng.choices(CHARACTERS, k=rng.randint(1, 6)))


def random_file(rng):
    """A random readable file with its words and tags. No word begins with a byte order mark."""
    sentences = []
    for _ in range(rng.randint(1, 6)):
        kind = rng.choice(["PER", "PER.NAM", "creative-work", "WORK_OF_ART"])
        tags = rng.choices(["O", f"B-{kind}", f"I-{kind}"], k=rng.choice([1, 3, 9]))
        words = [random_word(rng).lstrip("\ufeff") or "a" for _ in tags]
        sentences.append(list(zip(words, tags)))
    end = rng.choice(["\n", "\r\n", "\r", "\r\r\n"])
    gap = rng.choice([" ", "\t", "  "])
    middle = rng.choice([[], ["NN"], ["NN", "x"]])
    lines = []
    for sentence in sentences:
        lines += [gap.join([word, *middle, tag]) for word, tag in sentence]
        lines += [""] * rng.randint(1, 3)
    return (rng.choice(["", "\ufeff"]) + end.join(lines)).encode(), sentences


def test_random_files_keep_every_word_and_tag(tmp_path):
    for seed in range(300):
        raw, expected = random_file(random.Random(seed))
        found, _ = read(tmp_path, raw)
        assert [list(zip(words, tags)) for words, tags in found] == expected, seed


def test_damaged_files_are_refused_with_their_name_or_read_whole(tmp_path, capsys):
    n_refused = 0
    for seed in range(300):
        rng = random.Random(seed)
        raw = bytearray(random_file(rng)[0])
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        try:
            sentences, _ = read(tmp_path, bytes(raw))
            assert all(len(words) == len(tags or words) for words, tags in sentences)
        except SystemExit:
            assert "aa.txt" in capsys.readouterr().err
            n_refused += 1
    assert 50 < n_refused < 300


# ------------------------------------------------------------------------ files that are refused

INDEX = "first column index put the word"
REFUSED = {  # a file that can be read in two ways, or in none: (content, words of the refusal)
    "words are counted": ("1\tBo\tB-PER\n2\tis\tO\n\n1\tin\tO\n2\tOslo\tO\n3\t.\tO\n", INDEX),
    "ranges and numbers": ("1-2\tzum\tO\n1\tzu\tO\n2\tdem\tO\n3\tHaus\tO\n4\t.\tO\n", INDEX),
    "an id before every word": ("188 Bo B-PER\n188 is O\n188 in O\n188 Oslo B-LOC\n", INDEX),
    "an id before the first word": ("Sentence: 1\tBo\tB-PER\n\tis\tO\n" * 12, INDEX),
    "two tag columns, a typo": ("Bo B-X O\nOE OE O\n" + "Wien B-X O\n" * 3, "(column 2)"),
    "O is a low line": ("Bo B-X O\nist _ O\nda _ O\nWien B-X B-X\n", "two (column 2)"),
    "classes before words": ("".join(f"N {x} O\nV {x}t O\n" for x in "abcde"), INDEX),
    "identifiers": ("t1 Bo B-X\nt2 ist O\nt7 in O\nt9 Rom O\nt4 da O\n" * 2, INDEX),
    "chunks last": ("Anna NNP B-NP\nlives VBZ B-VP\n\nin IN B-PP\n", "chunks (column 3)"),
    "a space inside a name": ("ist O\nNew York B-LOC\n", "aa.txt:2: columns"),
    "a space before a word": ("Bo B-PER\n ist O\n", "aa.txt:2: columns"),
    "a word without a tag": ("Anna B-PER\nruns\n", "aa.txt:2: columns"),
    "a space for a tab": ("Anna\tB-PER\nruns O\n", "aa.txt:2: columns"),
    "two lines glued": ("is O\nOslo B-LOC. O\nBo B-PER\n", "aa.txt:2: two lines"),
    "two lines of O glued": ("is O\nda OBo O\n", "aa.txt:2: two lines"),
    "two tags in a cell": ("Bo B-PER,B-MISC\n", "aa.txt:1: several tags"),
    "a tag and O in a cell": ("is O\nBo B-PER/O\n", "aa.txt:2: several tags"),
    "types without B and I": ("is O\nBo PER\n", "aa.txt:2: B- and I- PER"),
    "a Cyrillic O": ("Anna B-PER\nruns \u041e\n", r"aa.txt:2: \u041e"),
    "a Cyrillic letter in a type": ("Anna B-\u0420ER\n", "aa.txt:1: scripts"),
    "a language before words": ("simple:Bo O\nsimple:in O\nda O\n", "language before every"),
    "regions, in capitals": ("zh-TW:Bo O\nDE:in O\nda O\n", "language before every"),
    "a comma behind every word": ("Anna, B-PER\nlives, O\nin O\n", "comma tabs"),
    "a semicolon behind every word": ("Anna; B-PER\nlives; O\nin O\n", "comma tabs"),
    "UTF-16 without a mark": ("Bo B-PER\nist O\n".encode("utf-16-be"), "UTF-16 iconv"),
    "tags of its own in words": ("Bo/B-DIS\nist/O\nda/O\n", "tags inside words"),
    "a written tab in words": ("Bo\\tB-DIS\nist\\tO\nda\\tO\n", "tags inside words"),
    "tags of names alone": ("Bo/b-per\nist\nda\n\nRom/i-location\nist\nda\n", "tags inside"),
    "sub-tokens": ("[CLS] O\nAn B-PER\n##na I-PER\nist O\n##t O\n", "sub-tokens join"),
    "sentences": ("".join("Bo " * n + "ruht .\n" for n in range(1, 8)), "sentences text.txt"),
    "nothing": ("", "no sentences"),
    "Latin-1": ("so O\ncafé O\n".encode("latin-1"), "aa.txt:2: UTF-8 iconv"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_can_be_read_in_two_ways_is_refused(tmp_path, case):
    content, says = REFUSED[case]
    line = stopped(read, tmp_path, content)
    for part in ["aa.txt", *says.split()]:
        assert part in line


SHAPES = [*",;|/_", "__", "\\t", "\u00a0", "\u3000", "//", '","']
SHAPES = [f"{{}}{between}{{}}" for between in SHAPES]
SHAPES += ["{}[{}]", "<{1}>{0}</{1}>", "{1}/{0}"]


@pytest.mark.parametrize("shape", SHAPES)
def test_tags_inside_words_are_refused_in_whatever_shape(tmp_path, shape):
    lines = [shape.format(*line.split()) if line else "" for line in GOOD.split("\n")]
    line = stopped(read, tmp_path, "\n".join(lines))
    assert "tags inside the words" in line and "tab" in line


# ------------------------------------------------------------------------ raw text and odd text

def text_of(tmp_path, content):
    return data.read_raw_text(write(tmp_path, content))[0]


def test_raw_text_is_a_sentence_a_line_and_signs_are_words(tmp_path):
    assert text_of(tmp_path, "\ufeffKala ne Oslo!\r\n\r\n ne. \r\n") == [
        (["Kala", "ne", "Oslo", "!"], None), (["ne", "."], None)
    ]


@pytest.mark.parametrize("content", [
    GOOD, GOOD.replace(" ", "\t"), GOOD.replace(" ", " NN x "), "Bo/B-PER is/O in/O Oslo/B-LOC\n",
])
def test_raw_text_that_has_tags_is_refused(tmp_path, content):
    line = stopped(text_of, tmp_path, content)
    assert "words with tags" in line and "train.txt" in line


EMPTY = dict.fromkeys(("train", "dev", "test"))


def test_raw_text_of_a_target_is_its_training_text_and_its_test_text_if_there_is_no_other(tmp_path):
    folder = corpus(tmp_path / "in", bb={"text": "Kala ne!\n"}, cc=dict(EMPTY, text="Kala\n"))
    beside = data.read_folder(folder, "bb", ["train", "test"])
    assert beside["train"][0] == [(["Kala", "ne", "!"], None)]
    assert beside["test"] == read(tmp_path, GOOD)
    alone = data.read_folder(folder, "cc", ["train", "test"])
    assert alone["train"] == alone["test"]
    assert alone["test"][0] == [(["Kala"], None)]


def notes(sentences, unknown=0.0):
    return " ".join(data.oddities(sentences, unknown))


def test_what_is_odd_in_a_text_is_noted_and_what_is_not_is_not(tmp_path):
    huge, _ = read(tmp_path, "Anna B-PER\nruns O\n" * 200)
    assert "blank lines" in notes(huge * 2)
    alone, _ = read(tmp_path, GOOD.replace("\n", "\n\n") * 9)
    assert "longer than a word" in notes(alone) and notes(alone * 2 + huge * 18) == ""
    assert "numbers or identifiers" in notes([(["doc-17", "s12", "Anna"], None)] * 3)
    assert notes([(["im", "Jahr", "2023"], None)] * 3) == ""
    assert "no word is in an entity" in notes([(["Anna", "runs"], ["O", "O"])])
    records = ['{"text": "Kala."}', '"text": "Kala."', "12\tKala.", "Kala <b>ne</b>.", '"Kala","a"']
    for line in records:
        _, counts = data.read_raw_text(write(tmp_path, f"{line}\n" * 5))
        assert "JSON" in " ".join(counts), line
    for line in ["12 ne.", '"Kala", ne.', "3,5 ne.", "[[Kala]] ne.", "<3 ne."]:
        _, counts = data.read_raw_text(write(tmp_path, f"{line}\n" * 5))
        assert "JSON" not in " ".join(counts), line
    assert notes(alone[:2], 0.76) == "76% of sub-tokens unknown to the encoder"
    assert notes(alone[:2], 0.04) == ""


def test_a_script_without_spaces_is_to_be_segmented_first_and_no_other(tmp_path):
    for text in ("他在北京大学学习了三年历史。", "東京都の大学で歴史を勉強しました。", "เขาอาศัยอยู่ในกรุงเทพ"):
        assert "segment" in notes(text_of(tmp_path, text))
    spaced = ["वह दिल्ली में रहता है और काम करता है", "እሱ በአዲስ አበባ ይኖራል", "يعيش في القاهرة"]
    for text in [*spaced, "Rechtsschutzversicherungen sind teuer", "他 在 北京 大学 学习 了 三 年 。"]:
        assert notes(text_of(tmp_path, text)) == ""


def test_the_report_says_what_was_repaired_and_what_is_odd(encoders, tmp_path):
    odd = {"train": "bira B-PER\n O\nzu O\n", "test": "ጎንደር B-LOC\nጎንደር O\n"}
    folder = corpus(tmp_path / "in", bb=odd)
    flags = ["--data-dir", folder, *PAIR[:-1], encoders["BERT"]]
    here("01_data.py", tmp_path / "a", *flags)
    report = pd.read_csv(tmp_path / "a/report.csv")
    found = report.set_index(["language", "split"]).notes
    assert found["bb", "train"] == "1 no_word"
    assert "% of sub-tokens unknown" in found["bb", "test"]
    assert found["aa", "train"].startswith("2 PER, 1 LOC")


# ------------------------------------------------------------------------ tags

IOB2 = "B-PER I-PER I-PER B-PER B-PER I-PER O B-LOC B-ORG I-ORG B-ORG O B-ORG"


@pytest.mark.parametrize("tags", [
    "I-PER I-PER I-PER B-PER B-PER I-PER O I-LOC I-ORG I-ORG B-ORG O I-ORG",  # IOB1
    "B-PER I-PER E-PER S-PER B-PER E-PER O S-LOC B-ORG E-ORG S-ORG O S-ORG",  # IOBES
    "B-PER I-PER L-PER U-PER B-PER L-PER O U-LOC B-ORG L-ORG U-ORG O U-ORG",  # BILOU
    "B-PER M-PER E-PER S-PER B-PER E-PER O S-LOC B-ORG E-ORG S-ORG O S-ORG",  # BMES
])
def test_every_tag_scheme_becomes_iob2(tags):
    assert data.to_iob2(tags.split()) == IOB2.split()


def test_a_stray_i_opens_an_entity_and_types_that_are_none_of_ours_become_o():
    tags = ["O", "I-PER", "I-PER", "B-LOC", "I-ORG", "B-DATE"]
    given = [(list("abcdef"), tags)]
    sentences, counts = data.harmonise(given, ["PER", "LOC", "ORG"], "xx")
    assert sentences[0][1] == ["O", "B-PER", "I-PER", "B-LOC", "B-ORG", "O"]
    assert tags[1] == "I-PER"  # what was read stays as it was
    expected = {"converted": 2, "PER": 1, "LOC": 1, "ORG": 1, "DATE dropped": 1}
    assert +counts == Counter(expected)


def test_a_text_of_other_types_alone_is_refused_and_one_without_entities_is_not():
    animals = [(["Rex"], ["B-ANIMAL"])]
    line = stopped(data.harmonise, animals, ["PER"], "gold/bb, test")
    assert "gold/bb, test" in line and "ANIMAL" in line and "--types" in line
    plain = [(["is"], ["O"])]
    assert data.harmonise(plain, ["PER"], "bb")[0] == plain


def source(*types):
    tags = [f"B-{kind}" for kind in types]
    return {"train": ([(["x"] * len(tags), tags)], Counter())}


def test_the_types_are_those_that_the_sources_share_or_those_asked_for():
    sources = {"aa": source("PER", "LOC", "DATE"), "cc": source("LOC", "PER")}
    assert data.shared_types(sources, None) == ["LOC", "PER"]
    assert data.shared_types(sources, ["PER", "PER"]) == ["PER"]
    assert data.shared_types({}, ["PER", "LOC"]) == ["LOC", "PER"]  # without any source
    assert "DATE" in stopped(data.shared_types, sources, ["DATE"])
    sources["dd"] = source("X")
    assert "--types" in stopped(data.shared_types, sources, None)


# ------------------------------------------------------------------------ tiny encoders

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZE["intermediate_size"] = 32
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NAMES = ["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"]
TEXT = [" ".join(words) for words, _ in data.toy_corpus("qaa", 0)["train"][:200]]
SENTENCES = [(text.split(), None) for text in TEXT[:20]]


def wrap(tokenizer):
    """A trained tokenizer in the generic class of transformers, with [CLS] and [SEP]."""
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    frame = tokenizers.processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.post_processor = frame
    names = dict(zip(NAMES, SPECIAL))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def wordpiece():
    tokenizer = tokenizers.BertWordPieceTokenizer(lowercase=False)
    tokenizer.train_from_iterator(TEXT, 300, show_progress=False)
    return wrap(tokenizer._tokenizer)


def byte_level():
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXT, 400, special_tokens=SPECIAL, show_progress=False)
    tokenizer = wrap(tokenizer._tokenizer)
    tokenizer.unk_token = None  # one of bytes needs none
    return tokenizer


def unigram():
    tokenizer = tokenizers.SentencePieceUnigramTokenizer()
    options = {"special_tokens": SPECIAL, "unk_token": "[UNK]", "show_progress": False}
    tokenizer.train_from_iterator(TEXT, 300, **options)
    return wrap(tokenizer._tokenizer)


def save(folder, tokenizer, config, size=SIZE, **options):
    """A random encoder of this configuration, with its tokenizer."""
    torch.manual_seed(0)
    options.setdefault("vocab_size", len(tokenizer))
    tokenizer.save_pretrained(folder)
    model = transformers.AutoModel.from_config(config(**size, **options))
    model.save_pretrained(folder)
    return folder


SHORT = {"max_position_embeddings": 130, "pad_token_id": 0}
ENDS = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2}
ENDS.update(eos_token_id=3, sep_token_id=3)
OF_XLNET = {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 32}
ENCODERS = {  # (tokenizer, configuration, its options)
    "BERT": (wordpiece, transformers.BertConfig, SIZE),
    "RoBERTa": (byte_level, transformers.RobertaConfig, dict(SIZE, **SHORT)),
    "XLM-R": (unigram, transformers.XLMRobertaConfig, dict(SIZE, **SHORT)),
    "ModernBERT": (byte_level, transformers.ModernBertConfig, dict(SIZE, **ENDS)),
    "EuroBERT": (byte_level, transformers.EuroBertConfig, dict(SIZE, **ENDS)),
    "T5": (unigram, transformers.T5Config, SIZE),
    "XLNet": (unigram, transformers.XLNetConfig, OF_XLNET),
}
KINDS = ["BERT", "RoBERTa", "XLM-R", "ModernBERT", "EuroBERT"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    for kind, (make_tokenizer, config, size) in ENCODERS.items():
        save(folder / kind, make_tokenizer(), config, size)
    return {kind: folder / kind for kind in ENCODERS}


def first_stage(tmp_path, encoder, *flags):
    """Flags of stage 1 for GOOD files and this encoder."""
    return ["--data-dir", corpus(tmp_path / "in"), *PAIR[:-1], encoder, *flags]


# ------------------------------------------------------------------------ words to sub-tokens

@pytest.mark.parametrize("kind", KINDS)
def test_words_are_tokenised_as_in_running_text(encoders, kind):
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoders[kind])
    table = data.encode(SENTENCES, data.load_tokenizer(encoders[kind]), 128)
    assert list(table["input_ids"]) == tokenizer(TEXT[:20])["input_ids"]


@pytest.mark.parametrize("name", ["BertTokenizer", "RobertaTokenizer", None])
def test_a_tokenizer_is_what_its_file_says_whatever_its_class(encoders, tmp_path, name):
    """The library rebuilds some classes' from their vocabulary: lower-cased, or otherwise split."""
    folder = shutil.copytree(encoders["XLM-R"], tmp_path / "e")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = name
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    stored = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    table = data.encode(SENTENCES, data.load_tokenizer(folder), 128)
    assert list(table["input_ids"]) == [stored.encode(text).ids for text in TEXT[:20]]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_in_the_text_are_text(encoders, kind):
    tokenizer = data.load_tokenizer(encoders[kind])
    words = ["bi", "<s>", "[SEP]", "<pad>", "[CLS]", "</s>", "<mask>", "[MASK]", "[PAD]"]
    row = data.encode([(words, None)], tokenizer, 128)[0]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert row["words"] == words and not special & set(row["input_ids"][1:-1])
    assert row["input_ids"][0] == tokenizer.cls_token_id
    if kind not in ("BERT", "XLM-R"):  # those of bytes know every letter
        assert tokenizer.unk_token_id not in row["input_ids"]


def sub_tokens(words, tokenizer):
    pieces = data.split_words(words, tokenizer)
    return [tokenizer.convert_ids_to_tokens(ids) for ids in pieces]


def test_a_sub_token_belongs_to_the_word_in_which_it_ends(encoders):
    """A sign of a space is before a word, so a token of that sign alone is the next word's."""
    bert = data.load_tokenizer(encoders["BERT"])
    assert sub_tokens(["Nafi", "bira", "."], bert) == [["Na", "##fi"], ["b", "##ir", "##a"], ["."]]
    unigram = data.load_tokenizer(encoders["XLM-R"])
    assert sub_tokens(["Nafi", "."], unigram) == [["▁Na", "fi"], ["▁", "."]]
    roberta = data.load_tokenizer(encoders["RoBERTa"])
    assert sub_tokens(["Nafi", "字"], roberta) == [["N", "afi"], ["Ġ", "å", "Ń", "Ĺ"]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [16, 40])
def test_every_word_is_scored_once_in_order_whatever_its_characters(encoders, kind, length):
    rng = random.Random(0)
    odd = ["Anna", "字化", "\u200b", "👩🏽", "x" * 700, "e\u0301", "\u00ad", "'s"]
    texts = [[random_word(rng) for _ in range(n)] for n in (1, 5, 40, 1000)]
    texts += [odd * 3, ["\u200b"], ["x" * 500, "y"]]
    given = [(words, None) for words in texts]
    table = data.encode(given, data.load_tokenizer(encoders[kind]), length)
    words = list(itertools.chain(*table["words"]))
    assert words == list(itertools.chain(*texts))
    starts = np.cumsum([0, *map(len, table["words"])])
    assert [*table["start"], len(words)] == starts.tolist()
    for row in table:
        assert len(row["input_ids"]) == row["length"] <= length
        assert len(row["first"]) == len(row["words"])
        assert row["first"] == sorted(set(row["first"]))  # each word has its own
        assert 0 < row["first"][0] and row["first"][-1] < row["length"] - 1


def test_tags_follow_their_words_into_the_windows(encoders):
    words = ["bira", "Nafi", "zu"] * 3
    given = [(words, ["O", "O", "B-LOC"] * 3)]
    table = data.encode(given, data.load_tokenizer(encoders["BERT"]), 12, ["O", "B-LOC"])
    assert len(table) > 1
    for row in table:
        assert row["tags"] == [int(word == "zu") for word in row["words"]]


def test_windows_score_each_word_once_with_context_on_both_sides():
    assert data.cut([1] * 20, 20) == [(0, 20, 0, 20)]  # what fits is one
    for seed in range(100):
        rng = random.Random(seed)
        lengths = [rng.choice([1, 1, 2, 5, 20]) for _ in range(rng.randint(1, 300))]
        spans = data.cut(lengths, 20)
        scored = [range(first, end) for _, _, first, end in spans]
        assert list(itertools.chain(*scored)) == list(range(len(lengths)))
        for start, end, first_scored, scored_end in spans:
            assert start <= first_scored < scored_end <= end
            assert sum(lengths[start:end]) <= 20
    spans = data.cut([1] * 600, 126)
    for (_, end, _, border), (start, *_) in itertools.pairwise(spans):
        assert min(border - start, end - border) >= 15


# ------------------------------------------------------------------------ encoders

@pytest.mark.parametrize("kind", ["RoBERTa", "ModernBERT", "EuroBERT"])
def test_encoders_of_todays_kinds_go_through_the_first_two_stages(encoders, tmp_path, kind):
    here("01_data.py", tmp_path / "a", *first_stage(tmp_path, encoders[kind]))
    here("02_teachers.py", tmp_path / "a", "--sources", "aa", "--freeze", "1")
    found = load_file(tmp_path / "a/logits/bb/recogniser-aa-s0/test.safetensors")["logits"]
    assert found.shape == (6, 5) and found.isfinite().all()


@pytest.mark.parametrize("kind, length, says", [
    ("T5", 128, "no plain encoder"), ("XLNet", 128, "no plain encoder"),
    ("RoBERTa", 130, "reads 129 sub-tokens"), ("BERT", 513, "reads 512 sub-tokens"),
])
def test_models_that_cannot_read_the_windows_are_refused(encoders, tmp_path, kind, length, says):
    flags = first_stage(tmp_path, encoders[kind], "--max-length", length)
    refused("01_data.py", tmp_path / "a", *flags, says=says)


@pytest.mark.parametrize("name, value, says", [
    ("encoder.layer.1.output.dense.bias", None, "weights are not in its files"),
    ("encoder.layer.1.output.dense.bias", np.nan, "not finite"),
    ("classifier.bias", 0.0, "trained head"),
])
def test_an_encoder_of_other_weights_is_refused(encoders, tmp_path, name, value, says):
    folder = shutil.copytree(encoders["BERT"], tmp_path / "e")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["mask_predictions.classifier.bias"] = torch.zeros(9)  # no tagger's head: DeBERTa has it
    tensors.pop(name, None)
    if value is not None:
        tensors[name] = torch.full([32], value)
    save_file(tensors, path, metadata={"format": "pt"})
    refused("01_data.py", tmp_path / "a", *first_stage(tmp_path, folder), says=[str(folder), says])


def test_an_embedding_may_have_more_rows_than_there_are_tokens_but_not_fewer(tmp_path):
    tokenizer = wordpiece()
    more = save(tmp_path / "more", tokenizer, transformers.BertConfig, vocab_size=320)
    data.check_encoder(more, data.load_tokenizer(more), 128)
    fewer = save(tmp_path / "fewer", tokenizer, transformers.BertConfig, vocab_size=290)
    says = ["300 tokens", "290 rows", "resize_token_embeddings"]
    refused("01_data.py", tmp_path / "a", *first_stage(tmp_path, fewer), says=says)


def test_letters_that_a_vocabulary_lacks_need_its_unknown_token(tmp_path):
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
    model = tokenizers.models.WordPiece(dict(zip(pieces, range(99))), unk_token="[UNK]")
    folder = save(tmp_path / "e", wrap(tokenizers.Tokenizer(model)), transformers.BertConfig)
    flags = first_stage(tmp_path, folder)
    refused("01_data.py", tmp_path / "a", *flags, says=["--encoder", "unknown"])


@pytest.mark.parametrize("lacks", ["tokenizer", "model", "config", ""])
def test_an_encoder_that_lacks_a_file_is_refused(encoders, tmp_path, lacks):
    folder = shutil.copytree(encoders["BERT"], tmp_path / "e")
    for path in folder.glob(f"{lacks}*"):
        path.unlink()
    refused("01_data.py", tmp_path / "a", *first_stage(tmp_path, folder), says=str(folder))


# ------------------------------------------------------------------------ the hub

LABELS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]


def from_hub(monkeypatch, preset, lang, labels=LABELS, words=("Anna", "is"), numbers=(1, 0)):
    """[(words, tags)] of a data set of one sentence and an empty one, and the files asked for."""
    names = datasets.List(datasets.ClassLabel(names=labels))
    text = datasets.List(datasets.Value("string"))
    features = datasets.Features({"tokens": text, "ner_tags": names})
    rows = {"tokens": [list(words), []], "ner_tags": [list(numbers), []]}
    table = datasets.Dataset.from_dict(rows, features)
    asked = []

    def load_dataset(kind, data_files, split):
        asked.append(data_files.removeprefix("hf://datasets/"))
        return table

    monkeypatch.setattr(data.datasets, "load_dataset", load_dataset)
    found = data.read_hub(preset, lang, ["train", "dev"])
    assert found["train"][0] == found["dev"][0]
    return found["dev"][0], asked[1]


CONLL = "eriktks/conll2003@refs%2Fconvert%2Fparquet/conll2003"


@pytest.mark.parametrize("preset, lang, more, file", [
    ("wikiann", "sw", [], "unimelb-nlp/wikiann/sw/validation-00000-of-00001.parquet"),
    ("conll", "en", ["B-MISC", "I-MISC"], f"{CONLL}/validation/0000.parquet"),
])
def test_a_preset_reads_its_own_files_of_the_hub(monkeypatch, preset, lang, more, file):
    found = from_hub(monkeypatch, preset, lang, LABELS + more)
    assert found == ([(["Anna", "is"], ["B-PER", "O"])], file)  # and no empty sentence


def test_words_and_labels_of_the_hub_that_are_none_are_dropped_and_refused(monkeypatch):
    words = ["Ma\nja", "", None, "is", " "]
    found, _ = from_hub(monkeypatch, "wikiann", "sw", LABELS, words, [1, 0, 0, 0, 0])
    assert found == [(["Ma ja", "is"], ["B-PER", "O"])]
    other = [label.replace("PER", "PERSON") for label in LABELS]
    line = stopped(from_hub, monkeypatch, "wikiann", "sw", other)
    assert "--preset wikiann, language sw: other tags" in line
    minus = LABELS, ["Anna", "is"], [1, -1]  # as a tokenised set marks what begins no word
    assert "other tags" in stopped(from_hub, monkeypatch, "wikiann", "sw", *minus)


def test_a_hub_out_of_reach_is_one_line_with_the_ways_to_work_offline(tmp_path):
    says = ["--preset wikiann, language en", "--data-dir DIR --encoder scratch"]
    refused("01_data.py", tmp_path / "a", "--preset", "wikiann", says=says)


# ------------------------------------------------------------------------ flags

TO_BB = "--sources aa --targets bb --encoder scratch"
MISTAKES = {  # (files, flags, words of the refusal)
    "an untagged dev": ({"aa": {"dev": "Anna\nruns\n"}}, TO_BB, "source aa no tags"),
    "raw text of nothing": ({"bb": dict(EMPTY, text=" \n")}, TO_BB, "bb/text.txt no sentences"),
    "a limit of nothing": ({}, f"{TO_BB} --limit 0", "--limit"),
    "a source of raw text": ({"aa": dict(EMPTY, text="Bo runs\n")}, TO_BB, "aa/train.txt"),
    "a target without a file": ({"bb": EMPTY}, TO_BB, "bb/train.txt text.txt"),
    "a file in two minds": ({"bb": {"test": "Anna 0\n"}}, TO_BB, "bb/test.txt:1: '0'"),
    "an unknown language": ({}, "--sources zz --targets bb", "in/zz no such"),
    "a path for a language": ({}, "--sources ../in --targets bb", "no such folder"),
    "no target": ({}, "--sources aa", "--targets"),
    "no source and no types": ({}, "--targets bb", "--sources --types"),
    "a source called pooled": ({}, "--sources pooled --targets bb", "two systems"),
    "no such encoder": ({}, "--sources aa --targets bb --encoder nowhere/x", "nowhere/x"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_corpora_and_flags_that_cannot_be_used_are_refused(tmp_path, case):
    content, flags, says = MISTAKES[case]
    folder = corpus(tmp_path / "in", **content)
    flags = ["--data-dir", folder, *flags.split()]
    refused("01_data.py", tmp_path / "a", *flags, says=says.split())


def test_names_that_are_unknown_or_taken_are_refused(tmp_path):
    refused("01_data.py", tmp_path / "a", "--targets", "xx", says=["unknown toy language xx"])
    (tmp_path / "a/logits/qac/external-qaa-s0").mkdir(parents=True)
    refused("01_data.py", tmp_path / "a", says=["--sources qaa", "two systems"])


def test_limits_cut_train_and_dev_of_sources_and_train_and_test_of_targets():
    args = data.parse_args("--sources qaa/ --limit 2 --limit-text 3 --limit-test 4".split())
    assert args.sources == ["qaa"]  # a slash behind a folder is none of its name
    source = data.read_corpus(args, "qaa", ["train", "dev"])
    target = data.read_corpus(args, "qac", ["train", "test"])
    assert [len(sentences) for sentences, _ in source.values()] == [2, 2]
    assert [len(sentences) for sentences, _ in target.values()] == [3, 4]


# ------------------------------------------------------------------------ pieces

def piece(folder, word, overwrite=False, **settings):
    if not data.made(folder, settings, overwrite):
        with data.writing(folder, settings, seconds=time.time()) as partial:
            (partial / "word").write_text(word)


def test_the_same_is_kept_and_what_other_settings_made_is_refused_or_replaced(tmp_path, capsys):
    piece(tmp_path / "x", "one", size=1, words=["a", "b"])
    before = data.read_record(tmp_path / "x")
    piece(tmp_path / "x", "two", size=1, words=["a", "b"])
    assert "kept" in capsys.readouterr().out and (tmp_path / "x/word").read_text() == "one"
    line = stopped(data.made, tmp_path / "x", {"size": 2, "words": ["a", "b"]})
    assert f"{tmp_path}/x: made from other size:" in line
    assert "--overwrite" in line and "--artifacts" in line
    assert "made from other words:" in stopped(data.made, tmp_path / "x", {"size": 1})  # one gone
    assert data.read_record(tmp_path / "x") == before
    piece(tmp_path / "x", "two", overwrite=True, size=1, words=["a", "b"])
    assert (tmp_path / "x/word").read_text() == "one"  # --overwrite replaces what differs alone
    piece(tmp_path / "x", "two", overwrite=True, size=2)
    assert (tmp_path / "x/word").read_text() == "two"


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt, SystemExit])
def test_a_piece_that_fails_leaves_nothing_and_what_it_was_to_replace(tmp_path, failure):
    piece(tmp_path / "old", "old", size=1)
    for name in ("new", "old"):
        with pytest.raises(failure):
            with data.writing(tmp_path / name, {"size": 2}) as partial:
                (partial / "half").write_text("x")
                raise failure
    assert files(tmp_path) == ["old/record.json", "old/word"]
    assert data.read_record(tmp_path / "old")["settings"] == {"size": 1}


def test_what_a_killed_process_left_is_no_piece_and_goes_when_that_is_made_again(tmp_path):
    """In a container, a process may have the number of the one that was killed."""
    with data.writing(tmp_path / "y", {}) as partial:
        mine = partial.name.replace(".y.", ".x.")
    dead = mine.replace(f"{os.getpid()}.", "99999999.")
    living = mine.replace(f"{os.getpid()}.", f"{os.getppid()}.")
    for name in ("x", mine, dead, living):
        (tmp_path / name).mkdir()  # x was being replaced: its record goes first
        (tmp_path / name / "half").write_text("")
    assert not data.made(tmp_path / "x", {})
    assert "missing or incomplete" in stopped(data.inputs, tmp_path, "x")
    piece(tmp_path / "x", "whole")
    assert files(tmp_path / "x") == ["record.json", "word"]
    assert sorted(os.listdir(tmp_path)) == sorted([living, "x", "y"])


def test_a_linked_piece_is_replaced_behind_its_link(tmp_path):
    piece(tmp_path / "elsewhere", "old", size=1)
    link = tmp_path / "x"
    link.symlink_to(tmp_path / "elsewhere")
    piece(link, "new", overwrite=True, size=2)
    assert link.is_symlink() and (tmp_path / "elsewhere/word").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "x"]


def test_a_piece_is_stale_where_one_below_it_has_other_bits_at_any_depth(tmp_path):
    piece(tmp_path / "one", "a")
    piece(tmp_path / "two", "a", **data.inputs(tmp_path, "one"))
    piece(tmp_path / "three", "a", **data.inputs(tmp_path, "two"))
    shutil.rmtree(tmp_path / "one")
    assert data.inputs(tmp_path, "three")  # what is gone from below makes nothing stale
    piece(tmp_path / "one", "a")
    assert data.inputs(tmp_path, "three")  # nor does what is made again with the same bits
    shutil.rmtree(tmp_path / "one")
    piece(tmp_path / "one", "b")
    for name in ("two", "three"):  # the lowest stale one is to be made first
        line = stopped(data.inputs, tmp_path, name)
        assert f"{tmp_path}/two: made from another one" in line and "--overwrite" in line
    piece(tmp_path / "two", "a", overwrite=True, **data.inputs(tmp_path, "one"))
    assert "three: made from another two" in stopped(data.inputs, tmp_path, "three")
    piece(tmp_path / "three", "a", overwrite=True, **data.inputs(tmp_path, "two"))
    assert data.inputs(tmp_path, "three")


# ------------------------------------------------------------------------ the toy

def vocabulary(lang):
    return set(itertools.chain(*data.toy_lexicon(lang, 0).values()))


def test_the_toy_is_seeded_its_families_share_words_and_its_tags_are_iob2():
    found = data.toy_corpus("qaa", 0)
    assert found == data.toy_corpus("qaa", 0)
    assert found != data.toy_corpus("qaa", 1)
    related, foreign = (len(vocabulary("qaa") & vocabulary(x)) for x in ("qab", "qba"))
    assert related > 3 * foreign > 0
    for words, tags in found["test"]:
        assert len(words) == len(tags) and words[-1] == "."
        assert data.to_iob2(tags) == tags
