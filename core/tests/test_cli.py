"""The command line: data on stdout, one message on stderr, the exit code of the error's class."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result

import quantry
from quantry import errors, hookimpl
from quantry.cli import cli
from quantry.cli.group import Cli
from quantry.stream import write_safetensors
from quantry.testing.installed import installed

COMMANDS = ("bench", "convert", "doctor", "explain", "inspect", "plugins", "quantize", "run", "verify")


def invoke(*args: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, list(args), env=env, prog_name="quantry")


def fresh(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    folder = tmp_path / "dense"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "model.embed_tokens.weight": torch.randn(96, 64, generator=generator),
        "model.layers.0.self_attn.q_proj.weight": torch.randn(64, 64, generator=generator),
        "model.layers.0.self_attn.k_proj.weight": torch.randn(64, 64, generator=generator),
        "model.norm.weight": torch.ones(64),
    }
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    return folder


HELP = """
import sys
from quantry.cli import main
try:
    main()
except SystemExit as e:
    heavy = [m for m in ("torch", "numpy", "rich", "transformers") if m in sys.modules]
    print(e.code, *heavy, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "args", [("--help",), ("--version",), ("plugins",), *((c, "--help") for c in COMMANDS)]
)
def test_help_and_lists_import_no_torch(args):
    assert fresh(HELP, *args).stderr.split() == ["0"]


def test_importing_the_package_imports_nothing_heavy():
    heavy = ("torch", "numpy", "click", "rich", "pluggy")
    code = f"import sys, quantry; print([m for m in {heavy} if m in sys.modules])"
    assert fresh(code).stdout.strip() == "[]"


def test_help_lists_every_command():
    shown = invoke("--help").stdout
    assert [
        line.split()[0] for line in shown.splitlines() if line.startswith("  ") and line.split()[:1]
    ].count("run") == 1
    for name in COMMANDS:
        assert shown.count(f"\n  {name} ") == 1


@pytest.mark.parametrize(
    "args", [*((c,) for c in COMMANDS if c not in ("run", "convert")), ("plugins", "check")]
)
def test_each_command_shows_examples_and_takes_json_and_debug(args):
    shown = invoke(*args, "--help")
    assert shown.exit_code == 0
    assert "Examples:\n" in shown.stdout
    assert f"  quantry {' '.join(args)}" in shown.stdout
    assert "--json" in shown.stdout
    assert "--debug" in shown.stdout


def test_version():
    assert invoke("--version").stdout == f"quantry, version {quantry.__version__}\n"


@pytest.mark.parametrize(
    "kind", [getattr(errors, name) for name in errors.__all__ if name not in ("nearest", "NoKernelError")]
)
def test_an_error_is_one_message_and_the_exit_code_of_its_class(kind, monkeypatch):
    def fail(*_):
        raise kind("is broken", file="x.gguf", tensor="blk.0.w", offset=8, hint="Fetch it again.")

    monkeypatch.setattr(quantry, "open", fail)
    done = invoke("inspect", "x.gguf")
    assert done.exit_code == kind.exit_code
    assert done.stdout == ""
    assert done.stderr == "error: x.gguf: tensor 'blk.0.w': byte 8: is broken\nFetch it again.\n"


def test_debug_shows_the_traceback_before_or_after_the_command(monkeypatch):
    for args in (("inspect", "/nowhere", "--debug"), ("plugins", "check", "nobody", "--debug")):
        done = invoke(*args)
        assert "Traceback" in done.stderr
        assert done.stderr.splitlines()[-2].startswith("error: ")
        assert done.stdout == ""
    assert "Traceback" in invoke("inspect", "/nowhere", env={"QUANTRY_DEBUG": "1"}).stderr
    assert "Traceback" not in invoke("inspect", "/nowhere").stderr


def test_a_bug_is_a_message_too(monkeypatch):
    monkeypatch.setattr(quantry, "open", lambda *_: {}["x"])
    done = invoke("inspect", "x.gguf")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: KeyError: 'x'\nThis is a bug")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("inspct", "x"), "no command 'inspct'. Did you mean 'inspect'?"),
        (("inspect",), "Missing argument 'MODEL'."),
        (("inspect", "x", "--loud"), "No such option '--loud'."),
        (("explain", "x", "--batch", "-1"), "Invalid value for '--batch'"),
        (("quantize", "x", "-o", "y"), "Missing option '--isq'."),
        (
            ("quantize", "x", "-o", "y", "--isq", "q8_0", "--organization", "flat"),
            "Invalid value for '--organization'",
        ),
        (("plugins", "check", "nobody"), "no installed plugin 'nobody'"),
        (("doctor", "nobody"), "no installed plugin 'nobody'"),
        (("inspect", "/nowhere.gguf"), "no such file or folder"),
        (("explain", "x", "--numerics", "loud"), "unknown numerics 'loud'"),
    ],
)
def test_wrong_usage_exits_2_and_says_what(args, said):
    done = invoke(*args)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert said in done.stderr


def test_interrupt_exits_130_without_a_word(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(quantry, "open", interrupt)
    done = invoke("inspect", "x.gguf")
    assert done.exit_code == 130
    assert done.stderr.strip() == ""


def test_a_closed_pipe_is_quiet():
    read, write = os.pipe()
    os.close(read)
    code = "from quantry.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "plugins"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert done.stderr == ""


def test_inspect_json_has_the_keys_of_the_contract(dense):
    found = json.loads(invoke("inspect", str(dense), "--json").stdout)
    assert {"format", "architecture", "parameters", "bytes", "bits_per_weight", "layouts", "tensors"} <= set(
        found
    )
    assert found["parameters"] == 96 * 64 + 2 * 64 * 64 + 64
    assert found["layouts"]["dense:f32"]["tensors"] == 4
    assert {"name", "layout", "shape", "bytes", "bits_per_weight"} <= set(found["tensors"][0])


def test_inspect_prints_tensors_on_request(dense):
    assert "q_proj" not in invoke("inspect", str(dense)).stdout
    shown = invoke("inspect", str(dense), "--tensors").stdout
    assert "model.layers.0.self_attn.q_proj.weight  dense:f32  64x64" in shown


def test_explain_json_names_every_candidate(dense):
    found = json.loads(invoke("explain", str(dense), "--json").stdout)
    row = next(t for t in found["tensors"] if t["name"].endswith("q_proj.weight"))
    assert {"name", "layout", "device", "chosen", "candidates"} <= set(row)
    assert row["chosen"] == "torch.linear"
    by_name = {c["kernel"]: c for c in row["candidates"]}
    assert by_name["torch.linear"]["ok"]
    assert "reference" in by_name["reference"]["reason"]
    assert {"kernel", "ok", "reason", "priority", "time_us"} <= set(by_name["reference"])


def test_explain_shows_equal_weights_once_and_all_on_request(dense):
    assert "k_proj.weight and 1 like it: dense:f32 64x64" in invoke("explain", str(dense)).stdout
    every = invoke("explain", str(dense), "--all").stdout
    assert "q_proj.weight: dense:f32 64x64" in every
    assert "like it" not in every


def test_explain_of_what_nothing_runs_is_an_answer(dense):
    done = invoke("explain", str(dense), "--dtype", "f16")
    assert done.exit_code == 0
    assert "the weight is f32, activations are f16" in done.stdout


def test_verify_exits_3_when_a_problem_is_found(dense):
    done = invoke("verify", str(dense), "--json")
    assert (done.exit_code, json.loads(done.stdout)["ok"]) == (0, True)
    path = dense / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    done = invoke("verify", str(dense), "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 3
    assert not found["ok"]
    assert set(found["problems"][0]) == {"file", "tensor", "problem"}


def test_quantize_writes_uqff_that_inspects(dense, tmp_path):
    out = tmp_path / "out" / "x.uqff"
    done = invoke("quantize", str(dense), "-o", str(out), "--isq", "f16", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"outputs", "seconds", "peak_rss_bytes"} <= set(found)
    assert {"quant", "shards", "layers", "actual_counts", "fallback_count"} <= set(found["outputs"][0])
    again = json.loads(invoke("inspect", str(out.parent), "--json").stdout)
    assert again["format"] == "uqff"
    assert "dense:f16" in again["layouts"]


def test_quantize_takes_types_by_commas_repetition_and_after_the_option(dense, tmp_path):
    for i, args in enumerate(
        (("--isq", "f16,bf16"), ("--isq", "f16", "--isq", "bf16"), ("--isq", "f16", "bf16"))
    ):
        done = invoke("quantize", str(dense), "-o", str(tmp_path / str(i)), *args, "--dry-run", "--json")
        assert [o["quant"] for o in json.loads(done.stdout)["outputs"]] == ["f16", "bf16"]
        assert not (tmp_path / str(i)).exists()


def test_plugins_json_has_the_keys_of_the_contract():
    rows = json.loads(invoke("plugins", "--json").stdout)["plugins"]
    keys = [
        "name",
        "dist",
        "version",
        "ok",
        "error",
        "formats",
        "layouts",
        "kernels",
        "quantizers",
        "codecs",
        "devices",
    ]
    assert list(rows[0]) == [*keys, "load_ms"]
    assert rows[0]["name"] == "core"
    assert "torch.linear" in rows[0]["kernels"]


def test_plugins_check_runs_the_kit_and_fails_with_6(monkeypatch):
    from quantry.testing import Outcome, plugin

    wrong = [("kernel x", Outcome("equals the definition", "a case", "failed", "it is off"))]
    right = [("kernel x", Outcome("equals the definition", "a case", "passed"))]
    for outcomes, code in ((right, 0), (wrong, 6)):
        monkeypatch.setattr("quantry.cli.checks.check_plugin", lambda name, found=outcomes: iter(found))
        done = invoke("plugins", "check", "core", "--json")
        row = json.loads(done.stdout)["plugins"][0]
        assert (done.exit_code, row["ok"]) == (code, code == 0)
    assert row["problems"] == ["kernel x: equals the definition [a case]: it is off"]
    assert plugin.find("core").name == "core"


def test_doctor_finds_the_core_well():
    done = invoke("doctor", "core", "--json")
    row = json.loads(done.stdout)["plugins"][0]
    assert row["problems"] == []
    assert (row["name"], row["ok"], done.exit_code) == ("core", True, 0)


def test_run_without_a_runtime_names_what_to_install():
    class Nothing:
        @hookimpl
        def quantry_kernels(self):
            return []

    with installed(Nothing(), alone=True):
        done = invoke("run", "model.gguf", "-p", "Hi", "-n", "4")
    assert done.exit_code == 6
    assert "pip install quantry-transformers" in done.stderr


def test_output_in_a_pipe_is_plain_and_uncut(dense):
    shown = invoke("explain", str(dense), "--all").stdout
    assert "\x1b[" not in shown
    assert 'disabled (set reference="allow" to permit the slow tile-wise path)' in shown


def test_colour_is_for_terminals_and_no_color_forbids_it(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in CliRunner().invoke(cli, ["inspect", "/nowhere"], color=True).stderr
    assert "\x1b[" not in CliRunner().invoke(cli, ["inspect", "/nowhere"]).stderr
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in CliRunner().invoke(cli, ["inspect", "/nowhere"], color=True).stderr


def test_options_are_read_from_variables(dense):
    assert (
        json.loads(invoke("explain", str(dense), "--json", env={"QUANTRY_EXPLAIN_BATCH": "16"}).stdout)[
            "batch"
        ]
        == 16
    )
    assert json.loads(invoke("explain", str(dense), env={"QUANTRY_JSON": "1"}).stdout)["device"] == "cpu"
    assert "'nope'" in invoke("explain", str(dense), env={"QUANTRY_DEVICE": "nope"}).stderr
    assert "'nope'" in invoke("explain", str(dense), env={"QUANTRY_EXPLAIN_DEVICE": "nope"}).stderr
    said = json.loads(invoke("explain", str(dense), "--json", env={"QUANTRY_NUMERICS": "exact"}).stdout)
    assert said["numerics"] == "exact"


def test_restricting_plugins_by_variable_is_not_taken_for_an_option():
    assert invoke("plugins", env={"QUANTRY_PLUGINS": "gguf"}).exit_code == 0
    assert invoke("--help", env={"QUANTRY_VERSION": "1"}).stdout.startswith("Usage")


class Greets:
    @hookimpl
    def quantry_commands(self, cli: click.Group) -> None:
        @cli.command("greet", short_help="Say hello.")
        @click.option("--device", default="cpu")
        def greet(device: str) -> None:
            click.echo(f"hello {device}")


class Explodes:
    @hookimpl
    def quantry_commands(self, cli: click.Group) -> None:
        raise RuntimeError("no greeting today")


class TakesInspect:
    @hookimpl
    def quantry_commands(self, cli: click.Group) -> None:
        cli.add_command(click.Command("inspect", callback=lambda: click.echo("mine")))


def test_a_plugin_adds_a_command_with_the_common_options():
    with installed(Greets(), alone=True):
        assert invoke("greet").stdout == "hello cpu\n"
        assert invoke("greet", env={"QUANTRY_DEVICE": "mps"}).stdout == "hello mps\n"
        assert "--debug" in invoke("greet", "--help").stdout
        assert "Say hello." in invoke("--help").stdout


@pytest.mark.parametrize(
    ("plugin", "said"), [(Explodes, "no greeting today"), (TakesInspect, "adds 'inspect', which quantry has")]
)
def test_a_broken_commands_hook_is_one_note_and_nothing_else(plugin, said, dense):
    with installed(plugin(), alone=True):
        shown = invoke("--help")
        assert shown.exit_code == 0
        assert shown.stderr.count("note: ") == 1
        assert said in shown.stderr
        assert invoke("inspect", str(dense)).exit_code == 0


def test_the_group_can_be_embedded():
    assert isinstance(cli, Cli)
    assert cli.main(["--version"], standalone_mode=False) == 0
