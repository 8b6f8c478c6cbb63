#!/usr/bin/env bash
# The whole way on the Grocery Store photographs, and the same student trained with labels alone.
# Why: the second run says what the teacher is worth. Results: benchmarks/results/grocery_cpu.md
# Usage: benchmarks/grocery_cpu.sh FOLDER_OF_GROCERY WORK_FOLDER
set -euo pipefail
grocery=$1
work=$2
mkdir -p "$work"
edgeembed data import grocery "$grocery" --out "$work/grocery.parquet"
time edgeembed teacher-train --data "$work/grocery.parquet" --recipe grocery_cpu --out "$work/teacher"
time edgeembed distill --student mobilenetv4_s --recipe grocery_cpu --teacher "$work/teacher" \
  --data "$work/grocery.parquet" --out "$work/student"
edgeembed export "$work/student" --out "$work/bundle" --precision fp32,int8
edgeembed bench "$work/bundle" --teacher "$work/teacher" --data "$work/grocery.parquet" --out "$work/report"

# ArcFace and no teacher: the student's network, image sizes, batches, rate and number of epochs.
time edgeembed teacher-train --data "$work/grocery.parquet" --recipe grocery_cpu --out "$work/labels_only" \
  --set backbone.name=mobilenetv4_conv_small --set image.train_size_px=128 --set image.canvas_factor=1.25 \
  --set optim.lr=2.2e-2 --set optim.head_lr_factor=0.35 --set optim.weight_decay=0.05 --set train.batch_size=96 \
  --set train.epochs=80
edgeembed export "$work/labels_only" --out "$work/labels_only_bundle" --precision fp32
edgeembed bench "$work/labels_only_bundle" --data "$work/grocery.parquet" --out "$work/labels_only_report"
