"""What schemathesis makes up from the OpenAPI document, the server answers as the document says."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
from live_server import LiveServer


@pytest.mark.slow
@pytest.mark.skipif(find_spec("schemathesis") is None, reason="needs schemathesis")
def test_schemathesis_finds_nothing(server: LiveServer) -> None:
    url = server.url.removesuffix("/v1")
    # Whether an input or a dimension is allowed depends on the model and the format, which a schema does not say.
    options = ("--exclude-checks", "positive_data_acceptance", "--max-examples", "20", "--seed", "1")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=570)
    assert done.returncode == 0, done.stdout
    assert "No issues found" in done.stdout
    assert server.post("/v1/embeddings", {"model": "nano", "input": "x"})[0] == 200
