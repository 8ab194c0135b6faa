"""Containers without a container runtime: what a pod's security context, mounts and volumes leave a process.

A process sees a root file system that is read-only, the pod's volumes with the owners and modes that a kubelet gives
them, an environment that nobody else fills, and has no capabilities nor a way to new ones. Its user has no name. The
network is this machine's.
"""

import base64
import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]

_DEVICES = ("null", "zero", "full", "random", "urandom")
_NAMES = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "group": "root:x:0:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}

IMPORT_ALL = """
import importlib, pkgutil, audit_operator
found = [module.name for module in pkgutil.walk_packages(audit_operator.__path__, "audit_operator.")]
for name in found:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(found))
"""
"""Imports every module of ours, and prints how many there are."""


class User(NamedTuple):
    """Whom a container runs as. ``volumes``: the group that the platform gives volumes, None: the pod's."""

    uid: int
    gid: int
    volumes: int | None = None


IMAGES_OWN = User(65532, 65532)
OPENSHIFTS = User(1000730000, 0, volumes=1000730000)
USERS = {"the image's user": IMAGES_OWN, "a user of OpenShift": OPENSHIFTS}


class Mount(NamedTuple):
    """A file or folder of this machine, as a container sees it."""

    source: Path
    writable: bool = False


class Image(NamedTuple):
    """What a container starts from. ``root``: a root file system; None: this machine's, with ``files`` in it."""

    python: str
    environment: Mapping[str, str]
    files: Mapping[str, Mount] = {}
    root: Path | None = None

    @property
    def command(self) -> str:
        """The image's entry point."""
        return str(Path(self.python).with_name("audit-operator"))


def built(root: Path) -> Image:
    """What operator/Dockerfile made, unpacked: PATH and entry point are its own."""
    folder = "/opt/audit-operator/bin"
    return Image(f"{folder}/python", {"PATH": f"{folder}:/usr/bin:/bin"}, root=root)


def like_built(folder: Path) -> Image:
    """What `make setup` installed, as the Dockerfile would: the packages that are locked, pruned, in ``folder``."""
    folder.chmod(0o755)
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        found = re.match(r"(?P<name>[\w.-]+)==[\w.]+(?P<condition> ;)?", line)
        if found is None:
            continue
        try:
            files = metadata.distribution(found["name"]).files or []
        except metadata.PackageNotFoundError:
            assert found["condition"], f"{found['name']} is not installed"  # for other systems
            continue
        for file in files:
            if ".." not in file.parts:
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(Path(str(file.locate())), target)
    (folder / "audit-operator.pth").write_text(f"{ROOT / 'operator'}\n")
    subprocess.run([sys.executable, ROOT / "operator/prune.py", folder], check=True, capture_output=True)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return Image(sys.executable, {"PATH": path}, {sysconfig.get_path("purelib"): Mount(folder)})


def _link(source: Path, target: Path) -> None:
    if source.exists() and not target.exists():
        try:
            target.hardlink_to(source)
        except OSError:  # another file system
            shutil.copy2(source, target)


def require_containers(image: Image, folder: Path, user: User = IMAGES_OWN) -> None:
    """Skip the test where this user may not make mount namespaces; say why."""
    command = inside(image, folder, user, {}, ["/bin/true"])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        why = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        pytest.skip(
            f"no mount namespace can be made ({why}): run as root, or allow user namespaces "
            "(sysctl kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0)"
        )


def inside(
    image: Image,
    folder: Path,
    user: User,
    mounts: Mapping[str, Mount],
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    groups: Sequence[int] = (),
) -> list[str]:
    """The command that runs ``command`` in a container of ``image``.

    ``folder`` is the caller's, for what a container needs while it runs. ``mounts``: by path in the container.
    """
    folder.mkdir(parents=True, exist_ok=True)
    layer = folder / "layer"
    layer.mkdir(exist_ok=True)
    root = layer / "root"
    lines = ["set -e", f"mount -t tmpfs -o mode=755 tmpfs {_q(layer)}", f"mkdir {_q(root)}"]
    if image.root is not None:
        folders = f"lowerdir={_q(image.root)},upperdir={_q(layer)}/upper,workdir={_q(layer)}/work"
        lines += [f"mkdir {_q(layer)}/upper {_q(layer)}/work", f"mount -t overlay overlay -o {folders} {_q(root)}"]
        files = dict(image.files)
    else:
        files = _this_machine(folder) | dict(image.files)
    # What is in the place of the root stays writable for its owner until all mount points are there.
    lines += [f"mount --bind {_q(root)} {_q(root)}"]
    files |= {f"/dev/{name}": Mount(Path("/dev", name), writable=True) for name in _DEVICES}
    files |= {"/etc/hosts": Mount(Path("/etc/hosts")), "/proc": Mount(Path("/proc"), writable=True)}
    for where, mount in sorted((files | dict(mounts)).items()):
        target = root / _resolved(image.root, where).lstrip("/")
        if mount.source.is_symlink() and not mounts.get(where):  # /bin, /lib and /lib64 of today's distributions
            lines.append(f"ln -s {_q(mount.source.readlink())} {_q(target)}")
            continue
        if mount.source.is_dir():
            lines.append(f"mkdir -p {_q(target)}")
        else:
            lines.append(f"mkdir -p {_q(target.parent)}; test -e {_q(target)} || touch {_q(target)}")
        lines.append(f"mount --rbind {_q(mount.source)} {_q(target)}")
        if not mount.writable:
            lines.append(f"mount -o remount,bind,ro {_q(target)}")
    lines.append(f"mount -o remount,bind,ro {_q(root)}")
    given = dict(image.environment) | dict(environment or {})
    clean = ["env", "-i", *(f"{key}={value}" for key, value in given.items())]
    if os.geteuid() == 0:
        namespaces = ["unshare", "--mount", "--propagation=private"]
        limits = ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all,+sys_chroot,+setuid,+setgid"]
        supplementary = ",".join(map(str, groups))
        enter = [_path("chroot"), f"--userspec={user.uid}:{user.gid}", f"--groups={supplementary}", str(root)]
    else:  # one user is all there is: files of the caller's are the container's own
        namespaces = ["unshare", "--map-root-user", "--mount", "--propagation=private"]
        limits = ["setpriv", "--no-new-privs"]
        enter = [_path("unshare"), f"--map-user={user.uid}", f"--map-group={user.gid}", f"--root={root}", "--wd=/"]
    lines.append(shlex.join(["exec", *limits, *clean, *enter, *command]))
    return [*namespaces, "sh", "-c", "\n".join(lines)]


def _q(path: Path) -> str:
    return shlex.quote(str(path))


@cache
def _path(program: str) -> str:
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    return found or program


def _this_machine(folder: Path) -> dict[str, Mount]:
    """Programs, libraries and Python's packages; of /etc no user but root, and nothing of anybody's home."""
    prefixes = {Path("/usr"), Path("/bin"), Path("/lib"), Path("/lib64"), Path(sys.base_prefix), Path(sys.prefix)}
    prefixes |= {ROOT / "operator", Path(os.path.realpath(sys.executable)).parents[1]}
    own = [each for each in prefixes if each.exists() and not any(each.is_relative_to(p) for p in prefixes - {each})]
    for name, text in _NAMES.items():
        (folder / name).write_text(text)
    etc = {f"/etc/{name}": folder / name for name in _NAMES}
    shared = (Path("/etc/ld.so.cache"), Path("/etc/ssl"))
    etc |= {str(path): path for path in shared if path.exists()}
    return {str(path): Mount(path) for path in own} | {where: Mount(path) for where, path in etc.items()}


def _resolved(root: Path | None, where: str) -> str:
    """``where`` with the links of the root file system followed: /var/run is not this machine's."""
    done, rest = Path("/"), [*Path(where).parts[1:]]
    while rest:
        done /= rest.pop(0)
        link = root / done.relative_to("/") if root is not None else None
        if link is not None and link.is_symlink():
            target = Path(os.path.normpath(done.parent / link.readlink()))
            done, rest = Path("/"), [*target.parts[1:], *rest]
    return str(done)


class Pod:
    """The one container of a pod, as the pod's specification says; nothing restarts it.

    ``objects``: the cluster's ConfigMaps and Secrets by kind and name. ``service_account``: what the API server has
    mounted for it.
    """

    def __init__(
        self,
        spec: Json,
        image: Image,
        user: User,
        folder: Path,
        *,
        objects: Mapping[tuple[str, str], Json],
        service_account: Mapping[str, str] | None = None,
    ) -> None:
        (self.container,) = spec["containers"]
        context = spec["securityContext"]
        assert context["runAsNonRoot"]
        if user.volumes is not None:
            # OpenShift refuses pods that ask for users or groups of their own, under restricted-v2.
            assert not {"runAsUser", "fsGroup"} & context.keys()
        self.user = user._replace(uid=context.get("runAsUser", user.uid), gid=context.get("runAsGroup", user.gid))
        self._group = user.volumes if user.volumes is not None else context.get("fsGroup")
        own = self.container["securityContext"]
        assert own["readOnlyRootFilesystem"]
        assert own["capabilities"] == {"drop": ["ALL"]}
        self.folder = folder
        folder.mkdir()
        volumes = {each["name"]: self._volume(each, objects) for each in spec["volumes"]}
        self.mounts = {}
        for each in self.container["volumeMounts"]:
            assert not each.keys() - {"name", "mountPath", "readOnly"}, each
            mount = volumes[each["name"]]
            self.mounts[each["mountPath"]] = mount._replace(writable=mount.writable and not each.get("readOnly"))
        if spec.get("automountServiceAccountToken", True):
            assert service_account is not None
            place = self._filled("token", {key: text.encode() for key, text in service_account.items()}, 0o644)
            self.mounts["/var/run/secrets/kubernetes.io/serviceaccount"] = Mount(place)
        self.image = image
        # The network is shared: instead of an address of its own, a pod has ports of its own.
        self.ports = {each["name"]: _free_port() for each in self.container["ports"]}

    def _volume(self, volume: Json, objects: Mapping[tuple[str, str], Json]) -> Mount:
        name = volume["name"]
        if "emptyDir" in volume or "persistentVolumeClaim" in volume:
            place = self.folder / name
            place.mkdir()
            place.chmod(0o777 if "emptyDir" in volume else 0o755)
            if self._group is not None:
                self._own(place)
                place.chmod(0o2777 if "emptyDir" in volume else 0o2775)
            return Mount(place, writable=True)
        if "projected" in volume:
            source, sources = volume["projected"], volume["projected"]["sources"]
        else:
            source = volume.get("configMap") or volume["secret"]
            sources = [{kind: source for kind in ("configMap", "secret") if kind in volume}]
        content: dict[str, bytes] = {}
        for (kind, of), *rest in (each.items() for each in sources):
            assert not rest
            assert "items" not in of
            found = objects.get((f"{kind[0].upper()}{kind[1:]}", of.get("secretName") or of["name"]))
            assert found or of.get("optional"), f"{of} does not exist"
            content |= _content(found or {})
        return Mount(self._filled(name, content, source.get("defaultMode", 0o644)))

    def _filled(self, name: str, content: Mapping[str, bytes], mode: int) -> Path:
        """A folder as kubelets fill it: a new folder, and a link that is renamed to lead there."""
        place = self.folder / name
        data = place / "..data.1"
        data.mkdir(parents=True)
        (place / "..data").symlink_to(data.name)
        for key, value in content.items():
            (data / key).write_bytes(value)
            (data / key).chmod(mode)
            self._own(data / key)
            (place / key).symlink_to(f"..data/{key}")
        return place

    def _own(self, path: Path) -> None:
        if self._group is not None and os.geteuid() == 0:
            os.chown(path, 0, self._group)

    @contextlib.contextmanager
    def running(self, environment: Mapping[str, str]) -> Iterator["Pod"]:
        """Until the end of the block, then told to end. ``environment``: more than the pod's, as of Services."""
        given = {each["name"]: each.get("value") or _from_field(each) for each in self.container.get("env", ())}
        listens = {
            f"0.0.0.0:{each['containerPort']}": f"127.0.0.1:{self.ports[each['name']]}"
            for each in self.container["ports"]
        }
        arguments = self.container["args"]
        for theirs, ours in listens.items():
            arguments = [re.sub(rf"={re.escape(theirs)}$", f"={ours}", each) for each in arguments]
        groups = [] if self._group is None else [self._group]
        command = inside(
            self.image,
            self.folder / "container",
            self.user,
            self.mounts,
            [self.image.command, *arguments],
            environment={**environment, **given},
            groups=groups,
        )
        with (self.folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            self.process = process
            try:
                yield self
            finally:
                process.terminate()
                self.code = process.wait(60)

    def log(self) -> str:
        return (self.folder / "log").read_text()


def _content(found: Json) -> dict[str, bytes]:
    """What a ConfigMap or Secret holds, by file name."""
    plain = found.get("data", {}) if found.get("kind") == "ConfigMap" else {}
    coded = found.get("binaryData") or ({} if plain else found.get("data", {}))
    return {key: text.encode() for key, text in plain.items()} | {
        key: base64.b64decode(text) for key, text in coded.items()
    }


def _from_field(variable: Json) -> str:
    path: str = variable["valueFrom"]["fieldRef"]["fieldPath"]
    return {"metadata.name": "pod-0", "metadata.namespace": "audit-system", "metadata.uid": "uid-0"}[path]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port
