"""`python driver.py ADDRESS [early]`: a process that is connected to a cluster, with two actors in it; test_connect.py talks to
it by lines. With `early`, something has imported Ray before."""

import json
import os
import signal
import subprocess
import sys

from rlcore.cluster.connect import connected

if "early" in sys.argv:
    import ray


class Actor:
    def about(self) -> dict:
        import my_rewards  # a file of the current folder

        return dict(pid=os.getpid(), answer=my_rewards.ANSWER)

    def hang(self) -> dict:
        """Be as hard to end as can be: with a child, and stuck in C code that holds the interpreter's lock."""
        import re

        subprocess.Popen(["sleep", "600"])
        print(re.match(r"(a+)+$", "a" * 60 + "b"))
        return {}


signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a run does, whose step is not done yet
with connected(sys.argv[1]) as line:
    import ray

    actors = [ray.remote(Actor).options(num_cpus=0, runtime_env={"env_vars": {"MINE": "1"}}).remote() for _ in range(2)]
    print(json.dumps(dict(line=line, gcs=ray.get_runtime_context().gcs_address)), flush=True)
    for asked in sys.stdin:
        calls = [getattr(actor, asked.strip()).remote() for actor in actors]
        print(json.dumps(ray.get(calls) if asked.strip() == "about" else []), flush=True)
try:
    ray.put(1)
except ray.exceptions.RaySystemError:
    print('"a call after the end is refused"', flush=True)
