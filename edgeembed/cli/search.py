"""`edgeembed search`."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One image that was found for a query."""

    rank: int
    path: str
    label: str | None
    similarity: float


@app.command()
def search(
    queries: Annotated[list[Path], typer.Argument(metavar="QUERY", help="Images, folders or manifests.")],
    index: Annotated[Path, typer.Option(help="File that `edgeembed embed` wrote.")] = Path("embeddings.safetensors"),
    model: Annotated[
        Path | None,
        typer.Option(
            help="Bundle, or a run folder (needs torch); default: the model of the index.",
            autocompletion=completion.models,
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Where the folder given to `embed --root` lies on this machine.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Results a query.")] = 5,
    sheet: Annotated[Path | None, typer.Option(help="Also draw the results: .png, .jpg or .webp.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16 or int8; default: what `doctor` found, else fp32.")
    ] = None,
    runtime: Annotated[str | None, typer.Option(help="onnxruntime or openvino; default: what `doctor` found.")] = None,
    provider: Annotated[
        str | None, typer.Option(help="cuda, coreml, ... for ONNX Runtime, gpu, npu for OpenVINO; default: cpu.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default: all cores.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Find the images of an index that look most like each query."""
    from edgeembed.cli.inputs import gather_images
    from edgeembed.cli.models import describe, model_of_index, open_model
    from edgeembed.device.contact_sheet import check_sheet, contact_sheet, similarity_texts
    from edgeembed.device.embedder import embed_images, raise_image_error
    from edgeembed.device.embedding_space import require_same_space, shorten
    from edgeembed.device.embeddings import read_embeddings
    from edgeembed.device.search import Index
    from edgeembed.errors import UserError
    from edgeembed.files import check_output_file
    from edgeembed.texts import printable

    if sheet is not None:
        check_sheet(sheet)
        check_output_file(sheet, option="--sheet")
    files = gather_images(queries)
    stored = read_embeddings(index)
    if root is not None and not root.is_dir():
        raise UserError(f"--root {root}: no such folder")
    found_files = stored.files(None if root is None else str(root))
    model = model or model_of_index(index, stored)
    network = open_model(model, precision=precision, runtime=runtime, provider=provider, threads=threads)
    require_same_space(f"index {index}", stored.space_id, f"model {network.name}", network.space_id)
    log.info("searching %d images of %s with %s", len(stored.paths), index, describe(network))

    embedding_QD, _ = embed_images(network, files, on_skip=raise_image_error)
    if stored.space_id != network.space_id:  # one of them is short
        embedding_QD = shorten(embedding_QD, dim := min(network.dim, stored.embedding_ND.shape[1]))
        stored = replace(stored, embedding_ND=shorten(stored.embedding_ND, dim))
        log.info("comparing the first %d dimensions", dim)
    position_QK, similarity_QK = Index(stored).search(embedding_QD, k)
    labels = stored.labels or (None,) * len(stored.paths)
    found = [
        [
            Result(rank=rank, path=found_files[position], label=labels[position], similarity=float(similarity))
            for rank, (position, similarity) in enumerate(zip(*row, strict=True), 1)
        ]
        for row in zip(position_QK, similarity_QK, strict=True)
    ]
    if sheet is not None:
        rows = [[(result.path, result.similarity) for result in results] for results in found]
        contact_sheet(list(zip(files, rows, strict=True)), sheet)
        log.info("contact sheet: %s", sheet)
    if as_json:
        print_json(
            {
                "index": str(index),
                "images": len(stored.paths),
                "model": network.name,
                "space_id": network.space_id,
                "precision": network.precision,
                "runtime": network.runtime,
                "provider": network.provider,
                "k": position_QK.shape[1],
                "sheet": str(sheet) if sheet else None,
                "queries": [
                    {
                        "path": file,
                        "results": [
                            {
                                "rank": result.rank,
                                "path": result.path,
                                "label": result.label,
                                "similarity": round(result.similarity, 7),
                            }
                            for result in results
                        ],
                    }
                    for file, results in zip(files, found, strict=True)
                ],
            }
        )
        return
    for file, results in zip(files, found, strict=True):
        print(printable(file))
        texts = similarity_texts([result.similarity for result in results])
        for result, text in zip(results, texts, strict=True):
            label = "" if result.label is None else f"  [{printable(result.label)}]"
            print(f"{result.rank:>5}  {text:>7}  {printable(result.path)}{label}")
