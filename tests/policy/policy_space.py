"""A small space of policies and all the requests that can tell them apart, for tests that must not miss a case."""

import gzip
import json
from itertools import product
from pathlib import Path

import msgspec
from hypothesis import strategies as st

from audit_operator.policy.events import Event, decode, split
from audit_operator.policy.model import GroupResources, LabelSelector, Level, Policy, Request, Rule, Stage

DATA = Path(__file__).parents[1] / "data"

_USERS, _GROUPS, _VERBS, _NAMESPACES = ("u", "v"), ("g", "h"), ("get", "create"), ("", "n")
_ITEMS = ("*", "pods", "pods/log", "pods/*", "*/log", "jobs", "*/*")
_PATHS = ("*", "/a", "/a*", "/ab")


def _lists(values: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.one_of(st.just(()), st.lists(st.sampled_from(values), max_size=2, unique=True).map(tuple))


_entries = st.builds(
    GroupResources,
    group=st.sampled_from(["", "apps", "*"]),
    resources=st.lists(st.sampled_from(_ITEMS), min_size=1, max_size=2, unique=True).map(tuple),
    resource_names=_lists(("x",)),
)
_stages = st.frozensets(st.sampled_from(Stage), max_size=2)
_common = {
    "level": st.sampled_from(Level),
    "users": _lists(_USERS),
    "user_groups": _lists(_GROUPS),
    "verbs": _lists(_VERBS),
    "omit_stages": _stages,
    "omit_managed_fields": st.sampled_from([None, None, True, False]),
}
rules = st.one_of(
    st.builds(Rule, **_common, namespaces=_lists(_NAMESPACES), resources=st.lists(_entries, max_size=2).map(tuple)),
    st.builds(Rule, **_common, non_resource_urls=_lists(_PATHS)),
)
policies = st.builds(
    Policy, rules=st.lists(rules, max_size=5).map(tuple), omit_stages=_stages, omit_managed_fields=st.booleans()
)
selecting_rules = st.builds(
    Rule,
    **_common,
    namespaces=_lists(_NAMESPACES),
    resources=st.lists(_entries, max_size=1).map(tuple),
    namespace_selector=st.just(LabelSelector((("tier", "prod"),))),
)


@st.composite
def _confined_rules(draw: st.DrawFn) -> Rule:
    """A rule about some users, groups or namespaces."""
    rule = draw(rules)
    where = {} if rule.non_resource_urls else {"namespaces": _NAMESPACES}
    choices = {"users": _USERS, "user_groups": _GROUPS, **where}
    fields = draw(st.lists(st.sampled_from(sorted(choices)), min_size=1, max_size=2, unique=True))
    said = {field: draw(st.lists(st.sampled_from(choices[field]), min_size=1, unique=True)) for field in fields}
    return msgspec.structs.replace(rule, **{field: tuple(values) for field, values in said.items()})


confined_policies = st.builds(
    Policy,
    rules=st.lists(_confined_rules(), max_size=5).map(tuple),
    omit_stages=_stages,
    omit_managed_fields=st.booleans(),
)

EVERY_REQUEST = [
    Request(user=user, groups=groups, verb=verb, **rest)  # type: ignore[arg-type]
    for user, groups, verb in product((*_USERS, "other", None), ((), ("g",), ("h",), ("g", "h")), (*_VERBS, "other"))
    for rest in (
        *(
            {"namespace": ns, "api_group": group, "resource": res, "subresource": sub, "name": name}
            for ns, group, (res, sub), name in product(
                (*_NAMESPACES, "o"),
                ("", "apps", "o"),
                (("pods", ""), ("pods", "log"), ("pods", "o"), ("jobs", ""), ("jobs", "log"), ("o", "o"), ("*", "")),
                ("x", "o"),
            )
        ),
        *({"is_resource": False, "path": path} for path in ("/a", "/ab", "/aa", "/o")),
    )
]
"""Over all values that the rules above name, and one more per field."""


def recorded_events() -> list[Event]:
    """2,744 events of a real kube-apiserver 1.36."""
    with gzip.open(DATA / "audit-eventlists.jsonl.gz") as lines:
        return [decode(raw) for line in lines for raw in split(line)]


def server_decisions() -> list[dict[str, object]]:
    """200 policies with 5,000 decisions of a real kube-apiserver 1.36."""
    with gzip.open(DATA / "policy-match.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]
