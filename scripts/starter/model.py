"""The network: Qwen3 written out in plain PyTorch, with the weight names transformers uses.

Two things differ from transformers' module, both for speed on a CPU: the query/key/value rows that no
loss looks at are not carried through the last MLP and the head, and sequences are padded on the right
only, so plain causal attention needs no mask. A checkpoint of this module loads into
`Qwen3ForCausalLM` unchanged, which is how it is exported.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHORT = 448  # longest row for which plain products beat the fused attention kernel on a CPU


@dataclass(frozen=True)
class Geometry:
    """Sizes of the network; the names are those of a Qwen3 `config.json`."""

    vocab_size: int = 1024
    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 4096
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6

    def to_dict(self) -> dict:
        return asdict(self)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-split layout (`rotate_half` of transformers)."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as two plain products: for short rows a CPU does these faster than its fused kernel."""
    batch, heads, length, width = q.shape
    q, k, v = (x.reshape(batch * heads, length, width) for x in (q, k, v))
    future = torch.full((length, length), float("-inf"), dtype=q.dtype).triu(1)
    scores = torch.baddbmm(future.expand(batch * heads, length, length), q, k.transpose(1, 2), alpha=width**-0.5)
    return (scores.softmax(-1, dtype=q.dtype) @ v).view(batch, heads, length, width)


class Attention(nn.Module):
    def __init__(self, g: Geometry):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = g.num_attention_heads, g.num_key_value_heads, g.head_dim
        self.q_proj = nn.Linear(g.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(g.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(g.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, g.hidden_size, bias=False)
        self.q_norm = RMSNorm(g.head_dim, g.rms_norm_eps)
        self.k_norm = RMSNorm(g.head_dim, g.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: list | None, mask: Tensor | None) -> Tensor:
        batch, length, _ = x.shape
        q = rotate(self.q_norm(self.q_proj(x).view(batch, length, self.heads, self.head_dim)), cos, sin).transpose(1, 2)
        k = rotate(self.k_norm(self.k_proj(x).view(batch, length, self.kv_heads, self.head_dim)), cos, sin).transpose(
            1, 2
        )
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        if cache is not None:
            if cache:
                k, v = torch.cat((cache[0], k), dim=2), torch.cat((cache[1], v), dim=2)
            cache[:] = [k, v]
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        if mask is None and length <= SHORT:
            out = causal_attention(q, k, v)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    def __init__(self, g: Geometry):
        super().__init__()
        self.gate_proj = nn.Linear(g.hidden_size, g.intermediate_size, bias=False)
        self.up_proj = nn.Linear(g.hidden_size, g.intermediate_size, bias=False)
        self.down_proj = nn.Linear(g.intermediate_size, g.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, g: Geometry):
        super().__init__()
        self.input_layernorm = RMSNorm(g.hidden_size, g.rms_norm_eps)
        self.self_attn = Attention(g)
        self.post_attention_layernorm = RMSNorm(g.hidden_size, g.rms_norm_eps)
        self.mlp = MLP(g)


class Body(nn.Module):
    def __init__(self, g: Geometry):
        super().__init__()
        self.embed_tokens = nn.Embedding(g.vocab_size, g.hidden_size)
        self.layers = nn.ModuleList(Layer(g) for _ in range(g.num_hidden_layers))
        self.norm = RMSNorm(g.hidden_size, g.rms_norm_eps)


class StarterModel(nn.Module):
    """Decoder with tied input and output embeddings."""

    def __init__(self, g: Geometry):
        super().__init__()
        self.geometry = g
        self.model = Body(g)
        position = torch.arange(g.max_position_embeddings, dtype=torch.float32)
        frequency = g.rope_theta ** (-torch.arange(0, g.head_dim, 2, dtype=torch.float32) / g.head_dim)
        angle = torch.outer(position, frequency)
        self.register_buffer("cos", angle.cos()[:, None, :], persistent=False)
        self.register_buffer("sin", angle.sin()[:, None, :], persistent=False)
        self.apply(self._init)
        for layer in self.model.layers:  # residual branches start small, so depth does not blow up the stream
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                nn.init.normal_(linear.weight, std=0.02 / (2 * g.num_hidden_layers) ** 0.5)

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids: Tensor, keep: Tensor) -> Tensor:
        """Logits of the positions in `keep` (indices into the flattened batch), for training."""
        length = ids.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers[:-1]:
            x = x + layer.self_attn(layer.input_layernorm(x), cos, sin, None, None)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        last = self.model.layers[-1]
        x = x + last.self_attn(last.input_layernorm(x), cos, sin, None, None)
        x = x.flatten(0, 1)[keep]
        x = x + last.mlp(last.post_attention_layernorm(x))
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], stop: set[int], limit: int) -> list[list[int]]:
        """Greedy continuation of every prompt, batched with a KV cache and left padding."""
        width = max(map(len, prompts))
        pad = torch.tensor([width - len(p) for p in prompts])
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        caches: list[list] = [[] for _ in self.model.layers]
        done = torch.zeros(len(prompts), dtype=torch.bool)
        out: list[list[int]] = [[] for _ in prompts]
        column = torch.arange(width + limit)
        for step in range(limit):
            total = width + step
            rows = torch.arange(total - ids.shape[1], total)
            position = (rows[None] - pad[:, None]).clamp(min=0)
            visible = (column[None, None, :total] <= rows[None, :, None]) & (
                column[None, None, :total] >= pad[:, None, None]
            )
            visible = visible | (rows[None, :, None] < pad[:, None, None])  # padding rows must not be all-masked
            x = self.model.embed_tokens(ids)
            for layer, cache in zip(self.model.layers, caches):
                x = x + layer.self_attn(
                    layer.input_layernorm(x), self.cos[position], self.sin[position], cache, visible[:, None]
                )
                x = x + layer.mlp(layer.post_attention_layernorm(x))
            best = F.linear(self.model.norm(x[:, -1]), self.model.embed_tokens.weight).argmax(-1)
            for i, token in enumerate(best.tolist()):
                if not done[i]:
                    if token in stop:
                        done[i] = True
                    else:
                        out[i].append(token)
            if done.all():
                break
            ids = best[:, None]
        return out
