"""The model card: what a bundle is, what it learnt from, how good it is, under which licence."""

from __future__ import annotations

from edgeembed.bundle import BundleManifest

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


def model_card(manifest: BundleManifest, notes: str = "") -> str:
    """Markdown for MODEL_CARD.md, from what the manifest holds; nothing in it is assumed."""
    student, teacher, data = manifest.student or {}, manifest.teacher or {}, manifest.data or {}
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
        "| file | precision | bytes | cosine to torch p1 / p50 | mAP | recall@1 | measured on |",
        "|---|---|---|---|---|---|---|",
    ]
    for file in manifest.files:
        agreement = f"{file.parity.cosine_p1:.5f} / {file.parity.cosine_p50:.5f}" if file.parity else "-"
        scores = file.retrieval or {}
        figures = [f"{scores[key]:.4f}" if key in scores else "-" for key in ("map", "recall_at_1")]
        where = f"{scores.get('queries')} queries of the {scores.get('split')} split" if scores else "-"
        cells = [f"`{file.path}`", file.precision, f"{file.bytes:,}", agreement, *figures, where]
        lines.append(f"| {' | '.join(cells)} |")
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
