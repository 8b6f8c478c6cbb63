"""`edgeembed search`: finds the images of an index that are most similar to query images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeembed.cli import completion
from edgeembed.cli.app import app, print_json
from edgeembed.cli.options import Json, Precision, Provider, Runtime, Threads

if TYPE_CHECKING:
    from edgeembed.cli.models import Model
    from edgeembed.device.embeddings import Embeddings

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One result of a query. `rank` counts from 1; `similarity` is the cosine."""

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
        Path | None, typer.Option(help="Where the folder that was given to `embed --root` is on this machine.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of results for each query.")] = 5,
    sheet: Annotated[
        Path | None, typer.Option(help="Also write a contact sheet of the results: .png, .jpg or .webp.")
    ] = None,
    precision: Precision = None,
    runtime: Runtime = None,
    provider: Provider = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find the images of an index that are most similar to each query image."""
    from edgeembed.cli.inputs import gather_images
    from edgeembed.cli.models import describe_model, model_of_index, open_model
    from edgeembed.device.contact_sheet import check_sheet, contact_sheet
    from edgeembed.device.embedding_space import require_same_space
    from edgeembed.device.embeddings import read_embeddings
    from edgeembed.errors import UserError
    from edgeembed.files import check_output_file

    # Everything that can be wrong is checked before the model is opened.
    if sheet is not None:
        check_sheet(sheet)
        check_output_file(sheet, option="--sheet")
    files = gather_images(queries)
    stored = read_embeddings(index)
    if root is not None and not root.is_dir():
        raise UserError(f"--root {root}: no such folder")
    index_files = stored.files(None if root is None else str(root))
    network = open_model(
        model or model_of_index(index, stored), precision=precision, runtime=runtime, provider=provider, threads=threads
    )
    require_same_space(f"index {index}", stored.space_id, f"model {network.name}", network.space_id)
    log.info("searching %d images of %s with %s", len(stored.paths), index, describe_model(network))

    results = find_results(network, files, stored, index_files, k)
    if sheet is not None:
        rows = [[(result.path, result.similarity) for result in row] for row in results]
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
                "k": min(k, len(stored.paths)),
                "sheet": str(sheet) if sheet else None,
                "queries": [
                    {"path": file, "results": [as_json_object(result) for result in row]}
                    for file, row in zip(files, results, strict=True)
                ],
            }
        )
    else:
        print_results(files, results)


def find_results(
    network: Model, queries: Sequence[str], stored: Embeddings, index_files: Sequence[str], k: int
) -> list[list[Result]]:
    """The k best results for each query image, best first; fewer where the index is smaller."""
    from edgeembed.device.embedder import embed_images, raise_image_error
    from edgeembed.device.embedding_space import shorten
    from edgeembed.device.search import Index

    # A query that cannot be decoded is an error; an index may leave out images.
    embedding_QD, _ = embed_images(network, queries, on_skip=raise_image_error)
    if stored.space_id != network.space_id:  # the same space, but one side keeps only its leading dimensions
        embedding_QD = shorten(embedding_QD, dim := min(network.dim, stored.embedding_ND.shape[1]))
        stored = replace(stored, embedding_ND=shorten(stored.embedding_ND, dim))
        log.info("comparing the first %d dimensions", dim)
    position_QK, similarity_QK = Index(stored).search(embedding_QD, k)
    labels = stored.labels or (None,) * len(stored.paths)
    return [
        [
            Result(rank=rank, path=index_files[position], label=labels[position], similarity=float(similarity))
            for rank, (position, similarity) in enumerate(zip(*row, strict=True), 1)
        ]
        for row in zip(position_QK, similarity_QK, strict=True)
    ]


def as_json_object(result: Result) -> dict[str, Any]:
    """A result as it appears in the JSON output."""
    return {
        "rank": result.rank,
        "path": result.path,
        "label": result.label,
        # float32 has about seven significant digits.
        "similarity": round(result.similarity, 7),
    }


def print_results(queries: Sequence[str], results: Sequence[Sequence[Result]]) -> None:
    """Prints each query, then one line for each of its results."""
    from edgeembed.device.contact_sheet import similarity_texts
    from edgeembed.texts import printable

    for query, row in zip(queries, results, strict=True):
        print(printable(query))
        texts = similarity_texts([result.similarity for result in row])
        for result, text in zip(row, texts, strict=True):
            label = "" if result.label is None else f"  [{printable(result.label)}]"
            print(f"{result.rank:>5}  {text:>7}  {printable(result.path)}{label}")
