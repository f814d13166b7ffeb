"""The recording command in a child process that can be killed; free of pytest, so that children start fast."""

import os

from dataset_fixtures import POINT_ID

from qtransformer.cli import main
from qtransformer_datasets.recorder import Recorder

EPISODES = 4
STARTED, CLOSED = -1, -2  # what the child reports beside the numbers of finished episodes


def run_command(out, reports):
    """Runs the command, and reports what it has finished as soon as it is."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    record, close = Recorder.record, Recorder.close

    def reporting_record(self, episode):
        record(self, episode)
        reports.send(self.num_episodes)

    def reporting_close(self):
        close(self)
        reports.send(CLOSED)

    Recorder.record, Recorder.close = reporting_record, reporting_close
    reports.send(STARTED)
    changes = ["--env-id", POINT_ID, "--import", "dataset_fixtures", "--episodes", str(EPISODES), "--num-workers", "1"]
    raise SystemExit(main(["collect", "--out", str(out), *changes]))
