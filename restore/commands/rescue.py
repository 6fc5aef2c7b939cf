"""`remetal rescue`: what the rescue medium starts."""

import click

from imager.console import Output, verb
from restore import unattended
from restore.console_ui.dialogue import Dialogue
from restore.console_ui.terminal import Terminal
from restore.medium import (
    JOB_TAG,
    REPOSITORY_TAG,
    RUN,
    end,
    find_shares,
    mount_share,
    read_medium,
)


@click.command()
@verb
def rescue(out: Output) -> None:
    """Bring this machine back. Runs on the rescue medium, where it starts by itself.

    Asks which repository, image and disks are meant, shows the plan, and asks before it writes.
    The network is brought up when a repository on it is chosen.
    In a virtual machine whose host shares a directory as `remetal-job` it asks nothing and
    does what the order in that directory says.

    \b
    Example:
      remetal rescue
    """
    medium = read_medium()
    out.plain = True
    shares = find_shares()
    if JOB_TAG in shares:
        mount_share(JOB_TAG, RUN / "job", read_only=False)

        def mount_repository() -> None:
            if REPOSITORY_TAG in shares:
                mount_share(REPOSITORY_TAG, RUN / "repository", read_only=True)

        end(unattended.run(out, RUN / "job", medium, mount_repository))
        return
    end(Dialogue(Terminal(out), medium).run())
