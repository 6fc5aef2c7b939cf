"""Plans of drills as golden text: what a person checks line by line, without what changes by itself.

Amounts of content, ids, times and what arrays count are masked; disks, places, volumes, layers and the order stay.
After a change that was meant: `python -m tests.drills.plans .cache/drills/report.json`.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

FOLDER = Path(__file__).with_name("plans")
# A plan is wrapped for a console; where it breaks depends on amounts.
_STARTS = r" (?=\d+\. (?:/dev|firmware|restored)|/dev/\w+: serial|Note: |Steps: |takes disk|with disk|chosen because: |Writes )"
_MASKS = (
    (r"^Restore (\S+) \([0-9a-f-]+\)", r"Restore \1 (ID)"),
    (r"from image \w+, taken .*? ALL DATA", "from image ID, taken TIME. ALL DATA"),
    (r"\d+ data, \d+ zeros, \d+ free", "N data, N zeros, N free"),
    (r"compare \d+ bytes", "compare N bytes"),
    (r"\(events \d+\)", "(events N)"),
    (
        r"Writes \S+ \S+, of it \S+ \S+ from the image(.*?); reads \S+ \S+ back",
        r"Writes N\1; reads N back",
    ),
    (r"saved from \S*/", "saved from …/"),
    (r"began .*? UTC and stopped after .*? UTC", "began TIME and stopped after TIME"),
)


def masked(plan: Sequence[str]) -> str:
    """Return a plan, or why there is none, for comparison."""
    text = re.sub(r"\s+", " ", " ".join(plan)).strip()
    for pattern, mask in _MASKS:
        text = re.sub(pattern, mask, text)
    return re.sub(_STARTS, "\n", text) + "\n"


def golden(name: str, firmware: str, variation: str) -> Path:
    """Return the file that holds the plan of a drill."""
    return FOLDER / f"{name}.{firmware}.{variation}.txt"


def main() -> None:
    """Take the plans of a report for golden."""
    report: dict[str, Any] = msgspec.json.decode(Path(sys.argv[1]).read_bytes())
    FOLDER.mkdir(exist_ok=True)
    for drill in report["drills"]:
        if drill["outcome"] == "FAILED":
            continue
        path = golden(drill["name"], drill["firmware"], drill["variation"])
        path.write_text(masked(drill["plan"] or [drill["proof"]]))


if __name__ == "__main__":
    main()
