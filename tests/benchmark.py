"""What the stages cost beside the bare model: ratios of interleaved repetitions within one run.

    python tests/benchmark.py                                        a random encoder of 17 M parameters, random text
    python tests/benchmark.py --encoder bert-base-multilingual-cased --device cuda
    python tests/benchmark.py --data artifacts                       the sentence lengths of a real target
    python tests/benchmark.py --profile                              where a student's and a cache's seconds go

Prints a short table and, as its last line, one line of JSON. Not collected by pytest. Ratios mean something on a machine
that does nothing else; OMP_NUM_THREADS=1 makes them steadier.
"""

import argparse
import contextlib
import cProfile
import importlib
import io
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
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
data, teachers, distill, evaluate = (importlib.import_module(n) for n in ("01_data", "02_teachers", "03_distill", "04_evaluate"))
TAGS = ["O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER"]
GOALS = {"student training / bare model": 1.05, "padding": 1.04, "K = 4 / K = 1": 1.03, "mtmt / tsl-sim": 1.15,
         "teacher training / bare model": 1.05, "cache filling / bare forward": 1.05, "memory, 8 x the text": 1.2}  # fmt: skip
ENCODER = dict(vocab_size=16_000, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
SHARES = ("word_states", "run_backward", "_use_grad", "clip_grad_norm_", "look_up", "collate", "__getitem__", "draw_pairs",
          "squared_error", "similarity_loss", "teacher_similarity", "plan_batches", "optimizer_for")  # fmt: skip


def parse_args():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--device", help="cpu or cuda; default as the stages choose")
    p.add_argument("--encoder", help="folder or hub name; default: a random BERT of 6 layers, 384 wide, 17 M parameters")
    p.add_argument("--data", type=Path, help="artifacts whose first target's sentence lengths to use")
    p.add_argument("--sentences", type=int, default=600)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--profile", action="store_true", help="seconds by function instead of ratios")
    p.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)  # a child process: METHOD N PROFILE, peak memory of distilling N sentences
    return p.parse_args()


def random_table(lengths, vocabulary, rng):
    """Windows of the given lengths over random sub-tokens, three of five of them first in their word, with random tags."""
    rows, start = [], 0
    for number, n in enumerate(map(int, lengths)):
        first = [1, *(k for k in range(2, n - 1) if rng.random() < 0.6)]
        rows.append({"sentence": number, "start": start, "words": ["x"] * len(first), "length": n, "first": first,
                     "input_ids": [2, *rng.integers(5, vocabulary, n - 2).tolist(), 3], "tags": rng.integers(0, 7, len(first)).tolist()})  # fmt: skip
        start += len(first)
    return datasets.Dataset.from_list(rows)


def caches(folder, words, width, K):
    """Random caches of K teachers over a number of words, as stage 2 leaves them."""
    for k in range(K):
        for kind, tensor, D in (("recogniser", "logits", 7), ("evaluator", "vectors", width)):
            piece = data.publishing(folder / "logits" / "xx" / f"{kind}-s{k}-s0", {}, {"tags": TAGS})
            with contextlib.redirect_stdout(io.StringIO()), piece as partial:
                rows = torch.cat([F.normalize(torch.randn(min(10_000, words - at), D), dim=-1).half() for at in range(0, words, 10_000)])
                save_file({tensor: rows}, partial / "train.safetensors")


class Case:
    """One encoder, one corpus, K teachers: runs one epoch of anything and gives its seconds."""

    def __init__(self, encoder, device, lengths, folder, K=4):
        self.encoder, self.device, self.folder = encoder, device, folder
        self.config = transformers.AutoConfig.from_pretrained(encoder)
        self.table = random_table(lengths, self.config.vocab_size, np.random.default_rng(0))
        self.recipe = {"lr": 1e-5, "epochs": 1, "batch_size": 32, "freeze": 0}
        caches(folder, sum(map(len, self.table["first"])), self.config.hidden_size, K)
        (folder / "weights").mkdir(exist_ok=True)
        (folder / "weights" / "xx.json").write_text(json.dumps({f"s{k}": 1 / K for k in range(K)}))
        self.model = data.load_tagger(encoder, TAGS, 0, device)
        self.args = argparse.Namespace(lam=1.0, temperature=2.0, artifacts=folder)

    def clock(self, run):
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        run()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    def student(self, method, K):
        settings = distill.SHARED | distill.METHODS[method]
        crowd = distill.Teachers(self.folder, "xx", [f"s{k}" for k in range(K)], settings, 0, "", TAGS)
        return lambda: distill.train(self.model, self.table, crowd, settings, self.recipe, self.args, 0)

    def teacher(self):
        return lambda: teachers.train(self.model, self.table, teachers.recogniser_loss, self.recipe, 0, "teacher")

    def bare(self, backward=True, same_shapes=False):
        """Forward, backward and step of the model alone, on batches without padding.

        By default all of one shape, with the corpus's number of sub-tokens and steps; or of the shapes that the stages
        plan, which tells what the loop around the model costs from what long rows cost in attention and padding.
        """
        plan, lengths = data.plan_batches(self.table, self.recipe["batch_size"] if backward else 64), self.table["length"]
        tokens, T = sum(lengths), int(np.mean(lengths))
        shapes = [(max(1, round(tokens / T / len(plan))), T)] * len(plan)
        if same_shapes:
            shapes = [(len(rows), max(lengths[r] for r in rows)) for rows in plan]
        data.freeze(self.model, 0)
        optimizer, _ = data.optimizer_for(self.model, 1e-5, len(plan))

        def run():
            self.model.train(backward)
            for B, T in shapes:
                ids = torch.randint(5, self.config.vocab_size, (B, T), device=self.device)
                with torch.inference_mode(not backward), data.autocast(self.model):
                    out = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
                if backward:
                    tags = torch.randint(0, 7, (B * T,), device=self.device)
                    F.cross_entropy(out.flatten(0, 1).float(), tags).backward()
                    optimizer.step()
                    optimizer.zero_grad()
        run.scale = 1 if same_shapes else tokens / (len(plan) * shapes[0][0] * T)  # rounding of the batch
        return run

    def ratio(self, name, upper, lower, repeats):
        """Median and range of upper / lower over interleaved repetitions, each pair timed side by side."""
        pairs = [(self.clock(upper), self.clock(lower) * getattr(lower, "scale", 1)) for _ in range(repeats + 1)][1:]
        values = sorted(a / b for a, b in pairs)
        return {"row": name, "ratio": round(statistics.median(values), 3), "low": round(values[0], 3), "high": round(values[-1], 3)}


def lengths_like(profile, n, rng):
    """Window lengths of a corpus: news (broad), titles (short), long, even (all alike), or the lengths of real data."""
    if isinstance(profile, list):
        return rng.choice(profile, n).tolist()
    mean, spread = {"news": (3.4, 0.6), "titles": (2.3, 0.4), "long": (4.2, 0.5), "even": (3.58, 0.0)}[profile]
    return np.clip(rng.lognormal(mean, spread, n), 4, 128).astype(int).tolist()


def padding(lengths):
    batches = data.plan_batches({"length": lengths}, 32, np.random.default_rng(0))
    return sum(len(b) * max(lengths[r] for r in b) for b in batches) / sum(lengths)


def peak_memory(args, encoder, method, sentences, profile="news"):
    """Peak resident memory in MiB of a process that distils `sentences` sentences of unlabelled text."""
    command = [sys.executable, __file__, "--encoder", str(encoder), "--memory-of", method, str(sentences), profile, "--device", args.device or "cpu"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def toy_seconds():
    """Seconds of each stage of the toy, cold, in processes of their own, with as many threads as torch likes."""
    seconds, free = [], {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    with tempfile.TemporaryDirectory() as folder:
        for script in ("01_data.py", "02_teachers.py", "03_distill.py", "04_evaluate.py"):
            begun = time.perf_counter()
            subprocess.run([sys.executable, ROOT / script, "--artifacts", Path(folder) / "toy"], check=True, capture_output=True, env=free)
            seconds.append(round(time.perf_counter() - begun))
    return seconds


def profile(title, run):
    """Seconds by function: those of the model and of the loop around it."""
    profiler = cProfile.Profile()
    profiler.runcall(run)
    calls = pstats.Stats(profiler).stats
    total = max(cumulative for _, _, _, cumulative, _ in calls.values())
    print(f"{title}: {total:.2f} s")
    for (file, line, name), (_, n, _, seconds, _) in sorted(calls.items(), key=lambda item: -item[1][3]):
        if any(part in name for part in SHARES) and seconds > 0.002 * total:
            print(f"  {seconds / total:6.1%}  {n:6} calls  {Path(file).name}:{line} {name}")


def bootstrap_seconds():
    """1,000 resamples of 10 targets x 12 systems x 2,000 sentences, from counts."""
    counts = np.random.default_rng(0).integers(0, 3, (1, 2000, 3, 3))
    begun = time.perf_counter()
    for _ in range(10):
        draws = evaluate.bootstrap_draws(2000, 1000)
        for _ in range(12):
            evaluate.resampled_f1(counts, draws)
    return round(time.perf_counter() - begun, 1)


def main(args):
    device = torch.device(args.device) if args.device else data.pick_device()
    transformers.logging.set_verbosity_error()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        folder, encoder = Path(folder), args.encoder
        if not encoder:
            encoder = folder / "encoder"
            transformers.BertForMaskedLM(transformers.BertConfig(**ENCODER)).save_pretrained(encoder)
        real = None
        if args.data:
            target = json.loads((args.data / "data" / "config.json").read_text())["targets"][0]
            real = list(datasets.load_from_disk(str(args.data / "data" / "targets" / target / "train"))["length"])
        if args.memory_of:
            method, sentences, lengths = args.memory_of
            Case(encoder, device, lengths_like(lengths, int(sentences), rng), folder).student(method, 4)()
            return print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        if not args.profile:  # first, since a process that was started by a large one counts as large
            cases = ("mtmt", 1000), ("mtmt", 8000), ("tsl-sim", 1000), ("mtmt", 1000, "even"), ("mtmt", 8000, "even")
            small, large, tsl, small_even, large_even = (peak_memory(args, encoder, *case) for case in cases)
        case = Case(encoder, device, lengths_like(real or "news", args.sentences, rng), folder)
        fill = lambda: data.over_words(case.model, case.table, case.model.classifier, device)
        if args.profile:
            for title, run in (("student, mtmt", case.student("mtmt", 4)), ("cache", fill)):
                run()  # warm
                profile(title, run)
            return
        alike = case.bare(same_shapes=True), case.bare(backward=False, same_shapes=True)
        rows = [case.ratio("student training / bare model", case.student("tsl-sim", 4), case.bare(), args.repeats),
                case.ratio("  ... of the same shapes", case.student("tsl-sim", 4), alike[0], args.repeats),
                case.ratio("K = 4 / K = 1", case.student("mtmt", 4), case.student("mtmt", 1), args.repeats),
                case.ratio("mtmt / tsl-sim", case.student("mtmt", 4), case.student("tsl-sim", 4), args.repeats),
                case.ratio("teacher training / bare model", case.teacher(), case.bare(), args.repeats),
                case.ratio("cache filling / bare forward", fill, case.bare(backward=False), args.repeats),
                case.ratio("  ... of the same shapes", fill, alike[1], args.repeats)]  # fmt: skip
        shares = [padding(lengths_like(p, 1500, rng)) for p in ([real] if real else ["news", "titles", "long"])]
        rows.append({"row": "padding", "ratio": round(max(shares), 3), "low": round(min(shares), 3), "high": round(max(shares), 3)})
        rows.append({"row": "memory, 8 x the text", "ratio": round(large / small, 3), "low": small, "high": large})
        rows.append({"row": "  ... memory, all of one length", "ratio": round(large_even / small_even, 3), "low": small_even, "high": large_even})
        rows.append({"row": "memory, mtmt / tsl-sim", "ratio": round(small / tsl, 3), "low": tsl, "high": small})
    print(f"{'':32}{'ratio':>8}{'range':>18}{'goal':>7}")
    for r in rows:
        span = f"{r['low']} to {r['high']}" + (" MiB" if "memory" in r["row"] else "")
        print(f"{r['row']:32}{r['ratio']:8.3f}{span:>18}{GOALS.get(r['row'], '-'):>7}")
    bootstrap, toy = bootstrap_seconds(), toy_seconds()
    print(f"bootstrap of 10 targets x 12 systems x 2,000 sentences: {bootstrap} s")
    print(f"toy, four stages cold: {' + '.join(map(str, toy))} = {sum(toy)} s, goal 120")
    print(json.dumps({"device": str(device), "torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows,
                      "bootstrap_seconds": bootstrap, "toy_seconds": toy}))  # fmt: skip


if __name__ == "__main__":
    main(parse_args())
