"""One learner rank, hosted by a Ray actor: it reads groups from the buffer, takes steps, and publishes weights."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.distributed import DistError

from learner import checkpoint
from learner.config import LearnerConfig
from learner.engine import LearnerEngine
from learner.loading import load_engine
from learner.process_group import join
from learner.replay import Replayed, replay
from policy.config import PolicyConfig
from transport.buffer import TrajectoryBuffer
from transport.config import BufferConfig, WeightsConfig
from transport.errors import WeightTransferError
from transport.rendezvous import Endpoint, Rendezvous
from transport.trajectory import TrajectoryGroup
from transport.weights.broadcast import BroadcastMember, Seat, at_seat
from transport.weights.channel import Published, WeightManifest
from transport.weights.object_store import ObjectStorePublisher

log = logging.getLogger(__name__)


class LearnerError(RuntimeError):
    """The learner cannot do what it was asked; the message says what is missing."""


class LearnerRank:
    """One data-parallel rank.

        rank 0: address() -> endpoint               all: setup(endpoint)
        rank 0: claim(groups) -> entry ids          all: train(entry ids)         rank 0: acknowledge(entry ids)
        all: publish(version); or rank 0: announce(version) -> manifest, all: broadcast(manifest, seat, deadline)
        all: save(folder), load(folder), export(folder)

    Calls marked "all" are collectives: make them on every rank at once, with the same arguments. If a rank is
    missing, they fail on all ranks within `learner.deadline_s`.
    """

    def __init__(
        self,
        policy: PolicyConfig,
        learner: LearnerConfig,
        buffer: BufferConfig | None,
        weights: WeightsConfig,
        reward_weights: dict[str, float],
        run: str,
        total_steps: int,
        rank: int,
        ranks: int,
    ) -> None:
        """`buffer.url` has to be given, and `run` names the buffer in it; without a `buffer` kept groups train alone.

        The learning rate falls, where it does, to 0 at `total_steps`.
        """
        torch.set_num_threads(learner.threads)
        self._settings = learner
        self._rank, self._ranks = rank, ranks
        self._policy = policy
        self._reward_weights = reward_weights
        self._total_steps = total_steps
        self._given: TrajectoryBuffer | None = None
        if buffer:
            if buffer.url is None:
                raise LearnerError("buffer.url: the learner needs the address of the run's Redis")
            self._given = TrajectoryBuffer(buffer.url, run, buffer.capacity, reconnect_s=buffer.reconnect_s)
        self._publisher = ObjectStorePublisher(weights.bucket_mb)
        self._bucket_bytes = weights.bucket_mb << 20
        self._member: BroadcastMember | None = None
        self._version = 0
        self._rendezvous: Rendezvous | None = None
        self._joined: LearnerEngine | None = None
        self._claimed: dict[str, TrajectoryGroup] = {}

    def address(self, host: str = "127.0.0.1") -> Endpoint:
        """Rank 0: the other ranks' address; opens a socket at `host`, an address of its machine, if any exist.

        If the ranks are on several machines, all of them must reach `host`.
        """
        if self._ranks == 1:
            return Endpoint(host, 0)
        self._rendezvous = Rendezvous(host)
        return self._rendezvous.endpoint

    def setup(self, endpoint: Endpoint) -> None:
        """Meet the other ranks, load the policy and build the engine; a collective.

        Raises:
            RendezvousError: a rank is missing when the deadline has passed.
            CheckpointError: the policy's checkpoint cannot be used.
        """
        join(self._rank, self._ranks, endpoint, self._rendezvous, self._settings.deadline_s)
        with self._together("loading the policy"):
            self._joined = load_engine(self._policy, self._settings, self._total_steps)

    def claim(self, groups: int, deadline_s: float) -> list[str]:
        """Rank 0: entry ids of the next `groups` groups of the buffer, claimed until acknowledged.

        Raises:
            BufferTimeout: there are fewer within `deadline_s` seconds; the next claim starts with those.
        """
        claims = self._buffer.claim(groups, deadline_s)
        self._claimed = {claim.entry_id: claim.group for claim in claims}
        return list(self._claimed)

    def train(self, entry_ids: Sequence[str]) -> dict[str, float]:
        """One step on these groups of the buffer; a collective.

        Returns:
            Metrics of the whole batch; `seconds/...` are this rank's.

        Raises:
            BufferCorrupt: an entry is not in the buffer any more.
        """
        engine, started = self._engine, time.perf_counter()
        missing = [entry_id for entry_id in entry_ids if entry_id not in self._claimed]
        found = dict(zip(missing, self._buffer.read(missing), strict=True)) if missing else {}
        groups = [self._claimed.get(entry_id) or found[entry_id] for entry_id in entry_ids]
        self._claimed = {}
        read = time.perf_counter() - started
        with self._together("a training step"):
            metrics = engine.step(groups, self._reward_weights)
        metrics |= {"seconds/read": read, "seconds/train": time.perf_counter() - started}
        self._version += 1
        log.info(
            "step %d: loss %.4g, kl %.4g, grad norm %.3g, %d tokens of %d members in %.2f s",
            engine.steps, metrics["loss"], metrics["kl"], metrics["grad_norm"], metrics["tokens"],
            metrics["members"] - metrics["members_masked"], metrics["seconds/train"],
        )  # fmt: skip
        return metrics

    def acknowledge(self, entry_ids: Sequence[str]) -> int:
        """Rank 0: remove these trained groups from the buffer; returns how many were still there."""
        return self._buffer.acknowledge(entry_ids)

    def publish(self, version: int) -> Published | None:
        """Publish the trained tensors as `version`; a collective. Rank 0 returns the publication for the actors."""
        engine, self._version = self._engine, version
        with self._together("publishing weights"):
            if engine.rank == 0:
                return self._publisher.publish(version, engine.trained_tensors())
            self._help_gathering()
        return None

    def publish_present(self) -> Published | None:
        """Publish the present weights, for an actor that joins late; a collective, as `publish`.

        Their version is that of the last `publish` or `broadcast`, plus one for each step since.
        """
        newest = self._publisher.newest()
        if newest is not None and newest.version == self._version:
            return newest
        return self.publish(self._version)

    def announce(self, version: int) -> WeightManifest:
        """Rank 0: the manifest of a broadcast of `version`."""
        return WeightManifest.of(version, self._engine.trained_layout(), self._bucket_bytes)

    def broadcast(self, manifest: WeightManifest, seat: Seat, deadline_s: float) -> None:
        """Broadcast the trained tensors as `announce`d; a collective. Rank 0 has `seat` and sends.

        The wait for the receivers may take `deadline_s` seconds, and so may the transfer.

        Raises:
            WeightTransferError: rank 0: a receiver is missing, or it broke off.
        """
        engine, self._version = self._engine, manifest.version
        with self._together("broadcasting weights"):
            if engine.rank != 0:
                return self._help_gathering()
            self._member = at_seat(self._member, seat)
            tensors = engine.trained_tensors()
            try:
                self._member.meet(manifest.version, deadline_s)
                self._member.send(manifest, tensors, deadline_s)
            finally:
                if self._settings.zero_stage == 3:
                    for _ in tensors:  # the other ranks gather to the end, even after an error
                        pass
        return None

    def _help_gathering(self) -> None:
        """Take part while rank 0 iterates over the trained tensors, which is a collective under ZeRO 3."""
        if self._settings.zero_stage == 3:
            for _ in self._engine.trained_tensors():
                pass

    def save(self, folder: str) -> str:
        """Write a checkpoint into the run's `folder` of checkpoints, and return its path; a collective."""
        with self._together("saving a checkpoint"):
            path = checkpoint.save(self._engine, folder, self._settings.keep_checkpoints)
        log.info("checkpoint %s", path)
        return str(path)

    def load(self, folder: str) -> int:
        """Go back to the newest complete checkpoint of `folder`; a collective.

        Returns its step. Without a checkpoint it returns 0 and changes nothing.

        Raises:
            CheckpointError: it is damaged, or of another policy, number of ranks or ZeRO stage.
        """
        path = checkpoint.newest(folder)
        if path is None:
            return 0
        with self._together("loading a checkpoint"):
            checkpoint.load(self._engine, path)
        log.info("back at step %d, from %s", self._engine.steps, path)
        return self._engine.steps

    def replay(self, checkpoints: str, kept: str, step: int, groups: int) -> Replayed:
        """Train a step again on its kept groups (see `learner.replay`); a collective, of ranks just set up."""
        with self._together("a training step"):
            return replay(self._engine, self._reward_weights, checkpoints, kept, step, groups)

    def export(self, folder: str) -> None:
        """Write the policy as a checkpoint in the Hugging Face layout; a collective."""
        with self._together("exporting the policy"):
            self._engine.export(folder)

    def close(self) -> None:
        """Leave the buffer and the process groups."""
        if self._given:
            self._given.close()
        if self._member:
            self._member.leave()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    @contextmanager
    def _together(self, work: str) -> Iterator[None]:
        """Turn a broken collective, which torch reports as a socket error, into a clear sentence."""
        started = time.monotonic()
        try:
            yield
        except WeightTransferError:
            raise
        except RuntimeError as error:
            if not isinstance(error, DistError) and "gloo" not in str(error):
                raise
            raise LearnerError(
                f"learner rank {self._rank} of {self._ranks}: {work} broke off after "
                f"{time.monotonic() - started:.1f} s; another rank is gone, or later than learner.deadline_s "
                f"({self._settings.deadline_s:g} s): {error}"
            ) from error

    @property
    def _buffer(self) -> TrajectoryBuffer:
        if self._given is None:
            raise LearnerError("this learner rank has no buffer: it trains kept groups alone")
        return self._given

    @property
    def _engine(self) -> LearnerEngine:
        if self._joined is None:
            raise LearnerError("this learner rank was not set up")
        return self._joined
