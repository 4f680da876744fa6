"""Reward services: one Ray Serve deployment a reward, and the client that asks it.

    services = RewardServices.start(config, run="demo")
    scores = await score_group(services.clients, pictures, prompts)
    services.close()

Serve runs once a Ray cluster, whoever started it. Applications are named after the run, so that runs share a
cluster, and a resumed run takes its services over. There is no HTTP proxy unless the config asks for one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from policy.prompts import PromptRecord
from rewards.base import RewardFailure
from rewards.config import RewardConfig, RewardsConfig
from rewards.replica import Failed, ReplicaStats, RewardReplica

logger = logging.getLogger(__name__)
T = TypeVar("T")

CALL_DEADLINE_S = 30.0
BACKOFF_S = 0.1
POLL_S = 0.1


class RewardServiceError(RuntimeError):
    """Services that did not start or stop; names the reward, its state and its replica's own words."""


class ServiceClient:
    """Asks one reward service. `score` never waits longer than the config's `deadline_s`."""

    def __init__(self, config: RewardConfig, handle: DeploymentHandle) -> None:
        self.config = config
        self._handle = handle
        self._score = handle.options(method_name="score")

    @property
    def name(self) -> str:
        """The reward's name in the config."""
        return self.config.name

    @property
    def weight(self) -> float:
        """Its weight; 0 means that it is reported only."""
        return self.config.weight

    async def score(self, pictures: Sequence[np.ndarray], prompts: Sequence[PromptRecord]) -> list[float | None]:
        """One score (None: does not apply) for each picture, uint8 [H, W, 3].

        Raises:
            RewardFailure: no scores within the deadline, or none after `retries` further attempts.
        """
        start = time.monotonic()
        why = ""
        try:
            async with asyncio.timeout(self.config.deadline_s):
                for attempt in range(self.config.retries + 1):
                    if attempt:
                        logger.info("reward %r: attempt %d after: %s", self.name, attempt + 1, why)
                        await asyncio.sleep(BACKOFF_S * 2 ** (attempt - 1))
                    answer = await self._attempt(list(pictures), list(prompts))
                    if not isinstance(answer, Failed):
                        return answer
                    why = answer.why
                    if answer.final:
                        break
        except TimeoutError:
            last = f" (last attempt: {why})" if why else ""
            why = f"no scores within its deadline of {self.config.deadline_s:g} s{last}"
        raise RewardFailure(self.name, why, time.monotonic() - start)

    async def _attempt(self, pictures: list[np.ndarray], prompts: list[PromptRecord]) -> list[float | None] | Failed:
        response: DeploymentResponse[Any] = self._score.remote(pictures, prompts)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except Exception as error:  # a replica that died, or Serve itself; the caller decides what it costs
            return Failed(f"{type(error).__name__}: {_first_line(error)}")

    async def stats(self) -> list[ReplicaStats]:
        """Counters of every live replica, within `CALL_DEADLINE_S`."""
        return await self._handle.broadcast("stats").results_async(timeout_s=CALL_DEADLINE_S)


class RewardServices:
    """All reward services of a run, started and ready."""

    def __init__(self, clients: Sequence[ServiceClient], applications: Sequence[str]) -> None:
        self.clients = tuple(clients)
        self._applications = tuple(applications)

    @classmethod
    def start(cls, config: RewardsConfig, run: str = "bicot", logs_dir: str | Path | None = None) -> Self:
        """Deploy every reward and wait until all replicas are ready. Ray must be initialised.

        Args:
            config: what to start.
            run: a name for this run's applications on the cluster.
            logs_dir: where Serve's controller and replicas log (their own log files); Ray's session by default.

        Raises:
            RewardServiceError: a replica failed to start, or the start deadline passed; nothing is left running.
        """
        end = time.monotonic() + config.start_deadline_s
        names = {service.name: f"{run}-{service.name}" for service in config.services}
        try:
            handles = _within(end, "deploy the rewards", lambda: _deploy(config, names, logs_dir))
            _within(end, "report on the rewards", lambda: _wait_until_ready(config, names, end))
        except BaseException:
            cls((), tuple(names.values())).close()
            raise
        clients = [ServiceClient(service, handles[service.name]) for service in config.services]
        return cls(clients, tuple(names.values()))

    def close(self, stop_serve: bool = False, deadline_s: float = CALL_DEADLINE_S) -> None:
        """Stop this run's services and wait until they are gone.

        `stop_serve` stops Serve's controller and proxy too, when no other run uses them: for a Ray cluster that
        outlives the run. Where Ray goes down next, leave it out: Ray prints calls that it cut off.

        Raises:
            RewardServiceError: they are not gone after `deadline_s`.
        """
        if not ray.is_initialized():
            return
        end = time.monotonic() + deadline_s

        def stop() -> None:
            for name in self._alive():
                serve.delete(name, _blocking=False)
            while self._alive() and time.monotonic() < end:
                time.sleep(POLL_S)
            if self._alive():
                raise RewardServiceError(f"not stopped within {deadline_s:g} s: {', '.join(self._alive())}")
            if stop_serve and not serve.status().applications:
                serve.shutdown()

        _within(end, "stop the rewards", stop)

    def _alive(self) -> list[str]:
        return [name for name in self._applications if name in serve.status().applications]


def _deploy(config: RewardsConfig, names: dict[str, str], logs_dir: str | Path | None) -> dict[str, DeploymentHandle]:
    """Start Serve where it isn't running, and ask it for the deployments; returns before they are ready."""
    _quiet_driver()
    logs = {"enable_access_log": False, "logs_dir": None if logs_dir is None else str(Path(logs_dir).absolute())}
    serve.start(
        proxy_location="HeadOnly" if config.http else "Disabled",
        http_options={"host": config.http_host, "port": config.http_port} if config.http else None,
        logging_config=logs,
        controller_options={"runtime_env": {"env_vars": _env(1)}},
    )
    targets = [
        serve.RunTarget(
            _deployment(service).bind(service),
            name=names[service.name],
            route_prefix=f"/rewards/{service.name}" if config.http else None,
            logging_config=logs,
        )
        for service in config.services
    ]
    handles = serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    return {service.name: handle for service, handle in zip(config.services, handles, strict=True)}


def _deployment(config: RewardConfig) -> serve.Deployment:
    return serve.deployment(
        name=config.name,
        num_replicas=config.replicas,
        ray_actor_options={
            "num_cpus": config.cpus,
            "num_gpus": config.gpus,
            "runtime_env": {"env_vars": _env(config.threads)},
        },
        max_ongoing_requests=max(64, config.batch_size),
        max_constructor_retry_count=1,
        health_check_period_s=2.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=2.0,
    )(RewardReplica)


def _env(threads: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "RAY_SERVE_LOG_TO_STDERR": "0"}


def _wait_until_ready(config: RewardsConfig, names: dict[str, str], end: float) -> None:
    while True:
        applications = serve.status().applications
        waiting = []
        for service in config.services:
            application = applications.get(names[service.name])
            state = application.status.value if application else "NOT_STARTED"
            if application and state in ("DEPLOY_FAILED", "UNHEALTHY"):
                reason = _reason(application)
                logger.error("reward %r did not start: %s", service.name, reason)
                raise RewardServiceError(f"reward {service.name!r} did not start: {_last_line(reason)}")
            if state != "RUNNING":
                waiting.append(f"{service.name!r} ({_last_line(_reason(application)) if application else state})")
        if not waiting:
            return
        if time.monotonic() > end:
            raise RewardServiceError(
                f"not ready within {config.start_deadline_s:g} s: {', '.join(waiting)}; "
                f"Ray has {ray.available_resources()} left"
            )
        time.sleep(POLL_S)


def _reason(application: Any) -> str:
    messages = [deployment.message for deployment in application.deployments.values() if deployment.message]
    return "\n".join([application.message, *messages]) if application.message else application.status.value


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _last_line(text: str) -> str:
    """Of a traceback, that is the error itself."""
    return text.strip().rpartition("\n")[2]


def _within(end: float, what: str, function: Callable[[], T]) -> T:
    """Run a blocking call of Serve's, which takes no deadline, in a thread that is left behind when time is up."""
    done: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            done.set_result(function())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True, name="serve").start()
    try:
        return done.result(timeout=max(end - time.monotonic(), 0) + 1.0)
    except concurrent.futures.TimeoutError as error:
        if done.done():
            raise
        raise RewardServiceError(f"Ray Serve did not {what} in time") from error


def _quiet_driver() -> None:
    """Serve prints each step to the console on its own; keep its warnings, in this process's logging."""
    serve_logger = logging.getLogger("ray.serve")
    serve_logger.handlers.clear()
    serve_logger.setLevel(logging.WARNING)
    serve_logger.propagate = True
