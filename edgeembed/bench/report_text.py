"""Writes the sentences of a report: which file to use on this machine and why, and the meaning of its columns."""

from __future__ import annotations

import shlex

from edgeembed.bench.report_schema import Recommendation, Report
from edgeembed.bench.summary import milliseconds


def recommendation_lines(report: Report) -> list[str]:
    """For each bundle: what to use on this machine, what must not be used and why, and what is the default now."""
    return [line for one in report.recommended for line in _lines_of_bundle(one)]


def _lines_of_bundle(advice: Recommendation) -> list[str]:
    name, chosen = advice.name, f"{advice.path} in {advice.runtime}"
    if advice.path is None:
        lines = [f"{name}: no file is recommended"]
    elif advice.is_measured:
        lines = [f"{name}: recommended is {chosen} ({milliseconds(advice.p50_ms)} an image)"]
    else:
        # The default may itself be among the refused files, with a reason of its own.
        reasons = {(refused.path, refused.runtime): refused.reason for refused in advice.refused}
        reason = reasons.get((advice.path, advice.runtime or ""), "no file agrees with the fp32 file here")
        lines = [f"{name}: {chosen} is used, as no file could be recommended: {reason}"]
    if advice.not_shown is not None:
        lines.append(f"{name}: when {chosen} was exported, its loss of mAP was {advice.not_shown}")
    for refused in advice.refused:
        # Its reason is in the first line.
        if (refused.path, refused.runtime) == (advice.path, advice.runtime):
            continue
        # A reader wonders only why a faster file is not used.
        is_faster = advice.p50_ms is not None and refused.p50_ms < advice.p50_ms
        lines.append(
            f"{name}: {refused.path} in {refused.runtime} ({milliseconds(refused.p50_ms)} an image) is "
            f"not recommended: {refused.reason}" + (f"; {chosen} is used instead" if is_faster else "")
        )
    if advice.path is not None and advice.in_use == chosen:
        lines.append(f"{name}: {chosen} is the default on this machine")
    elif advice.path is not None:
        lines.append(
            f"{name}: the default on this machine stays {advice.in_use}: add --remember to use {chosen} from now "
            f"on, or run `edgeembed doctor {shlex.quote(advice.folder)}`"
        )
    return lines


def unmatched_line(report: Report) -> str | None:
    """How many queries no mean includes, as nothing in the index matches them; None where it is 0."""
    count = report.data.queries_without_match
    if not count:
        return None
    return f"{count} of {report.data.queries} queries have no match in the index: every mean leaves them out"


COLUMN_MEANINGS = {
    "p50, p90, p95, p99": "percentiles of the time of a call; p50 is the median",
    "memory": "peak memory of a process that opens the file and embeds one image",
    "MACs": "multiply-accumulate operations for one image",
    "mAP": "mean average precision of the ranking of the index: 1 where all right images come first",
    "[low, high]": "95 % bootstrap interval: the wider of those over queries and over classes",
    "chance": "the expected mAP of a random ranking of the same images",
    "untrained": "the mAP of the same network with random weights",
    "R@1": "recall at 1: share of queries whose first result is right",
    "mP@5": "mean precision at 5: share of right images among the first five results",
    "own index": "the file embeds queries and index images (symmetric retrieval)",
    "teacher's index": "the file embeds queries, the teacher embedded the index images (asymmetric retrieval)",
    "kept": "the file's mAP as a share of the teacher's mAP on its own index",
    "of teacher's params": "the parameters of the file's network as a fraction of the teacher's",
    "of its MACs": "its MACs as a fraction of the teacher's, each network at its own input size",
    "cosine": "of the file's embedding of an image with the teacher's; p50 is the median over images",
    "% of roofline": "speed in percent of the fastest that this machine's measured matrix products and memory allow",
}
"""The meaning of each column of a report, in one line."""
