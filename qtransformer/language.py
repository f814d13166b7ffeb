"""A language model that encodes instructions, where a run was trained with one: a sentence-transformers folder.

Special about this file: such a folder may be a stranger's, so that only parts are loaded that need neither code of the
folder's nor pickled weights, and nothing is fetched. Each text is encoded alone, by one thread's arithmetic: its vector
depends on nothing else. Controllers need none of this: the vectors of the log's instructions travel with the policy.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from qtransformer.config import RunError
from qtransformer.deploy.controller import ControllerError, text_encoder
from qtransformer.files import sha256

_PARTS = {"Transformer": True, "Pooling": False, "Dense": True, "Normalize": False}  # whether they have weights
_READ = (".json", ".txt", ".model", ".safetensors")  # what the vectors depend on


class LanguageModel:
    """The model in a local folder, loaded when it is asked for the first time."""

    def __init__(self, folder: Path) -> None:
        """Looks at the folder, and loads nothing.

        Raises:
            RunError: it holds no such model, or one that needs code or a pickle.
        """
        self.folder = folder
        for place, kind in _parts(folder):
            name = kind.rpartition(".")[2]
            if not kind.startswith("sentence_transformers.") or name not in _PARTS:
                raise RunError(
                    f"--language {folder}: parts of the model must be {', '.join(_PARTS)} of sentence_transformers, "
                    f"got {kind}, which may be any code; choose another model"
                )
            if _PARTS[name] and not any(place.glob("*.safetensors")):
                raise RunError(
                    f"--language {folder}: {place} must hold weights in safetensors, got none; pickled ones (.bin) are "
                    "never opened: save the model again with safetensors"
                )

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of all that the vectors depend on, by name and content."""
        files = sorted(each for each in self.folder.rglob("*") if each.suffix in _READ and each.is_file())
        listed = [f"{each.relative_to(self.folder).as_posix()} {sha256(each)}" for each in files]
        return hashlib.sha256("\n".join(listed).encode()).hexdigest()

    def encode(self, text: str) -> Float[np.ndarray, " size"]:
        """Returns the vector of a text, float32.

        Raises:
            RunError: the package is not there, or cannot load the model.
        """
        import torch

        with torch.random.fork_rng(devices=[]):  # a model that is loaded draws weights first
            return np.asarray(self._model.encode([text], show_progress_bar=False)[0], np.float32)

    @cached_property
    def _model(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise RunError(f"--language needs a package ({error}); pip install 'qtransformer[language]'") from error
        try:
            return SentenceTransformer(
                str(self.folder),
                device="cpu",
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
        except Exception as error:  # of four libraries, each with kinds of its own
            said = " ".join(str(error).split())[:200]
            raise RunError(f"--language {self.folder}: cannot be loaded ({said}); save the model again") from error


def encoded(vector: Float[np.ndarray, " size"]) -> str:
    """Returns the numbers as `controller.InstructionTable` reads them."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def run_encoder(info: Mapping[str, Any]) -> Callable[[Any], np.ndarray]:
    """Returns what encodes the instructions of the run that checkpoint.json describes.

    It raises ControllerError for what the run's log did not know; but where a language model was used, and is still in
    its folder, it encodes that, too.
    """
    known = text_encoder(info)
    return known.encode if info.get("language") is None else _BeyondTable(info, known.encode)


class _BeyondTable:
    """The table of a run, and for other texts the model that made it."""

    def __init__(self, info: Mapping[str, Any], encode: Callable[[Any], np.ndarray]) -> None:
        self._folder, self._fingerprint = Path(info["config"]["data"]["language"]), info["language"]["fingerprint"]
        self._encode, self._others = encode, dict[str, np.ndarray]()

    def __call__(self, text: Any) -> np.ndarray:
        if isinstance(text, str) and text in self._others:
            return self._others[text]
        try:
            return self._encode(text)
        except ControllerError as error:
            if not isinstance(text, str):
                raise
            try:
                self._others[text] = self._model.encode(text)
            except RunError as reason:
                raise ControllerError(f"{error}; nor can it be encoded here: {reason}", error.reason) from reason
            return self._others[text]

    @cached_property
    def _model(self) -> LanguageModel:
        model = LanguageModel(self._folder)
        if model.fingerprint != self._fingerprint:
            raise RunError(f"--language {self._folder}: holds another model than at the training; bring that one back")
        return model


def _parts(folder: Path) -> list[tuple[Path, str]]:
    """Returns the folder and the type of each part of the model.

    Raises:
        RunError: there is no list of them that can be read.
    """
    try:
        listed = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        parts = [(folder / each["path"], str(each["type"])) for each in listed]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"--language {folder}: must be the folder of a sentence-transformers model, with modules.json "
            f"({' '.join(str(error).split())[:100]}); fetch one, and save it there with its method `save`"
        ) from error
    if not parts or any(not place.resolve().is_relative_to(folder.resolve()) for place, _ in parts):
        raise RunError(f"--language {folder}: modules.json must list parts inside the folder; choose another model")
    return parts
