"""Runs every operator once on small inputs, forward and backward: a script for ``compute-sanitizer``."""

from __future__ import annotations

import sys

import torch

from benchmarks.gpu.checks import edges, gradients, smallest


def main() -> None:
    """On the GPU, or with ``cpu`` as argument on the CPU."""
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda"
    for name, problems in [*edges().items(), *gradients().items()]:
        for dtype in (torch.float32, torch.bfloat16):
            problem = smallest(problems)
            inputs = [x.to(device, dtype if x.is_floating_point() else None) for x in problem.inputs]
            if problem.gradients:
                inputs = [x.requires_grad_() if x.is_floating_point() else x for x in inputs]
            results = problem.run(*inputs)
            if problem.gradients:
                next(result for result in results if result.requires_grad).sum().backward()
        print(name, flush=True)
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
