"""A stage of a run to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lifelong.cli.terminal import quiet_libraries, say


def push(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    to: Annotated[str, typer.Option(metavar="ORG/NAME", help="Repository on the hub; made where it does not exist.")],
    stage: Annotated[int | None, typer.Option(metavar="N", help="Number of the stage; default the last.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    allow_licence: Annotated[
        bool, typer.Option("--allow-licence", help="Send although the licence of a corpus forbids sharing.")
    ] = False,
    card: Annotated[bool, typer.Option("--card", help="Print the model card and send nothing.")] = False,
) -> None:
    """Push the model of a stage to the hub, with its model card and the report.

    The token is taken from the environment (HF_TOKEN) or from `hf auth login`.
    """
    from lifelong.ledger.history import read_history
    from lifelong.report.model_card import model_card

    if card:
        history = read_history(run_folder)
        say(model_card(history, len(history.stages) - 1 if stage is None else stage), nl=False)
        return
    quiet_libraries()
    from lifelong.pipeline.push import push_stage

    address = push_stage(run_folder, to, stage, private=private, allow_licence=allow_licence, tell=say)
    say(f"pushed: {address}")
