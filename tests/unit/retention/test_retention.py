"""Retention: what goes, and above all what never does."""

import dataclasses
import math
from datetime import UTC, datetime

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from imager.commands.retention_options import policy_options
from imager.errors import UsageError
from imager.retention.picture import COLUMNS, rows, timelines
from imager.retention.policy import DEFAULT, Policy
from imager.retention.retention import BEYOND, Doubt, StoredImage, Verdict, decide
from imager.units import DAY, HOUR

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()
YEAR_2099 = datetime(2099, 1, 1, tzinfo=UTC).timestamp()


def image(
    name: str,
    age: float,
    *,
    machine: str = "web1",
    series: str = "c1",
    claimed: float | None = None,
) -> StoredImage:
    stored = NOW - age
    return StoredImage(
        name, machine, machine, series, stored, stored if claimed is None else claimed
    )


def nightly(days: int, machine: str = "web1", series: str = "c1") -> list[StoredImage]:
    return [
        image(f"{machine}-{series}-{age:04}", age * DAY, machine=machine, series=series)
        for age in range(days)
    ]


def kept(verdict: Verdict) -> set[str]:
    return {decision.image.id for decision in verdict.decisions if decision.keep}


def removed(verdict: Verdict) -> set[str]:
    return {decision.image.id for decision in verdict.decisions if not decision.keep}


def reasons(verdict: Verdict, name: str) -> tuple[str, ...]:
    return next(one.reasons for one in verdict.decisions if one.image.id == name)


def test_default_is_ninety_days_and_then_twelve_months() -> None:
    verdict = decide(nightly(800), DEFAULT, NOW)
    within = [one for one in verdict.decisions if "within 90 days" in one.reasons]
    months = [one for one in verdict.decisions if one.reasons[0].startswith("monthly ")]
    assert len(within) == 91  # both ends
    assert [one.reasons[0] for one in months] == [
        *(f"monthly 2025-{month:02}" for month in range(8, 13)),
        *(f"monthly 2026-{month:02}" for month in range(1, 8)),
    ]
    assert all(datetime.fromtimestamp(one.image.stored + DAY, UTC).day == 1 for one in months), (
        "the newest of each month, and August 2026 is kept by `within`"
    )
    assert len(kept(verdict)) == 91 + 12
    assert reasons(verdict, "web1-c1-0700") == (BEYOND,)
    assert reasons(verdict, "web1-c1-0000") == ("newest of web1", "within 90 days")


def test_every_rule_names_its_period() -> None:
    policy = Policy(last=1, hourly=1, daily=1, weekly=1, monthly=1, yearly=1)
    verdict = decide(nightly(3), policy, NOW)
    assert reasons(verdict, "web1-c1-0000") == (
        "newest of web1",
        "last 1",
        "hourly 2026-11-24 12:00",
        "daily 2026-11-24",
        "weekly 2026-W48",
        "monthly 2026-11",
        "yearly 2026",
    )
    assert removed(verdict) == {"web1-c1-0001", "web1-c1-0002"}


def test_months_without_images_take_no_place() -> None:
    images = [image(str(months), months * 61 * DAY) for months in range(20)]
    assert len(kept(decide(images, Policy(monthly=12), NOW))) == 12


def test_protected_and_drilled_stay() -> None:
    images = nightly(400)
    images[300] = dataclasses.replace(images[300], protected=("hold: court case 12",))
    images[350] = dataclasses.replace(images[350], passed_drill=True)
    images[360] = dataclasses.replace(images[360], passed_drill=True)
    verdict = decide(images, Policy(last=1), NOW)
    assert reasons(verdict, images[300].id) == ("hold: court case 12",)
    assert reasons(verdict, images[350].id) == ("newest that passed a drill",)
    assert kept(verdict) == {images[0].id, images[300].id, images[350].id}


def test_thousand_images_from_2099_age_out_nothing() -> None:
    before = decide(nightly(800), DEFAULT, NOW)
    forged = [image(f"x{n}", n / 10, claimed=YEAR_2099 + n) for n in range(1000)]
    after = decide([*nightly(800), *forged], DEFAULT, NOW)
    assert removed(after) == removed(before)
    (seen,) = after.observations
    assert seen.doubt is Doubt.AHEAD
    assert len(seen.images) == 1000
    assert "1000 images of web1" in seen.text
    assert "up to 2099-01-01" in seen.text
    assert reasons(after, "x7") == ("clock is ahead of the store's",)


def test_a_clock_set_back_is_told_and_its_image_kept() -> None:
    images = [
        image("a", 900 * DAY),
        image("b", 800 * DAY, claimed=NOW - 901 * DAY),
        image("c", 700 * DAY),
        image("d", 0),
    ]
    verdict = decide(images, Policy(last=1), NOW)
    assert kept(verdict) == {"a", "b", "d"}
    assert reasons(verdict, "a") == ("shows that a later image's time can't be true",)
    assert reasons(verdict, "b") == ("older than its predecessor",)
    assert [seen.doubt for seen in verdict.observations] == [Doubt.BACKWARDS]


def test_times_that_do_not_exist_are_told() -> None:
    images = [image("a", DAY, claimed=math.inf), image("b", -2 * HOUR), image("c", DAY)]
    verdict = decide(images, Policy(last=1), NOW)
    assert kept(verdict) == {"a", "b", "c"}
    assert "a time that does not exist" in verdict.observations[0].text
    assert verdict.observations[1].doubt is Doubt.STORED_AHEAD


@pytest.mark.parametrize("values", [{}, {"last": 0}, {"last": -1}, {"monthly": 3, "within": -1}])
def test_senseless_policy(values: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Policy(**values)


# Few machines, few credentials, coarse times: so that they meet.
TIMES = st.integers(0, 60).map(lambda step: NOW - 31 * DAY * 12 + step * 7 * DAY + step * HOUR)


@st.composite
def stored_images(draw: st.DrawFn) -> list[StoredImage]:
    count = draw(st.integers(0, 25))
    images = []
    for number in range(count):
        stored = draw(TIMES)
        machine = draw(st.sampled_from(["web1", "db1"]))
        images.append(
            StoredImage(
                f"{number:03}",
                machine,
                machine,
                draw(st.sampled_from(["c1", "c2"])),
                stored,
                draw(st.one_of(st.just(stored), TIMES, st.just(YEAR_2099))),
                protected=draw(st.sampled_from([(), (), (), ("hold: by hand",)])),
                passed_drill=draw(st.booleans()),
            )
        )
    return images


COUNTS = st.integers(0, 5)
WITHIN = st.sampled_from([0, HOUR, 30 * DAY, 90 * DAY])
POLICIES = st.one_of(
    st.just(Policy(within=HOUR)),
    st.builds(Policy, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, st.integers(1, 5), WITHIN),
)


@given(stored_images(), POLICIES)
def test_what_never_goes(images: list[StoredImage], policy: Policy) -> None:
    verdict = decide(images, policy, NOW)
    assert sorted(one.image.id for one in verdict.decisions) == [one.id for one in images]
    gone = removed(verdict)
    seen = {identity for one in verdict.observations for identity in one.images}
    assert not gone & seen
    assert not gone & {one.id for one in images if one.protected}
    for machine in {one.machine_id for one in images}:
        for wanted in (lambda _: True, lambda one: one.passed_drill):
            believed = [
                one
                for one in images
                if one.machine_id == machine and one.id not in seen and wanted(one)
            ]
            if believed:
                latest = max(one.stored for one in believed)
                assert any(one.id not in gone for one in believed if one.stored == latest)
    for decision in verdict.decisions:
        assert decision.reasons
        assert decision.keep == (decision.reasons != (BEYOND,))


@given(stored_images(), POLICIES)
def test_deciding_again_removes_nothing_more(images: list[StoredImage], policy: Policy) -> None:
    first = decide(images, policy, NOW)
    left = [one for one in images if one.id in kept(first)]
    second = decide(left, policy, NOW)
    assert removed(second) == set()
    assert second.observations == first.observations


@given(stored_images(), POLICIES, COUNTS, COUNTS, COUNTS, WITHIN)
def test_a_wider_policy_keeps_as_much(
    images: list[StoredImage], policy: Policy, last: int, weekly: int, monthly: int, within: int
) -> None:
    wider = dataclasses.replace(
        policy,
        last=policy.last + last,
        weekly=policy.weekly + weekly,
        monthly=policy.monthly + monthly,
        within=max(policy.within, within),
    )
    assert kept(decide(images, wider, NOW)) >= kept(decide(images, policy, NOW))


@given(stored_images(), POLICIES, st.randoms(use_true_random=False))
def test_order_does_not_matter(images: list[StoredImage], policy: Policy, random: object) -> None:
    shuffled = list(images)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert decide(shuffled, policy, NOW) == decide(images, policy, NOW)


@given(
    stored_images(),
    st.lists(st.tuples(st.integers(0, 100), st.sampled_from(["c1", "c2", "evil"])), max_size=20),
)
def test_forged_clocks_change_no_decision(
    images: list[StoredImage], forged: list[tuple[int, str]]
) -> None:
    lies = [
        image(f"lie{n}", age * DAY, series=series, claimed=YEAR_2099)
        for n, (age, series) in enumerate(forged)
    ]
    before = decide(images, DEFAULT, NOW)
    after = decide([*images, *lies], DEFAULT, NOW)
    mine = tuple(one for one in after.decisions if not one.image.id.startswith("lie"))
    assert mine == before.decisions
    assert len(after.decisions) - len(mine) == len(lies)


@given(stored_images(), POLICIES, st.integers(0, 400))
def test_another_credential_changes_no_decision(
    images: list[StoredImage], policy: Policy, days: int
) -> None:
    before = decide(images, policy, NOW)
    after = decide([*images, *nightly(days, series="evil")], policy, NOW)
    assert before.decisions == tuple(one for one in after.decisions if one.image.series != "evil")


def test_rows_and_timelines() -> None:
    images = [*nightly(400), *nightly(3, "database"), image("lie", 300 * DAY, claimed=YEAR_2099)]
    verdict = decide([dataclasses.replace(one, size=2048) for one in images], DEFAULT, NOW)
    table = rows(verdict.decisions)
    assert {len(row) for row in table} == {len(COLUMNS)}
    assert table[-1] == (
        "web1-c1-0000", "web1", "2026-11-24 12:00:00", "2.0 KiB", "keep",
        "newest of web1, within 90 days",
    )  # fmt: skip
    axis, database, web = timelines(verdict.decisions, NOW)
    assert axis.split()[:2] == ["2025-10-21", "2026-11-24"]
    assert database.startswith("database")
    assert database.rstrip().endswith("#     3       0")
    assert {"!", "+", "-", "#"} <= set(web)
    assert web.index("-") < web.index("##")
    assert len(axis.removesuffix("  kept removed")) == len("database") + 2 + 60


@pytest.mark.parametrize(
    ("words", "policy"),
    [
        ([], DEFAULT),
        (["--keep-last", "3"], Policy(last=3)),
        (["--keep-within", "2w", "--keep-yearly", "4"], Policy(within=14 * DAY, yearly=4)),
    ],
)
def test_options(words: list[str], policy: Policy) -> None:
    found = []

    @click.command()
    @policy_options
    def verb(*, policy: Policy) -> None:
        found.append(policy)

    assert CliRunner().invoke(verb, words).exit_code == 0
    assert found == [policy]
    assert CliRunner().invoke(verb, ["--keep-within", "90"]).exit_code == 2
    assert isinstance(CliRunner().invoke(verb, ["--keep-last", "0"]).exception, UsageError)
