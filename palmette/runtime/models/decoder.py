"""One config-driven decoder for every family of the table.

    x = embed(ids)
    for each layer:   x += attention(norm(x));  x += mlp(norm(x))      (Gemma also normalises what each puts out)
    hidden = norm(x);  logits = hidden @ head^T

Knows weights and formulas. Does not know where weights come from (`WeightSource`), what a request is, or how tokens
were grouped: a step is a flat list of tokens, and who sees whom is the attention plan's business.
"""

from __future__ import annotations

from torch import Tensor

from palmette.kernels.linear import linear
from palmette.kernels.rope import rope_cos_sin, rope_frequencies
from palmette.kernels.soft_cap import soft_cap_
from palmette.kernels.step_kernels import StepKernels, TorchKernels
from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.interface import LayerKV, StepTensors
from palmette.runtime.models.layers import DecoderWeights, LayerWeights


class Decoder:
    """A model that computes hidden states; the head is separate, as few tokens need it."""

    def __init__(self, config: ModelConfig, weights: DecoderWeights, kernels: StepKernels | None = None) -> None:
        """
        Args:
            kernels: who computes; torch when None.
        """
        self.config = config
        self.weights = weights
        self.kernels = kernels or TorchKernels()
        self.dtype = weights.embedding.dtype
        self.device = weights.embedding.device
        self._frequencies = {rope: rope_frequencies(rope).to(self.device) for rope in {x.rope for x in config.layers}}

    def forward(self, batch: StepTensors, kv: LayerKV) -> Tensor:
        """Compute a step; writes its keys and values into `kv`.

        Returns:
            (num_tokens, hidden_size) hidden states behind the final norm.
        """
        config, weights, kernels = self.config, self.weights, self.kernels
        eps = config.norm_eps
        angles = {
            rope: rope_cos_sin(frequencies, batch.positions, rope.attention_factor)
            for rope, frequencies in self._frequencies.items()
        }
        residual = kernels.embed(batch.input_ids, weights.embedding, scale=config.embedding_scale)
        x = kernels.rms_norm(residual, weights.layers[0].attention_norm, eps)
        for i, layer in enumerate(weights.layers):
            x = self._attention(i, layer, x, batch, kv, *angles[config.layers[i].rope])
            if layer.post_attention_norm is not None:
                x = kernels.rms_norm(x, layer.post_attention_norm, eps)
            x, residual = kernels.add_rms_norm(x, residual, layer.mlp_norm, eps)
            x = layer.mlp(x, kernels, config.activation)
            if layer.post_mlp_norm is not None:
                x = kernels.rms_norm(x, layer.post_mlp_norm, eps)
            last = i + 1 == len(weights.layers)
            next_norm = weights.final_norm if last else weights.layers[i + 1].attention_norm
            x, residual = kernels.add_rms_norm(x, residual, next_norm, eps)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, hidden_size) -> (n, vocab_size) float32, soft-capped where the family does."""
        logits = linear(hidden, self.weights.head).float()
        return logits if self.config.logit_soft_cap is None else soft_cap_(logits, self.config.logit_soft_cap)

    def _attention(
        self, index: int, layer: LayerWeights, x: Tensor, batch: StepTensors, kv: LayerKV, cos: Tensor, sin: Tensor
    ) -> Tensor:
        config = self.config
        pools = kv.layer(index)
        q = self.kernels.rotate_and_store(
            layer.qkv(x),
            cos,
            sin,
            pools,
            batch.slots,
            num_heads=config.num_heads,
            q_norm=layer.q_norm,
            k_norm=layer.k_norm,
            eps=config.norm_eps,
        )
        plan = batch.plans[config.layers[index].window]
        scale, soft_cap = config.score_scale, config.attention_soft_cap
        return layer.out(self.kernels.attend(q, pools, plan, scale=scale, soft_cap=soft_cap))
