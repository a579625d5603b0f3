"""Reading, repairing, cutting and batching: every word in is a word out."""

import importlib
import random
from collections import Counter

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

data = importlib.import_module("01_data")


def write(tmp_path, content):
    path = tmp_path / "train.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ------------------------------------------------------------------------------------------------ reading

def test_reads_any_number_of_columns_between_spaces_or_tabs(tmp_path):
    sentences, _ = data.read_conll(write(tmp_path, "Anna NNP x B-PER\nruns O\n\nin\tIN\tO\nOslo\tB-LOC\n"))
    assert sentences == [(["Anna", "runs"], ["B-PER", "O"]), (["in", "Oslo"], ["O", "B-LOC"])]


def test_counts_what_it_repairs(tmp_path):
    raw = "\ufeff-DOCSTART- -X- O O\r\n\r\nAnna  B-PER\r\n\r\n\r\n\u200b O\r\nis O\r\n".encode()
    sentences, repairs = data.read_conll(write(tmp_path, raw))
    assert sentences == [(["Anna"], ["B-PER"]), (["\u200b", "is"], ["O", "O"])]
    assert {k: repairs[k] for k in ("bom", "docstart", "crlf", "spaces", "empty", "zero_width")} == \
        {"bom": 1, "docstart": 1, "crlf": 7, "spaces": 1, "empty": 2, "zero_width": 1}  # fmt: skip


def test_a_file_of_words_alone_is_untagged(tmp_path):
    assert data.read_conll(write(tmp_path, "Anna\nruns\n"))[0] == [(["Anna", "runs"], None)]


def test_line_separators_inside_words_do_not_end_lines(tmp_path):
    assert data.read_conll(write(tmp_path, "a\u2028b O\nc\x85d O\n"))[0] == [(["a\u2028b", "c\x85d"], ["O", "O"])]


IOB2 = ["B-PER", "I-PER", "B-PER", "O", "B-LOC", "B-ORG", "I-ORG"]
IOB1 = ["I-PER", "I-PER", "B-PER", "O", "I-LOC", "I-ORG", "I-ORG"]
IOBES = ["B-PER", "E-PER", "S-PER", "O", "S-LOC", "B-ORG", "E-ORG"]
BILOU = ["B-PER", "L-PER", "U-PER", "O", "U-LOC", "B-ORG", "L-ORG"]


@pytest.mark.parametrize("tags, scheme", [(IOB2, "IOB2"), (IOB1, "IOB1"), (IOBES, "IOBES"), (BILOU, "IOBES"), (["O"], "IOB2")])
def test_tag_schemes_are_told_apart_and_converted(tags, scheme):
    assert data.tag_scheme([tags]) == scheme
    assert data.to_iob2(tags) == (IOB2 if len(tags) > 1 else tags)


def to_iob1(tags):
    return ["I" + t[1:] if t[0] == "B" and b[2:] != t[2:] else t for b, t in zip(["O", *tags], tags)]


def to_iobes(tags):
    last = [n[:1] != "I" for n in [*tags[1:], "O"]]
    return [t if t == "O" else {("B", True): "S", ("B", False): "B", ("I", True): "E", ("I", False): "I"}[t[0], end] + t[1:]
            for t, end in zip(tags, last)]  # fmt: skip


def random_tags(rng, n):
    tags = []
    while len(tags) < n:
        kind = rng.choice(["PER", "LOC", "ORG"])
        tags += rng.choice([["O"], ["O", "O"], [f"B-{kind}"], [f"B-{kind}", f"I-{kind}"], [f"B-{kind}", f"I-{kind}", f"I-{kind}"]])
    return tags


def test_conversions_round_trip_on_random_tags():
    for seed in range(300):
        tags = random_tags(random.Random(seed), 30)
        assert data.to_iob2(tags) == data.to_iob2(to_iob1(tags)) == data.to_iob2(to_iobes(tags)) == tags


def test_a_stray_i_opens_an_entity_and_is_counted():
    tags = ["O", "I-PER", "I-PER", "B-LOC", "I-ORG"]
    (_, converted), = data.examine("xx", "train", [(list("abcde"), tags)], Counter())[0]
    row = data.examine("xx", "train", [(list("abcde"), tags)], Counter())[1]
    assert converted == ["O", "B-PER", "I-PER", "B-LOC", "B-ORG"] and row["stray_i"] == 2 and row["entities"] == {"LOC": 1, "ORG": 1, "PER": 1}


CHARACTERS = "aZé\u0301ßאשلمن字化ひ한กำमनी\u200d👩🏽\u200b\u00ad'-.,–\ufeff0９"


def random_file(rng):
    """A random readable file with its words and tags."""
    sentences = [[("".join(rng.choices(CHARACTERS, k=rng.randint(1, 6))), t) for t in random_tags(rng, rng.choice([1, 3, 9]))]
                 for _ in range(rng.randint(1, 6))]  # fmt: skip
    end, gap, middle = rng.choice(["\n", "\r\n", "\r"]), rng.choice([" ", "\t", "  ", " \t"]), rng.choice([[], ["NN"], ["NN", "x"]])
    lines = []
    for sentence in sentences:
        lines += [gap.join([word, *middle, tag]) for word, tag in sentence] + [""] * rng.randint(1, 3)
    return (rng.choice(["", "\ufeff"]) + end.join(lines)).encode(), sentences


def test_random_files_keep_every_word_and_tag(tmp_path):
    for seed in range(400):
        raw, expected = random_file(random.Random(seed))
        expected = [s for s in expected if s]
        if expected[0][0][0].startswith("\ufeff"):
            continue  # a word that begins the file with a byte order mark cannot be told from one
        found, _ = data.read_conll(write(tmp_path, raw))
        assert [list(zip(words, tags)) for words, tags in found] == expected, seed


def test_damaged_files_are_refused_with_file_and_line_or_read_whole(tmp_path):
    refused = 0
    for seed in range(400):
        rng = random.Random(seed)
        raw = bytearray(random_file(rng)[0])
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        try:
            sentences, _ = data.read_conll(write(tmp_path, bytes(raw)))
            assert all(len(words) == len(tags or words) for words, tags in sentences)
        except data.UserError as error:
            assert "train.txt:" in str(error)
            refused += 1
    assert refused > 50


# ------------------------------------------------------------------------------------------------ tokenising and cutting

TEXT = ["the cat sat on the mat".split(), "Anna lives in Oslo .".split(), ["na\u0308ive", "字化", "sleep"]] * 20


def tokenizer_of(kind):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if kind == "wordpiece":
        return data.train_tokenizer(TEXT, 80)
    model, trainer = {"bpe": (models.BPE(unk_token="[UNK]"), trainers.BpeTrainer(vocab_size=80, special_tokens=special)),
                      "unigram": (models.Unigram(), trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="[UNK]"))}[kind]  # fmt: skip
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace() if kind == "unigram" else pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator([" ".join(words) for words in TEXT], trainer)
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], special))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_every_word_is_scored_once_in_order_whatever_the_tokenizer(kind):
    rng = random.Random(0)
    words = lambda n: ["".join(rng.choices(CHARACTERS + "catmosnl ", k=rng.randint(1, 8))).strip() or "x" for _ in range(n)]
    sentences = [(words(n), None) for n in (1, 5, 40, 10_000)] + [(["\u200b"], None), (["x" * 500, "y"], None)]
    table = data.encode(sentences, tokenizer_of(kind), 16)
    assert [w for row in table["words"] for w in row] == [w for s, _ in sentences for w in s]
    assert [row["start"] for row in table] == np.cumsum([0, *map(len, table["words"])])[:-1].tolist()
    for row in table:
        assert len(row["first"]) == len(row["words"]) and len(row["input_ids"]) == row["length"] <= 16
        assert row["input_ids"][0] == 2 and row["input_ids"][-1] == 3 and 0 < min(row["first"]) and max(row["first"]) < row["length"] - 1
        assert sorted(set(row["first"])) == row["first"]


def test_the_mask_sits_on_the_first_sub_token_and_tags_follow_their_words():
    tokenizer = tokenizer_of("wordpiece")
    table = data.encode([(["the", "naive", "Oslo"], ["O", "O", "B-LOC"])], tokenizer, 32, {"O": 0, "B-LOC": 1})
    row = table[0]
    pieces = tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert [pieces[at][0] for at in row["first"]] == ["t", "n", "O"] and row["tags"] == [0, 0, 1]
    between = set(range(1, row["length"] - 1)) - set(row["first"])
    assert all(pieces[at].startswith("##") for at in between) and between


def test_windows_overlap_cover_and_score_each_word_once():
    for seed in range(200):
        rng = random.Random(seed)
        lengths = [rng.choice([1, 1, 2, 5, 20]) for _ in range(rng.randint(1, 300))]
        spans = data.cut(lengths, 20)
        assert [w for _, _, lo, hi in spans for w in range(lo, hi)] == list(range(len(lengths)))
        for start, stop, lo, hi in spans:
            assert start <= lo <= hi <= stop and sum(lengths[start:stop]) <= 20
        assert all(lo < hi for _, _, lo, hi in spans)                            # no window for nothing
    spans = data.cut([1] * 600, 126)
    for (a, b, _, hi), (c, d, lo, _) in zip(spans, spans[1:]):
        assert b - c == 31 and hi == lo and min(hi - c, b - lo) >= 15            # context on both sides of the border


# ------------------------------------------------------------------------------------------------ batches

def table_of(lengths):
    return {"length": lengths}


def test_batches_hold_every_row_once_with_little_padding():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(3.3, 0.6, 2000), 4, 128).astype(int).tolist()
    batches = data.plan_batches(table_of(lengths), 32, rng)
    assert sorted(row for batch in batches for row in batch) == list(range(2000))
    computed = sum(len(batch) * max(lengths[r] for r in batch) for batch in batches)
    assert computed / sum(lengths) < 1.04
    assert max(len(batch) * max(lengths[r] for r in batch) for batch in batches) <= 32 * np.mean(lengths) + 1


def test_shuffling_is_seeded_and_differs_between_epochs():
    lengths = [10, 11, 12] * 40
    one, two = (data.plan_batches(table_of(lengths), 8, np.random.default_rng(0)) for _ in range(2))
    rng = np.random.default_rng(0)
    first, second = data.plan_batches(table_of(lengths), 8, rng), data.plan_batches(table_of(lengths), 8, rng)
    assert one == two == first != second
    assert len(first) == len(second)                                             # the schedule counts on it


def test_rows_are_read_by_slices_in_the_order_asked_for(tmp_path):
    from safetensors.torch import save_file
    rows = torch.randn(50, 7).half()
    save_file({"other": torch.zeros(3), "logits": rows}, tmp_path / "x.safetensors")
    reader = data.Rows(tmp_path / "x.safetensors", "logits")
    assert torch.equal(reader[[(40, 50), (0, 1), (7, 7)]], torch.cat([rows[40:], rows[:1]]))


def test_the_toys_languages_are_what_they_are_said_to_be():
    lexicons = {lang: data.toy_lexicon(lang, 0) for lang in ("qaa", "qab", "qba")}
    shared = lambda a, b: sum(x == y for k in data.LEXICON for x, y in zip(lexicons[a][k], lexicons[b][k]))
    assert shared("qaa", "qab") > 3 * shared("qaa", "qba")
    assert data.toy_corpus("qaa", 0) == data.toy_corpus("qaa", 0) != data.toy_corpus("qaa", 1)
    (words, tags), = [s for s in data.toy_corpus("qba", 0)["test"]][:1]
    assert len(words) == len(tags) and words[-1] == "."


# ------------------------------------------------------------------------------------------------ real corpora

def test_the_doctors_counts_on_real_corpora_equal_a_plain_count(corpora):
    for lang in ("ar", "ne", "kin", "fon", "hu"):
        for split in ("train", "dev", "test"):
            raw = (corpora / lang / f"{split}.txt").read_text("utf-8").split("\n")
            tags = [line.split(" ")[-1] if line.strip() else "O" for line in raw]
            stray = sum(t[0] == "I" and b[2:] != t[2:] for b, t in zip(["O", *tags], tags))
            sentences, repairs = data.read_conll(corpora / lang / f"{split}.txt")
            row = data.examine(lang, split, sentences, repairs)[1]
            assert row["stray_i"] == stray and row["words"] == sum(bool(line.strip()) for line in raw)
            assert row["spaces"] == sum("  " in line or line != line.strip(" ") for line in raw if line.strip()), (lang, split)
            assert sum(row["entities"].values()) == stray + sum(t[0] == "B" for t in tags)


def test_padding_is_rare_on_real_corpora(corpora):
    for lang in ("en", "yor", "kin", "hu"):
        sentences = data.read_conll(corpora / lang / "train.txt")[0][:1500]
        lengths = [min(128, 2 + sum(1 + len(w) // 5 for w in words)) for words, _ in sentences]
        batches = data.plan_batches(table_of(lengths), 32, np.random.default_rng(0))
        assert sum(len(b) * max(lengths[r] for r in b) for b in batches) / sum(lengths) < 1.04, lang
