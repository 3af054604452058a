"""Merging adapters once for all readers, and unmerging them without readers."""

import copy
import threading
import time

import peft
import pytest
import torch
from early_exit.tiny import tiny, tiny_vlm

from reasonrec_fast.lm import AdapterMerger
from reasonrec_fast.lm.adapters import adapter_state, read_lora, unwrapped, with_lora, write_lora


def adapted(**more):
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, **more)
    return peft.get_peft_model(tiny("Llama"), config).eval()


@pytest.fixture(scope="module")
def original():
    return adapted()


def together(count, work):
    """Run threads that begin at once; their errors are raised."""
    barrier, errors = threading.Barrier(count), []

    def run(number):
        try:
            barrier.wait(30)
            work(number)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


def test_cold_threads_leave_the_weights_of_one(original):
    ids = torch.tensor([[1, 2, 3]])
    alone = copy.deepcopy(original)
    with AdapterMerger(alone).merged(), torch.no_grad():
        expected = alone(ids).logits
    for _ in range(10):
        model = copy.deepcopy(original)
        merger, results = AdapterMerger(model), []

        def read(_, model=model, merger=merger, results=results):
            with merger.merged(), torch.no_grad():
                results.append(model(ids).logits)

        together(8, read)
        assert merger.is_merged and all(torch.equal(logits, expected) for logits in results)


def test_who_unmerges_waits_for_readers(original):
    model = copy.deepcopy(original)
    merger, states = AdapterMerger(model), []
    layer = next(module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer))

    def work(number):
        for _ in range(20):
            if number:
                with merger.merged():
                    states.append(layer.merged and merger.is_merged)
                    time.sleep(0)
                    states.append(layer.merged)
            else:
                with merger.unmerged():
                    states.append(not layer.merged and not merger.is_merged)
                    time.sleep(0)
                    states.append(not layer.merged)

    together(4, work)
    assert len(states) == 160 and all(states)


def test_inside_one_another(original):
    merger = AdapterMerger(copy.deepcopy(original))
    message = "unmerged: expected a thread that is not inside merged"
    with merger.merged(), merger.merged(), pytest.raises(RuntimeError, match=message), merger.unmerged():
        pass
    with merger.unmerged(), pytest.raises(RuntimeError, match="merged: expected a thread .* unmerged"), merger.merged():
        pass
    with merger.merged():
        assert merger.is_merged


def test_a_reader_inside_goes_on_while_somebody_waits_to_unmerge(original):
    merger = AdapterMerger(copy.deepcopy(original))
    inside, done = threading.Event(), []

    def reader():
        with merger.merged():
            inside.set()
            while not merger._waiting_writers:
                time.sleep(0.001)
            with merger.merged():
                done.append("reader")

    def writer():
        inside.wait(30)
        with merger.unmerged():
            done.append("writer")

    together(2, lambda number: (reader, writer)[number]())
    assert done == ["reader", "writer"]


def test_only_models_with_adapters():
    with pytest.raises(TypeError, match="model: expected a model with peft's adapters; got LlamaForCausalLM"):
        AdapterMerger(tiny("Llama"))


def test_the_state_of_adapters(original):
    model = copy.deepcopy(original)
    states = [adapter_state(model)]
    with model.disable_adapter():
        states.append(adapter_state(model))
    assert adapter_state(model) == states[0]
    model.merge_adapter()
    states.append(adapter_state(model))
    model.unmerge_adapter()
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.set_scale("default", 3.0)
    states.append(adapter_state(model))
    assert len(set(states)) == 4 and adapter_state(tiny("Llama")) == ""
    assert unwrapped(model) is model.get_base_model()


def served(dtype, **more):
    """A model with adapters in float32, its weights without them, and what it answers."""
    model = adapted(**more)
    for name, weight in model.named_parameters():
        if "lora_" not in name:
            weight.data = weight.data.to(dtype)
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    merger = AdapterMerger(model)

    def answer():
        with merger.merged(), torch.no_grad():
            return model(torch.tensor([[1, 2, 3]])).logits

    return model, weights, merger, answer


@pytest.mark.parametrize("more", [{}, {"use_dora": True}], ids=["lora", "dora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_as_they_were(dtype, more):
    """Subtracting an adapter from a rounded sum gives another weight: answers drifted with every training or loading of
    adapters between two predictions."""
    model, weights, merger, answer = served(dtype, **more)
    first = answer()
    with merger.unmerged():
        assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())
    assert torch.equal(answer(), first)


def test_a_weight_that_was_written_while_it_was_merged_keeps_what_was_written():
    model, weights, merger, answer = served(torch.float32)
    answer()
    name = next(name for name in weights if "q_proj.base_layer" in name)
    with torch.no_grad():
        model.get_parameter(name).add_(1.0)
    with merger.unmerged():
        torch.testing.assert_close(model.get_parameter(name), weights[name] + 1.0)


def test_a_merge_that_fails_leaves_the_weights(monkeypatch):
    model, weights, merger, answer = served(torch.bfloat16)
    last = [module for module in model.modules() if hasattr(module, "base_layer")][-1]
    monkeypatch.setattr(last, "merge", lambda **_: (_ for _ in ()).throw(MemoryError("of a test")))
    with pytest.raises(MemoryError, match="of a test"):
        answer()
    assert not merger.is_merged
    assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())
    monkeypatch.undo()
    assert torch.isfinite(answer()).all() and merger.is_merged


def test_the_last_layers_get_adapters_and_no_others():
    model = with_lora(tiny("Llama"), rank=2, alpha=2, seed=0, last_layers=1)
    layers = {name.split(".layers.")[1].split(".")[0] for name, _ in model.named_parameters() if "lora_" in name}
    count = len(unwrapped(model).model.layers)
    assert layers == {str(count - 1)}
    for wrong in (0, -1, count + 1):
        with pytest.raises(ValueError, match=f"last_layers: expected 1 to {count}, the model's layers; got {wrong}"):
            with_lora(tiny("Llama"), rank=2, alpha=2, seed=0, last_layers=wrong)


@pytest.mark.parametrize("kind", ["Llava", "Idefics3"])
def test_adapters_of_a_vision_tower_which_were_saved_once_are_left_out(kind, tmp_path):
    """Models of before had adapters in every linear layer, also where no prompt is read."""
    whole = peft.get_peft_model(
        tiny_vlm(kind), peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )
    write_lora(whole, tmp_path / "adapter.safetensors")
    model = with_lora(tiny_vlm(kind), rank=2, alpha=2, seed=0)
    read_lora(model, tmp_path / "adapter.safetensors")
    before = dict(whole.named_parameters())
    read = {name: value for name, value in model.named_parameters() if "lora_" in name}
    assert 0 < len(read) < sum("lora_" in name for name in before)
    assert all(torch.equal(value, before[name]) for name, value in read.items())
    with pytest.raises(ValueError, match="expected adapters of this backbone; got those of another"):
        read_lora(with_lora(tiny_vlm(kind), rank=2, alpha=2, seed=0, last_layers=1), tmp_path / "adapter.safetensors")
