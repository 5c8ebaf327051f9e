"""The command line: run experiments; look at checkpoints, compare them, export their weights, remove old ones.

One module for each command, which adds itself to the parser. No command ever changes a checkpoint in
place, and none runs or unpickles anything that is in one.
"""

from .main import main as main
