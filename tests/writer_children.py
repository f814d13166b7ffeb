"""Two ranks that write a checkpoint together; free of pytest, so that children start fast."""

import os
import resource
import signal

import torch
from safetensors.torch import save_file

from qtransformer import checkpoint_writer, ranks
from qtransformer.checkpoint_writer import CheckpointWriter
from qtransformer.config import RunError

WEIGHTS = {"weight": torch.arange(6.0).view(2, 3)}
TRAINING = {f"moment.{number}": torch.full((1000,), float(number)) for number in range(5)}


def write(rank, folder, how):
    """Writes checkpoint 1, and then 2, at which something may go wrong with rank 1; says how this rank ended."""
    try:
        with ranks.joined("cpu"), CheckpointWriter() as writer:
            save(writer, folder, 1)
            writer.wait()
            if rank == 1:
                spoil(how)
            save(writer, folder, 2)
            while how == "killed":
                ranks.wait()  # as the loop does at every update
            writer.wait()
    except (RunError, SystemExit) as error:
        (folder / f"{rank}.said").write_text(f"{type(error).__name__}: {error}")


def save(writer, folder, step):
    """Saves tensors that no later change reaches."""
    weights, training = ({name: each + step for name, each in tensors.items()} for tensors in (WEIGHTS, TRAINING))
    own = {"figures": torch.tensor([float(ranks.rank())])}
    writer.save(folder, {"step": step}, weights, training, own)
    for each in (*weights.values(), *training.values()):
        each.zero_()


def spoil(how):
    """Lets the next file of this process fail, or the process die while it writes."""
    if how == "full":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    if how == "killed":
        checkpoint_writer.write_files = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)


def leave_notes(rank, folder):
    """Lets rank 1 leave a note that rank 0 reads, and rank 0 wait in vain for another."""
    with ranks.joined("cpu"):
        notes = ranks.Notes("test")
        if rank:
            notes.leave("a", "what é")
        else:
            assert notes.read("a") == "what é"
            notes.stop_waiting()
            try:
                notes.read("b")
            except ranks.RankLostError:
                save_file({}, folder / "gave up")
        ranks.wait()
