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

# All of the above is root's: the service can change none of it, and needs nothing but a /tmp to write to
# (docker run --read-only --tmpfs /tmp). By number, since Kubernetes' runAsNonRoot knows no names.
RUN groupadd --system --gid 10001 foretell && useradd --system --uid 10001 --gid 10001 --no-create-home foretell
USER 10001:10001

# The default is this machine only, which in a container is nobody.
ENV FORETELL_HOST=0.0.0.0 FORETELL_PORT=8000
EXPOSE 8000
HEALTHCHECK --start-period=60s --interval=10s --timeout=5s --retries=3 \
    CMD ["python", "-c", "import os, ssl, urllib.request as u; s = 's' * ('FORETELL_TLS_CERT_FILE' in os.environ); u.urlopen(f\"http{s}://127.0.0.1:{os.environ['FORETELL_PORT']}/health/ready\", timeout=4, context=ssl._create_unverified_context() if s else None)"]
CMD ["python", "-m", "app"]
