"""The thin layer on top of the base: remetal itself, the init, and what the medium is told.

It is made anew for every medium within a second or two, so that a change of remetal's own code
never builds the base again.
"""

import ast
import configparser
import importlib.metadata
import importlib.util
import io
import json
import py_compile
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from bootmedia import console, stores
from bootmedia.config import MediumConfig, recovery_key_content
from bootmedia.cpio import CpioWriter
from bootmedia.initramfs import build_time
from bootmedia.rootfs import SITE_PACKAGES, Base
from bootmedia.selection import PYTHON
from bootmedia.templates import render
from imager.errors import MediumError

_PACKAGES: Final = ("imager", "restore")
# Parts of them that a rescued machine has no use for.
_LEFT_OUT: Final = (PurePosixPath("imager/upkeep"), PurePosixPath("restore/drill"))
_SUFFIXES: Final = frozenset({".py", ".j2"})
_GROUP: Final = "remetal.commands"
_HOSTNAME: Final = "remetal-rescue"
_COMMAND: Final = "#!/usr/bin/python3 -I\nfrom imager.console import main\n\nmain()\n"


def sources() -> dict[str, bytes]:
    """Return remetal's files that go onto the medium, by their path below site-packages.

    Raises:
        MediumError: one of the packages is not installed here.
    """
    found: dict[str, bytes] = {}
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise MediumError(f"the package {package} is not installed", hint="Install remetal.")
        root = Path(spec.submodule_search_locations[0])
        for path in sorted(root.rglob("*")):
            name = PurePosixPath(package) / path.relative_to(root).as_posix()
            if path.suffix in _SUFFIXES and not any(name.is_relative_to(out) for out in _LEFT_OUT):
                found[str(name)] = path.read_bytes()
    return found


def _module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _is_package(path: str) -> bool:
    return path.endswith("/__init__.py")


def _imports(name: str, source: bytes, *, is_package: bool) -> Iterator[str]:
    """Yield the absolute names of all modules that a module imports when it runs."""
    own = name if is_package else name.rpartition(".")[0]
    for node in _nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                origin = importlib.util.resolve_name("." * node.level + origin, own)
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes of a tree except those that only type checkers see."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def imported_modules(files: dict[str, bytes]) -> frozenset[str]:
    """Return the top-level names of all modules that the files import."""
    return frozenset(
        wanted.partition(".")[0]
        for path, content in files.items()
        if path.endswith(".py")
        for wanted in _imports(_module_name(path), content, is_package=_is_package(path))
    )


def usable_commands(files: dict[str, bytes], points: dict[str, str]) -> dict[str, str]:
    """Return those of the commands that need no module of remetal that is left out.

    Args:
        files: what is on the medium, as `sources` returns it.
        points: verb → "module:name", as in the metadata.
    """
    modules = {_module_name(path): path for path in files if path.endswith(".py")}

    def complete(name: str, seen: set[str]) -> bool:
        if name in seen:
            return True
        seen.add(name)
        path = modules[name]
        for wanted in _imports(name, files[path], is_package=_is_package(path)):
            if wanted in modules:
                if not complete(wanted, seen):
                    return False
            elif wanted.partition(".")[0] in {*_PACKAGES, "bootmedia"}:
                # Either a name inside a module that is there, or a module that is not.
                parent = wanted.rpartition(".")[0]
                if parent not in modules or _is_left_out(wanted):
                    return False
        return True

    kept = {}
    for verb, target in points.items():
        module = target.partition(":")[0]
        if module in modules and complete(module, set()):
            kept[verb] = target
    return kept


def _is_left_out(module: str) -> bool:
    path = PurePosixPath(module.replace(".", "/"))
    return any(path.is_relative_to(out) for out in _LEFT_OUT)


def _metadata(files: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield remetal's dist-info, with the commands that work on the medium."""
    distribution = importlib.metadata.distribution("remetal")
    folder = f"remetal-{distribution.version}.dist-info"
    yield (
        f"{folder}/METADATA",
        f"Metadata-Version: 2.1\nName: remetal\nVersion: {distribution.version}\n".encode(),
    )
    points = {
        point.name: point.value for point in distribution.entry_points if point.group == _GROUP
    }
    table = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    table[_GROUP] = usable_commands(files, points)
    text = io.StringIO()
    table.write(text)
    yield f"{folder}/entry_points.txt", text.getvalue().encode()


def _compiled(files: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield the byte code of all modules, when this Python is of the medium's version.

    Another Python's byte code would be ignored there; the medium then compiles at each start,
    which takes some seconds more.
    """
    if f"{sys.version_info.major}.{sys.version_info.minor}" != PYTHON:
        return
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    with tempfile.TemporaryDirectory() as name:
        source, compiled = Path(name) / "source.py", Path(name) / "compiled"
        for path, content in files.items():
            if not path.endswith(".py"):
                continue
            source.write_bytes(content)
            shown = f"/{SITE_PACKAGES}/{path}"
            py_compile.compile(
                str(source), str(compiled), dfile=shown, doraise=True, invalidation_mode=mode
            )
            place = PurePosixPath(path)
            cached = f"{place.stem}.{sys.implementation.cache_tag}.pyc"
            yield str(place.parent / "__pycache__" / cached), compiled.read_bytes()


def build(
    base: Base, config: MediumConfig, store_keys: bytes | None = None
) -> tuple[bytes, uuid.UUID]:
    """Return the layer as an archive, not yet compressed, and the id of the medium it makes.

    Equal base, code, configuration, keys and time give the same bytes and id.

    Args:
        base: what it lies on.
        config: what this medium is like.
        store_keys: what opens stores, sealed.

    Raises:
        ConfigError: a file that the configuration names is not what it must be.
        MediumError: remetal is not installed as a whole.
    """
    now = build_time()
    built = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    version = importlib.metadata.version("remetal")
    key = recovery_key_content(config)
    files = sources()
    everything: dict[str, tuple[bytes, int]] = {}
    for path, content in [*files.items(), *_compiled(files), *_metadata(files)]:
        everything[f"{SITE_PACKAGES}/{path}"] = (content, 0o644)
    motd = render("motd.j2", title=config.title, version=version, kernel=base.kernel, built=built)
    everything |= {
        "etc/hostname": (f"{_HOSTNAME}\n".encode(), 0o644),
        "etc/hosts": (f"127.0.0.1 localhost {_HOSTNAME}\n::1 localhost\n".encode(), 0o644),
        "etc/motd": (motd.encode(), 0o644),
        # Serial consoles and logs would show its control codes.
        "root/.inputrc": (b"set enable-bracketed-paste off\n", 0o644),
        "init": (render("init.sh.j2", keyboard=config.keyboard).encode(), 0o755),
        "usr/local/bin/remetal": (_COMMAND.encode(), 0o755),
        "usr/local/lib/remetal/session": (render("session.sh.j2").encode(), 0o755),
        "usr/local/sbin/remetal-console": (
            b"#!/usr/bin/python3 -IS\n" + Path(console.__file__).read_bytes(),
            0o755,
        ),
    }
    for action in ("poweroff", "reboot"):
        script = render("power.sh.j2", action=action)
        everything[f"usr/local/sbin/{action}"] = (script.encode(), 0o755)
    everything["usr/local/lib/remetal/dhcp"] = (
        render("dhcp.sh.j2", folder="/run/remetal/network", resolver="/etc/resolv.conf").encode(),
        0o755,
    )
    stores.check_repositories(config)
    belongings = {
        "recovery_key": ("recovery.key", key),
        "known_hosts": ("known_hosts", stores.known_hosts(config)),
        "store_keys": ("store.keys", store_keys),
        "authorities": ("authorities.pem", stores.authorities(config)),
    }
    everything |= {
        f"etc/remetal/{name}": (content, 0o600)
        for name, content in belongings.values()
        if content is not None
    }
    description = {
        "title": config.title,
        "version": version,
        "built": built,
        "repositories": config.repositories,
        "network": msgspec.to_builtins(config.network),
        **{
            field: f"/etc/remetal/{name}" if content is not None else None
            for field, (name, content) in belongings.items()
        },
    }
    # The id is made from all the rest, so that it needs no randomness.
    rest = repr((base.key, now, sorted(everything.items()), description))
    medium = uuid.uuid5(uuid.NAMESPACE_OID, rest)
    document = json.dumps({**description, "medium": str(medium)}, indent=2, ensure_ascii=False)
    everything["etc/remetal/medium.json"] = (document.encode() + b"\n", 0o644)
    return _archive(everything, now), medium


def _archive(files: dict[str, tuple[bytes, int]], mtime: int) -> bytes:
    sink = io.BytesIO()
    writer = CpioWriter(sink, mtime)
    folders = {parent for name in files for parent in PurePosixPath(name).parents}
    for folder in sorted(folders - {PurePosixPath()}):
        writer.folder(str(folder))
    for name, (content, mode) in sorted(files.items()):
        writer.file(name, content, mode)
    writer.close()
    return sink.getvalue()
