"""The model card: what a bundle is, what it learnt from, how good it is, under which licence."""

from __future__ import annotations

from dataclasses import dataclass

from edgeembed.bundle import BundleFile, BundleManifest, CpuRequirement
from edgeembed.spread import Spread, describe

USE = """## Use

```python
from edgeembed import Embedder

embedder = Embedder("{name}")  # this folder
embedding_ND = embedder.embed(["a.jpg", "b.jpg"])  # (2, {dim}) float32, unit length
```

The graph takes `image`: uint8, (N, {height}, {width}, 3), RGB, 0..255, both sides resized to the input's (bilinear,
antialiased). Normalisation and the L2 norm are inside. Compare embeddings by inner product, and only with embeddings
of the space `{space_id}`: those of this student, and those of its teacher.
"""


CPUS: dict[CpuRequirement, str] = {
    "any": "right on every CPU",
    "int8 dot products": "**right only on CPUs with int8 dot products** (x86: VNNI or AMX; ARM: DotProd or I8MM)",
}


def remarks(file: BundleFile) -> list[str]:
    """What a table has no room for: how int8 was made, other runtimes, and why a gate refused it."""
    said = []
    if file.quantisation is not None:
        made = file.quantisation
        said.append(f"static ranges by {made.calibration}, {len(made.float_operators)} operators back in float")
        said.append(f"{'7-bit' if made.reduce_range else '8-bit'} weights, {CPUS[made.cpus]}")
    if file.retrieval is not None and (loss := file.retrieval.get("map_loss")) is not None:
        low, high = loss["ci95"]
        said.append(f"mAP {100 * loss['value']:.2f} points [{100 * low:.2f}, {100 * high:.2f}] below the fp32 file")
    if file.accepted_worse:
        said.append(f"**its gate refused it: {', '.join(file.accepted_worse)}**")
    return ["", f"`{file.path}`: {'; '.join(said)}."] if said else []


@dataclass(frozen=True, kw_only=True)
class ComparisonColumns:
    """The columns and remarks that retrieval is read beside; empty for bundles of versions that did not measure them,
    whose cards must not change.
    """

    header: str = ""
    rule: str = ""
    cells: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, manifest: BundleManifest) -> ComparisonColumns:
        known = manifest.evaluation
        if known is None:
            return cls()
        untrained = known.untrained_on(known.fingerprint) or {}
        figures = ((known.chance or {}).get("map"), untrained.get("map"))
        said = ["chance: a random ranking; untrained: the same network with random weights, in its own index."]
        if known.not_scored is not None:
            said = [f"Retrieval was not scored, files were judged by cosine alone: {known.not_scored}."]
        if known.spread is not None:
            spread = Spread(**known.spread.model_dump())
            warned = "**The embedding space is collapsed**, small errors change results: " if known.collapsed else ""
            said.append(f"{warned}{describe(spread)} ({spread.images} images).")
        return cls(
            header=" chance | untrained |",
            rule="---|---|",
            cells=tuple("-" if figure is None else f"{figure:.4f}" for figure in figures),
            remarks=("", " ".join(said)),
        )


def model_card(manifest: BundleManifest, notes: str = "") -> str:
    """Markdown for MODEL_CARD.md, from what the manifest holds; nothing in it is assumed."""
    student, teacher, data = manifest.student or {}, manifest.teacher or {}, manifest.data or {}
    columns = ComparisonColumns.of(manifest)
    lines = [
        f"# {manifest.name}",
        "",
        f"Image embeddings of {manifest.embedding.dim} numbers for visual search on small devices.",
        "",
        "| | |",
        "|---|---|",
        f"| network | {student.get('backbone', '?')}, {student.get('params', 0) / 1e6:.2f} M parameters, "
        f"{student.get('macs', 0) / 1e6:.0f} M multiply-accumulates |",
        f"| teacher | {teacher.get('backbone', 'none: this is the teacher itself')} |",
        f"| embedding space | `{manifest.space_id}` |",
        f"| training images | {data.get('images', '?')} (data fingerprint `{data.get('fingerprint', '?')}`) |",
        f"| starting weights | {student.get('weights', '?')} |",
        f"| licence | {manifest.licence or 'not stated'} |",
        "",
        "## Files",
        "",
        f"| file | precision | bytes | cosine to torch p1 / p50 | mAP |{columns.header} recall@1 | measured on |",
        f"|---|---|---|---|---|{columns.rule}---|---|",
    ]
    for file in manifest.files:
        agreement = f"{file.parity.cosine_p1:.5f} / {file.parity.cosine_p50:.5f}" if file.parity else "-"
        scores = file.retrieval or {}
        missing = "-" if manifest.evaluation is None else "not scored"
        map_, recall = (f"{scores[key]:.4f}" if key in scores else missing for key in ("map", "recall_at_1"))
        figures = [map_, *(columns.cells if scores else ["-"] * len(columns.cells)), recall]
        where = f"{scores.get('queries')} queries of the {scores.get('split')} split" if scores else "-"
        cells = [f"`{file.path}`", file.precision, f"{file.bytes:,}", agreement, *figures, where]
        lines.append(f"| {' | '.join(cells)} |")
    for file in manifest.files:
        lines += remarks(file)
    lines += columns.remarks
    if notes:
        lines += ["", notes.strip()]
    spec = manifest.input
    use = USE.format(
        name=manifest.name,
        dim=manifest.embedding.dim,
        height=spec.height,
        width=spec.width,
        space_id=manifest.space_id,
    )
    limits = (
        "## Limits\n\nThe network knows the kinds of things that its training images show; elsewhere its quality is "
        "unknown until\n`edgeembed bench` has measured it on your images. It was not made to identify people.\n"
    )
    return "\n".join([*lines, "", use, limits])


def notes_in(card: str, manifest: BundleManifest) -> str:
    """The notes of a card that `model_card` wrote for a manifest; empty where somebody changed the rest of it.

    The remarks on files do not count: their wording is another in cards of earlier versions.
    """
    card, expected = (without_remarks(text, manifest) for text in (card, model_card(manifest)))
    before, use, after = expected.partition("\n## Use\n")
    before, after = before.rstrip("\n"), use + after
    if not (card.startswith(before) and card.endswith(after)):
        return ""
    return card[len(before) : len(card) - len(after)].strip()


def without_remarks(card: str, manifest: BundleManifest) -> str:
    starts = tuple(f"`{file.path}`: " for file in manifest.files)
    return "".join(line for line in card.splitlines(keepends=True) if not line.startswith(starts))
