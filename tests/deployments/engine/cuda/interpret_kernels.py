"""Runs the kernels in Triton's interpreter and prints their errors against fp64 as JSON.

A program of its own: TRITON_INTERPRET=1 has to be set before Triton is imported.
"""

import json

import torch

from deployments.engine.cuda.group_norm import normalize_groups
from deployments.engine.cuda.group_norm_kernels import launch_group_norm
from deployments.engine.cuda.update import guide_and_advance
from deployments.engine.cuda.update_kernel import launch_update
from tests.deployments.engine.cuda.kernel_cases import (
    NORMS,
    UPDATES,
    norm_arguments,
    relative_error,
    update_arguments,
)


def main() -> None:
    errors: dict[str, float] = {}
    for name, case in NORMS.items():
        arguments = norm_arguments(case)
        answer = launch_group_norm(*arguments, case.groups, 1e-5, case.silu)
        assert answer.is_contiguous(memory_format=torch.channels_last)
        exact = normalize_groups(*(each.double() for each in arguments), case.groups, 1e-5, case.silu)
        errors[name] = relative_error(answer, exact)
    for name, step in UPDATES.items():
        given = update_arguments(step)
        wide = [each.double() if each.is_floating_point() else each for each in given]
        errors[name] = relative_error(launch_update(*given), guide_and_advance(*wide))
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
