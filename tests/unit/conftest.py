"""How hypothesis draws its examples here; it takes a second to import, which a run of the claims does not need."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("nopos", deadline=None, derandomize=os.environ.get("CI", "") not in ("", "0", "false"))
settings.load_profile("nopos")
