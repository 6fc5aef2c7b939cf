"""Where the extents of logical volumes come on a physical volume of another size."""

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from linear_groups import EXTENT, IDENTIFIER, START, text_of

from imager.layout.filesystem import Filesystem
from imager.probe.lvm_text import number, parse, section, string, strings
from imager.probe.structure import StructureError
from imager.units import MIB
from restore.linear_group import (
    FittedGroup,
    LinearGroup,
    LinearVolume,
    fit,
    least_length,
    moves,
    pairs,
    read_group,
)

Runs = list[tuple[int, int]]


def group_of(volumes: dict[str, Runs], extents: int) -> LinearGroup:
    return read_group(text_of(volumes, extents), IDENTIFIER)


def runs_of(fitted: FittedGroup) -> dict[str, Runs]:
    return {
        volume.name: [(run.first, run.count) for run in volume.runs] for volume in fitted.volumes
    }


def fitted(
    group: LinearGroup, extents: int, least: dict[str, int], grows: str | None = None
) -> FittedGroup:
    """Fit a group; filesystems are those that volumes are named for."""
    kinds = [Filesystem(volume.name.rstrip("0123456789")) for volume in group.volumes]
    length = START + extents * EXTENT
    return fit("disk0/p2", group, length, kinds, bytes_of(least), grows)


def bytes_of(least: dict[str, int]) -> Callable[[LinearVolume], int]:
    return lambda volume: least.get(volume.name, volume.extents) * EXTENT


def test_free_extents_at_the_end_go_and_nothing_moves() -> None:
    volumes = {"ext": [(0, 30)], "swap": [(40, 10)]}
    group = group_of(volumes, 100)
    found = fitted(group, 50, {"ext": 5, "swap": 5})
    assert runs_of(found) == volumes
    text = parse(found.text)["system"]
    assert isinstance(text, dict)
    own = section(section(text, "physical_volumes"), "pv0")
    assert (number(own, "pe_count"), number(own, "dev_size")) == (50, 51 * MIB // 512)


def test_what_lies_behind_the_end_moves_into_the_smallest_hole_that_holds_all() -> None:
    group = group_of({"ext": [(10, 20), (80, 6)], "xfs": [(38, 12)]}, 100)
    found = fitted(group, 60, {})
    # Free are 0 to 9, 30 to 37 and 50 to 59.
    assert runs_of(found) == {"ext": [(10, 20), (30, 6)], "xfs": [(38, 12)]}
    saved, here = group.volumes[0], found.volumes[0]
    assert list(moves(saved, here)) == [(80, 30, 6)]
    assert list(pairs(saved, here)) == [(10, 10, 20), (80, 30, 6)]


def test_only_what_lies_behind_the_end_moves_and_is_cut_where_no_hole_holds_it() -> None:
    group = group_of({"xfs": [(4, 4), (50, 30)]}, 80)
    found = fitted(group, 60, {})
    # The end of the second run goes on right behind the first.
    assert runs_of(found) == {"xfs": [(4, 4), (50, 10), (8, 20)]}
    tight = fitted(group_of({"xfs": [(4, 4), (10, 44), (70, 8)]}, 80), 56, {})
    assert runs_of(tight) == {"xfs": [(4, 4), (10, 44), (54, 2), (0, 4), (8, 2)]}


def test_swap_gives_first_then_the_filesystem_with_the_most_room() -> None:
    group = group_of({"ext": [(0, 40)], "btrfs": [(40, 30)], "swap": [(70, 10)]}, 80)
    least = {"ext": 30, "btrfs": 5, "swap": 4}
    assert least_length(group, bytes_of(least)) == START + 39 * EXTENT
    sizes = [
        {volume.name: volume.extents for volume in fitted(group, extents, least).volumes}
        for extents in (77, 70, 49, 39)
    ]
    assert sizes == [
        {"ext": 40, "btrfs": 30, "swap": 7},
        {"ext": 40, "btrfs": 26, "swap": 4},
        {"ext": 40, "btrfs": 5, "swap": 4},
        {"ext": 30, "btrfs": 5, "swap": 4},
    ]


def test_one_volume_grows_from_where_it_ends() -> None:
    group = group_of({"ext": [(0, 10)], "xfs": [(15, 5)]}, 20)
    found = fitted(group, 30, {}, "ext")
    assert runs_of(found) == {"ext": [(0, 15), (20, 10)], "xfs": [(15, 5)]}
    assert fitted(group, 30, {}).volumes == group.volumes


def test_the_text_keeps_all_but_places_and_sizes() -> None:
    group = group_of({"ext": [(0, 40)], "swap": [(60, 20)]}, 80)
    found = fitted(group, 50, {"ext": 10, "swap": 10})
    before, after = parse(group.text), parse(found.text)
    assert list(before) == list(after)
    old, new = before["system"], after["system"]
    assert isinstance(old, dict)
    assert isinstance(new, dict)
    assert (number(new, "seqno"), found.change) == (9, 9)
    for key in ("id", "format", "status", "flags", "tags", "extent_size", "max_lv"):
        assert old[key] == new[key]
    for name in ("ext", "swap"):
        one, other = (section(section(each, "logical_volumes"), name) for each in (old, new))
        for key in ("id", "status", "tags", "creation_host"):
            assert one[key] == other[key]
    assert list(section(new, "logical_volumes")) == ["ext", "swap"]
    assert strings(new, "tags") == ["ward-3", "site-1"]
    assert string(section(section(new, "logical_volumes"), "ext"), "creation_host") == 'a "host"'


def scattered(rng: random.Random) -> tuple[dict[str, Runs], int]:
    """Logical volumes of several runs each, anywhere."""
    extents = rng.randrange(30, 200)
    borders = sorted(rng.sample(range(extents + 1), rng.randrange(4, 16)))
    runs = [(low, high - low) for low, high in pairwise(borders) if rng.random() < 0.8]
    rng.shuffle(runs)
    volumes: dict[str, Runs] = {}
    for run in runs:
        name = rng.choice(("ext", "btrfs", "swap1", "swap2", "xfs"))
        volumes.setdefault(name, []).append(run)
    return volumes, extents


@pytest.mark.parametrize("seed", range(300))
def test_no_two_volumes_overlap_and_all_are_inside_and_as_large_as_they_must(seed: int) -> None:
    rng = random.Random(seed)
    volumes, extents = scattered(rng)
    group = group_of(volumes, extents)
    least = {
        name: rng.randrange(1, sum(count for _, count in runs) + 1)
        for name, runs in volumes.items()
        if name != "xfs"
    }
    smallest = least_length(group, bytes_of(least)) // EXTENT - 1
    there = rng.randrange(smallest, extents + 40)
    grows = rng.choice([None, *volumes]) if there > extents else None
    found = fitted(group, there, least, grows)
    again = read_group(found.text, IDENTIFIER)  # refuses what overlaps or lies behind the end
    assert [each.runs for each in again.volumes] == [
        tuple(run.__class__(run.first, run.count, at) for at, run in enumerate(each.runs, 1))
        for each in found.volumes
    ]
    taken = [
        extent
        for each in found.volumes
        for run in each.runs
        for extent in range(run.first, run.end)
    ]
    assert len(taken) == len(set(taken))
    assert all(0 <= extent < there for extent in taken)
    for saved, here in zip(group.volumes, found.volumes, strict=True):
        assert here.name == saved.name
        if here.extents < saved.extents:
            assert here.extents >= least[saved.name]
            assert len(taken) == there, "nothing shrinks more than it must"
        assert here.extents <= saved.extents or saved.name == grows
        old = [each for run in saved.runs for each in range(run.first, run.end)]
        new = [each for run in here.runs for each in range(run.first, run.end)]
        mapped = [
            (before + at, after + at)
            for before, after, count in pairs(saved, here)
            for at in range(count)
        ]
        assert mapped == list(zip(old, new, strict=False))
        assert all(before == after for before, after in mapped if before < there), "it could stay"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('type = "striped"', 'type = "raid1"', "LV ext is not linear, but raid1"),
        ("stripe_count = 1", "stripe_count = 2", "LV ext is not linear"),
        ('"VISIBLE"]', '"VISIBLE", "LOCKED"]', "LV ext is locked"),
        (', "VISIBLE"]', "]", "LV ext is hidden"),
        ('"pv0", 0', '"pv0", 35', "have the same extents"),
        ('"pv0", 40', '"pv0", 99', "behind the last extent"),
        ('"RESIZEABLE", ', '"RESIZEABLE", "EXPORTED", ', "VG 'system' has EXPORTED"),
        ('format = "lvm2"', 'format = "lvm2"\nlock_type = "sanlock"', "shared between machines"),
        ('"ALLOCATABLE"]', '"ALLOCATABLE"]\nba_start = 3', "otherwise than its label"),
        ('status = ["ALLOCATABLE"]', 'status = ["MISSING"]', "not in its usual state"),
        ("pv0 {", "pv1 {\n}\npv0 {", "has 2 physical volumes"),
        ("start_extent = 0", "start_extent = 1", "LV ext has a gap"),
    ],
)
def test_what_is_not_plain_is_refused_with_the_reason(old: str, new: str, why: str) -> None:
    text = text_of({"ext": [(0, 40)], "swap": [(40, 20)]}, 80)
    assert old in text
    with pytest.raises(StructureError, match=why):
        read_group(text.replace(old, new, 1), IDENTIFIER)
