"""What the stages cost beside the bare model, and how many times as fast they are as what people
would run instead: ratios of interleaved repetitions within one run.

    python tests/benchmark.py                    a random encoder of 17 M parameters, random text
    python tests/benchmark.py --encoder bert-base-multilingual-cased --device cuda
    python tests/benchmark.py --data artifacts   the sentence lengths of a real target
    python tests/benchmark.py --profile          where a student's and a cache's seconds go

Prints a short table and, as its last line, one line of JSON. Not collected by pytest. Ratios mean
something on a machine that does nothing else; OMP_NUM_THREADS=1 makes them steadier. The rows of
transformers.Trainer need accelerate, which nothing else here does: pip install accelerate.

Rows `... times as fast` divide our units a second by theirs: sentences of a student (TSL), words
that supervise it (MTMT), sentences of a recogniser (Trainer). The encoder, the text, threads,
dropout and what is frozen (nothing) are the same; precision, padding, batches and the optimiser
are part of what is compared.

What is made once counts by its share: a student trains three epochs (EPOCHS, as TSL's) on the
caches of its teachers, so an epoch costs its training plus a third of filling all of them, those of
K recognisers, for mtmt of K evaluators, too. The released TSL code also runs its teachers once, and
they count alike. Not counted on either side: imports, making and loading models, reading text,
writing files.

    released TSL code             all sentences padded to 128, fp32; K teachers run once before
    TSL, teachers in every step   the same without that: K teachers run on every batch
    released MTMT trainer         two sentences encoded, by the student, a recogniser and an
                                  evaluator, for one pair of words; we count each of ours once
    Trainer as in its example     batches of 8 in random order, fp32
    Trainer at its best           our batch size, sentences of like length together, our precision
"""

import argparse
import cProfile
import importlib
import importlib.util
import itertools
import json
import os
import pstats
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
SCRIPTS = ("01_data", "02_teachers", "03_distill", "04_evaluate")
data, teachers, distill, evaluate = map(importlib.import_module, SCRIPTS)
TAGS = data.tags_of(["LOC", "ORG", "PER"])
GOALS = {  # what a row should be: costs at most, speed-ups at least
    "student training / bare model": "at most 1.05",
    "K = 4 / K = 1": "at most 1.03",
    "mtmt / tsl-sim": "at most 1.15",
    "teacher training / bare model": "at most 1.05",
    "cache filling / bare forward": "at most 1.05",
    "padding": "at most 1.04",
    "memory, 8 x the text": "at most 1.2",
    "TSL, teachers in every step": "at least 12",
    "released MTMT trainer": "at least 200",
    "Trainer as in its example": "at least 3",
    "Trainer at its best": "at least 1.2",
}
K = 4  # teachers of a kind
EPOCHS = distill.RECIPES["base"]["epochs"]  # of a student: the teachers' work is shared by them
RIVALS = 320  # sentences at most in the rows of what people would run instead
ENCODER = {"vocab_size": 16_000, "hidden_size": 384, "num_hidden_layers": 6}
ENCODER |= {"num_attention_heads": 12, "intermediate_size": 1536}
SHARES = [  # functions whose share of the seconds --profile prints
    "read_words", "run_backward", "_use_grad", "clip_grad_norm_", "read_rows", "collate",
    "__getitem__", "draw_pairs", "mixture", "student_loss", "squared_error", "similarity_loss",
    "teacher_similarity", "plan_batches", "optimiser",
]


def parse_args():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    there = "cuda" if torch.cuda.is_available() else "cpu"
    p.add_argument("--device", default=there, help="cpu or cuda; default as the stages choose")
    p.add_argument("--encoder", help="folder or hub name; default: a random BERT of 17 M")
    p.add_argument("--data", type=Path, help="artifacts whose first target gives sentence lengths")
    p.add_argument("--sentences", type=int, default=300)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--profile", action="store_true", help="seconds by function instead of ratios")
    # A child process, METHOD N PROFILE: peak memory of distilling N sentences.
    p.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    return p.parse_args()


def random_table(lengths, vocabulary, rng):
    """Windows of random sub-tokens, three of five of them first in their word, with random tags."""
    rows, start = [], 0
    for number, n in enumerate(map(int, lengths)):
        first = [1, *(k for k in range(2, n - 1) if rng.random() < 0.6)]
        ids = [2, *rng.integers(5, vocabulary, n - 2).tolist(), 3]
        row = {"sentence": number, "start": start, "words": ["x"] * len(first), "length": n}
        row |= {"first": first, "input_ids": ids}
        rows.append(row | {"tags": rng.integers(0, len(TAGS), len(first)).tolist()})
        start += len(first)
    return datasets.Dataset.from_list(rows)


def caches(folder, words, width, K):
    """Random caches of K teachers over a number of words, as stage 2 leaves them."""
    for k, (kind, D) in itertools.product(range(K), (("logits", len(TAGS)), ("vectors", width))):
        (folder / f"{kind}-{k}").mkdir()
        parts = []
        for start in range(0, words, 10_000):
            part = torch.randn(min(10_000, words - start), D)
            parts.append(F.normalize(part, dim=-1).half())
        save_file({kind: torch.cat(parts)}, folder / f"{kind}-{k}" / "train.safetensors")


class Case:
    """One encoder, one corpus, K teachers: runs one epoch of anything and gives its seconds."""

    def __init__(self, encoder, device, lengths, folder):
        self.encoder, self.device, self.folder = encoder, device, folder
        self.config = transformers.AutoConfig.from_pretrained(encoder)
        self.table = random_table(lengths, self.config.vocab_size, np.random.default_rng(0))
        self.recipe = {"lr": 1e-5, "epochs": 1, "batch_size": 32, "freeze": 0}
        caches(folder, sum(map(len, self.table["first"])), self.config.hidden_size, K)
        self.model = self.fresh()

    def fresh(self):
        return teachers.load_tagger(self.encoder, TAGS, 0, self.device)

    def clock(self, run):
        wait = torch.cuda.synchronize if self.device == "cuda" else lambda: None
        wait()
        begun = time.perf_counter()
        run()
        wait()
        return time.perf_counter() - begun

    def student(self, method, K):
        def run():
            logits, vectors = [], []
            for k in range(K):
                logits.append(self.folder / f"logits-{k}" / "train.safetensors")
                vectors.append(self.folder / f"vectors-{k}" / "train.safetensors")
            weights, kappas = torch.full((K,), 1 / K), torch.ones(K)
            said = (logits, weights), (vectors, weights, kappas)
            distill.train(self.model, self.table, *said, distill.METHODS[method], self.recipe, 0)

        return run

    def teacher(self):
        given = self.model, self.table, teachers.recogniser_loss, self.recipe, 0
        return lambda: teachers.train(*given)

    def cache(self):
        given = self.model, self.table, self.device
        return lambda: teachers.over_words(*given)

    def bare(self, backward=True, same_shapes=False):
        """Forward, backward and step of the model alone, on batches without padding.

        By default all of one shape, with the corpus's number of sub-tokens and steps; or of the
        shapes that the stages plan, which tells what the loop around the model costs from what long
        rows cost in attention and padding.
        """
        size, lengths = self.recipe["batch_size"] if backward else 64, list(self.table["length"])
        plan = teachers.plan_batches(self.table, size)
        tokens, T = sum(lengths), int(np.mean(lengths))
        shapes = [(max(1, round(tokens / T / len(plan))), T)] * len(plan)
        if same_shapes:
            shapes = [(len(rows), max(lengths[r] for r in rows)) for rows in plan]
        teachers.freeze(self.model, 0)
        optimizer = torch.optim.AdamW(self.model.parameters(), 1e-5, fused=True)

        def run():
            self.model.train(backward)
            for B, T in shapes:
                ids = torch.randint(5, self.config.vocab_size, (B, T), device=self.device)
                with torch.inference_mode(not backward), teachers.autocast(self.model):
                    out = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
                if backward:
                    tags = torch.randint(0, 7, (B * T,), device=self.device)
                    F.cross_entropy(out.flatten(0, 1).float(), tags).backward()
                    optimizer.step()
                    optimizer.zero_grad()

        run.scale = 1 if same_shapes else tokens / (len(plan) * shapes[0][0] * T)  # of the rounding
        return run

    def ratio(self, name, upper, lower, repeats):
        """Median and range of upper / lower over interleaved repetitions, after one to warm up."""
        values = []
        for _ in range(repeats + 1):
            seconds = self.clock(upper)
            values.append(seconds / (self.clock(lower) * getattr(lower, "scale", 1)))
        return row_of(name, values[1:])


# ------------------------------------------------------------------------ what people would run

def padded(batch, length=128):
    """A batch of `collate` with every sentence padded to one fixed length."""
    more = (0, length - batch["input_ids"].shape[1])
    names = "input_ids", "attention_mask", "f"
    return batch | {name: F.pad(batch[name], more) for name in names}


@torch.no_grad()
def tsl_teachers(recognisers, weights, batch):
    """Eq. (5) of recognisers run on a batch: (M, C)"""
    logits = [teachers.read_words(model, batch)[1] for model in recognisers]
    return distill.mixture(torch.stack(logits), weights)


def tsl_loss(student, p, batch):
    """Eq. (6) as in the released code of Wu et al. (2020): a mean over the tags too, so (6) / C."""
    logits = student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    q = torch.softmax(logits, dim=-1)                                       # (B, 128, C)
    return F.mse_loss(q[batch["f"]], p)


def read_sides(model, sides):
    """Hidden states (2 P, H) and logits (2 P, C) of one word of every sentence of two batches of P;
    a side is (batch, place (P,) of the word in its sentence)."""
    states, logits = [], []
    for batch, place in sides:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        out, row = model(**inputs, output_hidden_states=True), torch.arange(len(place))
        states.append(out.hidden_states[-1][row, place])
        logits.append(out.logits[row, place])
    return torch.cat(states), torch.cat(logits)


@torch.no_grad()
def mtmt_teachers(recognisers, evaluators, weights, sides):
    """Eqs. (5) and (7): p (2 P, C) of two words in two sentences, and t (P,) of the pair."""
    logits = torch.stack([read_sides(model, sides)[1] for model in recognisers])
    v = torch.stack([read_sides(model, sides)[0] for model in evaluators])  # (K, 2 P, H)
    i, j = torch.arange(v.shape[1]).chunk(2)
    vectors, kappas = F.normalize(v, dim=-1), torch.ones_like(weights)
    t = distill.teacher_similarity(vectors, weights, kappas, i, j)
    return distill.mixture(logits, weights), t


def mtmt_loss(student, p, t, sides):
    """Eq. (9) as in the released code of Li et al. (2022): one pair of words per two sentences."""
    h, student_logits = read_sides(student, sides)                          # (2 P, H), (2 P, C)
    i, j = torch.arange(len(h)).chunk(2)
    e = distill.squared_error(student_logits, p) * distill.alpha(p)         # (2 P,)
    bce = distill.similarity_loss(h, i, j, t) * distill.beta(t)             # (P,)
    g = distill.gamma(p[i], p[j], t)                                        # (P,)
    return (g * (e[i] + e[j])).mean() / 2 + (g * bce).mean()


class Rivals(Case):
    """What people would run instead of a stage, on the text of a Case, in its own precision. Every
    method makes a run, and only the run is timed.

    Of the released code one step is timed, of a student and of one teacher: teachers cost the same,
    and so do steps, but for MTMT's, which are drawn anew for every repetition.
    """

    def __init__(self, *args):
        super().__init__(*args)
        self.rng, self.size = np.random.default_rng(0), self.recipe["batch_size"]
        self.frozen, self.one = self.fresh().eval(), torch.ones(1, device=self.device)
        rows = self.table[self.rng.permutation(len(self.table))[: self.size].tolist()]
        self.batch = padded(teachers.collate(rows, self.device))
        columns = self.table.column_names
        self.labelled = self.table.map(label_words, remove_columns=columns)

    def tsl_teacher(self):
        """The released code: fp32, every sentence padded to 128 sub-tokens."""

        def run():
            self.said = tsl_teachers([self.frozen], self.one, self.batch)

        return run

    def tsl_student(self):
        student = self.fresh().train()
        adamw = torch.optim.AdamW(student.parameters(), 1e-4)

        def run():
            tsl_loss(student, self.said, self.batch).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            adamw.step()
            adamw.zero_grad()

        return run

    def mtmt_teachers(self):
        """The released trainer: fp32, random sentences, padded to the longest of a batch. We spare
        it the recogniser's gradients, which the released code computes and never uses."""
        self.sides = self.side(), self.side()

        def run():
            self.said = mtmt_teachers([self.frozen], [self.frozen], self.one, self.sides)

        return run

    def mtmt_student(self):
        student = self.fresh().train()
        adam = torch.optim.Adam(student.parameters(), 5e-6)

        def run():
            mtmt_loss(student, *self.said, self.sides).backward()
            adam.step()
            adam.zero_grad()

        return run

    def side(self):
        """A batch of random sentences, and the place of one word of each."""
        rows = self.table[self.rng.integers(len(self.table), size=self.size).tolist()]
        place = [int(self.rng.choice(first)) for first in rows["first"]]
        return teachers.collate(rows, self.device), torch.tensor(place)

    def fresh_teacher(self):
        self.model = self.fresh()
        return self.teacher()

    def trainer(self, best=False):
        """The library's Trainer on (1): as its example script runs it, or set as we train."""
        options = {"output_dir": str(self.folder / "trainer"), "use_cpu": self.device == "cpu"}
        options |= {"num_train_epochs": 1, "save_strategy": "no", "report_to": "none"}
        if best:
            model = self.fresh()
            with teachers.autocast(model):
                options["bf16"] = torch.is_autocast_enabled(self.device)
            options["per_device_train_batch_size"] = self.size
            options["train_sampling_strategy"] = "group_by_length"
        else:
            auto = transformers.AutoModelForTokenClassification
            model = auto.from_pretrained(self.encoder, num_labels=len(TAGS))
        trainer = transformers.Trainer(
            model,
            transformers.TrainingArguments(**options, disable_tqdm=True),
            data_collator=transformers.DataCollatorForTokenClassification(padding_tokenizer()),
            train_dataset=self.labelled,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        return trainer.train

    def seconds(self):
        """One repetition of everything: {what: seconds}."""
        runs = {"tsl-sim": lambda: self.student("tsl-sim", K), "TSL teacher": self.tsl_teacher}
        runs |= {"TSL student": self.tsl_student, "mtmt": lambda: self.student("mtmt", K)}
        runs |= {"MTMT teachers": self.mtmt_teachers, "MTMT student": self.mtmt_student}
        runs |= {"cache": self.cache, "recogniser": self.fresh_teacher}
        if importlib.util.find_spec("accelerate"):
            runs |= {"Trainer as in its example": self.trainer}
            runs |= {"Trainer at its best": lambda: self.trainer(best=True)}
        return {what: self.clock(make()) for what, make in runs.items()}

    def times_as_fast(self, seconds):
        """Ours / theirs in units a second: {row: ratio}."""
        s, sentences, words = seconds, len(self.table), sum(map(len, self.table["first"]))
        tsl = sentences / (s["tsl-sim"] + K / EPOCHS * s["cache"])
        mtmt = lambda k: words / (s["mtmt"] + 2 * k / EPOCHS * s["cache"])
        tsl_step = lambda k: len(self.batch["sentence"]) / (s["TSL student"] + k * s["TSL teacher"])
        mtmt_step = lambda k: 2 * self.size / (s["MTMT student"] + k * s["MTMT teachers"])
        ratios = {
            "released TSL code": tsl / tsl_step(K / EPOCHS),
            "TSL, teachers in every step": tsl / tsl_step(K),
            "released MTMT trainer": mtmt(1) / mtmt_step(1),
            f"  ... with {K} + {K} teachers": mtmt(K) / mtmt_step(K),
        }
        of_trainer = [what for what in s if what.startswith("Trainer")]
        return ratios | {what: s[what] / s["recogniser"] for what in of_trainer}

    def rows(self, repeats):
        """Rows of the table, from interleaved repetitions after one to warm up."""
        found = [self.times_as_fast(self.seconds()) for _ in range(repeats + 1)][1:]
        return [row_of(name, [ratios[name] for ratios in found]) for name in found[0]]


def label_words(row):
    """A row as token classification has it in the library: -100 where nothing is scored."""
    labels = [-100] * row["length"]
    for place, tag in zip(row["first"], row["tags"]):
        labels[place] = tag
    return {"input_ids": row["input_ids"], "labels": labels}


def padding_tokenizer():
    """A tokenizer for a collator, which asks it to pad and nothing else."""
    words = tokenizers.models.WordLevel({"[PAD]": 0}, unk_token="[PAD]")
    plain = tokenizers.Tokenizer(words)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]")


# ------------------------------------------------------------------------ rows, memory, seconds

def row_of(name, values, middle=None):
    """A row of the table: the median, or another figure, with the range of the values."""
    middle = statistics.median(values) if middle is None else middle
    low, high = round(min(values), 3), round(max(values), 3)
    return {"row": name, "ratio": round(middle, 3), "low": low, "high": high}


def lengths_like(profile, n, rng):
    """Window lengths of a corpus: broad, short, long, all alike, or those of real data (a list)."""
    if isinstance(profile, list):
        return rng.choice(profile, n).tolist()
    profiles = {"news": (3.4, 0.6), "titles": (2.3, 0.4), "long": (4.2, 0.5), "even": (3.58, 0.0)}
    mean, spread = profiles[profile]
    return np.clip(rng.lognormal(mean, spread, n), 4, 128).astype(int).tolist()


def padding(lengths):
    batches = teachers.plan_batches({"length": lengths}, 32, np.random.default_rng(0))
    return sum(len(b) * max(lengths[r] for r in b) for b in batches) / sum(lengths)


def peak_memory(args, encoder, method, sentences, profile="news"):
    """Peak resident memory in MiB of a process that distils some sentences of unlabelled text."""
    command = [sys.executable, __file__, "--encoder", str(encoder), "--device", args.device]
    command += ["--memory-of", method, str(sentences), profile]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def toy_seconds():
    """Seconds of each stage of the toy, cold, in processes of their own, as a user runs them."""
    seconds, free = [], {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    with tempfile.TemporaryDirectory() as folder:
        for script in SCRIPTS:
            command = [sys.executable, ROOT / f"{script}.py", "--artifacts", Path(folder) / "toy"]
            begun = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=free)
            seconds.append(round(time.perf_counter() - begun))
    return seconds


def profile(title, run):
    """Seconds by function: those of the model and of the loop around it."""
    profiler = cProfile.Profile()
    profiler.runcall(run)
    calls = pstats.Stats(profiler).stats
    total = max(cumulative for _, _, _, cumulative, _ in calls.values())
    print(f"{title}: {total:.2f} s")
    longest_first = sorted(calls.items(), key=lambda item: -item[1][3])
    for (file, line, name), (_, n, _, seconds, _) in longest_first:
        if any(part in name for part in SHARES) and seconds > 0.002 * total:
            print(f"  {seconds / total:6.1%}  {n:6} calls  {Path(file).name}:{line} {name}")


def print_table(title, rows):
    print(f"{title:32}{'median':>8}{'range':>18}{'goal':>15}")
    for r in rows:
        span = f"{r['low']} to {r['high']}" + (" MiB" if "memory" in r["row"] else "")
        print(f"{r['row']:32}{r['ratio']:8.3f}{span:>18}{GOALS.get(r['row'], '-'):>15}")


def bootstrap_seconds():
    """1,000 resamples of 10 targets x 12 systems x 2,000 sentences, from counts."""
    counts = np.random.default_rng(0).integers(0, 3, (1, 2000, 3, 3))
    begun = time.perf_counter()
    for target in range(10):
        draws = evaluate.draw(2000, target, 1000)
        for _ in range(12):
            evaluate.resampled_f1(counts.sum(2), draws)
    return round(time.perf_counter() - begun, 1)


def main(args):
    device, rng = args.device, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        folder, encoder = Path(folder), args.encoder
        if not encoder:
            encoder = folder / "encoder"
            model = transformers.BertForMaskedLM(transformers.BertConfig(**ENCODER))
            model.save_pretrained(encoder)
        real = None
        if args.data:
            target = json.loads((args.data / "data/config.json").read_text())["targets"][0]
            real = list(teachers.load_table(args.data, f"data/targets/{target}/train")["length"])
        if args.memory_of:
            method, sentences, lengths = args.memory_of
            lengths = lengths_like(lengths, int(sentences), rng)
            Case(encoder, device, lengths, folder).student(method, K)()
            return print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        memory = {}
        if not args.profile:  # first: a process that was started by a large one counts as large
            texts = ("mtmt", 500), ("mtmt", 4000), ("tsl-sim", 500)
            for text in (*texts, ("mtmt", 500, "even"), ("mtmt", 4000, "even")):
                memory[text] = peak_memory(args, encoder, *text)
        lengths = lengths_like(real or "news", args.sentences, rng)
        case = Case(encoder, device, lengths, folder)
        if args.profile:
            for title, run in (("student, mtmt", case.student("mtmt", K)), ("cache", case.cache())):
                run()  # warm
                profile(title, run)
            return
        mtmt, tsl, fill = case.student("mtmt", K), case.student("tsl-sim", K), case.cache()
        forward = lambda **shapes: case.bare(backward=False, **shapes)
        timed = [
            ("student training / bare model", tsl, case.bare()),
            ("  ... of the same shapes", tsl, case.bare(same_shapes=True)),
            ("K = 4 / K = 1", mtmt, case.student("mtmt", 1)),
            ("mtmt / tsl-sim", mtmt, tsl),
            ("teacher training / bare model", case.teacher(), case.bare()),
            ("cache filling / bare forward", fill, forward()),
            ("  ... of the same shapes", fill, forward(same_shapes=True)),
        ]
        rows = [case.ratio(*row, args.repeats) for row in timed]
        (folder / "rivals").mkdir()
        rivals = Rivals(encoder, device, lengths[:RIVALS], folder / "rivals")
        faster = rivals.rows(args.repeats)
        if not importlib.util.find_spec("accelerate"):
            print("note: accelerate is not there, so no rows of Trainer")
        profiles = [real] if real else ["news", "titles", "long"]
        shares = [padding(lengths_like(profile, 1500, rng)) for profile in profiles]
        rows.append(row_of("padding", shares, max(shares)))
        small, large, of_tsl, small_even, large_even = memory.values()
        for name, low, high in [
            ("memory, 8 x the text", small, large),
            ("  ... memory, all of one length", small_even, large_even),
            ("memory, mtmt / tsl-sim", of_tsl, small),
        ]:
            rows.append(row_of(name, [low, high], high / low))
    print_table("ratio", rows)
    print_table("times as fast", faster)
    rows += faster
    bootstrap, toy = bootstrap_seconds(), toy_seconds()
    print(f"bootstrap of 10 targets x 12 systems x 2,000 sentences: {bootstrap} s")
    print(f"toy, four stages cold: {' + '.join(map(str, toy))} = {sum(toy)} s, goal 120")
    record = {"device": device, "torch": torch.__version__, "threads": torch.get_num_threads()}
    record |= {"rows": rows, "bootstrap_seconds": bootstrap, "toy_seconds": toy}
    print(json.dumps(record))


if __name__ == "__main__":
    main(parse_args())
