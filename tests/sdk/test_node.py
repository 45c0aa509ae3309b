"""The tests of the Node SDK, against the same server and held to the same protocol."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# `scripts/test` installs it where Node is new enough.
IS_INSTALLED = shutil.which("node") and (HERE / "node_modules" / "installed.json").exists()


@pytest.mark.skipif(not IS_INSTALLED, reason="the Node SDK is not installed: it needs Node 20 or newer with npm")
def test_node(base_url):
    environment = os.environ | {"BASE_URL": base_url}
    ended = subprocess.run(["node", "--test", "responses.test.mjs"], cwd=HERE, env=environment)
    assert ended.returncode == 0
