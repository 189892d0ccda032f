"""Makes fastrnn's threads visible to threadpoolctl. Public name of `fastrnn.machine.threadpools`."""

from .machine.threadpools import register

__all__ = ["register"]
