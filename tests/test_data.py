"""Reading, converting, cutting and batching: every word in is a word out."""

import importlib
import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

data = importlib.import_module("01_data")
teachers = importlib.import_module("02_teachers")
distill = importlib.import_module("03_distill")


def write(tmp_path, content):
    path = tmp_path / "train.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ------------------------------------------------------------------------ reading

@pytest.mark.parametrize("content", [
    "Anna NNP x B-PER\nruns VB x O\n\nin IN x O\nOslo NNP x B-LOC\n",
    "Anna\tB-PER\nruns\tO\n\nin\tO\nOslo\tB-LOC\n", "Anna B-PER\nruns O\n\nin O\nOslo B-LOC",
    "Anna B-PER\t\nruns O\n\nin O\nOslo B-LOC\n",  # a tab that ends a line parts nothing
])
def test_reads_a_word_and_its_tag_from_any_number_of_columns(tmp_path, content):
    sentences, _ = data.read_conll(write(tmp_path, content))
    assert sentences == [(["Anna", "runs"], ["B-PER", "O"]), (["in", "Oslo"], ["O", "B-LOC"])]


def test_counts_what_it_repairs(tmp_path):
    raw = "\ufeff-DOCSTART- -X- O O\r\n\r\n# a comment\r\nAnna  B-PER\r\n"
    raw += "\r\n\r\nis O\r\nso O\u200b\r\n"
    sentences, counts = data.read_conll(write(tmp_path, raw))
    assert sentences == [(["Anna"], ["B-PER"]), (["is", "so"], ["O", "O"])]
    expected = {"bom": 1, "docstart": 1, "crlf": 8, "spaces": 1, "comment": 1, "invisible": 1}
    assert {key: counts[key] for key in expected} == expected


def test_a_file_of_words_alone_is_untagged(tmp_path):
    assert data.read_conll(write(tmp_path, "Anna\nruns\n"))[0] == [(["Anna", "runs"], None)]


def test_line_separators_inside_words_do_not_end_lines(tmp_path):
    sentences, _ = data.read_conll(write(tmp_path, "a\u2028b O\nc\x85d O\n"))
    assert sentences == [(["a\u2028b", "c\x85d"], ["O", "O"])]


IOB2 = ["B-PER", "I-PER", "B-PER", "O", "B-LOC", "B-ORG", "I-ORG"]
SCHEMES = {
    "IOB2": IOB2,
    "IOB1": ["I-PER", "I-PER", "B-PER", "O", "I-LOC", "I-ORG", "I-ORG"],
    "IOBES": ["B-PER", "E-PER", "S-PER", "O", "S-LOC", "B-ORG", "E-ORG"],
    "BILOU": ["B-PER", "L-PER", "U-PER", "O", "U-LOC", "B-ORG", "L-ORG"],
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_tag_scheme_becomes_iob2(scheme):
    assert data.to_iob2(SCHEMES[scheme]) == IOB2 and data.to_iob2([]) == []


def to_iob1(tags):
    before = ["O", *tags]
    return ["I" + t[1:] if t[0] == "B" and b[2:] != t[2:] else t for b, t in zip(before, tags)]


def to_iobes(tags, names="BIES"):
    begin, inside, end, single = names
    last = [following[:1] != "I" for following in [*tags[1:], "O"]]
    prefix = {("B", True): single, ("B", False): begin, ("I", True): end, ("I", False): inside}
    return [t if t == "O" else prefix[t[0], ends] + t[1:] for t, ends in zip(tags, last)]


def random_tags(rng, n):
    tags = []
    while len(tags) < n:
        kind = rng.choice(["PER", "LOC", "ORG"])
        entity = [f"B-{kind}", *[f"I-{kind}"] * rng.choice([0, 0, 1, 2])]
        tags += rng.choice([["O"], ["O", "O"], entity, entity])
    return tags


def test_conversions_round_trip_on_random_tags():
    for seed in range(300):
        tags = random_tags(random.Random(seed), 30)
        for other in (tags, to_iob1(tags), to_iobes(tags), to_iobes(tags, "BILU")):
            assert data.to_iob2(other) == tags, other


def test_a_stray_i_opens_an_entity_and_what_is_no_type_of_ours_becomes_o():
    tags = ["O", "I-PER", "I-PER", "B-LOC", "I-ORG", "B-DATE"]
    sentences = [(list("abcdef"), tags)]
    counts = data.convert(sentences, ["PER", "LOC", "ORG"], "xx")
    assert sentences[0][1] == ["O", "B-PER", "I-PER", "B-LOC", "B-ORG", "O"]
    expected = {"converted": 2, "PER": 1, "LOC": 1, "ORG": 1, "DATE dropped": 1}
    assert +counts == Counter(expected)


CHARACTERS = "aZé\u0301ßאשلمن字化ひ한กำमनी\u200d👩🏽\u200b\u00ad'-.,–\ufeff0９"


def random_file(rng):
    """A random readable file with its words and tags."""
    word = lambda: "".join(rng.choices(CHARACTERS, k=rng.randint(1, 6)))
    sentences = []
    for _ in range(rng.randint(1, 6)):
        tags = random_tags(rng, rng.choice([1, 3, 9]))
        sentences.append([(word(), tag) for tag in tags])
    end, gap = rng.choice(["\n", "\r\n", "\r"]), rng.choice([" ", "\t", "  "])
    middle, lines = rng.choice([[], ["NN"], ["NN", "x"]]), []
    for sentence in sentences:
        lines += [gap.join([word, *middle, tag]) for word, tag in sentence]
        lines += [""] * rng.randint(1, 3)
    return (rng.choice(["", "\ufeff"]) + end.join(lines)).encode(), sentences


def test_random_files_keep_every_word_and_tag(tmp_path):
    """But a byte order mark that begins a line cannot be told from a word that begins with one."""
    for seed in range(400):
        raw, expected = random_file(random.Random(seed))
        if any(word.startswith("\ufeff") for word, _ in itertools.chain(*expected)):
            continue
        found, _ = data.read_conll(write(tmp_path, raw))
        assert [list(zip(words, tags)) for words, tags in found] == expected, seed


def test_damaged_files_are_refused_with_their_name_or_read_whole(tmp_path):
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


# ------------------------------------------------------------------------ tokenising and cutting

TEXT = ["the cat sat on the mat", "Anna lives in Oslo .", "na\u0308ive 字化 sleep"] * 20
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokenizer_of(kind):
    special = {"special_tokens": SPECIAL, "vocab_size": 80}
    unknown = {"unk_token": "[UNK]"}
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(**unknown))
        trainer = trainers.WordPieceTrainer(**special)
    elif kind == "bpe":
        tokenizer, trainer = Tokenizer(models.BPE(**unknown)), trainers.BpeTrainer(**special)
    else:
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(**special, **unknown)
    spaces = pre_tokenizers.Metaspace() if kind == "unigram" else pre_tokenizers.Whitespace()
    tokenizer.pre_tokenizer = spaces
    tokenizer.train_from_iterator(TEXT, trainer)
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    names = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], SPECIAL))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def toy_tokenizer(kind):
    if kind == "toy":
        return data.train_tokenizer([text.split() for text in TEXT], 80)
    return tokenizer_of(kind)


@pytest.mark.parametrize("kind", ["toy", "wordpiece", "bpe", "unigram"])
def test_every_word_is_scored_once_in_order_whatever_the_tokenizer(kind):
    rng = random.Random(0)
    word = lambda: "".join(rng.choices(CHARACTERS + "catmosnl", k=rng.randint(1, 8)))
    sentences = [([word() for _ in range(n)], None) for n in (1, 5, 40, 10_000)]
    sentences += [(["\u200b"], None), (["x" * 500, "y"], None)]
    table = data.encode(sentences, toy_tokenizer(kind), 16)
    expected = list(itertools.chain(*(words for words, _ in sentences)))
    assert list(itertools.chain(*table["words"])) == expected
    sizes = [len(words) for words in table["words"]]
    assert list(table["start"]) == np.cumsum([0, *sizes])[:-1].tolist()
    for row in table:
        assert len(row["first"]) == len(row["words"])
        assert len(row["input_ids"]) == row["length"] <= 16
        assert row["input_ids"][0] == 2 and row["input_ids"][-1] == 3
        assert 0 < min(row["first"]) and max(row["first"]) < row["length"] - 1
        assert sorted(set(row["first"])) == row["first"]


def test_the_mask_sits_on_the_first_sub_token_and_tags_follow_their_words():
    tokenizer, words = tokenizer_of("wordpiece"), ["the", "naive", "Oslo"]
    ids = {"O": 0, "B-LOC": 1}
    row = data.encode([(words, ["O", "O", "B-LOC"])], tokenizer, 32, ids)[0]
    pieces = tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert [pieces[at][0] for at in row["first"]] == ["t", "n", "O"] and row["tags"] == [0, 0, 1]
    between = set(range(1, row["length"] - 1)) - set(row["first"])
    assert between and all(pieces[at].startswith("##") for at in between)


def test_windows_overlap_cover_and_score_each_word_once():
    for seed in range(200):
        rng = random.Random(seed)
        lengths = [rng.choice([1, 1, 2, 5, 20]) for _ in range(rng.randint(1, 300))]
        spans = data.cut(lengths, 20)
        scored = [range(lo, hi) for _, _, lo, hi in spans]
        assert list(itertools.chain(*scored)) == list(range(len(lengths)))
        for start, stop, lo, hi in spans:
            assert start <= lo < hi <= stop and sum(lengths[start:stop]) <= 20


def test_words_at_the_border_of_two_windows_have_context_on_both_sides():
    spans = data.cut([1] * 600, 126)
    for (_, b, _, hi), (c, _, lo, _) in itertools.pairwise(spans):
        assert b - c == 31 and hi == lo and min(hi - c, b - lo) >= 15


def test_no_sentence_and_no_word_is_no_window():
    assert data.cut([], 20) == [] and data.cut([20], 20) == [(0, 1, 0, 1)]


# ------------------------------------------------------------------------ batches

def test_batches_hold_every_row_once_with_little_padding():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(3.3, 0.6, 2000), 4, 128).astype(int).tolist()
    batches = teachers.plan_batches({"length": lengths}, 32, rng)
    assert sorted(itertools.chain(*batches)) == list(range(2000))
    computed = [len(batch) * max(lengths[row] for row in batch) for batch in batches]
    assert sum(computed) / sum(lengths) < 1.04
    assert max(computed) <= 32 * np.mean(lengths) + 1


def test_shuffling_is_seeded_and_differs_between_epochs():
    table, seeded = {"length": [10, 11, 12] * 40}, lambda: np.random.default_rng(0)
    one, two = (teachers.plan_batches(table, 8, seeded()) for _ in range(2))
    rng = seeded()
    first, second = teachers.plan_batches(table, 8, rng), teachers.plan_batches(table, 8, rng)
    assert one == two == first != second
    assert len(first) == len(second) == len(teachers.plan_batches(table, 8))  # as scheduled


def test_rows_of_a_cache_are_read_in_the_order_asked_for(tmp_path):
    rows = torch.randn(50, 7).half()
    save_file({"other": torch.zeros(3), "logits": rows}, tmp_path / "train.safetensors")
    batch = {"spans": [(40, 50), (0, 1), (7, 7)], "f": torch.ones(1)}
    found = distill.read_rows([tmp_path / "train.safetensors"] * 2, "logits", batch)
    assert torch.equal(found, torch.stack([torch.cat([rows[40:], rows[:1]])] * 2))


def test_a_batch_knows_where_its_words_stand_in_the_corpus():
    rows = {"input_ids": [[2, 7, 8, 3], [2, 9, 3]], "first": [[1, 2], [1]], "start": [5, 40]}
    batch = teachers.collate(rows | {"sentence": [3, 9]}, "cpu")
    assert batch["spans"] == [(5, 7), (40, 41)] and batch["f"].sum() == 3 and "tags" not in batch
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["f"].tolist() == [[False, True, True, False], [False, True, False, False]]


# ------------------------------------------------------------------------ the toy

def test_the_toys_languages_are_what_they_are_said_to_be():
    lexicons = {lang: data.toy_lexicon(lang, 0) for lang in ("qaa", "qab", "qba")}

    def shared(a, b):
        pairs = [zip(lexicons[a][kind], lexicons[b][kind]) for kind in data.LEXICON]
        return sum(x == y for x, y in itertools.chain(*pairs))

    assert shared("qaa", "qab") > 3 * shared("qaa", "qba")
    assert data.toy_corpus("qaa", 0) == data.toy_corpus("qaa", 0) != data.toy_corpus("qaa", 1)
    for words, tags in data.toy_corpus("qba", 0)["test"]:
        assert len(words) == len(tags) and words[-1] == "." and data.to_iob2(tags) == tags


# ------------------------------------------------------------------------ real corpora

def test_counts_on_real_corpora_equal_a_plain_count(corpora):
    languages, splits = ("ar", "ne", "kin", "fon", "hu"), ("train", "dev", "test")
    for lang, split in itertools.product(languages, splits):
        raw = (corpora / lang / f"{split}.txt").read_text("utf-8").split("\n")
        tags = [line.split(" ")[-1] if line.strip() else "O" for line in raw]
        opened = Counter()
        for before, tag in zip(["O", *tags], tags):
            opened[tag[2:]] += tag[0] == "B" or (tag[0] == "I" and before[2:] != tag[2:])
        sentences, counts = data.read_conll(corpora / lang / f"{split}.txt")
        words = sum(len(words) for words, _ in sentences)
        assert words + counts["no_word"] == sum(bool(line.strip()) for line in raw), (lang, split)
        counts = data.convert(sentences, sorted({*opened} - {""}), lang)
        for kind in {*opened} - {""}:
            assert counts[kind] == opened[kind], (lang, split)


def test_padding_is_rare_on_real_corpora(corpora):
    for lang in ("en", "yor", "kin", "hu"):
        sentences = data.read_conll(corpora / lang / "train.txt")[0][:1500]
        lengths = [min(128, 2 + sum(1 + len(w) // 5 for w in words)) for words, _ in sentences]
        batches = teachers.plan_batches({"length": lengths}, 32, np.random.default_rng(0))
        computed = sum(len(b) * max(lengths[row] for row in b) for b in batches)
        assert computed / sum(lengths) < 1.04, lang
