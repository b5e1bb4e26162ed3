"""Guidance by the observed pixels (local) and by the global frames, in three branches.

prediction = e00 + s_local (e10 - e00) + s_global (e11 - e10), indices (local, global). Source: M3DDM, section 3.4; its
official code also computes e01 and throws it away. Where the global frames do not guide, it is
e00 + s_local (e11 - e00), as in that code: both conditions are dropped together.
"""

import dataclasses

# (local condition given, global condition given) of each branch.
BRANCHES = ((False, False), (True, False), (True, True))


@dataclasses.dataclass(frozen=True)
class Guidance:
    """local_scale, global_scale: 1 is no guidance, and a global one below 1 neither. interval: the share of the noise
    levels, 0 (clean) to 1 (noise), in which guidance acts (Kynkaanniemi et al., 2024); outside only the fully
    conditioned branch runs."""

    local_scale: float = 1.0
    global_scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance interval {self.interval}: two rising numbers in 0..1 are accepted")

    def weights(self) -> dict[tuple[bool, bool], float]:
        """Weight of each branch that counts; they sum to 1, so they hold for every prediction type alike."""
        if self.global_scale <= 1:
            weights = (1 - self.local_scale, 0.0, self.local_scale)
        else:
            weights = (1 - self.local_scale, self.local_scale - self.global_scale, self.global_scale)
        return {branch: weight for branch, weight in zip(BRANCHES, weights, strict=True) if weight}

    def acts(self, level: float) -> bool:
        """Whether guidance acts at a noise level (timestep / number of timesteps)."""
        return len(self.weights()) > 1 and self.interval[0] <= level <= self.interval[1]
