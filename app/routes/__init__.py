"""The public surface: one file an endpoint (or a family of them), and this list. What is not in it is not served."""

from app.routes import actuals, anomalies, backtest, forecast, health, home, metrics, models, predict

ROUTERS = (
    predict.router,
    forecast.router,
    anomalies.router,
    backtest.router,
    models.router,
    actuals.router,
    health.router,
    metrics.router,
    home.router,
)
DIRECT = [predict.router, forecast.router]
"""Those whose endpoints run without FastAPI."""
