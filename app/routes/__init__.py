"""The public surface: one file an endpoint (or a family of them), and this list. What is not in it is not served."""

from app.routes import actuals, administration, anomalies, backtest, forecast, health, home, metrics, models, predict

ROUTERS = (
    predict.router,
    forecast.router,
    anomalies.router,
    backtest.router,
    models.router,
    actuals.router,
    administration.router,
    health.router,
    metrics.router,
    home.router,
)
DIRECT = [predict.router, forecast.router]
"""Those whose endpoints run without FastAPI."""
