"""Several processes that train together: their places, their devices, and what they do once or in order.

A script that uses these functions runs unchanged alone, under `launch` and under torchrun: all of them read
torchrun's environment variables, which `launch` sets for the processes that it starts.
"""

from .devices import choose_devices as choose_devices
from .launch import launch as launch
from .once import once_per_node as once_per_node
