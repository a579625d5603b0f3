#!/usr/bin/env bash
# The toy on a Slurm cluster: an array task for each run, jobs that wait for each other. Add --gpus and --time to
# sbatch for real data. If a task fails, run this again: what is finished is kept.
run() { sbatch --parsable --requeue --kill-on-invalid-dep=yes "$@"; }
array() { run -a 0-1 -d "afterok$1" --wrap "python $2 --seeds \$SLURM_ARRAY_TASK_ID"; }
data=$(run --wrap "python 01_data.py")
taught=
for source in qaa qab qba qbb pooled; do
    taught+=:$(array ":$data" "02_teachers.py --sources $source")
done
students=
for target in qac qbc; do
    students+=:$(array "$taught" "03_distill.py --targets $target")
done
run -d "afterok$students" --wrap "python 04_evaluate.py"
