"""From a model's name to its parts in several processes."""

from __future__ import annotations

from palmette.runtime.models.digest import model_digest
from palmette.runtime.parallel.model import ParallelModel
from palmette.runtime.parallel.open_shard import WholeModel, find_places, open_shard, open_whole, rank_device
from palmette.runtime.parallel.orders import AnyModel, Load
from palmette.runtime.parallel.team import Team


def start_parallel(model: AnyModel, size: int, *, device: str = "auto", timeout: float = 120.0) -> ParallelModel:
    """Start `size` ranks, of which this process is the first, and load a model into them.

    Args:
        device: "cpu", or "cuda" for one GPU a rank, from the first on; "auto" is "cuda" where there are GPUs.
        timeout: seconds that a rank may keep another waiting in a step.

    Raises:
        InvalidOption: the model cannot be cut so, or there are not so many GPUs.
        ModelNotFound, CorruptModel, UnsupportedArchitecture, UnsupportedFeature: the model.
        EngineDied: a rank failed.
    """
    whole = open_whole(model)
    place = find_places(whole.config, size=size, device=device)
    return _load(model, whole, Team(size, device=place, timeout=timeout))


def load_parallel(model: AnyModel, team: Team) -> ParallelModel:
    """Load a model into a team that runs, in place of what it had. The team is closed where reading it fails.

    Raises:
        as start_parallel.
    """
    whole = open_whole(model)
    find_places(whole.config, size=team.size, device=team.device)
    return _load(model, whole, team)


def _load(model: AnyModel, whole: WholeModel, team: Team) -> ParallelModel:
    try:
        team.tell(Load(model))
        decoder = open_shard(whole, team.group, rank_device(team.device, 0))
        team.wait()
    except BaseException:
        team.close()
        raise
    digest = model_digest(whole.config, decoder.weights)
    return ParallelModel(whole.config, decoder, whole.read_tokenizer(), digest, whole.name, team)
