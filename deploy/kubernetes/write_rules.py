"""Writes base/rules.yaml, which is deploy/prometheus' rules for the Prometheus operator.

python deploy/kubernetes/write_rules.py
"""

import re
from pathlib import Path

_HERE = Path(__file__).parent
_RULES = _HERE.parent / "prometheus"
_HEAD = """\
# Written by deploy/kubernetes/write_rules.py from deploy/prometheus; what you change here it writes over.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: foretell
spec:
  groups:
"""


def manifest() -> str:
    """The whole file."""
    found = _HEAD
    for name in ("recording.yml", "alerts.yml"):
        _, _, groups = (_RULES / name).read_text().partition("groups:\n")
        found += re.sub(r"^(?=.)", "  ", groups, flags=re.MULTILINE)
    return found


if __name__ == "__main__":
    (_HERE / "base" / "rules.yaml").write_text(manifest())
