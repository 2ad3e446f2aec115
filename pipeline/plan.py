"""Estimate what a run will need and cost before it starts. Uses formulas alone, and needs no GPU and no torch.

Takes the same recipe, DeepSpeed JSON and overrides as `pipeline.train`, and checks them in the same way. Exit codes: 0
if the run fits into the GPUs' memory, 1 if it does not (the plan is printed too), 2 for a mistake in the input.
"""

if not __package__:  # run as a file: its packages lie beside this folder
    __import__("sys").path.insert(0, __import__("os").path.realpath(f"{__file__}/../.."))

from common.endings import exit_on_user_error

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from common.command_line import UserError, command_parser, output_path, whole_number
from common.files import PNG_HEAD, refuse_to_replace
from pipeline.config.inputs import Inputs, add_run_arguments, load_inputs
from pipeline.planning.alternatives import alternatives, setup_of
from pipeline.planning.clusters import GPUS, Assumptions, Cluster, assumptions_from
from pipeline.planning.estimate import as_dict, estimate
from pipeline.planning.printout import plan_as_text, plot

PROGRAM = "pipeline.plan"
DOES_NOT_FIT = 1
EXAMPLE = """example:
  python -m pipeline.plan --config pipeline/recipes/7B_200B.yaml --deepspeed_config ds_configs/zero2_bf16.json \\
      --num_nodes 8 --gpus_per_node 8 --gpu h100 --assume usd_per_gpu_hour=2.5 model.n_future_tokens=1
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, check the inputs, and print the plan.

    Raises:
        UserError: the inputs have a mistake, or a file cannot be written.
    """
    arguments = _parser().parse_args(argv)
    if arguments.plot is not None:
        _check_picture(arguments.plot)
    cluster = Cluster(
        n_nodes=arguments.num_nodes,
        gpus_per_node=arguments.gpus_per_node,
        gpu=GPUS[arguments.gpu],
        assumed=assumptions_from(arguments.assume),
    )
    inputs = checked_inputs(arguments.config, arguments.deepspeed_config, arguments.overrides, cluster)
    chosen = setup_of(inputs.config, inputs.deepspeed_config, cluster, name=arguments.deepspeed_config.stem)
    setups = alternatives(inputs.config, inputs.deepspeed_config, cluster)
    found = estimate(chosen, cluster)
    if arguments.plot is not None:
        plot(chosen, cluster, arguments.plot)
    if arguments.json:
        print(json.dumps(as_dict(chosen, setups, found, cluster), indent=1))
    else:
        print(plan_as_text(chosen, setups, found, cluster))
    if not chosen.fits:
        sys.exit(DOES_NOT_FIT)


def checked_inputs(recipe: Path, deepspeed_json: Path, overrides: list[str], cluster: Cluster) -> Inputs:
    """Return the checked inputs of a run, whose shards need not exist yet.

    Raises:
        UserError: a run would refuse these inputs.
    """
    return load_inputs(
        recipe,
        deepspeed_json,
        overrides=[*overrides, 'data.shards=""'],
        world_size=cluster.world_size,
        n_nodes=cluster.n_nodes,
    )


def _check_picture(path: Path) -> None:
    if path.suffix != ".png" or path.is_dir():
        raise UserError(f"--plot {path}: must name a .png file")
    if not path.parent.is_dir():
        raise UserError(f"--plot {path}: the folder {path.parent} does not exist")
    refuse_to_replace(path, head=PNG_HEAD, kind="a picture")


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(PROGRAM, description=__doc__, epilog=EXAMPLE)
    add_run_arguments(parser)
    nodes, gpus = whole_number(at_least=1, at_most=100_000), whole_number(at_least=1, at_most=1024)
    parser.add_argument("--num_nodes", type=nodes, default=1, metavar="N", help="number of machines (default: 1)")
    parser.add_argument("--gpus_per_node", type=gpus, default=8, metavar="N", help="GPUs per machine (default: 8)")
    parser.add_argument("--gpu", choices=sorted(GPUS), default="h100", help="type of GPU (default: h100)")
    parser.add_argument(
        "--assume", action="append", default=[], metavar="NAME=VALUE",
        help=f"replace an assumption; may be repeated. Names: {', '.join(vars(Assumptions()))}",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument(
        "--plot", type=output_path, metavar="FILE.png", help="also draw the memory by part into this file"
    )
    return parser


if __name__ == "__main__":
    exit_on_user_error(main, program=PROGRAM)
