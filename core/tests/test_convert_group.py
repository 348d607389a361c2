"""`quantry convert`: plugins add methods; what is not installed says what to install."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from quantry import errors, hookimpl
from quantry.cli import cli
from quantry.testing.installed import installed

DONE = {
    "output": "x.toy", "tensors": 2, "bytes": 1_500_000, "bits_per_weight": 4.5, "seconds": 0.25,
    "types": {"toy4": 1, "toy8": 1},
    "fallbacks": [
        {"tensor": "a", "type": "toy8", "reason": "5 columns"},
        {"tensor": "b", "type": "toy8", "reason": "5 columns"},
        {"tensor": "c", "type": "toy8", "reason": "7 columns"},
    ],
}  # fmt: skip


@click.command("toy", short_help="A toy format.")
@click.option("--json", "as_json", is_flag=True)
@click.option("--jobs", type=int)
@click.pass_obj
def toy(terminal: Any, as_json: bool, jobs: int | None) -> None:
    terminal.show({**DONE, "bytes": terminal.parse_size("1.5MB"), "jobs": jobs}, as_json)


def plugin(command: click.Command = toy) -> Any:
    @hookimpl
    def quantry_commands(cli: click.Group) -> None:
        cli.commands["convert"].add_command(command)  # type: ignore[attr-defined]

    return SimpleNamespace(quantry_commands=quantry_commands)


def invoke(*args: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, ["convert", *args], env=env, prog_name="quantry")


def test_a_plugins_method_is_listed_and_run():
    with installed(plugin(), "toys", alone=True):
        assert "toy  A toy format." in invoke("--help").stdout
        assert json.loads(invoke("toy", "--json").stdout) == {**DONE, "jobs": None}


def test_a_method_has_the_variables_and_the_debug_option_of_all_commands():
    with installed(plugin(), "toys", alone=True):
        assert json.loads(invoke("toy", "--json", env={"QUANTRY_JOBS": "3"}).stdout)["jobs"] == 3
        assert "--debug" in invoke("toy", "--help").stdout


def test_the_result_is_a_table_of_types_and_a_sentence_of_sizes():
    with installed(plugin(), "toys", alone=True):
        result = invoke("toy")
    assert result.stdout.splitlines() == [
        "type  tensors", "toy4        1", "toy8        1", "",
        "1.5 MB written to x.toy in 0.2 s, 4.50 bits a weight",
    ]  # fmt: skip
    assert result.stderr.splitlines() == ["a and 1 more are toy8: 5 columns", "c is toy8: 7 columns"]


@pytest.mark.parametrize("method", ["gptq", "gguf", "mlx"])
def test_a_method_that_is_not_installed_names_its_dist(method):
    with installed(SimpleNamespace(), "nothing", alone=True), pytest.raises(errors.PluginError) as e:
        CliRunner().invoke(cli, ["convert", method, "x"], standalone_mode=False, catch_exceptions=False)
    dist = {"mlx": "quantry-afq-metal"}.get(method, f"quantry-{method}")
    assert e.value.hint == f"pip install {dist}"


def test_help_lists_what_other_plugins_would_add():
    with installed(plugin(), "toys", alone=True):
        assert "gptq  pip install quantry-gptq" in invoke("--help").stdout


def test_an_unknown_method_proposes_the_nearest():
    with installed(plugin(), "toys", alone=True):
        result = invoke("tiy")
    assert result.exit_code == 2
    assert "no method 'tiy'. Did you mean 'toy'?" in result.stderr


def test_two_plugins_with_one_method_cost_the_second_a_note():
    with installed(plugin(), "toys", alone=True), installed(plugin(), "more"):
        result = invoke("toy", "--json")
    assert result.exit_code == 0
    assert "plugin 'more' (dist-of-more) adds 'convert toy', which dist-of-toys has" in result.stderr


def test_a_plugin_cannot_take_the_group():
    @hookimpl
    def quantry_commands(cli: click.Group) -> None:
        cli.add_command(click.Command("convert"))

    with installed(SimpleNamespace(quantry_commands=quantry_commands), "thief", alone=True):
        result = invoke("--help")
    assert "adds 'convert', which quantry has: ignored" in result.stderr
