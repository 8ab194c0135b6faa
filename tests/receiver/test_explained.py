"""What reaches the sinks is what `audit-operator explain` says: recorded traffic, the policies of examples/.

Events are cut here once more, as simply as can be, to what an API server with the rendered policy would have recorded,
and then to what explain says each sink gets.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop
from receiving import event, event_list, eventually, receiving, recorded, sink

from audit_operator.cli.policies import Setting, Setup, load_setup
from audit_operator.policy.events import decode, split
from audit_operator.policy.model import Level, Stage
from audit_operator.policy.request import request_of

if TYPE_CHECKING:
    from audit_operator.policy.explain import Verdict

EXAMPLES = Path(__file__).parents[2] / "examples"
LEVELS = {str(level): level for level in Level}
PLANTED = "cGxhbnRlZC1oZXJl"
BODIES = ("requestObject", "responseObject")
MINIMAL = {
    "level", "auditID", "stage", "verb", "user", "objectRef", "requestURI", "responseStatus", "stageTimestamp",
}  # fmt: skip


def examples() -> Setup:
    return load_setup(
        [str(EXAMPLES / name) for name in ("namespaces.yaml", "platform", "tenants")],
        Setting(),
    )


def cut(found: dict[str, Any], level: Level) -> dict[str, Any]:
    """As an API server records it at this level."""
    gone = {Level.METADATA: BODIES, Level.REQUEST: BODIES[1:]}.get(level, ())
    found = {key: value for key, value in found.items() if key not in gone} | {"level": str(level)}
    if level is Level.METADATA and "annotations" in found:
        kept = {
            key: value for key, value in found["annotations"].items() if not key.startswith("patch.webhook.admission")
        }
        found.pop("annotations")
        found |= {"annotations": kept} if kept else {}
    return found


def planted() -> Iterator[dict[str, Any]]:
    """Secrets in every place where policies of examples/ see bodies."""
    secret = {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "db"}, "data": {"p": PLANTED}}
    env = {"containers": [{"name": "c", "env": [{"name": "P", "value": PLANTED}]}]}
    places: list[tuple[str, str, dict[str, Any]]] = [
        ("", "secrets", secret),
        ("", "configmaps", {**secret, "kind": "ConfigMap"}),
        ("", "pods", {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "db"}, "spec": env}),
        (
            "apps",
            "deployments",
            {
                "kind": "Deployment",
                "apiVersion": "apps/v1",
                "metadata": {"name": "db"},
                "spec": {"template": {"spec": env}},
            },
        ),
        ("", "pods", {"kind": "List", "apiVersion": "v1", "items": [secret]}),
        (
            "",
            "services",
            {
                "kind": "Service",
                "apiVersion": "v1",
                "metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": json.dumps(secret)}},
            },
        ),
    ]
    number = 0
    for namespace in ("audit-system", "team-a", "team-b", "default"):
        for group, resource, body in places:
            for verb in ("create", "update", "patch", "get"):
                number += 1
                prefix = f"/apis/{group}/v1" if group else "/api/v1"
                uri = f"{prefix}/namespaces/{namespace}/{resource}" + ("" if verb == "create" else "/db")
                yield event(
                    number,
                    verb=verb,
                    requestURI=uri,
                    objectRef={
                        "resource": resource, "namespace": namespace, "name": "db", "apiVersion": "v1",
                        **({"apiGroup": group} if group else {}),
                    },
                    responseObject=body,
                    **({} if verb == "get" else {"requestObject": body}),
                )  # fmt: skip


def test_sinks_get_what_explain_says_and_no_secret(tmp_path: Path) -> None:
    setup = examples()
    assert setup.plan is not None
    key = tmp_path / "hash-key"
    key.write_bytes(b"k" * 32)
    program = msgspec.structs.replace(
        setup.plan.program,
        sinks=tuple(sink(each.name, each.namespace) for each in setup.plan.program.sinks),
        hash_key_file=str(key),
    )
    raw = [bytes(item) for body in recorded() for item in split(body)]
    raw += [json.dumps(each, separators=(",", ":")).encode() for each in planted()]
    sent: list[bytes] = []
    predicted: dict[str, list[tuple[dict[str, Any], Level, list[Verdict]]]] = {
        f"{each.namespace}/{each.name}": [] for each in program.sinks
    }
    for item in raw:
        explained = setup.explainer.explain(request_of(decode(item)))
        whole = json.loads(item)
        stage, level = Stage(whole["stage"]), min(explained.server.level, LEVELS[whole["level"]])
        if level is Level.NONE or stage in explained.server.omit_stages:
            continue
        of_server = cut(whole, level)
        sent.append(json.dumps(of_server, separators=(",", ":"), ensure_ascii=False).encode())
        for name, expected in predicted.items():
            verdicts = [each for each in explained.policies if name in each.sinks and stage in each.stages]
            if verdicts:
                expected.append((of_server, min(level, max(each.level for each in verdicts)), verdicts))

    async def whole_way() -> None:
        async with receiving(tmp_path, program) as receiver:
            for start in range(0, len(sent), 400):
                assert await receiver.post(event_list(*sent[start : start + 400])) == 200
            logs = receiver.receiver.journal.logs
            await eventually(lambda: not any(log.backlog for log in logs.values()))
            assert not (await receiver.status())["notCovered"]

    uvloop.run(whole_way())
    assert all(predicted.values()), "each sink of examples/ gets something"
    for name, expected in predicted.items():
        path = tmp_path / "files" / f"{name}.log"
        text = path.read_bytes()
        assert PLANTED.encode() not in text
        got = [json.loads(line) for line in text.splitlines()]
        assert [each["auditID"] + each["stage"] for each in got] == [
            each["auditID"] + each["stage"] for each, _, _ in expected
        ]
        for (before, level, verdicts), after in zip(expected, got, strict=True):
            assert after["level"] == str(level)
            if level is Level.MINIMAL:
                assert set(after) <= MINIMAL
                continue
            wanted = cut(before, level)
            assert list(after) == list(wanted)
            for key, value in wanted.items():
                if key not in (*BODIES, "annotations", "responseStatus"):
                    assert after[key] == value, key
            bodies = [each for each in verdicts if each.level >= Level.REQUEST]
            if bodies and all(each.decision.omit_managed_fields for each in bodies) and before["verb"] != "patch":
                assert not any("managedFields" in after.get(key, {}).get("metadata", {}) for key in BODIES)
