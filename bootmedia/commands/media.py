"""`remetal media`: the rescue medium."""

from dataclasses import asdict
from pathlib import Path

import click

from bootmedia import stores
from bootmedia.config import MediumConfig, default_cache, read_config
from bootmedia.medium import build_medium
from imager.commands.secrets import ask, new_passphrase, read_passphrase, refuse_weak
from imager.console import Output, verb
from imager.units import format_duration, format_size


@click.group()
def media() -> None:
    """Make the rescue medium: a file that boots as CD and as USB stick.

    \b
    Example:
      remetal media build -o rescue.iso
    """


@media.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="The file to write.",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="A TOML file: title, keyboard, serial, recovery-key, repositories, network and more.",
)
@click.option(
    "--passphrase-file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="REMETAL_PASSPHRASE_FILE",
    help="For ssh-key and store-credentials: read the passphrase from the first line of this file.",
)
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@click.option("--fresh", is_flag=True, help="Fetch Debian's packages anew, with their updates.")
@verb
def build(
    out: Output,
    output: Path,
    config_file: Path | None,
    passphrase_file: Path | None,
    *,
    force: bool,
    fresh: bool,
) -> None:
    """Build the rescue medium: Debian's kernel and tools, and the restorer.

    It starts PCs with BIOS, UEFI and UEFI with Secure Boot, from CD and from USB stick, with 1 GiB
    of memory. The first build fetches Debian's packages and takes a minute or two; later ones
    take what is in the cache ($REMETAL_CACHE, or ~/.cache/remetal).

    \b
    In the TOML file, all of it may be left out (paths are relative to it):
      title = "Rescue of the north hospital"
      keyboard = "de"
      recovery-key = "recovery.key"      stays under its passphrase
      repositories = ["ssh://backup@10.0.0.5/srv/images"]
      host-keys = "known_hosts"          or a list of its lines
      ssh-key = "rescue_ed25519"         sealed under a passphrase that is asked for
      store-credentials = "s3.keys"      likewise
      authorities = "ca.pem"             for TLS stores of your own
      [network]                          without it: DHCP
      address = "10.0.0.9/24"
      gateway = "10.0.0.1"
      dns = "10.0.0.1"

    \b
    Examples:
      remetal media build -o rescue.iso
      remetal media build -o rescue.iso --config hospital.toml --force
      dd if=rescue.iso of=/dev/sdX bs=4M conv=fsync    onto a USB stick
    """
    config = read_config(config_file) if config_file else MediumConfig()
    report = build_medium(
        output,
        config,
        default_cache(),
        out.remark,
        force=force,
        fresh=fresh,
        store_keys=_sealed_keys(out, config, passphrase_file),
    )
    out.table(
        ("step", ">time"), [(step.name, format_duration(step.seconds)) for step in report.steps]
    )
    out.say()
    out.say(f"{report.path}: {format_size(report.size)}, kernel {report.kernel}")
    out.say(f"Debian packages of {report.debian}; --fresh brings those of today")
    out.say(f"SHA-256 {report.sha256}")
    out.document(asdict(report))


def _sealed_keys(out: Output, config: MediumConfig, passphrase_file: Path | None) -> bytes | None:
    """Return what opens stores, sealed; under the passphrase of the SSH key if that has one."""
    asked: list[str] = []

    def of_key(question: str) -> str:
        asked.append(read_passphrase(passphrase_file) or ask(question))
        return asked[-1]

    keys = stores.store_keys(config, of_key)
    if keys is None:
        return None
    if asked:
        refuse_weak(asked[-1])
    else:
        out.remark(
            "The keys of the stores lie on the medium under a passphrase. If it is that of the "
            "recovery key, it is asked for once there."
        )
        asked.append(new_passphrase(out, passphrase_file, "the keys of the stores"))
    return keys.seal(asked[-1])
