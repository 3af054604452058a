"""The benchmark's cases on a tiny model."""

import pytest

from reasonrec_fast.benchmarking.suites import make_cases


@pytest.mark.parametrize("name", ["generate-8-prompts-fp32", "generate-8-samples-bf16"])
def test_contenders_give_right_answers(name):
    (case,) = make_cases([name], tiny=True)
    answers = {contender: run() for contender, run in case.contenders.items()}
    for contender, tokens in answers.items():
        case.check(contender, tokens)
    if "prompts" in name:
        with pytest.raises(AssertionError, match="off by"):
            case.check("nobody", (answers["reasonrec_fast"] + 1) % 4096)
    assert callable(case.floor)
    case.floor()
