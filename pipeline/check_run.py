"""Check what can be checked of a training run before its job waits in a queue, and print its run directory.

The checks are those that `pipeline.train` makes when it starts on the given number of ranks.
"""

if not __package__:  # run as a file: its packages lie beside this folder
    __import__("sys").path.insert(0, __import__("os").path.realpath(f"{__file__}/../.."))

from common.endings import exit_on_user_error

import argparse

from common.command_line import command_parser, whole_number
from pipeline.config.inputs import add_run_arguments, load_inputs

PROGRAM = "pipeline.check_run"
EXAMPLE = """example:
  python -m pipeline.check_run --nodes 8 --ranks_per_node 8 --config pipeline/recipes/7B_200B.yaml \\
      --deepspeed_config ds_configs/zero2_bf16.json data.shards=data/code

data.shards="" checks a run whose shards are not written yet."""


def main() -> None:
    """Parse the command line, check the run's inputs together, and print its run directory."""
    arguments = _parser().parse_args()
    inputs = load_inputs(
        arguments.config,
        arguments.deepspeed_config,
        overrides=arguments.overrides,
        world_size=arguments.nodes * arguments.ranks_per_node,
        n_nodes=arguments.nodes,
    )
    print(inputs.config.run_dir)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(PROGRAM, description=__doc__, epilog=EXAMPLE)
    add_run_arguments(parser)
    nodes, ranks = whole_number(at_least=1, at_most=100_000), whole_number(at_least=1, at_most=1024)
    parser.add_argument("--nodes", type=nodes, required=True, metavar="N", help="number of machines")
    parser.add_argument("--ranks_per_node", type=ranks, required=True, metavar="N", help="ranks on each machine")
    return parser


if __name__ == "__main__":
    exit_on_user_error(main, program=PROGRAM)
