"""An API server's policy file as an AuditPolicy that means the same, with its comments."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from audit_operator.cli.errors import CliError
from audit_operator.cli.inputs import PolicyFile, read_bytes, shown, steps
from audit_operator.cli.lint import Verdict
from audit_operator.policy.lint import lint_text
from audit_operator.policy.load import Version
from audit_operator.policy.model import STAGES
from audit_operator.policy.nodes import Node
from audit_operator.policy.yamltext import read_all
from audit_operator.render.policyfile import rule_value
from audit_operator.resources.load import ResourceError, load_resource
from audit_operator.resources.meta import API_VERSION
from audit_operator.resources.yamlwriter import Commented, write

if TYPE_CHECKING:
    from audit_operator.resources.load import Resource

_SPEC: Final = ("rules", "omitStages", "omitManagedFields")
"""The fields of a Policy that an AuditPolicy has too. What else there is, API servers ignore."""


def read(file: str, server: Version) -> tuple[PolicyFile | None, Verdict]:
    """The policy file, None if no API server accepts it, and lint's verdict on it. Raises CliError."""
    data = read_bytes(file)
    loaded, findings = lint_text(data, server=server)
    policy = PolicyFile(shown(file), loaded, data) if loaded.accepted else None
    return policy, Verdict(shown(file), loaded.accepted, tuple(findings))


def import_policy(policy: PolicyFile, *, name: str, namespace: str, sinks: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The AuditPolicy as a document, and as YAML text with the file's comments.

    ``name`` empty: the file's. ``sinks``: ``namespace/name``, or the name of one in the same namespace. Raises CliError
    if an AuditPolicy cannot say what the file says.
    """
    references = [(home, sink) for home, _, sink in (given.rpartition("/") for given in sinks)]
    document = audit_policy(policy, name=name or name_of(policy.file), namespace=namespace, sinks=references)
    wanted = _validated(policy, document)
    for text in (_indented(policy, document), _rewritten(policy, document)):
        if text is not None and _means(text, wanted):
            return document, text
    return document, write(document)


def left_out(policy: PolicyFile) -> tuple[str, ...]:
    """What API servers ignore in the file, so that the AuditPolicy does not have it."""
    found = [
        f"{policy.file}:{problem.line}: {problem.path}: left out, because API servers ignore it"
        for problem in policy.loaded.problems
        if problem.kind == "unknown"
    ]
    documents = [
        f"{policy.file}:{line}: left out, because API servers read only the first document of a file"
        for line, _ in policy.loaded.extra_documents
    ]
    return (*found, *documents)


def audit_policy(
    policy: PolicyFile, *, name: str, namespace: str, sinks: Sequence[tuple[str, str]] = ()
) -> dict[str, Any]:
    """The AuditPolicy as a document; not validated."""
    found = policy.loaded.policy
    assert found is not None  # noqa: S101 - read_inputs refuses files that no server takes
    spec: dict[str, Any] = {}
    if found.omit_stages:
        spec["omitStages"] = [str(stage) for stage in STAGES if stage in found.omit_stages]
    if found.omit_managed_fields:
        spec["omitManagedFields"] = True
    spec["rules"] = [rule_value(rule) for rule in found.rules]
    if sinks:
        spec["sinks"] = [{"name": sink, "namespace": home} if home else {"name": sink} for home, sink in sinks]
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": API_VERSION, "kind": "AuditPolicy", "metadata": metadata, "spec": spec}


def name_of(file: str) -> str:
    """A name for the AuditPolicy of a file: the file's own, as far as Kubernetes allows it."""
    stem = PurePath(file).name.split(".")[0].lower()
    return re.sub("[^a-z0-9]+", "-", stem).strip("-")[:253].rstrip("-") or "imported"


def _validated(policy: PolicyFile, document: Mapping[str, Any]) -> "Resource":
    try:
        return load_resource(document)
    except ResourceError as error:
        problem = error.problems[0]
        path = problem.path.removeprefix("spec.")
        raise CliError(
            f"an AuditPolicy cannot say this: {problem}",
            file=policy.file,
            line=policy.loaded.at(steps(path))[0] if path != problem.path else 0,
        ) from None


def _means(text: str, wanted: "Resource") -> bool:
    try:
        (node,) = read_all(text)
        given_twice = any(inner.overridden for _, inner in node.walk())
        return not given_twice and load_resource(node.value) == wanted
    except ValueError:
        return False


# --- the text as it is, two columns further in -----------------------------------------------------------------------

_DIVIDER: Final = re.compile(r"(---|\.\.\.|%)(\s|$)")
_BLANK_OR_COMMENT: Final = re.compile(r"\s*(#.*)?$")


def _indented(policy: PolicyFile, document: Mapping[str, Any]) -> str | None:
    """The file's own lines below ``spec``: all comments and quotes stay. None where that cannot work."""
    root = policy.loaded.document
    try:
        lines = policy.text.decode().removeprefix("\ufeff").splitlines()
    except UnicodeDecodeError:
        return None
    if root is None or not isinstance(root.content, dict):
        return None
    starts = sorted((field.line, key) for key, field in root.content.items())
    if any(field.column != 1 for field in root.content.values()):  # JSON, or indented as a whole
        return None
    first = starts[0][0]
    end = next((number for number in range(first, len(lines)) if _DIVIDER.match(lines[number])), len(lines))
    header = [line for line in lines[: first - 1] if not _DIVIDER.match(line)]
    kept: list[str] = []
    for (start, key), (following, _) in zip(starts, [*starts[1:], (end + 1, "")], strict=True):
        block = lines[start - 1 : following - 1]
        kept += block if key in _SPEC else _trailing_comments(block)
    body = "\n".join(f"  {line}" if line.strip() else "" for line in kept).strip("\n")
    head = {key: document[key] for key in ("apiVersion", "kind", "metadata")}
    sinks = document["spec"].get("sinks")
    tail = write({"sinks": sinks}).replace("\n", "\n  ").rstrip() if sinks else ""
    return "".join(
        [
            *(f"{line}\n" for line in header),
            write(head),
            "spec:\n",
            f"{body}\n",
            f"  {tail}\n" if tail else "",
        ]
    )


def _trailing_comments(block: list[str]) -> list[str]:
    """The comments below what is left out: they are about what follows."""
    last = max(index for index, line in enumerate(block) if not _BLANK_OR_COMMENT.match(line))
    return block[last + 1 :]


# --- written anew, with what stands above the rules ------------------------------------------------------------------


def _rewritten(policy: PolicyFile, document: dict[str, Any]) -> str | None:
    """Written anew, with the comments at the top and above each rule."""
    root = policy.loaded.document
    if root is None:
        return None
    lines = policy.text.decode("utf-8", "replace").splitlines()
    items = root.find(("rules",))
    nodes = items.content if items is not None and isinstance(items.content, list) else []
    rules = [
        Commented(rule, _comment_above(lines, node))
        for rule, node in zip(document["spec"]["rules"], nodes, strict=True)
    ]
    header = "\n".join(_comment(line) for line in lines[: root.line - 1] if line.startswith("#"))
    return write({**document, "spec": {**document["spec"], "rules": rules}}, header=header)


def _comment_above(lines: Sequence[str], node: Node) -> str:
    def upwards() -> Iterator[str]:
        for number in range(node.line - 2, -1, -1):
            if not lines[number].lstrip().startswith("#"):
                return
            yield _comment(lines[number])

    return "\n".join(reversed(list(upwards())))


def _comment(line: str) -> str:
    return line.lstrip().removeprefix("#").removeprefix(" ")
