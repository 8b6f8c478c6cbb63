#!/usr/bin/env bash
# The 632 M parameter teacher as ONNX: above protobuf's limit, so that its weights lie in a file beside the graph.
# Why: whoever trained the teacher wants to build an index with it where no torch is; peak memory must stay below 16 GiB.
# Usage: benchmarks/vit_h14_export.sh WORK_FOLDER     random weights, rendered images; 20 GB of memory, 12 GB of disk
set -euo pipefail
work=$1
edgeembed data synth "$work/data" > /dev/null
[ -f "$work/run/model.json" ] || edgeembed teacher-train --recipe vit_h14 --data "$work/data/manifest.parquet" \
  --out "$work/run" --set backbone.weights=none --set train.max_steps=1 --set train.batch_size=2 \
  --set eval.every_steps=0
/usr/bin/env time -v edgeembed export "$work/run" --precision fp32 --out "$work/bundle" 2>&1 \
  | grep -Ev '^\s+(Page|Average|Exit|File|Socket|Signals|Swaps|Voluntary|Involuntary|Major|Minor)'
edgeembed artifacts verify "$work/bundle"
python -m edgeembed.bench.footprint "$work/bundle/model.fp32.onnx" --runtime onnxruntime --height 224 --width 224
