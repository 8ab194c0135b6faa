"""`audit-operator diff` shows what is recorded differently, and 0 is a proof that nothing is."""

import json
from pathlib import Path

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
