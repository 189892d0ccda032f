"""The public name of `fastrnn.machine.threadpools`: what threadpoolctl sees of the team of threads."""

from .machine.threadpools import register

__all__ = ["register"]
