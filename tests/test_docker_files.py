"""The files under docker/ fit together and fit the package. No container engine runs here: they are read, not built."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families

from palmette.cli import app as cli
from palmette.runtime.config import CacheConfig, RuntimeConfig
from palmette.runtime.models.tiny import tiny_model
from palmette.runtime.server.config import ServerConfig, ServerLimits
from palmette.runtime.server.options import server_options
from tests.runtime.server.serving import Served, serving

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
IMAGES = sorted(DOCKER.glob("*.Dockerfile"))
DASHBOARDS = sorted((DOCKER / "grafana" / "dashboards").glob("*.json"))

# What may stand at the beginning of a line, and which of these take a list.
INSTRUCTIONS = {
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN", "SHELL",
    "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
}  # fmt: skip
PREDEFINED = {"PIP_INDEX_URL", "PATH"}


@dataclass(frozen=True)
class Instruction:
    word: str
    rest: str


def instructions(text: str) -> list[Instruction]:
    """An image file's instructions, with continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines)).splitlines()
    found = []
    for line in joined:
        word, _, rest = line.strip().partition(" ")
        found.append(Instruction(word, rest.strip()))
    return found


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def compose_files() -> list[dict[str, Any]]:
    return [read(DOCKER / name) for name in ("compose.yaml", "compose.cuda.yaml")]


def serve_arguments(image: Path) -> list[str]:
    """What an image runs behind `palmette serve`."""
    parts = {i.word: i.rest for i in instructions(image.read_text(encoding="utf-8"))}
    entry = json.loads(parts["ENTRYPOINT"])
    assert entry[:2] == ["palmette", "serve"]
    return [*entry[2:], *json.loads(parts["CMD"])]


def parsed(arguments: list[str]) -> dict[str, Any]:
    """The options of `palmette serve`; fails on an unknown one as the command line does."""
    command = typer.main.get_command(cli).commands["serve"]  # type: ignore[attr-defined]
    found: dict[str, Any] = command.make_context("serve", list(arguments)).params
    return found


# -- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_an_image_file_parses(image: Path) -> None:
    found = instructions(image.read_text(encoding="utf-8"))
    assert {i.word for i in found} <= INSTRUCTIONS
    assert all(i.rest for i in found)
    assert next(i.word for i in found if i.word != "ARG") == "FROM", "only ARG may stand before the first stage"
    for i in found:
        if i.word in ("CMD", "ENTRYPOINT"):
            assert all(isinstance(part, str) for part in json.loads(i.rest)), i
        if i.word == "HEALTHCHECK":
            assert all(isinstance(part, str) for part in json.loads(i.rest.partition("CMD ")[2])), i
        if i.word == "RUN":
            shlex.split(i.rest)  # raises where a quote is open


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_what_an_image_file_refers_to_is_there(image: Path) -> None:
    found = instructions(image.read_text(encoding="utf-8"))
    let_in = (image.parent / f"{image.name}.dockerignore").read_text(encoding="utf-8").splitlines()
    stages, known = set[str](), set(PREDEFINED)
    for i in found:
        for name in re.findall(r"\$\{?([A-Z_]+)", i.rest):
            assert name in known, f"{name} is not declared before {i}"
        if i.word in ("ARG", "ENV"):
            known |= set(re.findall(r"(?:^|\s)([A-Z_]+)(?==|$)", i.rest))
        if i.word == "FROM":
            name, _, stage = i.rest.partition(" AS ")
            assert "/" not in name, "an official image, by its short name"
            stages.add(stage)
        if i.word != "COPY":
            continue
        if source := re.match(r"--from=(\S+)", i.rest):
            assert source[1] in stages, i
            continue
        for path in i.rest.split()[:-1]:
            assert (ROOT / path).exists(), path
            assert f"!{path}" in let_in, f"{path} is kept out of the build"


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_an_image_runs_as_nobody_special_and_the_tested_torch(image: Path) -> None:
    text = image.read_text(encoding="utf-8")
    found = instructions(text)
    last_stage = max(n for n, i in enumerate(found) if i.word == "FROM")
    users = [i.rest for i in found[last_stage:] if i.word == "USER"]
    assert users == ["palmette"]
    assert "grep '^torch==' constraints.txt" in text
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("torch==") for line in pins) == 1


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_an_image_starts_a_server_that_takes_its_options(image: Path) -> None:
    options = parsed(serve_arguments(image))
    server_options(options["model"], options["option"] or ())
    assert options["port"] == 30000
    assert any(i == Instruction("EXPOSE", "30000") for i in instructions(image.read_text(encoding="utf-8")))
    assert not ServerConfig(host=options["host"], api_keys=("a-key-of-some-length",)).is_loopback


# -- compose ---------------------------------------------------------------------------------------------------------


def test_compose_names_only_what_it_declares() -> None:
    compose, over = compose_files()
    assert set(over["services"]) <= set(compose["services"])
    for name, service in compose["services"].items():
        assert set(service.get("networks", ())) <= set(compose["networks"]), name
        assert set(service.get("depends_on", ())) <= set(compose["services"]), name
        assert set(service.get("secrets", ())) <= set(compose["secrets"]), name
        for volume in service.get("volumes", ()):
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]
            if source.startswith("./"):
                assert source == "./models" or (DOCKER / source).exists(), source
            else:
                assert source in compose["volumes"], source
    for file in (compose, over):
        assert (ROOT / file["services"]["palmette"]["build"]["dockerfile"]).is_file()


def test_the_servers_command_and_environment_are_ones_it_knows() -> None:
    compose, _ = compose_files()
    service = compose["services"]["palmette"]
    command = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", part) for part in service["command"]]
    for image in IMAGES:
        entry = serve_arguments(image)[:-2]  # compose's command stands in for CMD
        assert parsed([*entry, *command])["model"] == "smollm2"
    params = typer.main.get_command(cli).commands["serve"].params  # type: ignore[attr-defined]
    known = {param.envvar for param in params if param.envvar}
    assert set(service["environment"]) <= known
    assert service["environment"]["PALMETTE_API_KEY"].count(" ${") == 1, "a key for clients and one for Prometheus"


def test_nothing_is_published_beyond_the_loopback() -> None:
    compose, _ = compose_files()
    for name, service in compose["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
    assert compose["networks"]["inside"]["internal"] is True


def test_a_container_is_not_killed_while_the_server_drains() -> None:
    compose, _ = compose_files()
    grace = float(compose["services"]["palmette"]["stop_grace_period"].removesuffix("s"))
    assert grace > ServerLimits().drain_timeout + 5


def test_prometheus_scrapes_what_the_server_serves() -> None:
    compose, _ = compose_files()
    (job,) = read(DOCKER / "prometheus.yml")["scrape_configs"]
    host, _, port = job["static_configs"][0]["targets"][0].partition(":")
    assert host in compose["services"]
    assert port == str(parsed(serve_arguments(IMAGES[0]))["port"])
    secret = job["authorization"]["credentials_file"].removeprefix("/run/secrets/")
    assert secret in compose["services"]["prometheus"]["secrets"]


# -- dashboards ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scraped() -> set[str]:
    """The names of all samples of a server that has served something of each kind."""
    config = ServerConfig(RuntimeConfig(cache=CacheConfig(measure_optimum=True)))
    with serving(tiny_model(), config) as served, served.client() as client:
        _use(served)
        text = client.get("/metrics").text
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def _use(served: Served) -> None:
    with served.client() as client:
        body = {"prompt": "Once upon", "max_tokens": 4, "ignore_eos": True}
        for _ in range(2):  # the second one finds something to share
            assert client.post("/v1/completions", json=body).status_code == 200
        assert client.post("/v1/completions", json={**body, "max_tokens": 2000, "timeout": 0.02}).status_code == 504


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_a_dashboard_asks_only_for_metrics_that_there_are(path: Path, scraped: set[str]) -> None:
    board = json.loads(path.read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    assert len(expressions) >= 20
    asked = set()
    for expression in expressions:
        names = re.findall(r"((?:palmette:|process_)\w+)\{", expression)
        assert names, expression
        assert expression.count("(") == expression.count(")"), expression
        asked |= set(names)
    variables = [v["query"]["query"] for v in board["templating"]["list"] if v["type"] == "query"]
    asked |= {name for query in variables for name in re.findall(r"palmette:\w+", query)}
    assert asked <= scraped, asked - scraped


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_a_dashboard_is_laid_out(path: Path) -> None:
    board = json.loads(path.read_text(encoding="utf-8"))
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, f"{panel['title']} covers another panel"
        assert at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


def test_grafana_finds_its_data_and_its_dashboards() -> None:
    compose, _ = compose_files()
    (source,) = read(DOCKER / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"].partition("//")[2].partition(":")[0] in compose["services"]
    (provider,) = read(DOCKER / "grafana/provisioning/dashboards/palmette.yaml")["providers"]
    mounts = [volume.split(":")[:2] for volume in compose["services"]["grafana"]["volumes"]]
    assert ["./grafana/dashboards", provider["options"]["path"]] in mounts
    assert DASHBOARDS


def test_the_checks_find_what_they_look_for() -> None:
    with pytest.raises(ValueError, match="No closing quotation"):
        shlex.split(instructions("RUN echo 'a \\\n  b")[0].rest)
    with pytest.raises(Exception, match="No such option"):
        parsed(["--no-such-option"])


def test_the_page_for_operators_names_each_flag_limit_and_image() -> None:
    page = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
    params = typer.main.get_command(cli).commands["serve"].params  # type: ignore[attr-defined]
    names = {param.opts[0] for param in params if param.opts[0] not in ("--log-level", "--option")}
    names |= {param.envvar for param in params if param.envvar}
    names |= {field.name for field in fields(ServerLimits)}
    missing = {name for name in names if f"`{name}`" not in page and f"`{name} " not in page}
    assert not missing
    for path in re.findall(r"`?(docker/[\w./-]+\w)", page):
        assert (ROOT / path).exists() or path == "docker/models", path
