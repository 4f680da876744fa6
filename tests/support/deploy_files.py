"""Reads what deploy/ ships: renders its kustomize overlays, and finds pods, images and runs in them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from paths import ROOT

from recipe.config import RunConfig, load_config

DEPLOY = ROOT / "deploy"
OVERLAYS = sorted(
    str(path.parent.relative_to(DEPLOY / "kuberay")) for path in DEPLOY.glob("kuberay/overlays/*/*/*.yaml")
)
Document = dict[str, Any]


def tool(name: str) -> str | None:
    """A program of this environment, or else one on the PATH."""
    return shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def check(*command: str | Path) -> str:
    """Run a checker; what it prints, which is what it complains of where it fails."""
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Rendered:
    """The documents of one overlay."""

    name: str
    documents: list[Document]

    def kind(self, kind: str) -> list[Document]:
        return [document for document in self.documents if document["kind"] == kind]

    def names(self, kind: str) -> set[str]:
        return {document["metadata"]["name"] for document in self.kind(kind)}

    @property
    def cluster(self) -> Document:
        """The spec of its RayCluster, or the one inside its RayJob."""
        return next(
            document["spec"].get("rayClusterSpec", document["spec"])
            for document in self.documents
            if document["kind"] in ("RayCluster", "RayJob")
        )

    def pods(self) -> dict[str, Document]:
        """Every pod spec by where it stands."""
        pods = {"head": self.cluster["headGroupSpec"]["template"]["spec"]}
        pods |= {group["groupName"]: group["template"]["spec"] for group in self.cluster["workerGroupSpecs"]}
        return pods | {
            document["metadata"]["name"]: document["spec"]["template"]["spec"]
            for document in self.kind("StatefulSet")
        }

    def run(self) -> RunConfig:
        """The run that a RayJob's entrypoint asks for, resolved as `bicot train` resolves it.

        But for the instruction, which lies beside the prompts, on the cluster's volume.
        """
        words = shlex.split(self.kind("RayJob")[0]["spec"]["entrypoint"])
        assert words[:4] == ["python", "-m", "cluster", "train"]
        return load_config(ROOT / words[4], [*words[5:], "policy.templates.instruction=plan {prompt}"])


def render(folder: Path, overlay: str) -> Rendered:
    """Build an overlay of `folder`, a copy of deploy/kuberay that has secrets."""
    kubectl = tool("kubectl")
    assert kubectl
    text = check(kubectl, "kustomize", folder / overlay)
    return Rendered(overlay, list(yaml.load_all(text, yaml.CSafeLoader)))


def values(tree: Any, key: str) -> Iterator[Any]:
    """Every value that stands under `key`, at any depth."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from values(value, key)


def strict(schema: Any) -> Any:
    """A custom resource's openAPIV3Schema as a JSON schema that refuses keys it does not name."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {
        key: {name: strict(value) for name, value in part.items()} if key == "properties" else strict(part)
        for key, part in schema.items()
        if key not in ("description", "format", "default") and not key.startswith("x-")
    }
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
        result.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    keeps_all = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if "properties" in schema and not keeps_all:
        result["additionalProperties"] = False
    return result
