"""The assignment of subjects to the splits."""

import pytest

from oasis_helpers.convert.output import MANIFEST
from oasis_helpers.convert.subjects import Subject, assign_splits, read_splits
from oasis_helpers.data import SPLITS, SliceDataError
from tests.unit.convert.examples import CASES


def subjects_of(cases):
    return [Subject(case, "MR1", (), list) for case in cases]


def test_random_splits_depend_only_on_the_seed():
    subjects = subjects_of(range(1, 417))
    assigned = [
        {subject.case: subject.split for subject in assign_splits(subjects, seed, None)}
        for seed in (0, 0, 1)
    ]
    assert assigned[0] == assigned[1] != assigned[2]
    assert [list(assigned[0].values()).count(split) for split in SPLITS] == [332, 42, 42]


def test_a_manifest_assigns_splits_as_well(converted):
    assert read_splits(converted / MANIFEST) == CASES


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("case,split\n1,train\n2,validate\n", "assigns no split to subject 003; add it."),
        ("case,split\n1,train\n2,train\n3,test", "the split validate is empty"),
        ("case,split\n1,train\n1,test\n", "line 3 assigns a second split to subject 1"),
        ("case,split\none,train\n", "line 2 has case 'one' and split 'train'"),
        ("subject,set\n1,train\n", "line 2 has case '' and split ''"),
        ("case,split\n²,train\n", "line 2 has case '²' and split 'train'"),
        (f"case,split\n{'1' * 5000},train\n", "and split 'train'; expected a number"),
        (None, "not a readable table"),
    ],
)
def test_bad_tables_are_rejected(table, sentence, tmp_path):
    path = tmp_path / "splits.csv"
    if table:
        path.write_text(table)
    with pytest.raises(SliceDataError, match=sentence):
        assign_splits(subjects_of((1, 2, 3)), 0, path)


def test_two_subjects_are_too_few():
    with pytest.raises(SliceDataError, match="2 subjects; expected 3 or more"):
        assign_splits(subjects_of((1, 2)), 0, None)
