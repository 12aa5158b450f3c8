"""Two tiers: `pytest` takes minutes; --slow adds executed notebooks, long trainings, several processes.
--faults adds tests/faults: kills, full disks, damaged and hostile files."""

import pytest

TIERS = {"slow": "also run the slow tests: notebooks, long trainings, several processes, recounts",
         "faults": "also run tests/faults: kills, errors of the disk, damaged and hostile files"}


def pytest_addoption(parser):
    for tier, text in TIERS.items():
        parser.addoption(f"--{tier}", action="store_true", help=text)


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.path.parent.name == "faults":
            item.add_marker("faults")
        for tier in TIERS:
            if item.get_closest_marker(tier) and not config.getoption(f"--{tier}"):
                item.add_marker(pytest.mark.skip(reason=f"{tier}: runs with --{tier}"))
