"""Sources that several tests of the conversion share."""

import pytest

from oasis_helpers.convert import convert
from tests.unit.convert import examples


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Resized copies of slices stay in the test's folder."""
    monkeypatch.setenv("OASIS_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def pngs(cohort_root):
    """{case: the 32 files of a cohort subject}"""
    return {
        case: examples.subject_pngs(cohort_root, case, split)
        for case, split in examples.CASES.items()
    }


@pytest.fixture(scope="session")
def volume_of_case(pngs):
    """{case: the volume of a cohort subject}"""
    return {case: examples.volume_of(files) for case, files in pngs.items()}


@pytest.fixture(scope="session")
def disc(volume_of_case, tmp_path_factory):
    """A disc of OASIS-1; read only."""
    return examples.write_disc(tmp_path_factory.mktemp("oasis") / "disc1", volume_of_case)


@pytest.fixture(scope="session")
def split_table(tmp_path_factory):
    """The cohort's split of the four subjects."""
    return examples.write_split_table(tmp_path_factory.mktemp("splits") / "splits.csv")


@pytest.fixture(scope="session")
def converted(disc, split_table, tmp_path_factory):
    """The converted disc; read only."""
    return convert(disc, tmp_path_factory.mktemp("converted") / "slices", splits=split_table)
