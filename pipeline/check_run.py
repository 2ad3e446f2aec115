"""Command line: everything that can be checked of a training run before its job waits in a queue; prints its folder.

    python -m pipeline.check_run --nodes 8 --ranks_per_node 8 --config pipeline/recipes/7B_200B.yaml \\
        --deepspeed_config ds_configs/zero2_bf16.json data.shards=data/code
"""

import argparse
from pathlib import Path

from common.command_line import command_parser, exit_on_user_error, raise_if_any
from pipeline.config.inputs import load_inputs

PROGRAM = "pipeline.check_run"


def main() -> None:
    """Parse the command line, check a run's inputs together, and print its folder."""
    arguments = _parser().parse_args()
    raise_if_any(
        [
            f"--{name} {value}: must be at least 1"
            for name in ("nodes", "ranks_per_node")
            if (value := getattr(arguments, name)) < 1
        ],
        heading="no run",
    )
    inputs = load_inputs(
        arguments.config,
        arguments.deepspeed_config,
        overrides=arguments.overrides,
        world_size=arguments.nodes * arguments.ranks_per_node,
        n_nodes=arguments.nodes,
    )
    print(inputs.config.run_dir)


def _parser() -> argparse.ArgumentParser:
    summary, _, example = (__doc__ or "").partition("\n\n")
    parser = command_parser(
        PROGRAM, description=summary.removeprefix("Command line: ").capitalize(), epilog="example:\n" + example
    )
    parser.add_argument("--config", type=Path, required=True, help="recipe (YAML); see pipeline/recipes/")
    parser.add_argument("--deepspeed_config", type=Path, required=True, help="DeepSpeed JSON; see ds_configs/")
    parser.add_argument("--nodes", type=int, required=True, metavar="N", help="machines that the run will have")
    parser.add_argument("--ranks_per_node", type=int, required=True, metavar="N", help="of each machine")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.field=value",
        help='as for pipeline.train; data.shards="" for shards that are not written yet',
    )
    return parser


if __name__ == "__main__":
    exit_on_user_error(main, program=PROGRAM)
