"""Estimates how long the rest of a training run takes, from its latest steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

RECENT_SECONDS = 120.0  # older steps are not counted: a run may become faster or slower than it began


class TimeLeft:
    """`step_costs` gives the relative cost of each step of the run, in any unit: steps on larger images take longer.

    Moments are in seconds, of any monotonic clock. `started_s` is the moment at which step `first_step` began.
    """

    def __init__(self, step_costs: Sequence[float], *, first_step: int, started_s: float) -> None:
        self.first_step = first_step
        self.cost_until_S = np.concatenate([[0.0], np.cumsum(step_costs)])
        self.recent = deque([(started_s, first_step)])  # moments, with the number of steps that were done

    def add(self, num_done: int, now_s: float) -> None:
        """Notes that `num_done` steps of the run are done now."""
        # The first step is slow (allocations, caches): it is left out as soon as there is a second one.
        if len(self.recent) == 2 and self.recent[0][1] == self.first_step:
            self.recent.popleft()
        self.recent.append((now_s, num_done))
        while len(self.recent) > 2 and now_s - self.recent[1][0] > RECENT_SECONDS:
            self.recent.popleft()

    def seconds(self, num_done: int, now_s: float) -> float:
        """Seconds that the steps after `num_done` take at the speed of the recent ones."""
        since_s, since_step = self.recent[0]
        cost_done = self.cost_until_S[num_done] - self.cost_until_S[since_step]
        cost_left = self.cost_until_S[-1] - self.cost_until_S[num_done]
        return float((now_s - since_s) * cost_left / max(cost_done, 1e-9))
