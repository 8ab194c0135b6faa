"""The image that tests run: as the Dockerfile makes it of what is installed here, or the one that IMAGE_ROOT holds."""

import os
from pathlib import Path

import pytest
from containers import Image, built, like_built, require_containers


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Skips the test where no containers can be made."""
    root = os.environ.get("IMAGE_ROOT")
    found = built(Path(root)) if root else like_built(tmp_path_factory.mktemp("site-packages"))
    require_containers(found, tmp_path_factory.mktemp("trial"))
    return found
