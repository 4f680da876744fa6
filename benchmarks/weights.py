"""Moves trained weights from one process into a model of another, against the way of scripts: files in shared memory.

This process acts as the learner. The image actor's model takes weights in place. A vLLM engine takes them through the
weight channel; a script would start a new engine on saved files. Files are in /dev/shm, so no disk is measured. A
check confirms for every way that the other process has this one's weights. The broadcast is measured between CPUs,
over gloo: NCCL needs a GPU for each process.
"""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import ray
import safetensors.torch
import torch
import transformers

from benchmarks.report import Report, Value, ratios
from benchmarks.scales import make_model
from benchmarks.timing import alternate, rate
from benchmarks.weights_receivers import FreshEngine, ImageReceiver, SemanticReceiver, digest
from policy.janus import Policy, trained_parameters
from transport.weights.broadcast import BroadcastHost, BroadcastMember
from transport.weights.channel import WeightManifest
from transport.weights.object_store import ObjectStorePublisher

BUCKET_MB = 256
_DEADLINE_S = 300.0
_WARM_UP = 3
"""Rounds until the object store has memory that was in use before, as in every step of a run but the first few."""


@dataclass
class Way:
    """One way for weights to travel: `publish` here, then `apply` there; in a broadcast both at once, by `apply`."""

    publish: Callable[[], object] | None
    apply: Callable[[], object]

    def go(self) -> None:
        """All of it."""
        if self.publish:
            self.publish()
        self.apply()


@dataclass
class Learner:
    """A policy with random weights, and what it publishes: the tensors that train, or the whole policy to files."""

    policy: Policy
    folder: Path
    publisher: ObjectStorePublisher = field(default_factory=lambda: ObjectStorePublisher(BUCKET_MB))
    _versions: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All that trains."""
        trained = trained_parameters(self.policy.model, "generation")
        return {name: value.detach() for name, value in trained.items()}

    @property
    def bytes(self) -> int:
        """That have to travel."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def publish(self) -> None:
        """As `LearnerRank.publish`."""
        self.publisher.publish(next(self._versions), iter(self.tensors.items()))

    def broadcast_to(self, actor: Any) -> Callable[[], None]:
        """What broadcasts to an actor, in a group of two, as `LearnerRank.broadcast`."""
        host = BroadcastHost("127.0.0.1")
        seats = host.seats(["learner", "receiver"], "gloo")
        member = BroadcastMember(seats[0])

        def broadcast() -> None:
            tensors, version = self.tensors, next(self._versions)
            layout = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
            manifest = WeightManifest.of(version, layout, BUCKET_MB << 20)
            received = actor.receive.remote(manifest, seats[1])
            member.meet(version, _DEADLINE_S)
            member.send(manifest, tensors.items(), _DEADLINE_S)
            ray.get(received, timeout=_DEADLINE_S)
            host.forget(version)

        return broadcast

    def save(self) -> None:
        """With pickle."""
        torch.save(self.tensors, self.folder / "weights.pt")

    def save_safetensors(self) -> None:
        """With safetensors."""
        safetensors.torch.save_file(self.tensors, self.folder / "weights.safetensors")

    def save_pretrained(self) -> None:
        """The whole policy, as transformers does."""
        self.policy.model.save_pretrained(self.folder / "janus")

    def save_llama(self) -> None:
        """The language model as vLLM reads it."""
        tensors = {
            name.replace("model.language_model.", "model.", 1): tensor.detach()
            for name, tensor in trained_parameters(self.policy.model, "language_model").items()
        }
        folder = self.folder / "llama"
        folder.mkdir(exist_ok=True)
        config = self.policy.model.config.text_config.to_dict()
        fields = config | {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
        transformers.LlamaConfig(**fields).save_pretrained(folder)
        safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def image_ways(learner: Learner, actor: Any) -> dict[str, Way]:
    """Ways into the image actor, by name; the first is what a script does."""
    folder = learner.folder
    ways = {
        "torch.save, torch.load": Way(learner.save, lambda: _call(actor.load_torch, folder / "weights.pt")),
        "safetensors": Way(
            learner.save_safetensors, lambda: _call(actor.load_safetensors, folder / "weights.safetensors")
        ),
        "save_pretrained, from_pretrained": Way(
            learner.save_pretrained, lambda: _call(actor.load_pretrained, folder / "janus")
        ),
        "object_store": Way(learner.publish, lambda: _call(actor.apply, learner.publisher.newest())),
    }
    if learner.policy.model.device.type == "cpu":
        ways["broadcast"] = Way(None, learner.broadcast_to(actor))
    return ways


def check(learner: Learner, actor: Any, name: str, way: Way) -> None:
    """Go the way of that name once, from an actor whose weights are 0.

    Raises:
        RuntimeError: the actor has other weights then than the learner.
    """
    _call(actor.clear)
    way.go()
    if _call(actor.digest) != digest(learner.policy.model):
        raise RuntimeError(f"{name}: the actor has other weights than the learner")


def run(report: Report) -> None:
    """Measure the ways into an image actor, and at tiny those into a vLLM engine as well.

    Raises:
        SystemExit: no room in shared memory.
        RuntimeError: a way gave the other process other weights.
    """
    dtype = torch.bfloat16 if report.device == "cuda" else torch.float32
    policy = make_model(report.scale, report.device, dtype)
    with session(policy) as learner:
        _measure_image(report, learner)
        if report.scale == "tiny" and report.device == "cpu":
            _measure_semantic(report, learner)


@contextmanager
def session(policy: Policy) -> Iterator[Learner]:
    """A learner with that policy, a Ray cluster of this machine's own, and a folder in shared memory."""
    size = sum(parameter.nbytes for parameter in policy.model.parameters())
    free = shutil.disk_usage("/dev/shm").free
    store = 3 * size + (512 << 20)  # two versions are held while the next one comes
    if free < store + 4 * size:
        sys.exit(f"weights: needs {(store + 4 * size) >> 20} MiB in /dev/shm, where {free >> 20} are free")
    temporary = Path(tempfile.mkdtemp(prefix="bicot-", dir="/tmp"))  # short: sockets lie in it
    folder = Path(tempfile.mkdtemp(prefix="bicot-weights-", dir="/dev/shm"))
    try:
        gpus = 1 if policy.model.device.type == "cuda" else 0
        ray.init(
            "local", num_cpus=4, num_gpus=gpus, include_dashboard=False, object_store_memory=store,
            logging_level="ERROR", log_to_driver=False, _temp_dir=str(temporary),
        )  # fmt: skip
        yield Learner(policy, folder)
    finally:
        ray.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def _measure_image(report: Report, learner: Learner) -> None:
    device, dtype = report.device, learner.policy.model.dtype
    gpus = 0.5 if device == "cuda" else 0  # of one card, which the learner has without Ray's knowledge
    actor = ray.remote(num_cpus=1, num_gpus=gpus)(ImageReceiver).remote(report.scale, device, dtype)
    ways = image_ways(learner, actor)
    for name, way in ways.items():
        check(learner, actor, name, way)
    seconds = _alternate(ways, report, _WARM_UP)
    ray.kill(actor)
    limit = 2 * learner.bytes / copy_rate(learner.bytes, device)
    rows = [_row(name, learner.bytes, *seconds[name], limit) for name in ways]
    report.table(
        f"Weights into an image actor at {report.scale}, {learner.bytes / 2**20:,.0f} MiB of "
        f"{str(dtype).removeprefix('torch.')}",
        ratios(rows, "GB/s", [next(iter(ways))]),
        "Limit: two copies of the bytes, one out of the learner's memory and one into the actor's, at the measured "
        "rate. save_pretrained writes what does not train as well, and from_pretrained maps files, which the "
        "first forward pass reads.",
    )


def _measure_semantic(report: Report, learner: Learner) -> None:
    actor = ray.remote(num_cpus=1)(SemanticReceiver).remote(learner.policy)
    drawn: dict[str, list[int]] = {}
    anew: list[float] = []

    def start_anew() -> None:
        engine = ray.remote(num_cpus=1)(FreshEngine).remote()
        try:
            anew.append(_call(engine.start, learner.folder / "llama"))
            drawn["saved files, vLLM anew"] = _call(engine.draw)
        finally:
            ray.kill(engine)

    ways = {
        "saved files, vLLM anew": Way(learner.save_llama, start_anew),
        "object_store": Way(learner.publish, lambda: _call(actor.apply, learner.publisher.newest())),
        "broadcast": Way(None, learner.broadcast_to(actor)),
    }
    for name in ("object_store", "broadcast"):
        _call(actor.clear)
        ways[name].go()
        drawn[name] = _call(actor.draw)
    seconds = _alternate(ways, report, warm_up=1)
    ray.kill(actor)
    if len(set(map(tuple, drawn.values()))) > 1:
        raise RuntimeError(f"engines with the same weights draw other tokens: {drawn}")
    seconds["saved files, vLLM anew"] = seconds["saved files, vLLM anew"][0], median(anew[1:])
    size = sum(p.nbytes for p in trained_parameters(learner.policy.model, "language_model").values())
    limit = 2 * size / copy_rate(size, "cpu")
    rows = [_row(name, size, *seconds[name], limit) for name in ways]
    report.table(
        f"Weights into a vLLM engine at {report.scale}, {size / 2**20:,.1f} MiB",
        ratios(rows, "GB/s", ["saved files, vLLM anew"]),
        "Limit as above. An engine that is started anew is timed without its process's start and imports.",
    )


def copy_rate(nbytes: int, device: str) -> float:
    """Bytes a second that are copied within memory, measured with `nbytes` of them, or 1 GiB."""
    source = torch.ones(min(nbytes, 1 << 30), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return len(source) * rate(lambda: target.copy_(source), device)


def _alternate(ways: Mapping[str, Way], report: Report, warm_up: int) -> dict[str, tuple[float | None, float]]:
    """Median seconds to publish, where that comes first, and to apply."""
    cases: dict[str, Callable[[], object]] = {}
    for name, way in ways.items():
        if way.publish:
            cases[f"publish {name}"] = way.publish
        cases[f"apply {name}"] = way.apply
    seconds = alternate(cases, report.repeats, report.device, warm_up)
    return {name: (seconds.get(f"publish {name}"), seconds[f"apply {name}"]) for name in ways}


def _row(case: str, nbytes: int, publish: float | None, apply: float, limit: float) -> dict[str, Value]:
    total = (publish or 0.0) + apply
    return {
        "case": case,
        "publish s": publish,
        "apply s": apply,
        "GB/s": nbytes / total / 1e9,
        "limit s": limit,
        "share of the limit": limit / total,
    }


def _call(method: Any, *arguments: object) -> Any:
    """What an actor's method gives."""
    return ray.get(method.remote(*arguments), timeout=_DEADLINE_S)
