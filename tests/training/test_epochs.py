"""Training in epochs: the best epoch is kept, a killed run ends as another one does."""

import pytest
import torch

from reasonrec_fast.training import epochs
from reasonrec_fast.training.epochs import EpochTraining, train_epochs


class Killed(Exception):
    pass


def setup():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    x = torch.randn(60, 4)
    return module, x, x.sum(1, keepdim=True)


def train(settings, path=None, *, kill_at=None, quality=None, progress=None):
    module, x, y = setup()
    steps = iter(range(10_000))

    def loss(rows):
        if next(steps) == kill_at:
            raise Killed
        return (module(x[rows]) - y[rows]).square().mean()

    def batches(epoch):
        order = torch.randperm(60, generator=torch.Generator().manual_seed(epoch))
        return iter(order.split(20))

    def validate():
        with torch.no_grad():
            return -float((module(x) - y).square().mean()) if quality is None else next(quality)

    best = train_epochs(module, batches, loss, settings, validate=validate, checkpoint=path, progress=progress)
    return torch.cat([p.detach().flatten() for p in module.parameters()]), best


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("kill_at", [1, 3, 7, 11])
def test_a_killed_run_goes_on_to_the_same_end(tmp_path, monkeypatch, average, kill_at):
    monkeypatch.setattr(epochs, "_SECONDS_BETWEEN_SAVES", 0.0)  # after every step
    settings = EpochTraining(epochs=5, patience=9, learning_rate=0.05, warmup=3, average=average, clip=1.0)
    expected, best = train(settings)
    path = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        train(settings, path, kill_at=kill_at)
    result, again = train(settings, path)
    assert torch.equal(result, expected) and again == best
    finished, _ = train(settings, path, kill_at=0)  # nothing is left to do
    assert torch.equal(finished, expected)


def test_stops_early_and_keeps_the_best_epoch():
    reports = []
    settings = EpochTraining(epochs=20, patience=2, learning_rate=0.05)
    result, best = train(
        settings, quality=iter([0.1, 0.5, 0.4, 0.3, 0.2]), progress=lambda *report: reports.append(report)
    )
    assert best == 0.5 and len(reports) == 4
    expected, _ = train(EpochTraining(epochs=2, patience=9, learning_rate=0.05), quality=iter([0.1, 0.5]))
    assert torch.equal(result, expected)


def test_a_validation_that_is_no_number_does_not_replace_the_best():
    settings = EpochTraining(epochs=4, patience=9, learning_rate=0.05)
    weights, best = train(settings, quality=iter([0.9, float("nan"), 0.5, 0.4]))
    assert best == 0.9
    expected, _ = train(EpochTraining(epochs=1, patience=9, learning_rate=0.05), quality=iter([0.9]))
    assert torch.equal(weights, expected)
    assert train(settings, quality=iter([float("nan"), 0.2, float("nan"), 0.1]))[1] == 0.2


@pytest.mark.parametrize(
    ("average", "clip", "expected"),
    [(0.0, 0.0, (3.55093, 1.38481, 0.78234)), (0.9, 1.0, (3.55093, 1.32052, 0.70344))],
)
def test_losses_are_those_from_before_the_shared_loop(average, clip, expected):
    """Recorded of steps 1, 7 and 12 when epochs had a loop of their own; with dropout and warm-up."""
    module, x, y = setup()
    losses = []

    def loss(rows):
        value = (module(x[rows]) - y[rows]).square().mean()
        losses.append(float(value.detach()))
        return value

    def batches(epoch):
        return iter(torch.randperm(60, generator=torch.Generator().manual_seed(epoch)).split(20))

    settings = EpochTraining(
        epochs=4, patience=3, learning_rate=0.05, warmup=3, average=average, clip=clip, seed=5
    )  # fmt: skip
    train_epochs(module, batches, loss, settings)
    assert [losses[0], losses[6], losses[11]] == pytest.approx(expected, rel=2e-3)


def test_accumulated_batches_are_one_step():
    """Two batches of equal size a step are the batch of both."""
    results = []
    for accumulate, size in ((2, 15), (1, 30)):
        module, x, y = setup()
        module.eval()
        module.train = lambda mode=True, module=module: module  # without dropout
        train_epochs(
            module,
            lambda epoch, size=size: iter(torch.arange(60).split(size)),
            lambda rows, module=module, x=x, y=y: (module(x[rows]) - y[rows]).square().mean(),
            EpochTraining(epochs=3, patience=3, learning_rate=0.05, accumulate=accumulate),
        )
        results.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_the_random_state_of_the_caller_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    module, x, y = setup()
    torch.manual_seed(5)
    train_epochs(
        module, lambda epoch: iter([0]), lambda _: (module(x) - y).square().mean(), EpochTraining(2, 2, 0.1)
    )  # fmt: skip
    assert torch.equal(torch.rand(1), expected)
    assert not module.training


def test_another_run_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    module, x, y = setup()
    arguments = (module, lambda epoch: iter([0]), lambda _: (module(x) - y).square().mean(), EpochTraining(1, 1, 0.1))
    train_epochs(*arguments, checkpoint=path, fingerprint={"seed": 0})
    with pytest.raises(ValueError, match="expected a checkpoint of this configuration and data"):
        train_epochs(*arguments, checkpoint=path, fingerprint={"seed": 1})
