"""The base of every room's config models. It is in the lowest room, which all others may import.

A field's type gives its unit: `max_tokens: Tokens = Field(256, ge=1, description=...)`. A plain number type has no
unit. docs/config.md, `bicot config` and the JSON schema are generated from types, bounds and descriptions.
"""

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class Settings(BaseModel):
    """A section of a run config: immutable, without unknown keys, with finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number belongs: Python, and so pydantic, reads them as 1 and 0."""
        kinds = _kinds(cls.model_fields[info.field_name or ""].annotation)
        if kinds & {int, float} and bool not in kinds and _holds_flag(value):
            raise PydanticCustomError("number", "write a number")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The types that stand in an annotation."""
    return {annotation}.union(*(_kinds(part) for part in get_args(annotation)))


def _holds_flag(value: Any) -> bool:
    if isinstance(value, dict | list | tuple):
        return any(map(_holds_flag, value.values() if isinstance(value, dict) else value))
    return isinstance(value, bool)


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
