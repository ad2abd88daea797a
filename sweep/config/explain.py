"""What Hydra and YAML say of a file that they cannot read, as one line that names it and what to do."""

import re
from pathlib import Path

import yaml

from sweep.config.overrides import GROUPS, option_unknown


def explain_yaml(error: yaml.MarkedYAMLError, conf: Path) -> str:
    """Where a file stops being YAML, and what was being read."""
    at, since = error.problem_mark, error.context_mark
    if at is None:
        return " ".join(str(error).split())
    reading = f" ({error.context}{f' from line {since.line + 1}' if since else ''})" if error.context else ""
    tab = "; indent with spaces, not tabs" if error.problem and "'\\t'" in error.problem else ""
    path = Path(at.name)
    file = path.relative_to(conf.parent) if path.is_relative_to(conf) else path
    return f"{file}:{at.line + 1}: not YAML: {error.problem}{reading}{tab}"


def explain_file(text: str, conf: Path) -> str | None:
    """What Hydra says of a file of conf/, where that is one of the usual slips."""
    groups = ", ".join(group for group in sorted(GROUPS) if group != "sweep")
    choose = f"to choose of a group write `- override /GROUP: NAME`, GROUP one of {groups}"
    if match := re.search(r"In '(.+)': Could not override '(.+)'\. No match", text):
        return f"conf/{match[1]}.yaml: its defaults override {match[2]}, which is no group; {choose}"
    if match := re.search(r"In 'train': Could not find '(\w+)/([^']+)'", text):
        return option_unknown(match[1], match[2], conf / match[1])
    if match := re.search(r"In '(.+)': Could not find '([^']+)'", text):
        return f"conf/{match[1]}.yaml: its defaults name {match[2]}, which is not there; {choose}"
    if match := re.search(r"In '(.+)': ConfigTypeError .* Cannot merge DictConfig with ListConfig", text):
        return f"conf/{match[1]}.yaml: a list stands where lines of `key: value` belong"
    return None
