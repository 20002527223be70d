"""A run that many tests of the report read."""

import pytest
from helpers import records

from cifar_ray.reporting.render import build_report
from cifar_ray.results.records import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished search with its report."""
    folder = records.make_run(tmp_path_factory.mktemp("runs") / "a <run> & more")
    assert build_report(folder.root) == (folder.report_html, folder.report_md)
    return folder
