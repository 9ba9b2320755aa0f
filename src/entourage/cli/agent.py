"""``entourage agent``: what ssh starts on the target. Imports nothing that it does not need."""

from __future__ import annotations

import asyncio
from pathlib import Path

from entourage.errors import EntourageError


def agent(config: str | None) -> int:
    """Serve one link on standard input and output; returns the exit status.

    Args:
        config: The settings file; None: where this host has it.
    """
    from entourage.settings.load import load_settings  # noqa: PLC0415 - same
    from entourage.target.agent import serve  # noqa: PLC0415 - what fails in it is told as an error

    try:
        settings = load_settings(Path(config) if config is not None else None)
        asyncio.run(serve(settings))
    except EntourageError as error:
        from entourage.cli.tell import tell  # noqa: PLC0415 - seldom needed

        return tell(error)
    except KeyboardInterrupt:
        from entourage.cli.tell import INTERRUPTED  # noqa: PLC0415 - seldom needed

        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - ssh shows the source one line, not a traceback
        from entourage.cli.tell import tell_bug  # noqa: PLC0415 - seldom needed

        return tell_bug(error, verbose=False)
    return 0
