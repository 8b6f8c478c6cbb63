"""Writes the model card of a bundle: what it is, what it was trained on, how good it is, under which licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeembed.device.bundle import fp32_file
from edgeembed.device.bundle_schema import ONNX, BundleFile, BundleManifest, CpuRequirement
from edgeembed.size_ratio import size_ratio
from edgeembed.spread import Spread, describe

USE = """## Use

With edgeembed, in the folder of this card:

```python
from edgeembed import Embedder

embedder = Embedder(".")
embedding_ND = embedder.embed(["a.jpg", "b.jpg"])  # (2, {dim}) float32, unit length
```
{plain}
| | name | type | shape | values |
|---|---|---|---|---|
| input | `image` | uint8 | (N, {height}, {width}, 3) | RGB, 0..255, resized to this size (bilinear, antialiased) |
| output | `embedding` | float32 | (N, {dim}) | unit length |

Both sides are resized at once, proportions are not kept. Normalisation and the L2 norm are inside the graph.
`docs/preprocessing.md` of edgeembed says what every kind of image file becomes, with test vectors.

Compare embeddings by inner product, and only with those of the space `{space_id}`, which a teacher and all of
its students share.
"""

# Filled in by str.format, like USE: a brace of the code itself is doubled.
PLAIN = """
With ONNX Runtime alone, for photographs of 8 bits a channel:

```python
import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def pixels(path):
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
        return np.asarray(upright.resize(({width}, {height}), Image.Resampling.BILINEAR))


session = onnxruntime.InferenceSession("{path}", providers=["CPUExecutionProvider"])
image_NHWC = np.stack([pixels("a.jpg"), pixels("b.jpg")])  # uint8
(embedding_ND,) = session.run(["embedding"], {{"image": image_NHWC}})
similarity_NN = embedding_ND @ embedding_ND.T
```
"""

LIMITS = """## Limits

The network knows the kinds of things that its training images show; elsewhere its quality is unknown until
`edgeembed bench` has measured it on your images. It was not made to identify people.
"""

WEIGHTS = {
    "none": "random",
    "auto": "not recorded: pretrained ones where they could be downloaded, else random",
    "pretrained": "pretrained ones of the network, from timm",
}
"""The values of `weights` in a run that name no file, and the text of the card for them."""

CPUS: dict[CpuRequirement, str] = {
    "any": "right on every CPU",
    "int8 dot products": "**right only on CPUs with int8 dot products** (x86: VNNI or AMX; ARM: DotProd or I8MM)",
}


def file_remarks(file: BundleFile) -> list[str]:
    """Lines below the table of files: how int8 was quantised, what the gate could not show, why it refused the file."""
    parts = []
    if file.quantisation is not None:
        quantised = file.quantisation
        parts.append(
            f"static quantisation (QDQ), calibration by {quantised.calibration}, "
            f"operators left in float32: {len(quantised.float_operators)}"
        )
        parts.append(f"{'7-bit' if quantised.reduce_range else '8-bit'} weights, {CPUS[quantised.cpus]}")
    # A loss that is not shown is part of the line of its runtime below.
    if file.map_loss is not None and file.runtime not in file.not_shown:
        parts.append(f"mAP {file.map_loss.points} below the fp32 file")
    parts += [f"in {runtime} **{text}**" for runtime, text in file.not_shown.items()]
    parts += [f"in {runtime} **refused**" for runtime, check in file.runtimes.items() if not check.passed]
    if file.accepted_worse:
        parts.append(f"**its gate refused it: {', '.join(file.accepted_worse)}**")
    return ["", f"`{file.path}`: {'; '.join(parts)}."] if parts else []


@dataclass(frozen=True, kw_only=True)
class ComparisonColumns:
    """The columns and remarks with chance and the untrained network, to compare retrieval with.

    Empty for bundles of earlier versions, which did not measure them and whose cards must not change.
    """

    missing: str = "-"
    header: str = ""
    rule: str = ""
    cells: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, manifest: BundleManifest) -> ComparisonColumns:
        """Returns the columns for a manifest; empty ones where it has no `evaluation`."""
        known = manifest.evaluation
        if known is None:
            return cls()
        untrained = known.untrained_on(known.fingerprint) or {}
        figures = ((known.chance or {}).get("map"), untrained.get("map"))
        sentences = ["chance: a random ranking; untrained: the same network with random weights, in its own index."]
        if known.not_scored is not None:
            sentences = [f"Retrieval was not scored, files were judged by cosine alone: {known.not_scored}."]
        if known.spread is not None:
            spread = Spread(**known.spread.model_dump())
            warned = "**The embedding space is collapsed**, small errors change results: " if known.collapsed else ""
            sentences.append(f"{warned}{describe(spread)} ({spread.images} images).")
        return cls(
            missing="not scored",
            header=" chance | untrained |",
            # The rule below the Markdown header needs a part for each column.
            rule="---|---|",
            cells=tuple("-" if figure is None else f"{figure:.4f}" for figure in figures),
            remarks=("", " ".join(sentences)),
        )


def model_card(manifest: BundleManifest, notes: str = "") -> str:
    """Returns MODEL_CARD.md, from nothing but what the manifest holds; `notes` are added behind the files."""
    student, teacher, data = manifest.student or {}, manifest.teacher or {}, manifest.data or {}
    columns = ComparisonColumns.of(manifest)
    weights = student.get("weights") or "not recorded"
    lines = [
        f"# {manifest.name}",
        "",
        f"Image embeddings of {manifest.embedding.dim} dimensions for visual search on small devices.",
        "",
        "| | |",
        "|---|---|",
        f"| network | {network_name(student)}, {student.get('params', 0) / 1e6:.2f} M parameters, "
        f"{student.get('macs', 0) / 1e6:.0f} M multiply-accumulates |",
        f"| teacher | {teacher_text(student, teacher)} |",
        f"| embedding space | `{manifest.space_id}` |",
        f"| training images | {data.get('images', '?')} (data fingerprint `{data.get('fingerprint', '?')}`) |",
        f"| starting weights | {WEIGHTS.get(weights, weights)} |",
        f"| licence | {manifest.licence or 'not stated'} |",
        "",
        "## Files",
        "",
        f"| file | precision | bytes | cosine to torch p1 / p50 | mAP |{columns.header} recall@1 | measured on |",
        f"|---|---|---|---|---|{columns.rule}---|---|",
        *(file_row(file, columns) for file in manifest.files),
    ]
    # Everything between the table and `## Use` is remarks and notes: `notes_in` relies on it.
    for file in manifest.files:
        lines += file_remarks(file)
    lines += columns.remarks
    if notes:
        lines += ["", notes.strip()]
    return "\n".join([*lines, "", how_to_use(manifest), LIMITS])


def network_name(student: Mapping[str, Any]) -> str:
    """Returns the name of a bundle's backbone, where it is cut, and what is added to it."""
    architecture = student.get("architecture") or {}
    name = str(student.get("backbone", "?"))
    if (blocks := architecture.get("blocks")) is not None:
        name += f" cut after {blocks} (groups of) blocks"
    if (attention_blocks := architecture.get("attention_blocks")) is not None:
        name += f" with {attention_blocks} transformer blocks"
    return name


def teacher_text(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    """Returns the teacher's name and its size beside the student's; the name alone in bundles of earlier versions."""
    name = teacher.get("backbone", "none: this is the teacher itself")
    # Earlier versions recorded no MACs: their cards stay as they are.
    if not teacher.get("macs"):
        return str(name)
    ratio = size_ratio(
        teacher_params=teacher.get("params"),
        teacher_macs=teacher["macs"],
        params=student.get("params"),
        macs=student.get("macs"),
    )
    return f"{name}" + ("" if ratio is None else f"; the network has {ratio.describe()}")


def file_row(file: BundleFile, columns: ComparisonColumns) -> str:
    """Returns a file's line in the table of files."""
    agreement = f"{file.parity.cosine_p1:.5f} / {file.parity.cosine_p50:.5f}" if file.parity else "-"
    scores = file.retrieval or {}
    map_, recall = (f"{scores[key]:.4f}" if key in scores else columns.missing for key in ("map", "recall_at_1"))
    # Chance and untrained belong to the scored images: a file without scores has none.
    figures = [map_, *(columns.cells if scores else ["-"] * len(columns.cells)), recall]
    where = f"{scores.get('queries')} queries of the {scores.get('split')} split" if scores else "-"
    cells = [f"`{file.path}`", file.precision, f"{file.bytes:,}", agreement, *figures, where]
    return f"| {' | '.join(cells)} |"


def how_to_use(manifest: BundleManifest) -> str:
    """Returns the section `Use`: code for edgeembed and, where there is an ONNX file, for ONNX Runtime alone."""
    height, width = manifest.input.height, manifest.input.width
    file = fp32_file(manifest) or next((file for file in manifest.files if file.path.endswith(ONNX)), None)
    # A bundle without any ONNX file has no example for ONNX Runtime alone.
    plain = PLAIN.format(height=height, width=width, path=file.path) if file is not None else ""
    dim, space_id = manifest.embedding.dim, manifest.space_id
    return USE.format(plain=plain, dim=dim, height=height, width=width, space_id=space_id)


def notes_in(card: str, manifest: BundleManifest) -> str:
    """Returns the notes of a card that `model_card` wrote for a manifest; empty where it is not such a card.

    They stand between the table of files and `## Use`. Earlier versions worded the rest differently.
    """
    # Remarks are taken out by their beginnings, because earlier versions worded them differently.
    card = without_remarks(card, manifest)
    columns = ComparisonColumns.of(manifest)
    table = "\n".join(file_row(file, columns) for file in manifest.files) + "\n"
    # From the end, as notes may have a section `Use` themselves.
    start, end = card.find(table), card.rfind("\n## Use\n")
    is_ours = card.startswith(f"# {manifest.name}\n") and card.endswith(LIMITS) and 0 <= start <= end
    return card[start + len(table) : end].replace("\n".join(columns.remarks), "", 1).strip() if is_ours else ""


def without_remarks(card: str, manifest: BundleManifest) -> str:
    """Removes the lines that `file_remarks` wrote."""
    starts = tuple(f"`{file.path}`: " for file in manifest.files)
    return "".join(line for line in card.splitlines(keepends=True) if not line.startswith(starts))
