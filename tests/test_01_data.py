"""Stage 1: every word in is a word out, what can be read in two ways is refused with its line, and
pieces of artifacts/ are whole or absent."""

import contextlib
import importlib
import io
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

from conftest import GOOD, PAIR, corpus, data, files, here, refused

teachers = importlib.import_module("02_teachers")


def stopped(function, *given):
    """What a function says when it refuses, which is one line and exit status 2."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        with pytest.raises(SystemExit) as end:
            function(*given)
    line = errors.getvalue()
    assert end.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1
    return line


def write(tmp_path, content):
    path = tmp_path / "aa.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(tmp_path, content):
    return data.read_conll(write(tmp_path, content))


def words_of(tmp_path, content):
    return [words for words, _ in read(tmp_path, content)[0]]


# ------------------------------------------------------------------------ files that are read

@pytest.mark.parametrize("content", [
    "Anna NNP x B-PER\nruns VB x O\n\nin IN x O\nOslo NNP x B-LOC\n",
    "Anna\tB-PER\nruns\tO\n\nin\tO\nOslo\tB-LOC\n",
    "Anna B-PER\nruns O\n\nin O\nOslo B-LOC",
    "Anna B-PER\t\nruns O\n\nin O\nOslo B-LOC\n",  # a tab that ends a line parts nothing
    "Anna NNP B-NP B-PER\nruns VBZ B-VP O\n\nin IN B-PP O\nOslo NNP B-NP B-LOC\n",
    "Anna\tAnna\tB-PER\nruns\trun\tO\n\nin\tO\tO\nOslo\tOslo\tB-LOC\n",  # of lemmas one is O
    "Anna O B-PER\nruns O O\n\nin O O\nOslo O B-LOC\n",  # O alone is no column of tags
])
def test_a_word_and_its_tag_are_read_whatever_stands_between(tmp_path, content):
    sentences, _ = read(tmp_path, content)
    assert sentences == [(["Anna", "runs"], ["B-PER", "O"]), (["in", "Oslo"], ["O", "B-LOC"])]


WORDS = {  # what looks like something else and is words all the same: (content, sentences)
    "no tags": ("Anna\nruns\n", ["Anna runs"]),
    "numbers that count on once": ("0 O\n1 O\n\n7 O\n3 O\n", ["0 1", "7 3"]),
    "numbers in one sentence": ("1 O\n2 O\n3 O\n\nBo O\nist O\nda O\n", ["1 2 3", "Bo ist da"]),
    "a number alone": ("1 O\n\n1 O\n", ["1", "1"]),
    "a word repeated": ("no O\nno O\nno O\n\nBo B-PER\nist O\nda O\n", ["no no no", "Bo ist da"]),
    "commas and bars": ("1,000\nand/or\na|b\nTitle|O\nx,y\n", ["1,000 and/or a|b Title|O x,y"]),
    "one colon": ("de:Anna B-PER\nruns O\n", ["de:Anna runs"]),
    "colons": ("Hinweis: O\nHinweis: O\n", ["Hinweis: Hinweis:"]),
    "a hash before a word": ("#Wien B-LOC\nist O\n", ["#Wien ist"]),
    "a hash that begins a sentence": ("# O\n1 O\n\nBo B-PER\n# O\n", ["# 1", "Bo #"]),
    "comments": ("# text = Bo\n# id 3\nBo B-PER\nist O\n\n# id = 7\nda O\n", ["Bo ist", "da"]),
    "wide comments": ("# id = 1\nBo NN x B-X\n\n# id = 2\nist V x O\n", ["Bo", "ist"]),
    "a joiner inside": ("می\u200cروم O\n", ["می\u200cروم"]),
    "line separators inside": ("a\u2028b O\nc\x85d O\n", ["a\u2028b c\x85d"]),
    "two byte order marks": ("\ufeffBo O\n\n\ufeffist O\n", ["Bo", "ist"]),
}


@pytest.mark.parametrize("case", WORDS)
def test_words_that_look_like_something_else_are_words(tmp_path, case):
    content, expected = WORDS[case]
    assert [" ".join(words) for words in words_of(tmp_path, content)] == expected


def test_a_space_inside_a_word_passes_where_it_can_mean_nothing_else(tmp_path):
    assert words_of(tmp_path, "New York\tB-LOC\nist\tO\n") == [["New York", "ist"]]
    assert words_of(tmp_path, "ist O\n10 000 O\n") == [["ist", "10 000"]]
    sentences, counts = read(tmp_path, "Anna   B-PER\nruns O \n")
    assert sentences == [(["Anna", "runs"], ["B-PER", "O"])] and counts["spaces"] == 2


def test_what_is_repaired_is_counted(tmp_path):
    raw = "\ufeff-DOCSTART- -X- O O\r\n\r\n# a comment\r\nAnna  B-PER\r\n"
    raw += "\r\n\r\nis O\r\nso O\u200b\r\n"
    sentences, counts = read(tmp_path, raw)
    assert sentences == [(["Anna"], ["B-PER"]), (["is", "so"], ["O", "O"])]
    expected = {"bom": 1, "docstart": 1, "crlf": 8, "spaces": 1, "comment": 1, "invisible": 1}
    assert {key: counts[key] for key in expected} == expected


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
def test_line_ends_of_all_systems_end_one_line(tmp_path, end):
    content = GOOD.replace("\n", end)
    assert read(tmp_path, content)[0] == read(tmp_path, GOOD)[0]


@pytest.mark.parametrize("content", [
    "Anna\tB-PER\n\tO\nruns\tO\n", "Anna B-PER\n O\nruns O\n", "Anna\tB-PER\n\u3000\tO\nruns\tO\n",
    "Anna\tx\tB-PER\n\tx\tO\nruns\tx\tO\n",
])
def test_a_line_without_a_word_is_dropped_and_counted(tmp_path, content):
    sentences, counts = read(tmp_path, content)
    assert sentences == [(["Anna", "runs"], ["B-PER", "O"])] and counts["no_word"] == 1


@pytest.mark.parametrize("mark", ["\u200b", "\ufeff", "\u00ad", "\u200e", "\ufe0f", "\u2060"])
def test_invisible_characters_in_tags_are_stripped_and_counted(tmp_path, mark):
    sentences, counts = read(tmp_path, f"Anna B-PER{mark}\nruns O\nBo B-{mark}PER\n")
    assert sentences[0][1] == ["B-PER", "O", "B-PER"] and counts["invisible"] == 2


CHARACTERS = "aZé\u0301ßאשلمن字化ひ한กำमनी\u200d👩🏽\u200b\u00ad'-.,–\ufeff0９"


def random_word(rng, characters=CHARACTERS):
    return "".join(rng.choices(characters, k=rng.randint(1, 6)))


def random_tags(rng, n):
    tags = []
    while len(tags) < n:
        kind = rng.choice(["PER", "PER.NAM", "creative-work", "WORK_OF_ART"])
        entity = [f"B-{kind}", *[f"I-{kind}"] * rng.choice([0, 0, 1, 2])]
        tags += rng.choice([["O"], ["O", "O"], entity, entity])
    return tags


def random_file(rng):
    """A random readable file with its words and tags."""
    sentences = []
    for _ in range(rng.randint(1, 6)):
        tags = random_tags(rng, rng.choice([1, 3, 9]))
        sentences.append([(random_word(rng), tag) for tag in tags])
    end = rng.choice(["\n", "\r\n", "\r"])
    gap = rng.choice([" ", "\t", "  "])
    middle = rng.choice([[], ["NN"], ["NN", "x"]])
    lines = []
    for sentence in sentences:
        lines += [gap.join([word, *middle, tag]) for word, tag in sentence]
        lines += [""] * rng.randint(1, 3)
    return (rng.choice(["", "\ufeff"]) + end.join(lines)).encode(), sentences


def test_random_files_keep_every_word_and_tag(tmp_path):
    """But a byte order mark that begins a line cannot be told from a word that begins with one."""
    compared = 0
    for seed in range(300):
        raw, expected = random_file(random.Random(seed))
        if any(word.startswith("\ufeff") for word, _ in itertools.chain(*expected)):
            continue
        found, _ = read(tmp_path, raw)
        assert [list(zip(words, tags)) for words, tags in found] == expected, seed
        compared += 1
    assert compared > 100


def test_damaged_files_are_refused_with_their_name_or_read_whole(tmp_path):
    n_refused = 0
    for seed in range(300):
        rng = random.Random(seed)
        raw = bytearray(random_file(rng)[0])
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        path = write(tmp_path, bytes(raw))
        errors = io.StringIO()
        try:
            with contextlib.redirect_stderr(errors):
                sentences, _ = data.read_conll(path)
            assert all(len(words) == len(tags or words) for words, tags in sentences)
        except SystemExit:
            assert "aa.txt" in errors.getvalue()
            n_refused += 1
    assert 50 < n_refused < 300


def test_words_of_real_corpora_are_as_many_as_their_lines(corpora):
    for lang, split in itertools.product(("ar", "ne", "kin", "hu"), ("train", "dev", "test")):
        path = corpora / lang / f"{split}.txt"
        lines = [line for line in path.read_text("utf-8").split("\n") if line.strip()]
        sentences, counts = data.read_conll(path)
        n_words = sum(len(words) for words, _ in sentences)
        assert n_words + counts["no_word"] == len(lines), path


# ------------------------------------------------------------------------ files that are refused

INDEX = ["first column is an index", "put the word first"]
REFUSED = {  # a file that can be read in two ways, or in none: (content, what the line says)
    "words are counted": ("1\tBo\tB-PER\n2\tis\tO\n\n1\tin\tO\n2\tOslo\tO\n3\t.\tO\n", INDEX),
    "words are counted from 0": ("0 Bo B-PER\n1 is O\n2 in O\n3 Oslo B-LOC\n", INDEX),
    "words are counted on": ("7 Bo B-PER\n8 is O\n\n9 in O\n10 Oslo B-LOC\n11 . O\n", INDEX),
    "ranges and numbers": ("1-2\tzum\tO\n1\tzu\tO\n2\tdem\tO\n3\tHaus\tO\n4\t.\tO\n", INDEX),
    "an id before every word": ("188 Bo B-PER\n188 is O\n188 in O\n188 Oslo B-LOC\n", INDEX),
    "an id before the first word": ("Sentence: 1\tBo\tB-PER\n\tis\tO\n" * 12, INDEX),
    "two tag columns": ("In B-ORG O\nWien I-ORG B-LOC\n", ["two tag columns", "column 2"]),
    "two tag columns with a typo": ("Bo B-X O\nOE OE O\n" + "Wien B-X O\n" * 3, ["column 2"]),
    "chunks last": ("Anna NNP B-NP\nlives VBZ B-VP\n\nin IN B-PP\n", ["chunks", "column 3"]),
    "a title first": ("Title\n\nAnna B-PER\nruns O\n", ["aa.txt:3:", "columns"]),
    "a space inside a name": ("Anna NE B-PER\nNew York NE B-LOC\n", ["aa.txt:2:", "columns"]),
    "a space inside a name of two columns": ("ist O\nNew York B-LOC\n", ["aa.txt:2:", "columns"]),
    "a word without a tag": ("Anna B-PER\nruns\n", ["aa.txt:2:", "columns"]),
    "a space for a tab": ("Anna\tB-PER\nruns O\n", ["aa.txt:2:", "columns"]),
    "two lines glued": ("is O\nOslo B-LOC. O\nBo B-PER\n", ["aa.txt:2:", "two lines"]),
    "a tag that begins a word": ("is O\nOslo B-LOCBo O\n", ["aa.txt:2:", "two lines"]),
    "two tags in a cell": ("Bo B-PER,B-MISC\n", ["aa.txt:1:", "several tags"]),
    "a tag and O in a cell": ("is O\nBo B-PER|O\n", ["aa.txt:2:", "several tags"]),
    "types without B and I": ("is O\nBo PER\n", ["aa.txt:2:", "B- and I-", "PER"]),
    "types in small letters": ("is O\nBo per\n", ["aa.txt:2:", "no IOB"]),
    "a digit for the letter O": ("is 0\n", ["aa.txt:1:", "'0'"]),
    "a Cyrillic O": ("Anna B-PER\nruns \u041e\n", ["aa.txt:2:", r"\u041e"]),
    "a language before words": ("de:Bo B-PER\nzh-yue:in O\nin O\n", ["language before every"]),
    "a comma behind every word": ("Anna, B-PER\nlives, O\nin, O\n", ["comma", "tabs"]),
    "nothing": ("", ["no sentences"]),
    "Latin-1": ("so O\ncafé O\n".encode("latin-1"), ["aa.txt:2:", "UTF-8", "iconv"]),
    "UTF-16": (GOOD.encode("utf-16"), ["aa.txt:1:", "UTF-8"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_can_be_read_in_two_ways_is_refused(tmp_path, case):
    content, says = REFUSED[case]
    line = stopped(data.read_conll, write(tmp_path, content))
    for part in ("aa.txt", *says):
        assert part in line


@pytest.mark.parametrize("between", [*",;|/_", "__", "\\t", "\u00a0", "\u3000", "//"])
def test_tags_inside_words_are_refused_whatever_parts_them(tmp_path, between):
    path = write(tmp_path, GOOD.replace(" ", between))
    line = stopped(data.read_conll, path)
    assert "tags inside the words" in line and "tab" in line


# ------------------------------------------------------------------------ raw text

def text_of(tmp_path, content):
    return data.read_raw_text(write(tmp_path, content))[0]


def test_raw_text_is_a_sentence_a_line_and_signs_are_words(tmp_path):
    assert text_of(tmp_path, "\ufeffKala ne Oslo!\r\n\r\n ne. \r\n") == [
        (["Kala", "ne", "Oslo", "!"], None), (["ne", "."], None)
    ]


@pytest.mark.parametrize("content", [
    GOOD, GOOD.replace(" ", "\t"), GOOD.replace(" ", " NN x "), "Bo/B-PER is/O in/O Oslo/B-LOC\n",
    GOOD.replace(" ", "_"),
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


# ------------------------------------------------------------------------ what is odd in a text

def notes(sentences, unknown=0.0):
    return " ".join(data.oddities(sentences, unknown))


def test_what_is_odd_in_a_text_is_noted_and_what_is_not_is_not(tmp_path):
    huge, _ = read(tmp_path, "Anna B-PER\nruns O\n" * 200)
    assert "blank lines" in notes(huge) and notes(huge * 2) == ""
    alone, _ = read(tmp_path, GOOD.replace("\n", "\n\n") * 9)
    assert "longer than a word" in notes(alone) and notes(alone * 2 + huge * 18) == ""
    assert "numbers or identifiers" in notes([(["doc-17", "s12", "Anna"], None)] * 3)
    assert notes([(["im", "Jahr", "2023"], None)] * 3) == ""
    assert "JSON" in notes(text_of(tmp_path, '{"id": "a", "text": "Kala ne Oslo"}\n' * 5))
    assert notes(text_of(tmp_path, "Kala ne Oslo, ditu le pona mi ta.\n" * 5)) == ""
    assert notes(alone[:2], 0.76) == "76% of sub-tokens unknown to the encoder"
    assert notes(alone[:2], 0.04) == ""


@pytest.mark.parametrize("text", [
    "他在北京大学学习了三年历史。",
    "東京都の大学で歴史を勉強しました。",
    "เขาอาศัยอยู่ในกรุงเทพ",
    "ລາວອາໄສຢູ່ວຽງຈັນ",
])
def test_a_script_without_spaces_is_to_be_segmented_first(tmp_path, text):
    assert "segment" in notes(text_of(tmp_path, text))


@pytest.mark.parametrize("text", [
    "वह दिल्ली में रहता है और काम करता है",
    "እሱ በአዲስ አበባ ይኖራል",
    "يعيش في القاهرة ويعمل هناك",
    "הוא גר בתל אביב",
    "Rechtsschutzversicherungen sind teuer",
    "他 在 北京 大学 学习 了 三 年 历史 。",
])
def test_scripts_with_spaces_and_segmented_text_pass(tmp_path, text):
    assert notes(text_of(tmp_path, text)) == ""


def test_the_report_says_what_was_repaired_and_what_is_odd(bert, tmp_path):
    odd = {"train": "bira B-PER\n O\nzu O\n", "test": "ጎንደር B-LOC\nጎንደር O\n"}
    folder = corpus(tmp_path / "in", bb=odd)
    flags = ["--data-dir", folder, *PAIR[:-1], bert]
    here("01_data.py", tmp_path / "a", *flags)
    report = pd.read_csv(tmp_path / "a/report.csv")
    found = report.set_index(["language", "split"]).notes
    assert found["bb", "train"] == "1 no_word"
    assert "% of sub-tokens unknown" in found["bb", "test"]
    assert found["aa", "train"].startswith("2 PER, 1 LOC")


# ------------------------------------------------------------------------ tags

IOB2 = "B-PER I-PER I-PER B-PER B-PER I-PER O B-LOC B-ORG I-ORG B-ORG O B-ORG"


@pytest.mark.parametrize("tags", [
    IOB2,
    "I-PER I-PER I-PER B-PER B-PER I-PER O I-LOC I-ORG I-ORG B-ORG O I-ORG",  # IOB1
    "B-PER I-PER E-PER S-PER B-PER E-PER O S-LOC B-ORG E-ORG S-ORG O S-ORG",  # IOBES
    "B-PER I-PER L-PER U-PER B-PER L-PER O U-LOC B-ORG L-ORG U-ORG O U-ORG",  # BILOU
    "B-PER M-PER E-PER S-PER B-PER E-PER O S-LOC B-ORG E-ORG S-ORG O S-ORG",  # BMES
    "B-PER I-PER L-PER I-PER B-PER L-PER O U-LOC B-ORG E-ORG I-ORG O I-ORG",  # a mixture
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
    assert data.shared_types(sources, ["PER"]) == ["PER"]
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


def byte_pairs(special):
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXT, 400, special_tokens=special, show_progress=False)
    return tokenizer._tokenizer


def byte_level():
    return wrap(byte_pairs(SPECIAL))


def no_unknown():
    tokenizer = byte_level()
    tokenizer.unk_token = None  # one of bytes needs none
    return tokenizer


def unigram():
    tokenizer = tokenizers.SentencePieceUnigramTokenizer()
    options = {"special_tokens": SPECIAL, "unk_token": "[UNK]", "show_progress": False}
    tokenizer.train_from_iterator(TEXT, 300, **options)
    return wrap(tokenizer._tokenizer)


def roberta():
    special = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
    model = json.loads(byte_pairs(special).to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return transformers.RobertaTokenizer(vocab=model["vocab"], merges=merges)


def save(folder, tokenizer, config, size=SIZE, **options):
    """A random encoder of this configuration, with its tokenizer."""
    torch.manual_seed(0)
    options.setdefault("vocab_size", len(tokenizer))
    tokenizer.save_pretrained(folder)
    model = transformers.AutoModel.from_config(config(**size, **options))
    model.save_pretrained(folder)
    return folder


SHORT = {"max_position_embeddings": 130}
ENDS = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2}
ENDS.update(eos_token_id=3, sep_token_id=3)
OF_EURO = dict(SIZE, num_key_value_heads=2, **ENDS)
OF_T5 = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2}
OF_XLNET = {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 32}
ENCODERS = {  # (tokenizer, configuration, its options)
    "BERT": (wordpiece, transformers.BertConfig, SIZE),
    "RoBERTa": (roberta, transformers.RobertaConfig, dict(SIZE, **SHORT)),
    "XLM-R": (unigram, transformers.XLMRobertaConfig, dict(SIZE, **SHORT)),
    "ModernBERT": (byte_level, transformers.ModernBertConfig, dict(SIZE, **ENDS)),
    "EuroBERT": (no_unknown, transformers.EuroBertConfig, OF_EURO),
    "T5": (unigram, transformers.T5Config, OF_T5),
    "XLNet": (unigram, transformers.XLNetConfig, OF_XLNET),
}
KINDS = ["BERT", "RoBERTa", "XLM-R", "ModernBERT", "EuroBERT"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A function that makes an encoder of a kind once."""
    found = {}

    def of(kind):
        if kind not in found:
            make_tokenizer, config, size = ENCODERS[kind]
            folder = tmp_path_factory.mktemp("encoder")
            found[kind] = save(folder, make_tokenizer(), config, size)
        return found[kind]

    return of


@pytest.fixture(scope="module")
def bert(encoder):
    return encoder("BERT")


def first_stage(tmp_path, encoder, *flags):
    """Flags of stage 1 for GOOD files and this encoder."""
    return ["--data-dir", corpus(tmp_path / "in"), *PAIR[:-1], encoder, *flags]


# ------------------------------------------------------------------------ words to sub-tokens

@pytest.mark.parametrize("kind", KINDS)
def test_words_are_tokenised_as_in_running_text(encoder, kind):
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder(kind))
    ours = data.load_tokenizer(encoder(kind))
    table = data.encode([(text.split(), None) for text in TEXT[:20]], ours, 128)
    assert list(table["input_ids"]) == tokenizer(TEXT[:20])["input_ids"]


@pytest.mark.parametrize("name", ["BertTokenizer", "RobertaTokenizer", None])
def test_a_tokenizer_is_what_its_file_says_whatever_its_class(encoder, tmp_path, name):
    """The library rebuilds some classes' from their vocabulary: lower-cased, or otherwise split."""
    folder = shutil.copytree(encoder("XLM-R"), tmp_path / "e")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = name
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    stored = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer = data.load_tokenizer(folder)
    table = data.encode([(text.split(), None) for text in TEXT[:20]], tokenizer, 128)
    assert list(table["input_ids"]) == [stored.encode(text).ids for text in TEXT[:20]]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_in_the_text_are_text(encoder, kind):
    tokenizer = data.load_tokenizer(encoder(kind))
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


def test_a_sub_token_belongs_to_the_word_in_which_it_ends(encoder):
    """A sign of a space is before a word, so a token of that sign alone is the next word's."""
    bert = data.load_tokenizer(encoder("BERT"))
    assert sub_tokens(["Nafi", "bira", "."], bert) == [["Na", "##fi"], ["b", "##ir", "##a"], ["."]]
    unigram = data.load_tokenizer(encoder("XLM-R"))
    assert sub_tokens(["Nafi", "."], unigram) == [["▁Na", "fi"], ["▁", "."]]
    roberta = data.load_tokenizer(encoder("RoBERTa"))
    assert sub_tokens(["Nafi", "字"], roberta) == [["N", "afi"], ["Ġ", "å", "Ń", "Ĺ"]]


ODD = ["Anna", "字化", "\u200b", "👩🏽", "x" * 700, "e\u0301", "\u00ad", "...", "Oslo", "'s"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [16, 40])
def test_every_word_is_scored_once_in_order_whatever_its_characters(encoder, kind, length):
    rng = random.Random(0)
    letters = CHARACTERS + "birafulo"
    sentences = []
    for n in (1, 5, 40, 1000):
        sentences.append(([random_word(rng, letters) for _ in range(n)], None))
    sentences += [(ODD * 3, None), (["\u200b"], None), (["x" * 500, "y"], None)]
    table = data.encode(sentences, data.load_tokenizer(encoder(kind)), length)
    words = list(itertools.chain(*table["words"]))
    assert words == list(itertools.chain(*[words for words, _ in sentences]))
    sizes = [len(words) for words in table["words"]]
    assert list(table["start"]) == np.cumsum([0, *sizes])[:-1].tolist()
    for row in table:
        assert len(row["input_ids"]) == row["length"] <= length
        assert len(row["first"]) == len(row["words"])
        assert row["first"] == sorted(set(row["first"]))  # each word has its own
        assert 0 < row["first"][0] and row["first"][-1] < row["length"] - 1


def test_tags_follow_their_words_into_the_windows(bert):
    words = ["bira", "Nafi", "zu"] * 3
    given = [(words, ["O", "O", "B-LOC"] * 3)]
    table = data.encode(given, data.load_tokenizer(bert), 12, ["O", "B-LOC"])
    assert len(table) > 1
    for row in table:
        assert row["tags"] == [int(word == "zu") for word in row["words"]]


def test_windows_overlap_and_score_each_word_once():
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


def test_words_at_the_border_of_two_windows_have_context_on_both_sides():
    spans = data.cut([1] * 600, 126)
    for (_, end, _, border), (start, _, first_scored, _) in itertools.pairwise(spans):
        assert border == first_scored
        assert min(border - start, end - border) >= 15


# ------------------------------------------------------------------------ encoders

@pytest.mark.parametrize("kind", ["RoBERTa", "ModernBERT", "EuroBERT"])
def test_encoders_of_todays_kinds_go_through_the_first_two_stages(encoder, tmp_path, kind):
    here("01_data.py", tmp_path / "a", *first_stage(tmp_path, encoder(kind)))
    here("02_teachers.py", tmp_path / "a", "--sources", "aa", "--freeze", "1")
    found = load_file(tmp_path / "a/logits/bb/recogniser-aa-s0/test.safetensors")["logits"]
    assert found.shape == (6, 5) and found.isfinite().all()


@pytest.mark.parametrize("kind", ["T5", "XLNet"])
def test_models_that_are_no_plain_encoders_are_refused(encoder, tmp_path, kind):
    flags = first_stage(tmp_path, encoder(kind))
    says = [str(encoder(kind)), "no plain encoder"]
    refused("01_data.py", tmp_path / "a", *flags, says=says)


def test_windows_longer_than_the_encoder_reads_are_refused_with_the_limit(tmp_path):
    for config, tokenizer, reads in (
        (transformers.RobertaConfig, roberta(), 98), (transformers.BertConfig, wordpiece(), 100)
    ):
        folder = tmp_path / f"e{reads}"
        save(folder, tokenizer, config, max_position_embeddings=100)
        says = ["--max-length 128", f"reads {reads} sub-tokens"]
        refused("01_data.py", tmp_path / "a", *first_stage(tmp_path, folder), says=says)
        data.check_encoder(folder, data.load_tokenizer(folder), reads)


def changed(bert, tmp_path, change):
    """The tiny BERT with other weights: change(tensors) gives them."""
    folder = shutil.copytree(bert, tmp_path / "e")
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return folder


def of_data_parallel(tensors):
    return {f"module.bert.{name}": x for name, x in tensors.items()}


def without_pooler(tensors):
    return {name: x for name, x in tensors.items() if "pooler" not in name}


def without_a_layer(tensors):
    return {name: x for name, x in tensors.items() if "layer.1." not in name}


@pytest.mark.parametrize("change", [of_data_parallel, without_a_layer])
def test_an_encoder_whose_weights_are_not_in_its_file_is_refused(bert, tmp_path, change):
    folder = changed(bert, tmp_path, change)
    says = [str(folder), "weights are not in its files", "BertModel"]
    refused("01_data.py", tmp_path / "a", *first_stage(tmp_path, folder), says=says)


def test_a_pooler_that_the_file_lacks_is_no_matter(bert, tmp_path):
    folder = changed(bert, tmp_path, without_pooler)
    data.check_encoder(folder, data.load_tokenizer(folder), 128)


def with_a_nan(tensors):
    tensors["encoder.layer.1.output.dense.weight"][3, 5] = float("nan")
    return tensors


def test_weights_that_are_not_finite_are_refused(bert, tmp_path):
    folder = changed(bert, tmp_path, with_a_nan)
    says = [str(folder), "not finite"]
    refused("01_data.py", tmp_path / "a", *first_stage(tmp_path, folder), says=says)


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
def test_an_encoder_that_lacks_a_file_is_refused(bert, tmp_path, lacks):
    folder = shutil.copytree(bert, tmp_path / "e")
    for path in folder.iterdir():
        if path.name.startswith(lacks):
            path.unlink()
    flags = first_stage(tmp_path, folder)
    refused("01_data.py", tmp_path / "a", *flags, says=str(folder))


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


PARQUET = "@refs%2Fconvert%2Fparquet"


@pytest.mark.parametrize("preset, lang, more, file", [
    ("wikiann", "sw", [], "unimelb-nlp/wikiann/sw/validation-00000-of-00001.parquet"),
    ("masakhaner", "kin", ["B-DATE", "I-DATE"],
     f"masakhane/masakhaner2{PARQUET}/kin/validation/0000.parquet"),
    ("conll", "en", ["B-MISC", "I-MISC"],
     f"eriktks/conll2003{PARQUET}/conll2003/validation/0000.parquet"),
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

BOTH = ["--sources", "aa", "bb", "--targets", "aa", "--encoder", "scratch"]
MISTAKES = {  # (files, flags, what the line says)
    "an untagged source": ({"aa": {"train": "Anna\nruns\n"}}, PAIR, ["source aa", "no tags"]),
    "an untagged dev": ({"aa": {"dev": "Anna\nruns\n"}}, PAIR, ["source aa", "no tags"]),
    "raw text of nothing": ({"bb": dict(EMPTY, text=" \n")}, PAIR, ["bb/text.txt", "no sentences"]),
    "a limit of nothing": ({}, [*PAIR, "--limit", "0"], ["--limit"]),
    "a missing dev": ({"aa": {"dev": None}}, PAIR, ["aa/dev.txt", "no such file"]),
    "a source of raw text": ({"aa": dict(EMPTY, text="Bo runs\n")}, PAIR, ["aa/train.txt"]),
    "a target without a file": ({"bb": EMPTY}, PAIR, ["bb/train.txt", "text.txt"]),
    "a file in two minds": ({"bb": {"test": "Anna 0\n"}}, PAIR, ["bb/test.txt:1:", "'0'"]),
    "no type in common": (
        {"bb": {"train": GOOD.replace("PER", "X").replace("LOC", "Y")}}, BOTH, ["entity types"]),
    "a type that no source has": ({}, [*PAIR, "--types", "PER", "ORG"], ["ORG", "--types"]),
    "an unknown language": ({}, ["--sources", "zz", "--targets", "bb"], ["in/zz", "no such"]),
    "a path for a language": ({}, ["--sources", "../in", "--targets", "bb"], ["no such folder"]),
    "no target": ({}, ["--sources", "aa"], ["--targets"]),
    "no source and no types": ({}, ["--targets", "bb"], ["--sources", "--types"]),
    "a source called pooled": ({}, ["--sources", "pooled", "--targets", "bb"], ["two systems"]),
    "no such encoder": ({}, [*PAIR[:-1], "nowhere/x"], ["nowhere/x"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_corpora_and_flags_that_cannot_be_used_are_refused(tmp_path, case):
    content, flags, says = MISTAKES[case]
    folder = corpus(tmp_path / "in", **content)
    refused("01_data.py", tmp_path / "a", "--data-dir", folder, *flags, says=says)


def test_names_that_are_not_there_or_taken_are_refused(tmp_path):
    says = ["none/aa", "no such folder"]
    refused("01_data.py", tmp_path / "a", "--data-dir", tmp_path / "none", *PAIR, says=says)
    refused("01_data.py", tmp_path / "a", "--preset", "wikian", says=["--preset", "wikiann"])
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
    assert source["train"][0] == data.toy_corpus("qaa", 0)["train"][:2]


# ------------------------------------------------------------------------ pieces

def piece(folder, word, overwrite=False, **settings):
    """Make a piece of one file, as a stage does."""
    if not data.made(folder, settings, overwrite):
        with data.writing(folder, settings, seconds=time.time()) as partial:
            (partial / "word").write_text(word)


def settings_of(artifacts, *names, **more):
    return dict(data.inputs(artifacts, *names), **more)


def test_a_piece_records_its_settings_what_it_is_made_from_and_facts(tmp_path):
    piece(tmp_path / "below", "a", size=1)
    piece(tmp_path / "above/one", "b", **settings_of(tmp_path, "below", size=2))
    below = data.read_record(tmp_path / "below")
    above = data.read_record(tmp_path / "above/one")
    assert above["settings"] == {"below": below["fingerprint"], "size": 2}
    assert above["facts"]["seconds"] > 1 and above["fingerprint"] != below["fingerprint"]
    assert files(tmp_path / "below") == ["record.json", "word"]


def test_the_same_is_kept_and_what_other_settings_made_is_refused_or_replaced(tmp_path, capsys):
    piece(tmp_path / "x", "one", size=1, words=("a", "b"))
    before = data.read_record(tmp_path / "x")
    piece(tmp_path / "x", "two", size=1, words=["a", "b"])
    assert "kept" in capsys.readouterr().out and (tmp_path / "x/word").read_text() == "one"
    other = {"size": 2, "words": ["a", "b"]}
    line = stopped(data.made, tmp_path / "x", other)
    assert f"{tmp_path}/x: made from other size:" in line
    assert "--overwrite" in line and "--artifacts" in line
    assert data.read_record(tmp_path / "x") == before
    piece(tmp_path / "x", "two", overwrite=True, size=1, words=["a", "b"])
    assert (tmp_path / "x/word").read_text() == "one"  # --overwrite replaces what differs alone
    piece(tmp_path / "x", "two", overwrite=True, size=2)
    assert (tmp_path / "x/word").read_text() == "two"
    assert data.read_record(tmp_path / "x")["fingerprint"] != before["fingerprint"]


def test_a_setting_that_is_gone_is_named_as_one_that_changed_is(tmp_path):
    piece(tmp_path / "x", "one", size=1, words=2)
    assert "made from other size:" in stopped(data.made, tmp_path / "x", {"words": 2})


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
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
    dead, living = (mine.replace(f"{os.getpid()}.", f"{n}.") for n in (99_999_999, os.getppid()))
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


def test_a_piece_is_stale_where_one_below_it_is_another_at_any_depth(tmp_path):
    piece(tmp_path / "one", "a")
    piece(tmp_path / "two", "a", **settings_of(tmp_path, "one"))
    piece(tmp_path / "three", "a", **settings_of(tmp_path, "two"))
    assert data.inputs(tmp_path, "three")
    piece(tmp_path / "one", "b", overwrite=True, size=2)
    for name in ("two", "three"):  # the lowest stale one is to be made first
        line = stopped(data.inputs, tmp_path, name)
        assert f"{tmp_path}/two: made from another one" in line and "--overwrite" in line
    piece(tmp_path / "two", "a", overwrite=True, **settings_of(tmp_path, "one"))
    assert "three: made from another two" in stopped(data.inputs, tmp_path, "three")
    piece(tmp_path / "three", "a", overwrite=True, **settings_of(tmp_path, "two"))
    assert data.inputs(tmp_path, "three")


def test_a_piece_made_again_with_the_same_bits_makes_nothing_stale(tmp_path):
    piece(tmp_path / "one", "a")
    piece(tmp_path / "two", "a", **settings_of(tmp_path, "one"))
    shutil.rmtree(tmp_path / "one")
    assert data.inputs(tmp_path, "two")  # what is gone from below makes nothing stale either
    piece(tmp_path / "one", "a")
    assert data.inputs(tmp_path, "two")
    shutil.rmtree(tmp_path / "one")
    piece(tmp_path / "one", "other bits")
    assert "made from another one" in stopped(data.inputs, tmp_path, "two")


# ------------------------------------------------------------------------ the toy

def n_shared(one, other):
    """How many words two languages share, of equal places in their lexicons."""
    both = [zip(one[kind], other[kind]) for kind in one]
    return sum(a == b for a, b in itertools.chain(*both))


def test_the_toy_is_seeded_its_families_share_words_and_its_tags_are_iob2():
    found = data.toy_corpus("qaa", 0)
    assert found == data.toy_corpus("qaa", 0)
    assert found != data.toy_corpus("qaa", 1)
    lexicon = data.toy_lexicon("qaa", 0)
    related, foreign = (n_shared(lexicon, data.toy_lexicon(x, 0)) for x in ("qab", "qba"))
    assert related > 3 * foreign > 0
    for words, tags in found["test"]:
        assert len(words) == len(tags) and words[-1] == "."
        assert data.to_iob2(tags) == tags
