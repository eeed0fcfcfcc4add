FROM python:3.11-slim

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /srv/foretell

# Without the code the package is its dependencies alone, so that a change of code leaves this layer as it is.
# torch from PyPI brings CUDA along; for a far smaller image name an index of CPU-only wheels:
# docker build --build-arg PIP_EXTRA_INDEX_URL=... .
ARG PIP_EXTRA_INDEX_URL
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN pip install --no-cache-dir --constraint constraints.txt . && rm -rf build *.egg-info

COPY models models
COPY app app
COPY artifacts artifacts

RUN useradd --system --no-create-home foretell
USER foretell

# The default is this machine only, which in a container is nobody.
ENV FORETELL_HOST=0.0.0.0 FORETELL_PORT=8000
EXPOSE 8000
HEALTHCHECK --start-period=60s --interval=10s --timeout=5s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['FORETELL_PORT']}/health/ready\", timeout=4)"]
CMD ["python", "-m", "app"]
