"""What a fixture machine hashes of a btrfs: subvolumes below a mountpoint, and no other filesystem."""

import json
import subprocess
import sys
from pathlib import Path

from kernel_mounts import loop

from imager import process

GUEST = Path(__file__).parents[2] / "vm-fixtures" / "build" / "guest"
PROGRAM = """
import json, sys
from file_tree import Tree
tree = Tree(sys.argv[1], {sys.argv[1] + "/.snapshots/volatile"})
tree.hash()
print(json.dumps(tree.digests))
"""


def test_subvolumes_count_where_they_lie(tmp_path: Path) -> None:
    image, place = tmp_path / "disk", tmp_path / "place"
    with image.open("wb") as file:
        file.truncate(256 << 20)
    process.run("mkfs.btrfs", "-q", image)
    place.mkdir()
    with loop(image) as device:
        process.run("mount", device, place)
        try:
            (place / "first").write_text("content")
            (place / "second").hardlink_to(place / "first")
            (place / ".snapshots").mkdir()
            snapshot = place / ".snapshots/1"
            process.run("btrfs", "subvolume", "snapshot", "-r", place, snapshot)
            (place / "other").mkdir()
            process.run("mount", "-t", "tmpfs", "other", place / "other")
            (place / "other/file").write_text("of another filesystem")
            argv = (sys.executable, "-c", PROGRAM, place)
            text = subprocess.run(argv, check=True, capture_output=True, text=True, cwd=GUEST)
            process.run("umount", place / "other")
        finally:
            process.run("umount", place)
    found = json.loads(text.stdout)
    names = {str(Path(path).relative_to(place)) for path in found}
    assert {".snapshots/1/first", ".snapshots/1/second", "first", "second"} <= names
    assert "other/file" not in names
    # Each snapshot has hard links of its own: the content is read under the first name in each.
    assert found[f"{place}/.snapshots/1/first"].split()[1:] == found[f"{place}/first"].split()[1:]
    assert len(found[f"{place}/.snapshots/1/first"].split()) == 2
