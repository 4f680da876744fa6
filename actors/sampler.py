"""The image sampler: draws the token-level CoT under classifier-free guidance, for many prompts together.

A picture takes a place in the batch (one cache row for the conditional prompt, one for the unconditional), draws one
token per step, and then frees the place. New pictures may join at any step. A sample depends only on its own prompt
and seed: every row has exact positions, the draw inverts the cumulative distribution at uniforms from the member's
own generator, and shapes are rounded so that a row's arithmetic is the same in any batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.cached_llama import CachedLlama, cache_dtype
from actors.cuda_graph import GraphedStep
from actors.errors import PromptError
from policy.guidance import guided_logits, log_distribution, token_logprobs
from policy.janus import Policy
from policy.tokens import unconditional

_BLOCK = 16
"""Most prompts in one prefill."""
_SHALLOW = 8
"""Models with at most this many layers are compiled whole, at seconds per layer; for others one layer is compiled."""


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """`prompt_ids` [P] int64, ending in begin-of-image, and the member's seed."""

    prompt_ids: Tensor
    seed: int


@dataclass(frozen=True, slots=True)
class SampledImage:
    """`token_ids` [N] int64; float32 log-probs [N] of the conditional and the guided distribution, after temperature.

    Tensors lie on the CPU.
    """

    token_ids: Tensor
    conditional_logprobs: Tensor
    guided_logprobs: Tensor


@dataclass(slots=True)
class _Place:
    """A picture in the making."""

    key: int
    prompt_tokens: int
    drawn: int = 0


class ImageSampler:
    """Draws pictures' tokens with the live weights of a policy.

    With `temperature` 0 it takes the most likely token of the guided distribution; log-probs are then those at
    temperature 1. A guidance scale of 1 runs no unconditional rows; both log-probs are then the same. `compiled` has
    torch compile the decode step, which needs a C++ compiler on a CPU; `graphed` captures it as a CUDA graph.
    """

    def __init__(
        self,
        policy: Policy,
        batch_size: int,
        guidance_scale: float,
        temperature: float,
        compiled: bool = False,
        graphed: bool = False,
    ) -> None:
        self._model = policy.model
        self._layout = policy.layout
        self._scale = guidance_scale
        self._greedy = temperature == 0
        self._temperature = temperature or 1.0
        self._pair = 1 if guidance_scale == 1 else 2
        self._places: list[_Place | None] = [None] * batch_size
        device = policy.model.device
        # CPU kernels give a row the same bits for any number of rows from 4 on; a GPU chooses kernels by shape.
        self._row_step, self._span_step = (4, 16) if device.type == "cpu" else (batch_size, 128)
        shallow = len(policy.model.model.language_model.layers) <= _SHALLOW
        self._make_state(_round_up(batch_size, self._row_step), device, compiled, compiled and not shallow)
        self._draw_step: Callable[[int], None] = self._draw
        self._advance_step: Callable[[int, int], None] = self._advance
        if compiled:
            if device.type == "cpu":  # torch 2.11 cannot compile the draw's cumulative sum for a GPU
                self._draw_step = torch.compile(self._draw)
            self._advance_step = torch.compile(self._advance) if shallow else self._advance
        self._graphs: list[GraphedStep] = []
        if graphed:
            pool = torch.cuda.graph_pool_handle()
            self._graphs = [GraphedStep(step, pool) for step in (self._draw_step, self._advance_step)]
            self._draw_step, self._advance_step = self._graphs

    def _make_state(self, places: int, device: torch.device, compiled: bool, compile_layers: bool) -> None:
        """Create the sampler's permanent buffers: one row per place, and two cache rows under guidance."""
        llama, tokens = self._model.model.language_model, self._layout.image_tokens
        rows = places * self._pair
        with torch.inference_mode():
            dtype = cache_dtype(self._model.dtype, device.type == "cpu", compiled)
            self._cache = CachedLlama(llama, rows, _round_up(tokens + 32, self._span_step), dtype, compile_layers)
            self._hidden = torch.zeros(rows, llama.config.hidden_size, dtype=self._model.dtype, device=device)
            self._positions = torch.zeros(places, self._pair, dtype=torch.long, device=device)
            self._columns = torch.zeros(places, dtype=torch.long, device=device)
            self._live = torch.zeros(places, dtype=torch.long, device=device)
            self._index = torch.arange(places, device=device)
            self._uniforms = torch.zeros(places, tokens, dtype=torch.float64, device=device)
            self._tokens = torch.zeros(places, tokens, dtype=torch.long, device=device)
            self._conditional = torch.zeros(places, tokens, device=device)
            self._guided = torch.zeros(places, tokens, device=device)

    @property
    def free(self) -> int:
        """Pictures that can join now."""
        return self._places.count(None)

    def check(self, request: SampleRequest) -> None:
        """
        Raises:
            PromptError: the prompt does not end in begin-of-image, or leaves no room for the picture.
        """
        ids, layout = request.prompt_ids, self._layout
        if len(ids) == 0 or int(ids[-1]) != layout.boi:
            raise PromptError("an image prompt has to end in the begin-of-image token")
        limit = self._model.config.text_config.max_position_embeddings
        if len(ids) + layout.image_tokens > limit:
            raise PromptError(
                f"an image prompt of {len(ids)} tokens and {layout.image_tokens} image tokens do not fit in the "
                f"model's {limit} positions"
            )

    def sample(self, requests: Sequence[SampleRequest]) -> list[SampledImage]:
        """Draw a picture for each request, as many together as the batch holds."""
        for request in requests:
            self.check(request)
        waiting = list(enumerate(requests))
        done: dict[int, SampledImage] = {}
        while len(done) < len(requests):
            joining, waiting = waiting[: self.free], waiting[self.free :]
            if joining:
                self.admit(joining)
            done.update(self.step())
        return [done[key] for key in range(len(requests))]

    @torch.inference_mode()
    def admit(self, requests: Sequence[tuple[int, SampleRequest]]) -> None:
        """Give each of at most `free` checked requests a place, under the caller's key."""
        free = [number for number, place in enumerate(self._places) if place is None]
        places = free[: len(requests)]
        moved = self._cache.refresh()
        index = torch.tensor(places)
        lengths = torch.tensor([len(request.prompt_ids) for _, request in requests])
        needed = int(lengths.max()) + self._layout.image_tokens
        if needed > self._cache.capacity:
            self._cache.grow(_round_up(needed, self._span_step))
            moved = True
        if moved and self._graphs:
            pool = torch.cuda.graph_pool_handle()
            for graph in self._graphs:
                graph.forget(pool)
        # prompt -> cache rows; equal prompts, such as unconditional ones of one length, are prefilled once
        rows: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, (key, request) in zip(places, requests, strict=True):
            self._places[place] = _Place(key, len(request.prompt_ids))
            rows[tuple(request.prompt_ids.tolist())].append(place * self._pair)
            if self._pair == 2:
                rows[tuple(unconditional(request.prompt_ids, self._layout).tolist())].append(place * 2 + 1)
        self._prefill(rows)
        uniforms = torch.stack([self._noise(request.seed) for _, request in requests])
        index = index.to(self._live.device)
        self._uniforms[index] = uniforms.to(index.device)
        self._positions[index] = lengths.to(index.device).unsqueeze(1)
        self._columns[index] = 0
        self._live[index] = 1

    @torch.inference_mode()
    def step(self) -> dict[int, SampledImage]:
        """Draw one token for every picture in the batch; returns the completed pictures, by key."""
        live = [(number, place) for number, place in enumerate(self._places) if place is not None]
        if not live:
            return {}
        rows = _round_up(live[-1][0] + 1, self._row_step)
        self._draw_step(rows)
        for _, place in live:
            place.drawn += 1
        span = max(place.prompt_tokens + place.drawn for _, place in live)
        finished = {number: place.key for number, place in live if place.drawn == self._layout.image_tokens}
        if len(finished) < len(live):
            self._advance_step(rows, min(_round_up(span, self._span_step), self._cache.capacity))
        return self._release(finished)

    @torch.inference_mode()
    def cancel(self, keys: set[int]) -> None:
        """Drop the pictures of these keys from the batch; unknown keys are ignored."""
        self._release({number: place.key for number, place in enumerate(self._places) if place and place.key in keys})

    def _noise(self, seed: int) -> Tensor:
        """Uniforms [N] in [0, 1) of one member; drawn on the CPU, so that they are the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(self._layout.image_tokens, dtype=torch.float64, generator=generator)

    def _prefill(self, rows: dict[tuple[int, ...], list[int]]) -> None:
        """Run every prompt once, together with prompts of similar length, and write it to its rows."""
        by_length: defaultdict[int, list[tuple[int, ...]]] = defaultdict(list)
        for prompt in rows:
            by_length[_round_up(len(prompt), 8)].append(prompt)
        for length, prompts in sorted(by_length.items()):
            for start in range(0, len(prompts), _BLOCK):
                block = prompts[start : start + _BLOCK]
                padded = [[*prompt, *[self._layout.pad] * (length - len(prompt))] for prompt in block]
                source = [number for number, prompt in enumerate(block) for _ in rows[prompt]]
                ids, last, source_index, target = (
                    torch.tensor(part, device=self._hidden.device)
                    for part in (padded, [len(p) - 1 for p in block], source, [r for p in block for r in rows[p]])
                )
                self._hidden[target] = self._cache.prefill(ids, last, source_index, target)[source_index]

    def _draw(self, rows: int) -> None:
        """Turn the hidden states of the first `rows` places into one token each, and record it."""
        logits = self._model.model.generation_head(self._hidden[: rows * self._pair]).view(rows, self._pair, -1)
        conditional = log_distribution(logits[:, 0], self._temperature)
        guided = conditional
        if self._pair == 2:
            guided = log_distribution(guided_logits(logits[:, 0], logits[:, 1], self._scale), self._temperature)
        at = self._index[:rows], self._columns[:rows]
        if self._greedy:
            tokens = guided.argmax(-1)
        else:
            # In float64 the cumulative rounding stays far below the smallest relevant probability.
            cumulative = guided.exp().cumsum(-1, dtype=torch.float64)
            target = self._uniforms[at].unsqueeze(1) * cumulative[:, -1:]
            tokens = torch.searchsorted(cumulative, target, right=True).squeeze(1)
            tokens = tokens.clamp(max=self._layout.image_vocab - 1)
        self._tokens[at] = tokens
        self._conditional[at] = token_logprobs(conditional, tokens)
        self._guided[at] = token_logprobs(guided, tokens)

    def _advance(self, rows: int, span: int) -> None:
        """Feed the tokens just drawn to the first `rows` places."""
        tokens = self._tokens[self._index[:rows], self._columns[:rows]]
        embeddings = self._model.prepare_embeddings_for_image_generation(tokens)
        embeddings = embeddings.repeat_interleave(self._pair, dim=0)
        positions = self._positions[:rows]
        self._hidden[: rows * self._pair] = self._cache.decode(embeddings, positions.flatten(), span)
        positions += self._live[:rows].unsqueeze(1)
        self._columns[:rows] += self._live[:rows]

    def _release(self, places: dict[int, int]) -> dict[int, SampledImage]:
        """Free places (number -> key) and return their pictures."""
        if not places:
            return {}
        index = torch.tensor(list(places), device=self._live.device)
        held = [part[index].cpu() for part in (self._tokens, self._conditional, self._guided)]
        for state in (self._live, self._columns, self._positions):
            state[index] = 0
        for number in places:
            self._places[number] = None
        return {key: SampledImage(*(part[i].clone() for part in held)) for i, key in enumerate(places.values())}


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
