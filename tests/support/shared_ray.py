"""One Ray for all tests that need no more than that: a process of tests starts it once, and ends it with itself."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from paths import ROOT, SUPPORT


@pytest.fixture(scope="session")
def _ray_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="ray_", dir="/tmp")  # short: sockets lie in it
    yield folder
    import ray

    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def shared_ray(_ray_folder: str) -> None:
    """A Ray on this machine, with four CPUs and one `shelf`; its workers can import the tests and their helpers.

    A module ends what it started on it. One that needs a Ray of its own calls `ray.shutdown` first.
    """
    import ray  # here, since quick tests load this module and must not load Ray

    if ray.is_initialized():
        return
    path = os.pathsep.join(map(str, (ROOT, SUPPORT, ROOT / "tests" / "system")))
    ray.init(
        "local", num_cpus=4, resources={"shelf": 1}, object_store_memory=200 << 20, include_dashboard=False,
        log_to_driver=False, configure_logging=False, _temp_dir=_ray_folder,
        runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}},
    )  # fmt: skip
