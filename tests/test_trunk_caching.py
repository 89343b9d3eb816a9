"""What is kept while a top is trained: the cheapest form by what was measured."""

from dataclasses import replace

import pytest

from topwork.trunk.caching import FORMS, Disk, Job, choose_form, estimate, in_words, measure_disk

PHOTOS = Job(1000, 20, 1, 0.002, 0.01, 150_000, 400_000)
DISK = Disk(speed=5e8, space=1e11, memory=1e10)


def form(job: Job = PHOTOS, disk: Disk = DISK) -> str:
    return choose_form(job, disk)[0].form


def test_running_the_trunk_once_is_the_rule() -> None:
    assert form() == "float32"


def test_a_trunk_that_costs_next_to_nothing_is_run_anew_on_kept_pixels() -> None:
    stem = replace(PHOTOS, trunk_seconds=1e-5, outputs=5_000_000)
    assert form(stem) == "pixels"
    assert form(replace(stem, decode_seconds=1e-5)) == "nothing"


def test_half_precision_is_for_what_does_not_fit_in_full() -> None:
    size = PHOTOS.images * PHOTOS.outputs
    assert form(disk=replace(DISK, space=0.9 * size)) == "float16"
    assert form(disk=replace(DISK, space=0.45 * size)) == "pixels"
    assert form(disk=replace(DISK, space=0.1 * size)) == "nothing"


def test_half_precision_is_never_a_matter_of_speed() -> None:
    """Else two fits on a busy machine would differ in their bits."""
    for speed in (1e3, 1e6, 1e9):
        for memory in (1e3, 1e12):
            assert form(disk=Disk(speed, 1e12, memory)) != "float16"


def test_as_many_views_as_epochs_gain_nothing_and_cost_little() -> None:
    """What is kept then serves the next run; it is kept as long as it takes little longer."""
    assert form(replace(PHOTOS, views=20)) == "float32"
    assert form(replace(PHOTOS, views=20), replace(DISK, speed=3e7)) == "nothing"


@pytest.mark.parametrize("form", FORMS)
def test_estimates_follow_the_work(form: str) -> None:
    once = estimate(form, replace(PHOTOS, epochs=1), DISK)
    often = estimate(form, PHOTOS, DISK)
    assert often.bytes == once.bytes
    runs = {"float32": 1, "float16": 1, "pixels": 20, "nothing": 20}[form]
    decodes = {"nothing": 20}.get(form, 1)
    moved = often.bytes / DISK.speed + 20 * often.bytes / 1.5e9
    assert often.seconds == pytest.approx(1000 * (runs * 0.01 + decodes * 0.002) + moved)


def test_one_line_says_what_and_why() -> None:
    chosen, estimates = choose_form(PHOTOS, DISK)
    said = in_words(chosen, estimates, DISK, "blocks.5")
    assert said == (
        "cache: outputs of blocks.5 in float32, 0.40 GB of 100.00 free: about 18 s, without 240 s"
    )
    chosen, estimates = choose_form(PHOTOS, replace(DISK, space=0))
    assert "nothing is kept, blocks.5 in float32 would take 0.40 GB of 0.00 free" in in_words(
        chosen, estimates, replace(DISK, space=0), "blocks.5"
    )


def test_this_machines_disk_can_be_measured() -> None:
    disk = measure_disk()
    assert disk.speed > 1e5
    assert disk.space > 0
    assert disk.memory > 1e8
