"""`audit-operator run`: from options to the running operator."""

import asyncio
import secrets
import socket
from pathlib import Path
from typing import Literal

from audit_operator.cli.errors import CliError, reason
from audit_operator.render.world import IMAGE


def run(
    *,
    namespace: str,
    identity: str,
    image: str,
    cluster_domain: str,
    kubeconfig: str,
    context: str,
    listen: str,
    leader_election: bool,
    log_format: Literal["json", "text"],
    log_level: str,
    log_level_file: str,
) -> int:
    """Run until told to end; the exit code. Raises CliError for what cannot be begun with."""
    try:
        from kubernetes.aio.config import ConfigException

        from audit_operator.controller.app import Options
        from audit_operator.controller.app import run as run_operator
        from audit_operator.controller.reconcile import Settings
    except ModuleNotFoundError as error:
        raise CliError(
            f"needs {error.name}, which is not installed", way_out="pip install 'audit-operator[operator]'"
        ) from None

    host, port = _address(listen)
    options = Options(
        settings=Settings(
            namespace=namespace,
            identity=identity or f"{socket.gethostname()}-{secrets.token_hex(4)}",
            image=image or IMAGE,
            cluster_domain=cluster_domain,
        ),
        kubeconfig=kubeconfig or None,
        context=context or None,
        host=host,
        port=port,
        leader_election=leader_election,
        log_format=log_format,
        log_level=log_level,
        log_level_file=Path(log_level_file) if log_level_file else None,
    )
    try:
        return asyncio.run(run_operator(options))
    except ConfigException as error:
        raise CliError(f"no cluster: {error}", way_out="name a kubeconfig with --kubeconfig, or run in a pod") from None
    except OSError as error:
        raise CliError(reason(error), field="--listen", value=listen, way_out="choose another address") from None


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535 or not host:
        raise CliError("is no address", field="--listen", value=repr(text), way_out="write for example 0.0.0.0:8080")
    return host.strip("[]"), int(port)
