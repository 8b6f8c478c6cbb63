#!/usr/bin/env bash
# Trains a model of groceries and clothes: a teacher and its student, both from random weights. It was bundled at first.
# Why: whoever ships a model should be able to make it again. Both sets allow publishing weights (MIT, CC0).
# Usage: benchmarks/groceries_clothes.sh FOLDER_OF_GROCERY FOLDER_OF_CLOTHING WORK_FOLDER
# Of the clothes, the photographs of a fifth of the senders are held out: nobody's are on both sides. Then once more with a
# third of the classes kept out of all training, for the table.
set -euo pipefail
grocery=$1
clothing=$(realpath "$2")
work=$3
here=$(dirname "$0")
mkdir -p "$work"
edgeembed data import grocery "$grocery" --out "$work/grocery.parquet"
python - "$clothing" > "$work/clothing.csv" <<'PY'
import csv, sys, zlib

rows = csv.writer(sys.stdout)
rows.writerow(["path", "label", "domain", "split", "role"])
for row in csv.DictReader(open(f"{sys.argv[1]}/labels.csv", newline="", encoding="utf-8")):
    held_out = zlib.crc32(row["sender_id"].encode()) % 5 == 0
    split, role = ("test", "query") if held_out else ("train", "index")
    rows.writerow([f"{sys.argv[1]}/{row['path']}", f"clothing/{row['label']}", "apparel", split, role])
PY
edgeembed data prepare "$work/grocery.parquet" "$work/clothing.csv" --cap 600 --min 1 --resample-to 0 \
  --out "$work/bundled.parquet"
edgeembed data stats "$work/bundled.parquet"
python "$here/hold_out.py" "$work/bundled.parquet" "$work/held_out.parquet"
# The whole margin from the first step collapses here: half of the classes are as broad as "t-shirt".
for data in bundled held_out; do
  time edgeembed teacher-train --data "$work/$data.parquet" --recipe grocery_cpu --out "$work/$data/teacher" \
    --set train.epochs=30 --set optim.lr=7.0e-3 \
    --set head.margin=0.0 --set head.margin_growth_per_epoch=0.02 --set head.margin_max=0.3
  for seed in 0 1 2; do
    time edgeembed distill --student mobilenetv4_s --recipe grocery_cpu --teacher "$work/$data/teacher" \
      --data "$work/$data.parquet" --out "$work/$data/student$seed" --set train.epochs=24 --set targets.views=8 \
      --set train.seed=$seed
  done
  python "$here/quality_table.py" "$work/$data.parquet" "$work/$data/teacher" "$work/$data"/student{0,1,2}
done
edgeembed export "$work/bundled/student0" --out "$work/mobilenetv4_s" --precision fp32,int8
edgeembed bench "$work/mobilenetv4_s" --teacher "$work/bundled/teacher" --data "$work/bundled.parquet" --out "$work/report"
