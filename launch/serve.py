"""Serves a model to OpenAI's clients, and to training that samples in another process.

    python launch/serve.py --workdir=DIR [--port=8000]                      the newest checkpoint of a run
    python launch/serve.py --config=FILE[:SCALE] [--workdir=DIR | --checkpoint=HF_DIR] [--config.KEY=VALUE ...]

With --config the recipe's settings serve, such as --config.rollout.slots=256; without --workdir, the recipe's own run,
or with --checkpoint the weights of a folder of safetensors. SIGTERM and Ctrl-C let answers that are under way end
first. Whoever reaches the port can change the weights: it listens on this machine alone unless --host says otherwise.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import command_line
import config_file
import devices
import run_directory
from absl import flags

from posttrain_jax.errors import UserError
from posttrain_jax.run import validate
from posttrain_jax.run.recipe import Recipe


def main(arguments: Sequence[str]) -> int:
    """Loads the weights and answers until it is told to stop."""
    values = _flags()
    recipe = _recipe(arguments, values)
    if values.checkpoint and values.workdir:
        raise UserError("--checkpoint and --workdir both bring weights: give one of them")
    source = values.checkpoint or values.workdir or run_directory.default(recipe)
    try:
        import uvicorn
    except ImportError as error:
        raise UserError('serving needs more packages: pip install "posttrain_jax[serve]"') from error
    command_line.prepare_jax()
    from posttrain_jax.parallel.mesh import make_mesh
    from posttrain_jax.rollout.service import Service
    from posttrain_jax.serving import weights
    from posttrain_jax.serving.app import make_app
    from posttrain_jax.stages.setup import make_chat, make_engine

    chat = make_chat(recipe)
    mesh = make_mesh(**dataclasses.asdict(recipe.mesh)) if recipe.rollout.sharded else None
    engine = make_engine(recipe, chat, mesh=mesh)
    read = partial(weights.read, arch=recipe.model, dtype=recipe.precision.params, mesh=mesh)
    name = values.name or f"{recipe.name}-{recipe.scale}"
    loaded = engine.load(read(Path(source).expanduser()))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stopped)
    with Service(engine, loaded, version=values.version) as service:
        app = make_app(service, chat, name, lambda path: engine.load(read(path)))
        options = {"timeout_graceful_shutdown": values.grace, "log_level": "warning"}
        server = uvicorn.Server(uvicorn.Config(app, host=values.host, port=values.port, **options))
        print(f"{name} from {source} at http://{values.host}:{values.port}/v1", file=sys.stderr, flush=True)
        server.run()
    return 0


def _stopped(number: int, frame: object) -> None:
    """The server has handled the signal, and raises it once more when it is through."""


def _recipe(arguments: Sequence[str], values: flags.FlagValues) -> Recipe:
    """The recipe of --config with its overrides, or the one of --workdir.

    Raises:
      UserError: with one line for every mistake.
    """
    given_config = config_file.argument(arguments)
    if not given_config:
        command_line.parse(arguments, values, __doc__ or "")
        if not values.workdir:
            raise UserError("--workdir or --config is missing: a run, such as runs/minimax_m2-tiny-seed0, or a recipe")
        return run_directory.read(Path(values.workdir).expanduser())
    name, colon, scale = given_config.partition(":")
    path = Path(name)
    if not colon and (needs := config_file.needs(path)):
        scale, why = devices.choose(needs, devices.attached())
        print(why.replace("Running", "Serving"), file=sys.stderr, flush=True)
    plain = config_file.load(path, scale or None)

    def boolean(name: str) -> bool:
        return (name in values and bool(values[name].boolean)) or config_file.is_boolean(plain, name)

    given, mistakes = command_line.split(arguments, values, boolean)
    mistakes += command_line.assign([pair for pair in given if not pair[0].startswith("config.")], values)
    overrides = [pair for pair in given if pair[0].startswith("config.")]
    config, wrong = config_file.override(path, scale or None, overrides)
    recipe, problems = validate.read(config)
    if mistakes := [*mistakes, *wrong, *problems]:
        raise validate.InvalidRecipe(mistakes)
    return recipe


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "configuration file, with an optional :SCALE", flag_values=values)
    flags.DEFINE_string("workdir", None, "directory of the run whose model answers", flag_values=values)
    flags.DEFINE_string("checkpoint", None, "folder of safetensors whose model answers", flag_values=values)
    flags.DEFINE_string("name", None, "of the model, to clients (RECIPE-SCALE)", flag_values=values)
    flags.DEFINE_string("host", "127.0.0.1", "address to listen on", flag_values=values)
    flags.DEFINE_integer("port", 8000, "to listen on", lower_bound=0, upper_bound=65535, flag_values=values)
    flags.DEFINE_integer("version", 0, "number of the policy in the beginning", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("grace", 60, "seconds for answers to end when stopped", lower_bound=0, flag_values=values)
    return values


if __name__ == "__main__":
    command_line.run(main)
