"""What a report says in words: which file to use on this machine and why, and what its columns mean."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from edgeembed.bench.summary import milliseconds


def recommendation_lines(report: Mapping[str, Any]) -> list[str]:
    """For each bundle what to use on this machine, what must not be used and why, and what is used now."""
    lines = []
    for one in report["recommended"]:
        name, chosen = one["name"], f"{one['path']} in {one['runtime']}"
        if one["path"] is None:
            lines.append(f"{name}: no file is recommended")
        elif one["is_measured"]:
            lines.append(f"{name}: recommended is {chosen} ({milliseconds(one['p50_ms'])} an image)")
        else:
            reasons = {(refused["path"], refused["runtime"]): refused["reason"] for refused in one["refused"]}
            reason = reasons.get((one["path"], one["runtime"]), "no file was found right here")
            lines.append(f"{name}: {chosen} is used where nothing else is known: {reason}")
        if one.get("not_shown") is not None:
            lines.append(f"{name}: when {chosen} was exported, its loss of mAP was {one['not_shown']}")
        for refused in one["refused"]:
            if (refused["path"], refused["runtime"]) == (one["path"], one["runtime"]):
                continue
            faster = one["p50_ms"] is not None and refused["p50_ms"] < one["p50_ms"]
            lines.append(
                f"{name}: {refused['path']} in {refused['runtime']} ({milliseconds(refused['p50_ms'])} an image) is "
                f"not recommended: {refused['reason']}" + (f"; {chosen} is used instead" if faster else "")
            )
        if one["path"] is not None and one["in_use"] == chosen:
            lines.append(f"{name}: {chosen} is the default on this machine")
        elif one["path"] is not None:
            lines.append(
                f"{name}: the default on this machine stays {one['in_use']}: add --remember to use {chosen} from now "
                f"on, or run `edgeembed doctor {shlex.quote(one['folder'])}`"
            )
    return lines


def unmatched_line(report: Mapping[str, Any]) -> str | None:
    """The number of queries that no mean includes, as nothing in the index matches them; None where it is 0."""
    count = report["data"].get("queries_without_match")
    if not count:
        return None
    return f"{count} of {report['data']['queries']} queries have no match in the index: every mean leaves them out"


COLUMN_MEANINGS = {
    "p50, p90, p95, p99": "so many in a hundred calls took no longer; p50 is the median",
    "memory": "peak memory of a process that opens the file and embeds one image",
    "MACs": "multiply-accumulate operations for one image",
    "mAP": "mean average precision: how far up the right images stand in the ranking of the index, 1 is best",
    "[low, high]": "95 % bootstrap interval: the wider of those over queries and over classes",
    "chance": "the expected mAP of a random ranking of the same images",
    "untrained": "the mAP of the same network with random weights",
    "R@1": "recall at 1: share of queries whose first result is right",
    "mP@5": "mean precision at 5: share of right images among the first five results",
    "own index": "the file embeds queries and index images (symmetric retrieval)",
    "teacher's index": "the file embeds queries, the teacher embedded the index images (asymmetric retrieval)",
    "kept": "the file's mAP as a share of the teacher's mAP on its own index",
    "teacher : student": "the teacher's parameters for each parameter of the file's network",
    "cosine": "of the file's embedding of an image with the teacher's; p50 is the median over images",
    "% of roofline": "speed as a share of the fastest that this machine's measured matrix products and memory allow",
}
"""What a reader needs to know of the columns of a report, one line each."""
