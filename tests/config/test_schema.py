"""Every key of the configuration says what it means, and what it takes is what the code behind it takes."""

import dataclasses
import json
import re

import pytest
import yaml

from kernels import attention
from models import config as models
from sweep.cli import main
from sweep.common.checkout import CONF
from sweep.config import schema
from sweep.config.compose import compose, section
from sweep.config.describe import all_keys, json_schemas


def test_the_choices_of_the_model_and_of_the_backend_are_those_of_their_code():
    assert (schema.MLPS, schema.NORMS, schema.POSITIONS) == (models.MLPS, models.NORMS, models.POSITIONS)
    assert set(schema.BACKENDS) == {"auto", *attention.BACKENDS}


def test_every_key_has_a_meaning_and_the_default_that_compose_gives():
    keys = all_keys()
    assert all(facts.meaning for facts in keys), [facts.key for facts in keys if not facts.meaning]
    defaults = {facts.key: facts.default for facts in keys}
    assert defaults["cluster.slurm.prepare.time"] == "8h"
    assert defaults["cluster.slurm.collector.time"] == "1h"
    composed = compose([])
    assert (defaults["optim.lr_base"], defaults["seq_len"]) == (composed.optim.lr_base, composed.seq_len)


def test_the_committed_json_schemas_are_up_to_date():
    """`python -m sweep config --schema` writes them."""
    for name, made in json_schemas().items():
        assert json.loads((CONF / "schema" / name).read_text()) == json.loads(json.dumps(made)), name
    assert {path.name for path in (CONF / "schema").iterdir()} == set(json_schemas())


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_a_file_of_conf_names_its_schema_and_keeps_to_it(path):
    lines = path.read_text().splitlines()
    if path.parent.name == "sweep":
        assert lines.pop(0) == "# @package _global_"
    named = path.parent / lines[0].removeprefix("# yaml-language-server: $schema=")
    kind = path.parent.name if path.parent != CONF else "train"
    assert named.resolve() == CONF / "schema" / f"{kind}.json"
    unknown = unknown_keys(yaml.safe_load(path.read_text()), json.loads(named.read_text()))
    assert not unknown
    assert unknown_keys({"misspelt": 1}, json.loads(named.read_text())) == ["misspelt"]


def unknown_keys(value, schema, above=""):
    """Dotted keys of a file that its JSON Schema does not have, and values outside of a key's choices."""
    if not isinstance(value, dict) or "properties" not in schema:
        allowed = schema.get("enum")
        return [f"{above}={value}"] if allowed and value not in allowed else []
    return [
        found
        for name, item in value.items()
        for found in (
            unknown_keys(item, schema["properties"][name], f"{above}.{name}".lstrip("."))
            if name in schema["properties"]
            else [f"{above}.{name}".lstrip(".")]
        )
    ]


def test_the_verb_lists_a_key_a_section_or_all(capsys):
    assert main(["config", "model.norm"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"model\.norm=rmsnorm +rmsnorm\|layernorm +normalisation.*", line)
    assert main(["config", "cluster.slurm", "--json"]) == 0
    rows = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert {"cluster.slurm.gpus", "cluster.slurm.prepare.cpus"} <= {row["key"] for row in rows}
    assert main(["config", "model.nrom"]) == 2
    assert "model.nrom: unknown key; did you mean model.norm?" in capsys.readouterr().err


def test_plan_shows_the_resolved_config(capsys):
    assert main(["plan", "sweep=lr", "seed=range(2)", "optim.beta1=0.5", "--cfg"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["optim"]["beta1"], shown["batch"]["sequences"], shown["eval"]["first_step"]) == (0.5, 8, 8)
    assert shown["sweep"]["axes"]["seed"] == "0,1"
    assert shown["sweep"]["axes"]["budget.tokens"] == "1M"


ROOTS = [path for path in sorted(CONF.glob("*/*.yaml")) if "defaults" not in (yaml.safe_load(path.read_text()) or {})]
INSTRUCTIVE = {"cluster.slurm.partition"}  # the first key that a site gives
IDENTITY = ("name", "source", "scheduler")  # say which file this is


@pytest.mark.parametrize("path", ROOTS, ids=lambda path: str(path.relative_to(CONF)))
def test_a_default_stands_in_the_schema_only(path):
    """A file that builds on no other says what differs."""
    written = yaml.safe_load(path.read_text()) or {}
    source = written.get("source", "")
    defaults = {facts.key: facts.default for facts in all_keys() if not facts.sources or source in facts.sources}
    repeated = {
        key
        for key, value in flat(written, path.parent.name)
        if key in defaults and value == defaults[key] and key.rpartition(".")[2] not in IDENTITY
    }
    assert repeated <= INSTRUCTIVE


def flat(value, above):
    """(dotted key, value) of every leaf."""
    if not isinstance(value, dict):
        return [(above, value)]
    return [leaf for name, item in value.items() for leaf in flat(item, f"{above}.{name}")]


def test_the_examples_in_the_slurm_file_are_valid():
    text = (CONF / "cluster" / "slurm.yaml").read_text()
    given = yaml.safe_load(re.sub(r"^  # (?=\w+: )", "  ", text, flags=re.MULTILINE))["slurm"]
    assert set(given) == {field.name for field in dataclasses.fields(schema.SlurmSection)}
    assert section("cluster", {"slurm": given}).slurm.collector.time == "2h"
