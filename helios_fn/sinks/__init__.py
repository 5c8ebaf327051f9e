"""Where rows of metrics go, and what people see while a run works.

A sink can be cut back to an earlier point: a checkpoint records the mark that `Sink.flush` returned,
and a resume hands it to `Sink.open`. So after any crash a log holds each row of the run exactly once.
"""

from .console import Progress as Progress
from .csv import CSV as CSV
from .jsonl import JsonLines as JsonLines
from .jsonl import read_log as read_log
from .jsonl import read_rows as read_rows
from .names import TIME_SPLIT as TIME_SPLIT
from .names import check_sinks as check_sinks
from .names import log_name as log_name
from .tensorboard import TensorBoard as TensorBoard
from .textlog import TextLog as TextLog
