"""Flask without its contexts: every view is handed its request, and the edge has it from its head to its response."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from flask import Flask
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Rule

from relay.web.incoming import Incoming
from relay.web.response import Response

if TYPE_CHECKING:
    from relay.web.edge import Edge


class App(Flask):
    """Flask's routes, with requests and responses of our own. `edge`: set before the first request."""

    edge: Edge

    def __init__(self, name: str) -> None:
        super().__init__(name, static_folder=None)
        self._adapter = self.url_map.bind("")  # all hosts have the same routes
        # those whose paths hold no arguments, by path and method, as they are found
        self._fixed: dict[tuple[str, str], Rule] = {}

    def wsgi_app(self, environ: dict[str, Any], start_response: Any) -> Any:
        response = self.edge.answer(Incoming(environ))
        return response(environ, start_response)

    def match(self, incoming: Incoming) -> None:
        """Find the route; where there is none, `dispatch` will raise that."""
        place = incoming.path, incoming.method
        incoming.rule = self._fixed.get(place)
        if incoming.rule is not None:
            return
        try:
            rule, arguments = self._adapter.match(*place, return_rule=True)
        except HTTPException as error:
            incoming.no_route = error
            return
        incoming.rule, incoming.arguments = rule, dict(arguments)
        if not arguments:
            self._fixed[place] = rule

    def dispatch(self, incoming: Incoming) -> Response:
        """Let the view answer. Raises what it raises, and HTTPException."""
        rule = incoming.rule
        if rule is None:
            raise incoming.no_route or HTTPException()
        if incoming.method == "OPTIONS" and _answers_options(rule):
            return self._options(incoming.path)
        view = cast("Callable[..., Response]", self.view_functions[rule.endpoint])
        return view(incoming, **incoming.arguments)

    def _options(self, path: str) -> Response:
        methods = self._adapter.allowed_methods(path)
        return Response(headers={"Allow": ", ".join(sorted(methods))})


def _answers_options(rule: Rule) -> bool:
    """Whether Flask answers a route's OPTIONS; a route of any method passes them on."""
    return bool(getattr(rule, "provide_automatic_options", False))
