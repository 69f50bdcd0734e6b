"""The event files themselves: what a resumed run leaves in them, and what each plugin gets."""

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from msde.monitor.pictures import Cell, Structure
from msde.monitor.tensorboard import LAYOUT
from msde.monitor.writer import Monitor

ETHER = Structure(np.array([6, 8, 6]), np.eye(3), np.array([[0, 1], [1, 2]]))
HELD_OUT = "loss/validation/total"


def raw_values(folder):
    """(file, step, tag, value) of every record in the event files, whatever TensorBoard shows."""
    for path in sorted((folder / "tensorboard").glob("events.*")):
        for record in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(record)
            for value in event.summary.value:
                yield path, event.step, value.tag, value


def steps_of(folder, tag):
    return sorted(step for _, step, name, _ in raw_values(folder) if name == tag)


def write(monitor, steps, validated=()):
    for step in steps:
        monitor.scalars(step, {"loss/total": float(step)})
        if step in validated:
            monitor.scalars(step, {HELD_OUT: 1.0})
            monitor.structures(step, "samples", [Cell(ETHER)])
    monitor.close()


def start(folder, first_step, due=False):
    monitor = Monitor(folder, first_step, 9, validation_due=due)
    monitor.text("config", {"started": first_step})
    monitor.hyper_parameters({"optim.lr": 0.1, "run.steps": None})
    monitor.tensorboard.layout()
    return monitor


def test_resumed_runs_leave_no_expired_points_in_the_files(tmp_path):
    write(start(tmp_path, 0), range(1, 6), validated=[2, 4])
    write(start(tmp_path, 4), range(5, 9), validated=[8])
    assert steps_of(tmp_path, "loss/total") == list(range(1, 9))
    assert steps_of(tmp_path, HELD_OUT) == [2, 4, 8]
    assert steps_of(tmp_path, "samples/2d_to_3d") == [2, 4, 8]
    assert steps_of(tmp_path, "samples/molecule_1_VERTEX") == [2, 4, 8]
    assert steps_of(tmp_path, "config/text_summary") == [0, 4]
    for tag in ("custom_scalars__config__", "_hparams_/session_start_info"):
        assert len(steps_of(tmp_path, tag)) == 1


def test_what_a_process_killed_while_it_dropped_them_left_is_removed(tmp_path):
    write(start(tmp_path, 0), range(1, 3))
    (events,) = (tmp_path / "tensorboard").glob("events.*")
    events.with_name(f".{events.name}.tmp").write_bytes(events.read_bytes())
    write(start(tmp_path, 2), range(3, 5))
    assert not list((tmp_path / "tensorboard").glob(".*"))
    assert steps_of(tmp_path, "loss/total") == [1, 2, 3, 4]


def test_a_validation_that_is_due_again_is_there_once(tmp_path):
    write(start(tmp_path, 0), range(1, 6), validated=[2, 4])
    monitor = start(tmp_path, 4, due=True)
    assert steps_of(tmp_path, HELD_OUT) == [2]
    monitor.scalars(4, {HELD_OUT: 1.0})
    write(monitor, [5])
    assert steps_of(tmp_path, HELD_OUT) == [2, 4]
    assert steps_of(tmp_path, "loss/total") == [1, 2, 3, 4, 5]
    assert steps_of(tmp_path, "samples/2d_to_3d") == [2]


def test_a_run_that_starts_anew_keeps_nothing(tmp_path):
    write(start(tmp_path, 0), range(1, 4))
    write(start(tmp_path, 0), range(1, 3))
    assert steps_of(tmp_path, "loss/total") == [1, 2]


def test_a_file_that_was_cut_short_is_named_and_kept_to_its_last_whole_record(tmp_path, caplog):
    write(start(tmp_path, 0), range(1, 6))
    (path,) = (tmp_path / "tensorboard").glob("events.*")
    path.write_bytes(path.read_bytes()[:-5])
    write(start(tmp_path, 5), [6])
    (message,) = caplog.messages
    assert str(path) in message and "is dropped" in message
    assert steps_of(tmp_path, "loss/total") == [1, 2, 3, 4, 6]
    caplog.clear()
    write(start(tmp_path, 6), [7])
    assert not caplog.messages


def test_records_that_stay_are_the_same_bytes(tmp_path):
    write(start(tmp_path, 0), range(1, 6))
    (path,) = (tmp_path / "tensorboard").glob("events.*")
    before = list(RawEventFileLoader(str(path)).Load())
    write(start(tmp_path, 2), [3])
    after = list(RawEventFileLoader(str(path)).Load())
    assert after == [record for record in before if record in after] and len(after) < len(before)


def test_the_layout_names_tags_that_exist_and_hyper_parameters_make_no_other_run(tmp_path):
    write(start(tmp_path, 0), range(1, 4), validated=[2])
    assert [p.parent.name for p in tmp_path.rglob("events.out*")] == ["tensorboard"]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (layout,) = events.Tensors("custom_scalars__config__")
    found = Layout.FromString(layout.tensor_proto.string_val[0])
    assert [category.title for category in found.category] == list(LAYOUT)


def test_a_mesh_is_closed_coloured_and_centred(tmp_path):
    write(start(tmp_path, 0), [1, 2], validated=[2])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tensors = {}
    for kind in ("VERTEX", "FACE", "COLOR"):
        (event,) = events.Tensors(f"samples/molecule_1_{kind}")
        proto = event.tensor_proto
        values = proto.float_val or proto.int_val
        tensors[kind] = np.array(values).reshape([d.size for d in proto.tensor_shape.dim])
    vertices, faces = tensors["VERTEX"][0], tensors["FACE"][0].astype(int)
    assert faces.min() == 0 and faces.max() == len(vertices) - 1
    assert np.abs(vertices).max() < 2 and len({tuple(c) for c in tensors["COLOR"][0]}) == 2
