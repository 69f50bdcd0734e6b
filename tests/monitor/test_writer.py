"""Metrics of a run that is resumed: no step is missing and none is there twice."""

import time

from msde.monitor.writer import NOT_FINITE_HELD_OUT, Monitor, read_metrics, summary


def rows(step, value):
    names = ("total", "contrastive", "2d_to_3d", "3d_to_2d")
    return {f"loss/{name}": value for name in names} | {
        "accuracy/contrastive": value,
        "throughput/molecules_per_s": 10.0 * step,
    }


def test_a_resumed_monitor_leaves_no_gap_and_no_duplicate(tmp_path):
    monitor = Monitor(tmp_path, first_step=0, total_steps=4)
    for step in (1, 2, 3):
        monitor.scalars(step, rows(step, 1.0))
    monitor.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "loss')  # cut short by a crash
    monitor = Monitor(tmp_path, first_step=2, total_steps=4)
    for step in (3, 4):
        monitor.scalars(step, rows(step, 2.0))
    monitor.close()
    found = [(row["step"], row["loss/total"]) for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert found == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    text = summary(tmp_path)
    assert "1.000 -> 2.000" in text and "tensorboard --logdir" in text


def test_tensorboard_shows_each_step_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    held_out = "loss/validation/total"
    for first, last, due in ((0, 5, False), (3, 6, True), (3, 4, True), (4, 8, False)):
        monitor = Monitor(tmp_path, first_step=first, total_steps=8, validation_due=due)
        if due:
            monitor.scalars(first, {held_out: 1.0})
        for step in range(first + 1, last + 1):
            monitor.scalars(step, rows(step, float(step)))
            if step == 4:
                monitor.scalars(step, {held_out: 1.0})
        monitor.close()
        time.sleep(1)  # files of one process and second are read in the order of "9" and "10"
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/total")] == list(range(1, 9))
    assert [event.step for event in events.Scalars(held_out)] == [3, 4]
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in metrics if held_out in row] == [3, 4]


def test_damaged_lines_are_left_out_with_one_line_and_mended_by_a_resumed_run(tmp_path, caplog):
    monitor = Monitor(tmp_path, first_step=0, total_steps=4)
    for step in (1, 2, 3):
        monitor.scalars(step, rows(step, 1.0))
    monitor.event(2, "step skipped", {"reason": "NaN"})
    monitor.close()
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    end = whole.index(b"\n", whole.index(b"\n") + 1)
    for at in range(whole.index(b"\n") + 1, end + 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        caplog.clear()
        kept = [row["step"] for row in read_metrics(path)]
        assert kept == ([1] if at == end else [1, 3])
        (line,) = caplog.messages
        assert f"{path}: " in line and "the first is line 2" in line
    events = tmp_path / "events.jsonl"
    events.write_text(events.read_text().replace("NaN", "nan"))
    Monitor(tmp_path, first_step=3, total_steps=4).close()
    assert events.read_text() == ""
    caplog.clear()
    assert read_metrics(path) and read_metrics(events) == [] and not caplog.messages


def test_events_of_a_repeated_validation_appear_once(tmp_path):
    for due in (False, True):
        monitor = Monitor(tmp_path, first_step=2, total_steps=4, validation_due=due)
        if not due:
            monitor.event(2, "step skipped", {"reason": "NaN"})
        monitor.event(2, NOT_FINITE_HELD_OUT, {"molecules": 1, "of": 9})
        monitor.close()
    events = [row["event"] for row in read_metrics(tmp_path / "events.jsonl")]
    assert events == ["step skipped", NOT_FINITE_HELD_OUT]


def test_files_of_earlier_releases_go_on(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss/total": 2.5}\n{"step": 2, "loss/total": NaN}\n')
    monitor = Monitor(tmp_path, first_step=2, total_steps=4)
    monitor.scalars(3, {"loss/total": 1.5})
    monitor.close()
    found = read_metrics(path)
    assert [row["step"] for row in found] == [1, 2, 3] and found[0]["loss/total"] == 2.5
    assert not caplog.messages
