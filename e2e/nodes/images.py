"""Images for nodes, as archives: of files of this machine, and the project's own, which Docker or buildah makes.

What takes long is kept in ``$XDG_CACHE_HOME/audit-operator-e2e`` (``~/.cache``), named by what it was made of.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apiserver import docker_runs

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "audit-operator-e2e"
_KEPT = 6
"""Archives that stay in the cache."""

REPOSITORY = "e2e.invalid"
"""Where all images seem to be from: a domain, because CRI takes a name without one for Docker Hub's."""


# --- of files --------------------------------------------------------------------------------------------------------


def of_files(name: str, entrypoint: Sequence[str], files: Mapping[str, Path], archive: Path) -> Path:
    """An image of one layer: ``files`` by the path that they have in it."""
    layer = archive.with_suffix(".layer")
    with tarfile.open(layer, "w") as tar:
        for target, source in files.items():
            tar.add(source.resolve(), arcname=target.lstrip("/"))
    digest = _digest(layer)
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
        "os": "linux",
        "config": {"Entrypoint": list(entrypoint), "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [digest]},
    }
    media = "application/vnd.oci.image"
    described = json.dumps(config).encode()
    manifest = json.dumps({
        "schemaVersion": 2,
        "mediaType": f"{media}.manifest.v1+json",
        "config": _described(f"{media}.config.v1+json", described),
        "layers": [{"mediaType": f"{media}.layer.v1.tar", "digest": digest, "size": layer.stat().st_size}],
    }).encode()  # fmt: skip
    index = {"schemaVersion": 2, "manifests": [_described(f"{media}.manifest.v1+json", manifest)]}
    with tarfile.open(archive, "w") as tar:
        for content in (described, manifest):
            _put(tar, _blob(_described("", content)["digest"]), content)
        tar.add(layer, arcname=_blob(digest))
        _finish(tar, index, name)
    layer.unlink()
    return archive


def sleeper(name: str, archive: Path) -> Path:
    """An image that does nothing until it is killed, as a pod's first container does: this machine's sleep."""
    program = Path(shutil.which("sleep") or "/usr/bin/sleep")
    libraries = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    needed = [Path(path) for path in re.findall(r"(?:^|\s)(/\S+)", libraries)]
    files = {"/sleep": program} | {str(path): path for path in needed}
    return of_files(name, ["/sleep", "infinity"], files, archive)


def _described(media: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _blob(digest: object) -> str:
    return f"blobs/{str(digest).replace(':', '/')}"


def _put(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _finish(tar: tarfile.TarFile, index: dict[str, Any], name: str) -> None:
    """The index, by which containerd finds the image and its name."""
    (manifest,) = index["manifests"]
    manifest["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
    _put(tar, "index.json", json.dumps(index).encode())
    _put(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')


# --- the project's own -----------------------------------------------------------------------------------------------

_DEBIAN = "bookworm"
_LIKE_SLIM = """
rm -rf /usr/lib/python3*/EXTERNALLY-MANAGED /var/cache/apt/* /var/lib/apt/lists/* /usr/share/doc /usr/share/man
PYTHONPATH=$(ls /usr/share/python-wheels/pip-*.whl) python3 -m pip install -q --root-user-action ignore \\
  --no-index --find-links /usr/share/python-wheels pip setuptools
rm -rf /usr/share/locale
"""
"""As python:slim is: no manager of packages but pip, which is below /usr/local."""


def project(name: str, source: Path = ROOT, *, more: str = "") -> Path:
    """The image that ``source``'s Dockerfile makes, from the cache if it is there. LookupError saying what is missing.

    ``more``: lines for the end of the Dockerfile. Without Docker, buildah makes it. Its base is what BASE names, where
    that can be pulled, else one that debootstrap makes.
    """
    dockerfile = (source / "operator" / "Dockerfile").read_text() + more
    with _cache() as cache:
        key = _content(source, dockerfile, name)
        kept = cache / f"image-{key}.tar"
        if not kept.exists():
            _build(cache, source, dockerfile, name, kept)
            _prune(cache)
        kept.touch()
        return kept


def _content(source: Path, dockerfile: str, name: str) -> str:
    """What the image is made of, as a short hash."""
    digest = hashlib.sha256(f"{name}\n{dockerfile}".encode())
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.MULTILINE)
    for path in sorted(source / each for names in copied for each in names.split()):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(source)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _cache() -> Iterator[Path]:
    """The cache, to ourselves."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield CACHE


def _prune(cache: Path) -> None:
    by_age = sorted(cache.glob("image-*.tar"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in by_age[_KEPT:]:
        path.unlink()
    if by_age[_KEPT:]:
        _buildah(cache, "rmi", "--prune", "--force")


def _buildah(cache: Path, *arguments: str | Path, ok: bool = True) -> str:
    buildah = shutil.which("buildah")
    if buildah is None:
        raise LookupError("no buildah to make the project's image with: apt-get install buildah debootstrap")
    command = [buildah, "--root", cache / "buildah", "--runroot", cache / "buildah-run", *arguments]
    environment = {"STORAGE_DRIVER": "overlay"} | os.environ
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode and ok:
        raise LookupError(f"{' '.join(map(str, command))}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout if done.returncode == 0 else ""


def _build(cache: Path, source: Path, dockerfile: str, name: str, archive: Path) -> None:
    if docker_runs():
        # It has its base, and what Dockerfiles build on, from where everybody has it.
        build = ["docker", "build", "--quiet", f"--tag={name}", "--file=-", str(source)]
        saved = archive.with_suffix(".new")
        for command in (build, ["docker", "save", f"--output={saved}", name]):
            done = subprocess.run(command, input=dockerfile, capture_output=True, text=True, timeout=1800, check=False)
            if done.returncode:
                raise LookupError(f"{' '.join(command)}: {(done.stdout + done.stderr)[-2000:]}")
        saved.rename(archive)
        return
    (base,) = re.findall(r"^ARG BASE=(\S+)$", dockerfile, re.MULTILINE)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        recipe = Path(folder) / "Dockerfile"
        recipe.write_text(dockerfile)
        mounts = [option for path in _for_pip() for option in ("--volume", f"{path}:{path}:ro")]
        _buildah(
            cache,
            "build",
            # Needs neither a runtime nor a network of its own.
            *("--isolation=chroot", "--network=host", "--layers", *mounts),
            *(f"--build-arg=BASE={_base(cache, base)}", f"--tag={name}", f"--file={recipe}", source),
        )
        made = Path(folder) / "image.tar"
        _buildah(cache, "push", name, f"oci-archive:{made}")
        named = Path(folder) / "named.tar"
        with tarfile.open(made) as old, tarfile.open(named, "w") as new:
            for member in old:
                if member.name == "index.json":
                    index = json.load(old.extractfile(member))  # type: ignore[arg-type]
                elif member.isfile() and member.name != "oci-layout":
                    new.addfile(member, old.extractfile(member))
            _finish(new, index, name)
        named.rename(archive)


def _for_pip() -> list[Path]:
    """What pip is told on this machine, such as where its packages are."""
    places = ("/etc/pip.conf", "/etc/xdg/pip", "/etc/ssl/certs", "/usr/local/share/ca-certificates")
    return [Path(place) for place in places if Path(place).exists()]


def _base(cache: Path, base: str) -> str:
    """An image with Python that buildah has."""
    if _buildah(cache, "pull", "--quiet", "--retry=0", base, ok=False):
        return base
    own = f"localhost/{_DEBIAN}-python:{hashlib.sha256(_LIKE_SLIM.encode()).hexdigest()[:8]}"
    if _buildah(cache, "images", "--quiet", own, ok=False):
        return own
    debootstrap = shutil.which("debootstrap", path=f"{os.environ['PATH']}:/usr/sbin")
    if debootstrap is None:
        raise LookupError(f"{base} cannot be pulled, and there is no debootstrap to make one like it")
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        include = "--include=python3,python-is-python3,python3-venv,ca-certificates"
        for command in (
            [debootstrap, "--variant=minbase", include, _DEBIAN, folder],
            ["chroot", folder, "sh", "-euc", _LIKE_SLIM],
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
            if done.returncode:
                raise LookupError(f"{command[0]}: {(done.stdout + done.stderr)[-2000:]}")
        container = _buildah(cache, "from", "scratch").strip()
        _buildah(cache, "add", "--quiet", container, folder, "/")
        _buildah(cache, "commit", "--quiet", "--rm", container, own)
    return own
