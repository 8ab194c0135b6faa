"""`audit-operator diff` shows what is recorded differently, and 0 is a proof that nothing is."""

import json
from pathlib import Path

import pytest
from commands import CLUSTER, EXAMPLES, assert_golden, call, write

from audit_operator.policy.witness import MOST_RULES

POLICY = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Metadata\n"
TODAY, TOMORROW = (EXAMPLES / f"policy-files/{name}.yaml" for name in ("today", "tomorrow"))


def test_each_difference_comes_with_a_request_that_proves_it() -> None:
    result = call("diff", TODAY, TOMORROW, "-o", "json")
    assert result.code == 1
    (difference,) = json.loads(result.out)
    assert (difference["before"], difference["after"]) == (str(TODAY), str(TOMORROW))
    requests = "\n".join(json.dumps(change["request"]) for change in difference["changes"])
    for side, policy in (("before", TODAY), ("after", TOMORROW)):
        answers = call("explain", "-f", policy, "--requests", "-", "-o", "json", stdin=requests).out.splitlines()
        for change, answer in zip(difference["changes"], map(json.loads, answers), strict=True):
            assert {**change[side], "rule": answer["rule"]} == {key: answer[key] for key in change[side]}


def test_a_policy_written_differently_that_records_the_same_has_no_difference(tmp_path: Path) -> None:
    a = write(tmp_path / "a.yaml", POLICY)
    b = write(
        tmp_path / "b.yaml", POLICY + '  nonResourceURLs: ["*"]\n- level: Metadata\n  resources: [{group: "*"}]\n'
    )
    assert call("diff", a, b) == (0, "No request is recorded differently.\n", "")
    assert call("diff", a, "-", "-o", "json", stdin=POLICY) == (0, "[]\n", "")


def test_sets_are_compared_policy_by_policy_with_what_api_servers_record(tmp_path: Path) -> None:
    text = CLUSTER.read_text(encoding="utf-8")
    changed = text.replace("level: Minimal", "level: Request").replace("name: own,", "name: other,")
    changed = changed.replace("action: Mask", "action: Remove").replace(
        "{name: archive}, {name: siem}", "{name: archive}"
    )
    after = write(tmp_path / "cluster.yaml", changed)
    found = {
        each["after"] or each["before"]: each for each in json.loads(call("diff", CLUSTER, after, "-o", "json").out)
    }
    assert set(found) == {"audit-system/changes", "audit-system/security", "team-b/own", "team-b/other", "API servers"}
    assert found["audit-system/changes"]["delivery"] == ["no longer to sink audit-system/siem"]
    assert found["audit-system/security"]["delivery"] == ["redactions: 1 new, 1 gone"]
    assert found["audit-system/security"]["changes"] == []
    assert (found["team-b/own"]["after"], found["team-b/other"]["before"]) == (None, None)
    levels = [
        (change["before"]["level"], change["after"]["level"]) for change in found["audit-system/changes"]["changes"]
    ]
    assert levels == [("Minimal", "Request")]


def test_stages_and_managed_fields_are_differences_too(tmp_path: Path) -> None:
    a = write(tmp_path / "a.yaml", POLICY.replace("Metadata", "Request"))
    b = write(
        tmp_path / "b.yaml", POLICY.replace("Metadata", "Request\n  omitStages: [Panic]\n  omitManagedFields: true")
    )
    result = call("diff", a, b)
    assert result.code == 1
    assert "~ Request, now without Panic, without managedFields: " in result.out


def test_the_answer_for_people_is_the_golden_one() -> None:
    result = call("diff", TODAY, TOMORROW)
    assert_golden("diff.txt", result.out.replace(f"{EXAMPLES}/", ""))


def test_what_cannot_be_read_is_no_difference(tmp_path: Path) -> None:
    assert call("diff", TODAY, tmp_path / "nope.yaml").code == 2


def test_policies_that_cannot_be_compared_are_not_said_to_be_the_same(tmp_path: Path) -> None:
    head = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n"
    long = write(tmp_path / "long.yaml", head + "- {level: None}\n" * (MOST_RULES + 1))
    short = write(tmp_path / "short.yaml", head + "- {level: Metadata}\n")
    result = call("diff", long, short)
    assert result.code == 1
    assert result.out.endswith("Whether there are changes is not known.\n")
    (answer,) = json.loads(call("diff", long, short, "-o", "json").out)
    assert (answer["complete"], answer["changes"]) == (False, [])


BACKEND = "apiVersion: audit-operator.dev/v1alpha1\nkind: AuditBackend\nmetadata: {name: default}\n"
SINK = "apiVersion: audit-operator.dev/v1alpha1\nkind: AuditSink\nmetadata: {name: s, namespace: audit-system}\n"


def test_what_is_invalid_proves_nothing(tmp_path: Path) -> None:
    """Whichever side it is on: what is running instead of it is not known here."""
    head = "apiVersion: audit-operator.dev/v1alpha1\nkind: AuditPolicy\nmetadata: {name: a, namespace: audit-system}\n"
    good = write(tmp_path / "good.yaml", f"{head}spec: {{rules: [{{level: Metadata}}]}}\n")
    bad = write(tmp_path / "bad.yaml", f"{head}spec: {{rules: [{{level: Everything}}]}}\n")
    for sides in ((good, bad), (bad, good), (bad, bad)):
        result = call("diff", *sides)
        assert result.code == 2
        assert "error: nothing is proved without AuditPolicy audit-system/a: not valid, or not counting" in result.err
        assert "No request" not in result.out


def test_a_tenant_that_does_not_count_proves_nothing(tmp_path: Path) -> None:
    head = "apiVersion: audit-operator.dev/v1alpha1\nkind: AuditPolicy\nmetadata: {name: a, namespace: team-a}\n"
    path = write(tmp_path / "p.yaml", f"{head}spec: {{rules: [{{level: Metadata}}]}}\n")
    assert call("diff", path, path).code == 2


@pytest.mark.parametrize(
    ("document", "before", "after", "said"),
    [
        (BACKEND, "clusterName: a", "clusterName: a, webhook: {enabled: false}", "spec.webhook.enabled: true → false"),
        (BACKEND, "clusterName: a, log: {maxAge: 7}", "clusterName: a, log: {maxAge: 1}", "spec.log.maxAge: 7 → 1"),
        (
            SINK,
            "objectStore: {s3: {bucket: archive, region: r, objectLock: {mode: Compliance, retentionDays: 2555}}}",
            "objectStore: {s3: {bucket: archive, region: r, objectLock: {mode: Compliance, retentionDays: 1}}}",
            "spec.objectStore.s3.objectLock.retentionDays: 2555 → 1",
        ),
        (
            SINK,
            "file: {path: a/b.log, integrity: {signingKey: {name: k, key: k.pem}}}",
            "file: {path: a/b.log}",
            "spec.file.integrity.signingKey.name: k → not set",
        ),
    ],
)
def test_settings_of_backends_and_sinks_are_compared(
    document: str, before: str, after: str, said: str, tmp_path: Path
) -> None:
    a = write(tmp_path / "a.yaml", f"{document}spec: {{{before}}}\n")
    b = write(tmp_path / "b.yaml", f"{document}spec: {{{after}}}\n")
    assert call("diff", a, a) == (0, "No request is recorded differently.\n", "")
    result = call("diff", a, b)
    assert result.code == 1
    assert f"  {said}\n" in result.out
    path = said.split(":", maxsplit=1)[0]
    (answer,) = json.loads(call("diff", a, b, "-o", "json").out)
    assert path in [setting["path"] for setting in answer["settings"]]


def test_a_sink_that_is_gone_is_a_change(tmp_path: Path) -> None:
    both = write(tmp_path / "a.yaml", f"{BACKEND}spec: {{clusterName: a}}\n---\n{SINK}spec: {{stdout: {{}}}}\n")
    one = write(tmp_path / "b.yaml", f"{BACKEND}spec: {{clusterName: a}}\n")
    result = call("diff", both, one)
    assert result.code == 1
    assert result.out == "AuditSink audit-system/s: gone\n\n1 change\n"
