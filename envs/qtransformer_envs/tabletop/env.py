"""The tabletop suite as Gymnasium sees it: one environment for one task or several, each episode with its words.

Special about this file: physics at 250 Hz, control at 10 Hz; contacts and friction alone hold objects. The reward is 1
at success, else 0. With images or `render_mode="rgb_array"` see `rendering.py` for packages and environment variables.
It must not know the learner.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.utils import EzPickle

from qtransformer_envs.arm import ACTION_ELEMENTS, CONTROL_HZ, HOME
from qtransformer_envs.rendering import FastRenderer
from qtransformer_envs.tabletop.combinations import SPLITS, draw_objects, targets
from qtransformer_envs.tabletop.observation import (
    NUM_ROWS,
    OBJECTS_ELEMENTS,
    OBJECTS_HIGH,
    OBJECTS_LOW,
    STATE_ELEMENTS,
    STATE_HIGH,
    STATE_LOW,
    Rows,
    observe_state,
)
from qtransformer_envs.tabletop.randomization import LEVELS, randomize
from qtransformer_envs.tabletop.registry import TASKS
from qtransformer_envs.tabletop.scene import Scene

if TYPE_CHECKING:
    from qtransformer_envs.tabletop.expert import TabletopExpert
    from qtransformer_envs.tabletop.task import Task

__all__ = ["OBSERVATIONS", "TabletopEnv"]

OBSERVATIONS = ("state", "objects", "image/front", "image/wrist", "instruction")
ELEMENTS = {"state": STATE_ELEMENTS, "objects": OBJECTS_ELEMENTS}
MAX_INSTRUCTION_LENGTH = 80
JOINT_NOISE = 0.05  # rad, around HOME


class TabletopEnv(gymnasium.Env[dict[str, Any], np.ndarray], EzPickle):
    """One or several tasks, without a time limit (Gymnasium's registration adds one).

    Action (7,), in [-1, 1], as PickCube's. With `terminate_action` there is an eighth value: above 0 it ends the
    episode, and only then is there a reward, 1 if the task is done at that moment. Without it success ends the episode.
    Finite values outside are clipped; NaN and infinity raise.

    `info` holds `success`, `task`, its name, `goal`, the same words for all that mean the same, and `target`: the row
    of `objects` that shows what the words mean, the drawer's where they name no object. No observation tells that.

    Args:
        tasks: names of tasks; each episode draws one.
        observations: which of `state` (the arm), `objects` (a row each, see `observation`), `image/front`,
            `image/wrist`, `instruction` an observation has.
        image_size: pixels, height and width of the images.
        domain_randomization: level of what differs between episodes; each holds the ones below. 0: places, objects and
            words; 1: masses and friction; 2: lights and cameras.
        split: combinations of skill, kind and colour of the target: "train", "held_out" (only tasks that name an
            object) or "all".
        terminate_action: whether the policy ends the episode.
        render_mode: None or "rgb_array".
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": int(CONTROL_HZ)}  # noqa: RUF012 - Gymnasium's own form
    control_hz: float = CONTROL_HZ

    def __init__(  # noqa: PLR0913 - the settings of a Gymnasium id are keywords
        self,
        tasks: Sequence[str],
        observations: Sequence[str] = ("state", "objects", "instruction"),
        image_size: int = 128,
        domain_randomization: int = 2,
        split: str = "train",
        terminate_action: bool = False,
        render_mode: str | None = None,
    ) -> None:
        EzPickle.__init__(
            self, tasks, observations, image_size, domain_randomization, split, terminate_action, render_mode
        )
        check_choices("tasks", tasks, TASKS)
        check_choices("observations", observations, OBSERVATIONS)
        check_choices("domain_randomization", [domain_randomization], LEVELS)
        check_choices("split", [split], SPLITS)
        check_choices("render_mode", [render_mode], (None, *self.metadata["render_modes"]))
        if image_size < 1:
            raise ValueError(f"image_size ({image_size}) must be at least 1 pixel; change this setting")
        found = {name: targets(name, TASKS[name].kinds, split) for name in tasks}
        self._candidates = {name: candidates for name, candidates in found.items() if candidates}
        if not self._candidates:
            raise ValueError(
                f"split ({split!r}) must have targets for some task, got none for {', '.join(found)}: they name no "
                "object; add tasks that do, or use split='all'"
            )
        self._image_size, self._level, self._has_terminate = image_size, domain_randomization, terminate_action
        self.render_mode = render_mode
        self._names = names = [name for name in OBSERVATIONS if name in observations]
        self.observation_space = gymnasium.spaces.Dict({name: _space(name, image_size) for name in names})
        self.observation_elements = {name: ELEMENTS[name] for name in names if name in ELEMENTS}
        self.action_elements = (*ACTION_ELEMENTS, ("terminate", "1")) if terminate_action else ACTION_ELEMENTS
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (len(self.action_elements),), np.float32)
        self._renderer: FastRenderer | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the first observation and info. Draws task, objects, words, places and what the level says.

        Args:
            seed: of all draws; None: go on drawing.
            options: {"target": row of `objects`} makes that object the target instead of the one that is drawn. All
                else in the scene stays as this seed draws it; words and rule of success change.

        Raises:
            ValueError: an unknown option, or a row whose object cannot be the target.
        """
        super().reset(seed=seed)
        rng = self.np_random
        name = list(self._candidates)[rng.integers(len(self._candidates))]
        objects = draw_objects(self._candidates[name], TASKS[name].num_named, rng)
        self.scene = Scene(objects)
        randomize(self.scene, rng, self._level)
        self.task = TASKS[name](self.scene)
        self.task.arrange(rng)
        self.scene.start(HOME + rng.uniform(-JOINT_NOISE, JOINT_NOISE, 7))
        template = self.task.templates[rng.integers(len(self.task.templates))]
        self._rows = Rows(self.scene, rng.permutation(NUM_ROWS))
        if options:
            self.task = self._aimed(options)
        self.instruction, self._goal = self.task.say(template), self.task.say(self.task.templates[0])
        if self._renderer is not None:
            self._renderer.show(self.scene.model)
        return self._observe(), self._info()

    def _aimed(self, options: dict[str, Any]) -> Task:
        """Returns the task with the object in the row that `options` names as its target, or raises ValueError."""
        if set(options) != {"target"}:
            raise ValueError(f"options ({options}) must have the one name 'target'; correct them")
        task, candidates = self.task, self._candidates[self.task.name]
        aimed = {self._rows.of(item): task.aimed_at(item) for item in self.scene.items}
        fits = {
            row: each
            for row, each in sorted(aimed.items())
            if task.num_named and (each.target.kind_name, each.target.colour) in candidates and not each.is_success()
        }
        row = options["target"]
        if row not in list(fits):
            rows = ", ".join(f"{row} ({each.target.name})" for row, each in fits.items()) or "none: leave it out"
            raise ValueError(f"options['target'] ({row!r}) must be a row that this task can mean here, of {rows}")
        return fits[row]

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Advances by one control step (0.1 s).

        Args:
            action: shape (7,), or (8,) with `terminate_action`; see the class.

        Returns:
            observation, reward, terminated, truncated (False), info: see the class.

        Raises:
            ValueError: a wrong shape, NaN or infinity.
        """
        action = np.clip(self._checked(action), -1.0, 1.0)
        self.scene.move(action[:7])
        info = self._info()
        terminated = bool(action[7] > 0) if self._has_terminate else info["success"]
        info["success"] = info["success"] and terminated
        return self._observe(), float(info["success"]), terminated, False, info

    def make_expert(self, seed: int) -> TabletopExpert:
        """Returns the scripted expert of the tasks, which reads the true state of this environment."""
        from qtransformer_envs.tabletop.expert import TabletopExpert

        return TabletopExpert(self, seed)

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride] - never a list
        """Returns the front camera's picture, shape (image_size, image_size, 3), uint8; None without a render mode.

        Raises:
            RuntimeError: no graphics backend; the message tells what to install.
        """
        if self.render_mode is None:
            gymnasium.logger.warn("render() needs gymnasium.make(..., render_mode='rgb_array')")
            return None
        return self._picture("front")

    def close(self) -> None:
        """Frees the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _info(self) -> dict[str, Any]:
        target = self._rows.of(self.task.target) if self.task.num_named else self._rows.drawer
        return {"success": self.task.is_success(), "task": self.task.name, "goal": self._goal, "target": target}

    def _observe(self) -> dict[str, Any]:
        return {name: self._observation(name) for name in self._names}

    def _observation(self, name: str) -> Any:
        if name == "state":
            return observe_state(self.scene)
        if name == "objects":
            return self._rows.observe()
        return self.instruction if name == "instruction" else self._picture(name.removeprefix("image/"))

    def _picture(self, camera: str) -> np.ndarray:
        if self._renderer is None:
            self._renderer = FastRenderer(self.scene.model, self._image_size, self._image_size, camera)
        return self._renderer.render(self.scene.data, camera)

    def _checked(self, action: np.ndarray) -> np.ndarray:
        """Returns `action` as float64, of the right shape, or raises ValueError."""
        action = np.asarray(action, np.float64)
        if action.shape != self.action_space.shape:
            raise ValueError(
                f"action must have shape {self.action_space.shape}, got {action.shape}; pass one action, not a batch"
            )
        if not np.isfinite(action).all():
            index = int(np.flatnonzero(~np.isfinite(action))[0])
            raise ValueError(
                f"action[{index}] ({self.action_elements[index][0]}) must be finite, in [-1, 1], got {action[index]}; "
                "check the policy that computed it for diverged weights or a division by zero"
            )
        return action


def check_choices(setting: str, values: Any, known: Any) -> None:
    """Raises ValueError unless there are values and each is known."""
    values = [values] if isinstance(values, str) else list(values)
    unknown = [value for value in values if value not in known]
    if unknown or not values:
        choices = ", ".join(repr(choice) for choice in known)
        raise ValueError(f"{setting} ({values}) must be of {choices}; got {unknown or 'none'}; correct this setting")


def _space(name: str, image_size: int) -> gymnasium.Space:
    if name == "state":
        return gymnasium.spaces.Box(STATE_LOW, STATE_HIGH)
    if name == "objects":
        return gymnasium.spaces.Box(OBJECTS_LOW, OBJECTS_HIGH)
    if name == "instruction":
        return gymnasium.spaces.Text(MAX_INSTRUCTION_LENGTH, charset=string.ascii_lowercase + " ")
    return gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
