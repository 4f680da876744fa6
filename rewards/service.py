"""Reward services: one Ray Serve deployment per reward, and its client.

    services = RewardServices.start(config, run="demo")
    scores = await score_group(services.clients, pictures, prompts)
    services.close()

A Ray cluster has one Serve, which all runs share. Applications are named after the run, so several runs can share a
cluster, and a resumed run takes over its services. There is no HTTP proxy unless the config asks for one.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from rewards.client import ServiceClient, first_line
from rewards.config import RewardConfig, RewardsConfig
from rewards.replica import RewardReplica

logger = logging.getLogger(__name__)
T = TypeVar("T")

CLOSE_DEADLINE_S = 30.0
GRACE_S = 5.0
POLL_S = 0.1


class RewardServiceError(RuntimeError):
    """Services that did not start or stop; names the reward, its state and its replica's own words."""


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
            run: a name for this run's applications on the cluster, and for their URLs.
            logs_dir: where Serve's controller and replicas write a log file each; Ray's session by default.

        Raises:
            RewardServiceError: a replica failed to start, or the start deadline passed; nothing is left running.
        """
        if not ray.is_initialized():
            raise RewardServiceError("Ray is not initialised")
        end = time.monotonic() + config.start_deadline_s
        names = {service.name: f"{run}-{service.name}" for service in config.services}
        try:
            handles = _within(end, "deploy the rewards", lambda: _deploy(config, run, names, logs_dir))
            _within(end + GRACE_S, "report on the rewards", lambda: _wait_until_ready(config, names, end))
        except BaseException:
            try:
                cls((), tuple(names.values())).close()
            except RewardServiceError as error:
                logger.error("%s", error)
            raise
        clients = [ServiceClient(service, handles[service.name]) for service in config.services]
        return cls(clients, tuple(names.values()))

    def close(self, stop_serve: bool = False, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        """Stop this run's services and wait until they are gone.

        `stop_serve` also stops Serve's controller and proxy if no other run uses them; set it if the Ray cluster
        outlives the run. Leave it out if Ray shuts down next: Ray prints the calls that it cuts off.

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

        _within(end + GRACE_S, "stop the rewards", stop)

    def _alive(self) -> list[str]:
        return [name for name in self._applications if name in serve.status().applications]


def _deploy(
    config: RewardsConfig, run: str, names: dict[str, str], logs_dir: str | Path | None
) -> dict[str, DeploymentHandle]:
    """Start Serve if it isn't running, and request the deployments; returns before they are ready."""
    _quiet_driver()
    logs = {"enable_access_log": False, "log_level": "WARNING"}
    if logs_dir is not None:
        logs["logs_dir"] = str(Path(logs_dir).absolute())
    serve.start(
        proxy_location="HeadOnly" if config.http else "Disabled",
        http_options={"host": config.http_host, "port": config.http_port} if config.http else None,
        logging_config=logs,
    )
    if config.http and not serve.status().proxies:
        raise RewardServiceError("Ray Serve already runs on this cluster without an HTTP proxy; set http: false")
    targets = [
        serve.RunTarget(
            _deployment(service).bind(service, config.scoring),
            name=names[service.name],
            route_prefix=f"/rewards/{run}/{service.name}" if config.http else None,
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
            "resources": config.resources,
            "runtime_env": {"env_vars": dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(config.threads))},
        },
        max_ongoing_requests=max(64, config.batch_size),
        max_constructor_retry_count=1,
        health_check_period_s=2.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=2.0,
    )(RewardReplica)


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


def _last_line(text: str) -> str:
    """The last line of a text; in a traceback it is the error itself."""
    return text.strip().rpartition("\n")[2]


def _within(end: float, what: str, function: Callable[[], T]) -> T:
    """Run a blocking call of Serve, which has no deadline of its own, in a thread; leave the thread when time is up.

    Raises:
        RewardServiceError: the deadline passed, or Ray or Serve refused.
    """
    done: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            done.set_result(function())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True, name="serve").start()
    try:
        return done.result(timeout=max(end - time.monotonic(), 0))
    except (RayServeException, RayError) as error:
        raise RewardServiceError(f"Ray Serve could not {what}: {first_line(error)}") from error
    except TimeoutError as error:
        raise RewardServiceError(f"Ray Serve did not {what} in time") from error


def _quiet_driver() -> None:
    """Stop Serve from printing each step to the console; keep its warnings, in this process's logging."""
    serve_logger = logging.getLogger("ray.serve")
    serve_logger.handlers.clear()
    serve_logger.setLevel(logging.WARNING)
    serve_logger.propagate = True
