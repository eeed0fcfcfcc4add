"""What goes over the wire to those who change what is served, for the OpenAPI page."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, Strict

from models.store import Share

WaitS = Annotated[float, Field(ge=0, le=600, description="Longest wait for versions to load, in seconds.")]
Number = Annotated[int, Strict(), Field(gt=0)]
Last = Annotated[int, Field(ge=1, le=1000, description="How many.")]


class Pointing(BaseModel):
    """What an alias is to stand for."""

    model_config = ConfigDict(extra="forbid")

    version: Number | str = Field(description="A number, another alias, or `latest`: what that is now.")
    split: dict[PositiveInt, Annotated[Share, Strict()]] = Field(
        default={},
        description="Other versions, each with the percentage of clients that gets it.",
        examples=[{"3": 10}],
    )
    shadow: Number | None = Field(
        None, description="A version that is asked the same, answers nobody, and is compared: `foretell_shadow_*`."
    )


class AliasDetail(BaseModel):
    model: str
    alias: str
    version: int = Field(description="What it stands for.")
    serves: int | None = Field(description="What answers: another version where that one is not ready.")
    split: dict[int, float]
    shadow: int | None
    previous: list[int] = Field(description="What it stood for before, the latest last.")


class AuditLine(BaseModel):
    """A change of the store; further fields say what was changed."""

    model_config = ConfigDict(extra="allow")

    time: str
    by: str
    action: str


class Audit(BaseModel):
    changes: list[AuditLine] = Field(description="The newest first.")
