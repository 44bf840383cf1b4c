"""How sure a share is above a bound, however often one looks. Pure.

Invariant: while the true share is at most the bound, the evidence exceeds a given size `c` at any time, over all looks
together, with a probability of at most 1/c. A test for one look would not do: a canary is looked at every second, and
what is unlikely at each look becomes likely at one of a thousand.

The evidence is the likelihood of what was seen under shares above the bound, the mean over some of them, divided by
that under the bound itself. Such a ratio is a nonnegative supermartingale that begins at 1, to which Ville's inequality
applies (Wald's sequential test is the case of a single alternative; Robbins' method of mixtures takes several, so that
both a little and a lot too much are found soon). It takes requests to fail independently; a burst counts for more than
it is worth, and then takes back a version that might have been spared.
"""

from __future__ import annotations

import math

CERTAIN = 1000.0
"""How often right for each time wrong: a version that is as bad as allowed is taken back by a gate once in a thousand
steps at most."""
_TIMES = (1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1e3, 1e5)
"""The alternatives: the odds of the bound, times these."""


def evidence(failed: int, asked: int, bound: float) -> float:
    """That more than `bound` (0 to 1) of requests fail, after `failed` of `asked` did; 0 while it is not above. With a
    bound of 0 the first failure proves it."""
    if bound >= 1 or failed <= asked * bound:
        return 0.0
    if bound <= 0:
        return math.inf
    odds = bound / (1 - bound)
    logs = []
    for times in _TIMES:
        share = odds * times / (1 + odds * times)
        logs.append(failed * math.log(share / bound) + (asked - failed) * math.log((1 - share) / (1 - bound)))
    largest = max(logs)
    if largest > 700:
        return math.inf
    return math.exp(largest) * sum(math.exp(one - largest) for one in logs) / len(logs)


def certain(failed: int, asked: int, bound: float) -> bool:
    """Whether it is above, for all practical purposes."""
    return evidence(failed, asked, bound) >= CERTAIN
