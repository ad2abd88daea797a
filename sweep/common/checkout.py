"""Where the checkout lies: the code runs from it, and its configuration is in it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
