"""What should have arrived by `explain`'s evaluator, what did, and whether a planted value is among it."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from audit_operator.policy.events import event_of
from audit_operator.policy.explain import Explainer
from audit_operator.policy.model import Level, Stage
from audit_operator.policy.request import request_of

Key = tuple[str, str, str]
"""auditID, stage, stageTimestamp."""


class Expected(NamedTuple):
    """``by_policy``: the events that a policy sends to a sink. ``by_sink``: at which level a sink gets them."""

    by_policy: Mapping[tuple[str, str], frozenset[Key]]
    by_sink: Mapping[str, Mapping[Key, Level]]


def expected(explainer: Explainer, bodies: Iterable[bytes]) -> Expected:
    """What follows from these POSTs."""
    by_policy: dict[tuple[str, str], set[Key]] = defaultdict(set)
    by_sink: dict[str, dict[Key, Level]] = defaultdict(dict)
    for body in bodies:
        for item in json.loads(body)["items"]:
            for verdict in explainer.explain(request_of(event_of(item))).policies:
                if Stage(item["stage"]) in verdict.stages and verdict.level is not Level.NONE:
                    key = key_of(item)
                    for sink in verdict.sinks:
                        by_policy[verdict.name, sink].add(key)
                        by_sink[sink][key] = max(verdict.level, by_sink[sink].get(key, Level.NONE))
    return Expected({pair: frozenset(keys) for pair, keys in by_policy.items()}, by_sink)


def key_of(event: Mapping[str, Any]) -> Key:
    """What tells it from others."""
    return event["auditID"], event["stage"], event["stageTimestamp"]


class Arrived(NamedTuple):
    """What a sink has: events as often as they came, and how many lines are none."""

    events: Sequence[Mapping[str, Any]]
    broken: int


class PolicyRow(NamedTuple):
    """Events that a policy sends to a sink, and how many of them are there."""

    policy: str
    sink: str
    asked: int
    there: int


class SinkRow(NamedTuple):
    """What a sink has. ``events``: different ones. ``lost``: asked for and not there; ``twice``: came again;
    ``unasked``: no policy sends them; ``otherwise``: at another level than explained; ``broken``: lines that are none.
    """

    sink: str
    kind: str
    events: int
    lost: int
    twice: int
    unasked: int
    otherwise: int
    broken: int
    levels: Mapping[str, int]


class Sent(NamedTuple):
    """What the API servers did: POSTs that were taken, attempts that were repeated, POSTs that they gave up."""

    posts: int
    events: int
    repeated: int
    given_up: int


class Search(NamedTuple):
    """A place that was searched for planted values."""

    place: str
    size: int
    found: int


class Findings(NamedTuple):
    """All of it. ``planted``: values that were sent as secrets. ``left``: events that the receiver did not deliver."""

    sent: Sent
    policies: tuple[PolicyRow, ...]
    sinks: tuple[SinkRow, ...]
    planted: int
    searches: tuple[Search, ...]
    left: int
    ended_well: bool

    @property
    def leaked(self) -> int:
        """Planted values that were found."""
        return sum(search.found for search in self.searches)

    @property
    def lost(self) -> int:
        """Acknowledged events that are missing in sinks."""
        return sum(row.lost for row in self.sinks)

    @property
    def twice(self) -> int:
        """Events that sinks got again."""
        return sum(row.twice for row in self.sinks)

    def failures(self) -> list[str]:
        """What did not hold, in sentences; none: everything did."""
        found = []
        for row in self.sinks:
            for number, what in (
                (row.lost, "that were acknowledged are missing"),
                (row.unasked, "that no policy asks for are there"),
                (row.otherwise, "are there at another level than explained"),
                (row.broken, "cannot be read"),
            ):
                if number:
                    found.append(f"{row.sink}: {number:,} events {what}")
        found += [f"{each.place}: {each.found:,} planted values" for each in self.searches if each.found]
        if self.sent.given_up:
            found.append(f"API servers gave up {self.sent.given_up} POSTs: the receiver was away for too long")
        if not self.planted:
            found.append("no secret was sent, so that none could leak")
        if self.left:
            found.append(f"{self.left:,} events still wait in the receiver's journal")
        if not self.ended_well:
            found.append("the receiver did not end well; its log says why")
        return found


def policy_rows(wanted: Expected, arrived: Mapping[str, Arrived]) -> tuple[PolicyRow, ...]:
    """One for each policy and sink of it."""
    there = {sink: {key_of(event) for event in what.events} for sink, what in arrived.items()}
    return tuple(
        PolicyRow(policy, sink, len(keys), len(keys & there.get(sink, set())))
        for (policy, sink), keys in sorted(wanted.by_policy.items())
    )


def sink_row(sink: str, kind: str, acknowledged: Expected, sent: Expected, arrived: Arrived) -> SinkRow:
    """``acknowledged``: what must be there; ``sent``: what may be, for a POST can be taken and its answer be lost."""
    must, may = acknowledged.by_sink.get(sink, {}), sent.by_sink.get(sink, {})
    levels = {key_of(event): Level.parse(event["level"]) for event in arrived.events}
    return SinkRow(
        sink=sink,
        kind=kind,
        events=len(levels),
        lost=len(must.keys() - levels.keys()),
        twice=len(arrived.events) - len(levels),
        unasked=len(levels.keys() - may.keys()),
        otherwise=sum(levels[key] is not may[key] for key in levels.keys() & may.keys()),
        broken=arrived.broken,
        levels={str(level): count for level, count in sorted(Counter(levels.values()).items())},
    )
