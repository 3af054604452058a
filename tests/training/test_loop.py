"""The step loop: what a step is, and that runs which are stopped, divided or spread end as whole ones do."""

import os
import random
import signal
import struct
import time

import pytest
import torch
from loop_run import STEPS, in_processes, train

from reasonrec_fast.training.loop import StepLoop
from reasonrec_fast.training.progress import metrics_text, named_part
from reasonrec_fast.training.schedules import warmup
from reasonrec_fast.training.trackers import tensorboard_tracker


def regression(dtype=torch.float64, dropout=0.0):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(dropout), torch.nn.Linear(8, 1)).to(dtype)
    x = torch.randn(60, 4, dtype=dtype)

    def loss(rows):
        return (module(x[rows]) - x[rows].sum(1, keepdim=True)).square().mean()

    return module, loss


def loop_over(module, **options):
    return StepLoop(module, torch.optim.AdamW(module.parameters(), lr=0.01), **options)


def weights_of(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_a_step_is_seeded_scheduled_clipped_descent():
    """Beside the same three steps by hand, to the bit."""
    module, loss = regression(torch.float32, dropout=0.5)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    expected_losses = []
    for step in range(3):
        torch.manual_seed(7 * 1_000_003 + step)
        optimizer.param_groups[0]["lr"] = 0.01 * min(1.0, (step + 1) / 3)
        optimizer.zero_grad()
        value = loss(slice(step, step + 20))
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 0.1)
        optimizer.step()
        expected_losses.append(float(value.detach()))
    expected = weights_of(module)
    module, loss = regression(torch.float32, dropout=0.5)
    reports = []
    loop = loop_over(
        module, seed=7, clip=0.1, schedule=warmup(2), progress=lambda done, total, m: reports.append((done, total, m))
    )
    loop.run(3, lambda step: [slice(step, step + 20)], loss)
    assert torch.equal(weights_of(module), expected) and loop.steps_done == 3
    assert reports == [(step + 1, 3, {"loss": value}) for step, value in enumerate(expected_losses)]


def test_micro_batches_are_one_batch():
    parts = [slice(0, 7), slice(7, 30), slice(30, 60)]
    module, loss = regression()
    whole = loop_over(module)
    expected = [float(whole.step([slice(0, 60)], loss)) for _ in range(5)]
    divided_module, divided_loss = regression()
    divided = loop_over(divided_module)
    results = [float(divided.step(parts, divided_loss, weights=[7, 23, 30])) for _ in range(5)]
    assert results == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(weights_of(divided_module), weights_of(module), rtol=1e-10, atol=1e-12)
    unweighted = loop_over(regression()[0])
    assert float(unweighted.step(parts, regression()[1])) != pytest.approx(expected[0], rel=1e-6)


def test_a_micro_batch_without_weight_changes_nothing():
    module, loss = regression()
    expected_module, expected_loss = regression()
    loop_over(expected_module).step([slice(0, 30)], expected_loss)
    loop_over(module).step([slice(0, 30), slice(30, 60)], loss, weights=[1, 0])
    torch.testing.assert_close(weights_of(module), weights_of(expected_module), rtol=1e-12, atol=0)


def test_wrong_steps_are_refused():
    module, loss = regression()
    loop = loop_over(module)
    with pytest.raises(ValueError, match="micro_batches: expected at least one; got none"):
        loop.step([], loss)
    for weights in ([1.0], [0.0, 0.0], [1.0, -0.5], [float("nan"), 1.0]):
        with pytest.raises(ValueError, match="weights: expected 2 numbers of at least 0 with a positive sum"):
            loop.step([slice(0, 5), slice(5, 9)], loss, weights=weights)
    assert loop.steps_done == 0
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="module: expected parameters that require gradients; got none"):
        loop_over(module)


def test_what_does_not_fit_is_named():
    def too_large(rows):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    loop = loop_over(regression()[0])
    with pytest.raises(torch.OutOfMemoryError, match="the batch of step 0 did not fit into the memory of cpu"):
        loop.step([0], too_large)


def test_nothing_is_read_back_for_nobody(monkeypatch):
    module, loss = regression()
    loop = loop_over(module)
    monkeypatch.setattr("reasonrec_fast.training.loop.read_metrics", lambda metrics: pytest.fail("read"))
    loop.run(2, lambda step: [slice(0, 5)], loss)


def test_metrics_of_micro_batches_are_weighted_means_and_maxima():
    parts = [(1, {"kl": torch.tensor(1.0), "ratio_max": 2.0}), (3, {"kl": 5.0, "ratio_max": torch.tensor(1.0)})]
    assert loop_over(regression()[0]).mean_metrics(parts) == {"kl": 4.0, "ratio_max": 2.0}
    assert loop_over(regression()[0]).mean_metrics([]) == {}


def test_progress_of_parts():
    reports = []
    inner = named_part(lambda *values: reports.append(values), "outer")
    inner(1, 2, {"loss": 0.5})
    inner(2, 2, part="own")
    assert reports == [(1, 2, {"loss": 0.5}, "outer"), (2, 2, {}, "own")]
    assert named_part(None, "outer") is None
    assert metrics_text({}) == ""


def test_a_run_that_is_killed_again_and_again_ends_as_a_whole_one(tmp_path):
    """SIGKILL at random moments: in steps, and in the middle of writing the checkpoint."""
    expected = train(tmp_path / "whole")
    folder, moments = tmp_path / "killed", random.Random(0)
    for kill in range(12):
        child = os.fork()
        if not child:
            torch.set_num_threads(1)
            train(folder, seconds=0.01)
            os._exit(0)
        deadline = time.monotonic() + 30
        while kill == 0 and not list(folder.glob("*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    result = train(folder)
    assert result["started_at"] > 0
    assert result["weights"] == expected["weights"]


def test_two_processes_take_the_steps_of_one(tmp_path):
    one, two = train(tmp_path / "one"), in_processes(2, tmp_path / "two")
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["computed"] == [[0, 2], [1]], "micro-batches are divided among processes"
    assert two["alike"], "all processes end with the same bits"
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-6)  # the sum of losses is float32
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-9)
    again = train(tmp_path / "two")  # one process reads what two have written
    assert again["started_at"] == STEPS and again["weights"] == two["weights"]


def test_accelerators_that_would_not_be_honoured_are_refused():
    from accelerate import Accelerator

    module, loss = regression()
    loop = loop_over(module, accelerator=Accelerator(cpu=True))
    assert float(loop.step([slice(0, 5)], loss)) > 0
    with pytest.raises(ValueError, match="expected gradient_accumulation_steps 1"):
        loop_over(module, accelerator=Accelerator(cpu=True, gradient_accumulation_steps=2))

    class Sharded:
        class distributed_type:  # noqa: N801
            value = "FSDP"

    with pytest.raises(ValueError, match="accelerator: expected one process, or several .*got 'FSDP'"):
        loop_over(module, accelerator=Sharded())


def scalars(path):
    """Step, name and value of the events of a file of TFRecords (length, checksum, event, checksum)."""
    from tensorboardX.proto.event_pb2 import Event

    data, results = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        results += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    return results


def test_tensorboard_gets_every_step(tmp_path):
    pytest.importorskip("tensorboardX")
    module, loss = regression()
    tracker = tensorboard_tracker(tmp_path, "run")
    values = []
    loop = loop_over(module, trackers=[tracker], progress=lambda done, total, metrics: values.append(metrics["loss"]))
    loop.run(3, lambda step: [slice(0, 5)], loss)
    tracker.finish()
    (path,) = (tmp_path / "run").iterdir()
    assert scalars(path) == [(step + 1, "loss", pytest.approx(value, rel=1e-6)) for step, value in enumerate(values)]


def test_without_tensorboard_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"got neither\. Install one with 'pip install reasonrec-fast\[tensorboard\]'"
    ):
        tensorboard_tracker(tmp_path, "run")
