"""What a session has claimed, in memory and in files."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imager.repository import claims
from imager.repository.claims import Claims


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1 << 30), st.integers(20, 200), st.integers(5, 60))
def test_each_id_is_claimed_once(seed: int, most: int, at_once: int) -> None:
    noise = random.Random(seed)
    known = [noise.randbytes(2) + bytes(30) for _ in range(400)]
    asked = [noise.choice(known) for _ in range(800)]
    found = Claims()
    seen: set[bytes] = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "_MOST_IN_MEMORY", most)
        for start in range(0, len(asked), at_once):
            part = asked[start : start + at_once]
            expected = []
            for identity in part:
                expected.append(identity not in seen)
                seen.add(identity)
            assert found.claim(part) == expected
    assert len(found._recent) < most
    assert len(found._files) <= 12


def test_ids_that_begin_alike_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_MOST_IN_MEMORY", 2)
    found = Claims()
    ids = [bytes(8) + bytes([number]) * 24 for number in range(200)]
    assert all(found.claim([identity]) == [True] for identity in ids)
    assert not any(found.claim(ids))
