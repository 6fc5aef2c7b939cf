"""`remetal media`: the rescue medium."""

from dataclasses import asdict
from pathlib import Path

import click

from bootmedia.config import MediumConfig, default_cache, read_config
from bootmedia.medium import build_medium
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
    help="A TOML file: title, keyboard, serial, recovery-key, repositories and more.",
)
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@click.option("--fresh", is_flag=True, help="Fetch Debian's packages anew, with their updates.")
@verb
def build(out: Output, output: Path, config_file: Path | None, *, force: bool, fresh: bool) -> None:
    """Build the rescue medium: Debian's kernel and tools, and the restorer.

    It starts PCs with BIOS, UEFI and UEFI with Secure Boot, from CD and from USB stick, with 1 GiB
    of memory. The first build fetches Debian's packages and takes a minute or two; later ones
    take what is in the cache ($REMETAL_CACHE, or ~/.cache/remetal).

    \b
    Examples:
      remetal media build -o rescue.iso
      remetal media build -o rescue.iso --config hospital.toml --force
      dd if=rescue.iso of=/dev/sdX bs=4M conv=fsync    onto a USB stick
    """
    config = read_config(config_file) if config_file else MediumConfig()
    report = build_medium(output, config, default_cache(), out.remark, force=force, fresh=fresh)
    out.table(
        ("step", ">time"), [(step.name, format_duration(step.seconds)) for step in report.steps]
    )
    out.say()
    out.say(f"{report.path}: {format_size(report.size)}, kernel {report.kernel}")
    out.say(f"Debian packages of {report.debian}; --fresh brings those of today")
    out.say(f"SHA-256 {report.sha256}")
    out.document(asdict(report))
