"""How hypothesis draws its examples here; it takes a second to import, which a run of the claims does not need."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

in_ci = os.environ.get("CI", "") not in ("", "0", "false")
too_slow = [HealthCheck.too_slow]  # a busy machine is no finding
settings.register_profile("nopos", deadline=None, derandomize=in_ci, suppress_health_check=too_slow)
settings.load_profile("nopos")
