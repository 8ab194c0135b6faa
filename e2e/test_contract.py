"""What the fast tests' fake API server does, a real one does."""

import ssl
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from apiserver import ControlPlane

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "controller"))
from contract import CONTRACT, Client


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
def test_a_real_api_server(promise: Callable[[Client], None], plane: ControlPlane) -> None:
    def forget() -> None:
        plane.stop()
        plane.start()  # its watch cache begins now

    context = ssl.create_default_context(cafile=plane.api.ca)
    promise(Client(plane.api.url, forget, token=plane.api.token or "", context=context))
