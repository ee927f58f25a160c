"""A stage of a run to the hub: model, card and report; what a licence forbids is said before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lifelong.errors import InputError
from lifelong.ledger.folder import RunFolder
from lifelong.ledger.history import read_history
from lifelong.ledger.integrity import damaged_files
from lifelong.ledger.ledger import read_records
from lifelong.report.model_card import corpora_of, model_card
from lifelong.report.sources import forbids_sharing

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def push_stage(
    out: str | Path, repository: str, stage: int | None = None, *, private: bool = False, allow_licence: bool = False,
    api: HfApi | None = None, tell: Callable[[str], None] = lambda _: None,
) -> str:  # fmt: skip
    """Upload the model of a stage with its card and the run's report.

    Args:
        out: the run folder.
        repository: `organisation/name`; made where it does not exist.
        stage: number of the stage; the last one if absent.
        private: make the repository private.
        allow_licence: send although the licence of a corpus forbids sharing.
        api: of the hub; by default the one of `huggingface_hub`, with the token of the environment.
        tell: is told what is sent.

    Returns:
        The address of the repository.

    Raises:
        InputError: no such stage, a wrong name, a licence that forbids it, or the hub refused.
        CorruptionError: the model is not what the ledger says.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise InputError(f"push --to: a repository is named ORGANISATION/NAME, not {repository!r}")
    history = read_history(Path(out))
    index = len(history.stages) - 1 if stage is None else stage
    if not 0 <= index < len(history.stages):
        raise InputError(f"push --stage: the stages are 0 to {len(history.stages) - 1}, not {stage}")
    forbidding = [
        f"{name}: {facts['licence']}"
        for name, facts in corpora_of(history, index)
        if forbids_sharing(facts.get("licence"))
    ]
    if forbidding and not allow_licence:
        raise InputError(
            "push: the licence of a corpus that this model was trained on may forbid to share it "
            f"({'; '.join(forbidding)}); nothing was sent. If you have the right, say so: --allow-licence"
        )
    run = RunFolder(out)
    record = next(record for record in read_records(run.path) if record.index == index)
    folder = run.model(record.name)
    names = {name: digest for name, digest in record.files.items() if name.startswith(f"{run.name_of(folder)}/")}
    for finding in damaged_files(run.path, names):
        raise InputError(f"{run.path}/{finding}; nothing was sent")
    return _send(api, repository, folder, model_card(history, index), run, tell, private=private)


def _send(
    api: HfApi | None,
    repository: str,
    folder: Path,
    card: str,
    run: RunFolder,
    tell: Callable[[str], None],
    *,
    private: bool,
) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.constants import REPOCARD_NAME
    from huggingface_hub.errors import HfHubHTTPError

    api = api or HfApi()
    try:
        address = str(api.create_repo(repository, private=private, exist_ok=True))
        tell(f"{address}: sending {folder.name}/")
        api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message=f"model of {folder.parent.name}")
        for path, name in ((path, run.name_of(path)) for path in (run.report.page, run.report.matrix)):
            if path.is_file():
                api.upload_file(path_or_fileobj=str(path), path_in_repo=name, repo_id=repository)
        api.upload_file(path_or_fileobj=card.encode(), path_in_repo=REPOCARD_NAME, repo_id=repository)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(f"push --to {repository}: the hub refused: {' '.join(str(error).split())[:300]}") from None
    return address
