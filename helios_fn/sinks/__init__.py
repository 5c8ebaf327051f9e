"""Where rows of metrics go, and what people see while a run works.

A sink can be cut back to an earlier point: a checkpoint records the mark that `Sink.flush` returned,
and a resume hands it to `Sink.open`. So after any crash a log holds each row of the run exactly once.
"""

from typing import TYPE_CHECKING

from .console import Progress as Progress
from .names import TIME_SPLIT as TIME_SPLIT
from .names import check_sinks as check_sinks
from .names import log_name as log_name

# Imported when it is first used.
if TYPE_CHECKING:
    from .csv import CSV as CSV
    from .jsonl import JsonLines as JsonLines
    from .jsonl import read_log as read_log
    from .jsonl import read_rows as read_rows
    from .tensorboard import TensorBoard as TensorBoard
    from .textlog import TextLog as TextLog
else:
    from ..later import later as _later

    __getattr__, __dir__ = _later(
        __name__,
        names={
            "csv": "CSV",
            "jsonl": "JsonLines read_log read_rows",
            "tensorboard": "TensorBoard",
            "textlog": "TextLog",
        },
    )
