"""For all tests: signals as a terminal leaves them, whatever started the tests."""

from __future__ import annotations

import signal

# In the background, or under nohup, some are ignored; programs inherit that, and obey.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP):
    signal.signal(number, signal.SIG_DFL)
