"""Shows what int8 files are worth on this CPU: agreement with the fp32 file, mAP on held-out images, and speed.

Why: on x86 CPUs without VNNI products of 8-bit weights saturate. QEMU runs the real kernels of both runtimes as such a
CPU has them:

    qemu-x86_64 -cpu Haswell python benchmarks/int8_cpus.py agree OLD NEW --photos grocery/dataset/val
    python benchmarks/int8_cpus.py compare OLD NEW --data bundled.parquet --runtimes onnxruntime,openvino

`agree` prints cosines to the embeddings of the bundle's fp32 file in ONNX Runtime, over photographs and over the images
that `edgeembed doctor` renders. `compare` prints mAP and recall@1 on the test split, by domain, and the median over
rounds of p50 milliseconds of one image on one thread; files take turns in each round.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np

from edgeembed.agreement import measure_agreement
from edgeembed.arrays import UInt8Array
from edgeembed.bench.retrieval import DecodedFiles, choose_protocol, embed_with_session
from edgeembed.data.comparison_images import rendered_images
from edgeembed.data.manifest import read_manifest
from edgeembed.device.bundle import fp32_file, read_bundle
from edgeembed.device.bundle_schema import BundleFile
from edgeembed.device.image_files import find_images
from edgeembed.device.images import load_pixels, squash
from edgeembed.device.runtimes import Session, open_session
from edgeembed.device.runtimes.fastest_cache import embed_one_by_one, median_latency_ms
from edgeembed.eval_json import describe_scores
from edgeembed.evaluation import EmbeddedRows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["agree", "compare"])
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--photos", type=Path, help="agree: a folder; images are drawn from it with seed 0")
    parser.add_argument("--num-photos", type=int, default=40)
    parser.add_argument("--data", type=Path, help="compare: a manifest with a test split")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runtimes", default="onnxruntime,openvino")
    arguments = parser.parse_args()
    runtimes = arguments.runtimes.split(",")
    if arguments.what == "agree":
        agree(arguments.bundles, runtimes, arguments.photos, arguments.num_photos)
    else:
        compare(arguments.bundles, runtimes, arguments.data, arguments.rounds)


def files_of(bundle: Path) -> tuple[BundleFile, list[BundleFile]]:
    """The fp32 file and the int8 ones."""
    manifest = read_bundle(bundle)
    reference = fp32_file(manifest)
    assert reference is not None
    return reference, [file for file in manifest.files if file.precision == "int8" and file.path.endswith(".onnx")]


def agree(bundles: list[Path], runtimes: list[str], photos: Path, num_photos: int) -> None:
    size = read_bundle(bundles[0]).input
    files = random.Random(0).sample(find_images(photos), num_photos)
    sets: dict[str, UInt8Array] = {
        f"{num_photos} photographs": np.stack([load_pixels(path, size.height, size.width) for path in files]),
        "doctor's images": np.stack([squash(image, size.height, size.width) for image in rendered_images()]),
    }
    print("| file | runtime | images | cosine p1 | p50 | least |\n|---|---|---|---|---|---|", flush=True)
    for bundle in bundles:
        fp32, quantised = files_of(bundle)
        expected = {
            name: embed_one_by_one(open_alone(bundle, fp32, "onnxruntime"), pixels) for name, pixels in sets.items()
        }
        for file in quantised:
            for runtime in runtimes:
                session = open_alone(bundle, file, runtime)
                for name, image_NHWC in sets.items():
                    embedding_ND = embed_one_by_one(session, image_NHWC)
                    found = measure_agreement(expected[name], embedding_ND)
                    figures = f"{found.cosine_p1:.4f} | {found.cosine_p50:.4f} | {found.cosine_min:.4f}"
                    print(f"| {bundle.name}/{file.path} | {runtime} | {name} | {figures} |", flush=True)


def open_alone(bundle: Path, file: BundleFile, runtime: str) -> Session:
    return open_session(bundle / file.path, runtime=runtime, threads=1)


def compare(bundles: list[Path], runtimes: list[str], data: Path, rounds: int) -> None:
    """Every int8 file, and the fp32 file of the first bundle."""
    first, _ = files_of(bundles[0])
    chosen = [(bundles[0], first), *((bundle, file) for bundle in bundles for file in files_of(bundle)[1])]
    manifest = read_manifest(data)
    evaluation = choose_protocol(manifest)
    size = read_bundle(bundles[0]).input
    decoded = DecodedFiles(evaluation.files, size.height, size.width)
    query = evaluation.query
    domain_Q = np.array([manifest.domain[row] for row in query])

    def by_domain(embedded: EmbeddedRows) -> str:
        """mAP and recall@1 of the queries of each domain and of all, in one index of all."""
        texts = []
        for name in (*sorted(set(domain_Q)), "all"):
            chosen = query[(domain_Q == name) | (name == "all")]
            scores = evaluation.restrict(chosen, evaluation.index).score(embedded, embedded).scores
            texts.append(f"{name} {describe_scores(scores, untrained=None)}")
        return "; ".join(texts)

    sessions = [
        (f"{bundle.name}/{file.path} in {runtime}", open_alone(bundle, file, runtime))
        for bundle, file in chosen
        for runtime in runtimes
    ]
    for label, session in sessions:
        embedded = embed_with_session(session, decoded, evaluation.rows, dim=read_bundle(bundles[0]).embedding.dim)
        print(f"{label}: {by_domain(embedded)}", flush=True)
    image_NHWC = next(pixels for _, pixels in decoded)[None]
    turns_ms = np.array([[median_latency_ms(session, image_NHWC) for _, session in sessions] for _ in range(rounds)])
    for (label, _), turn_R in zip(sessions, turns_ms.T, strict=True):
        spread = f"{turn_R.min():.3f} to {turn_R.max():.3f}"
        print(f"p50 ms of {label}: {np.median(turn_R):.3f} ({spread}, {rounds} rounds)")


if __name__ == "__main__":
    main()
