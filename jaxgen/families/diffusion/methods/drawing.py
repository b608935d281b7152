"""How a trained denoiser is sampled: the options of `sample`, from a method's path and branches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxgen.config import ROOMS, part
from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.noise import Noise
from jaxgen.families.diffusion.core.path import Path
from jaxgen.families.diffusion.core.sampler import Branch, build_sampler
from jaxgen.families.diffusion.descriptions.base import Description, described
from jaxgen.method import Sampler, Spec


@dataclasses.dataclass(frozen=True, eq=False)
class Drawing:
    """A path, the denoisers that guidance may ask for, the noise, and what stands for labels."""

    path: Path
    spec: Spec
    branches: Mapping[str, Branch]
    noise: Noise
    description: Description | None

    def sampler(
        self,
        *,
        solver: Any = "heun",
        steps: int = 18,
        grid: Any = "uniform",
        guidance: float | Sequence[Any] = 1.0,
        clip: str = "none",
        preview: int = 0,
        describe: Any = None,
        branches: Mapping[str, Branch] | None = None,
    ) -> Sampler:
        """Samples by integrating from noise to data.

        solver, grid: names or sections. steps: solver steps. guidance: the weight of
        classifier-free guidance, or sections applied in order, e.g. [dict(name="cfg.cfg",
        weight=3.0), dict(name="interval.limit", low=.2, high=.8)]. clip: thresholding of x0,
        "none", "static" or "dynamic". preview = k > 0: fn returns (samples, states after every k-th
        step). describe: a section in the place of the method's, e.g. another database. branches:
        further denoisers or functions for guidance, name -> (params, labels[B]) -> object.

        Raises UsageError: steps < 1, guidance that this model was not trained for.
        """
        drawn = build_sampler(
            self.path,
            tuple(self.spec.shape),
            {**self.branches, **(branches or {})},
            solver=solver,
            steps=steps,
            grid=grid,
            guidance=guidance,
            clip=clip,
            preview=preview,
            noise=self.noise,
        )
        if self.description is None:
            if describe is not None:
                raise invalid("sample.describe", describe, "None: this model is told labels")
            return drawn
        other = part(describe, ROOMS["describe"], "sample.describe", spec=self.spec)
        return described(drawn, other or self.description, use_parameters=other is None)
