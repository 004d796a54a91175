"""Uploads in processes of their own, as a user's are: huggingface_hub reads HF_ENDPOINT once, when it is imported."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def told(self) -> dict[str, Any]:
        """What it returned; a test that gets here after a failure sees the failure."""
        assert self.status == 0, self.err
        return dict(json.loads(self.out))

    @property
    def told_text(self) -> str:
        """What it returned, where that is a text."""
        assert self.status == 0, self.err
        return str(json.loads(self.out))


def environment(url: str, home: Path, token: str = "", **more: str) -> dict[str, str]:
    """A machine with an empty Hugging Face home and this hub as the only one."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {
        **kept,
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": url,
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        # Ten seconds by default, in which a busy machine may not answer itself.
        "HF_HUB_ETAG_TIMEOUT": "3600",
        "HF_HUB_DOWNLOAD_TIMEOUT": "3600",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        **more,
    }


def start(env: dict[str, str], what: str, **asked: Any) -> subprocess.Popen[str]:
    """Begin `upload`, `remote_state` or `join_collection` with these arguments, in a new process."""
    command = [
        sys.executable,
        "-m",
        "tests.publish.hub.client",
        what,
        json.dumps(asked, default=str),
    ]
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def call(env: dict[str, str], what: str, **asked: Any) -> Done:
    process = start(env, what, **asked)
    out, err = process.communicate()
    return Done(status=process.returncode, out=out, err=err)


class Worker:
    """One process that is asked again and again: starting one takes longer than most uploads here."""

    def __init__(self, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.publish.hub.client", "serve"],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, token: str, what: str, **asked: Any) -> Done:
        assert self._process.stdin and self._process.stdout
        line = json.dumps({"token": token, "what": what, "asked": asked}, default=str)
        print(line, file=self._process.stdin, flush=True)
        return Done(**json.loads(self._process.stdout.readline()))

    def stop(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def _act(what: str, asked: dict[str, Any]) -> int:
    from dualign.errors import PublishError
    from dualign.publish.hub.collections import join_collection
    from dualign.publish.hub.upload import remote_state, upload

    try:
        if what == "upload":
            folder, delete = Path(asked.pop("folder")), tuple(asked.pop("delete", ()))
            returned: Any = upload(folder, delete=delete, **asked)
        elif what == "join_collection":
            print(json.dumps(join_collection(**asked)))
            return 0
        else:
            returned = remote_state(**asked)
    except PublishError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(asdict(returned)))
    return 0


def _serve() -> None:
    """Answer each line of standard input, with all that was written meanwhile in the answer."""
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        os.environ["HF_TOKEN"] = asked["token"]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            status = _act(asked["what"], asked["asked"])
            sys.stdout.flush()
            sys.stderr.flush()
            out.seek(0)
            err.seek(0)
            done = Done(status=status, out=out.read().decode(), err=err.read().decode())
        print(json.dumps(asdict(done)), file=answers, flush=True)


def _main(arguments: list[str]) -> int:
    import logging

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what `make test &` starts
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("dualign").setLevel(logging.INFO)
    if arguments[0] == "serve":
        _serve()
        return 0
    return _act(arguments[0], json.loads(arguments[1]))


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
