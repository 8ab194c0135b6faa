"""What `-f` names: files, folders and standard input, read with limits and cut into documents that know their lines."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import msgspec

from audit_operator.cli.errors import CliError, reason
from audit_operator.policy.load import NEWEST, Loaded, Version, load_policy
from audit_operator.policy.nodes import LIMITS, Node, TextError
from audit_operator.policy.yamltext import read_all

SUFFIXES: Final = (".yaml", ".yml", ".json")
STDIN: Final = "-"
STDIN_NAME: Final = "standard input"

TOTAL_LIMIT: Final = 4 * LIMITS.size
"""Bytes of all files of one command together."""

_NOT_RESOURCES: Final = frozenset({"kustomization.yaml", "kustomization.yml", "kustomization.json"})


class Text(NamedTuple):
    """A file as it was read. ``named``: somebody named it, it did not just lie in a folder."""

    file: str
    data: bytes
    named: bool = True


class Document(NamedTuple):
    """One document of a file: a mapping. The items of a ``kind: List`` are documents of their own."""

    file: str
    node: Node
    named: bool = True

    @property
    def line(self) -> int:
        """Where it begins."""
        return self.node.line

    def text(self, key: str) -> str:
        """The string at a top-level key, empty if there is none."""
        return text_at(self.node, key)

    @property
    def name(self) -> str:
        """metadata.name, empty if there is none."""
        metadata = self.node.find(("metadata",))
        return "" if metadata is None else text_at(metadata, "name")

    def line_of(self, path: str) -> int:
        """The line of a path such as ``spec.rules[3].level``, or of what is nearest above it."""
        return self.node.at(steps(path))[0]


def read_texts(arguments: Sequence[str]) -> Iterator[Text]:
    """Every file that ``arguments`` name, folders with all below them, in order. Raises CliError."""
    total = 0
    for name, named in files(arguments):
        text = Text(shown(name), read_bytes(name), named)
        total += len(text.data)
        if total > TOTAL_LIMIT:
            raise CliError(
                f"with the files before it is more than {TOTAL_LIMIT >> 20} MiB; name fewer files", file=text.file
            )
        yield text


def files(arguments: Iterable[str]) -> list[tuple[str, bool]]:
    """The files that ``arguments`` name, each once, and whether by name or by their folder. Raises CliError."""
    return list(dict(_files(arguments)).items())


def read_bytes(name: str, limit: int = LIMITS.size) -> bytes:
    """The content of a file, of standard input for ``-``; never more than ``limit`` bytes are read. Raises CliError."""
    try:
        if name == STDIN:
            data = sys.stdin.buffer.read(limit + 1)
        else:
            with open_file(name) as file:
                data = file.read(limit + 1)
    except OSError as error:
        raise CliError(reason(error), file=shown(name)) from None
    if len(data) > limit:
        raise CliError(f"is larger than {limit >> 20} MiB, so it is not read; is it the right file?", file=shown(name))
    return data


def open_file(name: str) -> BinaryIO:
    """The file for reading. Raises CliError, for a folder too."""
    try:
        return Path(name).open("rb")
    except OSError as error:
        raise CliError(reason(error), file=shown(name)) from None
    except ValueError:  # a null byte in the name
        raise CliError("is no file name", value=repr(name)) from None


def documents(text: Text) -> list[Document]:
    """The documents of a file that are mappings, those of Lists one by one. Raises CliError for unreadable text."""
    try:
        nodes = read_all(text.data)
    except TextError as error:
        raise unreadable(text.file, error) from None
    return [Document(text.file, node, text.named) for node in _flat(nodes)]


def unreadable(file: str, error: TextError) -> CliError:
    """The error of a text that is no YAML or JSON, or too much of it."""
    column = f"column {error.column}: " if error.column else ""
    return CliError(f"{column}{error.message}", file=file, line=error.line)


def text_at(node: Node, key: str) -> str:
    """The string at a key of a mapping, empty if there is none."""
    found = node.find((key,))
    return found.content if found is not None and isinstance(found.content, str) else ""


def shown(name: str) -> str:
    """How a file is named to a person."""
    return STDIN_NAME if name == STDIN else name


def steps(path: str) -> tuple[str | int, ...]:
    """``spec.rules[3].level`` as a path of a node."""
    parts = path.replace("[", ".[").split(".")
    return tuple(int(part[1:-1]) if part[1:-1].isdigit() and part[0] == "[" else part for part in parts if part)


def _files(arguments: Iterable[str]) -> Iterator[tuple[str, bool]]:
    for argument in arguments:
        if argument != STDIN and _is_folder(argument):
            found = list(_in_folder(argument))
            if not found:
                raise CliError(f"holds no file that ends in {', '.join(SUFFIXES)}", file=argument)
            yield from ((name, False) for name in found)
        else:
            yield argument, True


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except OSError:  # reading it says why
        return False


def _in_folder(folder: str) -> Iterator[str]:
    """Files with YAML or JSON in their names, hidden folders left out, in the order of their paths."""

    def refuse(error: OSError) -> None:
        raise CliError(reason(error), file=str(error.filename)) from None

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            # A pipe or device in a folder would be waited for.
            if name.endswith(SUFFIXES) and name not in _NOT_RESOURCES and path.is_file():
                yield str(path)


def _flat(nodes: Iterable[Node]) -> Iterator[Node]:
    for node in nodes:
        if not isinstance(node.content, dict):
            continue
        items = node.find(("items",))
        if text_at(node, "kind").endswith("List") and text_at(node, "kind") != "EventList" and items is not None:
            yield from _flat(items.content if isinstance(items.content, list) else ())
        else:
            yield node


# --- what documents are ----------------------------------------------------------------------------------------------


class PolicyFile(NamedTuple):
    """An API server's policy file: what a server makes of it, and its text."""

    file: str
    loaded: Loaded
    text: bytes


class Inputs(NamedTuple):
    """What was found: API servers' policy files, documents of our own kinds, namespaces with their labels.

    ``notices``: what was left aside and might be missed.
    """

    policy_files: tuple[PolicyFile, ...]
    resources: tuple[Document, ...]
    namespaces: dict[str, dict[str, str]]
    notices: tuple[str, ...]


def read_inputs(arguments: Sequence[str], server: Version = NEWEST) -> Inputs:
    """All that ``-f`` names. Raises CliError for what cannot be read, and for a policy file that no server takes."""
    policy_files: list[PolicyFile] = []
    resources: list[Document] = []
    namespaces: dict[str, dict[str, str]] = {}
    notices: list[str] = []
    for text in read_texts(arguments):
        found = documents(text)
        policies = [document for document in found if is_policy(document)]
        ours = [document for document in found if is_ours(document)]
        labelled = [document for document in found if is_namespace(document)]
        if text.named and not (policies or ours or labelled):
            raise _nothing_for_us(text, found)
        if policies:
            policy_files.append(_policy_file(text, found, policies[0], server))
            notices += (
                f"{text.file}:{document.line}: not used: API servers read one policy of a file, the first"
                for document in policies[1:]
            )
        resources += ours
        namespaces |= {document.name: _labels(document) for document in labelled}
    if not policy_files and not resources:
        raise CliError(
            "holds nothing about audit: no AuditPolicy, AuditSink, AuditBackend, and no audit.k8s.io/v1 Policy",
            file=", ".join(map(shown, arguments)),
        )
    return Inputs(tuple(policy_files), tuple(resources), namespaces, tuple(notices))


def is_ours(document: Document) -> bool:
    """Whether it claims to be an AuditPolicy, AuditSink or AuditBackend, valid or not."""
    return document.text("apiVersion").split("/")[0] == "audit-operator.dev"


def is_policy(document: Document) -> bool:
    """Whether it claims to be an API server's audit policy."""
    return document.text("apiVersion").split("/")[0] == "audit.k8s.io" and not is_events(document)


def is_events(document: Document) -> bool:
    """Whether it is an audit event, or a list of them."""
    kind = document.text("kind")
    return document.text("apiVersion").split("/")[0] == "audit.k8s.io" and kind in ("Event", "EventList")


def is_namespace(document: Document) -> bool:
    """Whether it is a Namespace, whose labels count."""
    return (document.text("apiVersion"), document.text("kind")) == ("v1", "Namespace") and document.name != ""


def _policy_file(text: Text, found: Sequence[Document], policy: Document, server: Version) -> PolicyFile:
    if found[0] is policy:
        loaded = load_policy(text.data, server=server)
    else:
        # Between other documents, or in a List: no API server would read it there, but it is clear what is meant.
        loaded = load_policy(json.dumps(policy.node.value), server=server)
        loaded = msgspec.structs.replace(loaded, document=policy.node)
    if loaded.policy is None:
        fault = loaded.faults[0]
        raise CliError(
            f"no API server {server[0]}.{server[1]} starts with this file: {fault.message}",
            file=text.file,
            line=fault.line or policy.line,
            way_out=f"`audit-operator lint {text.file}` says all that is wrong",
        )
    return PolicyFile(text.file, loaded, text.data)


def _nothing_for_us(text: Text, found: Sequence[Document]) -> CliError:
    if any(map(is_events, found)):
        return CliError("holds audit events, no policies", file=text.file, way_out="give events with --events")
    kinds = sorted({document.text("kind") or "a document without kind" for document in found})
    what = f"holds {', '.join(kinds[:5])}" if kinds else "holds no object"
    return CliError(
        f"{what}: nothing about audit", file=text.file, way_out="name AuditPolicies or an API server's policy file"
    )


def _labels(document: Document) -> dict[str, str]:
    labels = document.node.find(("metadata", "labels"))
    value = labels.value if labels is not None else None
    return {key: item for key, item in value.items() if isinstance(item, str)} if isinstance(value, dict) else {}
