"""What the base install costs a device: disk, seconds to the first embedding, memory; and who has wheels for it.

Why: the device runtime has to fit beside what a small device already does; a package that slips into the base, or an
import that slips into the first call, should be seen by its price.
Usage: python benchmarks/base_install.py [--image x.jpg] [--runs 7]
Builds the wheel from a copy of the tree and installs it into a fresh environment with uv, bytecode compiled, pinned by
constraints.txt. Times are of whole new processes, files read before (so from memory); memory is a process's peak
(VmHWM), read by itself. Ends with a verdict on each limit; exit code 1 if one is not kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
UV = [sys.executable, "-m", "uv"]
MAX_SITE_MB, MAX_FIRST_SECONDS, MAX_PEAK_MB = 190, 0.7, 160
NOT_COUNTED = ("pip", "setuptools", "_distutils_hack", "__pycache__")
FORBIDDEN = ("torch", "torchvision", "timm", "open_clip", "pyarrow", "onnx", "cv2", "yaml", "openvino", "matplotlib")
PLATFORMS = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "aarch64-apple-darwin")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")

FIRST = "from edgeembed import Embedder; Embedder().embed('x.jpg')"
COMMAND = "import sys; from edgeembed.cli import run; code = run(['--quiet', 'embed', 'x.jpg'])"
PEAK = "; print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"

# What each step of the first embedding adds, in one process: seconds and peak memory after it.
STEPS = """
import json, time
started, found = time.perf_counter(), []
def step(name):
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
    found.append((name, time.perf_counter() - started, peak * 1024 / 1e6))
step("Python")
import numpy; step("import numpy")
import PIL.Image, PIL.ImageOps; step("import PIL")
import pydantic, edgeembed.device.bundle; step("pydantic and the bundle's classes")
import onnxruntime; step("import onnxruntime")
from edgeembed import Embedder; step("import edgeembed.device.embedder")
embedder = Embedder(); step("open the bundled model")
embedder.embed("x.jpg"); step("embed")
print(json.dumps(found))
"""


def build_wheel(folder: Path) -> Path:
    """From a copy: the build leaves folders in a tree, which the next wheel would hold."""
    tree = folder / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "edgeembed", tree / "edgeembed", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([*UV, "build", "--quiet", "--wheel", "--out-dir", str(folder / "dist"), str(tree)], check=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """A fresh environment with the wheel and its base dependencies; its Python."""
    subprocess.run([*UV, "venv", "--quiet", "--python", sys.executable, str(folder / "venv")], check=True)
    python = folder / "venv/bin/python"
    command = [*UV, "pip", "install", "--quiet", "--python", str(python), "--compile-bytecode"]
    subprocess.run([*command, "--constraint", str(ROOT / "constraints.txt"), str(wheel)], check=True)
    return python


def site_packages(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip())


def sizes_mb(site: Path) -> Counter[str]:
    """MB of each top-level name, without bytecode, installers and our own artifacts."""
    found: Counter[str] = Counter()
    for path in site.rglob("*"):
        parts = path.relative_to(site).parts
        skipped = any(part in NOT_COUNTED or part.startswith(("pip-", "setuptools-")) for part in parts)
        if path.is_symlink() or not path.is_file() or skipped or parts[:2] == ("edgeembed", "artifacts"):
            continue
        found[parts[0]] += path.stat().st_size / 1e6
    return found


def median_seconds(command: Sequence[str | Path], folder: Path, runs: int) -> float:
    """Of new processes, from start to end; a first one, not counted, reads the files into memory."""
    seconds = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def peak_mb(python: Path, code: str, folder: Path) -> float:
    done = subprocess.run([python, "-c", code + PEAK], cwd=folder, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) * 1024 / 1e6


def wheels_for(requirements: str, platform: str, python: str) -> str:
    """The versions that a platform gets without a compiler, or why it gets none."""
    command = [*UV, "pip", "compile", "-", "--quiet", "--no-header", "--no-annotate", "--only-binary", ":all:"]
    command += ["--python-platform", platform, "--python-version", python]
    done = subprocess.run(command, input=requirements, capture_output=True, text=True, check=False)
    if done.returncode:
        return "NONE: " + " ".join(done.stderr.split())
    named = dict(line.split("==") for line in done.stdout.split())
    return f"all {len(named)}; numpy {named['numpy']}, onnxruntime {named['onnxruntime']}, pillow {named['pillow']}"


def base_requirements(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().split("\n\n")[0].splitlines()
    return "\n".join(
        line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist") and "extra ==" not in line
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path, help="a JPEG; default: a drawn one of 1280 x 960")
    parser.add_argument("--runs", type=int, default=7)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if asked.image:
            shutil.copy(asked.image, folder / "x.jpg")
        else:
            drawn = Image.effect_mandelbrot((1280, 960), (-2.0, -1.2, 1.0, 1.2), 60)
            drawn.convert("RGB").save(folder / "x.jpg", quality=90)
        wheel = build_wheel(folder)
        python = install(wheel, folder)
        site = site_packages(python)
        sizes = sizes_mb(site)
        present = [name for name in FORBIDDEN if (site / name).exists()]
        first = median_seconds([python, "-c", FIRST], folder, asked.runs)
        command = [python.with_name("edgeembed"), "embed", "x.jpg"]
        by_command = median_seconds(command, folder, asked.runs)
        peak, command_peak = peak_mb(python, FIRST, folder), peak_mb(python, COMMAND, folder)
        done = subprocess.run([python, "-c", STEPS], cwd=folder, check=True, capture_output=True, text=True)
        steps = json.loads(done.stdout)
        wheels = {(p, v): wheels_for(base_requirements(wheel), p, v) for p in PLATFORMS for v in PYTHONS}
        print(f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB\n")

    print("| in site-packages | MB |\n|---|---|")
    for package, size in sizes.most_common(10):
        print(f"| {package} | {size:.1f} |")
    print(f"| all, without bytecode, installers and artifacts | {sizes.total():.1f} |\n")
    print("| step of the first embedding | s since the first line | peak memory, MB |\n|---|---|---|")
    for step, seconds, peak_so_far in steps:
        print(f"| {step} | {seconds:.3f} | {peak_so_far:.1f} |")
    print("\n| platform | Python | binary wheels |\n|---|---|---|")
    for (platform, version), told in wheels.items():
        print(f"| {platform} | {version} | {told} |")
    verdicts = [
        (f"site-packages, {sizes.total():.1f} MB", sizes.total() <= MAX_SITE_MB, f"{MAX_SITE_MB} MB"),
        (f"packages of other stages: {', '.join(present) or 'none'}", not present, "none"),
        (f"first embedding of a new process, {first:.3f} s", first <= MAX_FIRST_SECONDS, f"{MAX_FIRST_SECONDS} s"),
        (f"`edgeembed embed` of one file, {by_command:.3f} s", True, "none"),
        (f"peak memory, {peak:.1f} MB", peak <= MAX_PEAK_MB, f"{MAX_PEAK_MB} MB"),
        (f"peak memory of `edgeembed embed`, {command_peak:.1f} MB", True, "none"),
        ("binary wheels everywhere", all(told.startswith("all") for told in wheels.values()), "all"),
    ]
    print("\n| | limit | kept |\n|---|---|---|")
    for told, kept, limit in verdicts:
        print(f"| {told} | {limit} | {'yes' if kept else 'NO'} |")
    return 0 if all(kept for _, kept, _ in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
