"""launch/pretrain.py with a fault injected into one of its steps.

The environment variable HARM describes it: a JSON object {"what": ..., "step": N, "rank": R}. Steps
are those of the run, so that a resumed run meets the same fault in the same step.
"""

import hashlib
import io
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path

from msde.cluster import process

process.prepare()  # before torch's threads

import torch  # noqa: E402
from deepspeed.utils import safe_get_full_optimizer_state  # noqa: E402

from msde.checkpoints import engine_state  # noqa: E402
from msde.model import MoleculeSDE  # noqa: E402
from msde.training import loop  # noqa: E402
from msde.training.flat_parameters import model_of  # noqa: E402
from msde.training.run import Run  # noqa: E402

harm = json.loads(os.environ["HARM"])
mine = harm.get("rank", 0) in (int(os.environ.get("RANK", "0")), "all")
now, run = 0, None  # the step being made, and whose it is


def due():
    return mine and now >= harm["step"] and now < harm["step"] + harm.get("steps", 1)


def before_each_step(function):
    """Call a function with the batches of each step's slots before they are trained on."""
    take_step = Run.take_step

    def taking(self, slots, sums):
        global now, run
        now, run = self.state.step + 1, self
        function(slots)
        return take_step(self, slots, sums)

    Run.take_step = taking


def nothing(slots):
    pass


def nan_position(slots):
    if due():
        slots[0].pos[0, 0] = float("nan")


def nan_positions(slots):
    if due():
        slots[0].pos.fill_(float("nan"))


def hang(slots):
    if due():
        os.kill(os.getpid(), signal.SIGSTOP)


def die(slots):
    if due():
        os.kill(os.getpid(), signal.SIGKILL)


def terminate(slots):
    if due():
        os.kill(os.getpid(), getattr(signal, harm.get("signal", "SIGTERM")))


def wait(slots):
    """Signal that the step is reached, and give the test time to act."""
    if due():
        Path(harm["flag"]).write_text("reached")
        time.sleep(harm.get("seconds", 2))


def slow(slots):
    """Give the test the time to do harm in a certain step."""
    time.sleep(harm["seconds"])


def out_of_memory(slots):
    if due():

        def fail(*arguments):
            raise torch.OutOfMemoryError("no memory")

        MoleculeSDE.forward = fail


def record(slots):
    """Write a digest of each slot of each step."""
    with open(harm["file"] + os.environ["RANK"], "a") as file:
        for slot in slots:
            digest = hashlib.sha256(slot.pos.numpy().tobytes() + slot.uid.numpy().tobytes())
            row = [now, slot.slot, slot.weight, list(map(int, slot.key)), digest.hexdigest()]
            file.write(json.dumps(row) + "\n")


def dump(slots):
    """Save the state of the optimizer and of BatchNorm before the step, on every rank."""
    if not due():
        return
    module, optimizer = run.engine.module, run.engine.optimizer
    model = model_of(module)
    names = {parameter: name for name, parameter in model.named_parameters()}
    if hasattr(optimizer, "_hp_optimizer_states_linked"):
        # DeepSpeed links the states of all groups when only the first one has any.
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()
    moments = {}
    for number, parameter in enumerate(module.parameters()):
        if not parameter.requires_grad:
            continue
        for key in ("exp_avg", "exp_avg_sq"):
            if run.engine.zero_optimization():
                value = safe_get_full_optimizer_state(parameter, key)
            else:
                value = optimizer.state[parameter][key]
            if model is module:  # under ZeRO 3 the parameter itself may be empty now
                moments[f"{names[parameter]}.{key}"] = value.detach().clone()
                continue
            members = module._members[number]
            parts = value.detach().split([member.numel() for member in members])
            for member, part in zip(members, parts, strict=True):
                moments[f"{names[member]}.{key}"] = part.view_as(member).clone()
    keys = ("name", "lr", "betas", "weight_decay", "eps")
    groups = [{key: group.get(key) for key in keys} for group in optimizer.param_groups]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    inner = getattr(optimizer, "optimizer", optimizer)
    counts = [float(state["step"]) for state in inner.state.values() if "step" in state]
    assert len({state["step"].data_ptr() for state in inner.state.values()}) == len(counts)
    counts = sorted(set(counts))
    found = {"moments": moments, "counts": counts, "groups": groups, "buffers": buffers}
    torch_save(found, harm["file"] + os.environ["RANK"])


make_model, torch_save, make_room = loop.make_model, torch.save, engine_state.make_room


def make_model_with_hook(*arguments):
    """Make one weight's gradient infinite."""
    model = make_model(*arguments)
    weight = next(p for p in model.parameters() if p.requires_grad)
    weight.register_hook(lambda gradient: gradient * float("inf") if due() else gradient)
    return model


def make_model_that_leaps(*arguments):
    """Multiply the losses of one rank's slots."""

    def multiply(module, inputs, outputs):
        loss, terms = outputs
        factor = harm["factor"] if due() else 1.0
        return loss * factor, terms | {"total": terms["total"] * factor}

    model = make_model(*arguments)
    model.register_forward_hook(multiply)
    return model


def save_half_and_die(value, path, *arguments, **options):
    """Die while the state of the step is being written."""
    if not due():
        return torch_save(value, path, *arguments, **options)
    whole = io.BytesIO()
    torch_save(value, whole)
    Path(path).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def make_room_and_fill(root, *arguments):
    """Let another program fill the disk once there was found to be room for a checkpoint."""
    make_room(root, *arguments)
    if due():
        with open(root.parent / "filler", "wb") as file:
            status = os.statvfs(root)
            file.write(bytes(status.f_bavail * status.f_frsize - 100_000))


what = harm["what"]
if what == "infinite_gradient":
    loop.make_model = make_model_with_hook
if what == "leap":
    loop.make_model = make_model_that_leaps
if what == "die_in_save":
    torch.save = save_half_and_die
if what == "fill_disk":
    engine_state.make_room = make_room_and_fill
before_each_step(globals().get(what, nothing))
sys.argv[0] = str(Path(__file__).parent.parent.parent / "launch/pretrain.py")
runpy.run_path(sys.argv[0], run_name="__main__")
