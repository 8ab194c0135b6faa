"""What is wrong with a policy file as a file: why API servers refuse it, and what they swallow."""

import re
from collections.abc import Iterator

import msgspec

from audit_operator.policy.findings import Finding, Place, Severity
from audit_operator.policy.load import GROUP_STAR_SINCE, LEVELS, Fault, Loaded, StrictProblem, suggest
from audit_operator.policy.model import STAGES


def file_findings(loaded: Loaded, *, version_known: bool) -> Iterator[Finding]:
    """Findings on the file itself. ``version_known``: somebody said which version of API server it is for."""
    place = Place(loaded.document)
    yield from (_rejected(fault) for fault in loaded.faults)
    yield from (_swallowed(place, problem) for problem in loaded.problems)
    for line, column in loaded.extra_documents:
        found = place.finding(
            "extra-document",
            "an API server uses the first document of the file and ignores this one",
            "move its rules into the first document, or into a file of its own",
        )
        yield _moved(found, line, column)
    if not version_known:
        yield from _group_star(place, loaded)


def _moved(finding: Finding, line: int, column: int, path: str = "") -> Finding:
    return msgspec.structs.replace(finding, path=path, line=line, column=column)


def _group_star(place: Place, loaded: Loaded) -> Iterator[Finding]:
    for number, rule in enumerate(loaded.policy.rules if loaded.policy else ()):
        for index, entry in enumerate(rule.resources):
            if entry.group == "*":
                yield place.at("rules", number, "resources", index, "group").finding(
                    "group-star",
                    'group "*" exists from Kubernetes 1.36 on; an older API server does not start with this file',
                    "name the groups, or say with --kubernetes-version that the API servers are new enough",
                )
                return


# -- what the API server swallows ------------------------------------------------------------------------------------


def _swallowed(place: Place, problem: StrictProblem) -> Finding:
    if problem.kind == "unknown":
        message = f"there is no field {problem.field}; API servers ignore it and everything below it"
        fix = f"write {problem.suggestion}" if problem.suggestion else "remove it, or write what it was meant to say"
        found = place.finding("unknown-field", message, fix, severity=_weight(problem))
    elif problem.kind == "duplicate":
        message = f"{problem.field} stands twice; the value of line {problem.winner_line} counts, this one is lost"
        found = place.finding("duplicate-field", message, "keep one of the two, or make one value of both")
    else:
        message = (
            f"{problem.field} is replaced by the value of line {problem.winner_line}: API servers take << as if its "
            "fields stood there, and the last value counts"
        )
        found = place.finding("merge-replaced", message, "give the field once, or put << first if it is a default")
    return _moved(found, problem.line, problem.column, problem.path)


def _weight(problem: StrictProblem) -> Severity | None:
    """An unknown field outside of rules that is no misspelling is a note, or an anchor: it changes nothing."""
    harmless = not problem.path.startswith("rules") and not problem.suggestion
    return Severity.INFO if harmless else None


# -- what it refuses -------------------------------------------------------------------------------------------------


def _rejected(fault: Fault) -> Finding:
    message = _FIELD.sub("", fault.message)  # the finding's path says it, and more exactly
    found = Place().finding("rejected", message, _way_out(fault))
    return _moved(found, fault.line, fault.column, fault.path)


_FIELD = re.compile(r"^[\w.\[\]]+: (?=Invalid value|Unsupported value|Required value)")


def _way_out(fault: Fault) -> str:
    """What to write instead of what an API server refuses."""
    message = fault.message
    for pattern, way_out in _WAYS_OUT:
        if match := re.search(pattern, message):
            return way_out(match) if callable(way_out) else way_out
    return "correct it; no API server starts with this file"


def _level(match: re.Match[str]) -> str:
    if match[1] == "Minimal":
        return "write Metadata: Minimal exists only in AuditPolicy resources, where the receiver cuts events"
    near = suggest(match[1], LEVELS)
    return f"write {near}" if near else f"write one of {', '.join(LEVELS)}"


def _stage(match: re.Match[str]) -> str:
    near = suggest(match[1], STAGES)
    return f"write {near}" if near else f"write one of {', '.join(STAGES)}"


def _group(match: re.Match[str]) -> str:
    group = match[1]
    if group == "*":
        since = ".".join(map(str, GROUP_STAR_SINCE))
        return f'name the groups one by one: "*" is a group only from Kubernetes {since} on'
    if "*" in group:
        return "name the groups one by one: a group is compared exactly"
    if "/" in group:
        return f"write the group without the version: {group.partition('/')[0]}"
    if group != group.lower():
        return f"write {group.lower()}"
    return "write the API group's name, such as apps or rbac.authorization.k8s.io"


def _wrong_type(match: re.Match[str]) -> str:
    found, wanted = match[1].split()[0], match[2]
    if wanted.startswith("[]"):
        return "write a list, such as [a, b]"
    if wanted in {"string", "v1.Level", "v1.Stage", "types.UID"} and found in {"number", "bool"}:
        return "put it in quotes: YAML reads this as a number or a boolean, not as text"
    if wanted == "bool":
        return "write true or false, without quotes"
    if wanted == "v1.GroupResources":
        return 'write {group: ..., resources: [...]}; the core group is ""'
    return "write an object with fields" if wanted.startswith("v1.") else f"write a {wanted}"


_WAYS_OUT = (
    (r"level: Unsupported value: \"(.*?)\":", _level),
    (r"level: Required value", f"add level: {', '.join(LEVELS)}"),
    (r"Invalid value: \"(.*)\": allowed stages", _stage),
    (r"resources\.group: Invalid value: \"(.*)\": ", _group),
    (r"using resourceNames requires", "add resources, such as [pods]; resourceNames are looked for in those only"),
    (r"must begin with a '/'", "begin it with /, or write * for every path"),
    (r"must be the final character", "keep one * at the end, as in /healthz*; there are no others"),
    (r"cannot apply to both", "make two rules: one with nonResourceURLs, one with resources or namespaces"),
    (r"illegal policy with 0 rules", "add a rule; to record nothing, - level: None"),
    (
        r"unknown group version|no kind |unknown conversion|GroupVersion string",
        "write apiVersion: audit.k8s.io/v1 and kind: Policy",
    ),
    (
        r"cannot unmarshal .* into Go value|couldn't get version/kind; json parse error: json:",
        "the file must hold one object with apiVersion, kind and rules",
    ),
    (r"json parse error", "correct the JSON; a file that begins with { is read as JSON, not as YAML"),
    (r"cannot unmarshal (.*) into Go struct field .* of type (\S+)$", _wrong_type),
    (r"parsing time", "write a time such as 2006-01-02T15:04:05Z"),
    (r"cannot start any token", "put the value in quotes, and indent with spaces: tabs are not allowed there"),
    (r"did not find expected key", "indent the keys of one mapping alike"),
    (r"incompatible YAML document", "remove the line that begins with %YAML; API servers read YAML 1.1"),
    (r"unsupported value: ", "put it in quotes"),
    (r"unknown anchor", "define it with & before it is used, or put the value in quotes"),
    (r"control characters|yaml: invalid ", "save it as plain text in UTF-8"),
    (r"not read: ", "make it smaller; a policy needs far less"),
    (r"yaml: ", "correct the YAML at this line or above it"),
)
