"""The same validation everywhere: the CEL that API servers evaluate and the predicates that pydantic runs agree."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structural
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit_operator.resources.crd import schemas
from audit_operator.resources.load import ResourceError, load_resource

Json = dict[str, Any]
SCHEMAS = schemas()
DATA = Path(__file__).parents[1] / "data" / "resources"
GROUPS = yaml.safe_load((DATA / "rules.yaml").read_text())


def document(kind: str, spec: Json, name: str = "default") -> Json:
    return {"apiVersion": "audit-operator.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def rules(schema: Json) -> Iterator[tuple[str, str]]:
    """(message, rule) of every CEL rule in a schema."""
    for rule in schema.get("x-kubernetes-validations", ()):
        yield rule["message"], rule["rule"]
    for field in (*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")):
        if isinstance(field, dict):
            yield from rules(field)


def problems(found: Json) -> set[structural.Refusal]:
    try:
        load_resource(found)
    except ResourceError as error:
        return {structural.Refusal(problem.path, problem.message) for problem in error.problems}
    return set()


ACCEPTED = [
    pytest.param(document(group["kind"], spec), id=f"{group['message'][:40]}-{number}")
    for group in GROUPS
    for number, spec in enumerate(group["accepted"])
]
REJECTED = [
    pytest.param(
        document(group["kind"], spec, group.get("name", "default")),
        group["message"],
        group["at"],
        id=f"{group['message'][:40]}-{number}",
    )
    for group in GROUPS
    for number, spec in enumerate(group["rejected"])
]


@pytest.mark.parametrize("found", ACCEPTED)
def test_what_obeys_a_rule_is_accepted_by_cel_and_by_the_models(found: Json) -> None:
    verdict = structural.judge(SCHEMAS[found["kind"]], found)

    assert verdict.accepted, verdict
    assert problems(found) == set()


@pytest.mark.parametrize(("found", "message", "at"), REJECTED)
def test_what_breaks_a_rule_breaks_only_that_one_in_cel_and_in_the_models(found: Json, message: str, at: str) -> None:
    verdict = structural.judge(SCHEMAS[found["kind"]], found)

    assert verdict.schema == ()
    assert [refusal.path for refusal in verdict.rules] == [at]
    assert verdict.rules[0].message.startswith(message)
    assert problems(found) == set(verdict.rules)


def test_every_rule_has_accepted_and_rejected_cases() -> None:
    said = {message for schema in SCHEMAS.values() for message, _ in rules(schema)}
    shown = {group["message"] for group in GROUPS if group["accepted"] and group["rejected"]}

    assert {message for message in said if not any(message.startswith(start) for start in shown)} == set()
    assert {start for start in shown if not any(message.startswith(start) for message in said)} == set()


def test_rules_use_nothing_that_came_after_kubernetes_1_28() -> None:
    known = {"has", "size", "matches", "startsWith", "contains", "all", "exists_one", "filter", "duration"}
    for schema in SCHEMAS.values():
        for _, rule in rules(schema):
            bare = re.sub(r"'[^']*'", "''", rule)
            assert set(re.findall(r"([A-Za-z_]+)\(", bare)) <= known, rule


@pytest.mark.parametrize("kind", SCHEMAS)
def test_messages_and_field_paths_are_what_an_api_server_takes(kind: str) -> None:
    def check(schema: Json) -> None:
        for rule in schema.get("x-kubernetes-validations", ()):
            assert rule["message"] == rule["message"].strip()
            assert "\n" not in rule["message"]
            assert len(rule["message"]) <= 2048
            target = schema
            for name in rule.get("fieldPath", "").split(".")[1:]:
                target = target["properties"][name]
        for field in (*schema.get("properties", {}).values(), schema.get("items")):
            if field:
                check(field)

    check(SCHEMAS[kind])


# --- anything else: documents drawn from the schemas, good and bad, judged by both -----------------------------------

STRINGS = [
    *re.findall(
        r"\S+",
        """a A a-b -a a.b * a/b /a* /a*b 10s 1m30s 2m 1.5s 10Gi 1x 500m é X-A Cookie projects/p {cluster}/%Y %Z {x}
        https://a http://a:80/x?y https://u:p@a ftp://a https:// a:9093 [::1]:9 ::1 10.0.0.1 300.0.0.1 10.0.0.0/8
        arn:aws:iam::123456789012:role/x spec.users[*].key spec..a a["b.c/d"]
        age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p""",
    ),
    *("", "https://a b", "a" * 64, "a" * 600, "-----BEGIN CERTIFICATE-----", "PRIVATE KEY"),
]
STRAY = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 400), st.sampled_from(STRINGS), st.builds(list), st.builds(dict)
)


def values(schema: Json) -> st.SearchStrategy[Any]:
    """Mostly values of the schema's type, not always within its bounds."""
    return st.one_of(*[_typed(schema)] * 30, STRAY)


def _typed(schema: Json) -> st.SearchStrategy[Any]:
    if schema.get("x-kubernetes-int-or-string"):
        return st.one_of(st.integers(0, 5), st.sampled_from(["10Gi", "500m", "1x", "-1"]))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema["type"]:
        case "boolean":
            return st.booleans()
        case "integer":
            low, high = schema.get("minimum", 0), schema.get("maximum", 1000)
            return st.sampled_from([low, high, low + 1, low - 1, high + 1])
        case "string":
            pattern, least = schema.get("pattern", ""), schema.get("minLength", 0)
            good = [text for text in STRINGS if re.search(pattern, text) and least <= len(text) < 500]
            return st.one_of(*[st.sampled_from(good or STRINGS)] * 20, st.sampled_from(STRINGS))
        case "array":
            return st.lists(values(schema["items"]), max_size=3)
        case _ if "additionalProperties" in schema:
            return st.dictionaries(st.sampled_from(["a", "b"]), values(schema["additionalProperties"]), max_size=2)
        case _:
            return _objects(schema)


def _objects(schema: Json) -> st.SearchStrategy[Json]:
    fields = {name: values(field) for name, field in schema.get("properties", {}).items()}
    required = schema.get("required", [])

    @st.composite
    def draw_object(draw: st.DrawFn) -> Json:
        optional = [name for name in fields if name not in required]
        chosen = draw(st.lists(st.sampled_from(optional), max_size=3, unique=True)) if optional else []
        names = [*(name for name in required if draw(st.integers(0, 50))), *chosen]
        return {name: draw(fields[name]) for name in names}

    return draw_object()


@st.composite
def variations(draw: st.DrawFn, kind: str) -> Json:
    """A spec of rules.yaml with one or two fields, anywhere in it, given another value, added or taken away."""
    groups = [group for group in GROUPS if group["kind"] == kind]
    spec = copy.deepcopy(draw(st.sampled_from([spec for group in groups for spec in group["accepted"]])))
    for _ in range(draw(st.integers(1, 2))):
        schema, place = draw(st.sampled_from(list(_places(SCHEMAS[kind]["properties"]["spec"], spec))))
        name = draw(st.sampled_from(list(schema["properties"])))
        if name in place and draw(st.booleans()):
            del place[name]
        else:
            place[name] = draw(values(schema["properties"][name]))
    return spec


def _places(schema: Json, value: Any) -> Iterator[tuple[Json, Json]]:
    """Every object in the value that has fields, with its schema."""
    if isinstance(value, dict) and schema.get("properties"):
        yield schema, value
        for name, item in value.items():
            yield from _places(schema["properties"].get(name, {}), item)
    elif isinstance(value, list):
        for item in value:
            yield from _places(schema.get("items", {}), item)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_models_and_crds_accept_the_same_documents(kind: str) -> None:
    verdicts = {True: 0, False: 0}

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.one_of(variations(kind), variations(kind), _objects(SCHEMAS[kind]["properties"]["spec"])))
    def agree(spec: Json) -> None:
        found = document(kind, spec)
        verdict = structural.judge(SCHEMAS[kind], found)
        refused = problems(found)
        verdicts[verdict.accepted] += 1
        assert (not refused) == verdict.accepted, (verdict, refused)
        if verdict.rules:
            # The models look at an object's own rules only when all its fields are right.
            assert refused <= set(verdict.rules)

    agree()
    assert min(verdicts.values()) > 20, f"the strategy draws too few documents of one sort: {verdicts}"


def test_cel_of_the_tests_is_a_real_one() -> None:
    assert structural.holds("duration(self) == duration('90s')", "1m30s")
    assert not structural.holds("self.a == 1", {})
