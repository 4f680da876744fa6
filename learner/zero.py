"""DeepSpeed, set up for the learner: the one module that configures it.

Gotchas: DeepSpeed reads its accelerator at import. On a CPU it compiles a C++ extension for minutes before the first
step, unless it is told that it can't; after a killed compilation it waits for ever for the lock.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
# Ray shows each learner rank only its own GPU.
os.environ.setdefault("LOCAL_RANK", "0")

import deepspeed
import deepspeed.ops

from learner.config import LearnerConfig
from learner.schedule import lr_factor

# torch renamed collectives that DeepSpeed calls at every step.
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
# A shared-memory all-reduce for inference, which training never calls.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


def train_engine(
    module: nn.Module,
    trained: list[nn.Parameter],
    heads: Iterable[nn.Parameter],
    config: LearnerConfig,
    total_steps: int,
) -> deepspeed.DeepSpeedEngine:
    """Wrap `module` in this process group; `trained` get gradients and optimizer state (AdamW).

    `step()` is the accumulation boundary: any number of backward passes may precede it.
    A pass uses `heads` several times, so ZeRO 3 keeps them whole.
    """
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        trained, lr=settings.lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
    )
    factor = partial(lr_factor, total_steps=total_steps, config=settings)
    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=trained,
        optimizer=optimizer,
        lr_scheduler=lambda wrapped: torch.optim.lr_scheduler.LambdaLR(wrapped, factor),
        config=_settings(trained[0].dtype, _elements(trained), config) | {"managed_gradient_accumulation": False},
    )
    if engine.optimizer is optimizer:
        _clip_before_step(engine, optimizer, trained, settings.grad_norm)
    if config.zero_stage == 3:
        _keep_whole(engine.optimizer, heads)
    return engine


def frozen_engine(module: nn.Module, heads: Iterable[nn.Parameter], config: LearnerConfig) -> nn.Module:
    """The frozen reference: under ZeRO 3 partitioned over the ranks, otherwise unchanged."""
    if config.zero_stage != 3:
        return module
    parameters = list(module.parameters())
    settings = _settings(parameters[0].dtype, _elements(parameters), config)
    engine, *_ = deepspeed.initialize(model=module, config=settings)
    _keep_whole(engine.optimizer, heads)
    return engine


def partitioned(dtype: torch.dtype, config: LearnerConfig) -> AbstractContextManager[Any]:
    """Inside the context, a new module keeps only a part of each parameter on each rank; a collective."""
    return deepspeed.zero.Init(config_dict_or_path=_settings(dtype, 1, config))


def fill(parameter: nn.Parameter, read: Callable[[], Tensor]) -> None:
    """Give every rank its part of the tensor that rank 0 reads; a collective."""
    with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if dist.get_rank() == 0:
            parameter.copy_(read())


def gathered(parameters: Sequence[Tensor], stage: int) -> AbstractContextManager[Any]:
    """Whole parameters inside the context, for reading; a collective under ZeRO 3, otherwise does nothing."""
    return deepspeed.zero.GatheredParameters(parameters, enabled=stage == 3)


def whole_shape(parameter: Any) -> torch.Size:
    """A parameter's whole shape, also if ZeRO 3 left only a part on this rank."""
    return torch.Size(parameter.ds_shape) if hasattr(parameter, "ds_shape") else parameter.shape


def _elements(parameters: Iterable[nn.Parameter]) -> int:
    return sum(math.prod(whole_shape(parameter)) for parameter in parameters)


def _settings(dtype: torch.dtype, elements: int, config: LearnerConfig) -> dict[str, Any]:
    """`elements` is the number of elements reduced, or gathered, in a step."""
    half = dtype == torch.bfloat16
    # bfloat16 weights are trained through float32 master weights, which DeepSpeed keeps from stage 1 on.
    stage = max(config.zero_stage, 1) if half else config.zero_stage
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # Without ZeRO DeepSpeed clips, but doesn't report the norm: see _clip_before_step.
        "gradient_clipping": config.optimizer.grad_norm if stage else 0.0,
        "steps_per_print": None,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            # The defaults reserve GiBs, however small the model.
            "reduce_bucket_size": min(elements, 500_000_000),
            "allgather_bucket_size": min(elements, 500_000_000),
            "stage3_param_persistence_threshold": config.zero_persistence,
        },
    }
    if half:
        settings |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return settings


def _clip_before_step(
    engine: deepspeed.DeepSpeedEngine, optimizer: torch.optim.Optimizer, trained: list[nn.Parameter], limit: float
) -> None:
    """Clip to the global norm `limit` (0: don't), and leave the norm where `get_global_grad_norm` finds it."""

    def clip(*_: Any) -> None:
        norm = nn.utils.clip_grad_norm_(trained, limit if limit else float("inf"))
        engine._global_grad_norm = norm.item()

    optimizer.register_step_pre_hook(clip)


def _keep_whole(zero3: Any, heads: Iterable[Any]) -> None:
    """Never partition `heads` again.

    The scorer multiplies by a head's last matrix once per chunk of logits, and again in the backward pass, without
    calling the module that would gather it. The number of chunks also differs between ranks, so gathers would not
    pair up.
    """
    persistent = zero3.persistent_parameters
    new = [head for head in heads if not head.ds_persist]
    for head in new:
        head.ds_persist = True
        persistent.append(head)
    if new:
        new[0].all_gather(new)
