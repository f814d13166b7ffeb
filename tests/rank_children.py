"""Ranks of a group, as children that can be killed; free of pytest, so that children start fast."""

import json
import os

import numpy as np
import torch
import training_children
from learner_fixtures import UNIT, make_batch, make_config, make_policy, noise_of
from safetensors.torch import save_file

from qtransformer import ranks, training
from qtransformer.baselines import LEARNERS
from qtransformer.config import RunError

UPDATES, SEGMENTS = 5, 6


def as_rank(rank, world_size, port, function, *arguments):
    """Calls the function as torchrun's process number `rank` would."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    function(rank, *arguments)


def train(rank, log, out, said, changes, reports):
    """Runs the training command; rank 0, which alone writes, reports."""
    training_children.train(log, out, said, changes, reports=None if rank else reports)


def train_spoilt(rank, *arguments):
    """Runs the training command on a log one of whose rewards is spoilt after all checks."""
    build = training.build

    def build_and_spoil(config, dataset):
        learner, sampler, info = build(config, dataset)
        sampler._steps["rewards"][7] = np.nan
        return learner, sampler, info

    training.build = build_and_spoil
    train(rank, *arguments)


def exchange(rank, folder):
    """Lets everything be exchanged once, and writes down what came."""
    with ranks.joined("cpu"):
        one, two = torch.full((2, 2), float(rank + 1)), torch.tensor(10.0 * (rank + 1))
        ranks.add([one, two])
        mine = torch.tensor([rank, 7 + rank])
        ranks.copy_from_first([mine])
        with ranks.first_goes_first():
            is_there = (folder / "made").exists()
            (folder / "made").touch()
        ranks.require_same("a thing", "the same")
        refusal = ""
        try:
            ranks.require_same("a thing", f"that of {rank}")
        except RunError as error:
            refusal = str(error)
        found = {
            "sums": [one.tolist(), two.item()],
            "gathered": ranks.gathered(torch.tensor([[rank + 0.5], [rank + 0.75]])).tolist(),
            "largest": [ranks.largest(rank), ranks.largest(-rank), ranks.largest(not rank)],
            "copied": mine.tolist(),
            "found": is_there,
            "refusal": refusal,
            "who": [ranks.rank(), ranks.local_rank(), ranks.world_size()],
        }
        print("nobody but rank 0 prints")
        (folder / f"{rank}.json").write_text(json.dumps(found))


def fail(rank, said, how):
    """Lets a rank end early: by a mistake of its own, of all, or at once; the other waits for it."""
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    try:
        with ranks.joined("cpu"):
            ranks.wait()
            if how == "all" or (how == "one" and rank == 1):
                raise RunError("the disk is full")
            if how == "killed" and rank == 1:
                os._exit(9)
            ranks.wait()
    except RunError as error:
        os.write(2, f"{error}\n".encode())
        raise SystemExit(2) from error


def update(rank, folder):
    """Trains a learner of each algorithm on this rank's share of batches, and writes down what became of it."""
    torch.set_num_threads(1)
    with ranks.joined("cpu"):
        for algorithm in LEARNERS:
            save_file(updated(algorithm, rank, ranks.world_size()), folder / f"{algorithm}_{rank}.safetensors")


def updated(algorithm, rank=0, world_size=1, **changes):
    """Returns policy, figures of the last update and the gradients of a learner after some updates."""
    config = make_config(algorithm=algorithm, **changes)
    policy = make_policy(config)
    learner = LEARNERS[algorithm](policy, config, UNIT, noise_of(policy))
    share = SEGMENTS // world_size
    figures = {}
    for seed in range(UPDATES):
        figures = learner.update(uneven(seed).map(lambda array: array[rank * share : (rank + 1) * share]))
    weights, _ = learner.state()
    gradients = {name: each.grad for name, each in policy.named_parameters() if each.grad is not None}
    parts = {"weights": weights, "figures": figures, "gradients": gradients}
    return {f"{kind}.{name}": value.clone() for kind, each in parts.items() for name, value in each.items()}


def uneven(seed):
    """Segments of which the first ones hold far fewer real steps, known targets and returns than the last ones."""
    is_valid = np.ones((SEGMENTS, 7), bool)
    is_valid[0, 1:] = is_valid[1, 2:] = is_valid[2, 5:] = False
    has_successor = is_valid.copy()
    has_successor[1, 1] = False
    batch = make_batch(SEGMENTS, num_steps=7, seed=seed, is_valid=is_valid, has_successor=has_successor)
    batch.monte_carlo_returns[:3] *= 0.2
    return batch
