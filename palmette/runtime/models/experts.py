"""A layer's MLP as many experts and a router, of which each token takes a few; see kernels.moe."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from palmette.kernels.step_kernels import Activation, StepKernels


@dataclass(frozen=True, slots=True)
class ExpertMlp:
    """`layers.Mlp` of a sparse layer."""

    router: Tensor  # (num_experts, hidden)
    gate_up: Tensor  # (num_experts, 2 * intermediate, hidden); rows: gate, then up
    down: Tensor  # (num_experts, hidden, intermediate)
    top_k: int
    normalise: bool

    def __call__(self, x: Tensor, kernels: StepKernels, activation: Activation) -> Tensor:
        return kernels.experts(
            x, self.router, self.gate_up, self.down, top_k=self.top_k, normalise=self.normalise, activation=activation
        )

    def tensors(self) -> list[Tensor]:
        return [self.router, self.gate_up, self.down]
