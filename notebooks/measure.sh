#!/usr/bin/env bash
# Every command of the measurements in README and notebook 5, from the repository's root:
#
#     bash notebooks/measure.sh PART SEED CORPORA ENCODER OUT
#
# PART is one of those at the end; CORPORA has <language>/{train,dev,test}.txt; ENCODER is a folder or a hub name; OUT
# takes the artifacts. What is finished is kept: each (part, seed, target) ends in a small file of counts,
# notebooks/measured/<part>-s<seed>-<target>.safetensors, and is skipped where that is there: remove it to make it anew.
set -euo pipefail
part=$1 seed=$2 corpora=$3 encoder=$4 out=$5
new="fon bbj ewe lug mos nya twi"  # seven languages that were new to the first plan
all="$new ibo kin sna pcm xho"
few="bbj lug"  # of the seven, those with the fewest sub-tokens
measured=notebooks/measured
mkdir -p "$measured"

# stage 1: artifacts NAME, its sources and targets, and how much of them
data() {
    local name=$1 sources=$2 targets=$3
    shift 3
    python 01_data.py --artifacts "$out/$name" --data-dir "$corpora" --encoder "$encoder" \
        --sources $sources --targets $targets --limit-test 500 "$@"
}

# stages 3 and 4 for the targets that have no counts yet: artifacts NAME, targets, methods, more flags of stage 3
students() {
    local name=$1 targets=$2 methods=$3
    shift 3
    for target in $targets; do
        local file="$measured/$part-s$seed-$target"
        [ -e "$file.safetensors" ] && continue
        python 03_distill.py --artifacts "$out/$name" --seeds "$seed" --targets "$target" --logits-only --methods $methods "$@"
        keep "$name" "$target" "$file"
    done
}

# of what stage 4 counted, the part of one target and run
keep() {
    python 04_evaluate.py --artifacts "$out/$1" > "$out/$1/results.txt"
    python - "$out/$1/results" "$2" "$seed" "$3" <<'END'
import sys
import pandas as pd
from safetensors.torch import load_file, save_file
results, target, seed, file = sys.argv[1:]
counts = {}
for name, table in load_file(f"{results}/counts.safetensors").items():
    if name.startswith(f"{target}/") and name.endswith(f"/{seed}"):
        counts[name] = table
save_file(counts, f"{file}.safetensors")
table = pd.read_csv(f"{results}/fidelity.csv")
table = table[(table.target == target) & (table.seed == int(seed))]
if len(table):  # the part has students
    table.to_csv(f"{file}.csv", index=False)
END
}

# stage 2 without the evaluators that no student of the part has: artifacts NAME, kinds, sources (or pooled), targets
teach() {
    python - "$out/$1" "$seed" "$2" "$3" "$4" <<'END'
import importlib
import sys
teachers = importlib.import_module("02_teachers")
artifacts, seed, kinds, sources, targets = sys.argv[1:]
args = teachers.parse_args(["--artifacts", artifacts])
config = teachers.read_config(args.artifacts)
for source in sources.split():
    for kind in kinds.split():
        name = f"{kind}-{source}-s{seed}"
        labels = config["sources"] if source == "pooled" else [source]
        teachers.train_teacher(args, config, kind, labels, name, int(seed))
        for target in targets.split():
            if target != source:
                teachers.cache(args, config, kind, target, name)
if len(config["sources"]) > 1:
    teachers.weigh_sources(args, config, targets.split())
END
    python - "$out/$1" "$measured/$1" "$seed" <<'END'
import glob
import json
import sys
import pandas as pd
artifacts, name, seed = sys.argv[1:]
rows = []  # what every teacher of the run scores on its sources' dev text: F1, or AUC of evaluators
for path in sorted(glob.glob(f"{artifacts}/teachers/*-s{seed}/record.json")):
    facts = json.load(open(path))["facts"]
    for source, score in facts["dev"].items():
        rows.append([path.split("/")[-2], source, *score.values(), facts["kappa"]])
columns = ["teacher", "source", "score", "kappa"]
pd.DataFrame(rows, columns=columns).round(2).to_csv(f"{name}-teachers-s{seed}.csv", index=False)
weights = {}
for path in sorted(glob.glob(f"{artifacts}/weights/*/weights.json")):
    weights[path.split("/")[-2]] = json.load(open(path))
if weights:
    pd.DataFrame(weights).T.to_csv(f"{name}-weights.csv", index_label="target")
END
}

# stage 4 for the targets that have no counts yet: artifacts NAME, targets, what their files begin with
score() {
    for target in $2; do
        local file="$measured/$3-s$seed-$target"
        [ -e "$file.safetensors" ] || keep "$1" "$target" "$file"
    done
}

# stage 4 with the recognisers' mixture of equal weights, ensemble-avg: artifacts NAME, sources, targets
equal() {
    python - "$out/$1" "$seed" "$2" "$3" <<'END'
import importlib
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
data = importlib.import_module("01_data")
distill = importlib.import_module("03_distill")
artifacts, seed, sources, targets = sys.argv[1:]
artifacts = Path(artifacts)
for target in targets.split():
    others = [source for source in sources.split() if source != target]
    recognisers = [f"logits/{target}/recogniser-{source}-s{seed}" for source in others]
    logits = torch.stack(distill.load_caches(artifacts, recognisers, "test", "logits"))
    p = distill.mixture(logits, torch.ones(len(others)) / len(others))
    folder = artifacts / f"logits/{target}/ensemble-avg-s{seed}"
    with data.writing(folder, data.inputs(artifacts, *recognisers)) as partial:
        save_file({"logits": p.log()}, partial / "test.safetensors")
END
    score "$1" "$3" "$part"
}

case $part in
conll) # TSL's own experiment: each of three languages taught by the other three of four
    data conll "en de es nl" "es nl de" --limit 2000 --limit-text 2000
    teach conll "recogniser scaled" "en de es nl" "es nl de"
    teach conll evaluator en "es nl de"
    students conll "nl de" "tsl-en tsl-sim mtmt-en mtmt-scaled" --steps 625
    ;;
conll-long) # after the part conll: as many passes as TSL's own students have, 25,000
    if [ ! -e "$out/conll-long" ]; then  # its teachers, without its students
        mkdir "$out/conll-long"
        cp -r "$out/conll/"{data,gold,teachers,weights,logits} "$out/conll-long"
    fi
    students conll-long nl "tsl-en tsl-sim mtmt-en mtmt-scaled" --steps 1566
    ;;
conll-text) # TSL's own experiment with more text: 25,000 passes over as much as TSL has
    data conll-text "en de es nl" "es nl de" --limit 2000 --limit-text 8000
    for target in es nl de; do
        teach conll-text recogniser "en de es nl" "$target"
        students conll-text "$target" "tsl-sim tsl-en" --steps 1566
    done
    ;;
conll-mtmt) # after the part conll-text: MTMT with one source, English
    teach conll-text evaluator en "nl de es"
    students conll-text "nl de es" mtmt-en --steps 1566
    ;;
conll-equal) # after the part conll-text: its mixture with equal weights; trains nothing
    equal conll-text "en de es nl" "es nl de"
    ;;
african-long) # seven languages, four sources, 25,000 passes
    data african-long "en swa hau yor" "$all" --limit 1000 --limit-text 2000
    teach african-long recogniser "en swa hau yor pooled" "$new"
    students african-long "$new" tsl-sim --steps 1566
    ;;
african-mtmt) # after the part african-long: the complete method, with its evaluators
    teach african-long scaled "en swa hau yor" "$new"
    students african-long "$new" mtmt-scaled --steps 1566
    ;;
nosim) # after the part african-mtmt, on Twi: its weights without its second task
    students african-long twi mtmt-scaled-nosim --steps 1566
    ;;
pretend) # after the part african-mtmt: which lambda, where two sources play target
    data pretend "en swa hau yor" "hau swa" --limit 1000 --limit-text 2000
    if [ ! -e "$out/pretend/teachers" ]; then
        mkdir "$out/pretend/teachers"
        cp -r "$out/african-long/teachers/"{recogniser,scaled}-{en,swa,hau,yor}-s"$seed" "$out/pretend/teachers"
    fi
    teach pretend "recogniser scaled" "en swa hau yor" "hau swa"
    for lambda in 0.1 0.5 0.02; do
        part=pretend-$lambda
        students pretend "hau swa" mtmt-scaled --steps 1566 --lambda "$lambda" --overwrite
    done
    ;;
african-lambda) # after the part african-long: the complete method with the lambda of the part pretend
    teach african-long scaled "en swa hau yor" "$new"
    students african-long "$new" mtmt-scaled --steps 1566 --lambda 0.1 --overwrite
    ;;
african-en) # after the part african-long: TSL with one source, English
    students african-long "$new" tsl-en --steps 1566
    ;;
african-equal) # after the part african-long: its mixture with equal weights; trains nothing
    equal african-long "en swa hau yor" "$new"
    ;;
african-pooled) # after the part african-long: self-training, from the pooled recogniser
    students african-long "$new" self-pooled --steps 625
    ;;
mtmt-pooled) # after the part african-long: self-training with a second task
    teach african-long scaled pooled "$new"
    students african-long "$new" mtmt-pooled --steps 625 --lambda 0.1
    ;;
african) # fewer readings, 10,000 sentences
    data african "en swa hau yor" "$all" --limit 1000 --limit-text 2000
    teach african "recogniser scaled" "en swa hau yor" "bbj ewe lug mos nya sna"
    teach african recogniser pooled "bbj ewe lug mos nya sna"
    students african "bbj ewe lug mos nya sna" "tsl-sim mtmt-scaled" --steps 625
    ;;
labels) # one source with as many labels as four have together; no student reads the text
    for source in en swa; do
        name="labels-$source"
        data "$name" "$source" "$new" --limit 4000 --limit-text 10
        teach "$name" recogniser "$source" "$new"
        score "$name" "$new" "$name"
    done
    ;;
student-swa) # after the part labels: a student of the Swahili tagger of 4,000 labels
    data student-swa swa "$new" --limit 4000 --limit-text 2000
    [ -e "$out/student-swa/teachers" ] || cp -r "$out/labels-swa/teachers" "$out/student-swa"
    teach student-swa recogniser swa "$new"
    students student-swa "$new" tsl-swa --steps 1566
    ;;
own) # each language's own 1,000 labels: how far from them is a student that has none?
    mkdir -p "$out/own-corpora"
    for target in $new; do
        ln -sfn "$corpora/$target" "$out/own-corpora/$target"
        ln -sfn "$corpora/$target" "$out/own-corpora/$target-gold"
    done
    corpora="$out/own-corpora"
    for target in $new; do
        data "own-$target" "$target-gold" "$target" --limit 1000 --limit-text 10
        teach "own-$target" recogniser "$target-gold" "$target"
        score "own-$target" "$target" own
    done
    ;;
african-old) # the five languages that were looked at while the project was written
    old="ibo kin pcm sna xho"
    data african-old "en swa hau yor" "$old" --limit 1000 --limit-text 2000
    teach african-old recogniser "en swa hau yor" "$old"
    students african-old "$old" tsl-sim --steps 1566
    ;;
passes) # after the part african-old: more text, or more readings of it?
    for sentences in 500 2000; do
        name="passes-$sentences"
        data "$name" "en swa hau yor" "$few" --limit 1000 --limit-text "$sentences"
        [ -e "$out/$name/teachers" ] || cp -r "$out/african-old/teachers" "$out/$name"
        teach "$name" recogniser "en swa hau yor" "$few"
        for steps in 188 625; do
            part="$name-$steps"
            students "$name" "$few" tsl-sim --steps "$steps" --overwrite
        done
    done
    ;;
labels-pooled) # the labels of one source, a quarter of them from each of four
    data labels-pooled "en swa hau yor" "$new" --limit 250 --limit-text 10
    teach labels-pooled recogniser pooled "$new"
    score labels-pooled "$new" "$part"
    ;;
figure) # README's figure, from the committed counts; the other arguments do not matter
    python - "$measured" <<'END'
import glob
import importlib
import sys
from safetensors.torch import load_file
evaluate = importlib.import_module("04_evaluate")
counts = {}  # of the systems with three runs
for part in ("african-long", "african-pooled", "labels-swa"):
    for path in glob.glob(f"{sys.argv[1]}/{part}-s*.safetensors"):
        for name, table in load_file(path).items():
            target, method, seed = name.split("/")
            if part == "labels-swa":
                method += ", 4,000"
            if method not in ("direct-hau", "direct-yor"):
                counts[target, method, int(seed)] = table.long().numpy()
comparisons = evaluate.compare(counts, ["direct-swa"])
evaluate.draw_gains(comparisons, "direct-swa").savefig(f"{sys.argv[1]}/gains.png")
END
    ;;
esac
