"""An adapter format. Nothing heavy happens at import."""

from __future__ import annotations

from collections.abc import Iterable

from quantry import AdapterFormat, hookimpl


@hookimpl
def quantry_adapter_formats() -> Iterable[AdapterFormat]:
    from quantry_peft.lora import PeftLora

    return [PeftLora()]
