"""`edgeembed embed`."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json

log = logging.getLogger(__name__)


@app.command()
def embed(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Images, folders or manifests.")],
    model: Annotated[
        Path | None,
        typer.Option(
            help="Bundle, or a run folder (needs torch); default: the bundled model.", autocompletion=completion.models
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help=".safetensors, .parquet or .npy.")] = Path("embeddings.safetensors"),
    root: Annotated[
        Path | None, typer.Option(help="Store paths relative to this folder, so that it can move: `search --root`.")
    ] = None,
    encoding: Annotated[str, typer.Option(help="float32, int8 or binary: 256, 64 or 8 bytes an image.")] = "float32",
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16 or int8; default: what `doctor` found, else fp32.")
    ] = None,
    runtime: Annotated[str | None, typer.Option(help="onnxruntime or openvino; default: what `doctor` found.")] = None,
    provider: Annotated[
        str | None, typer.Option(help="cuda, coreml, ... for ONNX Runtime, gpu, npu for OpenVINO; default: cpu.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default: all cores.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a run of the network.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Embed images into a file that `edgeembed search` searches."""
    from edgeembed.cli.inputs import gather_images, labels_of
    from edgeembed.cli.models import describe, open_model
    from edgeembed.device.embedder import embed_images
    from edgeembed.device.embeddings import Embeddings, check_destination, check_paths, relative_paths, write_embeddings
    from edgeembed.device.plain_progress import ImageProgress
    from edgeembed.errors import UserError
    from edgeembed.texts import printable

    check_destination(out, encoding)
    files = gather_images(paths)
    stored_paths = files if root is None else relative_paths(files, root)
    check_paths(out, stored_paths)
    label_of = labels_of(paths)
    network = open_model(model, precision=precision, runtime=runtime, provider=provider, threads=threads)
    log.info("embedding %d images with %s", len(files), describe(network))

    skipped: list[str] = []
    count = ImageProgress(len(files))

    def skip(reason: str) -> None:
        skipped.append(reason)
        count.clear()
        log.warning("skipped: %s", printable(reason))

    started = time.monotonic()
    embedding_ND, kept = embed_images(network, files, batch_size=batch_size, on_skip=skip, on_progress=count)
    seconds = time.monotonic() - started
    count.clear()
    if not len(kept):
        raise UserError(f"none of {len(files)} images can be decoded, first {skipped[0]}")
    labels = tuple(label_of.get(files[position]) for position in kept)
    write_embeddings(
        out,
        Embeddings(
            embedding_ND=embedding_ND,
            paths=tuple(stored_paths[position] for position in kept),
            space_id=network.space_id,
            model=network.name,
            encoding=encoding,
            labels=labels if any(labels) else None,
            root=None if root is None else os.path.abspath(root),
            # A file that travels does not tell where its model lay.
            model_path=os.path.abspath(model) if model is not None and root is None else None,
        ),
    )
    if out.suffix == ".npy":
        log.info("%s holds numbers only: write .safetensors to search it", out)
    log.info("%s: %d embeddings, %d files skipped, %.1f s", out, len(kept), len(skipped), seconds)
    if as_json:
        print_json(
            {
                "out": str(out),
                "images": len(kept),
                "labelled": sum(label is not None for label in labels),
                "root": None if root is None else os.path.abspath(root),
                "skipped": skipped,
                "dim": network.dim,
                "encoding": encoding,
                "model": network.name,
                "space_id": network.space_id,
                "precision": network.precision,
                "runtime": network.runtime,
                "provider": network.provider,
                "threads": network.threads,
                "seconds": round(seconds, 3),
            }
        )
