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
from edgeembed.cli.options import Json, Precision, Provider, Runtime, Threads

log = logging.getLogger(__name__)


@app.command()
def embed(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Images, folders or manifests.")],
    model: Annotated[
        Path | None,
        typer.Option(
            help="Bundle, a name that `artifacts` lists, or a run folder (needs torch); default: the bundled model.",
            autocompletion=completion.models,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="File to write: .safetensors, .parquet or .npy.")] = Path(
        "embeddings.safetensors"
    ),
    root: Annotated[
        Path | None,
        typer.Option(help="Store image paths relative to this folder, so that it can be moved: `search --root`."),
    ] = None,
    encoding: Annotated[
        str,
        typer.Option(
            help="Encoding of the embeddings: float32, int8 or binary (256, 64 or 8 bytes for 64 dimensions)."
        ),
    ] = "float32",
    precision: Precision = None,
    runtime: Runtime = None,
    provider: Provider = None,
    threads: Threads = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass of the network.")] = 8,
    as_json: Json = False,
) -> None:
    """Compute the embeddings of images and write them to a file, which `edgeembed search` takes as its index."""
    from edgeembed.cli.inputs import gather_images, read_labels
    from edgeembed.cli.models import describe_model, open_model
    from edgeembed.device.embedder import embed_images
    from edgeembed.device.embeddings import Embeddings, check_destination, check_paths, relative_paths, write_embeddings
    from edgeembed.device.plain_progress import ImageProgress
    from edgeembed.errors import UserError
    from edgeembed.texts import printable

    # All checks first: embedding many images takes long.
    check_destination(out, encoding)
    files = gather_images(paths)
    stored_paths = files if root is None else relative_paths(files, root)
    check_paths(out, stored_paths)
    label_of = read_labels(paths)
    network = open_model(model, precision=precision, runtime=runtime, provider=provider, threads=threads)
    log.info("embedding %d images with %s", len(files), describe_model(network))

    skipped: list[str] = []
    count = ImageProgress(len(files))

    def skip(reason: str) -> None:
        skipped.append(reason)
        # Else the warning would continue the line that shows the progress.
        count.clear()
        log.warning("skipped: %s", printable(reason))

    started = time.monotonic()
    embedding_ND, kept = embed_images(network, files, batch_size=batch_size, on_skip=skip, on_progress=count)
    seconds = time.monotonic() - started
    count.clear()
    if not len(kept):
        raise UserError(f"none of {len(files)} images can be decoded, first {skipped[0]}")
    # `kept`: positions in `files` of the images that could be decoded.
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
            # With --root the file is meant to be moved to a machine where this path means nothing.
            model_path=os.path.abspath(model) if model is not None and root is None else None,
        ),
    )
    if out.suffix == ".npy":
        log.info("%s holds embeddings without paths: write .safetensors to search it", out)
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
