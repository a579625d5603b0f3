"""Encoders of all kinds, tiny and random: words are tokenised as in running text, what is saved is
what was trained, and what cannot serve is refused in stage 1."""

import importlib
import itertools
import json

import datasets
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer, SentencePieceUnigramTokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import trainers

from conftest import PAIR, corpus, data, here, refused, to_conll

teachers = importlib.import_module("02_teachers")
evaluate = importlib.import_module("04_evaluate")
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZE |= {"intermediate_size": 32}
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
TEXT = [" ".join(words) for lang in ("qaa", "qba", "qac")
        for words, _ in data.toy_corpus(lang, 0)["train"][:100]]


# ------------------------------------------------------------------------ tiny encoders

def wrap(tokenizer, special, kind=transformers.PreTrainedTokenizerFast, **options):
    """A trained tokenizer in a class of transformers, with [CLS] and [SEP], or what serves so."""
    pad, unknown, begin, end, mask = special
    ends = [(name, tokenizer.token_to_id(name)) for name in (begin, end)]
    frame = processors.TemplateProcessing(f"{begin} $A {end}", special_tokens=ends)
    tokenizer.post_processor = frame
    names = {"pad_token": pad, "unk_token": unknown, "cls_token": begin, "sep_token": end}
    return kind(tokenizer_object=tokenizer, mask_token=mask, **names, **options)


def wordpiece():
    tokenizer = BertWordPieceTokenizer(lowercase=False)
    tokenizer.train_from_iterator(TEXT, 300, show_progress=False)
    return wrap(tokenizer._tokenizer, BERT)


def byte_level(special=ROBERTA):
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXT, 400, special_tokens=special, show_progress=False)
    return tokenizer._tokenizer


def roberta():
    tokenizer = byte_level()
    state = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in state["merges"]]
    return transformers.RobertaTokenizer(vocab=state["vocab"], merges=merges)


def unigram():
    tokenizer = SentencePieceUnigramTokenizer()
    options = {"special_tokens": ROBERTA, "unk_token": "<unk>", "show_progress": False}
    tokenizer.train_from_iterator(TEXT, 300, **options)
    return wrap(tokenizer._tokenizer, ROBERTA)


def gemma():
    """No pre-tokenizer that splits; spaces become low lines, also none before the first word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Replace("▁", " ")
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=ROBERTA, show_progress=False)
    words = [word for text in TEXT for word in text.replace(" ", " ▁").split(" ")]
    tokenizer.train_from_iterator(words, trainer)
    return wrap(tokenizer, ROBERTA)


def save(folder, tokenizer, config, model=transformers.AutoModel, **options):
    torch.manual_seed(0)
    config = config(vocab_size=len(tokenizer), **SIZE, **options)
    tokenizer.save_pretrained(folder)
    model.from_config(config).save_pretrained(folder)
    return folder


def special_ids(tokenizer):
    names = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.sep_token_id}
    names |= {"bos_token_id": tokenizer.cls_token_id, "cls_token_id": tokenizer.cls_token_id}
    return names | {"sep_token_id": tokenizer.sep_token_id}


def make(kind, folder):
    """One tiny random encoder of a kind."""
    if kind == "BERT, WordPiece":
        return save(folder, wordpiece(), transformers.BertConfig)
    if kind == "RoBERTa, byte-level":
        return save(folder, roberta(), transformers.RobertaConfig, max_position_embeddings=514)
    if kind == "RoBERTa, byte-level in a generic class":
        tokenizer = wrap(byte_level(), ROBERTA)
        return save(folder, tokenizer, transformers.RobertaConfig, max_position_embeddings=514)
    if kind == "XLM-R, Unigram":
        tokenizer = unigram()
        return save(folder, tokenizer, transformers.XLMRobertaConfig, max_position_embeddings=514)
    if kind == "Gemma style":
        return save(folder, gemma(), transformers.BertConfig)
    if kind == "ModernBERT":
        tokenizer = wrap(byte_level(BERT), BERT)
        return save(folder, tokenizer, transformers.ModernBertConfig, **special_ids(tokenizer))
    if kind == "EuroBERT":
        tokenizer = wrap(byte_level(BERT), BERT)
        config = transformers.EuroBertConfig
        return save(folder, tokenizer, config, num_key_value_heads=2, **special_ids(tokenizer))
    if kind == "T5":
        tokenizer, size = unigram(), {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 2}
        config = transformers.T5Config(vocab_size=len(tokenizer), num_heads=2, **size)
    if kind == "XLNet":
        tokenizer = unigram()
        size = {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 32}
        config = transformers.XLNetConfig(vocab_size=len(tokenizer), **size)
    tokenizer.save_pretrained(folder)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


KINDS = ["BERT, WordPiece", "RoBERTa, byte-level", "RoBERTa, byte-level in a generic class",
         "XLM-R, Unigram", "Gemma style", "ModernBERT"]
KINDS += ["EuroBERT"] * hasattr(transformers, "EuroBertConfig")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A function that makes an encoder of a kind once."""
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = make(kind, tmp_path_factory.mktemp("encoder"))
        return made[kind]

    return of


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return to_conll(tmp_path_factory.mktemp("text"), ["qaa", "qac"], n=30)


@pytest.fixture(scope="module", params=KINDS)
def run(request, encoder, text, tmp_path_factory):
    """Artifacts of the four stages with an encoder of each kind."""
    artifacts = tmp_path_factory.mktemp("run") / "a"
    how = ["--data-dir", text, "--encoder", encoder(request.param)]
    here("01_data.py", artifacts, *how, "--sources", "qaa", "--targets", "qac")
    long_enough = ["--lr", "0.01", "--epochs", "12"]  # to say something
    here("02_teachers.py", artifacts, *long_enough)
    here("03_distill.py", artifacts, "--methods", "tsl-kl", "mtmt-pooled", *long_enough)
    here("04_evaluate.py", artifacts)
    return artifacts


def sentences(artifacts, split="test"):
    """(words, input_ids, first) of the sentences that are one window."""
    table = datasets.load_from_disk(str(artifacts / f"data/targets/qac/{split}"))
    return [(row["words"], row["input_ids"], row["first"]) for row in table]


def firsts(tokenizer, words):
    """The ids of a sentence and where each word's first sub-token is, from what is saved alone.

    A sub-token belongs to the word in which it ends; a space belongs to the word behind it.
    """
    said = tokenizer(" ".join(words), return_offsets_mapping=True, return_special_tokens_mask=True)
    owner = list(itertools.chain(*([k] * (len(word) + (k > 0)) for k, word in enumerate(words))))
    first = {}
    for place, (start, stop) in enumerate(said["offset_mapping"]):
        if not said["special_tokens_mask"][place]:
            first.setdefault(owner[max(start, stop - 1)], place)
    return said["input_ids"], [first[k] for k in range(len(words))]


# ------------------------------------------------------------------------ the stages

@pytest.mark.parametrize("piece", ["students/qac/tsl-kl-s0", "students/qac/mtmt-pooled-s0",
                                   "teachers/recogniser-qaa-s0", "teachers/scaled-pooled-s0"])
def test_the_saved_tokenizer_gives_the_ids_of_training(run, piece):
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / piece)
    for words, ids, first in sentences(run) + sentences(run, "train"):
        assert tokenizer(" ".join(words))["input_ids"] == ids
        assert firsts(tokenizer, words) == (ids, first)


@pytest.mark.parametrize("method", ["tsl-kl", "mtmt-pooled"])
def test_a_reloaded_student_gives_the_tags_of_stage_4(run, method):
    folder = run / f"students/qac/{method}-s0"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder)
    cached, found = load_file(folder / "test.safetensors")["logits"].float(), []
    for words, _, _ in sentences(run):
        ids, first = firsts(tokenizer, words)
        with torch.no_grad():
            found.append(model(torch.tensor([ids])).logits[0, first])
    found = torch.cat(found)
    assert torch.allclose(found, cached, atol=4e-3, rtol=4e-3) and cached.std(0).max() > 0.1
    tags = [model.config.id2label[k] for k in found.argmax(-1).tolist()]
    lines = (run / f"results/predictions/qac/{method}-s0.txt").read_text().split("\n")
    written = [line.split("\t")[1] for line in lines if line]
    best = found.topk(2).values
    near = best[:, 0] - best[:, 1] < 0.02  # a cache rounds to fp16: two tags may be equal in it
    assert len(tags) == len(written) and near.float().mean() < 0.1
    assert [x for x, y in zip(tags, near) if not y] == [x for x, y in zip(written, near) if not y]


def test_words_inside_a_sentence_are_tokenised_as_in_running_text(run):
    """Not as if every word began the text, nor as if it went on from the word before."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "teachers/recogniser-qaa-s0")
    for words, ids, first in sentences(run)[:5]:
        pieces = tokenizer.convert_ids_to_tokens(ids)
        begins = [pieces[place] for place in first[1:]]
        if any(piece[0] in "Ġ▁" for piece in pieces):
            assert all(piece[0] in "Ġ▁" for piece in begins), pieces
        else:
            assert not any(piece.startswith("##") for piece in begins), pieces


def spans(tagger, words):
    """[(type, first character, last + 1)] that the library's pipeline finds in a sentence."""
    return {(x["entity_group"], x["start"], x["end"]) for x in tagger(" ".join(words))}


def test_the_librarys_pipeline_gives_stage_4s_entities_where_it_knows_words(run):
    """It does where a pre-tokenizer parts them; elsewhere it guesses, and README's lines serve."""
    folder, predictions = run / "students/qac/mtmt-pooled-s0", run / "results/predictions/qac"
    state = json.loads((folder / "tokenizer.json").read_text())
    if (state["pre_tokenizer"] or {}).get("type") != "BertPreTokenizer":
        pytest.skip("the library does not know this tokenizer's words")
    how = {"model": str(folder), "aggregation_strategy": "first"}
    tagger, seen = transformers.pipeline("token-classification", **how), 0
    text = (predictions / "mtmt-pooled-s0.txt").read_text().strip()
    for lines in text.split("\n\n"):
        words, tags = zip(*(line.split("\t") for line in lines.split("\n")))
        begins = list(itertools.accumulate((len(word) + 1 for word in words), initial=0))
        (expected,) = evaluate.entities([list(tags)], strict=False)
        expected = {(kind, begins[i], begins[j + 1] - 1) for kind, i, j in expected}
        assert spans(tagger, words) == expected, lines
        seen += len(expected)
    assert seen


# ------------------------------------------------------------------------ text that is odd

@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_in_the_text_are_text(encoder, kind):
    tokenizer = data.load_tokenizer(encoder(kind))
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    words = ["Anna", "<s>", "[SEP]", "<pad>", "[CLS]", "</s>", "<mask>", "[MASK]", "[PAD]"]
    row = data.encode([(words, None)], tokenizer, 128)[0]
    assert row["words"] == words and not set(row["input_ids"][1:-1]) & special
    assert row["input_ids"][0] == tokenizer.cls_token_id and len(set(row["first"])) == len(words)


@pytest.mark.parametrize("kind", KINDS)
def test_every_word_has_a_first_sub_token_whatever_its_characters(encoder, kind):
    words = ["Anna", "字化", "\u200b", "👩🏽", "x" * 700, "e\u0301", "\u00ad", "...", "Oslo", "'s"]
    table = data.encode([(words * 3, None)], data.load_tokenizer(encoder(kind)), 40)
    assert list(itertools.chain(*table["words"])) == words * 3
    assert all(row["length"] <= 40 and len(row["first"]) == len(row["words"]) for row in table)
    assert all(sorted(set(row["first"])) == row["first"] for row in table)


# ------------------------------------------------------------------------ refused in stage 1

def first_stage(text, encoder, *flags):
    pair = ["--sources", "qaa", "--targets", "qac"]
    return ["--data-dir", text, "--encoder", encoder, *pair, *flags]


@pytest.mark.parametrize("kind", ["T5", "XLNet"])
def test_models_that_are_no_plain_encoders_are_refused_in_stage_1(encoder, text, tmp_path, kind):
    flags = first_stage(text, encoder(kind))
    says = [f"--encoder {encoder(kind)}", "cannot serve"]
    refused("01_data.py", tmp_path / "a", *flags, says=says)


def test_a_tagger_of_other_labels_is_refused_in_stage_1(encoder, text, tmp_path):
    path = tmp_path / "tagger"
    tagger = transformers.AutoModelForTokenClassification
    tagger.from_pretrained(encoder("BERT, WordPiece"), num_labels=3).save_pretrained(path)
    data.load_tokenizer(encoder("BERT, WordPiece")).save_pretrained(path)
    refused("01_data.py", tmp_path / "a", *first_stage(text, path), says=["tagger", "cannot serve"])


def test_an_encoder_without_latin_letters_serves(text, tmp_path):
    pieces = BERT + list("абвгд") + ["##" + letter for letter in "абвгд"]
    tokenizer = Tokenizer(models.WordPiece(dict(zip(pieces, range(99))), unk_token="[UNK]"))
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    folder = save(tmp_path / "e", tokenizer, transformers.BertConfig)
    data.check_encoder(folder, data.load_tokenizer(folder), 128, 7)


@pytest.mark.parametrize("kind, positions, reads", [
    ("roberta", 128, 126), ("roberta", 66, 64), ("bert", 100, 100),
])
def test_windows_longer_than_the_encoder_reads_are_refused_with_the_limit(
    text, tmp_path, kind, positions, reads
):
    config = {"roberta": transformers.RobertaConfig, "bert": transformers.BertConfig}[kind]
    tokenizer = {"roberta": roberta, "bert": wordpiece}[kind]()
    folder = save(tmp_path / "e", tokenizer, config, max_position_embeddings=positions)
    says = ["--max-length 128", str(reads)]
    refused("01_data.py", tmp_path / "a", *first_stage(text, folder), says=says)
    flags = first_stage(text, folder, "--max-length", reads)
    here("01_data.py", tmp_path / "a", *flags)  # and with that limit all goes well
    here("02_teachers.py", tmp_path / "a", "--sources", "qaa")


def test_an_encoder_of_512_positions_reads_no_513(encoder, text, tmp_path):
    flags = first_stage(text, encoder("BERT, WordPiece"), "--max-length", "513")
    refused("01_data.py", tmp_path / "a", *flags, says=["--max-length 513", "512"])


@pytest.mark.parametrize("unknown", [None, "[UNK]"])
def test_letters_that_a_vocabulary_lacks_need_its_unknown_token(text, tmp_path, unknown):
    pieces = BERT + list("abcdefghij") + ["##" + letter for letter in "abcdefghij"]
    if unknown is None:
        pieces.remove("[UNK]")
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names |= {"unk_token": unknown} if unknown else {}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    folder = save(tmp_path / "e", tokenizer, transformers.BertConfig)
    if unknown:
        here("01_data.py", tmp_path / "a", *first_stage(text, folder))
    else:
        says = f"--encoder {folder}"
        refused("01_data.py", tmp_path / "a", *first_stage(text, folder), says=says)


def test_an_encoder_without_a_fast_tokenizer_is_refused(text, tmp_path):
    config = transformers.BertConfig(vocab_size=50, **SIZE)
    transformers.BertModel(config).save_pretrained(tmp_path / "bare")
    flags = first_stage(text, tmp_path / "bare")
    refused("01_data.py", tmp_path / "a", *flags, says=["--encoder", "tokenizer"])


def test_an_encoder_without_weights_is_refused(encoder, text, tmp_path):
    data.load_tokenizer(encoder("BERT, WordPiece")).save_pretrained(tmp_path / "bare")
    transformers.BertConfig(vocab_size=300, **SIZE).save_pretrained(tmp_path / "bare")
    refused("01_data.py", tmp_path / "a", *first_stage(text, tmp_path / "bare"), says="--encoder")


def test_no_such_encoder_is_refused(text, tmp_path):
    flags = first_stage(text, "nowhere/x")
    refused("01_data.py", tmp_path / "a", *flags, says="--encoder nowhere/x")


def test_a_hostile_encoder_folder_runs_no_code(tmp_path):
    folder, mark = tmp_path / "hostile", tmp_path / "touched"
    data.train_tokenizer([["a", "b"]] * 5, 40).save_pretrained(folder)
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass X: pass\n")
    classes = ("AutoConfig", "AutoModel", "AutoModelForTokenClassification", "AutoTokenizer")
    config = {"model_type": "evil", "auto_map": dict.fromkeys(classes, "evil.X")}
    (folder / "config.json").write_text(json.dumps(config))
    pickled = b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR."
    (folder / "pytorch_model.bin").write_bytes(pickled)
    flags = ["--data-dir", corpus(tmp_path / "in"), *PAIR[:-1], folder]
    refused("01_data.py", tmp_path / "a", *flags, says="--encoder")
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    refused("01_data.py", tmp_path / "a", *flags, says="--encoder")
    assert not mark.exists()


# ------------------------------------------------------------------------ --freeze

def test_freezing_is_done_or_refused_for_every_kind_and_never_silent(encoder):
    for kind in KINDS:
        model = teachers.load_tagger(encoder(kind), ["O", "B-X", "I-X"], 0, "cpu")
        teachers.freeze(model, 1)
        free = {name for name, p in model.named_parameters() if p.requires_grad}
        frozen = {name for name, _ in model.named_parameters()} - free
        assert any("embed" in name for name in frozen), kind
        assert any(".0." in name for name in frozen), kind
        assert any(".1." in name for name in free), kind
        assert not any(".1." in name or "classifier" in name for name in frozen), kind
