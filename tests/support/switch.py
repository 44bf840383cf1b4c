"""What a `saved_models.switched` model reads at each request, and so what it does."""

from __future__ import annotations

import os
from pathlib import Path


class Switch:
    """What the model of one instance reads at each request: it answers, fails or blocks at once as this says."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.file, self._pipe, self._spare = folder / "switch", folder / "pipe", folder / "spare"
        self.answer()

    def answer(self) -> None:
        self._spare.write_text("2.0")
        self._spare.rename(self.file)
        if self._pipe.exists():
            # Whoever has opened the pipe to read goes on once there is a writer.
            os.close(os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK))
            self._pipe.unlink()

    def fail(self) -> None:
        self.file.unlink()

    def block(self) -> None:
        os.mkfifo(self._pipe)
        os.link(self._pipe, self._spare)
        self._spare.rename(self.file)
