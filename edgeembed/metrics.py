"""The retrieval metrics of the whole package, so that a figure means the same in training, gates and reports.

Shapes: Q queries, N index images, D embedding, P relevant index images, K results kept, M metrics.
Embeddings are unit vectors, so the order by inner product is the order by Euclidean distance. They are compared in
float32, a block of queries at a time, so that the Q x N matrix never exists: with an index of 100k images this takes
some 64 MiB. Equal similarities are ordered by index position, so that results are reproducible.

Sources: mP@5, Google Universal Image Embedding challenge (2022), which UnED calls mMP@5 (arXiv:2309.01858);
mAP@100, Google Landmarks v2 (arXiv:2004.01804); MAP@R, "A Metric Learning Reality Check" (arXiv:2003.08505).
Each is a mean over the queries that have a match in the index; `queries_without_match` counts the others.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgeembed.arrays import BoolArray, Float64Array, FloatArray, IntArray
from edgeembed.chance import expected_average_precision
from edgeembed.errors import UserError
from edgeembed.intervals import NUM_RESAMPLES, OptionalInterval, mean_intervals

METRICS = ("map", "map_at_100", "mp_at_5", "recall_at_1", "map_at_r")
"""Column order of per-query values, and the keys of intervals, `chance`, `per_domain` and `domain_mean`."""

_BLOCK_BYTES = 64 * 2**20  # of similarities that are in memory at one time
_MAX_COUNTED = 16
"""Up to this many relevant images, counting the better images of each is faster than sorting the row."""

_NOWHERE: IntArray = np.empty(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class RetrievalScores:
    """The retrieval figures of one set of embeddings, in 0..1; None where no query has a match.

    `ci95_queries` and `ci95_classes` are 95 % intervals, (low, high), over queries and over classes, and `ci95` is the
    wider of the two. Those over classes are None where all queries are of one class. `chance`: the expected value of
    each metric for a random ranking. `per_domain` and `domain_mean` (the unweighted mean over the domains that could be
    scored, UnED's headline) are empty without domains. The defaults stand for what files of earlier versions lack.
    """

    map: float | None
    map_at_100: float | None = None
    mp_at_5: float | None = None
    recall_at_1: float | None = None
    map_at_r: float | None = None
    ci95: dict[str, OptionalInterval] = field(default_factory=dict)
    ci95_queries: dict[str, OptionalInterval] = field(default_factory=dict)
    ci95_classes: dict[str, OptionalInterval] = field(default_factory=dict)
    chance: dict[str, float | None] = field(default_factory=dict)
    queries: int = 0
    queries_without_match: int = 0
    per_domain: dict[str, dict[str, float | None]] = field(default_factory=dict)
    domain_mean: dict[str, float | None] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, float | None]:
        """The METRICS alone."""
        return {name: getattr(self, name) for name in METRICS}


def retrieval_scores(
    query_embedding_QD: FloatArray,
    index_embedding_ND: FloatArray,
    *,
    query_label: Sequence[str],
    index_label: Sequence[str],
    query_domain: Sequence[str] | None = None,
    index_domain: Sequence[str] | None = None,
    query_id: IntArray | None = None,
    index_id: IntArray | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> RetrievalScores:
    """Scores a ranking of the whole index for each query; a hit has the query's label and domain.

    An index image that carries the query's id is the query itself: it is neither ranked nor counted as relevant.
    Where no query, or none of a domain, has a match, figures are None. Raises UserError for malformed inputs.
    """
    if num_resamples < 1:
        raise UserError(f"num_resamples is {num_resamples}: the bootstrap needs at least 1")
    values = query_values(
        query_embedding_QD,
        index_embedding_ND,
        query_label=query_label,
        index_label=index_label,
        query_domain=query_domain,
        index_domain=index_domain,
        query_id=query_id,
        index_id=index_id,
    )
    return mean_scores(
        *values, query_label=query_label, query_domain=query_domain, seed=seed, num_resamples=num_resamples
    )


def mean_scores(
    value_QM: Float64Array,
    num_relevant_Q: IntArray,
    num_ranked_Q: IntArray,
    *,
    query_label: Sequence[str],
    query_domain: Sequence[str] | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> RetrievalScores:
    """Scores of Q queries from what `query_values` returns: (Q, M), (Q,) and (Q,)."""
    matched_Q = num_relevant_Q > 0
    groups = zip(_groups(query_label, query_domain), matched_Q, strict=True)
    class_Q = [group for group, has_match in groups if has_match]
    ci95, ci95_queries, ci95_classes = _ci95(value_QM[matched_Q], class_Q, seed, num_resamples)
    chance_QM = _chance_values(num_relevant_Q, num_ranked_Q)
    per_domain = {} if query_domain is None else _per_domain(value_QM, matched_Q, query_domain)
    return RetrievalScores(
        **_means(value_QM, matched_Q),
        ci95=ci95,
        ci95_queries=ci95_queries,
        ci95_classes=ci95_classes,
        chance=_means(chance_QM, matched_Q),
        queries=len(matched_Q),
        queries_without_match=int(np.count_nonzero(~matched_Q)),
        per_domain=per_domain,
        domain_mean=_unweighted_mean(per_domain),
    )


def not_scored(num_queries: int) -> RetrievalScores:
    """The scores of queries none of which has a match, or which have no index to be searched in."""
    return RetrievalScores(
        **dict.fromkeys(METRICS),
        ci95=dict.fromkeys(METRICS),
        ci95_queries=dict.fromkeys(METRICS),
        ci95_classes=dict.fromkeys(METRICS),
        chance=dict.fromkeys(METRICS),
        queries=num_queries,
        queries_without_match=num_queries,
        per_domain={},
        domain_mean={},
    )


def query_values(
    query_embedding_QD: FloatArray,
    index_embedding_ND: FloatArray,
    *,
    query_label: Sequence[str],
    index_label: Sequence[str],
    query_domain: Sequence[str] | None = None,
    index_domain: Sequence[str] | None = None,
    query_id: IntArray | None = None,
    index_id: IntArray | None = None,
) -> tuple[Float64Array, IntArray, IntArray]:
    """The METRICS of each query (Q, M), its number of relevant index images (Q,) and of ranked images (Q,).

    `retrieval_scores` averages the first over the queries that have a match, whose second is above 0.
    """
    query_QD, index_ND = _checked_embeddings(query_embedding_QD, index_embedding_ND)
    _check_counts("label", query_label, index_label, query_QD, index_ND)
    _check_counts("domain", query_domain, index_domain, query_QD, index_ND)
    query_group = _groups(query_label, query_domain)
    group_positions = _positions(_groups(index_label, index_domain))
    value_QM = np.zeros((len(query_group), len(METRICS)))
    num_relevant_Q, num_ranked_Q = np.zeros((2, len(query_group)), np.int64)
    for query, similarity_N, num_ranked in _similarity_rows(query_QD, index_ND, query_id, index_id):
        relevant_P = group_positions.get(query_group[query], _NOWHERE)
        relevant_P = relevant_P[similarity_N[relevant_P] > -np.inf]  # without the query itself
        num_relevant_Q[query], num_ranked_Q[query] = relevant_P.size, num_ranked
        value_QM[query] = _values_of_query(_relevant_sorted(similarity_N, relevant_P), relevant_P.size)
    return value_QM, num_relevant_Q, num_ranked_Q


def top_k(
    query_QD: FloatArray,
    index_ND: FloatArray,
    k: int,
    *,
    query_id: IntArray | None = None,
    index_id: IntArray | None = None,
) -> tuple[IntArray, FloatArray]:
    """Exact nearest neighbours: index positions_QK and their similarities_QK, best first, ties by position.

    Where leaving the query itself out leaves fewer than k images, the row ends in position -1 and similarity -inf.
    """
    query_QD, index_ND = _checked_embeddings(query_QD, index_ND)
    if not 1 <= k <= len(index_ND):
        raise UserError(f"k is {k}: choose 1 to {len(index_ND)}, the number of index images")
    position_QK = np.full((len(query_QD), k), -1, np.int64)
    similarity_QK = np.full((len(query_QD), k), -np.inf, np.float32)
    for query, similarity_N, _ in _similarity_rows(query_QD, index_ND, query_id, index_id):
        kth_best = np.partition(similarity_N, -k)[-k]
        candidate = np.flatnonzero(similarity_N >= kth_best)  # more than k where others tie with the k-th
        # Stable: candidates are ascending, so that equal similarities keep the order of positions.
        best_K = candidate[np.argsort(-similarity_N[candidate], kind="stable")[:k]]
        position_QK[query], similarity_QK[query] = best_K, similarity_N[best_K]
    position_QK[np.isneginf(similarity_QK)] = -1
    return position_QK, similarity_QK


def average_precision(relevant_sorted: BoolArray, num_relevant: int, cutoff: int | None = None) -> float:
    """Sum of precision at each hit within `cutoff` results, over min(num_relevant, cutoff); 0 without relevant images.

    `relevant_sorted`: whether each result is a hit, best first; results after the last hit may be left out. With
    `cutoff` = `num_relevant` this is the AP@R of MAP@R.
    """
    reachable = num_relevant if cutoff is None else min(num_relevant, cutoff)
    if reachable == 0:
        return 0.0
    hit_rank = np.flatnonzero(relevant_sorted[:cutoff]) + 1
    # The precision at the i-th hit is i divided by its rank.
    return float((np.arange(1, hit_rank.size + 1) / hit_rank).sum() / reachable)


def precision_at(relevant_sorted: BoolArray, num_relevant: int, k: int) -> float:
    """Share of hits among the first min(num_relevant, k) results, so that a small class can reach 1 (GUIE's P@5)."""
    reachable = min(num_relevant, k)
    return np.count_nonzero(relevant_sorted[:reachable]) / reachable if reachable else 0.0


def global_average_precision(
    confidence: FloatArray | Float64Array, correct: BoolArray, num_queries_with_match: int
) -> float:
    """GAP of landmark recognition: one average precision over all queries' single predictions, by confidence.

    A confident prediction for a query without a match ranks above correct ones and lowers the figure. Equal confidences
    keep their order.
    """
    if confidence.ndim != 1 or confidence.shape != correct.shape:
        raise UserError(f"confidence is {confidence.shape}, correct {correct.shape}: give one of each per prediction")
    if np.isnan(confidence).any():
        raise UserError("confidence holds NaN: leave out the queries without a prediction")
    # A correct prediction needs a query with a match.
    num_correct = int(np.count_nonzero(correct))
    if num_queries_with_match < max(1, num_correct):
        raise UserError(
            f"num_queries_with_match is {num_queries_with_match} with {num_correct} correct predictions: "
            "give one prediction per query and count every query that has a match"
        )
    return average_precision(correct[np.argsort(-confidence, kind="stable")], num_queries_with_match)


def _similarity_rows(
    query_QD: FloatArray, index_ND: FloatArray, query_id: IntArray | None, index_id: IntArray | None
) -> Iterator[tuple[int, FloatArray, int]]:
    """Each query's number, its similarities (N,) with its own image at -inf, and the number of other images.

    A row of similarities is overwritten after its block.
    """
    _check_counts("id", query_id, index_id, query_QD, index_ND)
    positions_of_query: list[IntArray] | None = None
    if query_id is not None and index_id is not None:
        id_positions = _positions(index_id.tolist())
        positions_of_query = [id_positions.get(image, _NOWHERE) for image in query_id.tolist()]

    # At least one query at a time, however large the index is.
    block_size = min(max(1, _BLOCK_BYTES // (4 * len(index_ND))), len(query_QD))
    buffer_BN = np.empty((block_size, len(index_ND)), np.float32)
    for start in range(0, len(query_QD), block_size):
        block_BD = query_QD[start : start + block_size]
        similarity_BN = np.matmul(block_BD, index_ND.T, out=buffer_BN[: len(block_BD)])
        for query, similarity_N in enumerate(similarity_BN, start):
            same_image = _NOWHERE if positions_of_query is None else positions_of_query[query]
            similarity_N[same_image] = -np.inf
            yield query, similarity_N, similarity_N.size - same_image.size


def _relevant_sorted(similarity_N: FloatArray, relevant_P: IntArray) -> BoolArray:
    """Whether each result is a hit, best first, up to the last hit: the metrics need no more than the hits' ranks."""
    value_P = similarity_N[relevant_P]
    # How many images are better: by one pass for each relevant image, or by sorting once.
    if relevant_P.size <= _MAX_COUNTED:
        num_better_P = np.array([np.count_nonzero(similarity_N > value) for value in value_P], np.int64)
        tied_P = np.ones(relevant_P.size, np.bool_)
    else:
        ascending_N = np.sort(similarity_N)
        end_P = np.searchsorted(ascending_N, value_P, side="right")
        num_better_P = similarity_N.size - end_P
        tied_P = end_P - np.searchsorted(ascending_N, value_P, side="left") > 1
    rank_P = num_better_P  # ranks start at 0
    # Equal similarities: those earlier in the index rank before it.
    for place in np.flatnonzero(tied_P):
        rank_P[place] += np.count_nonzero(similarity_N[: relevant_P[place]] == value_P[place])
    hits = np.zeros(rank_P.max(initial=-1) + 1, np.bool_)
    hits[rank_P] = True
    return hits


def _values_of_query(relevant_sorted: BoolArray, num_relevant: int) -> tuple[float, ...]:
    """The METRICS of one query, in their order."""
    return (
        average_precision(relevant_sorted, num_relevant),
        average_precision(relevant_sorted, num_relevant, 100),
        precision_at(relevant_sorted, num_relevant, 5),
        # Recall@1.
        precision_at(relevant_sorted, num_relevant, 1),
        # MAP@R.
        average_precision(relevant_sorted, num_relevant, num_relevant),
    )


def _chance_values(num_relevant_Q: IntArray, num_ranked_Q: IntArray) -> Float64Array:
    """The expected METRICS of a random ranking for each query: (Q, M)."""
    # Many queries have equal counts: each pair of counts is computed once.
    pairs_P2, place_Q = np.unique(np.stack([num_relevant_Q, num_ranked_Q], axis=1), axis=0, return_inverse=True)
    value_PM = np.zeros((len(pairs_P2), len(METRICS)))
    for value_M, (num_relevant, num_ranked) in zip(value_PM, pairs_P2.tolist(), strict=True):
        if num_relevant:
            share = num_relevant / num_ranked  # of hits, at any rank
            average = [expected_average_precision(num_relevant, num_ranked, k) for k in (None, 100, num_relevant)]
            value_M[:] = average[0], average[1], share, share, average[2]
    return value_PM[place_Q.reshape(-1)]


def _means(value_QM: Float64Array, matched_Q: BoolArray) -> dict[str, float | None]:
    if not matched_Q.any():
        return dict.fromkeys(METRICS)
    return dict(zip(METRICS, value_QM[matched_Q].mean(axis=0).tolist(), strict=True))


def _per_domain(
    value_QM: Float64Array, matched_Q: BoolArray, query_domain: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    return {
        str(domain): _means(value_QM[queries], matched_Q[queries])
        for domain, queries in sorted(_positions(query_domain).items())
    }


def _unweighted_mean(per_domain: dict[str, dict[str, float | None]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for name in METRICS if per_domain else ():
        known = [value for scores in per_domain.values() if (value := scores[name]) is not None]
        means[name] = float(np.mean(known)) if known else None
    return means


def _ci95(
    value_QM: Float64Array, class_Q: Sequence[Hashable], seed: int, num_resamples: int
) -> tuple[dict[str, OptionalInterval], dict[str, OptionalInterval], dict[str, OptionalInterval]]:
    """`ci95`, `ci95_queries` and `ci95_classes` from the values (Q, M) of queries that all have a match."""
    wider, over_queries, over_classes = (dict.fromkeys(METRICS) for _ in range(3))
    if not class_Q:
        return wider, over_queries, over_classes
    has_classes = len(set(class_Q)) > 1  # with one class every resample is the same: an interval without width
    intervals_M = mean_intervals(value_QM, class_Q, seed=seed, num_resamples=num_resamples)
    for name, intervals in zip(METRICS, intervals_M, strict=True):
        wider[name], over_queries[name] = intervals.wider, intervals.over_queries
        over_classes[name] = intervals.over_classes if has_classes else None
    return wider, over_queries, over_classes


def _groups(label: Sequence[str], domain: Sequence[str] | None) -> list[tuple[str, str]]:
    """Domain and label, which two images must share for one to be a hit for the other."""
    return [("", name) for name in label] if domain is None else list(zip(domain, label, strict=True))


def _positions(values: Iterable[Hashable]) -> dict[Hashable, IntArray]:
    """The positions of each value, ascending."""
    places: dict[Hashable, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(value, []).append(place)
    return {value: np.array(positions, np.int64) for value, positions in places.items()}


def _checked_embeddings(query_QD: FloatArray, index_ND: FloatArray) -> tuple[FloatArray, FloatArray]:
    query_QD, index_ND = _checked_embedding("query", query_QD), _checked_embedding("index", index_ND)
    if query_QD.shape[1] != index_ND.shape[1]:
        raise UserError(
            f"query embeddings have {query_QD.shape[1]} dimensions and index embeddings {index_ND.shape[1]}: "
            "embed both with one model"
        )
    return query_QD, index_ND


def _checked_embedding(side: str, embedding_ND: FloatArray) -> FloatArray:
    if embedding_ND.ndim != 2:
        raise UserError(f"{side} embeddings have shape {embedding_ND.shape}: expected (images, dimensions)")
    if embedding_ND.size == 0:
        raise UserError(f"{side} embeddings are empty, shape {embedding_ND.shape}: give at least one image")
    embedding_ND = np.ascontiguousarray(embedding_ND, np.float32)
    if not np.isfinite([embedding_ND.min(), embedding_ND.max()]).all():  # NaN passes through both, and no copy is made
        row = int(np.flatnonzero(~np.isfinite(embedding_ND).all(axis=1))[0])
        raise UserError(f"{side} embeddings hold NaN or infinity, first in row {row}: check that image and the model")
    return embedding_ND


def _check_counts(
    what: str,
    query_values: Sequence[str] | IntArray | None,
    index_values: Sequence[str] | IntArray | None,
    query_QD: FloatArray,
    index_ND: FloatArray,
) -> None:
    if (query_values is None) != (index_values is None):
        raise UserError(f"query_{what} and index_{what} go together: give both or neither")
    for side, values, embedding in (("query", query_values, query_QD), ("index", index_values, index_ND)):
        if values is not None and len(values) != len(embedding):
            raise UserError(f"{side}_{what} has {len(values)} entries for {len(embedding)} images: give one per image")
