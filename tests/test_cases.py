"""Files as people have them: what is plain is read, what is not is refused, and neighbours pass."""

import os
import shutil
import subprocess

import datasets
import pandas as pd
import pytest

from conftest import GOOD, PAIR, ROOT, command, corpus, data, here, refused


def read(tmp_path, content):
    path = tmp_path / "aa.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return data.read_conll(path)


def says_no(tmp_path, content, *parts):
    with pytest.raises(data.UserError) as told:
        read(tmp_path, content)
    assert "aa.txt" in str(told.value)
    for part in parts:
        assert part in str(told.value), str(told.value)


def words_of(tmp_path, content):
    return [words for words, _ in read(tmp_path, content)[0]]


# ------------------------------------------------------------------------ columns

@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("gap", ["\t", " "])
def test_a_first_column_that_counts_words_is_refused(tmp_path, first, gap):
    lines, n = [], first
    for line in GOOD.split("\n"):
        lines.append(f"{n}{gap}{line.replace(' ', gap)}" if line else "")
        n = n + 1 if line else first
    says_no(tmp_path, "\n".join(lines), "first column is an index", "put the word first")


def test_a_first_column_of_ranges_and_numbers_is_an_index_too(tmp_path):
    conllu = "1-2\tzum\tO\n1\tzu\tO\n2\tdem\tO\n3\tHaus\tB-LOC\n\n1\tEs\tO\n2\tist\tO\n"
    says_no(tmp_path, conllu, "first column is an index")


@pytest.mark.parametrize("content", [
    "0 O\n1 O\n\n7 O\n3 O\n", "1 O\n2 O\n3 O\n\nAnna B-PER\nzählt O\n", "2023 O\n", "1 O\n\n1 O\n",
])
def test_words_that_happen_to_be_numbers_are_words(tmp_path, content):
    expected = [[line.split()[0] for line in part.split("\n") if line]
                for part in content.split("\n\n")]
    assert words_of(tmp_path, content) == expected


def test_two_tag_columns_are_refused_and_named(tmp_path):
    nested = "Universität\tB-ORG\tO\nin\tI-ORG\tO\nWien\tI-ORG\tB-LOC\n\nEs\tO\tO\nist\tO\tO\n"
    says_no(tmp_path, nested, "two tag columns", "column 2")
    germeval = "1\tWien\tB-LOC\tO\n2\tist\tO\tO\n\n1\tEs\tO\tO\n2\tist\tO\tO\n"
    says_no(tmp_path, germeval)


def test_other_columns_between_word_and_tag_pass(tmp_path):
    chunks = "Anna NNP B-NP B-PER\nlives VBZ B-VP O\nin IN B-PP O\nOslo NNP B-NP B-LOC\n"
    assert read(tmp_path, chunks)[0] == [
        (["Anna", "lives", "in", "Oslo"], ["B-PER", "O", "O", "B-LOC"])
    ]
    lemmas = "Oslo\tOslo\tB-LOC\nO\tO\tO\n"
    assert words_of(tmp_path, lemmas) == [["Oslo", "O"]]
    all_o = "Anna O B-PER\nruns O O\n"  # a column of O alone is no column of tags
    assert words_of(tmp_path, all_o) == [["Anna", "runs"]]


def test_chunks_in_the_last_column_are_refused(tmp_path):
    says_no(tmp_path, "Anna NNP B-NP\nlives VBZ B-VP\n\nin IN B-PP\nOslo NNP B-NP\n", "chunks")


@pytest.mark.parametrize("content, line", [
    ("Title\n\nAnna B-PER\nruns O\n", 3), ("Anna NE B-PER\nNew York NE B-LOC\n", 2),
    ("Anna B-PER\nruns\n", 2), ("Anna\tB-PER\nruns O\n", 2), ("Anna NNP B-PER\nruns O\n", 2),
    ("Anna NE B-PER\nin P O\n# runs VB O\n", 3), ("Anna\nruns\nin O\n", 3),
    ("-DOCSTART- -X- O O\n\nAnna NNP B-NP B-PER\nruns O\n", 4),
])
def test_the_line_where_the_number_of_columns_changes_is_named(tmp_path, content, line):
    says_no(tmp_path, content, f"aa.txt:{line}:", "columns")


def test_spaces_inside_a_word_pass_between_tabs_and_repeated_gaps_are_one(tmp_path):
    assert words_of(tmp_path, "New York\tB-LOC\nist\tO\n") == [["New York", "ist"]]
    sentences, counts = read(tmp_path, "Anna   B-PER\nruns O \n")
    assert sentences == [(["Anna", "runs"], ["B-PER", "O"])] and counts["spaces"] == 2


def test_a_space_inside_a_word_passes_in_two_columns_where_the_word_is_no_name(tmp_path):
    """Corpora have numbers like 10 000; of a name the reader could not tell a third column."""
    assert words_of(tmp_path, "ist O\n10 000 O\n") == [["ist", "10 000"]]
    says_no(tmp_path, "ist O\nNew York B-LOC\n", "aa.txt:2:", "columns")
    says_no(tmp_path, "ist NN O\n10 000 NN O\n", "aa.txt:2:", "columns")


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\u00a0"])
def test_tags_inside_a_word_column_are_refused_with_their_delimiter(tmp_path, delimiter):
    content = f"Anna{delimiter}B-PER\nlives{delimiter}O\n\nBo{delimiter}B-PER\nruns{delimiter}O\n"
    says_no(tmp_path, content, ascii(delimiter))


def test_words_with_commas_and_bars_are_words(tmp_path):
    content = "1,000\nand/or\na|b\nTitle|O\nx,y\n"
    assert words_of(tmp_path, content) == [content.split()]


# ------------------------------------------------------------------------ lines that are no words

def test_comments_are_skipped_and_counted(tmp_path):
    content = "# text = Anna runs home\n# sent_id 3\nAnna B-PER\nruns O\n\n# id = 7\nBo B-PER\n"
    sentences, counts = read(tmp_path, content)
    assert [words for words, _ in sentences] == [["Anna", "runs"], ["Bo"]]
    assert counts["comment"] == 3


def test_a_comment_of_key_and_value_is_one_whatever_its_columns(tmp_path):
    content = "# id = 1\nAnna NNP x B-PER\n\n# newdoc = 2\nBo NNP x B-PER\n"
    sentences, counts = read(tmp_path, content)
    assert [words for words, _ in sentences] == [["Anna"], ["Bo"]] and counts["comment"] == 2


def test_words_that_begin_with_a_hash_are_words(tmp_path):
    content = "#Wien B-LOC\nist O\n\n# O\n1 O\n\nAnna B-PER\n# O\n"
    assert words_of(tmp_path, content) == [["#Wien", "ist"], ["#", "1"], ["Anna", "#"]]


@pytest.mark.parametrize("content, words", [
    ("Anna\tB-PER\n\tO\nruns\tO\n", ["Anna", "runs"]),
    ("Anna B-PER\n O\nruns O\n", ["Anna", "runs"]),
    ("Anna\tx\tB-PER\n\tx\tO\nruns\tx\tO\n", ["Anna", "runs"]),
])
def test_a_line_without_a_word_is_dropped_and_counted(tmp_path, content, words):
    sentences, counts = read(tmp_path, content)
    assert [x for x, _ in sentences] == [words] and counts["no_word"] == 1
    assert len(sentences[0][1]) == 2


def test_a_line_without_a_word_is_dropped_in_gold_and_text_alike(tmp_path):
    folder = corpus(tmp_path / "in", bb={"test": "Anna B-PER\n O\nOslo B-LOC\n"})
    here("01_data.py", tmp_path / "a", "--data-dir", folder, *PAIR)
    table = datasets.load_from_disk(str(tmp_path / "a/data/targets/bb/test"))
    gold = datasets.load_from_disk(str(tmp_path / "a/gold/bb/test"))
    assert table[0]["words"] == ["Anna", "Oslo"] and gold[0]["words"] == ["Anna", "Oslo"]
    assert "1 no_word" in (tmp_path / "a/report.csv").read_text()


def test_language_prefixes_before_every_word_are_refused(tmp_path):
    prefixed = "".join(f"de:{line}\n" if line else "\n" for line in GOOD.split("\n"))
    says_no(tmp_path, prefixed, "'de:'")
    says_no(tmp_path, prefixed.replace("de:", "zh-yue:"), "'zh-yue:'")
    some = "de:Anna B-PER\nruns O\n"
    assert words_of(tmp_path, some) == [["de:Anna", "runs"]]
    assert words_of(tmp_path, "Hinweis: O\nHinweis: O\n") == [["Hinweis:", "Hinweis:"]]


# ------------------------------------------------------------------------ characters

@pytest.mark.parametrize("mark", ["\u200b", "\ufeff", "\u00ad", "\u200e", "\ufe0f", "\u2060"])
def test_invisible_characters_in_tags_are_stripped_and_counted(tmp_path, mark):
    sentences, counts = read(tmp_path, f"Anna B-PER{mark}\nruns O\n{mark}" + f"Bo B-{mark}PER\n")
    assert sentences[0][1] == ["B-PER", "O", "B-PER"] and counts["invisible"] == 2


def test_a_letter_that_only_looks_right_is_named_by_its_code_point(tmp_path):
    says_no(tmp_path, "Anna B-PER\nruns \u041e\n", "aa.txt:2", r"\u041e")
    says_no(tmp_path, "Anna \u0412-PER\n", "aa.txt:1", r"\u0412")
    says_no(tmp_path, "Anna 0\n", "aa.txt:1", "'0'")


def test_files_joined_with_their_byte_order_marks_are_read(tmp_path):
    joined = ("\ufeff" + GOOD + "\n\ufeff" + GOOD).encode()
    sentences, counts = read(tmp_path, joined)
    assert sentences == read(tmp_path, GOOD)[0] * 2 and counts["bom"] == 2
    glued = ("\ufeff" + GOOD + "\ufeff" + GOOD).encode()  # no blank line where they were joined
    assert read(tmp_path, glued)[0][1][0] == ["Bo", "runs", "Anna", "lives", "in", "Oslo"]


def test_invisible_characters_in_words_stay(tmp_path):
    assert words_of(tmp_path, "می\u200cروم O\n") == [["می\u200cروم"]]


# ------------------------------------------------------------------------ notes in the report

def report(tmp_path, **languages):
    folder = corpus(tmp_path / "in", **languages)
    here("01_data.py", tmp_path / "a", "--data-dir", folder, *PAIR)
    table = pd.read_csv(tmp_path / "a/report.csv", keep_default_na=False)
    return {(row.language, row.split): row.notes for row in table.itertuples()}


def test_one_huge_sentence_makes_the_report_ask_for_blank_lines(tmp_path):
    notes = report(tmp_path, bb={"test": "Anna B-PER\nruns O\n" * 200})
    assert "blank lines" in notes["bb", "test"]
    assert "blank lines" not in notes["bb", "train"] + notes["aa", "train"]


CHINESE, JAPANESE = "他在北京大学学习了三年历史。", "東京都の大学で歴史を勉強しました。"
SPACED = {
    "hindi": "वह दिल्ली में रहता है और काम करता है", "amharic": "እሱ በአዲስ አበባ ይኖራል",
    "arabic": "يعيش في القاهرة ويعمل هناك", "hebrew": "הוא גר בתל אביב",
    "german": "Rechtsschutzversicherungen",
    "segmented": "他 在 北京 大学 学习 了 三 年 历史 。",
}


@pytest.mark.parametrize("text", [CHINESE, JAPANESE, "เขาอาศัยอยู่ในกรุงเทพ", "ລາວອາໄສຢູ່ວຽງຈັນ"])
def test_scripts_without_spaces_get_a_note(tmp_path, text):
    notes = report(tmp_path, bb={"test": None, "train": None, "text": f"{text}\n" * 5})
    assert "segment" in notes["bb", "test"] and "segment" not in notes["aa", "train"]


@pytest.mark.parametrize("language", SPACED)
def test_scripts_with_spaces_and_segmented_text_get_none(tmp_path, language):
    text = f"{SPACED[language]}\n" * 5
    notes = report(tmp_path, bb={"test": None, "train": None, "text": text})
    assert "segment" not in notes["bb", "test"]


# ------------------------------------------------------------------------ raw text

def test_raw_text_beside_gold_is_the_training_text(tmp_path):
    text = {"train": None, "dev": None, "text": "Kala ne Oslo!\n\nNe.\n"}
    folder = corpus(tmp_path / "in", bb=text)
    here("01_data.py", tmp_path / "a", "--data-dir", folder, *PAIR)
    tables = datasets.load_from_disk(str(tmp_path / "a/data/targets/bb"))
    assert list(tables["train"]["words"]) == [["Kala", "ne", "Oslo", "!"], ["Ne", "."]]
    assert list(tables["test"]["words"]) == words_of(tmp_path, GOOD)
    gold = datasets.load_from_disk(str(tmp_path / "a/gold/bb"))
    assert list(gold) == ["test"]
    here("02_teachers.py", tmp_path / "a")
    here("03_distill.py", tmp_path / "a", "--methods", "tsl-sim")
    here("04_evaluate.py", tmp_path / "a")
    table = pd.read_csv(tmp_path / "a/results/results.csv")
    assert set(table.target) == {"bb"} and "tsl-sim" in set(table.method)


def test_raw_text_alone_is_training_text_and_test_text(tmp_path):
    empty = dict.fromkeys(("train", "dev", "test"))
    folder = corpus(tmp_path / "in", bb={**empty, "text": "Kala ne\n"})
    here("01_data.py", tmp_path / "a", "--data-dir", folder, *PAIR)
    for split in ("train", "test"):
        table = datasets.load_from_disk(str(tmp_path / f"a/data/targets/bb/{split}"))
        assert list(table["words"]) == [["Kala", "ne"]]
    assert not (tmp_path / "a/gold").exists()


def test_a_source_of_raw_text_and_a_target_without_any_file_are_refused(tmp_path):
    empty = dict.fromkeys(("train", "dev", "test"))
    folder = corpus(tmp_path / "in", aa={**empty, "text": "Kala ne\n"}, cc=empty)
    refused("01_data.py", tmp_path / "a", "--data-dir", folder, *PAIR, says=["aa/train.txt"])
    flags = ["--sources", "bb", "--targets", "cc", "--encoder", "scratch"]
    says = ["cc/train.txt", "text.txt"]
    refused("01_data.py", tmp_path / "a", "--data-dir", folder, *flags, says=says)


# ------------------------------------------------------------------------ a type called micro

def test_a_type_called_micro_is_a_type(toy, tmp_path):
    tagged = GOOD.replace("LOC", "micro") * 12
    folder = corpus(tmp_path / "in", **dict.fromkeys(("aa", "bb"), {
        "train": tagged, "dev": tagged, "test": tagged
    }))
    how = ["--data-dir", folder, *PAIR[:-1], toy / "encoder"]
    here("01_data.py", tmp_path / "a", *how)
    here("02_teachers.py", tmp_path / "a", "--lr", "0.01", "--epochs", "8")
    here("03_distill.py", tmp_path / "a", "--methods", "tsl-sim")
    here("04_evaluate.py", tmp_path / "a")
    table = pd.read_csv(tmp_path / "a/results/results.csv")
    direct = table[table.method == "direct-aa"]
    assert direct.type.tolist() == ["micro", "PER", "micro"]
    assert direct.support.tolist() == [36, 24, 12]
    head = (tmp_path / "a/results/results.md").read_text().split("## The question")[0]
    assert f"{direct.f1.iloc[0]:.1f}" in head and "±" not in head.split("seeds.")[1]


# ------------------------------------------------------------------------ --score

IOB2 = "Anna B-PER\nMaria I-PER\nin O\nOslo B-LOC\nOslo B-LOC\nCity I-LOC\nHall I-LOC\n"
BILOU = "Anna B-PER\nMaria L-PER\nin O\nOslo U-LOC\nOslo B-LOC\nCity I-LOC\nHall L-LOC\n"
IOBES = BILOU.replace("L-PER", "E-PER").replace("L-LOC", "E-LOC").replace("U-", "S-")
IOB1 = "Anna I-PER\nMaria I-PER\nin O\nOslo I-LOC\nOslo B-LOC\nCity I-LOC\nHall I-LOC\n"


def score(tmp_path, gold, found, *flags):
    for name, content in (("gold", gold), ("found", found)):
        (tmp_path / name).write_text(content)
    pair = tmp_path / "gold", tmp_path / "found"
    return here("04_evaluate.py", tmp_path, *flags, "--score", *pair)


@pytest.mark.parametrize("gold", [IOB2, BILOU, IOBES, IOB1])
@pytest.mark.parametrize("found", [IOB2, BILOU, IOBES, IOB1])
def test_one_truth_in_two_tag_schemes_scores_1(tmp_path, gold, found):
    assert "f1 = 1.0\n" in score(tmp_path, gold, found)


@pytest.mark.parametrize("tags", [("U-PER", "U-PER"), ("L-PER", "B-PER"), ("U-PER", "B-PER")])
def test_entities_side_by_side_stay_two(tmp_path, tags):
    gold = "".join(f"{word} {tag}\n" for word, tag in zip(("Anna", "Maria"), tags))
    two = "Anna B-PER\nMaria B-PER\n"
    assert "f1 = 1.0\n" in score(tmp_path, gold, gold)
    assert "f1 = 1.0\n" in score(tmp_path, two, gold)
    assert "f1 = 0.0\n" in score(tmp_path, two, "Anna B-PER\nMaria I-PER\n")


@pytest.mark.parametrize("gold", [IOB1, BILOU, IOBES])
def test_strict_reads_iob2_alone(tmp_path, gold):
    assert "f1 = 1.0\n" in score(tmp_path, IOB2, IOB2, "--strict")
    (tmp_path / "iob").write_text(gold)
    flags = ["--strict", "--score", tmp_path / "iob", tmp_path / "iob"]
    refused("04_evaluate.py", tmp_path, *flags, says=["--strict", "IOB2"])


def test_a_stray_i_of_a_prediction_is_what_strict_counts_as_wrong(tmp_path):
    assert "f1 = 1.0\n" in score(tmp_path, "Anna B-PER\n", "Anna I-PER\n")
    assert "f1 = 0.0\n" in score(tmp_path, "Anna B-PER\n", "Anna I-PER\n", "--strict")


# ------------------------------------------------------------------------ output

def test_output_that_is_closed_early_stops_no_stage(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a", ignore=shutil.ignore_patterns("results"))
    line = " ".join(command("04_evaluate.py", artifacts, "--oracle")) + " | head -1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "" and done.stdout.count("\n") == 1
    table = (artifacts / "results/results.csv").read_text()
    assert table == (toy / "results/results.csv").read_text()


def test_a_terminal_that_knows_ascii_alone_stops_no_stage(toy, tmp_path):
    artifacts = shutil.copytree(toy, tmp_path / "a", ignore=shutil.ignore_patterns("results"))
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    line = command("04_evaluate.py", artifacts, "--oracle")
    done = subprocess.run(line, capture_output=True, env=environment, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == b"", done.stderr.decode()
    assert b"stage 4 done" in done.stdout
    assert "±" in (artifacts / "results/results.md").read_text(encoding="utf-8")


def test_teachers_that_find_nothing_are_named_with_what_to_try(toy, tmp_path):
    easy = "Anna B-PER\nlives O\n\n" * 30
    for name, dev, finds in (("bad", "lives B-PER\nlives I-PER\n", False), ("good", easy, True)):
        tagged = corpus(tmp_path / name, aa={"train": easy, "dev": dev})
        how = ["--data-dir", tagged, *PAIR[:-1], toy / "encoder"]
        here("01_data.py", tmp_path / f"{name}-a", *how)
        flags = ["--lr", "0.003", "--epochs", "20"]
        said = here("02_teachers.py", tmp_path / f"{name}-a", *flags)
        assert ("recogniser-aa-s0 finds no entity" in said) == (not finds), said
        assert ("--lr" in said) == (not finds)
