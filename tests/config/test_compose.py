"""What people write is taken as they meant it, or refused with the key, the value and what would be valid."""

import itertools
import math
import shutil

import pytest
from omegaconf import OmegaConf

from sweep.common.checkout import CONF
from sweep.common.errors import UserError
from sweep.config.compose import compose, compose_untyped, section
from sweep.config.schema import Bucket, RunOptions, buckets
from sweep.plan.grid import Composed


def refused(*overrides):
    with pytest.raises(UserError) as caught:
        compose(list(overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_defaults():
    config = compose([])
    assert (config.seed, config.seq_len, config.precision) == (0, 256, "auto")
    assert config.data.source == "pysource"
    assert config.schedule.name == "wsd"
    assert config.model.params is None
    assert config.model.ladder[0] == [1, 8, 1]
    assert config.run == RunOptions()
    assert config.sweep.axes == {}


def test_values_and_groups_are_laid_over():
    config = compose(
        ["model=gpt2", "model.params=1M", "budget.flops=1e15", "schedule=cosine", "run.threads=3", "optim.lr=1e-3"]
    )
    assert (config.model.name, config.model.tied, config.model.params) == ("gpt2", True, "1M")
    assert float(config.budget.flops) == 1e15
    assert config.budget.tokens is None
    assert (config.schedule.name, config.schedule.final_lr_fraction) == ("cosine", 0.1)
    assert config.run.threads == 3
    assert config.optim.lr == 1e-3


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "sweep").glob("*.yaml")))
def test_every_sweep_that_is_shipped_composes(name):
    config = compose([f"sweep={name}"])
    assert config.sweep.name == name
    assert config.sweep.axes


def test_every_option_of_every_group_composes():
    groups = ("model", "data", "optim", "schedule", "run", "cluster")
    options = [sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in groups]
    assert all(options), "a group without an option"
    for choice in itertools.zip_longest(*options):
        compose([f"{group}={name}" for group, name in zip(groups, choice, strict=True) if name])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.dept=3", ["model.dept=3: unknown key", "did you mean model.depth?", "valid keys: name, params"]),
        ("optim.learning_rate=1", ["optim.learning_rate=1: unknown key", "lr_base"]),
        ("sed=3", ["sed=3: unknown key", "did you mean seed?"]),
        ("optin.lr=3", ["optin.lr=3: unknown key", "did you mean optim?"]),
        ("+model.colour=red", ["model.colour", "unknown key", "valid keys"]),
        ("data.vocab=3", ["data.vocab=3: unknown key"]),
        ("data.tokenizer.size=3", ["data.tokenizer.size=3: unknown key; valid keys: kind, vocab_size, path"]),
        ("data.vocab_size=3", ["data.vocab_size=3: unknown key; valid keys: ", "scope"]),
        ("data=pile", ["data=pile: no such option", "conf/data/ has", "pysource, text"]),
        ("sweep=mine", ["sweep=mine: no such option", "conf/sweep/ has", "default"]),
        ("schedule=linear", ["schedule=linear", "cosine, wsd"]),
        ("model.params", ["model.params", "key=value"]),
        ("model.params=[", ["model.params=["]),
        ("sweep.where=[tokens > 5]", ["not an override; quote a value", "\"sweep.where=['…']\""]),
        ("sweep.where=tokens", ["sweep.where=tokens: must be a list; write \"sweep.where=['tokens']\""]),
        ("model=3", ["model=3: no such option"]),
    ],
)
def test_unknown_keys_and_options_are_refused_in_one_line(override, said):
    message = refused(override)
    for part in said:
        assert part in message


GRID = """# @package _global_
sweep:
  name: mine
  axes:
    model.params: 3k,12k
    budget.flops: 3e10
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GRID + "optim: {lr: 3e-3\n", "conf/sweep/mine.yaml:8: not YAML: expected ',' or '}', but got"),
        (GRID + "batch:\n\tsequences: 8\n", "conf/sweep/mine.yaml:8: not YAML: found character '\\t' that cannot"),
        (GRID + "seed: 1\nseed: 2\n", "conf/sweep/mine.yaml:8: not YAML: found duplicate key seed"),
        (GRID + "  where: [{epochs: 5}]\n", "sweep.where: {'epochs': 5}: not a condition; write one such as"),
        (GRID + "  where: epochs < 5\n", "sweep.where=epochs < 5: must be a list; write \"sweep.where=['epochs"),
        (GRID + "batch: 7\n", "batch=7: is a section; give its keys, such as batch.sequences"),
        (GRID + "seqlen: 64\n", "seqlen: unknown key; did you mean seq_len?"),
        (GRID + "seq_len: ${length}\n", "Interpolation key 'length' not found"),
        (GRID.partition("\n")[2], "conf/sweep/mine.yaml: must begin with the line `# @package _global_`"),
        (GRID.partition("axes")[0] + "axes: [a]\n", "sweep: a list stands where lines of `key: value` belong"),
        (GRID.partition("axes")[0] + "axes: a=1\n", "sweep.axes=a=1: must be lines of `key: value`"),
        (GRID.replace(" 3k,12k", ""), "sweep.axes.model.params=None: no values of one key; write such as"),
        (GRID + "defaults: [{override /dta: text}]\n", "conf/sweep/mine.yaml: its defaults override dta, which is no"),
        (GRID + "defaults: [{data: text}]\n", "conf/sweep/mine.yaml: its defaults name sweep/data/text, which is not"),
        (
            GRID + "defaults: [{override /data: txt}]\n",
            "data=txt: no such option; did you mean data=text? conf/data/ has",
        ),
    ],
)
def test_a_slip_in_a_file_is_one_line(tmp_path, monkeypatch, text, said):
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    (conf / "sweep" / "mine.yaml").write_text(text)
    monkeypatch.setattr("sweep.config.compose.CONF", conf)
    assert refused("sweep=mine").startswith(said)


@pytest.fixture(scope="module")
def composed():
    return compose_untyped([])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("schedule.name=linear", ["schedule.name=linear: must be one of wsd, cosine"]),
        ("model.depth=deep", ["model.depth", "deep"]),
        ("batch.sequences=1.5", ["batch.sequences=1.5: must be a whole number"]),
        ("model.tied=perhaps", ["model.tied=perhaps: must be true or false"]),
        ("batch.sequences=0", ["batch.sequences=0: must be at least 1"]),
        ("seq_len=1", ["seq_len=1: must be at least 2"]),
        ("seq_len=long", ["seq_len=long: must be a whole number"]),
        ("seed=-1", ["seed=-1: must not be negative"]),
        ("seed=true", ["seed=True: must be a whole number"]),
        ("precision=fp8", ["precision=fp8: must be one of auto, fp32, bf16"]),
        ("run.device=tpu", ["run.device=tpu: must be one of auto, cpu, cuda"]),
        ("run.workers=many", ["run.workers=many: must be auto or a number"]),
        ("run.workers=0", ["run.workers=0"]),
        ("run.workers=true", ["run.workers=True"]),
        ("run.threads=0", ["run.threads=0: must be at least 1"]),
        ("run.micro_batch_sequences=0", ["run.micro_batch_sequences=0: must be at least 1"]),
        ("run.checkpoint_seconds=-1", ["run.checkpoint_seconds=-1"]),
        ("run.checkpoint_seconds=often", ["run.checkpoint_seconds", "often"]),
        ("eval.sequences=0", ["eval.sequences=0: must be at least 1"]),
        ("eval.sample_tokens=-1", ["eval.sample_tokens=-1: must be at least 0"]),
        ("optim.lr=0", ["optim.lr=0.0: must be positive"]),
        ("optim.lr=nan", ["optim.lr=nan: must be positive"]),
        ("optim.lr=inf", ["optim.lr=inf"]),
        ("optim.beta1=1.5", ["optim.beta1=1.5"]),
        ("optim.beta2=1", ["optim.beta2=1"]),
        ("optim.weight_decay=-1", ["optim.weight_decay=-1.0: must be at least 0"]),
        ("schedule.decay_fraction=1.2", ["schedule.decay_fraction=1.2: must be between 0 and 1"]),
        ("schedule.final_lr_fraction=-0.1", ["schedule.final_lr_fraction=-0.1: must be between 0 and 1"]),
        ("cluster.mfu=0", ["cluster.mfu=0"]),
        ("cluster.dollars_per_device_hour=-1", ["cluster.dollars_per_device_hour=-1"]),
        ("data.source=web", ["data.source=web: must be one of pysource, text, hub, markov"]),
    ],
)
def test_bad_values_are_refused_in_one_line(composed, override, said):
    """Laid over a composed config, as a grid does it: composing anew takes 65 ms each."""
    with pytest.raises(UserError) as caught:
        Composed(composed).with_values([override])
    message = str(caught.value)
    assert "\n" not in message
    for part in said:
        assert part in message


@pytest.mark.parametrize("key", ["run.stack", "wandb.mode"])
def test_off_in_a_file_is_the_word_though_yaml_reads_it_as_false(key):
    name, leaf = key.split(".")
    written = OmegaConf.create(f"{leaf}: off")
    assert written[leaf] is False
    assert getattr(section(name, written), leaf) == "off"
    assert written[leaf] is False
    assert getattr(compose([f"{key}=off"]), name) == section(name, written)


def test_a_section_checks_itself_however_it_is_made():
    with pytest.raises(UserError, match=r"run\.threads=0: must be at least 1"):
        RunOptions(threads=0)
    assert RunOptions(checkpoint_seconds=math.inf)  # never but at the end
    with pytest.raises(UserError, match=r"cluster\.dollars_per_device_hour=inf: must be at least 0, and finite"):
        compose(["cluster.dollars_per_device_hour=inf"])


def test_a_section_knows_its_keys():
    with pytest.raises(UserError, match=r"run\.thread: unknown key; did you mean run.threads\?"):
        section("run", {"thread": 2})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cluster.slurm.partitoin=x", ["did you mean cluster.slurm.partition?"]),
        ("cluster.slurm.prepare.cpu=3", ["did you mean cluster.slurm.prepare.cpus?", "partition, cpus"]),
        (
            "+cluster.slurm.collector.cpu=3",
            ["+cluster.slurm.collector.cpu=3: unknown key; did you mean cluster.slurm.collector.cpus?"],
        ),
        ("cluster.scheduler=pbs", ["cluster.scheduler=pbs: must be one of local, slurm"]),
        ("cluster.slurm.cpus=0", ["cluster.slurm.cpus=0: must be at least 1"]),
        ("cluster.slurm.time_margin=0.5", ["cluster.slurm.time_margin=0.5: must be at least 1"]),
        ("cluster.slurm.memory_gib=lots", ["cluster.slurm.memory_gib=lots: must be auto, null"]),
        ("cluster.slurm.max_dollars=lots", ["cluster.slurm.max_dollars=lots: must be a number or null"]),
        ("cluster.slurm.prepare.cpus=few", ["cluster.slurm.prepare.cpus=few: must be a whole number"]),
        ("cluster.slurm.setup=x", ["cluster.slurm.setup"]),
        ("cluster.slurm.environment=x", ["cluster.slurm.environment"]),
        ("cluster.slurm.environmental=x", ["did you mean cluster.slurm.environment?"]),
        ("cluster.slurm.workers=0", ["cluster.slurm.workers=0"]),
        ("cluster.slurm.time_buckets=[]", ["cluster.slurm.time_buckets=[]"]),
        ("cluster.slurm.time_buckets=[30]", ["time_buckets=30: not a time"]),
        ("cluster.slurm.time_buckets=[90s]", ["must be longer than cluster.slurm.signal_seconds=120"]),
        ("cluster.slurm.time_buckets=[{time:2h,part:x}]", ["give a time such as 2h"]),
        ("cluster.slurm.prepare.time=8", ["cluster.slurm.prepare.time=8: not a time"]),
        ("cluster.slurm.sbatch_lines=[exclusive]", ["'exclusive': give options of sbatch"]),
        ("+cluster.slurm.environment.WANDB_API_KEY=x", ["WANDB_API_KEY: a secret would be written"]),
        ("+cluster.slurm.environment.A-B=x", ["cluster.slurm.environment.A-B: not the name"]),
        ('cluster.slurm.setup=["export HF_TOKEN=hf_1"]', ["HF_TOKEN: a secret would be written"]),
    ],
)
def test_what_a_cluster_cannot_mean_is_refused_in_one_line(override, said):
    message = refused("cluster=slurm", override)
    for part in said:
        assert part in message


def test_a_key_of_slurm_beside_a_cluster_that_has_none_is_refused():
    assert "cluster.slurm.qos=x: holds for a Slurm cluster, and cluster.scheduler=local" in refused(
        "cluster.slurm.qos=x"
    )


def test_a_key_that_no_file_has_is_known_by_the_schema():
    assert compose(["cluster=slurm", "cluster.slurm.qos=x", "eval.sequences=7"]).cluster.slurm.qos == "x"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=gtp", "model=gtp: no such option; did you mean model=gpt? conf/model/ has gpt, gpt2"),
        ("sweep=defualt", "sweep=defualt: no such option; did you mean sweep=default? "),
        ("default", "default: not an override; did you mean sweep=default? write key=value"),
        ("model.norm.kind=3", "model.norm.kind=3: unknown key; model.norm has no keys below it"),
    ],
)
def test_a_misspelt_option_gets_a_guess(override, said):
    assert refused(override).startswith(said)


def test_time_buckets_are_sorted_and_may_name_where_they_run():
    chosen = compose(["cluster=slurm", "cluster.slurm.time_buckets=[2h,{time:30m,partition:short,qos:debug}]"])
    assert buckets(chosen.cluster.slurm) == [Bucket(1800, "30m", "short", "debug"), Bucket(7200, "2h")]


@pytest.mark.parametrize(
    "override",
    [
        "+cluster.slurm.environment.WANDB_API_KEY=null",
        "cluster.slurm.environment.WANDB_API_KEY=null",
        "cluster.slurm.environment={WANDB_API_KEY: null}",
    ],
)
def test_a_shells_secret_may_be_passed_on_by_name(override):
    assert compose(["cluster=slurm", override]).cluster.slurm.environment == {"WANDB_API_KEY": None}


def test_the_keys_of_data_are_those_of_the_chosen_source():
    assert "valid keys: " in refused("data=markov", "data.scope=x")
    assert "spectrum_exponent" in refused("data=markov", "data.scope=x")
    assert "valid keys: source, " in refused("data=markov", "data.tokenizer.kind=bpe")  # it has no tokenizer
