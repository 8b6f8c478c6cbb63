"""The package and its documentation use the terms of the field, not private words for them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [
    *sorted(file for kind in ("py", "yaml", "html", "js") for file in (ROOT / "edgeembed").rglob(f"*.{kind}")),
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]

# Pattern, an example that it must match, and what to write instead. Recipe keys and JSON keys are not matched.
PRIVATE_WORDS = (
    (r"\banswer(s|ed|ing)?\b", "what the teacher answers", "the teacher's embedding, the result, the response"),
    (r"\bask(s|ed)\b", "the images asked for", "requested, given, computes the teacher's embedding"),
    (r"\bsaid\b", "said before training starts", "logged, printed, reported, or the name of the thing"),
    (r"\bwhat (an?|the|its) \w+ says\b", "what the teacher says", "the teacher's embedding; what a file contains"),
    (r"\bwhat lies\b", "what lies about them", "the files there; what is around them"),
    (r"\bnumbers (an|a|per|for an|for each) image\b", "64 numbers an image", "embedding dimensions"),
    (r"\b\d+ numbers\b", "512 numbers", "512 dimensions"),
    (r"\bfirst numbers\b", "its first numbers say most", "leading dimensions; PCA-rotated"),
    (r"\bbe had\b", "could not be had", "be downloaded; are available"),
    (r"\bdrop(s|ped)? (a )?squares?\b|\bsquares? (is|are) dropped\b", "squares are dropped", "random erasing"),
    (r"\ba line down\b", "a line down to 0", "linear decay"),
    (r"\bmade to pass\b", "int8 is made to pass", "operators that hurt most return to float32 until the gate passes"),
    (r"\bin float\b", "stays in float", "in float32"),
    (r"\bmakers\b", "makers and readers of a tensor", "producers (and consumers)"),
    (r"\bpooling: own\b|\bown\.py\b", "pooling: own", "pooling: default; imported embeddings"),
    (r"\bjoins? teachers\b|\bjoined teachers?\b", "joins teachers", "ensemble of teachers"),
    (r"\bcontinued (run|teacher)s?\b", "a continued teacher", "warm start"),
    (r"\bremembering\b", "remembering what is fastest", "the cache of the fastest file"),
    (r"\bembedded (default )?data( set)?\b", "the embedded default data", "the built-in synthetic data set"),
    (r"\bthe whole way\b", "the whole way on tiny models", "all stages; end to end"),
    (r"\bclass (Made|Checked|Judged|Found|Said|Asked|Wanted|Answers?|Floor)\b", "class Made:", "what the thing is"),
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_private_word_is_used(file: Path) -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}: {match[0]!r}: write {replacement}"
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        for pattern, _, replacement in PRIVATE_WORDS
        for match in re.finditer(pattern, line, re.IGNORECASE)
    ]
    assert found == [], "\n".join(found)


@pytest.mark.parametrize(("pattern", "example", "replacement"), PRIVATE_WORDS)
def test_each_pattern_matches_its_example_and_not_its_replacement(pattern: str, example: str, replacement: str) -> None:
    assert re.search(pattern, example, re.IGNORECASE)
    assert not re.search(pattern, replacement, re.IGNORECASE)


def test_keys_of_recipes_are_not_private_words() -> None:
    keys = "drop_square_probability drop_square_side percent_of_floor continue_from teacher-join"
    assert not any(re.search(pattern, keys, re.IGNORECASE) for pattern, *_ in PRIVATE_WORDS)
