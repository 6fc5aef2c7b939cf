from restore.drill.bring_back import _totals
from restore.drill.job import RescueStep


def test_steps_of_one_name_are_added_up_and_small_ones_put_together() -> None:
    steps = [
        RescueStep("plan", 0.25),
        RescueStep("write", 0.5, 100),
        RescueStep("verify", 0.75, 100),
        RescueStep("write", 9.5, 900),
        RescueStep("boot-entries", 0.5),
    ]
    assert list(_totals(steps)) == [("write", 10.0, 1000), ("small steps", 1.5, 0)]
