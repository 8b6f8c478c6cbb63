#!/usr/bin/env bash
# Trains models of groceries, clothes and rendered objects by recipe general: a pretrained teacher and three students.
# Why: a candidate for the bundled models, with what it finds among images of kinds that training never saw.
# Usage: benchmarks/general.sh FOLDER_OF_GROCERY FOLDER_OF_CLOTHING WORK_FOLDER
# Then the same twice more with some kinds of images left out, to measure retrieval on kinds that training never saw.
set -euo pipefail
grocery=$1
clothing=$2
work=$3
here=$(dirname "$0")
students="lite0_s lite0_xs lite0_hybrid"
mkdir -p "$work"
edgeembed data import grocery "$grocery" --out "$work/grocery.parquet"
edgeembed data synth "$work/rendered" --instances 300 --views 12 --seed 1
edgeembed data synth "$work/other_rendered" --instances 100 --views 24 --seed 0
python "$here/general_data.py" "$work/grocery.parquet" "$clothing" "$work/rendered/manifest.parquet" \
  "$work/other_rendered/manifest.parquet" "$work"
for data in all without_clothes without_groceries; do
  time edgeembed teacher-train --data "$work/$data.csv" --recipe general --out "$work/$data/teacher"
  for student in $students; do
    time edgeembed distill --student "$student" --recipe general --teacher "$work/$data/teacher" \
      --data "$work/$data.csv" --out "$work/$data/$student"
  done
done
# Each kind by the models that were trained without it, beside the pretrained network as it is.
edgeembed teacher-import timm:tf_efficientnet_lite0 --data "$work/grocery.parquet" --dim features --out "$work/features"
python "$here/unseen_kinds.py" "$work/kinds.csv" "$work/features" "$work"/without_clothes/* \
  --kinds "clothes;rendered apparel;rendered toys" --max-images 600
python "$here/unseen_kinds.py" "$work/kinds.csv" "$work/features" "$work"/without_groceries/* \
  --kinds "groceries;rendered artwork;rendered landmarks;rendered packaged_goods" --max-images 600
python "$here/quality_table.py" "$work/all.csv" "$work/all/teacher" "$work"/all/lite0_*
for student in $students; do
  edgeembed export "$work/all/$student" --out "$work/groceries_clothes_$student" --precision fp32,int8 \
    --licence Apache-2.0 --notes "$here/general_notes.md"
done
edgeembed bench "$work"/groceries_clothes_* --teacher "$work/all/teacher" --data "$work/all.csv" --out "$work/report"
