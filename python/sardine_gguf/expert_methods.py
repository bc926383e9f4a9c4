"""The methods of Sardine that show and steer what the router chooses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sardine_gguf.expert_settings import ExpertSettings, ExpertSpec
from sardine_gguf.open_model import OpenModel
from sardine_gguf.routes import Routes


class ExpertMethods(OpenModel):
    """What the experts do in a context; docs/experts.md says what the settings mean."""

    _experts: ExpertSettings
    _keeps_router_logits: bool = False

    @property
    def _names(self) -> list[str]:
        return list(self.model.experts["names"])

    # ---- steering ----

    @property
    def experts(self) -> dict[str, float | str]:
        """The context's settings of experts by name; empty while the router chooses freely.

        A weight (they sum to 1) forces an expert, "mute" keeps it from being chosen, "+2" is a bias. What
        is assigned may also use numbers, None or 0 for "mute", and "*" for all that are not named; None or {}
        leaves the choice to the router. A change empties the context, whose tokens were computed otherwise.

        Raises on assignment:
            ValueError: an unknown expert, a value out of range, or settings in delta_mode "off".
            BusyError: another thread is evaluating.
        """
        return self._experts.as_dict(self._names)

    @experts.setter
    def experts(self, spec: ExpertSpec | None) -> None:
        settings = self.expert_settings(spec)
        settings.apply(self.session)
        self._experts = settings

    def expert_settings(self, spec: ExpertSpec | None) -> ExpertSettings:
        """Checks settings without applying them; raises as assigning `experts` does."""
        settings = ExpertSettings.parse(spec, self._names)
        if settings and self._context.delta_mode == "off":
            raise ValueError(
                'experts are set, and delta_mode "off" runs none: load with "sparse" or "gain"'
            )
        return settings

    # ---- routing ----

    def routing(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Experts of the last evaluation and their weights, each [n_layers_with_experts, n_tokens, k].

        k is the model's number of experts a token, or how many a setting of `experts` leaves. Weights sum to
        1, the largest first. Raises ValueError in mode "off", where nothing is routed.
        """
        if self._context.delta_mode == "off":
            raise ValueError('nothing is routed in delta_mode "off": load with "sparse" or "gain"')
        return self.session.routing()

    def routes(self) -> Routes:
        """The same with its figures: shares, shares by layer and by token, leading experts."""
        ids, weights = self.routing()
        return Routes(ids, weights, len(self._names))

    @property
    def keep_router_logits(self) -> bool:
        """Whether evaluations keep what the router said of every expert; off until it is set."""
        return self._keeps_router_logits

    @keep_router_logits.setter
    def keep_router_logits(self, keep: bool) -> None:
        self.session.keep_router_logits(bool(keep))
        self._keeps_router_logits = bool(keep)

    def router_logits(self) -> NDArray[np.float32]:
        """What the router said in the last evaluation, float32 [n_layers_with_experts, n_tokens, n_experts].

        These are its own logits: not clamped, and settings of `experts` do not show in them.

        Raises:
            ValueError: they were not kept, or nothing was evaluated since.
        """
        logits = self.session.router_logits()
        if not logits.size:
            raise ValueError(
                "no router logits were kept: set keep_router_logits = True before eval(), in a context where "
                "experts act"
            )
        return logits

    def router_probabilities(self) -> NDArray[np.float32]:
        """The softmax of `router_logits` over all experts, clamped as the model does; the same shape."""
        logits = np.clip(self.router_logits(), -50, 50).astype(np.float64)
        p = np.exp(logits - logits.max(axis=-1, keepdims=True))
        out: NDArray[np.float32] = (p / p.sum(axis=-1, keepdims=True)).astype(np.float32)
        return out
