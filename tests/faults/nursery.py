"""A process that has imported everything, and forks a run of an experiment for each line it reads.

Importing takes longer than a small run, and the tests kill many. A run is a process of its own
with a backend of its own: nothing of JAX runs before the fork. The protocol is lines of JSON:
{"experiment": name, "arguments": [...], "log": path} in, {"pid": n} out, and after the end of the
process {"status": exit status, or minus the signal}.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.figure  # noqa: F401  what runs would import later
from orbax.checkpoint import v1 as _  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments import (bayesian_optimization, common, darts, darts_rnn, enas,  # noqa: E402
                         evolution, local_search, nasrl, pareto, pnas_table, ppo, random_search,
                         reinforce, retrain)

MODULES = (bayesian_optimization, darts, darts_rnn, evolution, local_search, nasrl,
           pareto, pnas_table, ppo, random_search, reinforce, retrain)


def main_of(module) -> Callable[[list[str]], int]:
    return lambda arguments: common.main(
        module.Config, module.PRESETS, module.SMOKE, module.run, arguments)


MAINS = {module.__name__.rpartition(".")[2]: main_of(module) for module in MODULES} | {
    "enas": enas.main}


def run(request) -> int:
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream in (1, 2):
        os.dup2(log, stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return MAINS[request["experiment"]](request["arguments"])


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = run(request)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(json.dumps({"pid": pid}), flush=True)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps({"status": status}), flush=True)


if __name__ == "__main__":
    main()
