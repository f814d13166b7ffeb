"""The training command in a child process that can be killed; free of pytest, so that children start fast."""

import os
import resource
import signal
import sys

import torch._dynamo  # noqa: F401  (an optimizer imports it, which takes seconds: the fork server does it once)

from qtransformer import training  # noqa: F401  (the command imports it when it runs)
from qtransformer.cli import main
from qtransformer.provenance import git_revision, versions

git_revision()  # looked up once for all children
versions()

STEPS = 12
SMALL = ["--steps", STEPS, "--batch-size", 4, "--log-every", 5, "--checkpoint-every", 2, "--num-bins", 4, "--width", 16]


def train(log, out, said, changes=(), most_bytes=None, reports=None):
    """Runs the command; what it says goes to the file `said`. No file can grow beyond `most_bytes`.

    With `reports`, it sends word of each thing that it is about to do to a file of its run.
    """
    if reports is not None:
        sys.addaudithook(lambda event, about: _report(event, about, str(out), reports))
    words = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(words, 1)
    os.dup2(words, 2)
    if most_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing fails as on a full disk: with an error
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
    raise SystemExit(main([str(each) for each in ("train", "--dataset", log, "--out", out, *SMALL, *changes)]))


def _report(event, about, out, reports):
    if (event == "open" or event.startswith("os.")) and about and str(about[0]).startswith(out):
        reports.send_bytes(b".")
