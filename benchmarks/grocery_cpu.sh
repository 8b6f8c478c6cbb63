#!/usr/bin/env bash
# The whole way on the Grocery Store photographs: all classes, then with a third of them kept out of all training.
# Why: the second half says what the models are worth for things that they have not seen. Three seeds of each student.
# Results: benchmarks/results/grocery_cpu.md; what labels alone reach: benchmarks/labels_table.py
# Usage: benchmarks/grocery_cpu.sh FOLDER_OF_GROCERY WORK_FOLDER
set -euo pipefail
grocery=$1
work=$2
here=$(dirname "$0")
mkdir -p "$work"
edgeembed data import grocery "$grocery" --out "$work/all.parquet"
python "$here/hold_out.py" "$work/all.parquet" "$work/held_out.parquet"
for data in all held_out; do
  time edgeembed teacher-train --data "$work/$data.parquet" --recipe grocery_cpu --out "$work/$data/teacher"
  for seed in 0 1 2; do
    time edgeembed distill --student mobilenetv4_s --recipe grocery_cpu --teacher "$work/$data/teacher" \
      --data "$work/$data.parquet" --out "$work/$data/student$seed" --set train.seed=$seed
  done
  python "$here/quality_table.py" "$work/$data.parquet" "$work/$data/teacher" "$work/$data"/student{0,1,2}
done
edgeembed export "$work/all/student0" --out "$work/bundle" --precision fp32,int8
edgeembed bench "$work/bundle" --teacher "$work/all/teacher" --data "$work/all.parquet" --out "$work/report"
