"""Two real steps of the 632 M parameter teacher, as a person would run them: peak memory and time.

Why: the largest teacher must be trainable, if slowly, on a machine with 16 GB, or its code path rots untested.
Usage: python benchmarks/vit_h14_step.py MANIFEST OUT [WEIGHTS]    ends with one JSON line
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time


def main() -> None:
    manifest, out, *weights = sys.argv[1:]
    command = [sys.executable, "-m", "edgeembed", "teacher-train", "--recipe", "vit_h14", "--data", manifest]
    command += ["--out", out, "--set", f"backbone.weights={weights[0] if weights else 'none'}"]
    command += ["--set", "train.max_steps=2", "--set", "train.batch_size=2", "--set", "eval.every_steps=0"]
    started = time.monotonic()
    subprocess.run(command, check=True)
    peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(json.dumps({"peak_gib": round(peak_bytes / 2**30, 2), "seconds": round(time.monotonic() - started, 1)}))


if __name__ == "__main__":
    main()
