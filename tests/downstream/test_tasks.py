"""The table of tasks and the settings of each."""

import pytest

from msde.downstream.settings import make_settings
from msde.downstream.tasks import TASKS, get_task
from msde.errors import MsdeError


def test_every_published_task_is_there_and_has_valid_settings():
    assert len(TASKS) == 8 + 5 + 12 + 8
    for task in TASKS.values():
        settings = make_settings(task)
        assert (settings.loss == "bce") == task.is_classification
        assert task.has_forces == task.name.startswith("md17-")
        assert (settings.view == "3d") == task.name.startswith(("md17-", "qm9-"))


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(MsdeError, match="unknown task 'bbpb'; did you mean 'bbbp'"):
        get_task("bbpb")


def test_named_tasks_have_their_own_targets():
    with pytest.raises(MsdeError, match="--targets and --metric are for --task custom"):
        get_task("esol", ["a"])
    with pytest.raises(MsdeError, match="--metric is 'r2', expected one of roc_auc, rmse, mae"):
        get_task("custom", ["a"], "r2")


@pytest.mark.parametrize(
    "override, message",
    [
        ("epocs=3", "unknown key 'epocs'; did you mean 'epochs'"),
        ("epochs=many", "epochs is 'many', expected int"),
        ("lr=0", "must be positive"),
        ("loss=bce", "loss=bce does not fit rmse, expected mse or l1"),
        ("split=column", "split=column needs split_column=NAME"),
        ("train=0.95", "shares of a sum below 1"),
        ("split_seed=-1", "split_seed must be at least 0 and below 2"),
        ("nonsense", "not of the form key=value"),
    ],
)
def test_wrong_settings_are_one_line(override, message):
    with pytest.raises(MsdeError, match=message) as caught:
        make_settings(get_task("esol"), [override])
    assert "\n" not in str(caught.value)


def test_forces_need_the_3d_encoder():
    with pytest.raises(MsdeError, match="md17-ethanol has forces.*view=3d"):
        make_settings(get_task("md17-ethanol"), ["view=2d"])
