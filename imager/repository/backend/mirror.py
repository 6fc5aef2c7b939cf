"""Several stores that hold the same repository, as one.

Writes go to all sites at once, and count when the configured number of sites has the object. A site
that fails is left out of the writes for the rest of the run, is noted, and is told of until
`remetal sync` has brought it up to date: what it holds meanwhile is older, and whole. So it is in later
runs, and for other machines: a site that lacks an index which another one has is left out as well, since
what is written now may rely on what it lacks, and counts as no copy. Reads go to the
sites in turn of how well they do, and fail over at once; a site that is silent is not waited for.

What is decided from a mirror must hold for all of its sites, so with a site down:

    capture, restore, images     go on
    check                        goes on; what only a site knows that is down is told as unreachable,
                                 never as missing
    prune, repair                add, and stop before the first removal: nothing is deleted, and no lock
                                 is asked for, unless every site answers

Clocks: an object is as young as the youngest of its copies, and now is what the slowest clock says,
so nothing is taken to be older than it is.
"""

import hashlib
import heapq
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from imager.errors import (
    LinkError,
    ObjectDamaged,
    ObjectMissing,
    OutputError,
    RemetalError,
    StoreUnreachable,
    UsageError,
)
from imager.repository.backend.behind import start
from imager.repository.backend.mirror_notes import Notes
from imager.repository.backend.protocol import Backend, Buffer, Entry
from imager.units import KIB

_GRACE: Final = 10.0  # seconds that a site may take longer than the others
_LISTING_GRACE: Final = 300.0  # the same for a listing: stores give a thousand names at a time
_LEAST_RATE: Final = 512 * KIB  # bytes per second: a site that takes less is no site of a mirror
_LOOK_AGAIN: Final = 0.5
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")

_Result = TypeVar("_Result")
_THREAD: Final = "mirror"


class Mirror:
    """See `protocol.Backend` for the guarantees.

    Args:
        location: as the user wrote it.
        sites: by name; the first is read from first.
        copies: of each object that is written, before the write counts.
        root: name of the object by which a repository is known. A site without it is empty, as one
            whose disk is not there; a site with another is of another repository.
        proof: what the names of those objects begin with that are put after what they need: whoever lacks
            one of them is behind.
        notes: where it is noted that a site is behind.

    Raises:
        UsageError: at the first call, if the sites hold different repositories.
    """

    def __init__(
        self,
        location: str,
        sites: Mapping[str, Backend],
        copies: int,
        root: str,
        proof: str,
        notes: Notes,
    ) -> None:
        self._location = location
        self._sites = dict(sites)
        self._copies = copies
        self._root = root
        self._proof = proof
        self._notes = notes
        self._lock = threading.Lock()
        self._is_met = False
        self._comparing = threading.Lock()
        self._behind: dict[str, str] | None = (
            None  # what lacks something, and why; None until it is known
        )
        self._unequal: dict[str, str] = {}  # what lacks something, also if all do
        self._down: dict[str, str] = {}  # for writes, and why
        self._absent: set[str] = set()  # of those, what holds no repository
        self._slow: dict[str, int] = dict.fromkeys(sites, 0)  # how often a site did badly

    @property
    def location(self) -> str:
        """The location as it was given."""
        return self._location

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those of all sites."""
        return tuple(folder for site in self._sites.values() for folder in site.folders)

    @property
    def sites(self) -> Mapping[str, Backend]:
        """The sites by name."""
        return self._sites

    def holding(self) -> Sequence[str]:
        """Return the sites that hold the repository, and not nothing; all must answer."""
        return [
            label for label, site in self._sites.items() if _found(site, self._root) is not None
        ]

    def caught_up(self) -> None:
        """Note that all sites hold the same."""
        self._notes.caught_up()

    @property
    def lock_span(self) -> float | None:
        """The shortest span of the sites that lock."""
        spans = [site.lock_span for site in self._sites.values()]
        return min((span for span in spans if span is not None), default=None)

    def put_new(self, name: str, parts: Sequence[Buffer], modified: float | None = None) -> bool:
        """Create an object at all sites that are up; see `protocol.Backend.put_new`.

        Where the name is no SHA-256, others may mean other bytes by it: then the first site that is up
        takes it before the others do, and says who was first.
        """
        self._meet()
        # A site that is not waited for may still read it when the caller has gone on.
        data = b"".join(parts)
        put = partial(self._put, name, data, modified)
        behind = self._compared()
        labels = [label for label in self._reachable() if label not in behind]
        created: Sequence[bool] = ()
        problems: Sequence[RemetalError] = ()
        if not _DIGEST.fullmatch(_last(name)):
            while labels and not created:
                created, problems = put([labels.pop(0)])
            if created and not created[0]:
                return False
        more, others = put(labels)
        if len(created) + len(more) < self._copies:
            for problem in (*problems, *others):
                raise problem
            count = len(created) + len(more)
            raise self._too_few(f"{name} is at {count} of {self._copies} sites")
        return any((*created, *more))

    def _put(
        self, name: str, data: bytes, modified: float | None, labels: Sequence[str]
    ) -> tuple[Sequence[bool], Sequence[RemetalError]]:
        """Put an object to some sites at once; leave out those that can't take it, or not in time.

        Returns:
            What those say that could, and the errors of those that could not.
        """
        running = {
            start(partial(self._sites[label].put_new, name, [data], modified), _THREAD): label
            for label in labels
        }
        done, late = self._all_in_time(running, _GRACE + len(data) / _LEAST_RATE)
        created, problems = [], []
        for future in done:
            try:
                created.append(future.result())
            except (LinkError, OutputError) as error:
                problems.append(error)
                self._leave_out(running[future], error)
        for future in late:
            self._leave_out(running[future], StoreUnreachable("it says nothing"))
        return created, problems

    def get(self, name: str) -> bytes:
        """Return an object whole, from the first site that has it intact."""
        digest = _last(name)

        def fetch(site: Backend) -> bytes:
            data = site.get(name)
            if _DIGEST.fullmatch(digest) and hashlib.sha256(data).hexdigest() != digest:
                raise _OtherBytes(data)
            return data

        try:
            return self._read(fetch)
        except _OtherBytes as error:
            return (
                error.data
            )  # they are the same everywhere, or nobody has better: let others judge

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Return a range of an object, from the first site that can read it."""
        return self._read(lambda site: site.get_range(name, offset, length))

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield what any site that is up holds."""
        self._meet()
        listings = [
            listing
            for listing in self._each(
                lambda site: list(site.list(prefix)), self._reachable(), _LISTING_GRACE
            )
            if listing is not None
        ]
        if not listings:
            raise self._too_few("no site can be listed")
        merged = heapq.merge(*map(_sorted, listings), key=lambda entry: entry.name)
        for name, group in itertools.groupby(merged, key=lambda entry: entry.name):
            copies = list(group)
            yield Entry(
                name,
                max(entry.size for entry in copies),
                max(entry.modified for entry in copies),
                max(entry.newer for entry in copies),
            )

    def delete(self, name: str) -> None:
        """Remove an object from all sites; from none unless all are up."""
        self._compared()
        for label, why in self._unequal.items():
            raise self._not_up(label, why)
        self._everywhere(lambda site: site.delete(name))

    def locked_until(self, name: str, *, shortest: bool = False) -> float | None:
        """Return until when any site keeps an object, or all that lock do."""
        times = self._everywhere(
            lambda site: (site.lock_span, site.locked_until(name, shortest=shortest))
        )
        if shortest:
            kept = [time for span, time in times if span is not None]
            return None if None in kept else min(filter(None, kept), default=None)
        return max((time for _, time in times if time is not None), default=None)

    def retain(self, name: str, until: float) -> None:
        """Let every site that locks keep an object."""
        self._everywhere(lambda site: site.retain(name, until))

    def now(self) -> float:
        """Return what the slowest clock says of the sites that are up."""
        self._meet()
        times = self._each(lambda site: site.now(), self._reachable(), _GRACE)
        found = [time for time in times if time is not None]
        if not found:
            raise self._too_few("no site tells its time")
        return min(found)

    def tidy(self) -> None:
        """Tidy up at the sites that are up."""
        self._meet()
        self._each(lambda site: site.tidy(), self._reachable(), _GRACE)

    def _meet(self) -> None:
        """Learn which sites are there, and that they are of one repository."""
        with self._lock:
            if self._is_met:
                return
            self._down, self._absent = {}, set()
            running = {
                start(partial(_found, site, self._root), _THREAD): label
                for label, site in self._sites.items()
            }
            done, late = self._all_in_time(running, _GRACE)
            roots: dict[str, bytes | None] = {}
            for future in done:
                try:
                    roots[running[future]] = future.result()
                except RemetalError as error:
                    self._down[running[future]] = error.message
            self._down |= {running[future]: "it says nothing" for future in late}
            there = {data for data in roots.values() if data is not None}
            if len(there) > 1:
                raise UsageError(
                    f"the sites of {self._location} hold different repositories",
                    hint="Compare `remetal check` of each; a mirror is made of copies of one.",
                )
            if there:
                self._absent = {label for label, data in roots.items() if data is None}
                self._down |= dict.fromkeys(self._absent, "it holds no repository")
            elif self._down:
                # Whoever does not answer may be the one that holds it.
                raise self._too_few("no site that answers holds a repository, and not all answer")
            for label in self._down:
                self._slow[label] += 1
                self._notes.behind(label, self._down[label])
            if not roots:
                raise self._too_few("no site is up")
            self._is_met = True

    def _reachable(self) -> dict[str, Backend]:
        return {label: site for label, site in self._sites.items() if label not in self._down}

    def _leave_out(self, label: str, error: RemetalError) -> None:
        with self._lock:
            if label not in self._down:
                self._down[label] = error.message
                self._notes.behind(label, error.message)
            self._slow[label] += 1

    def _read(self, fetch: Callable[[Backend], _Result]) -> _Result:
        """Return what the first site says that does well, and never wait long for one."""
        self._meet()
        labels = [label for label in self._sites if label not in self._absent]
        labels.sort(key=lambda label: self._slow[label])
        running: dict[Future[_Result], str] = {}
        problems: list[Exception] = []
        for place, label in enumerate(labels):
            running[start(partial(fetch, self._sites[label]), _THREAD)] = label
            is_last = place == len(labels) - 1
            while running:
                done, _ = wait(
                    running, timeout=None if is_last else _GRACE, return_when=FIRST_COMPLETED
                )
                if not done:
                    self._slow[label] += 1
                    break
                for finished in done:
                    who = running.pop(finished)
                    try:
                        return finished.result()
                    except _READ_PROBLEMS as error:
                        problems.append(error)
                        self._slow[who] += isinstance(error, LinkError)
        raise self._worst(problems)

    def _worst(self, problems: Sequence[Exception]) -> Exception:
        """Return what all of it means: only what every site says is so."""
        for kind in _READ_PROBLEMS:
            for problem in problems:
                if isinstance(problem, kind):
                    if kind is ObjectMissing and self._absent:
                        return self._too_few(f"{problem}, and not every site is up")
                    return problem
        return self._too_few("no site can be read")

    def _everywhere(self, deed: Callable[[Backend], _Result]) -> Sequence[_Result]:
        """Do something at all sites, or at none if one of them is not up.

        Raises:
            StoreUnreachable: one is not.
        """
        self._meet()
        with self._lock:
            for label, why in self._down.items():
                raise self._not_up(label, why)
        running = [start(partial(deed, site), _THREAD) for site in self._sites.values()]
        wait(running)
        return [future.result() for future in running]

    def _each(
        self,
        deed: Callable[[Backend], _Result],
        sites: Mapping[str, Backend],
        grace: float,
    ) -> Sequence[_Result | None]:
        """Do something at some sites; None of those that could not."""
        running = {start(partial(deed, site), _THREAD): label for label, site in sites.items()}
        done, late = self._all_in_time(running, grace)
        found = []
        for future in done:
            try:
                found.append(future.result())
            except (LinkError, OutputError, ObjectDamaged) as error:
                self._leave_out(running[future], error)
        for future in late:
            self._leave_out(running[future], StoreUnreachable("it says nothing"))
        return found

    @staticmethod
    def _all_in_time(
        running: Mapping[Future[_Result], str], grace: float
    ) -> tuple[Sequence[Future[_Result]], Sequence[Future[_Result]]]:
        """Wait for all, but for those that are much slower than one that did well; return both."""
        left = set(running)
        did_well = False
        while left:
            done, left = wait(
                left, timeout=grace if did_well else None, return_when=FIRST_COMPLETED
            )
            if not done:
                break
            did_well |= any(future.exception() is None for future in done)
        return [future for future in running if future not in left], list(left)

    def _compared(self) -> Mapping[str, str]:
        """Return which sites are behind, and why; of those that are up."""
        self._meet()
        with self._comparing:
            if self._behind is None:
                self._behind = self._compare()
            return self._behind

    def _compare(self) -> dict[str, str]:
        end = time.monotonic() + _GRACE
        while True:
            held = dict(
                found
                for found in self._each(
                    lambda site: (id(site), set(_proofs(site, self._proof))),
                    self._reachable(),
                    _LISTING_GRACE,
                )
                if found is not None
            )
            everything = set().union(*held.values())
            behind = {
                label: f"it lacks {count} of {len(everything)} objects in {self._proof}"
                for label, site in self._sites.items()
                if id(site) in held and (count := len(everything - held[id(site)]))
            }
            # Another machine may just be putting one: nothing tells when it is everywhere.
            if not behind or time.monotonic() > end:
                break
            time.sleep(_LOOK_AGAIN)
        self._unequal = behind
        # Where none has everything, there is none that would be better to write to.
        left_out = behind if len(behind) < len(held) else {}
        for label, why in left_out.items():
            self._notes.behind(label, why)
        return left_out

    def _not_up(self, label: str, why: str) -> StoreUnreachable:
        return StoreUnreachable(
            f"site {label} of {self._location} is not up ({why})",
            hint="Nothing is removed from a mirror unless all its sites answer and hold the same. Bring "
            f"it up, run `remetal sync {self._location}`, then this again.",
        )

    def _too_few(self, text: str) -> StoreUnreachable:
        missing = {**self._down, **(self._behind or {})}
        down = "; ".join(f"{label}: {why}" for label, why in missing.items())
        return StoreUnreachable(f"{self._location}: {text} ({down})" if down else text)


class _OtherBytes(Exception):
    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data


# What a read goes on to the next site from; in the order in which they count when none can do it.
_READ_PROBLEMS: Final = (LinkError, _OtherBytes, ObjectDamaged, OutputError, ObjectMissing)


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _found(site: Backend, name: str) -> bytes | None:
    try:
        return site.get(name)
    except ObjectMissing:
        return None


def _proofs(site: Backend, prefix: str) -> Iterator[str]:
    """Yield the objects in a folder; what else lies there is nobody's concern."""
    return (entry.name for entry in site.list(prefix) if _DIGEST.fullmatch(_last(entry.name)))


def _sorted(entries: list[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: entry.name)
