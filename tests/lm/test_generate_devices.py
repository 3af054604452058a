"""Generation on a device that is not the CPU, without a GPU: one copy a step is read back, and nothing waits else."""

from collections import Counter

import pytest
import torch
from lm.test_generate import GROUPS, MIXED, lively
from pretended_device import DEVICE, pretended_device

from reasonrec_fast.lm.generate import TextGenerator


@pytest.mark.filterwarnings("ignore:.*to a meta parameter in the current model:UserWarning")
@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_a_step_reads_back_once(family):
    model = lively(family)
    expected = TextGenerator(model).generate(GROUPS, MIXED)
    steps = max(len(sample.token_ids) for samples in expected for sample in samples)
    with pretended_device() as device:
        generator = TextGenerator(model.to(DEVICE))
        device.forget()
        results = generator.generate(GROUPS, MIXED)
        assert device.reads == Counter({"generate._generate": steps}) and not device.waits
    for samples, of_cpu in zip(results, expected, strict=True):
        for sample, wanted in zip(samples, of_cpu, strict=True):
            assert sample.token_ids == wanted.token_ids
            close = {"atol": 3e-4, "rtol": 3e-4}
            torch.testing.assert_close(torch.tensor(sample.logprobs), torch.tensor(wanted.logprobs), **close)
            torch.testing.assert_close(torch.tensor(sample.entropies), torch.tensor(wanted.entropies), **close)
