"""What the rescue medium does: orders without a person, and the dialogue with one."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import killed
import pytest
from restored_disks import PASSPHRASE, SIZE, Saved, digest, make_foreign, probe
from test_restore_devices import loop

from imager import process
from imager.blockdev import BlockDisk
from imager.console import Output
from imager.layout.disk import DiskIdentity
from imager.units import MIB
from restore import attached, unattended, windows
from restore.commands.rescue import rescue
from restore.console_ui import repositories
from restore.console_ui.dialogue import Dialogue
from restore.console_ui.repositories import Found
from restore.console_ui.terminal import Terminal
from restore.medium import AtEnd, Medium, find_shares, on_medium, read_medium
from restore.unattended import REPORT

SERIAL = "WD-WX41A"


@pytest.fixture
def share(saved: Saved, tmp_path: Path) -> Path:
    folder = tmp_path / "share"
    folder.mkdir()
    shutil.copy(saved.folder / "keys" / "recovery.key", folder)
    (folder / "passphrase").write_text(PASSPHRASE + "\n")
    return folder


def order(saved: Saved, share: Path, **fields: object) -> None:
    document = {
        "repository": str(saved.repository),
        "image": "bios",
        "recovery_key": "recovery.key",
        "passphrase_file": "passphrase",
        "verify_written": True,
        "at_end": "reboot",
        "maps": {"disk0": str(share.parent / "target.raw")},
        **fields,
    }
    (share / "job.json").write_text(json.dumps(document))


def run(share: Path) -> tuple[AtEnd, dict[str, object]]:
    at_end = unattended.run(Output(), share, Medium("Rescue", "1"), lambda: None)
    return at_end, json.loads((share / REPORT).read_text())


def test_an_order_is_carried_out_and_reported(saved: Saved, share: Path) -> None:
    order(saved, share)
    at_end, report = run(share)
    assert at_end is AtEnd.REBOOT
    assert report["outcome"] == "restored"
    assert report["error"] is None
    steps = report["steps"]
    assert isinstance(steps, list)
    assert [step["name"] for step in steps][:3] == ["open-image", "plan", "make-file"]
    assert all({"name", "seconds", "bytes"} <= {*step} for step in steps)
    assert isinstance(report["plan"], list)
    assert "ALL DATA on these disks will be replaced:" in report["plan"]
    assert "Restored; finished" in (share / "restore.log").read_text()
    assert digest(share.parent / "target.raw") == digest(saved.mbr)


def test_an_order_can_ask_for_differences_only(saved: Saved, share: Path) -> None:
    shutil.copy(saved.mbr, share.parent / "target.raw")
    order(saved, share, delta=True)
    at_end, report = run(share)
    assert (at_end, report["outcome"]) == (AtEnd.REBOOT, "restored")
    assert isinstance(report["steps"], list)
    assert "compare" in [step["name"] for step in report["steps"]]
    assert sum(step["bytes"] for step in report["steps"] if step["name"] == "write") == 0


@pytest.fixture
def repository_disk(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A disk of the size of the saved one, with the repository in a folder of its filesystem."""
    monkeypatch.setattr(attached, "MOUNTS", tmp_path / "mnt")
    shutil.copytree(saved.repository, tmp_path / "content" / "images")
    image = tmp_path / "repository.img"
    words = ("-q", "-t", "ext4", "-L", "REMETAL-STORE", "-d", tmp_path / "content")
    process.run("mke2fs", *words, image, f"{SIZE // 1024}k")
    with loop(image) as device:
        yield device
        for place in attached.mounted():
            attached.unmount(place)


def test_the_disk_that_holds_the_repository_is_refused_whatever_the_order_says(
    saved: Saved, share: Path, repository_disk: Path
) -> None:
    within = {"filesystem": "LABEL=REMETAL-STORE", "repository": "images"}
    order(saved, share, **within, maps={"disk0": str(repository_disk)})
    before = digest(repository_disk)
    at_end, report = run(share)
    assert (at_end, report["outcome"]) == (AtEnd.POWEROFF, "failed")
    assert isinstance(report["error"], dict)
    assert report["error"]["id"] == "forbidden-target"
    assert "holds the repository" in report["error"]["message"]
    order(saved, share, **within)
    assert run(share)[0] is AtEnd.REBOOT
    assert digest(share.parent / "target.raw") == digest(saved.mbr)
    assert digest(repository_disk) == before


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"filesystem": "LABEL=REMETAL-OTHER"}, "no filesystem here has LABEL=REMETAL-OTHER"),
        ({"filesystem": "LABEL=REMETAL-STORE", "repository": "../images"}, "is no path within"),
        ({"filesystem": "LABEL=REMETAL-STORE", "repository": "/images"}, "is no path within"),
    ],
)
def test_an_order_names_a_path_in_a_filesystem_that_is_here(
    saved: Saved, share: Path, repository_disk: Path, fields: dict[str, object], words: str
) -> None:
    order(saved, share, **{"repository": "images", **fields})
    _, report = run(share)
    assert isinstance(report["error"], dict)
    assert report["error"]["id"] == "config"
    assert words in report["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "error_id"),
    [
        ({"image": "nobody"}, "unknown-image"),
        ({"repository": "/nowhere"}, "not-a-repository"),
        ({"passphrase_file": "missing"}, "secret"),
        ({"recovery_key": "missing"}, None),
        ({"maps": {"disk0": "/nowhere/x"}}, "no-target"),
        ({"at_end": "dance"}, "config"),
        ({"surprise": 1}, "config"),
    ],
)
def test_a_failing_order_is_reported_and_powers_off(
    saved: Saved, share: Path, fields: dict[str, object], error_id: str | None
) -> None:
    order(saved, share, **fields)
    at_end, report = run(share)
    assert at_end is AtEnd.POWEROFF, "never a reboot into a half-restored disk"
    assert report["outcome"] == "failed"
    error = report["error"]
    assert isinstance(error, dict)
    assert {*error} == {"id", "message", "hint", "exit_code"}
    if error_id is not None:
        assert error["id"] == error_id
    assert "FAILED" in (share / "restore.log").read_text()


def test_a_wrong_passphrase_is_reported(saved: Saved, share: Path) -> None:
    order(saved, share)
    (share / "passphrase").write_text("something else\n")
    at_end, report = run(share)
    assert (at_end, report["outcome"]) == (AtEnd.POWEROFF, "failed")
    assert isinstance(report["error"], dict)
    assert report["error"]["id"] == "wrong-passphrase"


def test_whatever_breaks_is_reported(
    saved: Saved, share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order(saved, share)
    monkeypatch.setattr(unattended.job, "carry_out", lambda *_: 1 / 0)
    at_end, report = run(share)
    assert at_end is AtEnd.POWEROFF
    assert isinstance(report["error"], dict)
    assert "ZeroDivisionError" in report["error"]["message"]


def test_no_order_is_reported(share: Path) -> None:
    at_end, report = run(share)
    assert at_end is AtEnd.POWEROFF
    assert isinstance(report["error"], dict)
    assert "job.json" in report["error"]["message"]


def test_tags_of_shares(tmp_path: Path) -> None:
    for number, tag in enumerate((b"remetal-job\0", b"remetal-repository\n")):
        (tmp_path / f"virtio{number}").mkdir()
        (tmp_path / f"virtio{number}" / "mount_tag").write_bytes(tag)
    assert find_shares(tmp_path) == {"remetal-job", "remetal-repository"}
    assert find_shares(tmp_path / "none") == frozenset()


def test_the_mediums_description(tmp_path: Path) -> None:
    path = tmp_path / "medium.json"
    assert not on_medium(path)
    path.write_text(
        '{"title": "T", "version": "1", "built": "x", "repositories": ["/r"], '
        '"recovery_key": "/etc/remetal/recovery.key", "medium": "m"}'
    )
    assert on_medium(path)
    assert read_medium(path) == Medium("T", "1", ("/r",), Path("/etc/remetal/recovery.key"))


def test_the_verb_does_nothing_on_another_system() -> None:
    assert not on_medium()
    with pytest.raises(Exception, match="not started from a rescue medium"):
        rescue.main(["--quiet"], standalone_mode=False)


class Person:
    """Types what a list says, one line for each prompt; a function looks at something first."""

    def __init__(self, *lines: str | Callable[[], str]) -> None:
        self.lines = list(lines)
        self.prompts: list[str] = []

    def prompt(self, text: str, **_: object) -> str:
        self.prompts.append(text)
        if not self.lines:
            raise click.Abort
        line = self.lines.pop(0)
        return line if isinstance(line, str) else line()


@pytest.fixture
def talk(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[AtEnd, Person]]:
    """Run the dialogue with the disks of a machine that has two equal ones."""
    store = tmp_path / "store"
    store.mkdir()
    (store / "remetal.passphrase").write_text(PASSPHRASE + "\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(store))
    disks = []
    for name in ("one.raw", "two.raw"):
        path = tmp_path / name
        with path.open("wb") as file:
            file.write(b"old")
            file.truncate(SIZE)
        identity = DiskIdentity(SIZE, 512, serial=name)
        disks.append(
            BlockDisk(path, identity, (), read_only=False, removable=False, is_device=False)
        )
    monkeypatch.setattr("imager.blockdev.list_disks", lambda: tuple(disks))

    def look(_: list[Path]) -> Found:
        return Found((saved.repository,), (saved.folder / "keys" / "recovery.key",))

    def run_dialogue(*lines: str | Callable[[], str]) -> tuple[AtEnd, Person]:
        person = Person(*lines)
        monkeypatch.setattr(click, "prompt", person.prompt)
        dialogue = Dialogue(Terminal(Output()), Medium("Rescue", "1"), look, tmp_path / "log")
        return dialogue.run(), person

    return run_dialogue


def image_number(capsys: pytest.CaptureFixture[str], name: str) -> Callable[[], str]:
    def answer() -> str:
        shown = capsys.readouterr().out.splitlines()
        return next(line.split()[0] for line in shown if f"  {name}, " in line)

    return answer


def test_a_person_restores_a_machine(
    saved: Saved,
    tmp_path: Path,
    talk: Callable[..., tuple[AtEnd, Person]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    untouched = digest(tmp_path / "two.raw")

    def agree() -> str:
        shown = capsys.readouterr().out
        assert "This overwrites:" in shown
        assert str(tmp_path / "one.raw") in shown
        assert digest(tmp_path / "one.raw") == untouched
        return "overwrite"

    at_end, person = talk(
        "1",  # the repository
        "1",  # the recovery key
        image_number(capsys, "bios"),
        "1",  # two equal disks: which one takes disk0
        "",  # Enter shows the rest of the plan
        "",  # and means nothing at the question
        agree,
        "reboot",
    )
    assert at_end is AtEnd.REBOOT
    assert not person.lines
    assert digest(tmp_path / "one.raw") == digest(saved.mbr)
    assert digest(tmp_path / "two.raw") == untouched
    assert "is restored, in" in capsys.readouterr().out


def test_a_person_has_all_read_back_and_only_differences_written(
    saved: Saved,
    tmp_path: Path,
    talk: Callable[..., tuple[AtEnd, Person]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(saved.mbr, tmp_path / "one.raw")
    lines: list[str | Callable[[], str]] = ["1", "1", image_number(capsys, "bios"), "1"]
    lines += ["", "verify", "", "delta", "", "delta", "", "delta", "", "overwrite", "reboot"]
    at_end, _ = talk(*lines)
    assert at_end is AtEnd.REBOOT
    assert digest(tmp_path / "one.raw") == digest(saved.mbr)
    shown = capsys.readouterr().out
    assert "verify: read everything back afterwards: yes" in shown
    assert "delta: write only what differs on these disks: yes" in shown
    assert "nothing differs from the image" in shown
    assert "is restored and verified" in shown


def test_a_person_sees_what_is_resumed_and_can_begin_anew(
    saved: Saved,
    tmp_path: Path,
    talk: Callable[..., tuple[AtEnd, Person]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(windows, "WINDOW", 6)
    half = [f"disk0={tmp_path / 'one.raw'}", "--yes"]
    assert killed.restore(saved, "bios", "--map", *half, kill_at=60).code == -9
    lines: list[str | Callable[[], str]] = ["1", "1", image_number(capsys, "bios"), "1"]
    lines += ["", "anew", "", "anew", "", "overwrite", "reboot"]
    at_end, _ = talk(*lines)
    assert at_end is AtEnd.REBOOT
    shown = capsys.readouterr().out
    assert "resume the restore that began" in shown
    assert "anew: begin from the start, not where the last restore stopped: no" in shown
    assert "anew: begin from the start, not where the last restore stopped: yes" in shown
    assert digest(tmp_path / "one.raw") == digest(saved.mbr)


def test_a_person_is_asked_whether_a_smaller_disk_shall_do(
    saved: Saved,
    tmp_path: Path,
    talk: Callable[..., tuple[AtEnd, Person]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    os.truncate(tmp_path / "one.raw", 110 * MIB)

    def agree() -> str:
        shown = capsys.readouterr().out
        assert "The data would fit: with --fit, disk0/p3 (swap" in shown
        assert "fit: shrink what has room" in shown
        assert "delta: " not in shown
        return "overwrite"

    lines: list[str | Callable[[], str]] = ["1", "1", image_number(capsys, "uefi"), "1"]
    at_end, person = talk(*lines, "fit", "", "", agree, "reboot")
    assert at_end is AtEnd.REBOOT
    assert not person.lines
    table = probe(tmp_path / "one.raw").table
    assert table is not None
    assert [part.offset // MIB for part in table.partitions] == [1, 33, 93]


def test_an_order_fits_only_if_it_says_so(saved: Saved, share: Path) -> None:
    target = share.parent / "target.raw"
    target.write_bytes(bytes(110 * MIB))
    order(saved, share, image="uefi")
    _, report = run(share)
    assert report["outcome"] == "failed"
    order(saved, share, image="uefi", fit=True)
    _, report = run(share)
    assert report["outcome"] == "restored"
    assert probe(target).table is not None


@pytest.mark.parametrize("anew", [False, True])
def test_an_order_resumes_unless_it_says_anew(
    saved: Saved, share: Path, anew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "WINDOW", 6)
    target = share.parent / "target.raw"
    words = ["bios", "--map", f"disk0={target}", "--yes"]
    assert killed.restore(saved, *words, kill_at=60).code == -9
    order(saved, share, anew=anew)
    _, report = run(share)
    assert report["outcome"] == "restored"
    assert isinstance(report["steps"], list)
    assert ("resume" in {step["name"] for step in report["steps"]}) is not anew
    assert digest(target) == digest(saved.mbr)


def test_enter_alone_does_nothing_and_the_end_of_input_leaves_to_the_shell(
    tmp_path: Path, talk: Callable[..., tuple[AtEnd, Person]], capsys: pytest.CaptureFixture[str]
) -> None:
    before = digest(tmp_path / "one.raw")
    at_end, person = talk("1", "1", image_number(capsys, "bios"), "1", *[""] * 30)
    assert at_end is AtEnd.SHELL
    assert person.prompts[-1].startswith("Type overwrite")
    assert digest(tmp_path / "one.raw") == before


@pytest.mark.parametrize("word", ["yes", "y", "OVERWRITE!", "1", "shell"])
def test_no_other_word_agrees(
    tmp_path: Path,
    word: str,
    talk: Callable[..., tuple[AtEnd, Person]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = digest(tmp_path / "one.raw")
    at_end, _ = talk("1", "1", image_number(capsys, "bios"), "1", "", word)
    assert at_end is AtEnd.SHELL
    assert digest(tmp_path / "one.raw") == before


def test_again_goes_back_to_the_first_question_from_anywhere(
    talk: Callable[..., tuple[AtEnd, Person]],
) -> None:
    at_end, person = talk("1", "1", "again", "1", "again", "shell")
    assert at_end is AtEnd.SHELL
    firsts = [prompt for prompt in person.prompts if "look, path" in prompt]
    assert len(firsts) == 3


def test_a_wrong_path_is_explained_and_asked_for_again(
    talk: Callable[..., tuple[AtEnd, Person]], capsys: pytest.CaptureFixture[str]
) -> None:
    talk("path", "/nowhere", "9", "shell")
    shown = capsys.readouterr().out
    assert "there is no repository at /nowhere" in shown
    assert "9 is none of them." in shown


def test_repositories_and_keys_are_found_in_folders(saved: Saved, tmp_path: Path) -> None:
    assert list(repositories.repositories_in(saved.repository)) == [saved.repository]
    assert list(repositories.repositories_in(saved.folder)) == [saved.repository]
    assert list(repositories.repositories_in(tmp_path / "none")) == []
    keys = repositories.inside(saved.folder / "keys").recovery_keys
    assert keys == (saved.folder / "keys" / "recovery.key",)


def with_serial(device: Path) -> BlockDisk:
    """As if the loop device were a disk with a serial number."""
    identity = DiskIdentity(SIZE, 512, serial=SERIAL, model="disk")
    return BlockDisk(device, identity, (), read_only=False, removable=False, is_device=True)


@pytest.mark.parametrize(
    "answers",
    [["overwrite", "wd-wx41a"], ["overwrite", str(SIZE)], ["overwrite", "overwrite"],
     [SERIAL], ["overwrite", "", SERIAL, "reboot"]],
)  # fmt: skip
def test_the_dialogue_asks_for_the_serial_after_the_word(
    answers: list[str],
    saved: Saved,
    tmp_path: Path,
    talk: Callable[..., tuple[AtEnd, Person]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = make_foreign(tmp_path / "disk")
    before = digest(disk)
    with loop(disk) as device:
        monkeypatch.setattr("imager.blockdev.list_disks", lambda: (with_serial(device),))
        at_end, person = talk("1", "1", image_number(capsys, "bios"), "", *answers)
        agreed = "reboot" in answers
        assert at_end is (AtEnd.REBOOT if agreed else AtEnd.SHELL)
        process.run("blockdev", "--flushbufs", device)
    asked = [prompt for prompt in person.prompts if "serial number" in prompt]
    assert len(asked) == answers.count("overwrite") + agreed - (answers[-1] == "overwrite")
    assert (digest(disk) != before) is agreed
    shown = " ".join(capsys.readouterr().out.split())
    assert "ext4 'data'; none of it is of this machine" in shown
    assert ("It did not work: what was typed is not the serial number of" in shown) is (
        answers[0] == "overwrite" and not agreed
    )


def test_an_order_has_to_name_it(saved: Saved, share: Path, tmp_path: Path) -> None:
    disk = make_foreign(tmp_path / "disk")
    before = digest(disk)
    with loop(disk) as device:
        maps = {"disk0": str(device)}
        for serials, error_id in (([], "foreign-target"), ([SERIAL], "usage")):
            order(saved, share, maps=maps, overwrite_serials=serials)
            at_end, report = run(share)
            assert (at_end, report["outcome"]) == (AtEnd.POWEROFF, "failed")
            assert isinstance(report["error"], dict)
            assert report["error"]["id"] == error_id
            assert "Nothing was written" in report["error"]["hint"] or error_id == "usage"
        process.run("blockdev", "--flushbufs", device)
        assert digest(disk) == before
        order(saved, share, maps=maps, overwrite_serials=[str(SIZE)])
        at_end, report = run(share)
        assert (at_end, report["outcome"]) == (AtEnd.REBOOT, "restored")
