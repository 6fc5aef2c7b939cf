"""`--stats`: where the time of a capture or restore went, as a table."""

import click

from imager.console import Output
from imager.stages import Stages
from imager.units import MIB, format_size

stats_option = click.option(
    "--stats", is_flag=True, help="Show at the end where the time went, and what was the bound."
)


def show_stages(out: Output, stages: Stages) -> None:
    """Print what each stage took, and which kept the others waiting."""
    rows = [
        (
            f"  {each.name}",
            each.lane,
            format_size(each.size) if each.size else "-",
            f"{each.seconds:.2f}",
            f"{each.cpu:.2f}",
            f"{each.size / MIB / each.seconds:.0f}" if each.size and each.seconds else "-",
        )
        for each in stages.times()
    ]
    out.table(("  stage", "lane", ">bytes", ">seconds", ">CPU s", ">MiB/s"), rows)
    bound = stages.bound()
    share = f"{bound.share:.0%} busy, most of it with: {bound.stage}"
    if bound.is_clear:
        out.say(f"The bound was the lane {bound.lane!r} ({share}).")
    else:
        out.say(f"No lane was the bound; the busiest was {bound.lane!r} ({share}).")
