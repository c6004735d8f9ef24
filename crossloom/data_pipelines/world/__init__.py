"""The world: an embedded data set of drawn scenes, described in ten languages, made from a seed."""

from crossloom.data_pipelines.world.describe import ANSWERS, describe
from crossloom.data_pipelines.world.languages import LANGUAGES
from crossloom.data_pipelines.world.make import WorldReport, write_world
from crossloom.data_pipelines.world.scene import CLASS_NAMES, Scene, make_scene
from crossloom.data_pipelines.world.speech import synthesise

__all__ = [
    "ANSWERS", "CLASS_NAMES", "LANGUAGES", "Scene", "WorldReport", "describe", "make_scene",
    "synthesise", "write_world",
]  # fmt: skip
