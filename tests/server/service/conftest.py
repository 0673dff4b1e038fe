"""Services of a small model."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
from made_up_models import write_model
from service_models import Served, SlowPredictor, running, small_predictor

from common.config import ServeConfig
from server.prediction.predictor import Predictor
from server.run.folder import MODEL
from server.service.app import make_app
from server.service.connections import CONNECTIONS
from server.service.examples import Examples


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    return small_predictor()


@pytest.fixture(scope="session")
def served(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Serve a model with some settings other than by default."""
    run = write_model(tmp_path_factory.mktemp("run"), tabular=["vision"])

    def serve(
        *,
        model: Predictor = predictor,
        token: str | None = None,
        examples: Examples = Examples(),  # noqa: B008 - it is frozen
        connections: int = CONNECTIONS,
        **settings: Any,
    ) -> AbstractContextManager[httpx.Client]:
        config = ServeConfig(model=str(run / MODEL), **settings)
        return running(make_app(model, config, examples, token), token, connections)

    return serve


@pytest.fixture(scope="session")
def client(served: Served) -> Iterator[httpx.Client]:
    """Ask a service whose limits are low."""
    with served(max_body_mb=0.125, max_items=20, max_steps=9) as client:
        yield client


@pytest.fixture
def slow(predictor: Predictor) -> Iterator[SlowPredictor]:
    SlowPredictor.open.clear()
    yield SlowPredictor(predictor.model, predictor.fusion, predictor.reading)
    SlowPredictor.open.set()
