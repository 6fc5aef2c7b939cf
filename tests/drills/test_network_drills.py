"""Whole drills with the repository on the network: SSH append-only, plain SFTP, and an S3 store."""

import contextlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from bootmedia.config import MediumConfig
from bootmedia.medium import medium_kernel
from restore.drill import accelerator, evidence, fixture, run
from restore.drill.bring_back import Settings
from restore.drill.qemu import Accelerator, Bus, Drive, Firmware, UserNetwork, Vm, VmSpec
from restore.drill.reach import Reach, reach
from restore.drill.report import Outcome
from restore.drill.run import Store
from restore.drill.scenario import RESCUE_MEMORY_MIB, Medium, Places, Scenario
from tests.stores.seaweedfs import SeaweedFS
from tests.stores.ssh import Sshd, running

CACHE = fixture.checkout() / ".cache"
_PHRASE: Final = "four random words here"
_AGREE: Final = b"Type overwrite to start"
_START: Final = 900.0  # seconds, on a busy machine without KVM
_ANSWER: Final = 300.0
_RESTORE: Final = 1800.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="session")
def chosen() -> Accelerator:
    return accelerator.choose(lambda: medium_kernel(MediumConfig(), CACHE, print)).accelerator


def ssh_store(sshd: Sshd, folder: Path) -> Store:
    """Three keys: one makes the repository, one adds and removes nothing, one reads."""
    rights = {"owner": "--may-delete", "machine": "--append-only", "rescue": "--read-only"}
    keys = {name: sshd.new_key(name) for name in rights}
    for name, option in rights.items():
        sshd.serve(keys[name], folder / "repository", option, "--name", name)
    places = {name: sshd.place("ssh", key, folder / "repository") for name, key in keys.items()}
    return Store(**places)


@contextlib.contextmanager
def ssh(folder: Path) -> Iterator[Store]:
    with running(folder) as sshd:
        yield ssh_store(sshd, folder)
        assert "removed" not in sshd.served
        assert "refused" not in sshd.served


@contextlib.contextmanager
def sftp(folder: Path) -> Iterator[Store]:
    with running(folder) as sshd:
        key = sshd.new_key("key")
        public = Path(f"{key}.pub").read_text()
        sshd.authorize(f'restrict,command="internal-sftp" {public}')
        yield Store.of(sshd.place("sftp", key, folder / "repository"))


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[Store]:
    """A bucket with object lock, and the keys that a captured machine holds."""
    with contextlib.closing(SeaweedFS(folder)) as engine:
        bucket = engine.new_bucket(locked=True)
        machine = engine.place(bucket, engine.capture)
        yield Store(engine.place(bucket, engine.owner), machine, machine)


@pytest.mark.parametrize("store", [ssh, sftp, s3], ids=lambda store: store.__name__)
def test_a_destroyed_machine_comes_back_over_the_network(
    store: Callable[[Path], contextlib.AbstractContextManager[Store]],
    chosen: Accelerator,
    tmp_path: Path,
) -> None:
    (tmp_path / "store").mkdir()
    with store(tmp_path / "store") as made:
        choices = run.Choices(None, Medium.CD, None, CACHE, store=made)
        settings = Settings(chosen, print, keep=tmp_path / "drill")
        result = run.drill_fixture("bios-ext4", choices, settings)
    assert result.outcome is Outcome.PROVEN, f"{result.proof} (kept in {result.kept})"
    assert result.differences == ()
    assert result.facts > 0
    shutil.rmtree(tmp_path)  # disks


class Person:
    """Sits at the serial console of the rescue medium."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    def read(self, pattern: str, timeout: float = _ANSWER) -> re.Match[bytes]:
        return self._vm.wait_serial(0, pattern, timeout)

    def answer(self, question: str, line: str, timeout: float = _ANSWER) -> None:
        self.read(question, timeout)
        self._vm.send(0, f"{line}\r")

    def agree(self) -> None:
        """Turn the pages of the plan, and agree."""
        while self.read(r"Enter shows them|Type overwrite to start").group() != _AGREE:
            self._vm.send(0, "\r")
        self._vm.send(0, "overwrite\r")


def _saved(store: Store, folder: Path) -> tuple[fixture.Fixture, run.Subject]:
    """Save a machine, and encrypt its disks as ransomware does."""
    built = fixture.build("bios-ext4", print)
    copies = fixture.copy_disks(built.disks, folder, "machine")
    (folder / "passphrase").write_text(_PHRASE + "\n")
    keys = ("--keys-dir", folder / "keys", "--passphrase-file", folder / "passphrase")
    made = fixture.remetal(fixture.Made, "init", *fixture.words(store.owner), *keys)
    words = [word for copy in copies for word in ("--disk", copy)]
    captured = fixture.remetal(
        fixture.Captured,
        "capture",
        *fixture.words(store.machine),
        *words,
        *("--credential", made.credential),
        *("--name", built.name),
    )
    for copy in copies:
        fixture.destroy(copy)
        copy.unlink()
    return built, run.open_subject(store.rescue, captured.image, made.recovery_key, _PHRASE)


def _medium(way: Reach, recovery_key: Path, folder: Path) -> Path:
    """Build a medium with all that a person needs, under one passphrase."""
    (folder / "rescue_key").write_bytes(way.ssh_key or b"")
    (folder / "known_hosts").write_bytes(way.known_hosts or b"")
    (folder / "rescue.toml").write_text(
        f"""
        repositories = ["{way.location}"]
        recovery-key = "{recovery_key}"
        ssh-key = "rescue_key"
        host-keys = "known_hosts"
        menu-seconds = 0

        [network]
        address = "10.0.2.77/24"
        """
    )
    iso = folder / "rescue.iso"
    words = ("-o", iso, "--config", folder / "rescue.toml")
    fixture.remetal(
        dict[str, Any], "media", "build", *words, "--passphrase-file", folder / "passphrase"
    )
    assert (way.ssh_key or b"").splitlines()[1] not in iso.read_bytes()
    return iso


def test_a_person_restores_through_a_cut_of_the_network_and_a_killed_server(
    chosen: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMETAL_CACHE", str(CACHE))
    with running(tmp_path) as sshd:
        built, subject = _saved(store := ssh_store(sshd, tmp_path), tmp_path)
        way = reach(store.rescue)
        plan = Scenario(
            "bios-ext4",
            Firmware.BIOS,
            Medium.CD,
            tuple(disk.blank() for disk in built.disks),
            built.memory_mib,
            built.uuid,
        )
        places = Places(tmp_path)
        for index, disk in enumerate(plan.disks):
            with places.disk(index).open("xb") as file:
                file.truncate(disk.size)
        iso = _medium(way, subject.recovery_key, tmp_path)
        # No share: nobody but the person gives orders.
        with Vm(replace(plan.rescue(places, iso, way), shares=()), chosen) as vm:
            person = Person(vm)
            person.answer(r"1  ssh://", "1", _START)
            person.answer(r"Passphrase of the keys to the stores", _PHRASE)
            person.answer(r"1  /etc/remetal/recovery.key", "1")
            person.answer(r"1  bios-ext4, ", "1")  # its passphrase was typed before
            person.agree()
            person.read(r"restore: [12]\d %", _RESTORE)
            vm.set_link(up=False)
            time.sleep(20)
            vm.set_link(up=True)
            person.read(r"restore: [34]\d %", _RESTORE)
            sshd.stop()  # kill -9, also of every session
            sshd.start()
            person.read(r"is restored, in", _RESTORE)
            person.answer(r"Type reboot, poweroff", "poweroff")
            assert vm.wait_exit(_ANSWER) == "guest-shutdown"
        assert "refused" not in sshd.served
    with Vm(plan.restored(places), chosen) as vm:
        after = evidence.wait_for_facts(vm, _START)
    assert evidence.compare_all(built.expected(), after) == ()
    shutil.rmtree(tmp_path)  # disks


def test_a_wrong_clock_is_shown_and_set_when_a_person_says_so(
    chosen: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMETAL_CACHE", str(CACHE))
    (tmp_path / "store").mkdir()
    (tmp_path / "passphrase").write_text(_PHRASE + "\n")
    phrase = ("--passphrase-file", tmp_path / "passphrase")
    with s3(tmp_path / "store") as store:
        keys = ("--keys-dir", tmp_path / "keys", *phrase)
        made = fixture.remetal(fixture.Made, "init", *fixture.words(store.owner), *keys)
        way = reach(store.rescue)
        (tmp_path / "s3.keys").touch(mode=0o600)
        (tmp_path / "s3.keys").write_bytes(way.credentials or b"")
        (tmp_path / "rescue.toml").write_text(
            f"""
            repositories = ["{way.location}"]
            recovery-key = "{made.recovery_key}"
            store-credentials = "s3.keys"
            menu-seconds = 0
            kernel-parameters = ["remetal.shell"]
            """
        )
        iso = tmp_path / "rescue.iso"
        words = ("-o", iso, "--config", tmp_path / "rescue.toml", *phrase)
        fixture.remetal(dict[str, Any], "media", "build", *words)
        assert way.outlet is not None
        spec = VmSpec(
            "clock",
            RESCUE_MEMORY_MIB,
            (Drive(iso, bus=Bus.CDROM, read_only=True, bootindex=0),),
            serials=(tmp_path / "ttyS0.log",),
            network=UserNetwork(outlets=(way.outlet,)),
        )
        with Vm(spec, chosen) as vm:
            person = Person(vm)
            person.answer(r"root@remetal-rescue:.*# ", "date -s 2001-01-01; remetal rescue", _START)
            person.answer(r"1  s3://", "1")
            person.answer(r"Passphrase of the keys to the stores", _PHRASE)
            person.read(r"This machine's clock says 2001-01-01")
            person.answer(r"Type set, keep, other", "keep")
            person.read(r"It did not work: .*(clock|time)")
            person.answer(r"1  s3://", "1")
            person.answer(r"Type set, keep, other", "set")
            person.answer(r"1  /etc/remetal/recovery.key", "1")
            person.read(r"this repository holds no image")
