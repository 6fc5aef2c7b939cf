"""Maps in the making, against a plain joining of neighbours."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from imager.capture.pipeline import RunLine
from imager.repository.chunk import FREE, ZERO
from imager.repository.volume_map import Root, Runs, TreeWriter, runs

Pair = tuple[int, bytes]
CHUNKS = [bytes([number]) * 32 for number in (1, 2, 3)]


class Tree(TreeWriter):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.found: list[Pair] = []

    def add(self, volume_map: Runs) -> None:
        assert len(volume_map)
        self.found += [(int(row["length"]), row["id"].tobytes()) for row in volume_map]

    def finish(self) -> Root:
        return Root(ZERO, 0)


def joined(pairs: list[Pair]) -> list[Pair]:
    found = []
    for identity, group in itertools.groupby(pairs, key=lambda pair: pair[1]):
        if identity in {ZERO, FREE}:
            found.append((sum(length for length, _ in group), identity))
        else:
            found += list(group)
    return found


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.lists(st.tuples(st.integers(1, 9), st.sampled_from([ZERO, *CHUNKS])), min_size=1),
        )
    ),
    st.integers(1, 5),
)
def test_neighbours_are_joined(parts: list[tuple[int, list[Pair]]], behind: int) -> None:
    tree = Tree()
    line = RunLine(tree)
    expected: list[Pair] = []
    end = 0
    for gap, pieces in parts:
        if gap:
            expected.append((gap, FREE))
        line.fill_free(end + gap)
        expected += pieces
        line.extend(runs(joined(pieces)))
        end += gap + sum(length for length, _ in pieces)
    line.finish(end + behind)
    expected.append((behind, FREE))
    assert tree.found == joined(expected)
    assert line.used == sum(length for length, identity in expected if identity in CHUNKS)
