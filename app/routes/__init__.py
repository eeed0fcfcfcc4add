"""The public surface: one file an endpoint (or a family of them), and this list. What is not in it is not served."""

from app.routes import forecast, health, home, metrics, models, predict

ROUTERS = (predict.router, forecast.router, models.router, health.router, metrics.router, home.router)
DIRECT = [predict.router, forecast.router]
"""Those whose endpoints run without FastAPI."""
