"""The public surface: one file an endpoint (or a family of them), and this list. What is not in it is not served."""

from app.routes import (
    actuals,
    administration,
    anomalies,
    backtest,
    batch,
    forecast,
    health,
    home,
    inference,
    inference_models,
    metrics,
    models,
    predict,
    reports,
    repository,
    timeseries,
)

ROUTERS = (
    predict.router,
    forecast.router,
    anomalies.router,
    backtest.router,
    batch.router,
    models.router,
    reports.router,
    actuals.router,
    administration.router,
    inference.router,
    inference_models.router,
    repository.router,
    timeseries.router,
    health.router,
    metrics.router,
    home.router,
)
DIRECT = [predict.router, forecast.router, inference.router]
"""Those whose endpoints run without FastAPI."""
