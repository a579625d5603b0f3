"""What the stages cost beside the bare model and beside what people would run instead: medians of
ratios, interleaved within one run, on one thread. Not collected by pytest.
    python tests/benchmark.py --encoder bert-base-multilingual-cased --device cuda

student / bare model     training on caches, over forward, backward, update of the same batches
cache / bare forward     what writing a teacher's answers down adds to its forward passes
teachers in every step   TSL with them run on every batch, over training and filling the caches
Trainer / ours           the library's Trainer on Eq. (1), our batch size, grouped by length
precision / fp32         a student in the precision that the stages choose here, over fp32
"""

import argparse
import contextlib
import importlib.util
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import datasets
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from torch.nn.utils.rnn import pad_sequence

sys.path.insert(0, str(Path(__file__).parent.parent))
teachers = importlib.import_module("02_teachers")
distill = importlib.import_module("03_distill")
TAGS = teachers.data.tags_of(["LOC", "ORG", "PER"])
K = 4  # teachers of a kind
BERT = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)


def parse_args():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--encoder", help="folder or hub name; default: a random BERT of 17 M")
    p.add_argument("--sentences", type=int, default=256)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--memory-of", type=Path)  # a child's: its text
    return p.parse_args()


def write_text(folder, n, config):
    """A table of n sentences, and what K recognisers and evaluators said of it, as stage 2 does."""
    rng = np.random.default_rng(0)
    rows = []
    n_words = 0
    for length in np.clip(rng.lognormal(3.4, 0.6, n), 4, 128).astype(int).tolist():  # as news
        first = list(range(1, length - 1, 2))
        row = {"start": n_words, "words": ["x"] * len(first), "length": length, "first": first}
        row["input_ids"] = rng.integers(5, config.vocab_size, length).tolist()
        rows.append(dict(row, tags=[place % len(TAGS) for place in first]))
        n_words += len(first)
    datasets.Dataset.from_list(rows).save_to_disk(folder / "table")
    for kind, size in (("logits", len(TAGS)), ("vectors", config.hidden_size)):
        for k in range(K):
            (folder / f"{kind}-{k}").mkdir()
            answers = F.normalize(torch.randn(n_words, size), dim=-1).half()
            save_file({kind: answers}, folder / f"{kind}-{k}/train.safetensors")


class Case:
    def __init__(self, encoder, device, folder):
        self.encoder = encoder
        self.device = device
        self.folder = folder
        self.table = datasets.load_from_disk(str(folder / "table"))
        steps = -(-len(self.table) // 32)  # rounded up
        self.recipe = dict(lr=1e-5, epochs=0, batch_size=32, freeze=0, steps=steps)
        self.batches = teachers.plan_steps(self.table, 32, steps, np.random.default_rng(0))
        self.weights = torch.full((K,), 1 / K, device=device)
        self.model = self.fresh()
        self.taught_by = self.fresh().eval()

    def fresh(self):
        return teachers.load_tagger(self.encoder, TAGS, 0, self.device, teachers.NEW_HEAD)

    def student(self, method):
        names = {kind: [f"{kind}-{k}" for k in range(K)] for kind in ("logits", "vectors")}
        said = [distill.load_caches(self.folder, names[x], "train", x) for x in names]
        evaluators = said[1], self.weights, torch.ones_like(self.weights)
        given = self.table, (said[0], self.weights), evaluators, distill.METHODS[method]
        distill.train(self.model, *given, self.recipe, 0)

    def bare(self, train=True):
        batches = self.batches if train else teachers.plan_batches(self.table, 64)
        lengths = self.table["length"]
        adamw = torch.optim.AdamW(self.model.parameters(), 1e-5, fused=True)
        self.model.train(train)
        for rows in batches:
            shape = len(rows), max(lengths[row] for row in rows)
            ids = torch.randint(5, self.model.config.vocab_size, shape, device=self.device)
            with torch.inference_mode(not train), teachers.autocast(self.model):
                logits = self.model(ids, attention_mask=torch.ones_like(ids)).logits
            if train:
                labels = ids.flatten() % len(TAGS)
                F.cross_entropy(logits.flatten(0, 1).float(), labels).backward()
                adamw.step()
                adamw.zero_grad()

    def every_step(self):
        training = teachers.optimiser(self.model, 1e-5, len(self.batches))
        self.model.train()
        for rows in self.batches:
            batch = teachers.collate(self.table[rows], self.device)
            with torch.no_grad():
                z = [teachers.forward_words(self.taught_by, batch)[1] for _ in range(K)]
                p = distill.mixture(torch.stack(z), self.weights)
            _, logits = teachers.forward_words(self.model, batch)
            teachers.step(distill.squared_error(logits, p).mean(), self.model, *training)

    def trainer(self):
        rows = []
        for row in self.table:
            tags = dict(zip(row["first"], row["tags"]))
            labels = [tags.get(place, -100) for place in range(row["length"])]
            rows.append({"input_ids": row["input_ids"], "labels": labels})
        options = {"output_dir": str(self.folder / "trainer"), "use_cpu": self.device == "cpu"}
        options.update(num_train_epochs=1, save_strategy="no", report_to="none", disable_tqdm=True)
        options.update(per_device_train_batch_size=32, train_sampling_strategy="group_by_length")
        options["bf16"] = precision_of(self.model) == torch.bfloat16
        given = self.fresh(), transformers.TrainingArguments(**options), pad
        return transformers.Trainer(*given, train_dataset=datasets.Dataset.from_list(rows)).train


def pad(rows):
    ids = pad_sequence([torch.tensor(row["input_ids"]) for row in rows], True)
    labels = pad_sequence([torch.tensor(row["labels"]) for row in rows], True, -100)
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


def precision_of(model):
    with teachers.autocast(model):
        ids = torch.ones(1, 1, device=model.device).long()
        return model(ids).logits.dtype


def seconds(run, *given):
    begun = time.perf_counter()
    run(*given)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def measure(case):
    tsl = seconds(case.student, "tsl-sim")
    cache = seconds(teachers.predict_words, case.taught_by, case.table, case.device)
    ratios = {"student / bare model": tsl / seconds(case.bare)}
    ratios["cache / bare forward"] = cache / seconds(case.bare, False)
    theirs = 3 * seconds(case.every_step)  # TSL's students pass over the text three times
    ratios["teachers in every step"] = theirs / (3 * tsl + K * cache)
    if importlib.util.find_spec("accelerate"):
        given = case.model, case.table, teachers.recogniser_loss, case.recipe, 0
        ratios["Trainer / ours"] = seconds(case.trainer()) / seconds(teachers.train, *given)
    with mock.patch.object(teachers, "autocast", return_value=contextlib.nullcontext()):
        ratios["precision / fp32"] = tsl / seconds(case.student, "tsl-sim")
    return ratios


def main(args):
    torch.set_num_threads(1)
    if args.memory_of:
        Case(args.encoder, args.device, args.memory_of).student("mtmt")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        return
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        encoder = args.encoder or str(folder / "encoder")
        if not args.encoder:
            bert = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=16_000, **BERT))
            bert.save_pretrained(encoder)
        config = transformers.AutoConfig.from_pretrained(encoder)
        memory = []
        for times in (1, 8):
            write_text(folder / str(times), times * args.sentences, config)
            run = [sys.executable, __file__, "--encoder", encoder, "--device", args.device]
            run += ["--memory-of", str(folder / str(times))]
            said = subprocess.check_output(run, text=True)
            memory.append(int(said.split()[-1]))  # MiB
        case = Case(encoder, args.device, folder / "1")
        measure(case)  # to warm up
        found = [measure(case) for _ in range(args.repeats)]
    print(f"{args.device}, one thread, {precision_of(case.model)}, {args.repeats} repetitions")
    for name in found[0]:
        values = [ratios[name] for ratios in found]
        print(f"{name:24}{np.median(values):8.3f}   {min(values):.3f} to {max(values):.3f}")
    print(f"{'memory, 8 x the text':24}{memory[1] / memory[0]:8.3f}   of {memory[0]} MiB")


if __name__ == "__main__":
    main(parse_args())
