"""The fake API server does what a real one does, as far as the operator relies on it; e2e asks a real one the same."""

from collections.abc import Callable, Iterator

import pytest
from contract import CONTRACT, Client
from fake_api import FakeApi, in_a_thread


@pytest.fixture(scope="module")
def fake() -> Iterator[tuple[FakeApi, str]]:
    with in_a_thread() as found:
        yield found


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
def test_the_fake(promise: Callable[[Client], None], fake: tuple[FakeApi, str]) -> None:
    api, url = fake
    promise(Client(url, api.compact))
