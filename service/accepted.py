"""
What the value of a setting may be; the words of a refusal follow the setting's name.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

from schema.database import InvalidUrl, parse
from service.address import Address


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _is_database(value: SecretStr) -> SecretStr:
    try:
        parse(value.get_secret_value())
    except InvalidUrl as error:
        raise ValueError(str(error)) from None
    return value


def _is_router(urls: tuple[str, ...]) -> tuple[str, ...]:
    for url in urls:
        Address.from_url(url)
    return urls


def _is_uri(value: str) -> str:
    if not re.fullmatch(r"[0-9a-z_]+(\.[0-9a-z_]+)*", value):
        raise ValueError("should be lower-case letters, digits and _, joined by dots")
    if value.split(".")[0] in ("wamp", "crossbar"):
        raise ValueError("is reserved by WAMP or Crossbar")
    return value


def _is_mapping(pairs: tuple[str, ...]) -> tuple[str, ...]:
    for pair in pairs:
        authrole, equals, role = pair.partition("=")
        if not (authrole.strip() and equals and role.strip()):
            raise ValueError("should be authrole=role, and more of them after commas")
    if len({pair.partition("=")[0].strip() for pair in pairs}) < len(pairs):
        raise ValueError("names an authrole twice")
    return pairs


Uri = Annotated[str, AfterValidator(_is_uri)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
RouterUrls = Annotated[
    tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_is_router)
]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_is_database)]
Pairs = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_is_mapping)]
Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
Weight = Annotated[int, Field(ge=2**20)]
