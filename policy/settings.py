"""The base of every room's config models. It is in the lowest room, which all others may import.

A field's type gives its unit: `max_tokens: Tokens = Field(256, ge=1, description=...)`. A plain number type has no
unit. docs/config.md, `bicot config` and the JSON schema are generated from types, bounds and descriptions.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """A section of a run config: immutable, without unknown keys, with finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _in(unit: str) -> Any:
    return Field(json_schema_extra={"unit": unit})


Seconds = Annotated[float, _in("s")]
GiB = Annotated[float, _in("GiB")]
MiB = Annotated[int, _in("MiB")]
Teraflops = Annotated[float, _in("TFLOP/s")]
Cores = Annotated[float, _in("cores")]
Gpus = Annotated[float, _in("GPUs")]
Threads = Annotated[int, _in("threads")]
Processes = Annotated[int, _in("processes")]
Tries = Annotated[int, _in("tries")]
Steps = Annotated[int, _in("steps")]
Versions = Annotated[int, _in("versions")]
Groups = Annotated[int, _in("groups")]
Pictures = Annotated[int, _in("pictures")]
Tokens = Annotated[int, _in("tokens")]
Elements = Annotated[int, _in("elements")]
