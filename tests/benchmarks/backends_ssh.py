"""ssh:// and sftp:// beside OpenSSH's own `sftp`: the same sshd, the same cipher, the same files.

Every run begins with connecting. `sftp` flushes each file on the far side too (`put -f`), as a
backend must.
"""

import mmap
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from imager.repository.backend.opening import open_backend
from imager.repository.backend.place import Place
from tests.benchmarks.pairs import Row, in_turns, seconds_of
from tests.stores.ssh import Sshd, running

_LEAST: Final = {"ssh": 0.9, "sftp": None}


def rows(folder: Path, files: Sequence[Path], pairs: int) -> Iterator[Row]:
    """Yield what both do; see `backends.Side`."""
    size = sum(path.stat().st_size for path in files)
    beside, back = folder / "beside", folder / "back"
    (folder / "sshd").mkdir()
    with running(folder / "sshd") as sshd:
        plain, served = sshd.new_key("plain"), sshd.new_key("served")
        sshd.authorize(f'restrict,command="internal-sftp" {Path(f"{plain}.pub").read_text()}')
        sshd.serve(served, folder / "ssh", "--append-only")
        sftp = partial(_sftp, sshd, plain)
        their_put = partial(sftp, [f"put -f {path} {beside}/" for path in files])
        their_get = partial(sftp, [f"get {beside}/{path.name} {back}/" for path in files])
        servers = partial(seconds_of, sshd.pid)
        for scheme, key in (("ssh", served), ("sftp", plain)):
            place, stores = sshd.place(scheme, key, folder / scheme), (folder / scheme, beside)
            row = partial(Row, f"{scheme}://", "sftp -b", size=size, least=_LEAST[scheme])
            our_put, our_get = partial(put, place, files), partial(get, place, files, back)
            runs = in_turns(pairs, our_put, their_put, partial(empty, *stores), servers)
            yield row("put", ours=runs[0], theirs=runs[1])
            empty(*stores)
            our_put()
            their_put()
            runs = in_turns(pairs, our_get, their_get, partial(empty, back), servers)
            yield row("get", ours=runs[0], theirs=runs[1])
            empty(*stores, back)


def put(place: Place, files: Iterable[Path]) -> None:
    """Move all files to a place."""
    backend = open_backend(place)
    for path in files:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        assert backend.put_new(_name(path), [memoryview(data)])


def get(place: Place, files: Iterable[Path], back: Path) -> None:
    """Move them back, into a folder."""
    backend = open_backend(place)
    for path in files:
        (back / path.name).write_bytes(backend.get(_name(path)))


def _name(path: Path) -> str:
    return f"packs/{path.name[:2]}/{path.name}"


def _sftp(sshd: Sshd, key: Path, batch: Iterable[str]) -> None:
    options = {
        "Ciphers": "aes128-gcm@openssh.com",
        "UserKnownHostsFile": sshd.known_hosts,
        "IdentitiesOnly": "yes",
        "IdentityFile": key,
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    subprocess.run(
        ["sftp", "-q", "-b", "-", "-P", str(sshd.port), *words, "root@127.0.0.1"],
        input="\n".join(batch).encode(),
        stdout=subprocess.DEVNULL,
        check=True,
    )


def empty(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
