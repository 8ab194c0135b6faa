"""Golden folders: inputs and every file that is rendered from them, to be read in review.

UPDATE_GOLDEN=1 writes what is rendered now; look at the difference before committing it.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from audit_operator.render.program import Reference
from audit_operator.render.world import Certificates, Identity, Invalid, ReceiverAddress, Resources, World
from audit_operator.resources.load import Resource, ResourceError, load_resource

DATA = Path(__file__).parents[1] / "data" / "render"
CASES = tuple(sorted(path.name for path in DATA.iterdir()))


def documents(case: str) -> list[dict[str, Any]]:
    """The documents of a case's input folder."""
    return [
        document
        for path in sorted((DATA / case / "input").iterdir())
        for document in yaml.safe_load_all(path.read_text())
    ]


def item_of(document: dict[str, Any]) -> Resource | Invalid:
    """The resource, or why it is none."""
    try:
        return load_resource(document)
    except ResourceError as error:
        metadata = document.get("metadata", {})
        identity = Identity(document.get("kind", ""), metadata.get("namespace", ""), metadata.get("name", ""))
        return Invalid(identity=identity, problems=error.problems, generation=metadata.get("generation", 0))


def resources_of(case: str) -> Resources:
    """A case's resources."""
    return Resources.of(map(item_of, documents(case)))


def world_of(case: str) -> World:
    """A case's world."""
    given = yaml.safe_load((DATA / case / "world.yaml").read_text())
    major, minor = map(int, given["serverVersion"].split("."))
    certificates = given.get("certificates")
    served = given.get("served")
    references = given.get("references")
    address = given.get("receiverAddress", {})
    return World(
        server_version=(major, minor),
        namespaces=given.get("namespaces", {}),
        root_namespace=given.get("rootNamespace", "audit-system"),
        image=given.get("image", "audit-operator:test"),
        certificates=Certificates(**certificates) if certificates else None,
        served=None if served is None else frozenset((each["apiVersion"], each["kind"]) for each in served),
        references=None
        if references is None
        else {
            Reference(each["kind"], each["namespace"], each["name"]): dict.fromkeys(each["keys"], 32)
            for each in references
        },
        receiver_address=ReceiverAddress(node_port=address.get("nodePort")),
    )


def assert_golden(case: str, files: Mapping[str, str]) -> None:
    """The files are those of the case's folder ``expected``, no more, no less."""
    folder = DATA / case / "expected"
    if os.environ.get("UPDATE_GOLDEN"):
        shutil.rmtree(folder, ignore_errors=True)
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    expected = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    if files != expected:
        changed = sorted(name for name in files.keys() | expected.keys() if files.get(name) != expected.get(name))
        assert files == expected, f"differs: {', '.join(changed)}; UPDATE_GOLDEN=1 accepts it"
