"""The run directory, and its files that say what the run is: config, DeepSpeed JSON, versions and tokenizer."""

import os

import yaml

from common.command_line import UserError
from common.files import write_json, write_text
from pipeline.config.inputs import Inputs
from pipeline.config.schema import Config
from pipeline.config.shard_folder import keep_tokenizer


def check_run_directory(config: Config) -> None:
    """Check, without creating anything, that the run directory exists or can be created.

    Raises:
        UserError: it cannot.
    """
    there = next(path for path in (config.run_dir, *config.run_dir.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"run.dir={config.run.dir!r}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"run.dir={config.run.dir!r}: nothing may be created in {there} (Permission denied)")


def make_run_directory(config: Config) -> None:
    """Create the run directory, with the folders that must exist before the run starts.

    Raises:
        UserError: it cannot be created.
    """
    try:
        for name in ("checkpoints", "hangs", "ranks"):
            (config.run_dir / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run.dir={config.run.dir!r}: {error.filename} cannot be created: {error.strerror}") from error


def write_run_files(inputs: Inputs) -> None:
    """Write the resolved config, the DeepSpeed JSON, the versions of software and the tokenizer into the run directory.

    Raises:
        OSError: it cannot be written.
    """
    from pipeline.monitoring.environment import environment

    run_dir = inputs.config.run_dir
    write_text(run_dir / "config.yaml", yaml.safe_dump(inputs.config.as_dict(), sort_keys=False))
    write_json(run_dir / "ds_config.json", inputs.deepspeed_config)
    write_json(run_dir / "environment.json", environment())
    keep_tokenizer(run_dir, data=inputs.config.data, metadata=inputs.metadata)
