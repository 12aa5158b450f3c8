"""Two tiers: `pytest` takes minutes; --slow adds executed notebooks, long trainings, several processes."""

import pytest


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true",
                     help="also run the slow tests: notebooks, long trainings, several processes, recounts")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: runs with --slow"))
