"""Repositories on the network, at the rescued machine: from a location to an opened repository.

Whatever is missing on the way is shown as one table, with what to do next: a link, an address, a
way, a name, an answer; then the keys, and the clock. Nothing is trusted that nobody vouches for:
host keys and times are shown, and a person says yes or no.
"""

import contextlib
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from imager.commands.secrets import ask
from imager.errors import ConfigError, RemetalError, StoreRefused, WrongPassphrase
from imager.network_settings import NetworkSettings
from imager.repository.backend.endpoint import Endpoint, endpoint_of
from imager.repository.backend.place import HostKey, Place
from imager.repository.repository import Repository
from imager.units import format_duration
from restore import clock, network
from restore.console_ui.repositories import Found
from restore.console_ui.terminal import Terminal
from restore.medium import Medium
from restore.store_access import StoreAccess

_RETRY: Final = "retry"
_ADDRESS: Final = "address"
_OTHER: Final = "other"
_PATH: Final = "path"
_SET: Final = "set"
_KEEP: Final = "keep"
_NONE: Final = "none"
_YES: Final = "yes"
_ATTEMPTS: Final = 3
_CONNECT_SECONDS: Final = 10.0


class ChooseAnother(Exception):
    """The person wants another repository."""


class Stores:
    """Leads a person to a repository on the network.

    Args:
        terminal: where the person is.
        medium: what the medium carries.

    Attributes:
        passphrases: those that opened something so far; tried first where another one is needed.
    """

    def __init__(self, terminal: Terminal, medium: Medium) -> None:
        self._terminal = terminal
        self._settings = medium.network
        self._access = StoreAccess(medium)
        self.passphrases: list[str] = []
        self._were_refused = False  # keys of the medium: then a person must be able to give others

    def open(self, location: str, found: Found) -> Repository:
        """Return a repository on the network.

        Args:
            location: as it was chosen or typed.
            found: keys on attached disks, for what the medium does not carry.

        Raises:
            RemetalError: it can't be opened; the person may choose another.
            ChooseAnother, LeaveToShell, StartAgain: the person wants that.
        """
        endpoint = endpoint_of(location)
        self._reach(endpoint)
        self._have_keys(location, found)
        has_right_time = not endpoint.is_signed_by_time or self._compare_clocks(endpoint)
        self._terminal.say(f"Opening {location} ...")
        access = self._access.access(self._confirm)
        try:
            return Repository.open(Place(location, access))
        except StoreRefused:
            self._access.forget()  # so that other keys may be chosen
            self._were_refused = has_right_time
            raise

    def _reach(self, endpoint: Endpoint) -> None:
        """Return when the store answers."""
        say = self._terminal.say
        while True:
            if not network.is_up():
                say("Bringing the network up ...")
                try:
                    network.bring_up(self._settings)
                except ConfigError as error:
                    self._explain(error)
            checks = network.diagnose(endpoint, patience=_CONNECT_SECONDS)
            if checks[-1].is_right:
                say(f"Network: {checks[-1].text}.")
                return
            say()
            for check in checks:
                say(f"{check.subject:>8}  {'' if check.is_right else 'NO: '}{check.text}")
            say(checks[-1].advice)
            chosen = self._terminal.choose(
                "What now?",
                [],
                {
                    _RETRY: "look again",
                    _ADDRESS: "type the address of this machine",
                    _OTHER: "choose another repository",
                },
            )
            if chosen == _OTHER:
                raise ChooseAnother
            if chosen == _ADDRESS:
                self._settings = self._type_settings()
                network.take_down()

    def _type_settings(self) -> NetworkSettings:
        while True:
            cards = network.cards()
            card = ""
            if len(cards) > 1:
                options = [
                    f"{each.name}, {each.hardware_address}" + ("" if each.has_link else ", no link")
                    for each in cards
                ]
                chosen = self._terminal.choose("Which card?", options)
                card = cards[int(chosen)].name
            ask_for = self._terminal.ask
            address = ask_for("Address with its prefix, such as 10.0.0.9/24; dhcp asks for one")
            gateway = dns = ""
            if address.lower() == "dhcp":
                address = ""
            else:
                gateway = _or_none(ask_for(f"Gateway, such as 10.0.0.1, or {_NONE}"))
                dns = _or_none(ask_for(f"Name server, or {_NONE}"))
            try:
                return NetworkSettings(card, address, gateway, dns)
            except ConfigError as error:
                self._explain(error)

    def _have_keys(self, location: str, found: Found) -> None:
        """Open keys for a store: those on the medium, or some on an attached disk."""
        if location.startswith(("ssh://", "sftp://")):
            while not self._access.has_ssh_key:
                path = self._choose_keys("private keys for SSH", found.ssh_keys)
                if path is not None:
                    self._access.use_ssh_key(path, partial(ask, f"Passphrase of {path}"))
        else:
            while not self._access.has_credentials:
                path = self._choose_keys("keys of S3 stores", found.credentials)
                if path is not None:
                    self._access.use_credentials(path)

    def _choose_keys(self, what: str, files: Sequence[Path]) -> Path | None:
        """Return a file with keys; None when those on the medium were opened instead."""
        own = ["those on the medium, under their passphrase"] if self._access.is_locked else []
        options = [*own, *map(str, files)]
        chosen: int | str = 0
        if options != own or not own or self._were_refused:
            self._terminal.say()
            chosen = self._terminal.choose(
                f"Which {what}?" if options else f"No {what} on the medium or on attached disks.",
                options,
                {_PATH: "give the path of a file", _OTHER: "choose another repository"},
            )
        if chosen == _OTHER:
            raise ChooseAnother
        if isinstance(chosen, str):
            return Path(self._terminal.ask("Path of the file"))
        if own and chosen == 0:
            self._unlock()
            return None
        return files[chosen - len(own)]

    def _unlock(self) -> None:
        for secret in self.passphrases:
            with contextlib.suppress(WrongPassphrase):
                return self._access.unlock(secret)
        for attempt in range(1, _ATTEMPTS + 1):
            secret = ask("Passphrase of the keys to the stores")
            try:
                self._access.unlock(secret)
            except WrongPassphrase as error:
                if attempt == _ATTEMPTS:
                    self._were_refused = True
                    raise
                self._terminal.say(f"{error.message}; try again.")
            else:
                self.passphrases.append(secret)
                return None
        return None

    def _confirm(self, key: HostKey) -> bool:
        say = self._terminal.say
        say()
        say(f"Nothing on this medium vouches for {key.host}. Its {key.algorithm} key is")
        say(f"  {key.fingerprint}")
        say("Compare it with what `ssh-keygen -lf` says on that host, or with your papers.")
        return self._terminal.ask(f"Type {_YES} if it is the same, anything else if not") == _YES

    def _compare_clocks(self, endpoint: Endpoint) -> bool:
        """Let a person set a clock that is wrong; whether it is right, as far as the store says."""
        theirs = clock.store_time(endpoint)
        if theirs is None or abs(theirs - time.time()) <= clock.TOLERANCE:
            return True
        say = self._terminal.say
        say()
        say(f"This machine's clock says {clock.show(time.time())}")
        say(f"{endpoint.host} says          {clock.show(theirs)}")
        say(f"They differ by {format_duration(abs(theirs - time.time()))}; it will refuse us.")
        say("Nobody vouches for that time: look at a watch, or at your telephone.")
        chosen = self._terminal.choose(
            "What now?",
            [],
            {
                _SET: "set the clock to that time, until this system ends",
                _KEEP: "go on with the clock as it is",
                _OTHER: "choose another repository",
            },
        )
        if chosen == _OTHER:
            raise ChooseAnother
        if chosen == _SET:
            clock.set_clock(theirs)
        return chosen == _SET

    def _explain(self, error: RemetalError) -> None:
        self._terminal.say(f"{error.message}. {error.hint}".strip())


def _or_none(answer: str) -> str:
    return "" if answer.lower() == _NONE else answer
