"""What every room's config models have in common. The lowest room holds it, since all others may import it.

A field's type says its unit: `max_tokens: Tokens = Field(256, ge=1, description=...)`. A plain number is a pure
number. docs/config.md, `bicot config` and the JSON schema are made from types, bounds and descriptions.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Keys that a run config may set: none may change later, none is unknown, and numbers are finite."""

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
